//! Rows a second into SQLite: `cargo bench -p order-worker --bench drain`.
//!
//! On the disk that holds the build directory, each commit synced. Ratios travel, absolutes do not.
#![allow(clippy::unwrap_used, reason = "in a bench a panic is the report")]

mod crowd;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crowd::{NO_LIMIT, START_MS, author, definition, directory, reservation, sale};
use order_worker::{Database, Executor};
use stock::Now;

/// Each measurement goes on for so long.
const MEASURE: Duration = Duration::from_secs(3);
/// Orders that wait when a drain begins.
const WAITING: u64 = 100_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        println!("settle (SQLite, WAL, synchronous=FULL)");
        println!("{:>10} {:>12} {:>14}", "batch", "rows/s", "ms a batch");
        for batch_size in [1, 100, 256, 500] {
            settle(batch_size).await;
        }
        println!("\ndrain (disk log → settle → offset → ledger), {WAITING} orders waiting");
        println!("{:>10} {:>12} {:>14} {:>22}", "limit", "batch", "orders/s", "most in one second");
        for (limit, batch_size) in
            [(NO_LIMIT, 100), (NO_LIMIT, 256), (NO_LIMIT, 512), (20_000, 256), (2_000, 256)]
        {
            let directory = directory();
            let database = database(directory.path()).await;
            let drained = crowd::drain(database, limit, batch_size, WAITING, Duration::from_secs(5)).await;
            let limit = if limit == NO_LIMIT { "none".into() } else { limit.to_string() };
            let batch = drained.batch_max;
            println!("{limit:>10} {batch:>12} {:>14.0} {:>22}", drained.rate, drained.most_in_a_second);
        }
    });
}

async fn database(directory: &Path) -> Database {
    let now: Now = Arc::new(|| START_MS);
    let url = directory.join("orders.db");
    let database = Database::open_sqlite(url.to_str().unwrap(), Executor::Thread, now).unwrap();
    database.publish(&definition(), &author()).await.unwrap();
    database
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
