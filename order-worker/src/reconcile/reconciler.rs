//! The reconciler: the net under everything that is told to the ledger once and may be lost.
//!
//! Pending ids that should be rows by now are looked up: the database holds the order → confirm; closed or
//! rejected → release; no row → its owner's business (the log has it, or will, or never promised it). Units never come back
//! by a timer alone. Which ids those are, and how many a second, [`look_ups`] says; what is pending is read a few pages a
//! second, round and round. It also brings sale rows to the ledger, and lets the ledger forget settled sales:
//! never while clocks do not agree, and not for good where the end lies ahead again.
//!
//! [`look_ups`]: super::look_ups

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stock::ledger::{BATCH_MAX, Settlement, Snapshot};
use stock::{LedgerError, Now, OrderId, SaleId, Stock};
use tokio::sync::watch;

use super::look_ups::{LookUps, Page};
use crate::clocks::Clocks;
use crate::database::{Database, DatabaseError, SaleRow, Standing};
use crate::drain::pace::Pace;
use crate::journal::HeadWatch;
use crate::metrics::{Found, WorkerMetrics};

/// Between two passes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pages of [`BATCH_MAX`] pending ids that a pass reads from the ledger, of all sales together.
const PAGES_PER_PASS_MAX: usize = 16;
/// A sale whose pending ids have all been read is read again after so many passes: most of what is pending is on its usual way.
const ROUND_PASSES_MIN: u64 = 3;
/// Sales that are over, with nothing pending, that a pass looks at, in turn: their orders may stay unpaid for long.
const OVER_PER_PASS_MAX: usize = 4;
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

/// Compares ledger and database. The owner of the process drives [`Reconciler::run`].
pub struct Reconciler {
    database: Database,
    stock: Arc<Stock>,
    now: Now,
    clocks: Clocks,
    metrics: WorkerMetrics,
    look_ups: LookUps,
    /// How far the pending ids of each sale have been read.
    readings: BTreeMap<SaleId, Reading>,
    /// Sales that are over and could not be settled.
    over: BTreeMap<SaleId, Over>,
    journal: HeadWatch,
}

/// One sale's pending ids, read round and round.
#[derive(Debug, Default)]
struct Reading {
    after: Option<OrderId>,
    /// When the next round may begin.
    round_at_pass: u64,
    read_in_pass: u64,
}

/// A sale that is over, as it was when nothing of it was pending. Nothing ever is again, unless one of these differs.
#[derive(Debug, PartialEq, Eq)]
struct Over {
    version: u64,
    opened_epoch: Option<u64>,
}

impl From<&SaleRow> for Over {
    fn from(row: &SaleRow) -> Self {
        Self { version: row.version, opened_epoch: row.opened_epoch }
    }
}

impl Reconciler {
    /// Starts nothing yet. `pace` is that of the drains of this process.
    #[must_use]
    pub fn new(
        database: Database,
        stock: Arc<Stock>,
        pace: Arc<Pace>,
        now: Now,
        metrics: WorkerMetrics,
    ) -> Self {
        let journal = HeadWatch::new(database.clone(), now.clone());
        let (look_ups, readings, over) = (LookUps::new(pace), BTreeMap::new(), BTreeMap::new());
        let apart = metrics.clocks_apart.clone();
        let clocks = Clocks::new(database.clone(), stock.clone(), now.clone(), apart, "no sale is settled");
        Self { database, stock, now, clocks, metrics, look_ups, readings, over, journal }
    }

    /// Makes a pass every second until `shutdown` is true or its sender gone, and keeps the journal's head in the log.
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

