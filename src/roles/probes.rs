//! A worker's own listener: health, readiness and metrics. It changes nothing, so it needs no token.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::conditions::{Condition, Conditions};
use gateway::http::exposition;
use gateway::server::ServeError;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use order_worker::{SourceState, Sources, WorkerLog, WorkerMetrics};
use prometheus_client::registry::Registry;
use serde_json::json;
use stock::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Foundation, StartError};
use crate::config::Config;
use crate::{clock, log};

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
    metrics: WorkerMetrics,
    /// Since when each holds, as probes have seen it.
    conditions: Conditions,
}

impl Probes {
    /// Listens at `admin.listen`.
    pub(super) async fn start(
        config: &Config,
        foundation: Foundation,
        (sources, log): (Arc<Sources>, Arc<WorkerLog>),
        (registry, metrics): (Arc<Registry>, WorkerMetrics),
    ) -> Result<Self, StartError> {
        let (key, address) = ("admin.listen", config.admin.listen);
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::Taken { key, address },
            _ => ServeError::Listen { key, address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr()?;
        let conditions = Conditions::default();
        let watched = Arc::new(Watched { foundation, sources, log, registry, metrics, conditions });
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

/// What holds of that which closes orders and moves money, in a worker or beside buyers.
pub(super) fn of_closing_and_money(metrics: &WorkerMetrics) -> Vec<Condition> {
    let holds = [
        (Condition::ClocksApart, metrics.are_clocks_apart()),
        (Condition::RefundsStuck, metrics.are_refunds_stuck()),
    ];
    holds.into_iter().filter(|(_, holds)| *holds).map(|(condition, _)| condition).collect()
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
                let (ready, answer) = self.readiness().await;
                json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, answer)
            }
            "/metrics" => {
                let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
                match exposition::write(&self.registry, accept) {
                    Ok((kind, metrics)) => reply(StatusCode::OK, kind, metrics),
                    Err(_) => json(StatusCode::INTERNAL_SERVER_ERROR, json!({})),
                }
            }
            _ => json(StatusCode::NOT_FOUND, json!({"calls": ["/healthz", "/readyz", "/metrics"]})),
        }
    }

    /// What holds, each with a sentence about it.
    async fn holding(&self) -> Vec<(Condition, String)> {
        let Foundation { database, stock, .. } = &self.foundation;
        let (orders, ledger) = tokio::join!(
            timeout(ANSWER_MAX, database.epoch()),
            timeout(ANSWER_MAX, stock.now_ms(stock.leases_server()))
        );
        let plain = [
            (Condition::OtherLedger, stock.is_elsewhere()),
            (Condition::OrdersAway, !matches!(orders, Ok(Ok(_)))),
            (Condition::LedgerSilent, !matches!(ledger, Ok(Ok(_)))),
            (Condition::ForeignSales, !stock.foreign_sales().is_empty()),
            (Condition::LogLinesLost, log::loses_lines()),
            (Condition::ClockJumped, clock::has_jumped()),
        ];
        let plain = plain.into_iter().filter(|(_, holds)| *holds).map(|(condition, _)| condition);
        let mut holding: Vec<_> = plain
            .chain(of_closing_and_money(&self.metrics))
            .map(|condition| (condition, condition.sentence().to_owned()))
            .collect();
        // A log that is not there yet, or that another process drains, is nothing to tell.
        for source in self.sources.report() {
            let log = source.log;
            match (source.state, source.trouble) {
                (SourceState::Stopped(why), _) => {
                    holding.push((Condition::DrainStopped, format!("{log} is drained no more: {why}")));
                }
                (SourceState::Refused(why), _) => {
                    holding.push((Condition::LogRefused, format!("{log} is not drained: {why}")));
                }
                (SourceState::Draining, Some(why)) => {
                    holding.push((Condition::DrainHeldUp, format!("the drain of {log} is held up: {why}")));
                }
                _ => {}
            }
        }
        let log = self.log.report();
        if let Some(why) = log.trouble {
            let trouble = format!("this worker's own log in {} takes no records: {why}", log.directory);
            holding.push((Condition::OwnLog, trouble));
        }
        holding
    }

    /// Unready means that promised orders do not become rows, or that the ledger which this worker tells of them is not theirs. A
    /// ledger that does not answer holds up no drain.
    async fn readiness(&self) -> (bool, serde_json::Value) {
        let holding = self.holding().await;
        let words: Vec<_> = holding.iter().map(|(condition, _)| *condition).collect();
        let conditions = self.conditions.look(Timestamp((self.foundation.now)()), &words);
        let stops = |condition: Condition| {
            matches!(
                condition,
                Condition::OtherLedger
                    | Condition::OrdersAway
                    | Condition::DrainStopped
                    | Condition::LogRefused
                    | Condition::DrainHeldUp
            )
        };
        let (lacks, notes): (Vec<_>, Vec<_>) =
            holding.into_iter().partition(|(condition, _)| stops(*condition));
        let sentences =
            |of: Vec<(Condition, String)>| of.into_iter().map(|(_, sentence)| sentence).collect::<Vec<_>>();
        let ready = lacks.is_empty();
        let answer = json!({
            "ready": ready,
            "conditions": conditions,
            "lacks": sentences(lacks),
            "notes": sentences(notes),
            "sources": self.sources.report(),
            "log": self.log.report(),
        });
        (ready, answer)
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
