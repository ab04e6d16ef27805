//! The reconciler: the net under everything that is told to the ledger once and may be lost.
//!
//! Ids that are pending for longer than a grace period are looked up: the database holds the order → confirm; closed or
//! rejected → release; no row → its owner's business (the log has it, or will, or never promised it). Units never come back
//! by a timer alone. It also brings sale rows to the ledger, and lets the ledger forget settled sales.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use stock::ledger::{BATCH_MAX, Settlement};
use stock::{LedgerError, Now, OrderId, SaleId, Stock};
use tokio::sync::watch;

use crate::database::{Database, DatabaseError, SaleRow};
use crate::journal::HeadWatch;
use crate::metrics::{Found, WorkerMetrics};

/// How often it goes through everything.
const INTERVAL: Duration = Duration::from_secs(1);
/// An id younger than this is on its usual way.
const GRACE_MS: u64 = 3_000;
/// An ended sale is asked about for so long before it may be settled: late repeats get their usual answers.
const SETTLE_AFTER_MS: u64 = 60_000;

/// What stops one pass over one sale; the next pass goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The database's.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The ledger's.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl ReconcileError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database(error) => error.is_retryable(),
            Self::Ledger(error) => error.is_retryable(),
        }
    }
}

/// Compares ledger and database. Whoever owns the process drives [`Reconciler::run`].
pub struct Reconciler {
    database: Database,
    stock: Arc<Stock>,
    now: Now,
    metrics: WorkerMetrics,
    /// Orders without a row, by sale, as last looked up.
    without_row: Mutex<BTreeMap<SaleId, i64>>,
    journal: HeadWatch,
}

impl Reconciler {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(database: Database, stock: Arc<Stock>, now: Now, metrics: WorkerMetrics) -> Self {
        let journal = HeadWatch::new(database.clone(), now.clone());
        Self { database, stock, now, metrics, without_row: Mutex::default(), journal }
    }

    /// Goes through all sales every second until `shutdown` is true or its sender gone, and keeps the journal's head in the log.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        loop {
            if let Err(error) = self.journal.look().await {
                tracing::debug!(%error, "the journal's head is looked at later");
            }
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|down| *down) => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if let Err(error) = self.pass().await {
                tracing::warn!(%error, "sales cannot be reconciled; they are tried again");
            }
        }
    }

    /// Goes once through every sale that is not settled. One sale's trouble does not hold up another.
    ///
    /// # Errors
    /// [`DatabaseError`] when the sales cannot be read.
    pub async fn pass(&self) -> Result<(), DatabaseError> {
        let mut seen = BTreeMap::new();
        for row in self.database.sales().await?.into_iter().filter(|row| !row.settled) {
            match self.reconcile(&row).await {
                Ok(absent) => _ = seen.insert(row.definition.id, absent),
                Err(error) => {
                    // Of another deployment's sale enough has been said.
                    if !matches!(error, ReconcileError::Ledger(LedgerError::Foreign { .. })) {
                        tracing::warn!(sale = %row.definition.id, %error, "a sale is reconciled later");
                    }
                    // What could not be looked at stays as it was last seen.
                    let last = self.without_row.lock().get(&row.definition.id).copied();
                    seen.extend(last.map(|last| (row.definition.id, last)));
                }
            }
        }
        self.metrics.without_row.set(seen.values().sum());
        *self.without_row.lock() = seen;
        Ok(())
    }

    /// Answers with how many orders stay pending because they have no row.
    async fn reconcile(&self, row: &SaleRow) -> Result<i64, ReconcileError> {
        let sale = &row.definition.id;
        bring(&self.database, &self.stock, sale).await?;
        let now_ms = self.stock.now_ms_of(sale).await?;
        let (mut after, mut absent) = (None, 0);
        loop {
            let page = self.stock.pending(sale, None, after, BATCH_MAX).await?;
            let last = page.len() < BATCH_MAX;
            after = page.last().map(|(_, reservation)| reservation.order_id);
            let old = page.into_iter().map(|(_, reservation)| reservation);
            let old = old.filter(|reservation| reservation.reserved_at_ms + GRACE_MS <= now_ms);
            let old = old.map(|reservation| Settlement {
                order_id: reservation.order_id,
                user: reservation.user,
                quantity: reservation.quantity,
            });
            absent += self.look_up(sale, old.collect()).await?;
            if last {
                break;
            }
        }
        self.settle_if_over(row, now_ms).await?;
        Ok(i64::try_from(absent).unwrap_or(i64::MAX))
    }

    /// Answers with how many of them the database has not.
    async fn look_up(&self, sale: &SaleId, pending: Vec<Settlement>) -> Result<u64, ReconcileError> {
        if pending.is_empty() {
            return Ok(0);
        }
        let ids: Vec<OrderId> = pending.iter().map(|settlement| settlement.order_id).collect();
        let standings = self.database.statuses(&ids).await?;
        let (mut held, mut freed, mut absent) = (Vec::new(), Vec::new(), 0);
        for (settlement, standing) in pending.into_iter().zip(standings) {
            match standing {
                Some(standing) if standing.units_held > 0 => held.push(settlement),
                Some(_) => freed.push(settlement),
                None => absent += 1,
            }
        }
        if queue::failpoint::hit("reconciler.looked_up") {
            return Ok(absent);
        }
        let count =
            |found, orders: u64| _ = self.metrics.reconciled.get_or_create(&Found { found }).inc_by(orders);
        if !held.is_empty() {
            self.stock.confirm(sale, &held).await?;
            count("confirmed", held.len() as u64);
        }
        if !freed.is_empty() {
            self.stock.release(sale, &freed).await?;
            count("released", freed.len() as u64);
        }
        if absent > 0 {
            count("absent", absent);
        }
        Ok(absent)
    }

    // ## Ended => Settled => forgotten by the ledger
    async fn settle_if_over(&self, row: &SaleRow, ledger_ms: u64) -> Result<(), ReconcileError> {
        let sale = &row.definition.id;
        // Over by the clock that its window goes by, and by ours: nothing that is final follows from one clock alone.
        if row.ends_at.0 + SETTLE_AFTER_MS > ledger_ms.min((self.now)()) {
            return Ok(());
        }
        let snapshot = self.stock.snapshot(sale).await?;
        // One that is closed may not know of every promise yet.
        if !snapshot.open || snapshot.pending > 0 || !self.database.mark_settled(sale).await? {
            return Ok(());
        }
        // A crash here leaves a settled sale in a ledger that outlives us; a rebuild no longer installs it.
        if !queue::failpoint::hit("reconciler.settled") {
            self.stock.forget(sale).await?;
            tracing::info!(%sale, "a sale is settled");
        }
        Ok(())
    }
}

