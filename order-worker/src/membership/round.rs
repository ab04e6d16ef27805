//! One round of one process: what the database and the ledger say now, and the next step that is missing. See the table in
//! the module above; the steps have its numbers.
//!
//! Never repeats an install, never opens what it has not seen complete by the database, never goes past step 2 while a sale in the
//! ledger is another deployment's, never touches a sale in another ledger than the recorded one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use queue::Queue;
use queue::failpoint::hit;
use stock::{LedgerError, LedgerIdentity, Owner, SaleId};
use tokio::time::{Instant, timeout};

use super::merge::{RebuildError, merge_log, merge_rows, owes_nothing};
use super::tie::{self, TieError};
use super::{Member, take_part};
use crate::database::{Ahead, Begun, Instance, LIFTED_EPOCH, SaleRow, Sight, WITNESS_MAX_MS, Witness};
use crate::topics::ORDERS_TOPIC;

/// A sale that was claimed and is missing for so long was not installed, or is lost again.
const INSTALL_PATIENCE: Duration = Duration::from_secs(1);
/// Whoever did not begin the epoch leaves steps 4 to 6 for so long to whoever did.
const OPEN_PATIENCE: Duration = Duration::from_millis(500);
/// Longest stay at the barrier within one round.
const BARRIER_LOOK: Duration = Duration::from_millis(200);
/// How long a word counts.
const WITNESS_MAX: Duration = Duration::from_millis(WITNESS_MAX_MS);
/// Between two tries to take the same dead instance's log.
const LOCK_INTERVAL: Duration = Duration::from_millis(500);

/// How the ledger stands after a round.
pub(super) enum Standing {
    /// Open for every sale, our own log merged.
    Open,
    /// A step was done: look again at once.
    Again,
    /// Something is missing, maybe the merges of these.
    Rebuilding { waiting_for: Vec<Instance> },
}

impl Standing {
    fn rebuilding() -> Self {
        Self::Rebuilding { waiting_for: Vec::new() }
    }
}

/// What this process has seen of one epoch.
pub(super) struct View {
    pub(super) epoch: u64,
    pub(super) since: Instant,
    /// This process noticed the loss and is first in turn to open.
    began: bool,
    /// Sales whose state of this epoch was seen, or installed here.
    seen: BTreeSet<SaleId>,
    /// Sales that were open when last looked at.
    open: BTreeSet<SaleId>,
    /// Rounds that left ended sales out.
    rounds: u64,
    /// Sales that are missing, and since when.
    missing: BTreeMap<SaleId, Instant>,
    /// Our own log is merged.
    merged: bool,
    /// Since when all logs are.
    complete_since: Option<Instant>,
    /// When each dead instance's log was last tried.
    tried: BTreeMap<Owner, Instant>,
}

impl View {
    /// Whether a sale was open when last looked at.
    pub(super) fn any_is_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn of(epoch: u64, began: bool) -> Self {
        Self {
            epoch,
            since: Instant::now(),
            began,
            seen: BTreeSet::new(),
            open: BTreeSet::new(),
            rounds: 0,
            missing: BTreeMap::new(),
            merged: false,
            complete_since: None,
            tried: BTreeMap::new(),
        }
    }
}

/// Of sales that have ended and were seen open at this epoch a round looks at so many, in turn: what is lost, is lost with them all.
const ENDED_PER_ROUND_MAX: usize = 8;

/// How a sale stands in the ledger.
enum Place {
    Open,
    /// Installed at our epoch, and waits for the merges.
    Closed,
    /// Not there at our epoch; somebody is about to install it.
    Missing,
    /// We have just installed or opened it, or it is gone: look again.
    Again,
    /// It was there at our epoch and is no longer.
    Lost,
}

