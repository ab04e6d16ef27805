//! A sale, the orders of a crowd, and a drain of them from a disk log into any database. Reads no result: whoever calls prints.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use order_worker::{
    Author, DRAIN_GROUP, Database, DrainConfig, DrainStats, JournalKey, Member, MemberParts, MemberRow,
    MembershipMetrics, ORDERS_TOPIC, OwnLog, Pace, TIMEOUTS_TOPIC, Timeouts, Worker, WorkerMetrics,
    WorkerParts,
};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, NewRecord, Queue, StartAt, Topic};
use stock::{
    EmbeddedFlag, EmbeddedLedger, Flag, Ledger, Now, OrderId, Owner, RefundPolicy, Reservation,
    SaleDefinition, SaleId, Stock, Timestamp,
};
use tokio::sync::watch;

pub(crate) const START_MS: u64 = 1_794_398_400_000;
/// More than any database takes.
pub(crate) const NO_LIMIT: u32 = 10_000_000;

pub(crate) fn sale() -> SaleId {
    "bench".parse().unwrap()
}

pub(crate) fn definition() -> SaleDefinition {
    SaleDefinition {
        id: sale(),
        item_id: String::new(),
        title: String::new(),
        description: String::new(),
        currency: "CNY".into(),
        price: 206_640,
        list_price: 0,
        total: u32::MAX,
        per_user_limit: 1,
        passes_per_unit: 0,
        pay_within_s: 900,
        starts_at: Timestamp(START_MS - 1),
        ends_at: Timestamp(START_MS + 3_600_000),
        rehearsal: false,
        refund: RefundPolicy::Buyer,
        unit_returns_on_refund: true,
        labels: [].into(),
    }
}

/// Who publishes it.
pub(crate) fn author() -> Author {
    JournalKey::new(&[7; 32]).config()
}

/// Orders as a crowd makes them: ids close to time order, users at random.
pub(crate) fn reservation(sale: &SaleId, n: u64) -> Reservation {
    let scattered = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Reservation {
        order_id: OrderId::new(START_MS + n / 64, sale, scattered),
        sale: sale.clone(),
        user: format!("user-{scattered:016x}").parse().unwrap(),
        quantity: 1,
        metadata: None,
        reserved_at_ms: START_MS,
        sale_version: None,
    }
}

/// On the disk that holds the build directory, each commit synced.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// What a drain did.
pub(crate) struct Drained {
    /// Orders a second, from the first to the last batch that was seen.
    pub(crate) rate: f64,
    /// Most orders in any second.
    pub(crate) most_in_a_second: u64,
    /// Most orders that a batch could be.
    pub(crate) batch_max: usize,
}

/// Drains `waiting` orders from a disk log: log → settle → offset → ledger; for `at_most`, or until none is left.
///
/// Progress is looked at every few milliseconds; what comes in between counts for the later moment, in windows too.
pub(crate) async fn drain(
    database: Database,
    orders_per_second_max: u32,
    batch_size_max: u32,
    waiting: u64,
    at_most: Duration,
) -> Drained {
    let directory = directory();
    let now: Now = Arc::new(|| START_MS);
    let mut registry = Registry::default();
    let mut options = DiskOptions::new(directory.path().join("queue"), now.clone());
    options.delayed(TIMEOUTS_TOPIC);
    let queue = Queue::open_disk(options, &mut registry).unwrap();
    let topic = queue.topic(ORDERS_TOPIC).await.unwrap();
    let group = topic.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap();
    promise(&topic, waiting).await;
    let ledger = Ledger::Embedded(EmbeddedLedger::new(now));
    let stock = Arc::new(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(1)), &mut registry));
    let own = OwnLog {
        topic: topic.clone(),
        owner: Owner(queue.instance()),
        opening: queue.tie_to(1, 1).await.unwrap(),
        place: "here".into(),
        epoch_gate: Arc::default(),
    };
    let member = MemberParts {
        database: database.clone(),
        stock: stock.clone(),
        row: MemberRow::of(own.owner),
        own: Some(own),
        logs: Arc::new(|_| Box::pin(async { None })),
        outliving: false,
        metrics: MembershipMetrics::new(&mut registry),
    };
    Member::new(member).start().await.unwrap();
    let stats = Arc::new(DrainStats::new(orders_per_second_max));
    let config = DrainConfig { orders_per_second_max, batch_size_max, adaptive: true };
    let metrics = WorkerMetrics::new(&mut registry);
    let pace = Arc::new(Pace::new(&config));
    let batch_max = pace.batch_max();
    let log = Owner(queue.instance());
    let deadlines = queue.topic(TIMEOUTS_TOPIC).await.unwrap();
    let timeouts = Timeouts::new(Arc::new(move || Some(deadlines.clone())), 0, &metrics);
    let parts = WorkerParts { database, stock, group, log, pace, timeouts, metrics, stats: stats.clone() };
    let (shutdown, down) = watch::channel(false);
    let begun = Instant::now();
    let worker = tokio::spawn(Worker::new(parts, down).run());
    let mut seen = vec![(0.0, 0)];
    while stats.drained() < waiting && begun.elapsed() < at_most {
        tokio::time::sleep(Duration::from_millis(5)).await;
        seen.push((begun.elapsed().as_secs_f64(), stats.drained()));
    }
    shutdown.send_replace(true);
    worker.await.unwrap().unwrap();
    queue.shutdown().await;

    let (took, drained) = seen[seen.len() - 1];
    let within = |from: &(f64, u64)| {
        let last = seen.iter().take_while(|(at, _)| *at < from.0 + 1.0).last();
        last.map_or(0, |(_, drained)| drained - from.1)
    };
    let most_in_a_second = seen.iter().map(within).max().unwrap_or(0);
    Drained { rate: drained as f64 / took, most_in_a_second, batch_max }
}

async fn promise(topic: &Topic, orders: u64) {
    let sale = sale();
    let mut appends = Vec::new();
    for n in 0..orders {
        let payload = reservation(&sale, n).encode().unwrap();
        let permit = topic.try_permit(payload.len()).unwrap();
        let record = NewRecord { key: b"", tag: "order", deliver_at_ms: None, payload: &payload };
        appends.push(topic.append(permit, record));
        if appends.len() == 1_000 || n + 1 == orders {
            for append in appends.drain(..) {
                append.await.unwrap();
            }
        }
    }
}
