//! `GET /api/v1/orders/{order}/events`: server-sent events, one a status change. A bounded number of streams, each of bounded
//! length; a browser comes back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use stock::{OrderId, UserId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::orders::NotShown;
use super::{Api, Ask, Reply};
use crate::Gateway;
use crate::body::Body;
use crate::books::OrderStatus;
use crate::connection::Vitals;
use crate::problem::Problem;

/// Between two looks at a queued order (ledger) and at any other (database).
const LOOK_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// Longest silence.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Longest stream.
const STREAM_MAX: Duration = Duration::from_secs(600);

/// A place among the open streams.
struct Place {
    gateway: Arc<Gateway>,
}

impl Place {
    fn take(gateway: &Arc<Gateway>) -> Option<Self> {
        let open: &AtomicUsize = &gateway.event_streams;
        if open.fetch_add(1, Ordering::Relaxed) >= gateway.config.event_streams_max {
            open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        gateway.server_metrics.event_streams.inc();
        Some(Self { gateway: gateway.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gateway.event_streams.fetch_sub(1, Ordering::Relaxed);
        self.gateway.server_metrics.event_streams.dec();
    }
}

/// One stream's memory.
struct Watch {
    place: Place,
    vitals: Arc<Vitals>,
    order_id: OrderId,
    user: UserId,
    closing: watch::Receiver<bool>,
    until: Instant,
    told: Option<OrderStatus>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.vitals.streamed();
    }
}

impl Api {
    pub(super) async fn events(&self, ask: &Ask<'_>, order: &str) -> Reply {
        let (order_id, user) = match self.order_and_user(ask, order) {
            Ok(named) => named,
            Err(refusal) => return refusal,
        };
        // What cannot be shown is an ordinary answer, not an empty stream.
        if let Err(not_shown) = self.gateway.look_up(order_id, &user).await {
            return not_shown.reply();
        }
        let Some(place) = Place::take(&self.gateway) else { return Problem::Busy.response() };
        ask.vitals.streams(self.holder(ask));
        let watch = Watch {
            place,
            vitals: ask.vitals.clone(),
            order_id,
            user,
            closing: self.closing.clone(),
            until: Instant::now() + STREAM_MAX,
            told: None,
        };
        let first = stream::once(async { Bytes::from_static(b"retry: 2000\n\n") });
        let events = first.chain(stream::unfold(Some(watch), next)).boxed();
        let mut response = Response::new(Body::Events(events));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // nginx would hold events back otherwise.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        response
    }
}

/// The next event or ping; the end after a final status, after [`STREAM_MAX`] and at shutdown.
async fn next(watch: Option<Watch>) -> Option<(Bytes, Option<Watch>)> {
    let mut watch = watch?;
    let ping_at = Instant::now() + PING_INTERVAL;
    loop {
        match watch.place.gateway.look_up(watch.order_id, &watch.user).await {
            Ok(document) if watch.told != Some(document.status) => {
                watch.told = Some(document.status);
                let data = serde_json::to_string(&document).ok()?;
                let event = Bytes::from(format!("event: status\ndata: {data}\n\n"));
                return Some((event, (!document.status.is_final()).then_some(watch)));
            }
            // Ledger or books are silent: the stream goes on, they may come back.
            Ok(_) | Err(NotShown::Unknown) => {}
            Err(NotShown::None) => return None,
        }
        let now = Instant::now();
        if now >= watch.until {
            return None;
        }
        if now >= ping_at {
            return Some((Bytes::from_static(b": ping\n\n"), Some(watch)));
        }
        let (queued, settled) = LOOK_INTERVAL;
        let pause = if matches!(watch.told, None | Some(OrderStatus::Queued)) { queued } else { settled };
        tokio::select! {
            biased;
            _ = watch.closing.wait_for(|closing| *closing) => return None,
            () = sleep(pause) => {}
        }
    }
}
