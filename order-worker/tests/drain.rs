//! From queue to row, with the real log, the embedded ledger and SQLite: failures at every step.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use order_worker::database::By;
use order_worker::{BacklogMetrics, DRAIN_GROUP, DrainError, DrainState, RebuildError, bring};
use queue::{GroupWatch, StartAt};
use stock::ledger::ReserveOutcome;
use stock::{OrderStatus, Reservation};
use world::process::Process;
use world::{World, author, order_id};

/// Nothing here takes longer on a machine that is merely busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn promises_become_rows_in_log_order_and_the_ledger_hears_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 1_000, 2).await;
    let process = Process::start(world, directory.path()).await;
    for n in 0..1_000 {
        process.promise(&sale, n, &format!("u{n}"), 1).await.unwrap();
    }
    assert_eq!(process.promise(&sale, 1_000, "late", 1).await, Err(ReserveOutcome::SoldOut));
    let worker = process.drain().await;
    process.drained(&sale).await;
    let books = process.audit().await;
    assert!(books.is_good() && books.at_rest(), "{books:?}");
    assert_eq!((books.sales[0].sold, books.sales[0].orders, books.sales[0].rejected), (1_000, 1_000, 0));
    assert_eq!(process.stats.drained(), 1_000);
    assert!((process.world.metric("floodgate_drained_orders_total") - 1_000.0).abs() < 0.1);
    let world = process.stop(worker).await;
    assert!((world.metric("floodgate_confirms_left_total")).abs() < 0.1);
}

#[tokio::test]
async fn duplicates_are_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 100, 1).await;
    let process = Process::start(world, directory.path()).await;
    let orders: Vec<Reservation> = {
        let mut orders = Vec::new();
        for n in 0..50 {
            orders.push(process.world.reserve(&sale, n, &format!("u{n}"), 1).await.unwrap());
        }
        orders
    };
    for order in orders.iter().chain(&orders).chain(orders.iter().rev()) {
        process.append(&order.encode().unwrap()).await;
    }
    let worker = process.drain().await;
    process.drained(&sale).await;
    let books = process.audit().await;
    assert!(books.is_good() && books.at_rest(), "{books:?}");
    assert_eq!((books.sales[0].sold, books.sales[0].orders), (50, 50));
    assert!((process.world.metric("floodgate_duplicate_orders_total") - 100.0).abs() < 0.1);
    process.stop(worker).await;
}

#[tokio::test]
async fn a_record_that_always_fails_is_bisected_out_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 300, 300).await;
    world.connection.with(|c| {
        c.execute_batch(
            "CREATE TRIGGER no_row BEFORE INSERT ON floodgate_orders
             WHEN NEW.user_id = 'poison' AND NEW.metadata IS NULL AND NEW.status = 'unpaid'
             BEGIN SELECT RAISE(ABORT, 'poison'); END;
             CREATE TRIGGER nothing_at_all BEFORE INSERT ON floodgate_orders WHEN NEW.user_id = 'deadly'
             BEGIN SELECT RAISE(ABORT, 'deadly'); END;",
        )
        .unwrap();
    });
    let process = Process::start(world, directory.path()).await;
    for n in 0..200 {
        let user = match n {
            0 | 77 | 78 | 199 => "poison",
            100 => "deadly",
            _ => "good",
        };
        process.promise(&sale, n, user, 1).await.unwrap();
    }
    let worker = process.drain().await;
    let relay = tokio::spawn(process.world.relay().run(process.shutdown.subscribe()));
    let drained = async {
        while process.topic.lag(DRAIN_GROUP).await.unwrap().records > 0
            || process.world.units(&sale).await.1 > 1
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, drained).await.expect("not drained within a minute");
    for n in [0, 77, 78, 199] {
        let unwritable = Some((OrderStatus::Rejected, Some("unwritable".to_owned())));
        assert_eq!(process.status(n).await, unwritable, "order {n}");
    }
    assert_eq!(process.status(100).await, None);
    let books = process.audit().await;
    assert!(books.is_good(), "{books:?}");
    assert_eq!((books.sales[0].units_held, books.sales[0].rejected), (195, 4));
    assert!((process.world.metric("floodgate_order_dead_letters_total") - 1.0).abs() < 0.1);
    assert!(
        (process.world.metric("floodgate_rejected_orders_total{reason=\"unwritable\"}") - 4.0).abs() < 0.1
    );
    // Its units stay promised until an operator has seen to the letter, and that shows.
    process.world.advance(10_000);
    process.world.reconciler().pass().await.unwrap();
    assert_eq!(process.world.units(&sale).await.1, 1);
    assert!((process.world.metric("floodgate_pending_orders_without_row") - 1.0).abs() < 0.1);
    assert_eq!(process.stats.state(), DrainState::Running);
    process.stop(worker).await;
    relay.await.unwrap();
}