/// Brings a sale's row to the ledger: a newer version is pushed; a sale that never was open is installed empty and opened, and
/// so is one whose ledger was complete when whoever was about to open it did not get there.
/// An operator's change is followed by this at once; the reconciler repeats it until both are equal.
///
/// # Errors
/// [`LedgerError::UnknownSale`] or [`LedgerError::Amnesia`] when the ledger has lost a sale that was open: the members rebuild it.
pub async fn bring(database: &Database, stock: &Stock, sale: &SaleId) -> Result<(), ReconcileError> {
    // The ledger first and the row after it: a sale that the row calls never opened was never opened when this state was
    // made, and holds no promise. See `membership`.
    let held = stock.snapshot(sale).await;
    let Some(row) = database.sale(sale).await? else {
        return Err(DatabaseError::UnknownSale(sale.clone()).into());
    };
    match held {
        Ok(snapshot) => {
            if snapshot.version < row.version {
                stock.push_sale(&row.ledger_version()).await?;
            }
            let is_complete = !row.was_opened() || row.opened_epoch == Some(snapshot.epoch);
            if !snapshot.open && is_complete {
                open(database, stock, sale, snapshot.epoch).await?;
            }
            Ok(())
        }
        Err(LedgerError::UnknownSale(_)) if !row.was_opened() => {
            let epoch = database.epoch().await?;
            if epoch == 0 {
                // Before the first rebuild there is no life to open it in, and none to remember.
                return Err(LedgerError::Closed.into());
            }
            stock.may_install(sale)?;
            // A crash after the claim, or an install whose end is not known, leaves it missing: a member then begins a new epoch.
            if !database.claim_install(sale, epoch).await? {
                // Somebody else is bringing it.
                return Ok(());
            }
            queue::failpoint::hit("reconciler.claimed");
            stock.install(&row.ledger_version(), epoch).await?;
            open(database, stock, sale, epoch).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn open(database: &Database, stock: &Stock, sale: &SaleId, epoch: u64) -> Result<(), ReconcileError> {
    // Before it opens: were the ledger lost afterwards, an empty one must not pass for a beginning.
    database.mark_opened(sale, epoch).await?;
    queue::failpoint::hit("reconciler.marked_opened");
    stock.open(sale, epoch).await?;
    Ok(())
}
