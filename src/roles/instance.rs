//! This process's own log and its place in the registry of logs that may hold promises.

use std::sync::Arc;
use std::time::Duration;

use order_worker::database;
use order_worker::membership::{logs_on_this_machine, place_of};
use order_worker::{DRAIN_GROUP, Database, Member, MemberParts, MembershipMetrics, ORDERS_TOPIC, OwnLog};
use prometheus_client::registry::Registry;
use queue::{GroupWatch, Queue, QueueError, StartAt, Topic, TopicState};
use stock::config::StockBackend;
use stock::{Now, Owner, Seat};
use tokio::time::{Instant, sleep, timeout};

use super::kinship::{self, Lack};
use super::{Foundation, StartError};
use crate::config::Config;
use crate::engines;

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

/// Whether the ledger outlives this process, and other processes may use it.
fn outlives(config: &Config) -> bool {
    config.stock.backend != StockBackend::Embedded
}

/// A log directory that this process owns.
pub(super) struct Instance {
    queue: Queue,
    pub(super) orders: Topic,
    /// How far the drain is; refreshed by the gateway.
    pub(super) drained: Arc<GroupWatch>,
    pub(super) owner: Owner,
    pub(super) seat: Arc<Seat>,
}

impl Instance {
    /// Locks the log and recovers it, unless `database` is not the one that it was drained into.
    pub(super) async fn open(
        config: &Config,
        now: Now,
        database: &Database,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        kinship::check(config, now.clone(), database).await?;
        let until = Instant::now() + LOCK_MAX;
        let queue = loop {
            match engines::open_queue(config, now.clone(), registry) {
                // A neighbour may be merging this log, which it took for a dead one's.
                Err(QueueError::InUse { .. }) if outlives(config) && Instant::now() < until => {
                    sleep(LOCK_LOOK).await;
                }
                opened => break opened?,
            }
        };
        let orders = queue.topic(ORDERS_TOPIC).await?;
        let drained = Arc::new(GroupWatch::new(orders.clone(), DRAIN_GROUP));
        registry.register_collector(Box::new(order_worker::BacklogMetrics(drained.clone())));
        let owner = Owner(queue.instance());
        Ok(Self { queue, orders, drained, owner, seat: Arc::default() })
    }

    /// Makes the workers' group: a log without it would keep no record for a worker that comes late.
    pub(super) async fn prepare_for_workers(&self) -> Result<(), StartError> {
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
    pub(super) async fn register(&self, config: &Config, database: &Database) -> Result<(), StartError> {
        let place = place_of(&config.queue.own_log());
        if database.epoch().await? == 0 && self.orders.committed(DRAIN_GROUP).await?.is_some() {
            return Err(kinship::foreign(config, Lack::Everything));
        }
        let was_registered = self.registered(database).await?.0;
        database.register_instance(self.owner.0, &place).await?;
        if outlives(config) || !engines::is_shared(config) {
            return Ok(());
        }
        // Registered first, looked second: of two that start at once at least one sees the other.
        let Some(other) = self.registered(database).await?.1 else { return Ok(()) };
        if !was_registered {
            // It has promised nothing; staying would keep the other one from its next start.
            database.deregister_instance(self.owner.0).await?;
        }
        Err(StartError::SecondLedger {
            database: config.orders.database_url.to_string(),
            other: other.owner.to_string(),
            place: other.place,
        })
    }

    /// Whether this instance is in the registry, and one of the others.
    async fn registered(
        &self,
        database: &Database,
    ) -> Result<(bool, Option<database::Instance>), StartError> {
        let (own, others): (Vec<_>, Vec<_>) =
            database.instances().await?.into_iter().partition(|instance| instance.owner == self.owner);
        Ok((!own.is_empty(), others.into_iter().next()))
    }

    /// This process's part among those on its ledger.
    pub(super) fn member(&self, config: &Config, foundation: &Foundation, registry: &mut Registry) -> Member {
        let own = OwnLog {
            topic: self.orders.clone(),
            owner: self.owner,
            place: place_of(&config.queue.own_log()),
            seat: self.seat.clone(),
        };
        Member::new(MemberParts { own: Some(own), ..member_parts(config, foundation, registry) })
    }

    /// The end of this process's log. `well`: everything that was reserved has been finished.
    ///
    /// A crash before the registry is told leaves the instance registered, which is harmless: its log is looked at and found
    /// drained. The locks go last: whoever takes them next registers anew, which a late deregistration must not undo.
    pub(super) async fn leave(&self, database: &Database, well: bool) {
        // What is in the ring is settled: its records count in the lag from here on.
        if timeout(SETTLE_MAX, self.queue.settle()).await.is_err() {
            tracing::warn!("the queue's disk does not answer: what it holds shows at the next start");
            return;
        }
        if well
            && self.owes_nothing().await
            && let Err(error) = database.deregister_instance(self.owner.0).await
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

/// What takes part among the processes on a ledger, without a log of its own.
pub(super) fn member_parts(config: &Config, foundation: &Foundation, registry: &mut Registry) -> MemberParts {
    MemberParts {
        database: foundation.database.clone(),
        stock: foundation.stock.clone(),
        own: None,
        logs: logs_on_this_machine(&config.queue, foundation.now.clone()),
        outliving: outlives(config),
        metrics: MembershipMetrics::new(registry),
    }
}
