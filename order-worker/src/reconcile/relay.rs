//! The relay: releases in the database's outbox reach the ledger, and leave the outbox only when its present life has answered.
//!
//! A crash between the ledger's answer and the deletion repeats the release, which changes nothing: ids move forward only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stock::ledger::Settlement;
use stock::{LedgerError, SaleId, Stock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::database::{Database, DatabaseError};
use crate::metrics::WorkerMetrics;

/// How often it looks unasked: for releases of other processes, and for those that the ledger did not take.
const INTERVAL: Duration = Duration::from_millis(500);
/// Releases in one call on the ledger.
const PAGE: usize = 256;
/// First and longest wait until the releases of a sale are tried again that the ledger did not take. Meanwhile they are not even read.
const WAIT: (Duration, Duration) = (INTERVAL, Duration::from_secs(8));
/// Sales that wait so. Those of any more are tried in each pass.
const WAITING_SALES_MAX: usize = 256;

/// Relays releases. Whoever owns the process drives [`Relay::run`].
pub struct Relay {
    database: Database,
    stock: Arc<Stock>,
    metrics: WorkerMetrics,
    refused: BTreeMap<SaleId, Refused>,
}

/// A sale whose releases the ledger did not take.
struct Refused {
    wait: Duration,
    until: Instant,
    /// In the pass that is under way.
    is_tried: bool,
}

impl Relay {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(database: Database, stock: Arc<Stock>, metrics: WorkerMetrics) -> Self {
        Self { database, stock, metrics, refused: BTreeMap::new() }
    }

    /// Relays until `shutdown` is true or its sender gone; releases of this process at once.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
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

    /// Goes once through the outbox, past the sales that wait. One sale's refusal does not hold up another's releases.
    ///
    /// # Errors
    /// The database's; what the ledger has answered for and is still there will be relayed again.
    pub async fn pass(&mut self) -> Result<(), DatabaseError> {
        let waiting = self.begin_pass();
        let mut after = None;
        loop {
            let page = self.database.releases(after, &waiting, PAGE).await?;
            let last = page.len() < PAGE;
            after = page.last().map(|(_, settlement)| settlement.order_id);
            let mut sales: BTreeMap<SaleId, Vec<Settlement>> = BTreeMap::new();
            for (sale, settlement) in page {
                sales.entry(sale).or_default().push(settlement);
            }
            if queue::failpoint::hit("relay.read") {
                return Ok(());
            }
            if !sales.is_empty() && !self.relay(sales).await? {
                return Ok(());
            }
            if last {
                self.end_pass();
                return Ok(());
            }
        }
    }

    /// Answers whether it got to the end.
    async fn relay(&mut self, sales: BTreeMap<SaleId, Vec<Settlement>>) -> Result<bool, DatabaseError> {
        // Asked behind the releases' commits: a life that begins later finds these rows as they are now.
        let epoch = self.database.epoch().await?;
        let mut answered = Vec::new();
        for (sale, settlements) in sales {
            let why = match self.stock.release(&sale, &settlements).await {
                // A server that was replaced and does not know it yet: the present life may have read these rows before.
                Ok(flag) if flag.version.epoch < epoch && !self.is_over(&sale).await? => {
                    Some(LedgerError::WrongEpoch { current: flag.version.epoch })
                }
                Ok(_) => None,
                Err(LedgerError::UnknownSale(_)) if self.is_over(&sale).await? => None,
                Err(error) => Some(error),
            };
            match why {
                Some(error) => self.was_refused(&sale, &error),
                None => {
                    self.was_taken(&sale);
                    answered.extend(settlements.iter().map(|settlement| settlement.order_id));
                }
            }
        }
        if queue::failpoint::hit("relay.released") {
            return Ok(false);
        }
        if !answered.is_empty() {
            self.database.releases_done(&answered).await?;
            self.metrics.releases_relayed.inc_by(answered.len() as u64);
        }
        Ok(true)
    }

    /// A sale that no ledger will hold again: settled, or one that the database has not.
    async fn is_over(&self, sale: &SaleId) -> Result<bool, DatabaseError> {
        Ok(self.database.sale(sale).await?.is_none_or(|row| row.settled))
    }

    /// Whose time has not come.
    fn begin_pass(&mut self) -> Vec<SaleId> {
        let now = Instant::now();
        self.refused.values_mut().for_each(|refused| refused.is_tried = false);
        let waiting = self.refused.iter().filter(|(_, refused)| refused.until > now);
        waiting.map(|(sale, _)| sale.clone()).collect()
    }

    /// Every release was seen: what was due and had none has been relayed by somebody else.
    fn end_pass(&mut self) {
        let now = Instant::now();
        self.refused.retain(|_, refused| refused.is_tried || refused.until > now);
        self.metrics.releases_refused.set(i64::try_from(self.refused.len()).unwrap_or(i64::MAX));
    }

    fn was_refused(&mut self, sale: &SaleId, error: &LedgerError) {
        if let Some(refused) = self.refused.get_mut(sale) {
            refused.is_tried = true;
            refused.wait = (refused.wait * 2).min(WAIT.1);
            refused.until = Instant::now() + refused.wait;
            tracing::debug!(%sale, %error, "the ledger still does not take releases");
            return;
        }
        // Once, however often they are tried.
        tracing::warn!(%sale, %error, "the ledger does not take a sale's releases; they are tried again and again");
        if self.refused.len() < WAITING_SALES_MAX {
            let until = Instant::now() + WAIT.0;
            self.refused.insert(sale.clone(), Refused { wait: WAIT.0, until, is_tried: true });
        }
    }

    fn was_taken(&mut self, sale: &SaleId) {
        if self.refused.remove(sale).is_some() {
            tracing::info!(%sale, "the ledger takes the sale's releases again");
        }
    }
}
