//! This process's own log and its place in the registry of logs that may hold promises.

use std::sync::Arc;
use std::time::Duration;

use queue::{GroupWatch, Opening, Queue, QueueError, StartAt, Topic, TopicState};
use stock::{DeploymentId, EpochGate, OrderId, Owner};
use tokio::time::{Instant, sleep, timeout};

use super::same_database::{lacks_letter, lacks_order};
use super::tie::{self, Misfit, TieError};
use super::{MemberRow, OwnLog};
use crate::database::{self, Database, DatabaseError};
use crate::topics::{DRAIN_GROUP, ORDERS_TOPIC, TIMEOUTS_TOPIC};

/// How long a leaving gateway waits for workers to drain what it has promised.
const LAST_DRAIN_MAX: Duration = Duration::from_secs(5);
const LAST_DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Longest wait of a shutdown for the queue's disk.
const SETTLE_MAX: Duration = Duration::from_secs(15);
/// How long a worker that has locked its group may take to make it.
const GROUP_MADE_MAX: Duration = Duration::from_secs(10);
const GROUP_MADE_LOOK: Duration = Duration::from_millis(5);
/// Longest wait for a log that a neighbour has locked.
const LOCK_MAX: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(100);

/// Why a process must not append to its log. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The database's.
    #[error("{0}")]
    Database(#[from] DatabaseError),
    /// The log's.
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// They do not belong together: what the one has promised would be rejected in the other, or sold again.
    #[error("the queue in {queue} (log {log}) {misfit}. {}", way_out(.misfit, .log, .database))]
    Misfit {
        /// As it may be shown.
        database: String,
        /// Where the log is.
        queue: String,
        /// Its id.
        log: Owner,
        /// What tells.
        misfit: Misfit,
    },
    /// What the log has handed over would be forgotten and its units sold again.
    #[error(
        "the orders database {database} lacks order {order}, which the queue in {queue} (log {log}) handed over before: it was put back \
         to an older state. Put the newest one back, or have what it lacks written again: {RESTORE_DRILL}"
    )]
    LacksOrder {
        /// As it may be shown.
        database: String,
        /// Where the log is.
        queue: String,
        /// Its id.
        log: Owner,
        /// One of those that are missing.
        order: OrderId,
    },
    /// Two ledgers in memory over one database would promise every unit twice.
    #[error(
        "another floodgate is registered in {database} (instance {other}, {place}), and two ledgers in memory would promise every \
         unit twice: stop it (a clean stop takes it off the registry), share the ledger with stock.backend = \"redis\", or give \
         this one a database of its own with orders.database_url"
    )]
    SecondLedger {
        /// As it may be shown.
        database: String,
        /// The other's id.
        other: Owner,
        /// Where its log is.
        place: String,
    },
}

/// What an operator does about a database that is older than the log.
pub(super) const RESTORE_DRILL: &str = "`floodgate queue accept LOG` for each log that its start does not take, then `floodgate queue reset-offset \
                             floodgate-orders order-worker --before TIME` for every log, with a time before the backup was begun; the \
                             queue gives back what it keeps (docs/queue.md, \"After a restore of the database\")";

/// What to do about a log that does not fit, and what that costs.
fn way_out(misfit: &Misfit, log: &Owner, database: &str) -> String {
    let accept = format!("`floodgate queue accept {log}`");
    match misfit {
        Misfit::Untied => format!(
            "If they are promises of {database}, {accept} ties them to it; if they are of no use, remove the queue's directory"
        ),
        Misfit::Elsewhere { .. } => format!(
            "Give orders.database_url the log's own database, or queue.directory the log of {database}. If the log's own is gone for good, \
             {accept} takes the log over for {database}: orders of sales that it lacks hold up the drain until they are published there"
        ),
        Misfit::Copy { .. } => format!(
            "Put the newest log back: what was promised after this copy was made is only there. If that one is gone for good, {accept} \
             takes this one, and those promises are lost"
        ),
        Misfit::Ahead { .. } => format!(
            "Put the newest state of {database} back. If there is none, the drill for a restored database is: {RESTORE_DRILL}"
        ),
    }
}

/// What an instance is told of itself.
pub struct InstanceParts {
    /// Where it is registered.
    pub database: Database,
    /// Which deployment that is.
    pub deployment: DeploymentId,
    /// The database's address as it may be shown.
    pub database_shown: String,
    /// Where its log is: see [`super::place_of`].
    pub place: String,
    /// Whether the ledger outlives this process, and other processes may use it.
    pub outliving: bool,
    /// Whether other machines may use the same database.
    pub shared: bool,
}

