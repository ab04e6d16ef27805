//! A rebuild waits for what it must wait for, and for nothing else.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use order_worker::membership::operator::{AtRisk, begin_rebuild, forget_instance, status};
use stock::{Owner, SaleId, Seat};
use tokio::sync::watch;
use tokio::time::timeout;
use world::World;
use world::process::Process;

/// Long enough for a rebuild that does not wait; a machine that is slower only makes these tests weaker.
const HASTE: Duration = Duration::from_millis(600);
/// Longest rebuild on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(20);

async fn opened(process: &Process, sale: &SaleId, epoch: u64) {
    loop {
        match process.world.stock.ledger().snapshot(sale).await {
            Ok(snapshot) if snapshot.open && snapshot.epoch == epoch => return,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn a_log_is_merged_behind_its_barrier() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed(world, directory.path());
    let seat = Arc::new(Seat::new());
    let mut member = process.member_on(seat.clone(), true);
    assert_eq!(member.start().await.unwrap(), 1);
    assert_eq!(seat.offered(), 1);

    // Reserved, and its record on its way while the ledger's next life begins.
    let late = process.world.reserve(&sale, 1, "u", 2).await.unwrap();
    let under_way = seat.enter(1).unwrap();
    assert_eq!(begin_rebuild(&process.world.database).await.unwrap(), 2);
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    assert!(timeout(HASTE, opened(&process, &sale, 2)).await.is_err(), "it did not wait");
    assert!(seat.enter(1).is_none(), "nothing of the old life begins any more");
    process.append(&late.encode().unwrap()).await;
    drop(under_way);
    timeout(PATIENCE, opened(&process, &sale, 2)).await.unwrap();
    assert_eq!(process.world.units(&sale).await, (8, 2, 0), "what came last is known");
    shutdown.send_replace(true);
    running.await.unwrap();
    process.end().await;
}

#[tokio::test]
async fn nobody_opens_before_every_registered_log_is_merged() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed(world, directory.path());
    let mut member = process.member(true);
    member.start().await.unwrap();
    let database = &process.world.database;
    database.register_instance(99, "out of reach").await.unwrap();
    begin_rebuild(database).await.unwrap();
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    assert!(timeout(HASTE, opened(&process, &sale, 2)).await.is_err(), "it did not wait");
    let shown = status(database, Some(&process.world.stock)).await.unwrap();
    assert_eq!((shown.epoch, shown.waiting_for), (2, vec![Owner(99).to_string()]));

    // The operator goes on without it.
    let unknown = AtRisk { orders: None, units: None };
    assert_eq!(forget_instance(database, Some(&process.world.stock), Owner(99)).await.unwrap(), unknown);
    timeout(PATIENCE, opened(&process, &sale, 3)).await.unwrap();
    let known = forget_instance(database, Some(&process.world.stock), Owner(99)).await;
    assert!(known.is_err(), "it is forgotten already: {known:?}");
    let own = Owner(process.queue.instance());
    let alive = forget_instance(database, Some(&process.world.stock), own).await;
    assert!(alive.is_err(), "its lease lasts: {alive:?}");
    shutdown.send_replace(true);
    running.await.unwrap();
    process.end().await;
}
