//! `POST /api/v1/sales/{sale}/orders`: from HTTP to plain data, and from the answer back to HTTP by one exhaustive match.

use std::borrow::Cow;

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use stock::{OrderId, OrderStatus};

use super::{Api, Ask, Reply, json as json_reply, parse};
use crate::http::problem::Problem;
use crate::metrics::Outcome;
use crate::purchase::progress::Estimate;
use crate::purchase::{Attempt, PurchaseAnswer};

/// The body, `{}` if there is none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish<'a> {
    #[serde(default = "one")]
    quantity: u32,
    /// A text, or an object that is carried as its JSON text.
    #[serde(default, borrow)]
    metadata: Option<&'a RawValue>,
    /// The version that the buyer was shown.
    #[serde(default)]
    sale_version: Option<u64>,
}

fn one() -> u32 {
    1
}

/// The body of a 202.
#[derive(Serialize)]
struct Accepted {
    order_id: OrderId,
    status: OrderStatus,
    #[serde(flatten)]
    queued: Option<Waiting>,
}

/// What a waiting buyer is told beside the status.
#[derive(Clone, Serialize)]
pub(super) struct Waiting {
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_ms: Option<u64>,
    poll_after_ms: u64,
}

impl From<Estimate> for Waiting {
    fn from(estimate: Estimate) -> Self {
        let Estimate { position, eta_ms, poll_after_ms } = estimate;
        Self { position, eta_ms, poll_after_ms }
    }
}

impl Api {
    pub(super) async fn purchase(&self, ask: &Ask<'_>, sale: &str, body: Incoming) -> Reply {
        let pass = match ask.pass() {
            Ok(pass) => pass,
            Err(refusal) => return self.unread(refusal),
        };
        let bytes = match self.bytes(ask, body).await {
            Ok(bytes) => bytes,
            Err(refusal) => return self.unread(refusal),
        };
        let wish: Wish<'_> = match parse(&bytes) {
            Ok(wish) => wish,
            Err(refusal) => return self.unread(refusal),
        };
        let metadata = match wish.metadata.map(metadata_text).transpose() {
            Ok(metadata) => metadata.flatten(),
            Err(refusal) => return self.unread(refusal),
        };
        let address = self.gateway.limits_by_address.then(|| self.client(ask).address);
        let (quantity, sale_version) = (wish.quantity, wish.sale_version);
        let attempt = Attempt { sale, pass, quantity, metadata: metadata.as_deref(), sale_version, address };
        answer(self.purchases.purchase(attempt).await)
    }

    /// Counts a press that got no further than its reading.
    fn unread(&self, refusal: Reply) -> Reply {
        let metrics = &self.purchases.parts().metrics;
        match refusal.status() {
            StatusCode::BAD_REQUEST => metrics.count_nowhere(Outcome::BadRequest),
            StatusCode::PAYLOAD_TOO_LARGE => metrics.count_nowhere(Outcome::TooLarge),
            _ => {}
        }
        refusal
    }
}

/// The one place where purchases become HTTP. Pure: whatever had to be asked was asked on the way.
fn answer(answer: PurchaseAnswer) -> Reply {
    match answer {
        PurchaseAnswer::Accepted { order_id, estimate, .. } => {
            accepted(order_id, OrderStatus::Queued, Some(estimate.into()))
        }
        PurchaseAnswer::Settled { order_id, status: Some(status) } if status.is_final() => {
            Problem::PassUsed.with([("order_id", json!(order_id))])
        }
        PurchaseAnswer::Settled { order_id, status: Some(status) } => accepted(order_id, status, None),
        PurchaseAnswer::Settled { order_id, status: None } => {
            Problem::Uncertain.with([("order_id", json!(order_id))])
        }
        PurchaseAnswer::BadRequest(problem) => Problem::BadRequest.because(problem),
        PurchaseAnswer::TooLarge => Problem::TooLarge.response(),
        PurchaseAnswer::UnknownSale => Problem::UnknownSale.response(),
        PurchaseAnswer::SoldOut => Problem::SoldOut.response(),
        PurchaseAnswer::Paused => Problem::Paused.response(),
        PurchaseAnswer::NotStarted { wait_ms } => Problem::NotStarted.after_ms(wait_ms),
        PurchaseAnswer::Ended => Problem::Ended.response(),
        PurchaseAnswer::PassInvalid => Problem::PassInvalid.response(),
        PurchaseAnswer::SaleChanged => Problem::SaleChanged.response(),
        PurchaseAnswer::SlowDown { wait_ms: 0..=1_000 } => Problem::SlowDown.response(),
        PurchaseAnswer::SlowDown { wait_ms } => Problem::SlowDown.after_ms(wait_ms),
        PurchaseAnswer::Busy => Problem::Busy.response(),
        PurchaseAnswer::PassUsed { order_id } => Problem::PassUsed.with([("order_id", json!(order_id))]),
        PurchaseAnswer::LimitReached { order_ids } if order_ids.is_empty() => {
            Problem::LimitReached.response()
        }
        PurchaseAnswer::LimitReached { mut order_ids } => {
            order_ids.reverse();
            Problem::LimitReached.with([("order_ids", json!(order_ids))])
        }
        PurchaseAnswer::NotEnough { remaining } => Problem::NotEnough.with([("remaining", json!(remaining))]),
        PurchaseAnswer::Uncertain { order_id } => Problem::Uncertain.with([("order_id", json!(order_id))]),
    }
}

fn metadata_text(raw: &RawValue) -> Result<Option<Cow<'_, str>>, Reply> {
    match raw.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(raw.get())
            .map(|text| Some(Cow::Owned(text)))
            .map_err(|_| Problem::BadRequest.because("metadata is not a text")),
        Some(b'{') => Ok(Some(Cow::Borrowed(raw.get()))),
        Some(b'n') => Ok(None),
        _ => Err(Problem::BadRequest.because("metadata is a text or an object")),
    }
}

fn accepted(order_id: OrderId, status: OrderStatus, queued: Option<Waiting>) -> Reply {
    let mut response = json_reply(StatusCode::ACCEPTED, &Accepted { order_id, status, queued });
    if let Ok(location) = HeaderValue::from_str(&format!("/api/v1/orders/{order_id}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
