//! A rebuild waits for what it must wait for, and for nothing else.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use order_worker::bring;
use order_worker::membership::operator::{AtRisk, begin_rebuild, forget_instance, status};
use stock::ledger::{ReserveOutcome, Settlement};
use stock::{EpochGate, LedgerError, Owner, SaleId};
use tokio::sync::watch;
use tokio::time::timeout;
use world::process::Process;
use world::{World, author, order_id};

/// Long enough for a rebuild that does not wait; a machine that is slower only makes these tests weaker.
const HASTE: Duration = Duration::from_millis(600);
/// Longest rebuild on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let process = Process::start_closed(world, directory.path()).await;
    let epoch_gate = Arc::new(EpochGate::new());
    let mut member = process.member_on(epoch_gate.clone(), true);
    assert_eq!(member.start().await.unwrap(), 1);
    assert_eq!(epoch_gate.offered(), 1);

    // Reserved, and its record on its way while the ledger's next life begins.
    let late = process.world.reserve(&sale, 1, "u", 2).await.unwrap();
    let under_way = epoch_gate.enter(1).unwrap();
    assert_eq!(begin_rebuild(&process.world.database, &author()).await.unwrap(), 2);
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    assert!(timeout(HASTE, opened(&process, &sale, 2)).await.is_err(), "it did not wait");
    assert!(epoch_gate.enter(1).is_none(), "nothing of the old life begins any more");
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
    let process = Process::start_closed(world, directory.path()).await;
    let mut member = process.member(true);
    member.start().await.unwrap();
    let database = &process.world.database;
    database.register_instance(99, "out of reach", "disk", true).await.unwrap();
    begin_rebuild(database, &author()).await.unwrap();
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    assert!(timeout(HASTE, opened(&process, &sale, 2)).await.is_err(), "it did not wait");
    let shown = status(database, Some(&process.world.stock)).await.unwrap();
    assert_eq!((shown.epoch, shown.waiting_for), (2, vec![Owner(99).to_string()]));

    // The operator goes on without it.
    let unknown = AtRisk { orders: None, units: None };
    assert_eq!(
        forget_instance(database, Some(&process.world.stock), Owner(99), &author()).await.unwrap(),
        unknown
    );
    timeout(PATIENCE, opened(&process, &sale, 3)).await.unwrap();
    let known = forget_instance(database, Some(&process.world.stock), Owner(99), &author()).await;
    assert!(known.is_err(), "it is forgotten already: {known:?}");
    let own = Owner(process.queue.instance());
    let alive = forget_instance(database, Some(&process.world.stock), own, &author()).await;
    assert!(alive.is_err(), "its lease lasts: {alive:?}");
    shutdown.send_replace(true);
    running.await.unwrap();
    process.end().await;
}

/// A worker's log holds none: dead, out of reach, for ever, it keeps no rebuild waiting, has no lease to end, and nobody is asked
/// to go on without it.
#[tokio::test]
async fn a_dead_log_without_promises_keeps_no_rebuild_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed(world, directory.path()).await;
    let epoch_gate = Arc::new(EpochGate::new());
    let mut member = process.member_on(epoch_gate.clone(), true);
    member.start().await.unwrap();
    process.promise(&sale, 1, "u", 2).await.unwrap();
    let database = &process.world.database;
    database.register_instance(99, "a worker's, out of reach", "disk", false).await.unwrap();
    assert_eq!(begin_rebuild(database, &author()).await.unwrap(), 2);
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    timeout(PATIENCE, opened(&process, &sale, 2)).await.expect("it waits for a log that holds no promises");
    assert_eq!(process.world.units(&sale).await, (8, 2, 0));
    let shown = status(database, Some(&process.world.stock)).await.unwrap();
    assert_eq!((shown.instances.len(), shown.waiting_for), (2, Vec::new()));
    let worker = shown.instances.iter().find(|instance| instance.owner == Owner(99).to_string()).unwrap();
    assert_eq!((worker.holds_promises, worker.merged_epoch, worker.lease_left_ms), (false, 0, None));

    // Forgetting it pauses nothing: the ledger's life goes on.
    let nothing = AtRisk { orders: Some(0), units: Some(0) };
    assert_eq!(
        forget_instance(database, Some(&process.world.stock), Owner(99), &author()).await.unwrap(),
        nothing
    );
    assert_eq!(database.epoch().await.unwrap(), 2);
    assert_eq!(database.instances().await.unwrap().len(), 1);
    assert!(process.world.snapshot(&sale).await.open);
    shutdown.send_replace(true);
    running.await.unwrap();
    process.end().await;
}

