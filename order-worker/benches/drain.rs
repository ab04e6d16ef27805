//! Rows a second into SQLite: `cargo bench -p order-worker`.
//!
//! On the disk that holds the build directory, each commit synced. Ratios travel, absolutes do not.
#![allow(clippy::unwrap_used, reason = "in a bench a panic is the report")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use order_worker::{
    DRAIN_GROUP, Database, DrainConfig, DrainStats, Executor, Member, MemberParts, MembershipMetrics,
    ORDERS_TOPIC, OwnLog, Pace, Worker, WorkerMetrics, WorkerParts,
};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, NewRecord, Queue, Topic};
use stock::{
    EmbeddedFlag, EmbeddedLedger, Flag, Ledger, Now, OrderId, Owner, Reservation, SaleDefinition, SaleId,
    Stock, Timestamp,
};
use tokio::sync::watch;

const START_MS: u64 = 1_794_398_400_000;
/// Each measurement goes on for so long.
const MEASURE: Duration = Duration::from_secs(3);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        println!("settle (SQLite, WAL, synchronous=FULL)");
        println!("{:>10} {:>12} {:>14}", "batch", "rows/s", "ms a batch");
        for batch_size in [1, 100, 256, 500] {
            settle(batch_size).await;
        }
        println!("\ndrain (disk log → settle → offset → ledger), 100,000 orders waiting");
        println!("{:>10} {:>12} {:>14} {:>22}", "limit", "batch", "orders/s", "most in one second");
        for (limit, batch_size) in
            [(NO_LIMIT, 100), (NO_LIMIT, 256), (NO_LIMIT, 512), (20_000, 256), (2_000, 256)]
        {
            drain(limit, batch_size).await;
        }
    });
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

async fn database(directory: &Path) -> Database {
    let now: Now = Arc::new(|| START_MS);
    let url = directory.join("orders.db");
    let database = Database::open_sqlite(url.to_str().unwrap(), Executor::Thread, now).unwrap();
    let definition = SaleDefinition {
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
        labels: [].into(),
    };
    database.publish(&definition).await.unwrap();
    database
}

fn sale() -> SaleId {
    "bench".parse().unwrap()
}

/// Orders as a crowd makes them: ids close to time order, users at random.
fn reservation(sale: &SaleId, n: u64) -> Reservation {
    let scattered = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Reservation {
        order_id: OrderId::new(START_MS + n / 64, sale, scattered),
        sale: sale.clone(),
        user: format!("user-{scattered:016x}").parse().unwrap(),
        quantity: 1,
        metadata: None,
        reserved_at_ms: START_MS,
    }
}

async fn settle(batch_size: u64) {
    let directory = directory();
    let database = database(directory.path()).await;
    let sale = sale();
    let (mut rows, mut batches) = (0u64, 0u32);
    let begun = Instant::now();
    while begun.elapsed() < MEASURE {
        let batch: Vec<_> = (rows..rows + batch_size).map(|n| reservation(&sale, n)).collect();
        rows += database.settle(batch).await.unwrap().len() as u64;
        batches += 1;
    }
    let took = begun.elapsed();
    let (rate, each) = (rows as f64 / took.as_secs_f64(), took.as_secs_f64() * 1e3 / f64::from(batches));
    println!("{batch_size:>10} {rate:>12.0} {each:>14.2}");
}

/// More than any database takes.
const NO_LIMIT: u32 = 10_000_000;
/// Orders that wait when a drain begins.
const WAITING: u64 = 100_000;

async fn drain(orders_per_second_max: u32, batch_size_max: u32) {
    let directory = directory();
    let database = database(directory.path()).await;
    let now: Now = Arc::new(|| START_MS);
    let mut registry = Registry::default();
    let options = DiskOptions::new(directory.path().join("queue"), now.clone());
    let queue = Queue::open_disk(options, &mut registry).unwrap();
    let topic = queue.topic(ORDERS_TOPIC).unwrap();
    let group = topic.group(DRAIN_GROUP).unwrap();
    promise(&topic).await;
    let ledger = Ledger::Embedded(EmbeddedLedger::new(now));
    let stock = Arc::new(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(1)), &mut registry));
    let own = OwnLog {
        topic: topic.clone(),
        owner: Owner(queue.instance()),
        place: "here".into(),
        seat: Arc::default(),
    };
    let member = MemberParts {
        database: database.clone(),
        stock: stock.clone(),
        own: Some(own),
        logs: Arc::new(|_| None),
        outliving: false,
        metrics: MembershipMetrics::new(&mut registry),
    };
    Member::new(member).start().await.unwrap();
    let stats = Arc::new(DrainStats::new(orders_per_second_max));
    let config = DrainConfig { orders_per_second_max, batch_size_max, adaptive: true };
    let metrics = WorkerMetrics::new(&mut registry);
    let parts = WorkerParts {
        database,
        stock,
        group,
        pace: Arc::new(Pace::new(&config)),
        metrics,
        stats: stats.clone(),
    };
    let (shutdown, down) = watch::channel(false);
    let begun = Instant::now();
    let worker = tokio::spawn(Worker::new(parts, down).run());
    // (when, drained) every few milliseconds, for at most 5 s.
    let mut seen = vec![(0.0, 0)];
    while stats.drained() < WAITING && begun.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        seen.push((begun.elapsed().as_secs_f64(), stats.drained()));
    }
    let (took, drained) = seen[seen.len() - 1];
    let within = |from: &(f64, u64)| {
        let last = seen.iter().take_while(|(at, _)| *at < from.0 + 1.0).last();
        last.map_or(0, |(_, drained)| drained - from.1)
    };
    let most = seen.iter().map(within).max().unwrap_or(0);
    let limit =
        if orders_per_second_max == NO_LIMIT { "none".into() } else { orders_per_second_max.to_string() };
    println!("{limit:>10} {batch_size_max:>12} {:>14.0} {most:>22}", drained as f64 / took);
    shutdown.send_replace(true);
    worker.await.unwrap().unwrap();
    queue.shutdown().await;
}

async fn promise(topic: &Topic) {
    let sale = sale();
    for chunk in 0..WAITING / 1_000 {
        let mut appends = Vec::new();
        for n in 0..1_000 {
            let payload = reservation(&sale, chunk * 1_000 + n).encode().unwrap();
            let permit = topic.try_permit(payload.len()).unwrap();
            let record = NewRecord { key: b"", tag: "order", deliver_at_ms: None, payload: &payload };
            appends.push(topic.append(permit, record));
        }
        for append in appends {
            append.await.unwrap();
        }
    }
}
