//! Several processes on one ledger: who is alive, whether the ledger's memory is still the one that the sales were opened with,
//! and its rebuild by all of them together.
//!
//! Nobody leads. Every process goes through the same *round* (`round.rs`): it looks at the database and at the ledger, does
//! the next step that is missing, and may die or be overtaken between any two. The database says what has been done:
//!
//! | step | recorded | a crash before the record | a crash after it |
//! | --- | --- | --- | --- |
//! | 1. the memory is lost: a new epoch | epoch, by compare-and-set: of several that notice, one begins | the next round of anybody begins it | any process goes on with 2 |
//! | 2. each sale installed, empty and closed | `installed_epoch` is claimed first, by one process, which sends one install, never repeated | anybody claims | the sale is missing though claimed: after a patience somebody goes back to 1 |
//! | 3. each log merged by its own process, behind its barrier (`stock::EpochGate`) | `merged_epoch` of the instance, afterwards | the restart merges again: a restore repeats harmlessly | it is not merged again |
//! | 3'. a dead instance's log, by whoever can take its lock | the same | the lock is free again: anybody | the instance comes back as merged |
//! | 4. all registered logs merged: the rows, last | – | anybody merges them again, harmlessly | – |
//! | 5. about to open | `opened_epoch` of the sale | anybody goes on with 4 | anybody opens |
//! | 6. open | the ledger's state | anybody opens: repeats change nothing | – |
//!
//! Why it is right:
//! - *One install an epoch.* A state of epoch E exists in one life of the ledger's memory only: were that lost as well, no late
//!   install could bring back an empty state of the same epoch, for somebody to open as complete. So a merge into E is there as
//!   long as E is, and every late call of an older epoch is refused or says what is true anyway.
//! - *Nothing appears in a log behind its merge.* Once the epoch gate is raised, nothing of an older epoch begins; the merge waits
//!   for what is under way; what was not durable when its process died is not in the log, or the next start finds and merges
//!   it. Purchases of the new epoch begin only when it is open.
//! - *Rows last.* An order that the drain moved meanwhile from log to row was in one of them; rows win.
//! - *Everybody registered.* A log is tied to its deployment and registered before its first promise (`tie.rs`). One that comes back
//!   after it was left out takes part again; should it hold promises that an open ledger was built without, it begins a new epoch.
//! - *The row is read after the state was seen* where "never opened" is believed: then it was so when that state was made, and an
//!   older one can no longer be opened.
//! - *Never ahead of the database.* A life begins there first. A ledger that has had more lives than the database knows of tells that
//!   the database was put back to an older state: it is rebuilt from the rows that are left, with the pauses that it had.
//! - *Nothing that was handed over is forgotten.* A log whose newest finished records have no rows is not merged: the ledger stays closed
//!   until that log hands them over again. So a database that is put back while processes run sells no unit twice.
//! - *One ledger.* A life is recorded with the ledger that it is built on. Who is connected to another one installs, merges and opens
//!   nothing there, and begins the next life only once no other member has seen the recorded one for 5 s: see
//!   [`crate::database::witness`]. So a process whose configuration names another server, or that a partition left on an old
//!   primary, stops nobody: it says so and waits. Its log is not waited for either while it owes nothing.
//! - *One database.* What the ledger holds names the deployment that it belongs to, and every call of another one is refused by the
//!   ledger itself ([`stock::LedgerError::Foreign`]): two that share a ledger by mistake never begin lives against each other. Only
//!   [`operator::adopt`] takes over.
//! - *Settled by mistake.* A sale whose `settled` was lifted (a clock was wrong, or it was prolonged) has been forgotten by the ledger, and
//!   all its promises are rows, since nothing was pending. Its row says `opened_epoch` 0: steps 2 and 4 to 6 are done for it alone, in the
//!   life that there is.
//! - A sale that was never opened holds no promise: it is opened at once, empty. An operator's pause is in the sale's version,
//!   which an install carries: no rebuild lifts it.
//!
//! Amnesia is noticed by the next answer of the ledger to anybody (`Stock::doubted`), at the latest by the next idle round. A log
//! that nobody can reach blocks step 4; [`operator::forget_instance`] goes on without it.

pub mod instance;
mod lease;
mod logs;
pub mod merge;
pub mod operator;
mod overtake;
mod round;
mod same_database;
pub mod tie;
mod witness;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use queue::{Opening, Queue, Topic};
use stock::{EpochGate, Owner, Stock};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::database::{Database, ENGINE_DISK, Instance};
use crate::metrics::MembershipMetrics;
use merge::RebuildError;
use overtake::RowWatch;
use round::{Standing, View};