/// The log was left out, and its promises were sold again meanwhile: when it comes back they are known, and the rows decide.
#[tokio::test]
async fn an_instance_that_was_left_out_comes_back_and_nothing_is_lost_or_oversold() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 1).await;
    let gone = Process::start_closed(world.neighbour(), &directory.path().join("gone")).await;
    let stays = Process::start_closed(world, &directory.path().join("stays")).await;
    let mut member = stays.member(true);
    assert_eq!(member.start().await.unwrap(), 1);
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    assert_eq!(gone.member(true).start().await.unwrap(), 1);
    for n in 0..2 {
        stays.promise(&sale, n, &format!("u{n}"), 1).await.unwrap();
    }
    for n in 10..13 {
        gone.promise(&sale, n, &format!("u{n}"), 1).await.unwrap();
    }

    // It dies, and the operator does without it.
    let owner = Owner(gone.queue.instance());
    let elsewhere = gone.end().await;
    stays.world.stock.ledger().end_lease(owner).await.unwrap();
    forget_instance(&stays.world.database, Some(&stays.world.stock), owner, &author()).await.unwrap();
    timeout(PATIENCE, opened(&stays, &sale, 2)).await.unwrap();
    assert_eq!(stays.world.units(&sale).await, (8, 2, 0), "three promises are forgotten");
    for n in 20..28 {
        stays.promise(&sale, n, &format!("u{n}"), 1).await.unwrap();
    }
    assert_eq!(stays.promise(&sale, 30, "u30", 1).await, Err(ReserveOutcome::SoldOut));

    // It is back with its log, whose promises an open ledger does not know: a new life begins.
    let back = Process::start_closed(elsewhere, &directory.path().join("gone")).await;
    assert_eq!(Owner(back.queue.instance()), owner);
    assert_eq!(timeout(PATIENCE, back.member(true).start()).await.unwrap().unwrap(), 3);
    assert_eq!(stays.world.units(&sale).await, (-3, 13, 0), "every promise is known");

    let relay = tokio::spawn(stays.world.relay().run(stays.shutdown.subscribe()));
    let (first, second) = (stays.drain().await, back.drain().await);
    stays.drained(&sale).await;
    back.drained(&sale).await;
    let books = stays.audit().await;
    assert!(books.is_good() && books.at_rest(), "{books:?}");
    let books = &books.sales[0];
    assert_eq!((books.sold, books.orders, books.rejected), (10, 13, 3), "every promise has its row");
    assert_eq!(stays.world.units(&sale).await, (0, 0, 10));
    shutdown.send_replace(true);
    running.await.unwrap();
    back.stop(second).await;
    stays.stop(first).await;
    relay.await.unwrap();
}

#[tokio::test]
async fn a_ledger_that_is_ahead_of_a_database_that_was_put_back_is_rebuilt_from_the_rows() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed(world, directory.path()).await;
    let mut member = process.member(true);
    assert_eq!(member.start().await.unwrap(), 1);
    // The ledger has lived on since the state that the database is in now, and holds an order whose row is lost.
    let World { stock, database, .. } = &process.world;
    let row = database.sale(&sale).await.unwrap().unwrap();
    stock.install(&row.ledger_version(), 3).await.unwrap();
    let lost = Settlement { order_id: order_id(1), user: "u".parse().unwrap(), quantity: 2 };
    stock.confirm(&sale, &[lost]).await.unwrap();
    stock.open(&sale, 3).await.unwrap();
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    timeout(PATIENCE, opened(&process, &sale, 4)).await.unwrap();
    assert_eq!(process.world.units(&sale).await, (10, 0, 0), "the rows say what was sold");
    shutdown.send_replace(true);
    running.await.unwrap();
    process.end().await;
}

