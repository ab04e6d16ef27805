//! One life of a gateway's process, driven in one thread: what outlives it comes from outside. Decides no fault.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::pending;
use gateway::catalog::CatalogSale;
use gateway::purchase::{Attempt, Purchases};
use gateway::{Gateway, GatewayParts};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, GroupWatch, Lag, NewRecord, Permit, Queue, StartAt, Storage, Topic};
use stock::{EmbeddedFlag, EpochGate, Flag, Ledger, OrderId, Owner, Reservation, SaleId, Stock};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{DRAIN_GROUP, MapBooks, Options, SALE};

/// What outlives a process.
pub struct Ground {
    pub now: stock::Now,
    pub storage: Storage,
    pub directory: PathBuf,
    pub segment_bytes: u64,
    /// Each process has a client of its own.
    pub ledger: Ledger,
    pub sale: CatalogSale,
    pub random: queue::Random,
}

/// One life of the process.
pub struct Life {
    pub gateway: Arc<Gateway>,
    pub purchases: Purchases,
    pub queue: Queue,
    pub topic: Topic,
    pub stock: Arc<Stock>,
    pub epoch_gate: Arc<EpochGate>,
    pub owner: Owner,
}

impl Life {
    pub fn start(ground: &Ground) -> Self {
        let mut registry = Registry::default();
        let mut disk = DiskOptions::new(&ground.directory, ground.now.clone());
        disk.storage = ground.storage.clone();
        disk.driver = Driver::Driven;
        disk.random = ground.random.clone();
        disk.segment_bytes = ground.segment_bytes;
        disk.ring_bytes = 1 << 18;
        let queue = Queue::open_disk(disk, &mut registry).expect("a queue");
        let topic = queue.topic("floodgate-orders").now_or_never().expect("no wait").expect("a topic");
        let flag = Flag::Embedded(EmbeddedFlag::new((ground.random)()));
        let stock = Arc::new(Stock::new(ground.ledger.clone(), flag, &mut registry));
        let options = Options::default();
        let books = Arc::new(MapBooks::new(stock.clone()));
        let (epoch_gate, owner) = (super::epoch_gate_at(1), Owner(queue.instance()));
        let parts = GatewayParts {
            gateway: options.gateway,
            admin: gateway::config::AdminConfig::default(),
            auth: options.auth,
            gate: options.gate,
            limits: options.limits,
            stock: stock.clone(),
            topic: topic.clone(),
            owner,
            epoch_gate: epoch_gate.clone(),
            drained: Arc::new(GroupWatch::new(topic.clone(), DRAIN_GROUP)),
            drain_rate_hint: None,
            orders: books.clone(),
            payments: books.clone(),
            operator: books,
            now: ground.now.clone(),
            random: ground.random.clone(),
        };
        let gateway = Arc::new(Gateway::new(parts, &mut registry).expect("a good configuration"));
        gateway.catalog().replace(vec![ground.sale.clone()]);
        Self { purchases: gateway.purchases(), gateway, queue, topic, stock, epoch_gate, owner }
    }

    /// The whole process on this one thread, until `work` is done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let (_alive, never) = watch::channel(false);
        tokio::select! {
            biased;
            done = work => done,
            () = self.purchases.run(never.clone()) => unreachable!("it ends when it closes"),
            () = self.gateway.background(never) => unreachable!("it ends when it closes"),
            () = async { self.queue.run().await; pending().await } => unreachable!("it never ends"),
        }
    }

    /// The queue alone: nothing of the gateway is polled meanwhile.
    pub async fn run_queue<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            () = async { self.queue.run().await; pending().await } => unreachable!("it never ends"),
        }
    }

    /// Waits until the owner has recovered what was uncertain.
    pub async fn await_recovered(&self) {
        let idle = async {
            while !self.gateway.recovered() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), idle).await.expect("recovery comes to its end");
    }

    /// What the ledger holds for anybody.
    pub async fn held(&self) -> Vec<OrderId> {
        let sale: SaleId = SALE.parse().expect("a sale");
        let held = self.stock.pending(&sale, None, None, 512).await.expect("pending");
        held.iter().map(|(_, reservation)| reservation.order_id).collect()
    }

    /// The order of every record of the log, oldest first.
    pub async fn logged(&self) -> Vec<OrderId> {
        let messages = self.topic.read(None, 1_000_000).await.expect("messages");
        messages.iter().map(|m| Reservation::decode(&m.payload).expect("a reservation").order_id).collect()
    }

    /// Has the log hold these.
    pub async fn write(&self, reservations: &[Reservation]) {
        for part in reservations.chunks(500) {
            let mut appends = Vec::with_capacity(part.len());
            for reservation in part {
                let (key, payload) =
                    (reservation.order_id.to_string(), reservation.encode().expect("encoded"));
                let record =
                    NewRecord { key: key.as_bytes(), tag: "order", deliver_at_ms: None, payload: &payload };
                appends.push(self.topic.append(self.permit(payload.len()).await, record));
            }
            for append in appends {
                append.await.expect("durable");
            }
        }
    }

    /// Waits for the next segment, which the upkeep prepares.
    async fn permit(&self, payload_bytes: usize) -> Permit {
        for _ in 0..10_000 {
            match self.topic.try_permit(payload_bytes) {
                Ok(permit) => return permit,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
        panic!("no room: {:?}", self.topic.try_permit(payload_bytes));
    }

    /// Makes the drain's group, which has finished nothing.
    pub async fn begin_drain(&self) {
        drop(self.topic.group(DRAIN_GROUP, StartAt::Oldest).await.expect("a group"));
    }

    /// Records that the drain has not finished.
    pub async fn undrained(&self) -> u64 {
        let Lag { records, .. } = self.topic.lag(DRAIN_GROUP).await.expect("a lag");
        records
    }
}

pub fn attempt(pass: &str) -> Attempt<'_> {
    Attempt { sale: SALE, pass: Some(pass), quantity: 1, metadata: None, sale_version: None, address: None }
}