/// A log directory that this process owns.
pub struct Instance {
    parts: InstanceParts,
    queue: Queue,
    /// The topic [`ORDERS_TOPIC`].
    pub orders: Topic,
    /// How far the drain is; refreshed by the gateway.
    pub drained: Arc<GroupWatch>,
    /// The log's id.
    pub owner: Owner,
    /// The log's present one.
    opening: Opening,
    /// Of its purchase path.
    pub epoch_gate: Arc<EpochGate>,
}

impl Instance {
    /// Locks the log with `open`, recovers it, ties it to the database by its next opening and registers it, all before its first
    /// promise; not if it is another database's, nor where a second ledger in memory would be. `beside` is the same log, attached
    /// before; none where it is not there yet.
    ///
    /// # Errors
    /// See [`InstanceError`].
    pub async fn open(
        parts: InstanceParts,
        beside: Option<Queue>,
        mut open: impl FnMut() -> Result<Queue, QueueError>,
    ) -> Result<Self, InstanceError> {
        // Before it is opened: its owner soon makes room of what is finished, which is what could be written again.
        if let Some(queue) = beside {
            parts.check(&queue).await?;
        }
        let until = Instant::now() + LOCK_MAX;
        let queue = loop {
            match open() {
                // A neighbour may be merging this log, which it took for a dead one's.
                Err(QueueError::InUse { .. }) if parts.outliving && Instant::now() < until => {
                    sleep(LOCK_LOOK).await;
                }
                opened => break opened?,
            }
        };
        let owner = Owner(queue.instance());
        // A start that will be refused changes nothing: neither the log's opening, nor that an operator has left it out.
        let (before, other) = parts.registered(owner).await?;
        parts.refuse_second_ledger(other)?;
        let tied = tie::tie(&queue, &parts.database, parts.deployment, &parts.place).await;
        let opening = tied.map_err(|error| parts.refusal(owner, error))?;
        // Registered first, looked second: of two that start at once at least one sees the other.
        let (_, other) = parts.registered(owner).await?;
        if let Err(refused) = parts.refuse_second_ledger(other) {
            parts.take_back(owner, before).await?;
            return Err(refused);
        }
        let orders = queue.topic(ORDERS_TOPIC).await?;
        let drained = Arc::new(GroupWatch::new(orders.clone(), DRAIN_GROUP));
        Ok(Self { parts, queue, orders, drained, owner, opening, epoch_gate: Arc::default() })
    }

    /// The topic [`TIMEOUTS_TOPIC`] of the same log, for a process that drains what it has promised.
    ///
    /// # Errors
    /// The log's.
    pub async fn timeouts(&self) -> Result<Topic, InstanceError> {
        Ok(self.queue.topic(TIMEOUTS_TOPIC).await?)
    }

    /// Makes the workers' group: a log without it would keep no record for a worker that comes late.
    ///
    /// # Errors
    /// The log's.
    pub async fn prepare_for_workers(&self) -> Result<(), InstanceError> {
        let until = Instant::now() + GROUP_MADE_MAX;
        loop {
            match self.orders.group(DRAIN_GROUP, StartAt::Oldest).await {
                Ok(_) => return Ok(()),
                // A worker is faster. It locks the group before it makes it, and could die in between.
                Err(QueueError::GroupHeld { .. }) => match self.orders.committed(DRAIN_GROUP).await {
                    Err(QueueError::UnknownGroup { .. }) if Instant::now() < until => {}
                    made => return made.map(drop).map_err(Into::into),
                },
                Err(error) => return Err(error.into()),
            }
            sleep(GROUP_MADE_LOOK).await;
        }
    }

    /// Its part among those on its ledger, and its row in the registry.
    #[must_use]
    pub fn member(&self) -> (Option<OwnLog>, MemberRow) {
        (Some(self.own_log()), MemberRow::of(self.owner))
    }

    /// As a member of those on its ledger knows it.
    #[must_use]
    pub fn own_log(&self) -> OwnLog {
        OwnLog {
            topic: self.orders.clone(),
            owner: self.owner,
            opening: self.opening,
            place: self.parts.place.clone(),
            epoch_gate: self.epoch_gate.clone(),
        }
    }