impl Member {
    pub(super) async fn next_step(&mut self) -> Result<Standing, RebuildError> {
        // The epoch before everything else: nothing of an older one begins here any more.
        let life = self.database.life().await?;
        self.stock.sales_live_in(life.ledger.clone());
        let epoch = match life.epoch {
            0 => self.begin_after(0).await?,
            // A step a round, and none of the lives that the ledger has had is believed on the way.
            epoch if epoch <= self.behind => {
                self.begin_after(epoch).await?;
                return Ok(Standing::Again);
            }
            epoch => epoch,
        };
        self.look_at(epoch, false);
        if !self.is_on(life.ledger.as_ref())? {
            self.move_sales_after(epoch).await?;
            return Ok(Standing::Again);
        }
        self.here_at = Some(Instant::now());
        self.show_elsewhere(false);

        // 1, 2, and 6 for what is complete.
        let (mut closed, mut is_missing, mut again) = (Vec::new(), false, false);
        let mut foreign = None;
        for row in self.worth_a_look().await? {
            self.view.open.remove(&row.definition.id);
            let place = match self.place(&row).await {
                // The others, where they were never open, hold no promise and need no rebuild: they are sold.
                Err(RebuildError::Ledger(error @ LedgerError::Foreign { .. })) => {
                    foreign.get_or_insert(error);
                    continue;
                }
                place => place?,
            };
            match place {
                Place::Open => _ = self.view.open.insert(row.definition.id),
                Place::Closed => closed.push(row.definition.id),
                Place::Missing => is_missing = true,
                Place::Again => again = true,
                Place::Lost => {
                    tracing::warn!(sale = %row.definition.id, epoch, "the stock ledger has lost its memory");
                    self.begin_after(epoch).await?;
                    return Ok(Standing::Again);
                }
            }
        }
        if again {
            return Ok(Standing::Again);
        }
        // Nothing is merged into a life that lacks a sale: a log that counts as merged is not merged again.
        if let Some(error) = foreign {
            return Err(error.into());
        }
        if is_missing {
            return Ok(Standing::rebuilding());
        }

        // 3. Every sale is installed, so that our promises have a place to go to.
        if !self.merge_own().await? {
            return Ok(Standing::rebuilding());
        }
        if closed.is_empty() {
            return Ok(Standing::Open);
        }

        // 3'. and whether all the others have done so.
        let waiting_for = self.merge_dead().await?;
        self.metrics.waiting(waiting_for.len());
        if self.view.epoch != epoch || !waiting_for.is_empty() {
            return Ok(Standing::Rebuilding { waiting_for });
        }
        let complete_since = *self.view.complete_since.get_or_insert_with(Instant::now);
        if !self.view.began && complete_since.elapsed() < OPEN_PATIENCE {
            return Ok(Standing::rebuilding());
        }

        // 4, 5, 6.
        for sale in closed {
            let rows = merge_rows(&self.database, &self.stock, &sale).await?;
            hit("rebuild.rows");
            self.open(&sale).await?;
            tracing::info!(%sale, epoch, rows, "the stock ledger is rebuilt");
        }
        Ok(Standing::Again)
    }

    /// The sales to look at: all but most of those that have ended.
    async fn worth_a_look(&mut self) -> Result<Vec<SaleRow>, RebuildError> {
        let mut rows = self.database.unsettled_sales().await?;
        if self.view.open.len() <= ENDED_PER_ROUND_MAX {
            return Ok(rows);
        }
        // Decides only how often an ended sale is looked at, so that any server's clock serves.
        let Ok(now_ms) = self.stock.now_ms(self.stock.leases_server()).await else { return Ok(rows) };
        let rows_in_all = rows.len();
        let open = &self.view.open;
        let is_over = |row: &SaleRow| row.ends_at.0 <= now_ms && open.contains(&row.definition.id);
        let turns = rows.iter().filter(|row| is_over(row)).count().div_ceil(ENDED_PER_ROUND_MAX).max(1);
        // Below the number of sales.
        let turn = (self.view.rounds % turns as u64) as usize;
        let mut nth = 0;
        rows.retain(|row| {
            nth += usize::from(is_over(row));
            !is_over(row) || (nth - 1) / ENDED_PER_ROUND_MAX == turn
        });
        self.view.rounds += 1;
        if self.view.open.len() > 2 * rows_in_all {
            // Most of them are settled.
            self.view.open.clear();
        }
        Ok(rows)
    }

    // ## any epoch => the next one
    pub(super) async fn begin_after(&mut self, epoch: u64) -> Result<u64, RebuildError> {
        self.begin_above(epoch, &[]).await
    }

    /// The same, with the versions of these sales above those given.
    pub(super) async fn begin_above(
        &mut self,
        epoch: u64,
        above: &[(SaleId, Ahead)],
    ) -> Result<u64, RebuildError> {
        let sight = Sight { member: self.row.get(), ledger: self.stock.ledger().sight()? };
        let seen = sight.ledger.as_ref().map(|sight| sight.ledger.clone());
        // A crash before the write leaves the loss to be noticed again; one after it leaves an epoch that nobody has begun to
        // install, which is the next round's first step, whoever's.
        match self.database.next_epoch_after(epoch, above, sight).await? {
            Begun::Epoch(next) => {
                hit("rebuild.epoch");
                self.look_at(next, true);
                Ok(next)
            }
            Begun::Refused(Witness { ledger: recorded, by, place }) => {
                // After a restart of the ledger the others move on as well: it is nothing to tell before their words have ended.
                if self.here_at.is_none_or(|at| at.elapsed() >= WITNESS_MAX) {
                    self.show_elsewhere(true);
                }
                let seen =
                    seen.map_or_else(|| "in this process's memory".to_owned(), |seen| seen.to_string());
                Err(RebuildError::OtherLedger { seen, recorded, by, place })
            }
        }
    }