/// The ledger has lived on since the backup, and keeps the newer version of a sale whatever epoch it is installed at: with `lives`
/// rebuilds since, or none.
async fn a_total_that_was_put_back(lives: u64) {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 100).await;
    let process = Process::start_closed(world, directory.path()).await;
    let mut member = process.member(true);
    assert_eq!(member.start().await.unwrap(), 1);
    let World { stock, database, connection, .. } = &process.world;
    let sql = |sql: &str| connection.with(|connection| connection.execute_batch(sql)).unwrap();
    sql(
        "CREATE TEMP TABLE sales AS SELECT * FROM floodgate_sales; CREATE TEMP TABLE meta AS SELECT * FROM floodgate_meta;",
    );
    database.restock(&sale, "more", 10, &author()).await.unwrap();
    bring(database, stock, &sale).await.unwrap();
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    for epoch in 2..2 + lives {
        assert_eq!(begin_rebuild(database, &author()).await.unwrap(), epoch);
        timeout(PATIENCE, opened(&process, &sale, epoch)).await.unwrap();
    }
    assert_eq!(process.world.units(&sale).await, (20, 0, 0));

    sql("BEGIN; DELETE FROM floodgate_sales; INSERT INTO floodgate_sales SELECT * FROM sales; DELETE FROM floodgate_restocks;
         UPDATE floodgate_meta SET value = (SELECT value FROM meta WHERE meta.name = floodgate_meta.name) WHERE name = 'epoch'; COMMIT;");
    let above = 2 + lives;
    timeout(PATIENCE, opened(&process, &sale, above)).await.expect("a life that neither has had");
    assert_eq!(process.world.units(&sale).await, (10, 0, 0), "the row says how much is on offer");
    assert_eq!(process.world.snapshot(&sale).await.total, 10);
    for n in 0..10 {
        process.promise(&sale, n, "u", 1).await.unwrap();
    }
    assert_eq!(process.promise(&sale, 10, "u", 1).await, Err(ReserveOutcome::SoldOut));

    // Later changes of the row are believed, too.
    database.restock(&sale, "less", 2, &author()).await.unwrap();
    bring(database, stock, &sale).await.unwrap();
    assert_eq!(process.world.units(&sale).await, (2, 10, 0));
    shutdown.send_replace(true);
    running.await.unwrap();
    let worker = process.drain().await;
    process.drained(&sale).await;
    let books = process.audit().await;
    assert_eq!((books.sales[0].orders, books.sales[0].rejected), (10, 0), "no promise is rejected");
    process.stop(worker).await;
}

#[tokio::test]
async fn a_restored_total_wins_against_a_ledger_that_was_rebuilt_since() {
    a_total_that_was_put_back(1).await;
}

#[tokio::test]
async fn a_restored_total_wins_against_a_ledger_of_the_same_life() {
    a_total_that_was_put_back(0).await;
}

#[tokio::test]
async fn nobody_installs_at_an_epoch_that_another_has_claimed() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed(world, directory.path()).await;
    let mut member = process.member(true);
    member.start().await.unwrap();
    let World { database, stock, .. } = &process.world;
    assert_eq!(begin_rebuild(database, &author()).await.unwrap(), 2);
    // Another process took the right to install; its call is on its way, or was never sent.
    assert!(database.claim_install(&sale, 2).await.unwrap());
    let (shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    timeout(PATIENCE, opened(&process, &sale, 3)).await.expect("its patience ends, and a newer epoch begins");

    let version = database.sale(&sale).await.unwrap().unwrap().ledger_version();
    let late = stock.install(&version, 2).await;
    assert_eq!(late, Err(LedgerError::WrongEpoch { current: 3 }), "that call changes nothing any more");
    shutdown.send_replace(true);
    running.await.unwrap();
    process.end().await;
}

/// Two orders databases whose processes name the same ledger.
#[cfg(feature = "simulation")]
mod deployments {
    use order_worker::RebuildError;
    use order_worker::membership::operator::{Adopted, adopt};
    use prometheus_client::registry::Registry;
    use stock::ledger::{FaultPlan, SimulatedServer};
    use stock::{DeploymentId, EmbeddedFlag, Flag, Ledger, Stock};