    /// Brings every sale that is not settled, asks about as many pending ids as a second allows, and settles what is over. One sale's
    /// trouble does not hold up another.
    ///
    /// # Errors
    /// [`DatabaseError`] when the sales cannot be read.
    pub async fn pass(&mut self) -> Result<(), DatabaseError> {
        let rows = self.database.unsettled_sales().await?;
        let is_sale = |sale: &SaleId| rows.binary_search_by(|row| row.definition.id.cmp(sale)).is_ok();
        self.look_ups.begin_pass(is_sale);
        self.readings.retain(|sale, _| is_sale(sale));
        self.over.retain(|sale, _| is_sale(sale));

        let may_settle = self.clocks.agree().await;
        if may_settle {
            self.lift().await?;
        }

        // Before the books are looked at: what was over then takes no promise any more.
        let now_ms = (self.now)();
        let mut pending = Vec::new();
        let in_turn = self.over_in_turn();
        for row in &rows {
            let sale = &row.definition.id;
            let is_known_over = self.over.get(sale).is_some_and(|over| *over == row.into());
            if is_known_over && !in_turn.contains(sale) {
                continue;
            }
            let is_over = match self.is_over(row, now_ms).await {
                Ok(is_over) => is_over,
                Err(error) => {
                    later(sale, &error.into());
                    continue;
                }
            };
            if !is_over {
                // A clock was put back: it sells again, perhaps.
                self.over.remove(sale);
            }
            match self.bring(row).await {
                Ok(books) if books.pending > 0 => {
                    self.over.remove(sale);
                    pending.push(sale);
                }
                Ok(books) => {
                    self.look_ups.nothing_is_pending(sale);
                    self.readings.remove(sale);
                    // One that is closed may not know of every promise yet.
                    if books.open && is_over {
                        self.over.insert(sale.clone(), row.into());
                        if may_settle && let Err(error) = self.settle(sale).await {
                            later(sale, &error);
                        }
                    }
                }
                Err(error) => later(sale, &error),
            }
        }
        self.ask_again().await;
        self.read(pending).await;
        self.metrics.without_row.set(i64::try_from(self.look_ups.absent()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Over by the clock that its window goes by, and by ours: nothing that is final follows from one clock alone.
    async fn is_over(&self, row: &SaleRow, now_ms: u64) -> Result<bool, LedgerError> {
        let over_at_ms = row.ends_at.0 + SETTLE_AFTER_MS;
        Ok(over_at_ms <= now_ms && over_at_ms <= self.stock.now_ms_of(&row.definition.id).await?)
    }

    /// Which of those that are over are looked at now: the next ones, round and round.
    fn over_in_turn(&self) -> BTreeSet<SaleId> {
        let turns = self.over.len().div_ceil(OVER_PER_PASS_MAX).max(1) as u64;
        // Below the number of sales.
        let first = (self.look_ups.pass() % turns) as usize * OVER_PER_PASS_MAX;
        self.over.keys().skip(first).take(OVER_PER_PASS_MAX).cloned().collect()
    }

    /// Answers with the ledger's books.
    async fn bring(&self, row: &SaleRow) -> Result<Snapshot, ReconcileError> {
        let sale = &row.definition.id;
        let held = self.stock.snapshot(sale).await;
        if let Ok(held) = &held
            && held.open
            && held.version >= row.version
        {
            return Ok(held.clone());
        }
        bring_to(&self.database, &self.stock, sale, held).await?;
        Ok(self.stock.snapshot(sale).await?)
    }

    /// Asks about what was absent and has waited for long enough.
    async fn ask_again(&mut self) {
        for (sale, asked) in self.look_ups.again() {
            match self.look_up(&sale, asked).await {
                Ok(Some(found)) => {
                    let found = found.iter().map(|(settlement, is_row)| (settlement.order_id, *is_row));
                    self.look_ups.answered_again(&sale, found);
                }
                Ok(None) => {}
                Err(error) => later(&sale, &error),
            }
        }
    }

    /// Reads pages of pending ids in turn, those first that were read longest ago, and asks about what should be rows.
    async fn read(&mut self, pending: Vec<&SaleId>) {
        let pass = self.look_ups.pass();
        let mut sales: Vec<(u64, &SaleId)> = Vec::new();
        for sale in pending {
            let reading = self.readings.entry(sale.clone()).or_default();
            if reading.after.is_some() || reading.round_at_pass <= pass {
                sales.push((reading.read_in_pass, sale));
            }
        }
        sales.sort_unstable();
        let mut sales: VecDeque<&SaleId> = sales.into_iter().map(|(_, sale)| sale).collect();
        for _ in 0..PAGES_PER_PASS_MAX {
            let Some(sale) = sales.pop_front().filter(|_| self.look_ups.has_budget()) else { break };
            match self.read_page(sale).await {
                Ok(true) => sales.push_back(sale),
                Ok(false) => {}
                Err(error) => later(sale, &error),
            }
        }
    }

    /// Reads one page and asks about what should be rows; answers whether there are more in this round.
    async fn read_page(&mut self, sale: &SaleId) -> Result<bool, ReconcileError> {
        let pass = self.look_ups.pass();
        let reading = self.readings.entry(sale.clone()).or_default();
        reading.read_in_pass = pass;
        let after = reading.after;
        let now_ms = self.stock.now_ms_of(sale).await?;
        let pending = self.stock.pending(sale, None, after, BATCH_MAX).await?;
        let is_last = pending.len() < BATCH_MAX;
        let chosen = self.look_ups.choose(&Page { sale, after, pending: &pending, is_last, now_ms });
        let (owners, asked): (Vec<_>, Vec<_>) = chosen.asked.into_iter().unzip();
        let Some(found) = self.look_up(sale, asked).await? else { return Ok(false) };
        let of_owners =
            owners.into_iter().zip(found).map(|(owner, (asked, is_row))| ((owner, asked), is_row));
        self.look_ups.answered(sale, of_owners.collect());
        // Only now: what could not be asked about is on the next page again.
        let next = if is_last { None } else { pending.last().map(|(_, held)| held.order_id) };
        let reading = self.readings.entry(sale.clone()).or_default();
        if after.is_none() {
            reading.round_at_pass = pass + ROUND_PASSES_MIN;
        }
        reading.after = chosen.cut_at.or(next);
        Ok(reading.after.is_some())
    }

    /// Answers which of them are rows, and has told the ledger of those; `None`: it may not have been told.
    async fn look_up(
        &self,
        sale: &SaleId,
        pending: Vec<Settlement>,
    ) -> Result<Option<Vec<(Settlement, bool)>>, ReconcileError> {
        if pending.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let ids: Vec<OrderId> = pending.iter().map(|settlement| settlement.order_id).collect();
        let standings = self.database.statuses(&ids).await?;
        if queue::failpoint::hit("reconciler.looked_up") {
            return Ok(None);
        }
        let of = |is_wanted: &dyn Fn(&Option<Standing>) -> bool| -> Vec<Settlement> {
            let wanted = pending.iter().zip(&standings).filter(|(_, standing)| is_wanted(standing));
            wanted.map(|(settlement, _)| settlement.clone()).collect()
        };
        let held = of(&|standing| standing.is_some_and(|standing| standing.units_held > 0));
        let freed = of(&|standing| standing.is_some_and(|standing| standing.units_held == 0));
        let count = |found, orders: usize| {
            _ = self.metrics.reconciled.get_or_create(&Found { found }).inc_by(orders as u64)
        };
        if !held.is_empty() {
            self.stock.confirm(sale, &held).await?;
            count("confirmed", held.len());
        }
        if !freed.is_empty() {
            self.stock.release(sale, &freed).await?;
            count("released", freed.len());
        }
        let absent = pending.len() - held.len() - freed.len();
        if absent > 0 {
            count("absent", absent);
        }
        let found = pending.into_iter().zip(standings.iter().map(Option::is_some));
        Ok(Some(found.collect()))
    }

    // ## Settled => lifted, to be installed anew and opened with its rows: see `membership`
    async fn lift(&self) -> Result<(), DatabaseError> {
        for sale in self.database.settled_too_early().await? {
            // First of all: a state that somebody settled and did not forget would pass for complete. A crash here leaves the sale
            // settled; one behind the transaction leaves it missing in the ledger, for any member to install.
            if let Err(error) = self.stock.forget(&sale).await {
                later(&sale, &error.into());
                continue;
            }
            if self.database.lift_settled(&sale).await? {
                tracing::warn!(%sale, "a settled sale whose end lies ahead is on offer again; its orders are taken to the ledger first");
            }
        }
        Ok(())
    }

    // ## Ended => Settled => forgotten by the ledger
    async fn settle(&self, sale: &SaleId) -> Result<(), ReconcileError> {
        if !self.database.mark_settled(sale).await? {
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

fn later(sale: &SaleId, error: &ReconcileError) {
    // Of another deployment's sale enough has been said.
    if !matches!(error, ReconcileError::Ledger(LedgerError::Foreign { .. })) {
        tracing::warn!(%sale, %error, "a sale is reconciled later");
    }
}

/// Brings a sale's row to the ledger: a newer version is pushed; a sale that never was open is installed empty and opened, and
/// so is one whose ledger was complete when whoever was about to open it did not get there.
/// An operator's change is followed by this at once; the reconciler repeats it until both are equal.
///
/// # Errors
/// [`LedgerError::UnknownSale`] or [`LedgerError::Amnesia`] when the ledger has lost a sale that was open: the members rebuild it.
pub async fn bring(database: &Database, stock: &Stock, sale: &SaleId) -> Result<(), ReconcileError> {
    bring_to(database, stock, sale, stock.snapshot(sale).await).await
}

/// The ledger's books first (`held`) and the row after them: a sale that the row calls never opened was never opened when this state
/// was made, and holds no promise. See `membership`.
async fn bring_to(
    database: &Database,
    stock: &Stock,
    sale: &SaleId,
    held: Result<Snapshot, LedgerError>,
) -> Result<(), ReconcileError> {
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