#[tokio::test]
async fn what_is_no_order_becomes_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start(world, directory.path()).await;
    process.promise(&sale, 1, "u", 1).await.unwrap();
    process.append(b"not json").await;
    process.append(b"{\"v\":1}").await;
    let mut nothing = process.world.reserve(&sale, 2, "u", 1).await.unwrap();
    nothing.quantity = 0;
    process.append(&nothing.encode().unwrap()).await;
    process.promise(&sale, 3, "u", 1).await.unwrap();
    let worker = process.drain().await;
    while process.topic.lag(DRAIN_GROUP).await.unwrap().records > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(process.world.database.orders(&sale, None, 10).await.unwrap().len(), 2);
    assert!((process.world.metric("floodgate_order_dead_letters_total") - 3.0).abs() < 0.1);
    process.stop(worker).await;
}

#[tokio::test]
async fn an_unknown_version_stops_the_log_loudly_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start(world, directory.path()).await;
    process.promise(&sale, 1, "u", 1).await.unwrap();
    let later = process.world.reserve(&sale, 2, "u", 1).await.unwrap().encode().unwrap();
    let newer = String::from_utf8(later).unwrap().replacen("\"v\":1", "\"v\":2", 1);
    process.append(newer.as_bytes()).await;
    process.promise(&sale, 3, "u", 1).await.unwrap();
    let stopped = process.drain().await.await.unwrap();
    assert!(matches!(stopped, Err(DrainError::UnknownVersion { .. })), "{stopped:?}");
    assert!(matches!(process.stats.state(), DrainState::Stopped(_)));
    assert_eq!(process.stats.orders_per_second(), None);
    assert!((process.world.metric("floodgate_drain_stalled") - 1.0).abs() < 0.1);
    assert_eq!(process.topic.lag(DRAIN_GROUP).await.unwrap().records, 2, "the offset stays before it");
    assert!(process.status(1).await.is_some());
    assert!(process.status(3).await.is_none());
    let again = process.drain().await.await.unwrap();
    assert!(matches!(again, Err(DrainError::UnknownVersion { .. })), "{again:?}");
    let world = process.end().await.restart();
    let process = Process::start_closed(world, directory.path()).await;
    let refused = process.rebuild().await;
    assert!(matches!(refused, Err(RebuildError::UnknownVersion { .. })), "{refused:?}");
    assert!(!process.world.snapshot(&sale).await.open);
    process.end().await;
}

#[tokio::test]
async fn a_database_that_is_down_stalls_the_drain_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 100, 100).await;
    let process = Process::start(world, directory.path()).await;
    for n in 0..20 {
        process.promise(&sale, n, "u", 1).await.unwrap();
    }
    let hook = world::fail("database.commit", usize::MAX);
    let worker = process.drain().await;
    while process.stats.state() == DrainState::Running {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(process.topic.lag(DRAIN_GROUP).await.unwrap().records, 20);
    assert_eq!(process.stats.orders_per_second(), None);
    drop(hook);
    process.drained(&sale).await;
    assert_eq!(process.stats.state(), DrainState::Running);
    let books = process.audit().await;
    assert!(books.is_good() && books.at_rest() && books.sales[0].sold == 20, "{books:?}");
    process.stop(worker).await;
}

/// What the gateway sees of it: it asks for room before it asks the ledger, and answers 503 without.
#[tokio::test]
async fn while_the_database_is_down_promises_are_made_until_the_backlog_is_full() {
    const BACKLOG_MAX: u64 = 30;
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 100, 100).await;
    let process = Process::start_closed_with_room(world, directory.path(), BACKLOG_MAX).await;
    process.rebuild().await.unwrap();
    let hook = world::fail("database.commit", usize::MAX);
    let worker = process.drain().await;
    let mut promised = 0;
    let refused = loop {
        match process.topic.try_permit(200) {
            Ok(_room) => {}
            Err(refused) if promised == BACKLOG_MAX => break refused,
            // What the last append held is given back a moment after its record is durable.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        }
        process.promise(&sale, promised, "u", 1).await.unwrap();
        promised += 1;
        assert!(promised <= BACKLOG_MAX, "the backlog has a bound");
    };
    assert!(refused.is_retryable(), "{refused}");
    assert_eq!((promised, process.topic.lag(DRAIN_GROUP).await.unwrap().records), (BACKLOG_MAX, BACKLOG_MAX));
    assert_eq!(process.world.units(&sale).await, (100 - i64::try_from(BACKLOG_MAX).unwrap(), BACKLOG_MAX, 0));
    drop(hook);
    process.drained(&sale).await;
    assert!(process.topic.try_permit(200).is_ok(), "there is room again");
    process.promise(&sale, promised, "u", 1).await.unwrap();
    process.drained(&sale).await;
    let books = process.audit().await;
    assert!(books.is_good() && books.at_rest() && books.sales[0].sold == BACKLOG_MAX + 1, "{books:?}");
    process.stop(worker).await;
}