    use super::*;

    fn server() -> SimulatedServer {
        SimulatedServer::new(1, Arc::new(|| world::START_MS), FaultPlan::default())
    }

    fn on(server: &SimulatedServer, deployment: u128) -> World {
        let ledger = Ledger::Simulated(server.connect_for(DeploymentId(deployment)));
        let flag = Flag::Embedded(EmbeddedFlag::new(1));
        World { stock: Arc::new(Stock::new(ledger, flag, &mut Registry::default())), ..World::new() }
    }

    fn is_foreign<T: std::fmt::Debug>(answer: Result<T, RebuildError>) {
        assert!(matches!(answer, Err(RebuildError::Ledger(LedgerError::Foreign { .. }))), "{answer:?}");
    }

    #[tokio::test]
    async fn two_deployments_on_one_ledger_leave_each_other_alone() {
        let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = server();
        let ours = Process::start_closed(on(&server, 1), directories.0.path()).await;
        let sale = ours.world.publish("s", 10, 10).await;
        let mut member = ours.member(true);
        assert_eq!(member.start().await.unwrap(), 1);
        ours.promise(&sale, 1, "u", 2).await.unwrap();

        // Of a higher life, too: what one database says of lives means nothing for the other.
        let theirs = Process::start_closed(on(&server, 2), directories.1.path()).await;
        assert_eq!(theirs.world.publish("s", 3, 10).await, sale);
        let elsewhere = theirs.world.publish("t", 3, 10).await;
        for _ in 0..4 {
            theirs.world.database.next_epoch().await.unwrap();
        }
        is_foreign(theirs.member(true).start().await);
        assert!(theirs.world.reconciler().pass().await.is_ok());
        assert!(order_worker::bring(&theirs.world.database, &theirs.world.stock, &sale).await.is_err());
        assert_eq!(theirs.world.database.epoch().await.unwrap(), 4, "no life is begun against the other one");
        assert_eq!(theirs.world.stock.foreign_sales(), std::slice::from_ref(&sale));
        assert!(theirs.world.snapshot(&elsewhere).await.open, "a sale of its own was never open: it is sold");
        let seen = status(&theirs.world.database, Some(&theirs.world.stock)).await.unwrap();
        assert!(seen.sales.iter().any(|seen| seen.sale == sale && seen.ledger == "foreign"), "{seen:?}");

        assert_eq!(ours.world.units(&sale).await, (8, 2, 0), "nothing of it was touched");
        assert_eq!((ours.world.snapshot(&sale).await.epoch, server.is_open(&sale)), (1, true));
        ours.promise(&sale, 2, "v", 1).await.unwrap();

        // Flushed, it is still theirs who had it: they install it anew, however often the other one looks.
        server.flush();
        is_foreign(theirs.member(true).start().await);
        assert!(matches!(ours.world.stock.snapshot(&sale).await, Err(LedgerError::UnknownSale(_))));
        assert!(member.start().await.is_ok());
        assert_eq!(ours.world.snapshot(&sale).await.epoch, 2);
        ours.end().await;
        theirs.end().await;
    }

    #[tokio::test]
    async fn a_database_made_anew_takes_over_once_the_other_is_dead() {
        let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = server();
        let gone = Process::start_closed(on(&server, 1), directories.0.path()).await;
        let sale = gone.world.publish("s", 10, 10).await;
        for _ in 0..5 {
            gone.world.database.next_epoch().await.unwrap();
        }
        gone.member(true).start().await.unwrap();
        gone.promise(&sale, 1, "u", 2).await.unwrap();
        let owner = Owner(0xA11E);
        gone.world.stock.renew_lease(owner, 60_000).await.unwrap();

        let new = Process::start_closed(on(&server, 2), directories.1.path()).await;
        new.world.publish("s", 3, 10).await;
        is_foreign(new.member(true).start().await);
        let World { database, stock, .. } = &new.world;
        let refused = adopt(database, stock, &author()).await;
        assert!(matches!(refused, Err(RebuildError::OtherAlive(alive)) if alive == owner), "{refused:?}");
        assert_eq!(gone.world.units(&sale).await, (8, 2, 0));

        gone.world.stock.end_lease(owner).await.unwrap();
        let held = gone.world.snapshot(&sale).await.epoch;
        let adopted = adopt(database, stock, &author()).await.unwrap();
        assert_eq!(adopted, Adopted { sales: vec![sale.clone()], epoch: held + 1 });
        let again = adopt(database, stock, &author()).await.unwrap();
        assert_eq!(again, Adopted { sales: Vec::new(), epoch: held + 1 }, "a repeat changes nothing");
        new.member(true).start().await.unwrap();
        assert_eq!(new.world.units(&sale).await, (3, 0, 0), "built from its own rows");
        assert!(stock.foreign_sales().is_empty());
        is_foreign(gone.member(true).start().await);
        gone.end().await;
        new.end().await;
    }
}

