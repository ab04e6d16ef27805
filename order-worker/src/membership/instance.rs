//! This process's own log and its place in the registry of logs that may hold promises.

use std::sync::Arc;
use std::time::Duration;

use queue::{GroupWatch, Queue, QueueError, StartAt, Topic, TopicState};
use stock::{Owner, Seat};
use tokio::time::{Instant, sleep, timeout};

use super::same_database::{Mismatch, mismatch};
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
    /// What the log has handed over would be forgotten and its units sold again, or what it holds be rejected.
    #[error(
        "the orders database {database} {mismatch}, so the queue in {queue} belongs to another one, or to a newer state of it: put \
         that database back. If it was put back from a backup, `floodgate queue reset-offset {ORDERS_TOPIC} {DRAIN_GROUP} --before TIME`, with \
         a time before the backup was begun, has what it lacks written again, as far as the queue keeps it (--oldest: everything kept); \
         if they are to be forgotten, remove the queue's directory"
    )]
    ForeignDatabase {
        /// As it may be shown.
        database: String,
        /// Where the log is.
        queue: String,
        /// What tells.
        mismatch: Mismatch,
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

/// What an instance is told of itself.
pub struct InstanceParts {
    /// Where it is registered.
    pub database: Database,
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
    /// Of its purchase path.
    pub seat: Arc<Seat>,
}

impl Instance {
    /// Locks the log with `open` and recovers it, unless the database is not the one that it was drained into. `beside` is the same
    /// log, attached before; none where it is not there yet.
    ///
    /// # Errors
    /// See [`InstanceError`].
    pub async fn open(
        parts: InstanceParts,
        beside: Option<Queue>,
        mut open: impl FnMut() -> Result<Queue, QueueError>,
    ) -> Result<Self, InstanceError> {
        if let Some(queue) = beside
            && let Some(mismatch) = mismatch(&queue, &parts.database).await?
        {
            return Err(parts.foreign(mismatch));
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
        let orders = queue.topic(ORDERS_TOPIC).await?;
        let drained = Arc::new(GroupWatch::new(orders.clone(), DRAIN_GROUP));
        let owner = Owner(queue.instance());
        Ok(Self { parts, queue, orders, drained, owner, seat: Arc::default() })
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

    /// Registers before the first promise. Refuses a new database for a log that was drained into another, and a
    /// second ledger in memory over one database.
    ///
    /// A crash after it leaves an instance whose log owes nothing new.
    ///
    /// # Errors
    /// See [`InstanceError`].
    pub async fn register(&self) -> Result<(), InstanceError> {
        let InstanceParts { database, place, outliving, shared, .. } = &self.parts;
        if database.epoch().await? == 0 && self.orders.committed(DRAIN_GROUP).await?.is_some() {
            return Err(self.parts.foreign(Mismatch::Everything));
        }
        let was_registered = self.registered().await?.0;
        database.register_instance(self.owner.0, place, crate::database::ENGINE_DISK, true).await?;
        if *outliving || !*shared {
            return Ok(());
        }
        // Registered first, looked second: of two that start at once at least one sees the other.
        let Some(other) = self.registered().await?.1 else { return Ok(()) };
        if !was_registered {
            // It has promised nothing; staying would keep the other one from its next start.
            database.deregister_instance(self.owner.0).await?;
        }
        let database = self.parts.database_shown.clone();
        Err(InstanceError::SecondLedger { database, other: other.owner, place: other.place })
    }

    /// Whether this instance is in the registry, and one of the others that may hold promises.
    async fn registered(&self) -> Result<(bool, Option<database::Instance>), InstanceError> {
        let instances = self.parts.database.instances().await?;
        let (own, others): (Vec<_>, Vec<_>) =
            instances.into_iter().partition(|instance| instance.owner == self.owner);
        Ok((!own.is_empty(), others.into_iter().find(|other| other.holds_promises)))
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
            place: self.parts.place.clone(),
            seat: self.seat.clone(),
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
                Ok(lag) if lag.records == 0 => return true,
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

impl InstanceParts {
    fn foreign(&self, mismatch: Mismatch) -> InstanceError {
        InstanceError::ForeignDatabase {
            database: self.database_shown.clone(),
            queue: self.place.clone(),
            mismatch,
        }
    }
}
