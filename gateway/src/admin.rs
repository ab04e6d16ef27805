//! The listener of the operator, of probes and of the edge. Never to be reachable by buyers: metrics and feed need no token.

#![allow(
    clippy::result_large_err,
    reason = "a refusal is the usual answer; boxing it would cost it an allocation"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stock::{Owner, SaleDefinition, SaleId};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::Gateway;
use crate::api::{Reply, json as json_reply, parse};
use crate::http::body::{self, Body, BodyError};
use crate::http::client::Holder;
use crate::http::connection::{Peer, closing_after};
use crate::http::exposition;
use crate::http::problem::{Problem, method_not_allowed};
use crate::pages;
use crate::ports::{PortError, PortFuture, SaleChange};

mod orders;
mod pending;

/// Largest body of an operator's call, bytes.
const BODY_BYTES_MAX: usize = 65_536;
/// Longest wait of a feed's long poll.
const FEED_WAIT_MAX: Duration = Duration::from_secs(25);
/// Long polls at once. More would leave no connections to probes.
const FEED_POLLS_MAX: usize = 256;
/// Longest wait for the orders on an operator's behalf.
const ORDERS_MAX: Duration = Duration::from_secs(10);
/// Longest name of a restock or of an operator, bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest reason of a change, characters.
const REASON_CHARS_MAX: usize = 255;

/// What is here, for whoever looks for something else.
const HERE: &str = "the operator's listener has /console, /healthz, /readyz, /metrics, /internal/v1/edge and the calls below /admin/v1/";

/// See the module.
pub(crate) struct Admin {
    gateway: Arc<Gateway>,
    registry: Arc<Registry>,
    closing: watch::Receiver<bool>,
    feed_polls: AtomicUsize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    by: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rebuild {
    /// An instance, in hexadecimal.
    without: Option<String>,
}

/// The keys of the edit, and a reason among them.
#[derive(Deserialize)]
struct Edit {
    reason: Option<String>,
    #[serde(flatten)]
    edit: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restock {
    restock_id: String,
    units: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdraw {
    /// Whether its orders go, too.
    #[serde(default)]
    orders: bool,
    reason: Option<String>,
}

#[derive(Serialize)]
struct FeedSale {
    sold_out: bool,
    /// Newer is larger: the epoch in the high bits, the ledger's counter in the low 32. Exact in a double.
    version: u64,
}

impl Admin {
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        registry: Arc<Registry>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { gateway, registry, closing, feed_polls: AtomicUsize::new(0) }
    }

    /// Answers one request.
    pub(crate) async fn handle(&self, peer: Peer, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let read = matches!(head.method, Method::GET | Method::HEAD);
        match path {
            "/healthz" | "/readyz" | "/metrics" | "/internal/v1/edge" | "/console" if !read => {
                method_not_allowed("GET, HEAD")
            }
            "/healthz" => json_reply(StatusCode::OK, &json!({"alive": true})),
            "/readyz" => self.ready(),
            "/metrics" => self.metrics(&head.headers),
            "/internal/v1/edge" => self.edge(head.uri.query()).await,
            _ => match path.strip_prefix("/admin/v1/") {
                Some(_) if !self.is_operator(&head.headers) => Problem::Unauthorized.because(
                    "send the operator's token as Authorization: Bearer; it stands in admin.token_file",
                ),
                Some(call) => self.operate(&head.method, (call, head.uri.query()), (&peer, body)).await,
                None => match pages::console(path, &head.headers) {
                    Some(page) if read => page.map(Body::whole),
                    _ => Problem::NotFound.because(HERE),
                },
            },
        }
    }

    fn is_operator(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.gateway.admin_config.token else { return false };
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return false };
        let given = line.to_str().ok().and_then(|line| line.split_once(' '));
        let Some((_, given)) = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return false;
        };
        given.trim().as_bytes().ct_eq(token.expose().as_bytes()).into()
    }

    fn ready(&self) -> Reply {
        let readiness = self.gateway.readiness();
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json_reply(status, &readiness)
    }

