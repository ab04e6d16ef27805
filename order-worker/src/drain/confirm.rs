//! The side lane in which the ledger hears what has become a row. Bounded: a ledger that is down loses confirmations here,
//! and the reconciler finds them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stock::ledger::Settlement;
use stock::{SaleId, Stock};
use tokio::sync::mpsc;

use crate::backoff::Backoff;
use crate::database::Settled;
use crate::metrics::WorkerMetrics;

/// Batches that wait for the ledger.
const WAITING_MAX: usize = 32;
/// Tries for one batch.
const TRIES_MAX: u32 = 3;
/// What shutdown waits for the lane.
pub(super) const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

type Confirmation = BTreeMap<SaleId, Vec<Settlement>>;

/// The drain's end of the lane.
pub(super) struct Confirms {
    lane: mpsc::Sender<Confirmation>,
    metrics: WorkerMetrics,
}

impl Confirms {
    /// Hands over the orders that hold units. Those that hold none have a release in the outbox.
    pub(super) fn send(&self, settled: &[Settled]) {
        let mut confirmation = Confirmation::new();
        for row in settled.iter().filter(|row| row.units_held > 0) {
            let settlement =
                Settlement { order_id: row.order_id, user: row.user.clone(), quantity: row.quantity };
            confirmation.entry(row.sale.clone()).or_default().push(settlement);
        }
        if confirmation.is_empty() {
            return;
        }
        let orders = confirmation.values().map(Vec::len).sum::<usize>();
        if self.lane.try_send(confirmation).is_err() {
            self.metrics.confirms_left.inc_by(orders as u64);
        }
    }
}

/// The lane's two ends; the future ends once the first was dropped and everything handed over was tried.
pub(super) fn lane(stock: Arc<Stock>, metrics: WorkerMetrics) -> (Confirms, impl Future<Output = ()>) {
    let (lane, mut waiting) = mpsc::channel::<Confirmation>(WAITING_MAX);
    let confirms = Confirms { lane, metrics: metrics.clone() };
    let run = async move {
        while let Some(confirmation) = waiting.recv().await {
            for (sale, settlements) in confirmation {
                if !confirm(&stock, &sale, &settlements).await {
                    metrics.confirms_left.inc_by(settlements.len() as u64);
                }
            }
        }
    };
    (confirms, run)
}

/// Whether the ledger has answered.
async fn confirm(stock: &Stock, sale: &SaleId, settlements: &[Settlement]) -> bool {
    let mut backoff = Backoff::default();
    loop {
        if queue::failpoint::hit("drain.confirm") {
            return false;
        }
        let Err(error) = stock.confirm(sale, settlements).await else { return true };
        let pause = backoff.next();
        if !error.is_retryable() || backoff.failures() >= TRIES_MAX {
            tracing::warn!(%sale, %error, orders = settlements.len(), "confirmations are left to the reconciler");
            return false;
        }
        tokio::time::sleep(pause).await;
    }
}
