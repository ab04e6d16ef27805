//! A sale that a wrong clock has settled comes back, alone and with its orders.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use order_worker::database::LIFTED_EPOCH;
use stock::LedgerError;
use stock::ledger::ReserveOutcome;
use tokio::sync::watch;
use tokio::time::timeout;
use world::World;
use world::process::Process;

/// Longest rebuild on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 86_400_000;

#[tokio::test]
async fn a_sale_settled_by_a_clock_that_was_wrong_is_rebuilt_from_its_rows_in_the_same_life() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let (sale, other) = (world.publish("s", 10, 10).await, world.publish("t", 10, 10).await);
    let process = Process::start_closed(world, directory.path()).await;
    let mut member = process.member(true);
    assert_eq!(member.start().await.unwrap(), 1);
    process.promise(&sale, 1, "u", 2).await.unwrap();
    let worker = process.drain().await;
    process.drained(&sale).await;
    let World { connection, database, stock, .. } = &process.world;
    connection.with(|c| c.execute_batch("UPDATE floodgate_orders SET status = 'paid'")).unwrap();

    // A day ahead; the other one is longer, and stays.
    let prolong =
        format!("UPDATE floodgate_sales SET ends_at = '2099-01-01T00:00:00.000Z' WHERE sale_id = '{other}'");
    connection.with(|c| c.execute_batch(&prolong)).unwrap();
    process.world.advance(DAY_MS);
    let mut reconciler = process.world.reconciler();
    reconciler.pass().await.unwrap();
    assert!(database.sale(&sale).await.unwrap().unwrap().settled);
    assert!(matches!(stock.snapshot(&sale).await, Err(LedgerError::UnknownSale(_))));

    // The right time: it is on offer again at the next pass, and nobody sells a unit before its rows are back.
    process.world.now_ms.fetch_sub(DAY_MS, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    reconciler.pass().await.unwrap();
    let row = database.sale(&sale).await.unwrap().unwrap();
    assert_eq!((row.settled, row.opened_epoch), (false, Some(LIFTED_EPOCH)));
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    let open = async {
        while !stock.ledger().snapshot(&sale).await.is_ok_and(|books| books.open) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, open).await.unwrap();
    assert_eq!(process.world.units(&sale).await, (8, 0, 2), "what was sold is known");
    assert_eq!(process.world.reserve(&sale, 1, "u", 2).await, Err(ReserveOutcome::Confirmed));
    process.world.reserve(&sale, 2, "v", 8).await.unwrap();
    for sale in [&sale, &other] {
        assert_eq!(stock.snapshot(sale).await.unwrap().epoch, 1, "no other sale was rebuilt for it");
    }
    assert_eq!(database.sale(&sale).await.unwrap().unwrap().opened_epoch, Some(1));
    shutdown.send_replace(true);
    running.await.unwrap();
    process.stop(worker).await;
}