    fn metrics(&self, headers: &HeaderMap) -> Reply {
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let Ok((kind, metrics)) = exposition::write(&self.registry, accept) else {
            return Problem::Internal.response();
        };
        let mut response = Response::new(Body::whole(metrics));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// The feed: at once if it has moved beyond `since`, otherwise when it does or after [`FEED_WAIT_MAX`].
    async fn edge(&self, query: Option<&str>) -> Reply {
        let since = query.and_then(|q| q.split('&').find_map(|pair| pair.strip_prefix("since=")));
        let since = match since.map(str::parse::<u64>) {
            None => None,
            Some(Ok(since)) => Some(since),
            Some(Err(_)) => return Problem::BadRequest.because("since is the version of an earlier answer"),
        };
        let flag = self.gateway.stock.flag();
        let mut changes = flag.subscribe();
        let mut closing = self.closing.clone();
        if let Some(since) = since {
            let Some(_place) = Place::take(&self.feed_polls) else {
                return Problem::Busy
                    .because("too many edges wait for the feed: ask again after Retry-After seconds");
            };
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => {}
                // A version beyond ours is another instance's: it gets the replacing snapshot at once.
                _ = timeout(FEED_WAIT_MAX, changes.wait_for(|version| *version != since)) => {}
            }
        }
        let feed = flag.feed();
        let sale = |state: stock::FlagState| FeedSale {
            sold_out: state.sold_out,
            version: state.version.epoch << 32 | (state.version.counter & 0xFFFF_FFFF),
        };
        let sales: serde_json::Map<String, Value> =
            feed.sales.into_iter().map(|(id, state)| (id.to_string(), json!(sale(state)))).collect();
        json_reply(
            StatusCode::OK,
            &json!({"instance": format!("{:016x}", feed.instance), "version": feed.version, "sales": sales}),
        )
    }

    async fn operate(
        &self,
        method: &Method,
        (call, query): (&str, Option<&str>),
        body: (&Peer, Incoming),
    ) -> Reply {
        let operator = &self.gateway.operator;
        let mut parts = call.split('/');
        let parts = [parts.next(), parts.next(), parts.next(), parts.next()];
        let sale = match parts {
            [Some("sales"), None, ..] => {
                return match *method {
                    Method::GET | Method::HEAD => {
                        answered(operator.sales(), |sales| {
                            json_reply(StatusCode::OK, &json!({"sales": sales}))
                        })
                        .await
                    }
                    Method::PUT => match self.read::<SaleDefinition>(body).await {
                        Ok(sale) => {
                            answered(operator.publish(sale), |sale| json_reply(StatusCode::OK, &sale)).await
                        }
                        Err(refusal) => refusal,
                    },
                    _ => method_not_allowed("GET, HEAD, PUT"),
                };
            }
            [Some("orders"), Some(order), Some(what @ ("cancel" | "close" | "refund")), None] => {
                return self.change_order(method, order, what, body).await;
            }
            [Some("refunds"), Some(refund), Some("retry"), None] => {
                return self.retry_refund(method, refund, body).await;
            }
            [Some("ledger"), Some("rebuild"), None, _] => {
                if *method != Method::POST {
                    return method_not_allowed("POST");
                }
                return match self.read::<Rebuild>(body).await.and_then(left_out) {
                    Ok(without) => {
                        answered(operator.rebuild(without), |begun| json_reply(StatusCode::OK, &begun)).await
                    }
                    Err(refusal) => refusal,
                };
            }
            [Some("sales"), Some(sale), ..] => match sale.parse::<SaleId>() {
                Ok(sale) => sale,
                Err(_) => return unknown_sale(),
            },
            _ => return Problem::NotFound.because(HERE),
        };
        let change = match (parts[2], parts[3]) {
            (None, _) if matches!(*method, Method::GET | Method::HEAD) => {
                return answered(operator.figures(sale), |figures| match figures {
                    Some(figures) => json_reply(StatusCode::OK, &figures),
                    None => unknown_sale(),
                })
                .await;
            }
            (Some("pending"), None) if matches!(*method, Method::GET | Method::HEAD) => {
                return pending::page(&self.gateway, &sale, query).await;
            }
            (None, _) | (Some("pending"), None) => return method_not_allowed("GET, HEAD"),
            (Some("pause" | "resume" | "restock" | "edit" | "withdraw"), None) if *method != Method::POST => {
                return method_not_allowed("POST");
            }
            (Some("pause"), None) => self.read::<Pause>(body).await.and_then(paused),
            (Some("resume"), None) => self.read::<Nothing>(body).await.map(|_| SaleChange::Resume),
            (Some("restock"), None) => self.read::<Restock>(body).await.and_then(restock),
            (Some("withdraw"), None) => self.read::<Withdraw>(body).await.and_then(withdraw),
            (Some("edit"), None) => self.read::<Edit>(body).await.and_then(edit),
            _ => return Problem::NotFound.because(HERE),
        };
        match change {
            Ok(change) => {
                answered(operator.change(sale, change), |sale| json_reply(StatusCode::OK, &sale)).await
            }
            Err(refusal) => refusal,
        }
    }

    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        (peer, body): (&Peer, Incoming),
    ) -> Result<T, Reply> {
        let time_max = Duration::from_millis(self.gateway.config.body_read_max_ms);
        let awaiting = || peer.vitals.awaits_body(Holder::NOBODY);
        let bytes =
            body::read(body, BODY_BYTES_MAX, time_max, awaiting).await.map_err(|error| match error {
                BodyError::TooLarge => closing_after(Problem::TooLarge.because("a body may have 64 KiB")),
                BodyError::TooSlow => closing_after(Problem::TooSlow.response()),
                BodyError::Broken => closing_after(Problem::BadRequest.because("the body could not be read")),
            })?;
        parse(&bytes)
    }
}

