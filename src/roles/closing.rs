//! Wires what closes orders that nobody paid, and what joins payments to orders. A thread of its own reads the deadlines: their log's disk may hang.

use std::sync::Arc;

use order_worker::{Closing, ClosingParts, GetTopic, Timeouts, WorkerMetrics, join_payments};
use tokio::sync::watch;

use super::Foundation;
use super::worker_thread::WorkerThread;
use crate::config::Config;

/// Where drains leave deadlines in what `topic` finds, and what closes by them.
pub(super) fn closing(
    config: &Config,
    foundation: &Foundation,
    topic: GetTopic,
    metrics: &WorkerMetrics,
) -> (Timeouts, Arc<Closing>) {
    let timeouts = Timeouts::new(topic, config.payment.grace_s * 1_000, metrics);
    let closing = Closing::new(ClosingParts {
        database: foundation.database.clone(),
        stock: foundation.stock.clone(),
        timeouts: timeouts.clone(),
        budget: config.drain.clone(),
        now: foundation.now.clone(),
        metrics: metrics.clone(),
    });
    (timeouts, Arc::new(closing))
}

/// Joins payments that came before their order's row, and sends back those whose order never comes.
pub(super) fn joining(
    config: &Config,
    foundation: &Foundation,
    stopping: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    join_payments(foundation.database.clone(), config.payment.unmatched_refund_s * 1_000, stopping)
}

/// Starts the thread that closes by the messages of the log.
pub(super) fn by_message(
    closing: Arc<Closing>,
    stopping: watch::Receiver<bool>,
) -> std::io::Result<WorkerThread<()>> {
    WorkerThread::start("closing", async move { closing.by_message(stopping).await })
}

/// What is said where the thread does not end.
pub(super) const WAITS: &str = "what closes unpaid orders still waits for its log or its database and is left behind; the next start closes them";
