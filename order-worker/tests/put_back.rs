//! The orders database is put back to an older state, under processes that run and between two lives of one: nothing is sold twice, no
//! pause is lifted, and what is missing is written again.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use order_worker::database::By;
use order_worker::membership::operator::hand_over_again;
use order_worker::{DRAIN_GROUP, DrainError, Member, RebuildError};
use queue::Position;
use stock::ledger::ReserveOutcome;
use stock::{EpochGate, OrderStatus, SaleId, Stopped};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use world::process::Process;
use world::{World, author, order_id};

/// Longest wait on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let come = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn tables(world: &World) -> Vec<String> {
    world.connection.with(|c| {
        let names = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name LIKE 'floodgate_%'";
        let mut statement = c.prepare(names).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    })
}

/// Keeps every row as it is now.
fn back_up(world: &World) {
    for table in tables(world) {
        let keep = format!("CREATE TEMP TABLE kept_{table} AS SELECT * FROM main.{table}");
        world.connection.with(|c| c.execute_batch(&keep).unwrap());
    }
}

/// As the backup has them, in one transaction.
fn put_back(world: &World) {
    let mut all = String::from("BEGIN; PRAGMA defer_foreign_keys = ON;");
    for table in tables(world) {
        all +=
            &format!("DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM temp.kept_{table};");
    }
    all += "COMMIT;";
    world.connection.with(|c| c.execute_batch(&all).unwrap());
}

/// A gateway that runs, on a ledger that outlives it, and the drain of its log.
struct Gateway {
    process: Process,
    gate: Arc<EpochGate>,
    worker: JoinHandle<Result<(), DrainError>>,
    running: JoinHandle<()>,
    shutdown: watch::Sender<bool>,
}

impl Gateway {
    async fn start(world: World, directory: &Path) -> Self {
        let process = Process::start_closed_keeping(world, directory).await;
        let gate = Arc::new(EpochGate::new());
        let mut member = process.member_on(gate.clone(), true);
        member.start().await.unwrap();
        Self::run(process, gate, member).await
    }

    async fn run(process: Process, gate: Arc<EpochGate>, mut member: Member) -> Self {
        let worker = process.drain().await;
        let (shutdown, down) = watch::channel(false);
        let running = tokio::spawn(async move { member.run(down).await });
        Self { process, gate, worker, running, shutdown }
    }

    fn world(&self) -> &World {
        &self.process.world
    }

    async fn sell(&self, sale: &SaleId, numbers: std::ops::Range<u64>) {
        self.process.promise_all(sale, numbers, |n| n, 1).await;
        self.process.drained(sale).await;
    }

    async fn stops(&self, why: Stopped) {
        until("a stop", async || self.gate.stopped() == Some(why)).await;
        assert!(self.gate.enter(u64::MAX - 1).is_none(), "nothing is promised any more");
    }

    /// As a kill would, but that the log's lock is free at once.
    async fn stop(self) -> World {
        self.shutdown.send_replace(true);
        self.running.await.unwrap();
        self.process.stop(self.worker).await
    }
}

/// What the log has handed over is no row any more: its units are not sold again, and the pause stays.
#[tokio::test]
async fn rows_put_back_under_a_process_are_not_sold_again_and_no_pause_is_lifted() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let gateway = Gateway::start(world, directory.path()).await;
    gateway.sell(&sale, 0..2).await;
    back_up(gateway.world());
    gateway.sell(&sale, 2..7).await;
    let database = gateway.world().database.clone();
    database.pause(&sale, "ops", &author()).await.unwrap();
    order_worker::bring(&database, &gateway.world().stock, &sale).await.unwrap();
    put_back(gateway.world());
    assert_eq!(database.sale(&sale).await.unwrap().unwrap().paused_by, None, "the backup is older");

    gateway.stops(Stopped::OrdersLost).await;
    // A worker without promises of its own takes part in every rebuild as well.
    let neighbour = gateway.world().neighbour();
    let begun = database.epoch().await.unwrap();
    assert_eq!(begun, 2, "the ledger was ahead");
    let open = async || neighbour.snapshot(&sale).await.open;
    for _ in 0..100 {
        assert!(!open().await, "five promises are forgotten");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let paused_by = database.sale(&sale).await.unwrap().unwrap().paused_by;
    assert_eq!(paused_by.as_deref(), Some("stock ledger"), "the ledger alone knew of the pause");

    // The drill. The start refuses until then.
    let process = Process::start_closed_keeping(gateway.stop().await, directory.path()).await;
    let refused = process.member(true).start().await;
    assert!(matches!(refused, Err(RebuildError::OrdersLost { .. })), "{refused:?}");
    let again = hand_over_again(&database, &process.topic, None, &author()).await.unwrap();
    let gate = Arc::new(EpochGate::new());
    let mut member = process.member_on(gate.clone(), true);
    assert!(member.start().await.unwrap() >= again);
    let gateway = Gateway::run(process, gate, member).await;
    gateway.process.drained(&sale).await;
    for n in 0..7 {
        assert_eq!(gateway.process.status(n).await, Some((OrderStatus::Unpaid, None)), "order {n}");
    }
    assert_eq!(gateway.world().units(&sale).await, (3, 0, 7));
    assert!(gateway.world().snapshot(&sale).await.paused, "until the operator's word");
    database.resume(&sale, &author()).await.unwrap();
    order_worker::bring(&database, &gateway.world().stock, &sale).await.unwrap();
    gateway.sell(&sale, 7..20).await;
    assert_eq!(gateway.world().units(&sale).await, (0, 0, 10), "ten in all");
    let audit = gateway.process.audit().await;
    assert!(audit.is_good() && audit.at_rest(), "{audit:?}");
    gateway.stop().await;
}