    /// The end of this process's log. `well`: everything that was reserved has been finished.
    ///
    /// A crash before the registry is told leaves the instance registered, which is harmless: its log is looked at and found
    /// drained. The locks go last: the next owner registers anew, which a late deregistration must not undo.
    pub async fn leave(&self, well: bool) {
        // What is in the ring is settled: its records count in the lag from here on.
        if timeout(SETTLE_MAX, self.queue.settle()).await.is_err() {
            tracing::warn!("the queue's disk does not answer: what it holds shows at the next start");
            return;
        }
        if well
            && self.owes_nothing().await
            && let Err(error) = self.parts.database.deregister_instance(self.owner.0).await
        {
            tracing::warn!(%error, "the instance stays registered, which harms nothing");
        }
        self.queue.shutdown().await;
    }

    /// Whether all that this log promised has become rows; waits a little for drains in other processes.
    async fn owes_nothing(&self) -> bool {
        if self.orders.state() == TopicState::Poisoned {
            // Nobody can tell what it holds.
            return false;
        }
        let until = Instant::now() + LAST_DRAIN_MAX;
        let mut least = u64::MAX;
        loop {
            match self.orders.lag(DRAIN_GROUP).await {
                Ok(lag) if lag.records == 0 => return self.letters_owe_nothing().await,
                Ok(lag) if Instant::now() < until && lag.records <= least => least = lag.records,
                Ok(lag) => {
                    tracing::info!(records = lag.records, "the log keeps promises for the next start");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, "the log's lag cannot be read");
                    return false;
                }
            }
            sleep(LAST_DRAIN_LOOK).await;
        }
    }
}

impl Instance {
    /// Whether each order among the dead letters is a row by now: once nobody knows of this log, a rebuild sells the others' units again.
    async fn letters_owe_nothing(&self) -> bool {
        match lacks_letter(&self.orders, &self.parts.database).await {
            Ok(None) => true,
            Ok(Some(order)) => {
                tracing::warn!(%order, "a dead letter is a promise without a row: the log stays registered; `floodgate queue dead-letters`");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "the log stays registered: nobody can tell what its dead letters owe");
                false
            }
        }
    }
}

impl InstanceParts {
    /// Whether the log may be opened: by what log and registry say of its openings, and by its newest records.
    async fn check(&self, queue: &Queue) -> Result<(), InstanceError> {
        let log = Owner(queue.instance());
        match tie::check(queue, &self.database, self.deployment).await {
            // The open tells.
            Err(TieError::Queue(_)) => return Ok(()),
            checked => checked.map_err(|error| self.refusal(log, error))?,
        }
        let Some(order) = lacks_order(queue, &self.database).await? else { return Ok(()) };
        let (database, queue) = (self.database_shown.clone(), self.place.clone());
        Err(InstanceError::LacksOrder { database, queue, log, order })
    }

    fn refusal(&self, log: Owner, error: TieError) -> InstanceError {
        match error {
            TieError::Database(error) => error.into(),
            TieError::Queue(error) => error.into(),
            TieError::Misfit(misfit) => {
                let (database, queue) = (self.database_shown.clone(), self.place.clone());
                InstanceError::Misfit { database, queue, log, misfit }
            }
        }
    }

    /// `other`: one of the others that may hold promises.
    fn refuse_second_ledger(&self, other: Option<database::Instance>) -> Result<(), InstanceError> {
        match other {
            Some(other) if !self.outliving && self.shared => {
                let database = self.database_shown.clone();
                Err(InstanceError::SecondLedger { database, other: other.owner, place: other.place })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The registration of a start that is refused: it has promised nothing, and what stays would keep the other one from its next start.
    /// A crash before the write leaves it, and an operator leaves it out.
    async fn take_back(&self, owner: Owner, before: Option<database::Instance>) -> Result<(), InstanceError> {
        match before {
            None => self.database.deregister_instance(owner.0).await?,
            Some(row) if row.left_out => self.database.leave_out_again(owner).await?,
            // It may hold promises of an earlier start.
            Some(_) => {}
        }
        Ok(())
    }

    /// The row of this instance, and one of the others that may hold promises.
    async fn registered(
        &self,
        owner: Owner,
    ) -> Result<(Option<database::Instance>, Option<database::Instance>), InstanceError> {
        let instances = self.database.instances().await?;
        let (mut own, others): (Vec<_>, Vec<_>) =
            instances.into_iter().partition(|instance| instance.owner == owner);
        Ok((own.pop(), others.into_iter().find(database::Instance::takes_part)))
    }
}