#[tokio::test]
async fn shutdown_ends_a_drain_whose_database_is_down() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 100, 100).await;
    let process = Process::start(world, directory.path()).await;
    process.promise(&sale, 1, "u", 1).await.unwrap();
    let worker = {
        let _hook = world::fail("database.begin", usize::MAX);
        let worker = process.drain().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        process.shutdown.send_replace(true);
        tokio::time::timeout(PATIENCE, worker).await.expect("it goes on without its database")
    };
    worker.unwrap().unwrap();
    let process = Process::start(process.end().await.restart(), directory.path()).await;
    assert_eq!(process.world.units(&sale).await, (99, 1, 0), "still promised");
    let worker = process.drain().await;
    process.drained(&sale).await;
    process.stop(worker).await;
}

#[tokio::test]
async fn a_ledger_that_is_down_never_holds_the_drain() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 100, 100).await;
    let process = Process::start(world, directory.path()).await;
    for n in 0..50 {
        process.promise(&sale, n, "u", 1).await.unwrap();
    }
    {
        let _hook = world::fail("drain.confirm", usize::MAX);
        let worker = process.drain().await;
        // Drained first, given up a moment later.
        let left = async {
            while process.topic.lag(DRAIN_GROUP).await.unwrap().records > 0
                || process.world.metric("floodgate_confirms_left_total") < 49.9
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, left).await.expect("not drained within a minute");
        assert!((process.world.metric("floodgate_confirms_left_total") - 50.0).abs() < 0.1);
        assert_eq!(process.world.units(&sale).await, (50, 50, 0));
        process.shutdown.send_replace(true);
        worker.await.unwrap().unwrap();
    }
    process.world.advance(10_000);
    process.world.reconciler().pass().await.unwrap();
    let books = process.audit().await;
    assert!(books.is_good() && books.at_rest(), "{books:?}");
    process.end().await;
}

#[tokio::test]
async fn the_pace_is_kept_from_queue_to_row() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10_000, 10_000).await;
    let process = Process::start(world, directory.path()).await;
    for n in 0..1_500 {
        process.promise(&sale, n, "u", 1).await.unwrap();
    }
    let begun = tokio::time::Instant::now();
    let worker = tokio::spawn(process.worker(1_000).await.run());
    process.drained(&sale).await;
    let took = begun.elapsed().as_secs_f64();
    // Never faster; how exactly is measured in paused time, beside the code. A busy machine may be slower.
    assert!(took > 1.4, "1,500 orders at 1,000 a second took {took} s");
    let rate = process.stats.orders_per_second().unwrap();
    assert!(rate < 1_100.0, "{rate}");
    process.stop(worker).await;
}

#[tokio::test]
async fn the_backlog_is_a_metric() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let mut process = Process::start(world, directory.path()).await;
    let _group = process.topic.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap();
    let drained = Arc::new(GroupWatch::new(process.topic.clone(), DRAIN_GROUP));
    process.world.registry.register_collector(Box::new(BacklogMetrics(drained.clone())));
    process.promise(&sale, 1, "u", 1).await.unwrap();
    process.promise(&sale, 2, "u", 1).await.unwrap();
    drained.refresh().await.unwrap();
    assert!((process.world.metric("floodgate_backlog_orders") - 2.0).abs() < 0.1);
    assert!(process.world.metric("floodgate_backlog_age_seconds") >= 0.0);
    process.end().await;
}

/// Intake, cancels, restocks and repeats at once, SQLite on its threads.
#[tokio::test]
async fn everything_at_once_ends_with_equal_books() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::on_threads(&directory.path().join("orders.db"));
    let sale = world.publish("s", 400, 2).await;
    let process = Process::start(world, directory.path()).await;
    let worker = process.drain().await;
    let relay = tokio::spawn(process.world.relay().run(process.shutdown.subscribe()));
    let reconciler = tokio::spawn(process.world.reconciler().run(process.shutdown.subscribe()));
    let operator = tokio::spawn({
        let (database, stock, sale) =
            (process.world.database.clone(), process.world.stock.clone(), sale.clone());
        async move {
            for n in 0..10 {
                database.restock(&sale, &format!("r{}", n / 2), 20, &author()).await.unwrap();
                bring(&database, &stock, &sale).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let buyers = tokio::spawn({
        let database = process.world.database.clone();
        async move {
            for n in 0..2_000u64 {
                let _ = database.cancel(order_id(n * 7 % 2_000), By::Operator(&author())).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    for n in 0..2_000 {
        if process.promise(&sale, n, &format!("u{}", n % 700), 1).await.is_err() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    operator.await.unwrap();
    buyers.await.unwrap();
    // However late the last restock came: there is demand for it.
    for n in 2_000..2_500 {
        let _ = process.promise(&sale, n, &format!("u{n}"), 1).await;
    }
    process.drained(&sale).await;
    let rest = async {
        while !process.audit().await.at_rest() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("not at rest within a minute");
    let books = process.audit().await;
    assert!(books.is_good(), "{books:?}");
    let books = &books.sales[0];
    assert_eq!((books.total, books.rejected), (Some(500), 0), "{books:?}");
    assert!(books.orders >= 500 && books.sold <= 500, "{books:?}");
    process.stop(worker).await;
    relay.await.unwrap();
    reconciler.await.unwrap();
}
