//! Payment deadlines as delayed messages of the topic `floodgate-timeouts`, in the log of the worker that wrote the row: appended a batch
//! at a time, durable before the drain's offset moves. Where the log does not take them, nothing waits: those orders are found by
//! the index (status, pay_by). Never decides anything: the closer asks the row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use queue::{NewRecord, Topic, TopicState};
use serde::{Deserialize, Serialize};
use stock::{OrderId, OrderStatus, SaleId, Timestamp};
use tokio::time::timeout;

use crate::database::{Due, Settled};
use crate::metrics::WorkerMetrics;

/// The tag of each message.
const TAG: &str = "order.unpaid";
/// The version of the message that [`Deadline::encode`] writes.
const MESSAGE_VERSION: u32 = 1;
/// Longest wait for the log's disk, so that one that hangs does not hold the drain.
const APPEND_MAX: Duration = Duration::from_secs(1);

/// Finds the topic as long as its log can be used.
pub type GetTopic = Arc<dyn Fn() -> Option<Topic> + Send + Sync>;

/// An order's payment deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deadline {
    pub(super) order_id: OrderId,
    pub(super) sale: SaleId,
    pub(super) pay_by: Timestamp,
}

/// Why a message is no deadline.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("message version {0} is unknown to this process (it knows {MESSAGE_VERSION})")]
    UnknownVersion(u32),
    #[error("not a deadline: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct MessageOut<'a> {
    v: u32,
    #[serde(flatten)]
    deadline: &'a Deadline,
}

#[derive(Deserialize)]
struct MessageVersion {
    v: u32,
}

impl Deadline {
    /// The message (`order-worker/schema/timeout.v1.json`).
    fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&MessageOut { v: MESSAGE_VERSION, deadline: self })
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let MessageVersion { v } = serde_json::from_slice(message)?;
        if v != MESSAGE_VERSION {
            return Err(DecodeError::UnknownVersion(v));
        }
        Ok(serde_json::from_slice(message)?)
    }

    pub(super) fn due(self) -> Due {
        Due { order_id: self.order_id, sale: self.sale }
    }
}

/// Where a worker's drains leave deadlines. Clones are the same place.
#[derive(Clone)]
pub struct Timeouts {
    topic: GetTopic,
    grace_ms: u64,
    left: Counter,
    /// Until then there may be deadlines that no log has: the latest of those that were left.
    left_until_ms: Arc<AtomicU64>,
}

impl Timeouts {
    /// Appends to what `topic` finds. An order is closed `grace_ms` after its deadline.
    #[must_use]
    pub fn new(topic: GetTopic, grace_ms: u64, metrics: &WorkerMetrics) -> Self {
        Self { topic, grace_ms, left: metrics.timeouts_left.clone(), left_until_ms: Arc::default() }
    }

    pub(super) fn grace_ms(&self) -> u64 {
        self.grace_ms
    }

    pub(super) fn topic(&self) -> Option<Topic> {
        (self.topic)()
    }

    /// When the last of those that no log took is over; 0 while all were taken.
    pub(super) fn left_until_ms(&self) -> u64 {
        self.left_until_ms.load(Ordering::Relaxed)
    }

    /// All of those through this time have been looked for by the index.
    pub(super) fn caught(&self, through_ms: u64) {
        let _ = self.left_until_ms.compare_exchange(through_ms, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Keeps the deadlines of a batch that has rows, of those that had one before too: which of them reached the log the last time
    /// nobody knows. Durable when this returns, or counted as left to the index.
    ///
    /// A crash before that leaves some of them in the log, and the batch is repeated with all of them; the closer finds an order closed
    /// the second time.
    pub(crate) async fn keep(&self, settled: &[Settled]) {
        let deadline = |row: &Settled| {
            let pay_by = row.pay_by.filter(|_| row.status == OrderStatus::Unpaid)?;
            Some(Deadline { order_id: row.order_id, sale: row.sale.clone(), pay_by })
        };
        let deadlines: Vec<Deadline> = settled.iter().filter_map(deadline).collect();
        if deadlines.is_empty() || self.append(&deadlines).await {
            return;
        }
        self.left.inc_by(deadlines.len() as u64);
        let latest = deadlines.iter().map(|deadline| deadline.pay_by.0).max().unwrap_or(0);
        self.left_until_ms.fetch_max(latest.saturating_add(self.grace_ms), Ordering::Relaxed);
    }

    /// Whether all of them are durable. A part may be, where not.
    async fn append(&self, deadlines: &[Deadline]) -> bool {
        let Some(topic) = self.topic().filter(|topic| topic.state() == TopicState::Writable) else {
            return false;
        };
        let mut messages = Vec::with_capacity(deadlines.len());
        let mut permits = Vec::with_capacity(deadlines.len());
        for deadline in deadlines {
            let Ok(payload) = deadline.encode() else { return false };
            let Ok(permit) = topic.try_permit(payload.len()) else { return false };
            permits.push(permit);
            messages.push((deadline.order_id.to_string(), deadline.pay_by, payload));
        }
        let records = messages.iter().map(|(key, pay_by, payload)| NewRecord {
            key: key.as_bytes(),
            tag: TAG,
            deliver_at_ms: Some(pay_by.0.saturating_add(self.grace_ms)),
            payload,
        });
        let appended = topic.append_batch(permits.into_iter().zip(records));
        matches!(timeout(APPEND_MAX, appended).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_its_schema_says_and_what_is_none_is_told_apart() {
        let sale: SaleId = "s".parse().unwrap();
        let order_id = OrderId::new(1, &sale, 7);
        let deadline = Deadline { order_id, sale, pay_by: Timestamp(1_794_398_400_000) };
        let message = deadline.encode().unwrap();
        let text =
            format!(r#"{{"v":1,"order_id":"{order_id}","sale":"s","pay_by":"2026-11-11T12:00:00.000Z"}}"#);
        assert_eq!(String::from_utf8(message.clone()).unwrap(), text);
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../schema/timeout.v1.json")).unwrap();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        let named: Vec<_> = written.as_object().unwrap().keys().collect();
        let described: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(named, described);
        assert_eq!(Deadline::decode(&message).unwrap(), deadline);
        let newer = text.replace("\"v\":1", "\"v\":2");
        assert!(matches!(Deadline::decode(newer.as_bytes()), Err(DecodeError::UnknownVersion(2))));
        let more = text.replace('}', ",\"x\":1}");
        assert_eq!(Deadline::decode(more.as_bytes()).unwrap(), deadline, "unknown fields are ignored");
        for bad in ["", "{}", "{\"v\":1}", "[]"] {
            assert!(matches!(Deadline::decode(bad.as_bytes()), Err(DecodeError::Malformed(_))), "{bad}");
        }
    }
}
