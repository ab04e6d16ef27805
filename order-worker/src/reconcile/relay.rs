//! The relay: releases in the database's outbox reach the ledger, and leave the outbox only when its present life has answered.
//!
//! A crash between the ledger's answer and the deletion repeats the release, which changes nothing: ids move forward only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stock::ledger::Settlement;
use stock::{LedgerError, SaleId, Stock};
use tokio::sync::watch;

use crate::database::{Database, DatabaseError};
use crate::metrics::WorkerMetrics;

/// How often it looks unasked: for releases of other processes, and for those that the ledger did not take.
const INTERVAL: Duration = Duration::from_millis(500);
/// Releases in one call on the ledger.
const PAGE: usize = 256;

/// Relays releases. Whoever owns the process drives [`Relay::run`].
pub struct Relay {
    database: Database,
    stock: Arc<Stock>,
    metrics: WorkerMetrics,
}

impl Relay {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(database: Database, stock: Arc<Stock>, metrics: WorkerMetrics) -> Self {
        Self { database, stock, metrics }
    }

    /// Relays until `shutdown` is true or its sender gone; releases of this process at once.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        loop {
            if let Err(error) = self.pass().await {
                tracing::warn!(%error, "releases cannot be read or deleted; they are tried again");
            }
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|down| *down) => return,
                () = self.database.release_written() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Goes once through the outbox. One sale's refusal does not hold up another's releases.
    ///
    /// # Errors
    /// The database's; what the ledger has answered for and is still there will be relayed again.
    pub async fn pass(&self) -> Result<(), DatabaseError> {
        let mut after = None;
        loop {
            let page = self.database.releases(after, PAGE).await?;
            let last = page.len() < PAGE;
            after = page.last().map(|(_, settlement)| settlement.order_id);
            let mut sales: BTreeMap<SaleId, Vec<Settlement>> = BTreeMap::new();
            for (sale, settlement) in page {
                sales.entry(sale).or_default().push(settlement);
            }
            if queue::failpoint::hit("relay.read") {
                return Ok(());
            }
            if sales.is_empty() {
                return Ok(());
            }
            // Asked behind the releases' commits: a life that begins later finds these rows as they are now.
            let epoch = self.database.epoch().await?;
            let mut answered = Vec::new();
            for (sale, settlements) in sales {
                match self.stock.release(&sale, &settlements).await {
                    // A server that was replaced and does not know it yet: the present life may have read these rows before.
                    Ok(flag) if flag.version.epoch < epoch && !self.is_over(&sale).await? => {}
                    Ok(_) => answered.extend(settlements.iter().map(|settlement| settlement.order_id)),
                    Err(LedgerError::UnknownSale(_)) if self.is_over(&sale).await? => {
                        answered.extend(settlements.iter().map(|settlement| settlement.order_id));
                    }
                    Err(error) => {
                        tracing::warn!(%sale, %error, "the ledger does not take releases; they are tried again");
                    }
                }
            }
            if queue::failpoint::hit("relay.released") {
                return Ok(());
            }
            if !answered.is_empty() {
                self.database.releases_done(&answered).await?;
                self.metrics.releases_relayed.inc_by(answered.len() as u64);
            }
            if last {
                return Ok(());
            }
        }
    }

    /// A sale that no ledger will hold again: settled, or one that the database has not.
    async fn is_over(&self, sale: &SaleId) -> Result<bool, DatabaseError> {
        Ok(self.database.sale(sale).await?.is_none_or(|row| row.settled))
    }
}