/// A place among the long polls; given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(polls: &'a AtomicUsize) -> Option<Self> {
        let place = Self(polls);
        // A lone count that guards nothing else: relaxed serves.
        (polls.fetch_add(1, Ordering::Relaxed) < FEED_POLLS_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn unknown_sale() -> Reply {
    Problem::UnknownSale.because("see GET /admin/v1/sales")
}

fn paused(Pause { by }: Pause) -> Result<SaleChange, Reply> {
    let by = by.unwrap_or_else(|| "operator".into());
    if !(1..=NAME_BYTES_MAX).contains(&by.len()) || by.chars().any(char::is_control) {
        return Err(Problem::BadRequest.because("by has 1 to 64 bytes without control characters"));
    }
    Ok(SaleChange::Pause { by })
}

fn left_out(Rebuild { without }: Rebuild) -> Result<Option<Owner>, Reply> {
    let parse = |text: String| {
        text.parse()
            .map_err(|_| Problem::BadRequest.because("without is an instance: up to 16 hexadecimal digits"))
    };
    without.map(parse).transpose()
}

fn edit(Edit { reason, edit }: Edit) -> Result<SaleChange, Reply> {
    if edit.is_empty() {
        return Err(Problem::BadRequest.because("say what is to be another: title, price, ends_at …"));
    }
    if reason.as_ref().is_some_and(|reason| {
        reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control)
    }) {
        return Err(
            Problem::BadRequest.because("reason has up to 255 characters, none of them a control character")
        );
    }
    let edit = serde_json::from_value(Value::Object(edit))
        .map_err(|error| Problem::BadRequest.because(&error.to_string()))?;
    Ok(SaleChange::Edit { edit: Box::new(edit), reason })
}

fn restock(Restock { restock_id, units }: Restock) -> Result<SaleChange, Reply> {
    if units == 0 {
        return Err(Problem::BadRequest.because("units is at least 1"));
    }
    let length = restock_id.len();
    if !(1..=NAME_BYTES_MAX).contains(&length) || restock_id.chars().any(char::is_control) {
        return Err(Problem::BadRequest.because("restock_id has 1 to 64 bytes without control characters"));
    }
    Ok(SaleChange::Restock { restock_id, units })
}

fn withdraw(Withdraw { orders, reason }: Withdraw) -> Result<SaleChange, Reply> {
    Ok(SaleChange::Withdraw { orders, reason: checked(reason)? })
}

/// What for, as it may stand in the journal.
fn checked(reason: Option<String>) -> Result<Option<String>, Reply> {
    let is_good = |reason: &String| {
        (1..=REASON_CHARS_MAX).contains(&reason.chars().count()) && !reason.chars().any(char::is_control)
    };
    match reason {
        Some(reason) if !is_good(&reason) => {
            Err(Problem::BadRequest.because("reason has 1 to 255 characters without control characters"))
        }
        reason => Ok(reason),
    }
}

async fn answered<T>(call: PortFuture<'_, T>, show: impl FnOnce(T) -> Reply) -> Reply {
    match timeout(ORDERS_MAX, call).await {
        Ok(Ok(value)) => show(value),
        Ok(Err(PortError::UnknownSale(_))) => unknown_sale(),
        Ok(Err(error @ PortError::Differs(_))) => Problem::SaleDiffers.because(&error.to_string()),
        Ok(Err(error @ PortError::Invalid(_))) => Problem::BadRequest.because(&error.to_string()),
        Ok(Err(error @ PortError::Unavailable(_))) => Problem::Busy.because(&error.to_string()),
        Err(_) => Problem::Busy
            .because("the orders did not answer in time; the call may have been carried out: repeat it"),
    }
}