    fn show_elsewhere(&self, elsewhere: bool) {
        self.stock.set_elsewhere(elsewhere);
        self.metrics.elsewhere(elsewhere);
    }

    /// Whether the process is connected to the ledger that the sales live in. An error: to none at the moment.
    fn is_on(&self, recorded: Option<&LedgerIdentity>) -> Result<bool, RebuildError> {
        let Some(recorded) = recorded else { return Ok(true) };
        let sight = self.stock.ledger().sight()?;
        Ok(sight.is_some_and(|sight| sight.ledger == *recorded))
    }

    // ## elsewhere => the next epoch, here
    /// The sales move to the ledger that is seen here, unless somebody sees theirs.
    async fn move_sales_after(&mut self, epoch: u64) -> Result<(), RebuildError> {
        let moved = self.begin_after(epoch).await;
        if let Err(RebuildError::OtherLedger { .. }) = &moved
            && let Some(own) = &self.own
            // A log that owes nothing is merged by the word of it: those on the recorded ledger need not wait for this process.
            && timeout(BARRIER_LOOK, own.epoch_gate.settled(epoch)).await.is_ok()
            && owes_nothing(&own.topic).await?
        {
            self.database.report_merged(own.owner.0, epoch).await?;
        }
        moved.map(drop)
    }

    fn look_at(&mut self, epoch: u64, began: bool) {
        if self.view.epoch != epoch {
            self.view = View::of(epoch, began);
            self.metrics.epoch(epoch);
        }
        if let Some(own) = &self.own {
            own.epoch_gate.raise(epoch);
        }
    }

    /// `row` was read before the ledger is asked here.
    async fn place(&mut self, row: &SaleRow) -> Result<Place, RebuildError> {
        let (sale, epoch) = (&row.definition.id, self.view.epoch);
        match self.stock.snapshot(sale).await {
            Ok(snapshot) if snapshot.epoch > epoch || self.is_newer(row, &snapshot).await? => {
                // A newer life, of which the next round reads. Or the database was put back to an older state: what the ledger
                // holds is not what the rows say, and a life that neither has had begins.
                if self.database.epoch().await? == epoch {
                    let (ledger, version) = (snapshot.epoch, snapshot.version);
                    tracing::warn!(%sale, epoch, ledger, version, "the stock ledger is ahead of the database, which was put back: it is rebuilt from the rows");
                    self.overtake(epoch).await?;
                }
                Ok(Place::Again)
            }
            Ok(snapshot) if snapshot.epoch == epoch => {
                self.view.seen.insert(sale.clone());
                self.view.missing.remove(sale);
                if snapshot.open {
                    return Ok(Place::Open);
                }
                // Read after its state was seen: what was never opened until now holds no promise.
                match self.database.sale(sale).await? {
                    Some(row) if row.settled => Ok(Place::Again),
                    Some(row) if !row.was_opened() || row.opened_epoch == Some(epoch) => {
                        self.open(sale).await?;
                        Ok(Place::Again)
                    }
                    Some(_) => Ok(Place::Closed),
                    None => Ok(Place::Again),
                }
            }
            Ok(_) | Err(LedgerError::UnknownSale(_) | LedgerError::Amnesia) => self.missing(row).await,
            Err(error) => Err(error.into()),
        }
    }

    /// A sale that the ledger does not hold at our epoch.
    async fn missing(&mut self, row: &SaleRow) -> Result<Place, RebuildError> {
        let (sale, epoch) = (&row.definition.id, self.view.epoch);
        if self.database.sale(sale).await?.is_none_or(|row| row.settled) {
            // Settled a moment ago, and forgotten by the ledger as it should be.
            return Ok(Place::Open);
        }
        // What was said before the ledger was asked: it was there.
        let was_seen = self.view.seen.contains(sale) && row.opened_epoch != Some(LIFTED_EPOCH);
        if row.opened_epoch == Some(epoch) || was_seen {
            return Ok(Place::Lost);
        }
        // A crash between claim and install, or an install whose end is not known, leaves it missing: nobody installs it at this
        // epoch any more, and after a while everybody's patience ends.
        self.stock.may_install(sale)?;
        if self.database.claim_install(sale, epoch).await? {
            hit("rebuild.claimed");
            self.stock.install(&row.ledger_version(), epoch).await?;
            hit("rebuild.installed");
            self.view.seen.insert(sale.clone());
            return Ok(Place::Again);
        }
        let since = self.view.missing.entry(sale.clone()).or_insert_with(Instant::now);
        Ok(if since.elapsed() > INSTALL_PATIENCE { Place::Lost } else { Place::Missing })
    }

