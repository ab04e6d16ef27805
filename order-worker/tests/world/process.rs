//! A process: a world, its own log and what runs on them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use order_worker::membership::tie::tie;
use order_worker::{
    Audit, DRAIN_GROUP, DrainConfig, DrainError, DrainStats, Member, MemberParts, MemberRow,
    MembershipMetrics, ORDERS_TOPIC, OpenLog, OwnLog, Pace, RebuildError, Timeouts, Worker, WorkerParts,
    audit,
};
use prometheus_client::registry::Registry;
use queue::{Append, DiskOptions, NewRecord, Opening, Queue, StartAt, Topic};
use stock::ledger::ReserveOutcome;
use stock::{DeploymentId, EpochGate, OrderStatus, Owner, SaleId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{World, order_id};

/// A process: a world and its own log.
pub(crate) struct Process {
    pub(crate) world: World,
    pub(crate) queue: Queue,
    pub(crate) topic: Topic,
    pub(crate) opening: Opening,
    pub(crate) stats: Arc<DrainStats>,
    pub(crate) shutdown: watch::Sender<bool>,
}

impl Process {
    /// Starts over whatever the last one left, ledger rebuilt.
    pub(crate) async fn start(world: World, directory: &Path) -> Self {
        let process = Self::start_closed(world, directory).await;
        process.rebuild().await.unwrap();
        process
    }

    pub(crate) async fn start_closed(world: World, directory: &Path) -> Self {
        Self::start_closed_with_room(world, directory, 10_000_000).await
    }

    /// With room for so many records that the drain has not settled.
    pub(crate) async fn start_closed_with_room(world: World, directory: &Path, backlog_max: u64) -> Self {
        Self::open(world, directory, (backlog_max, Duration::ZERO)).await
    }

    /// Keeping what is drained, as production does: what tells of a database that was put back is still there after a restart.
    pub(crate) async fn start_closed_keeping(world: World, directory: &Path) -> Self {
        Self::open(world, directory, (10_000_000, Duration::from_secs(86_400))).await
    }

    async fn open(world: World, directory: &Path, (backlog_max, keep_drained): (u64, Duration)) -> Self {
        let mut options = DiskOptions::new(directory.join("queue"), world.now());
        options.backlog_max = backlog_max;
        options.keep_drained = keep_drained;
        options.segment_bytes = 256 << 10;
        options.tied = true;
        let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
        let deployment = world.database.deployment(DeploymentId(1)).await.unwrap();
        let opening = tie(&queue, &world.database, deployment, "here").await.unwrap();
        let topic = queue.topic(ORDERS_TOPIC).await.unwrap();
        let stats = Arc::new(DrainStats::new(2_000));
        Self { world, queue, topic, opening, stats, shutdown: watch::Sender::new(false) }
    }

    pub(crate) async fn rebuild(&self) -> Result<u64, RebuildError> {
        self.member(false).start().await
    }

    /// Its part among the instances on the ledger; it takes no dead neighbour's log.
    pub(crate) fn member(&self, outliving: bool) -> Member {
        self.member_on(Arc::default(), outliving)
    }

    pub(crate) fn member_on(&self, epoch_gate: Arc<EpochGate>, outliving: bool) -> Member {
        self.member_beside(epoch_gate, outliving, Arc::new(|_| Box::pin(async { None })))
    }

    /// The same, taking dead neighbours' logs so.
    pub(crate) fn member_beside(&self, epoch_gate: Arc<EpochGate>, outliving: bool, logs: OpenLog) -> Member {
        let own = OwnLog {
            topic: self.topic.clone(),
            owner: Owner(self.queue.instance()),
            opening: self.opening,
            place: "here".into(),
            epoch_gate,
        };
        Member::new(MemberParts {
            database: self.world.database.clone(),
            stock: self.world.stock.clone(),
            row: MemberRow::of(own.owner),
            own: Some(own),
            logs,
            outliving,
            metrics: MembershipMetrics::new(&mut Registry::default()),
        })
    }

    /// What the gateway does: reserve, append, durable.
    pub(crate) async fn promise(
        &self,
        sale: &SaleId,
        n: u64,
        user: &str,
        quantity: u32,
    ) -> Result<(), ReserveOutcome> {
        let reservation = self.world.reserve(sale, n, user, quantity).await?;
        self.append(&reservation.encode().unwrap()).await;
        Ok(())
    }

    /// The same for many at once, user by number, so that they share their syncs; what the ledger refuses is left out.
    pub(crate) async fn promise_all(
        &self,
        sale: &SaleId,
        numbers: std::ops::Range<u64>,
        user: impl Fn(u64) -> u64,
        quantity: u32,
    ) {
        let mut appends = Vec::new();
        for n in numbers {
            if let Ok(reservation) = self.world.reserve(sale, n, &format!("u{}", user(n)), quantity).await {
                appends.push(self.begin(&reservation.encode().unwrap()).await);
            }
        }
        for append in appends {
            append.await.unwrap();
        }
    }

    pub(crate) async fn append(&self, payload: &[u8]) {
        self.begin(payload).await.await.unwrap();
    }

    async fn begin(&self, payload: &[u8]) -> Append {
        let permit = loop {
            match self.topic.try_permit(payload.len()) {
                // The next segment is being prepared.
                Err(refused) if refused.is_retryable() => tokio::time::sleep(Duration::from_millis(1)).await,
                permit => break permit.unwrap(),
            }
        };
        let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload };
        self.topic.append(permit, record)
    }

    /// In no log: everything is left to the index.
    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts::new(Arc::new(|| None), 0, &self.world.metrics)
    }

    pub(crate) async fn worker(&self, orders_per_second_max: u32) -> Worker {
        Worker::new(self.worker_parts(orders_per_second_max).await, self.shutdown.subscribe())
    }

    pub(crate) async fn worker_parts(&self, orders_per_second_max: u32) -> WorkerParts {
        WorkerParts {
            database: self.world.database.clone(),
            stock: self.world.stock.clone(),
            group: self.topic.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap(),
            log: Owner(self.queue.instance()),
            pace: Arc::new(Pace::new(&DrainConfig { orders_per_second_max, ..DrainConfig::default() })),
            timeouts: self.timeouts(),
            metrics: self.world.metrics.clone(),
            stats: self.stats.clone(),
        }
    }

    pub(crate) async fn drain(&self) -> JoinHandle<Result<(), DrainError>> {
        tokio::spawn(self.worker(100_000).await.run())
    }

    /// Waits until the log is drained and the ledger has heard of it.
    pub(crate) async fn drained(&self, sale: &SaleId) {
        let rest = async {
            while self.topic.lag(DRAIN_GROUP).await.unwrap().records > 0 || self.world.units(sale).await.1 > 0
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), rest).await.expect("not drained within a minute");
    }

    pub(crate) async fn stop(self, worker: JoinHandle<Result<(), DrainError>>) -> World {
        self.shutdown.send_replace(true);
        tokio::time::timeout(Duration::from_secs(60), worker).await.unwrap().unwrap().unwrap();
        self.end().await
    }

    pub(crate) async fn end(self) -> World {
        self.queue.shutdown().await;
        self.world
    }

    pub(crate) async fn audit(&self) -> Audit {
        audit(&self.world.database, Some(&self.world.stock), Some(&self.topic), None).await.unwrap()
    }

    pub(crate) async fn status(&self, n: u64) -> Option<(OrderStatus, Option<String>)> {
        self.world.database.order(order_id(n)).await.unwrap().map(|row| (row.status, row.reason))
    }
}