pub use logs::{log_at, logs_on_this_machine, place_of};
pub use witness::MemberRow;

/// Between two rounds while all is well: an amnesia that no answer told of is noticed within it.
const IDLE: Duration = Duration::from_secs(1);
/// Between two rounds while something is missing.
const BUSY: Duration = Duration::from_millis(25);
/// After a round that was refused: others see another ledger, and they or we have to be pointed at the right one.
const REFUSED: Duration = Duration::from_millis(500);
/// After a round that failed.
const FAILED: Duration = Duration::from_millis(200);
/// Longest wait at the start for a ledger that is open everywhere.
const START_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the lease's end at shutdown.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// Takes the log of an instance, if it is in reach and nobody holds it.
pub type OpenLog = Arc<dyn Fn(Instance) -> OpenedLog + Send + Sync>;
/// See [`OpenLog`].
pub type OpenedLog = Pin<Box<dyn Future<Output = Option<Queue>> + Send>>;

/// Everything that a [`Member`] needs.
pub struct MemberParts {
    /// Where epoch and registry live.
    pub database: Database,
    /// The ledger.
    pub stock: Arc<Stock>,
    /// This process's log; `None` for one that sells nothing.
    pub own: Option<OwnLog>,
    /// Its row in the registry.
    pub row: MemberRow,
    /// How to take a dead instance's log.
    pub logs: OpenLog,
    /// Whether the ledger outlives this process. One that does not is empty at each start.
    pub outliving: bool,
    /// Where it counts.
    pub metrics: MembershipMetrics,
}

/// The log that this process appends to.
#[derive(Clone)]
pub struct OwnLog {
    /// The topic `floodgate-orders`.
    pub topic: Topic,
    /// The log's id.
    pub owner: Owner,
    /// The one that log and registry agreed on when this process opened it.
    pub opening: Opening,
    /// Where it is: see [`place_of`].
    pub place: String,
    /// The epoch gate of its purchase path.
    pub epoch_gate: Arc<EpochGate>,
}

/// One process among several on a ledger.
pub struct Member {
    database: Database,
    stock: Arc<Stock>,
    own: Option<OwnLog>,
    row: MemberRow,
    logs: OpenLog,
    outliving: bool,
    metrics: MembershipMetrics,
    view: View,
    /// When a round last found the process on the ledger that the sales live in.
    here_at: Option<Instant>,
    /// A life that the ledger had when the database had not begun it: not to be believed, nor any before it.
    behind: u64,
    /// Whether the database still has what our log has handed over.
    rows: RowWatch,
    /// The registry lacks our log: the round has to join again. Written by the lease's loop, cleared by the round; it guards
    /// nothing else, so relaxed.
    forgotten: Arc<AtomicBool>,
}

impl Member {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(parts: MemberParts) -> Self {
        let MemberParts { database, stock, own, row, logs, outliving, metrics } = parts;
        let view = View::of(0, false);
        Self {
            database,
            stock,
            own,
            row,
            logs,
            outliving,
            metrics,
            view,
            here_at: None,
            behind: 0,
            rows: RowWatch::default(),
            forgotten: Arc::default(),
        }
    }