/// A replica that lagged takes over: lives and versions are the same, and many orders are written before anybody looks.
#[tokio::test]
async fn rows_that_go_while_the_ledger_is_level_stop_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 200, 200).await;
    let gateway = Gateway::start(world, directory.path()).await;
    gateway.sell(&sale, 0..2).await;
    back_up(gateway.world());
    gateway.sell(&sale, 2..7).await;
    // The gateway has looked once at least while order 6 was the newest.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(gateway.gate.stopped(), None);
    put_back(gateway.world());
    gateway.sell(&sale, 7..107).await;
    gateway.stops(Stopped::OrdersLost).await;
    let snapshot = gateway.world().snapshot(&sale).await;
    assert_eq!(
        (snapshot.epoch, snapshot.remaining, snapshot.confirmed),
        (1, 93, 107),
        "the ledger knows of all"
    );
    gateway.stop().await;
}

/// The backup is older than the sale's opening: its row says that there was never a promise.
#[tokio::test]
async fn a_sale_whose_opening_is_gone_is_not_opened_without_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed_keeping(world, directory.path()).await;
    back_up(&process.world);
    let gate = Arc::new(EpochGate::new());
    let mut member = process.member_on(gate.clone(), true);
    member.start().await.unwrap();
    let gateway = Gateway::run(process, gate, member).await;
    gateway.sell(&sale, 0..3).await;
    let database = gateway.world().database.clone();
    database.restock(&sale, "more", 1, &author()).await.unwrap();
    order_worker::bring(&database, &gateway.world().stock, &sale).await.unwrap();
    put_back(gateway.world());
    gateway.stops(Stopped::OrdersLost).await;
    for _ in 0..100 {
        let open = gateway.world().snapshot(&sale).await.open;
        assert!(!open || database.epoch().await.unwrap() < 2, "three promises are forgotten");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!gateway.world().snapshot(&sale).await.open);
    gateway.stop().await;
}

/// A ledger that outlived its processes remembers a release of which the rows no longer say anything.
#[tokio::test]
async fn after_the_drill_a_surviving_ledger_promises_nothing_that_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 2, 10).await;
    let gateway = Gateway::start(world, directory.path()).await;
    gateway.sell(&sale, 0..2).await;
    back_up(gateway.world());
    let database = gateway.world().database.clone();
    database.cancel(order_id(0), By::Operator(&author())).await.unwrap();
    gateway.world().relay().pass().await.unwrap();
    assert_eq!(gateway.world().units(&sale).await, (1, 0, 1));
    let world = gateway.stop().await;
    put_back(&world);

    let process = Process::start_closed_keeping(world, directory.path()).await;
    let end = process.topic.committed(DRAIN_GROUP).await.unwrap();
    hand_over_again(&database, &process.topic, end, &author()).await.unwrap();
    process.member(true).start().await.unwrap();
    assert_eq!(process.world.units(&sale).await, (0, 0, 2), "as the rows have it");
    assert_eq!(process.world.reserve(&sale, 5, "u", 1).await, Err(ReserveOutcome::SoldOut));
    process.end().await;
}

/// An operator gave these up: they are not what a restore has taken.
#[tokio::test]
async fn promises_that_an_operator_skipped_hold_up_no_start() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start_closed_keeping(world, directory.path()).await;
    process.rebuild().await.unwrap();
    process.promise_all(&sale, 0..5, |n| n, 1).await;
    drop(process.worker(1).await);
    let end = process.topic.end();
    queue::operator::reset_to_position(&process.topic, DRAIN_GROUP, end).await.unwrap();
    let process = Process::start_closed_keeping(process.end().await.restart(), directory.path()).await;
    process.rebuild().await.unwrap();
    assert_eq!(process.world.units(&sale).await, (10, 0, 0), "they are given up");

    // The one that is drained afterwards must be there; those that are handed over again, too.
    process.promise(&sale, 7, "u", 1).await.unwrap();
    let worker = process.drain().await;
    process.drained(&sale).await;
    let world = process.stop(worker).await;
    let delete = "DELETE FROM floodgate_orders;";
    world.connection.with(|c| c.execute_batch(delete).unwrap());
    let process = Process::start_closed_keeping(world.restart(), directory.path()).await;
    let lost = process.rebuild().await;
    assert!(matches!(lost, Err(RebuildError::OrdersLost { order, .. }) if order == order_id(7)), "{lost:?}");
    let back: Option<Position> = None;
    queue::operator::reset_to_position(&process.topic, DRAIN_GROUP, back).await.unwrap();
    assert!(queue::operator::skipped(&process.topic, DRAIN_GROUP).await.unwrap().is_empty());
    process.rebuild().await.unwrap();
    assert_eq!(process.world.units(&sale).await, (4, 6, 0));
    process.end().await;
}

/// The row that log and registry agree on is another one: nothing is promised here, and that shows.
#[tokio::test]
async fn a_process_whose_opening_the_registry_lacks_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let gateway = Gateway::start(world, directory.path()).await;
    gateway.sell(&sale, 0..1).await;
    let older = "UPDATE floodgate_instances SET nonce = '00000000000000aa';";
    gateway.world().connection.with(|c| c.execute_batch(older).unwrap());
    gateway.stops(Stopped::OtherOpening).await;
    gateway.stop().await;
}