    /// Whether our own log is merged into this epoch, or there is none.
    async fn merge_own(&mut self) -> Result<bool, RebuildError> {
        let Some(own) = self.own.clone() else { return Ok(true) };
        if self.view.merged {
            return Ok(true);
        }
        let epoch = self.view.epoch;
        let instances = self.database.instances().await?;
        let is_merged = match instances.iter().find(|instance| instance.owner == own.owner) {
            Some(row) if !row.left_out && row.opening == Some(own.opening) => row.merged_epoch >= epoch,
            // Left out, or forgotten, but alive.
            _ => {
                take_part(&self.database, &own).await?;
                false
            }
        };
        if !is_merged {
            if timeout(BARRIER_LOOK, own.epoch_gate.settled(epoch)).await.is_err() {
                return Ok(false);
            }
            hit("rebuild.settled");
            match merge_log(&self.database, &self.stock, &own.topic, own.owner, epoch).await {
                Ok(promised) => tracing::info!(epoch, promised, "our log is merged"),
                // It was opened without us, and we hold promises that it does not know.
                Err(RebuildError::Ledger(LedgerError::Open)) => {
                    self.begin_after(epoch).await?;
                    return Ok(false);
                }
                Err(error @ RebuildError::OrdersLost { .. }) => {
                    self.close_without().await?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
            hit("rebuild.log");
            self.database.report_merged(own.owner.0, epoch).await?;
            hit("rebuild.reported");
        }
        self.view.merged = true;
        own.epoch_gate.offer(epoch);
        Ok(true)
    }

    /// Merges what logs of dead instances are in reach; the instances that are still to be waited for.
    async fn merge_dead(&mut self) -> Result<Vec<Instance>, RebuildError> {
        let epoch = self.view.epoch;
        let mut waiting_for = self.database.instances().await?;
        waiting_for.retain(|instance| instance.is_awaited(epoch));
        if waiting_for.is_empty() {
            return Ok(waiting_for);
        }
        let (_, leases) = self.stock.leases().await?;
        let mut left = Vec::new();
        for instance in waiting_for {
            let is_leased = leases.iter().any(|(owner, _)| *owner == instance.owner);
            if is_leased || !self.merge_dead_one(&instance).await? {
                left.push(instance);
            }
        }
        Ok(left)
    }

    async fn merge_dead_one(&mut self, instance: &Instance) -> Result<bool, RebuildError> {
        let epoch = self.view.epoch;
        let is_early = |tried: &Instant| tried.elapsed() < LOCK_INTERVAL;
        if self.view.tried.get(&instance.owner).is_some_and(is_early) {
            return Ok(false);
        }
        self.view.tried.insert(instance.owner, Instant::now());
        // With its lock nobody appends to it, and what its process had not made durable is gone.
        let Some(queue) = (self.logs)(instance.clone()).await else { return Ok(false) };
        let merged = self.merge_log_of(&queue, instance).await;
        hit("rebuild.neighbour");
        let reported = match merged {
            Ok(promised) => {
                tracing::info!(owner = %instance.owner, epoch, promised, "a dead instance's log is merged");
                // Before the lock is given up: its own process would begin to append.
                self.database.report_merged(instance.owner.0, epoch).await.map_err(RebuildError::from)
            }
            Err(error) => Err(error),
        };
        tokio::join!(queue.run(), queue.shutdown());
        match reported {
            Ok(()) => Ok(true),
            Err(RebuildError::Ledger(LedgerError::Open)) => {
                self.begin_after(epoch).await?;
                Ok(false)
            }
            Err(error @ RebuildError::OrdersLost { .. }) => {
                self.close_without().await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn merge_log_of(&self, queue: &Queue, instance: &Instance) -> Result<usize, RebuildError> {
        // A copy that is not the newest lacks what that may hold: the rebuild waits for the newest.
        tie::check_row(queue, instance, &self.database).await.map_err(|error| match error {
            TieError::Database(error) => error.into(),
            TieError::Queue(error) => error.into(),
            TieError::Misfit(misfit) => RebuildError::NotTheLog(instance.owner, misfit),
        })?;
        let topic = queue.topic(ORDERS_TOPIC).await?;
        merge_log(&self.database, &self.stock, &topic, instance.owner, self.view.epoch).await
    }

    // ## Closed and complete => Open
    async fn open(&self, sale: &SaleId) -> Result<(), RebuildError> {
        // Before it opens: were the ledger lost afterwards, an empty one must not pass for a beginning.
        self.database.mark_opened(sale, self.view.epoch).await?;
        hit("rebuild.marked");
        self.stock.open(sale, self.view.epoch).await?;
        hit("rebuild.opened");
        Ok(())
    }
}