    /// Registers the own log and takes part until the ledger is open for every sale; answers with its epoch. Before anything
    /// is served.
    ///
    /// A ledger that outlives the process and cannot be opened within 10 s (out of reach, or it waits for a log) is no error, nor is
    /// one that is not the ledger that the sales live in: buyers are refused until [`Self::run`] has it open.
    ///
    /// # Errors
    /// [`RebuildError`]: this process cannot serve.
    pub async fn start(&mut self) -> Result<u64, RebuildError> {
        let begun = Instant::now();
        let mut is_joined = false;
        loop {
            let standing = self.join_and_go(&mut is_joined).await;
            let trouble = match standing {
                Ok(Standing::Open) => return Ok(self.view.epoch),
                Ok(Standing::Again) => continue,
                Ok(Standing::Rebuilding { waiting_for }) => RebuildError::Waiting(waiting_for),
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            // A member that sees the recorded ledger keeps seeing it: waiting here is of no use.
            let is_elsewhere =
                matches!(trouble, RebuildError::OtherLedger { .. }) && self.outliving && is_joined;
            if begun.elapsed() >= START_MAX || is_elsewhere {
                if !self.outliving || !is_joined {
                    return Err(trouble);
                }
                tracing::warn!(%trouble, "the stock ledger is not open yet; buyers are refused until it is");
                return Ok(self.view.epoch);
            }
            sleep(BUSY).await;
        }
    }

    async fn join_and_go(&mut self, is_joined: &mut bool) -> Result<Standing, RebuildError> {
        if !*is_joined {
            if let Some(own) = &self.own {
                take_part(&self.database, own).await?;
            }
            if !self.outliving {
                // Nothing of it can have survived, not even a sale that was installed and never opened.
                let epoch = self.database.epoch().await?;
                self.begin_after(epoch).await?;
            }
            *is_joined = true;
        }
        self.round().await
    }

    /// Renews the lease, notices amnesia, takes part in every rebuild, until `shutdown` is true or its sender gone; then ends the
    /// lease. To be stopped when nothing is reserved here any more.
    pub async fn run(&mut self, mut shutdown: watch::Receiver<bool>) {
        let lease = lease::keep(
            self.database.clone(),
            self.stock.clone(),
            self.own.clone(),
            self.metrics.clone(),
            self.forgotten.clone(),
        );
        let witness = witness::keep(self.database.clone(), self.stock.clone(), self.row.clone());
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => {}
            () = async { tokio::join!(lease, witness, self.rounds()).0 } => {}
        }
        self.leave().await;
    }

    async fn rounds(&mut self) {
        let mut told = String::new();
        let mut rebuilding_since: Option<Instant> = None;
        loop {
            if self.forgotten.swap(false, Ordering::Relaxed) {
                self.view = View::of(0, false);
            }
            let standing = self.round().await;
            let (pause, trouble) = match standing {
                Ok(Standing::Open) => {
                    if let Some(since) = rebuilding_since.take() {
                        self.metrics.rebuilt(since.elapsed());
                        tracing::info!(epoch = self.view.epoch, took = ?since.elapsed(), "the stock ledger is open again");
                    }
                    (IDLE, String::new())
                }
                Ok(Standing::Again) => (Duration::ZERO, told.clone()),
                Ok(Standing::Rebuilding { waiting_for }) => {
                    rebuilding_since.get_or_insert_with(Instant::now);
                    let waits = !waiting_for.is_empty() && self.view.since.elapsed() > IDLE;
                    (BUSY, if waits { RebuildError::Waiting(waiting_for).to_string() } else { told.clone() })
                }
                // Every call on a sale doubts while this lasts: a doubt is no reason to look again at once.
                Err(error @ RebuildError::OtherLedger { .. }) => {
                    (REFUSED, if self.stock.is_elsewhere() { error.to_string() } else { told.clone() })
                }
                // Somebody has to act: asking more often does not help.
                Err(error) => (if error.is_retryable() { FAILED } else { IDLE }, error.to_string()),
            };
            // Once each, not at each round.
            if !trouble.is_empty() && trouble != told {
                tracing::warn!(epoch = self.view.epoch, "{trouble}");
            }
            told = trouble;
            if pause == IDLE {
                tokio::select! {
                    biased;
                    () = self.stock.doubted() => sleep(BUSY).await,
                    () = sleep(IDLE) => {}
                }
            } else {
                sleep(pause).await;
            }
        }
    }

    /// Gives the lease back: what is left to recover others begin to recover then. A crash before it leaves a lease that ends
    /// by itself.
    async fn leave(&self) {
        if let Some(own) = &self.own {
            let ended = timeout(LEAVE_MAX, self.stock.end_lease(own.owner)).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::info!("the lease ends by itself");
            }
        }
    }
}

/// Registers our log as it was opened, where the registry lacks it or an operator has left it out: from here on a rebuild waits for us.
/// A crash after it leaves an instance whose log is known.
async fn take_part(database: &Database, own: &OwnLog) -> Result<(), RebuildError> {
    let (owner, ours) = (own.owner, own.opening);
    if database.register_opening(owner, (&own.place, ENGINE_DISK), Some(ours), ours).await? {
        return Ok(());
    }
    let rows = database.instances().await?;
    let row = rows.iter().find(|row| row.owner == owner).and_then(|row| row.opening);
    Err(RebuildError::OtherOpening { owner, ours, row: row.unwrap_or(Opening { generation: 0, nonce: 0 }) })
}
