//! A worker's own listener: health, readiness and metrics. It changes nothing, so it needs no token.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::FOREIGN_SALES;
use gateway::server::ServeError;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use order_worker::{SourceState, Sources, WorkerLog};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Foundation, StartError};
use crate::config::Config;

const CONNECTIONS_MAX: usize = 64;
const HEAD_MAX: Duration = Duration::from_secs(5);
/// One connection serves no longer than this, whatever it asks.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Longest wait for ledger and database when readiness is asked.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Pause when the system has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// The running listener.
pub(super) struct Probes {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

struct Watched {
    foundation: Foundation,
    sources: Arc<Sources>,
    log: Arc<WorkerLog>,
    registry: Arc<Registry>,
}

impl Probes {
    /// Listens at `admin.listen`.
    pub(super) async fn start(
        config: &Config,
        foundation: Foundation,
        (sources, log): (Arc<Sources>, Arc<WorkerLog>),
        registry: Arc<Registry>,
    ) -> Result<Self, StartError> {
        let (key, address) = ("admin.listen", config.admin.listen);
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::Taken { key, address },
            _ => ServeError::Listen { key, address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr()?;
        let watched = Arc::new(Watched { foundation, sources, log, registry });
        Ok(Self { address, serving: tokio::spawn(serve(listener, watched)) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn stop(self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, watched: Arc<Watched>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed, so that this cannot fail.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let watched = watched.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let watched = watched.clone();
                async move { Ok::<_, Infallible>(watched.answer(&request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), answer);
            let _ = timeout(CONNECTION_MAX, connection).await;
            drop(place);
        });
    }
}

impl Watched {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "application/json", "{}".into());
        }
        let json = |status, value: serde_json::Value| reply(status, "application/json", value.to_string());
        match request.uri().path() {
            "/healthz" => json(StatusCode::OK, json!({"alive": true})),
            "/readyz" => {
                let lacks = self.lacks().await;
                let status = if lacks.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let ready = lacks.is_empty();
                let (notes, sources) = (self.notes(), self.sources.report());
                let log = self.log.report();
                json(
                    status,
                    json!({"ready": ready, "lacks": lacks, "notes": notes, "sources": sources, "log": log}),
                )
            }
            "/metrics" => {
                let mut metrics = String::new();
                if text::encode(&mut metrics, &self.registry).is_err() {
                    return json(StatusCode::INTERNAL_SERVER_ERROR, json!({}));
                }
                reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics)
            }
            _ => json(StatusCode::NOT_FOUND, json!({"calls": ["/healthz", "/readyz", "/metrics"]})),
        }
    }

    /// What an operator should know although orders become rows.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.foundation.stock.foreign_sales().is_empty() {
            notes.push(FOREIGN_SALES.to_owned());
        }
        let log = self.log.report();
        if let Some(why) = log.trouble {
            notes.push(format!("this worker's own log in {} takes no records: {why}", log.directory));
        }
        notes
    }

    /// What keeps promised orders from becoming rows; empty means ready. A log that is not there yet, or that another
    /// process drains, lacks nothing.
    async fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        let Foundation { database, stock, .. } = &self.foundation;
        let (database, ledger) = tokio::join!(
            timeout(ANSWER_MAX, database.epoch()),
            timeout(ANSWER_MAX, stock.now_ms(stock.leases_server()))
        );
        if !matches!(database, Ok(Ok(_))) {
            lacks.push("the orders are out of reach".to_owned());
        }
        if !matches!(ledger, Ok(Ok(_))) {
            lacks.push("the stock ledger does not answer".to_owned());
        }
        for source in self.sources.report() {
            let log = source.log;
            match (source.state, source.trouble) {
                (SourceState::Stopped(why), _) => {
                    lacks.push(format!("{log} is drained no more: {why}"));
                }
                (SourceState::Refused(why), _) => lacks.push(format!("{log} is not drained: {why}")),
                (SourceState::Draining, Some(why)) => {
                    lacks.push(format!("the drain of {log} is held up: {why}"));
                }
                _ => {}
            }
        }
        lacks
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