#[tokio::test]
async fn ended_sales_are_looked_at_in_turn_and_their_loss_is_noticed_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let mut sales = Vec::new();
    for n in 0..40 {
        sales.push(world.publish(&format!("s{n}"), 10, 10).await);
    }
    let process = Process::start_closed(world, directory.path()).await;
    let mut member = process.member(true);
    assert_eq!(member.start().await.unwrap(), 1);
    process.promise(&sales[7], 1, "u", 2).await.unwrap();
    process.world.advance(3_600_000);
    let calls = |process: &Process| process.world.sum("floodgate_ledger_calls_total");
    let before = calls(&process);
    for _ in 0..50 {
        // A round each.
        assert_eq!(member.start().await.unwrap(), 1);
    }
    let idle = calls(&process) - before;
    assert!(idle <= 50 * (8 + 1), "{idle} calls on the ledger in 50 rounds");

    for sale in &sales {
        process.world.stock.forget(sale).await.unwrap();
    }
    assert_eq!(member.start().await.unwrap(), 2);
    for sale in &sales {
        let snapshot = process.world.snapshot(sale).await;
        assert!(snapshot.open && snapshot.epoch == 2);
    }
    assert_eq!(process.world.units(&sales[7]).await, (8, 2, 0), "the log's promise is back");
    process.end().await;
}

/// Nobody knows whether it sells at this moment.
#[cfg(feature = "simulation")]
#[tokio::test]
async fn without_the_ledgers_word_no_instance_is_forgotten() {
    use order_worker::RebuildError;
    use prometheus_client::registry::Registry;
    use stock::ledger::{FaultPlan, SimulatedServer};
    use stock::{EmbeddedFlag, Flag, Ledger, Stock};

    let server = SimulatedServer::new(1, Arc::new(|| world::START_MS), FaultPlan::default());
    let flag = Flag::Embedded(EmbeddedFlag::new(1));
    let stock = Stock::new(Ledger::Simulated(server.connect()), flag, &mut Registry::default());
    let World { database, .. } = &World::new();
    database.register_instance(99, "elsewhere", "disk", true).await.unwrap();
    database.register_instance(98, "a worker's", "disk", false).await.unwrap();
    stock.renew_lease(Owner(99), 5_000).await.unwrap();
    server.set_plan(FaultPlan { refused: 1_000, ..FaultPlan::default() });
    for owner in [Owner(99), Owner(98)] {
        let refused = forget_instance(database, Some(&stock), owner, &author()).await.unwrap_err();
        assert!(matches!(refused, RebuildError::LeaseUnknown(of, _) if of == owner), "{refused:?}");
        assert!(refused.is_retryable());
    }
    assert_eq!((database.instances().await.unwrap().len(), database.epoch().await.unwrap()), (2, 0));
    server.set_plan(FaultPlan::default());
    let alive = forget_instance(database, Some(&stock), Owner(99), &author()).await;
    assert!(matches!(alive, Err(RebuildError::Alive(Owner(99)))), "{alive:?}");
    stock.end_lease(Owner(99)).await.unwrap();
    for owner in [Owner(99), Owner(98)] {
        forget_instance(database, Some(&stock), owner, &author()).await.unwrap();
    }
    let left = database.instances().await.unwrap();
    assert!(matches!(&left[..], [row] if row.owner == Owner(99) && row.left_out), "{left:?}");
    assert_eq!(database.journal(0, 9).await.unwrap().len(), 2);
}
