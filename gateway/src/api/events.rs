//! `GET /api/v1/orders/{order}/events`: server-sent events, one a status change. A bounded number of streams, in all and a user,
//! each of bounded length; a browser comes back by itself.
//!
//! A stream looks when something has happened to its order in this process, or the drain has passed its record; what happens
//! elsewhere it finds by looking now and then. Every look counts among its user's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use stock::{OrderId, OrderStatus, UserId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::orders::{NotShown, OrderDocument};
use super::{Api, Ask, Reply};
use crate::Gateway;
use crate::http::body::Body;
use crate::http::connection::Vitals;
use crate::http::problem::Problem;
use crate::streams::{NoPlace, OpenStream, STREAMS_PER_USER_MAX};

/// Between two looks, each spread by a quarter to either side.
const LOOKS: Looks = Looks {
    here: Duration::from_secs(10),
    elsewhere: Duration::from_secs(2),
    settled: Duration::from_secs(5),
    drained: (Duration::from_millis(250), Duration::from_secs(4)),
};
/// Shortest wait of a stream whose user has looked too often.
const TOO_FAST_MIN: Duration = Duration::from_millis(50);
/// Longest silence.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Longest stream.
const STREAM_MAX: Duration = Duration::from_secs(600);

struct Looks {
    /// At an order that waits in this instance's log: the drain's passing it wakes the stream.
    here: Duration,
    /// At one that waits in another instance's log, or that this one no longer remembers.
    elsewhere: Duration,
    /// At one that is in the database: a cancel in this process wakes the stream.
    settled: Duration,
    /// At one that the drain has passed and the ledger still calls pending: the first, doubled up to the last.
    drained: (Duration, Duration),
}

/// One stream's memory.
struct Watch {
    place: OpenStream,
    vitals: Arc<Vitals>,
    gateway: Arc<Gateway>,
    order_id: OrderId,
    user: UserId,
    closing: watch::Receiver<bool>,
    until: Instant,
    look_at: Instant,
    /// Read when the stream was asked for, and not told yet.
    first: Option<OrderDocument>,
    told: Option<OrderStatus>,
    /// The wait after the next look that finds it drained and pending.
    catch_up: Duration,
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
        // The place first: who has all of theirs costs no look.
        let place = match self.gateway.streams.open(&user, order_id) {
            Ok(place) => place,
            Err(NoPlace::OfUser) => {
                return Problem::SlowDown.because(&format!(
                    "you have {STREAMS_PER_USER_MAX} streams open: close one, or ask GET"
                ));
            }
            Err(NoPlace::Full) => return Problem::Busy.response(),
        };
        if self.gateway.looks.check_user(&user).is_err() {
            return Problem::SlowDown.response();
        }
        // What cannot be shown is an ordinary answer, not an empty stream.
        let first = match self.gateway.look_up(order_id, &user).await {
            Ok(document) => document,
            Err(not_shown) => return not_shown.reply(),
        };
        ask.vitals.streams(self.holder(ask));
        let now = Instant::now();
        let watch = Watch {
            place,
            vitals: ask.vitals.clone(),
            gateway: self.gateway.clone(),
            order_id,
            user,
            closing: self.closing.clone(),
            until: now + STREAM_MAX,
            look_at: now,
            first: Some(first),
            told: None,
            catch_up: LOOKS.drained.0,
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
        let now = Instant::now();
        if now >= watch.until {
            return None;
        }
        if now >= watch.look_at {
            match watch.look().await {
                Ok(Some(document)) => {
                    let data = serde_json::to_string(&document).ok()?;
                    let event = Bytes::from(format!("event: status\ndata: {data}\n\n"));
                    return Some((event, (!document.status.is_final()).then_some(watch)));
                }
                // Ledger or orders are silent: the stream goes on, they may come back.
                Ok(None) | Err(NotShown::Unknown) => {}
                Err(NotShown::None) => return None,
            }
        }
        if now >= ping_at {
            return Some((Bytes::from_static(b": ping\n\n"), Some(watch)));
        }
        let Watch { place, closing, look_at, until, .. } = &mut watch;
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return None,
            () = place.woken() => *look_at = Instant::now(),
            () = sleep_until((*look_at).min(ping_at).min(*until)) => {}
        }
    }
}

impl Watch {
    /// One look, if the user has one left, and when the next is due. What it found, where that is news.
    async fn look(&mut self) -> Result<Option<OrderDocument>, NotShown> {
        let found = match self.first.take() {
            Some(document) => Ok(document),
            None => {
                if let Err(fast) = self.gateway.looks.check_user(&self.user) {
                    self.look_at = Instant::now() + fast.retry_after.max(TOO_FAST_MIN);
                    return Ok(None);
                }
                self.gateway.look_up(self.order_id, &self.user).await
            }
        };
        let status = found.as_ref().map_or(self.told, |document| Some(document.status));
        let pause =
            if matches!(status, None | Some(OrderStatus::Queued)) { self.queued() } else { LOOKS.settled };
        self.look_at = Instant::now() + self.spread(pause);
        let document = found?;
        if self.told == Some(document.status) {
            return Ok(None);
        }
        self.told = Some(document.status);
        Ok(Some(document))
    }

    /// How long a queued order is left alone, and from then on what wakes the stream sooner.
    fn queued(&mut self) -> Duration {
        let progress = &self.gateway.progress;
        let Some(position) = progress.position_of(self.order_id) else { return LOOKS.elsewhere };
        if progress.drained_through().is_none_or(|through| through < position) {
            // One that it passes in between is woken at the drain's next look.
            self.place.wait_for_drain(position);
            return LOOKS.here;
        }
        let pause = self.catch_up;
        self.catch_up = (pause * 2).min(LOOKS.drained.1);
        pause
    }

    /// A crowd that came together does not look together.
    fn spread(&self, pause: Duration) -> Duration {
        let part = ((self.gateway.random)() & 0xFF) as u32;
        pause * 3 / 4 + pause / 2 * part / 0xFF
    }
}
