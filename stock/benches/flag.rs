//! How long after the last unit is taken every other process refuses without asking the ledger, through ZooKeeper.
//!
//! `cargo bench -p stock --features zookeeper --bench flag`. Each gateway is a session and a thread of its own; the clock
//! runs from the call that takes the last unit until the slowest gateway's cell says sold out, and backwards for the unit
//! that returns.
#![allow(clippy::unwrap_used, reason = "in a measurement a panic is the report")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use stock::ledger::{ReserveBatch, ReserveRequest, Settlement};
use stock::{
    EmbeddedLedger, Flag, Ledger, OrderId, Owner, SaleId, SaleVersion, SoldOutConfig, Stock, ZooKeeperFlag,
};
use testbed::{ZooKeeper, ZooKeeperEnsemble};
use tokio::sync::watch;

const GATEWAYS: usize = 3;
const ROUNDS: u64 = 1_000;
const PAUSE: Duration = Duration::from_millis(4);

fn main() {
    let single = ZooKeeper::start().unwrap_or_else(|e| panic!("{e}"));
    measure("one server", &single.connect_string());
    drop(single);
    let ensemble = ZooKeeperEnsemble::start().unwrap_or_else(|e| panic!("{e}"));
    measure("ensemble of 3", &ensemble.connect_string());
}

fn measure(what: &str, servers: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut taken = Vec::new();
        let mut returned = Vec::new();
        let seller = connect(servers).await;
        let mut gateways = Vec::new();
        for _ in 0..GATEWAYS {
            gateways.push(connect(servers).await);
        }
        let sale: SaleId = "bench".parse().unwrap();
        let ledger = Ledger::Embedded(EmbeddedLedger::new(Arc::new(|| 1_000)));
        let stock = Stock::new(ledger, seller, &mut Registry::default());
        stock.install(&version(&sale), 1).await.unwrap();
        stock.open(&sale, 1).await.unwrap();
        hear(&gateways, &sale, false).await;
        for round in 1..=ROUNDS {
            let request = ReserveRequest {
                order_id: OrderId::new(1, &sale, round),
                user: "u".parse().unwrap(),
                quantity: 1,
                metadata: None,
            };
            let settled = Settlement { order_id: request.order_id, user: request.user.clone(), quantity: 1 };
            let batch = ReserveBatch {
                sale: sale.clone(),
                owner: Owner(1),
                epoch: 1,
                deadline_ms: 2_000,
                terms_version: 1,
                requests: vec![request],
            };
            let begun = Instant::now();
            stock.reserve(&batch).await.unwrap();
            hear(&gateways, &sale, true).await;
            taken.push(begun.elapsed());
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            stock.release(&sale, &[settled]).await.unwrap();
            hear(&gateways, &sale, false).await;
            returned.push(begun.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
        show(what, "last unit taken, all of 3 refuse", taken);
        show(what, "a unit returned, all of 3 ask", returned);
    });
}

async fn connect(servers: &str) -> Flag {
    let config = SoldOutConfig { zookeeper: format!("{servers}/bench").into(), ..SoldOutConfig::default() };
    let flag = ZooKeeperFlag::connect(&config, 1).await.unwrap();
    flag.touch().wait_for(|touch| *touch).await.unwrap();
    Flag::ZooKeeper(flag)
}

async fn hear(gateways: &[Flag], sale: &SaleId, sold_out: bool) {
    for gateway in gateways {
        let cell = gateway.cell(sale);
        let mut changes: watch::Receiver<u64> = gateway.subscribe();
        changes.wait_for(|_| cell.read().is_some_and(|state| state.sold_out == sold_out)).await.unwrap();
    }
}

fn version(sale: &SaleId) -> SaleVersion {
    SaleVersion {
        sale: sale.clone(),
        version: 1,
        total: 1,
        starts_at_ms: 0,
        ends_at_ms: u64::MAX,
        per_user_limit: 1,
        passes_per_unit: 0,
        paused: false,
        terms_version: 1,
    }
}

fn show(what: &str, step: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{what}: {step}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} rounds)",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}
