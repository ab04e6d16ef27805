//! Processes of one orders database that are connected to two ledgers: a mistake in one configuration, or a partition.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use order_worker::database::WITNESS_MAX_MS;
use order_worker::{Member, MemberParts, MemberRow, MembershipMetrics};
use prometheus_client::registry::Registry;
use stock::ledger::{FaultPlan, SimulatedServer};
use stock::{EmbeddedFlag, EpochGate, Flag, Ledger, LedgerError, Stock, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use world::World;
use world::process::Process;

/// Longest wait for anything on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

fn server(number: u64) -> SimulatedServer {
    SimulatedServer::new(number, Arc::new(|| world::START_MS), FaultPlan::default())
}

/// Another process on the same database, connected to `server`.
fn on(world: World, server: &SimulatedServer) -> World {
    let (ledger, flag) = (Ledger::Simulated(server.connect()), Flag::Embedded(EmbeddedFlag::new(1)));
    World { stock: Arc::new(Stock::new(ledger, flag, &mut Registry::default())), ..world }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn run(mut member: Member) -> (watch::Sender<bool>, JoinHandle<()>) {
    let (stop, stopping) = watch::channel(false);
    (stop, tokio::spawn(async move { member.run(stopping).await }))
}

#[tokio::test]
async fn a_process_that_names_another_ledger_stops_nobody() {
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (ours, theirs) = (server(1), server(2));
    let world = World::new();
    let neighbour = world.neighbour();
    let sells = Process::start_closed(on(world, &ours), directories[0].path()).await;
    let sale = sells.world.publish("s", 100, 100).await;
    let database = sells.world.database.clone();
    let mut member = sells.member(true);
    assert_eq!(member.start().await.unwrap(), 1);

    // A gateway and a worker that name another server. However often each of them looks, no life is begun against the other.
    let epoch_gate = Arc::new(EpochGate::new());
    let strays = Process::start_closed(on(neighbour, &theirs), directories[1].path()).await;
    let mut stray = strays.member_on(epoch_gate.clone(), true);
    let mut worker = Member::new(MemberParts {
        database: database.clone(),
        stock: strays.world.stock.clone(),
        own: None,
        row: MemberRow::default(),
        logs: Arc::new(|_| Box::pin(async { None })),
        outliving: true,
        metrics: MembershipMetrics::new(&mut Registry::default()),
    });
    for n in 0..20 {
        stray.start().await.unwrap();
        worker.start().await.unwrap();
        assert!(strays.world.stock.is_elsewhere());
        assert_eq!((epoch_gate.offered(), theirs.is_open(&sale)), (0, false), "nothing can be sold there");
        member.start().await.unwrap();
        sells.promise(&sale, n, "u", 1).await.unwrap();
    }
    assert_eq!(database.epoch().await.unwrap(), 1, "lives were begun against the recorded ledger");
    // Nor does anything else of it reach a sale there, published now or long ago.
    let late = sells.world.publish("t", 10, 10).await;
    for sale in [&sale, &late] {
        assert!(order_worker::bring(&database, &strays.world.stock, sale).await.is_err());
        assert_eq!(strays.world.stock.snapshot(sale).await, Err(LedgerError::Amnesia));
        let held = strays.world.stock.ledger().snapshot(sale).await;
        assert_eq!(held, Err(LedgerError::UnknownSale(sale.clone())));
    }
    assert!(strays.world.reconciler().pass().await.is_ok());

    // The server restarts with an empty memory: rebuilt by itself, though the stray holds a log that it cannot merge.
    let stray = run(stray);
    ours.wipe();
    assert_eq!(timeout(PATIENCE, member.start()).await.unwrap().unwrap(), 2);
    assert_eq!(sells.world.units(&sale).await, (80, 20, 0), "every promise is known");
    sells.promise(&sale, 30, "u", 1).await.unwrap();
    assert_eq!((database.epoch().await.unwrap(), strays.world.stock.is_elsewhere()), (2, true));

    // The one that saw it stops. Alone, the other decides alone, once the last word is 5 s old.
    assert!(!theirs.is_open(&sale));
    let drain = sells.drain().await;
    sells.drained(&sale).await;
    let world = sells.stop(drain).await;
    assert_eq!(database.epoch().await.unwrap(), 2);
    world.advance(WITNESS_MAX_MS);
    let row = database.instances().await.unwrap().into_iter().find(|row| row.place == "here").unwrap();
    until("the sale moves", async || database.epoch().await.unwrap() == 3).await;
    // It waits for the log of the one that stopped, whose promises it cannot know to be rows.
    assert!(row.holds_promises && !theirs.is_open(&sale));
    let back = Process::start_closed(on(world.neighbour(), &theirs), directories[0].path()).await;
    let back_member = run(back.member(true));
    until("it is sold there", async || theirs.is_open(&sale)).await;
    assert_eq!(strays.world.units(&sale).await, (79, 0, 21), "the rows are known");
    assert!(!strays.world.stock.is_elsewhere());
    for (stop, running) in [stray, back_member] {
        stop.send_replace(true);
        running.await.unwrap();
    }
    strays.end().await;
    back.end().await;
}

#[tokio::test]
async fn an_outage_gives_the_sales_to_no_process_that_names_another_ledger() {
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (ours, theirs) = (server(1), server(2));
    let first = Process::start_closed(on(World::new(), &ours), directories[0].path()).await;
    let second = Process::start_closed(on(first.world.neighbour(), &ours), directories[1].path()).await;
    let strays = Process::start_closed(on(first.world.neighbour(), &theirs), directories[2].path()).await;
    let (world, database) = (first.world.neighbour(), first.world.database.clone());
    let sale = world.publish("s", 10, 10).await;
    let mut members = Vec::new();
    for process in [&first, &second] {
        let mut member = process.member(true);
        assert_eq!(member.start().await.unwrap(), 1);
        members.push(run(member));
    }
    let recorded = database.life().await.unwrap().ledger.unwrap();
    let seen_now = || {
        let count = "SELECT COUNT(*) FROM floodgate_instances WHERE seen_ledger = ?1 AND seen_at = ?2";
        let now = Timestamp(world.now()()).to_string();
        world.connection.with(|connection| {
            connection.query_row(count, [recorded.as_str(), &now], |row| row.get::<_, u32>(0)).unwrap()
        })
    };
    let mut stray = strays.member(true);
    stray.start().await.unwrap();
    world.advance(1);
    until("both have said what they see", async || seen_now() == 2).await;

    // For longer than a word counts nobody can connect.
    ours.set_away(true);
    for _ in 0..3 {
        world.advance(3_000);
        until("both repeat their word", async || seen_now() == 2).await;
        stray.start().await.unwrap();
        assert_eq!(database.epoch().await.unwrap(), 1, "a stray took the sales during an outage");
    }
    // It comes back as another life. Now nobody sees the recorded one, but two see the same.
    ours.wipe();
    let stray = run(stray);
    ours.set_away(false);
    until("it is open again", async || ours.is_open(&sale)).await;
    assert_eq!(database.epoch().await.unwrap(), 2);
    assert!(strays.world.stock.is_elsewhere() && !theirs.is_open(&sale));
    for (stop, running) in members.into_iter().chain([stray]) {
        stop.send_replace(true);
        running.await.unwrap();
    }
    for process in [first, second, strays] {
        process.end().await;
    }
}

#[tokio::test]
async fn a_word_is_written_every_second() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(1);
    let process = Process::start_closed(on(World::new(), &server), directory.path()).await;
    process.world.publish("s", 10, 10).await;
    let mut member = process.member(true);
    assert_eq!(member.start().await.unwrap(), 1);
    let database = process.world.database.clone();
    let seen = || {
        let read = "SELECT seen_ledger, seen_at FROM floodgate_instances";
        process.world.connection.with(|connection| {
            let row = connection.query_row(read, [], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?))
            });
            row.unwrap()
        })
    };
    let recorded = database.life().await.unwrap().ledger.unwrap();
    let first = seen();
    assert_eq!(
        first.0.as_deref(),
        Some(recorded.as_str()),
        "a life is built on the ledger of the member that began it"
    );
    process.world.advance(3_000);
    let (stop, running) = run(member);
    until("a later word", async || seen().1 > first.1).await;
    assert_eq!(seen().0, first.0);
    stop.send_replace(true);
    running.await.unwrap();
    process.end().await;

    // A ledger in a process's memory is nobody else's to see.
    let directory = tempfile::tempdir().unwrap();
    let alone = Process::start_closed(World::new(), directory.path()).await;
    let mut member = alone.member(false);
    assert_eq!(member.start().await.unwrap(), 1);
    let (stop, running) = run(member);
    sleep(Duration::from_millis(50)).await;
    let words: u32 = alone.world.connection.with(|connection| {
        let read = "SELECT COUNT(*) FROM floodgate_instances WHERE seen_ledger IS NOT NULL";
        connection.query_row(read, [], |row| row.get(0)).unwrap()
    });
    assert_eq!((words, alone.world.database.life().await.unwrap().ledger), (0, None));
    stop.send_replace(true);
    running.await.unwrap();
    alone.end().await;
}
