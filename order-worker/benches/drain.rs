//! Rows a second into SQLite: `cargo bench -p order-worker`.
//!
//! On the disk that holds the build directory, each commit synced. Ratios travel, absolutes do not.
#![allow(clippy::unwrap_used, reason = "in a bench a panic is the report")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use order_worker::{Database, Executor};
use stock::{Now, OrderId, Reservation, SaleDefinition, SaleId, Timestamp};

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
