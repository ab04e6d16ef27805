//! What a start costs when much waits for the drain: how long until recovery has seen that the log holds all of it, and in how much
//! memory. The log is on a real disk; the ledger, in process, holds every order as pending.
//!
//! `cargo bench -p gateway --bench start`; `FLOODGATE_ORDERS=n` sets how many orders are undrained.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gateway::catalog::CatalogSale;
use gateway::purchase::progress::Progress;
use queue::{GroupWatch, Storage};
use stock::ledger::BATCH_MAX;
use stock::{EmbeddedLedger, Ledger, OrderId, Reservation, SaleVersion};
use support::life::{Ground, Life};
use support::{DRAIN_GROUP, SALE, now_ms, sale};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ORDERS_DEFAULT: u64 = 5_000_000;
/// Made and written at once.
const PART: u64 = 500_000;

fn main() {
    let orders = std::env::var("FLOODGATE_ORDERS").map_or(ORDERS_DEFAULT, |n| n.parse().expect("a number"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(start(orders));
}

async fn start(orders: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let counter = AtomicU64::new(1);
    let now: stock::Now = Arc::new(now_ms);
    let definition = sale(SALE);
    let total = u32::try_from(orders).expect("at most 2^32 orders");
    let ground = Ground {
        now: now.clone(),
        storage: Storage::Real,
        directory: directory.path().join("queue"),
        segment_bytes: 32 << 20,
        ledger: Ledger::Embedded(EmbeddedLedger::new(now)),
        sale: CatalogSale { definition, version: 1, terms_version: 1, total, paused_by: None, epoch: 1 },
        random: Arc::new(move || counter.fetch_add(1, Ordering::Relaxed)),
    };
    let life = Life::start(&ground);
    install(&life, &ground.sale).await;
    life.run_queue(async {
        life.begin_drain().await;
        for first in (0..orders).step_by(PART as usize) {
            let part: Vec<_> = (first..orders.min(first + PART)).map(reservation).collect();
            life.write(&part).await;
            for part in part.chunks(BATCH_MAX) {
                life.stock.restore(&ground.sale.definition.id, 1, life.owner, part).await.expect("restored");
            }
        }
    })
    .await;
    life.stock.open(&ground.sale.definition.id, 1).await.expect("opened");
    drop(life);

    // The log is opened before: what that costs stands in docs/queue.md.
    let life = Life::start(&ground);
    let (memory, begun) = (resident_mib(), Instant::now());
    let alone = Progress::new(Arc::new(GroupWatch::new(life.topic.clone(), DRAIN_GROUP)), None);
    alone.load().await.expect("read");
    println!(
        "{orders} undrained orders: their log is read in {:.1} s, remembered in {:.0} MiB ({:.1} bytes an order)",
        begun.elapsed().as_secs_f64(),
        resident_mib() - memory,
        (resident_mib() - memory) * f64::from(1 << 20) / orders as f64,
    );
    drop(alone);
    // The peak is counted from here on.
    fs::write("/proc/self/clear_refs", "5").expect("procfs");
    let begun = Instant::now();
    life.run(async {
        while !life.gateway.recovered() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    println!(
        "from the start to the end of the recovery (all that is pending looked at twice): {:.1} s; the process grew by {:.0} MiB",
        begun.elapsed().as_secs_f64(),
        peak_mib() - memory,
    );
    assert_eq!(life.undrained().await, orders, "the log holds each order once");
}

async fn install(life: &Life, sale: &CatalogSale) {
    let version = SaleVersion {
        sale: sale.definition.id.clone(),
        version: 1,
        total: sale.total,
        starts_at_ms: sale.definition.starts_at.0,
        ends_at_ms: sale.definition.ends_at.0,
        per_user_limit: 1,
        passes_per_unit: 0,
        paused: false,
        terms_version: 1,
    };
    life.stock.install(&version, 1).await.expect("installed");
}

/// Passes are drawn within a minute and used in another order.
fn reservation(n: u64) -> Reservation {
    let sale: stock::SaleId = SALE.parse().expect("a sale");
    let random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Reservation {
        order_id: OrderId::new(now_ms() - random % 60_000, &sale, random),
        sale,
        user: format!("user-{n}").parse().expect("a user"),
        quantity: 1,
        metadata: None,
        reserved_at_ms: now_ms(),
        sale_version: None,
    }
}

fn resident_mib() -> f64 {
    status_mib("VmRSS:")
}

fn peak_mib() -> f64 {
    status_mib("VmHWM:")
}

fn status_mib(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse::<f64>().expect("a number") / 1_024.0
}
