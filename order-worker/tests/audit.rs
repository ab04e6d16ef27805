//! What the audit sees: sums that do not agree, totals of one version that differ, promises that were broken, and orders that are pending
//! for long and nowhere.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use order_worker::database::{RejectReason, SaleBooks};
use order_worker::{Accounts, DRAIN_GROUP, LongPending, Rejected, account_for, audit};
use queue::{Queue, StartAt};
use stock::{Owner, SaleId, Timestamp};
use world::process::Process;
use world::{START_MS, World, order_id};

#[tokio::test]
async fn the_audit_names_what_is_broken() {
    let world = World::new();
    let sale = world.open("s", 3, 1).await;
    let order = world.reserve(&sale, 1, "u", 1).await.unwrap();
    world.database.settle(vec![order]).await.unwrap();
    let good = audit(&world.database, Some(&world.stock), None, None).await.unwrap();
    assert!(good.is_good(), "{good:?}");
    assert_eq!((good.sales[0].sold, good.sales[0].ledger.as_ref().unwrap().pending), (1, 1));
    assert!(!good.at_rest(), "the log was not asked");
    let copy = |id: &str, user: &str| {
        format!(
            "INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency, status, created_at,
                                           updated_at, version)
             SELECT '{id}', sale_id, '{user}', quantity, units_held, amount, currency, status, created_at, updated_at, version
             FROM floodgate_orders LIMIT 1"
        )
    };
    for (id, user) in [
        ("00000000000000000000000001", "u"),
        ("00000000000000000000000002", "v"),
        ("00000000000000000000000003", "w"),
    ] {
        world.connection.with(|c| c.execute_batch(&copy(id, user)).unwrap());
    }
    let bad = audit(&world.database, None, None, Some(&sale)).await.unwrap();
    let faults = bad.sales[0].broken.join("; ");
    for fault in
        ["counts 1 units as sold, the orders hold 4", "oversold: 4 units held of 3", "1 users hold more"]
    {
        assert!(faults.contains(fault), "{faults}");
    }
    assert!(serde_json::to_string(&bad).unwrap().contains("\"at_rest\":null"));
}

/// A backup of the database was put back beside a ledger that went on: both say the same version, and not the same total.
#[tokio::test]
async fn one_version_has_one_total() {
    let world = World::new();
    let sale = world.open("s", 10, 1).await;
    world.reserve(&sale, 1, "u", 1).await.unwrap();
    let set = |what: &str| {
        world.connection.with(|c| c.execute_batch(&format!("UPDATE floodgate_sales SET {what}")).unwrap());
    };
    set("total = 12");
    let found = audit(&world.database, Some(&world.stock), None, None).await.unwrap();
    let faults = found.sales[0].broken.join("; ");
    assert!(faults.contains("at version 1 the ledger offers 10 units, the database 12"), "{faults}");
    // A newer row that has not reached the ledger yet is no fault.
    set("version = 2");
    let found = audit(&world.database, Some(&world.stock), None, None).await.unwrap();
    assert!(found.is_good(), "{found:?}");
}

#[tokio::test]
async fn promises_that_were_rejected_are_named() {
    let world = World::new();
    let sale = world.open("s", 3, 3).await;
    let mut rejected = Vec::new();
    for n in 1..=2 {
        let order = world.reserve(&sale, n, "u", 1).await.unwrap();
        world.database.reject(&order, RejectReason::Unwritable).await.unwrap();
        rejected.push(order);
        world.advance(1_000);
    }
    let kept = world.reserve(&sale, 3, "u", 1).await.unwrap();
    world.database.settle(vec![kept]).await.unwrap();
    let since = |ms: u64| Rejected::since(&world.database, &sale, Timestamp(ms));
    let all = since(0).await.unwrap();
    assert_eq!((all.orders, all.named.len()), (2, 2));
    let fault = all.fault().unwrap();
    assert!(fault.contains(&format!("{} (unwritable)", order_id(1))), "{fault}");
    let later = since(START_MS + 500).await.unwrap();
    assert_eq!((later.orders, later.named[0].order_id), (1, order_id(2)));
    assert_eq!(since(START_MS + 5_000).await.unwrap().fault(), None);
    // Those of a sale that the database has not are no less broken.
    let strange = rejected[0].clone();
    let strange = stock::Reservation { order_id: order_id(9), sale: "nowhere".parse().unwrap(), ..strange };
    world.database.reject(&strange, RejectReason::Unwritable).await.unwrap();
    let named = world.database.sales_named().await.unwrap();
    assert_eq!(named, ["nowhere".parse::<SaleId>().unwrap(), sale]);
    let [SaleBooks { total: None, rejected: 1, .. }] =
        world.database.books(Some(&named[0])).await.unwrap()[..]
    else {
        panic!("the books of a sale without a row")
    };
}

/// Every pending order of a process, looked for in its log.
async fn accounts(process: &Process, sale: &SaleId, logs: &[&Queue]) -> Accounts {
    let pending = process.world.stock.pending(sale, None, None, 512).await.unwrap();
    let pending = pending.iter().map(|(_, reservation)| LongPending {
        order_id: reservation.order_id,
        quantity: reservation.quantity,
    });
    let mut topics = Vec::new();
    for log in logs {
        topics.push((Owner(log.instance()), log.topic("floodgate-orders").await.unwrap()));
    }
    account_for(&process.world.database, &topics, pending.collect()).await.unwrap()
}

#[tokio::test]
async fn pending_orders_are_in_a_log_or_a_row_or_named() {
    let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::new();
    let sale = world.publish("s", 100, 1).await;
    let process = Process::start(world, directories.0.path()).await;
    let here = &process.queue;
    process.promise_all(&sale, 1..11, |n| n, 1).await;
    let found = accounts(&process, &sale, &[here]).await;
    assert_eq!((found.waiting, found.faults(), found.gap()), (10, vec![], None), "nobody has drained yet");

    // Three are drained: a row whose confirm was lost, a dead letter, and one that another database has.
    let mut group = process.topic.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap();
    let messages = group.pull(3, std::time::Duration::ZERO).await.unwrap();
    let orders: Vec<_> = messages.iter().map(|m| stock::Reservation::decode(&m.payload).unwrap()).collect();
    process.world.database.settle(vec![orders[0].clone()]).await.unwrap();
    group.dead_letter(&messages[1], "refused").await.unwrap();
    group.commit(messages[2].position).await.unwrap();
    // And one that its gateway never appended.
    process.world.reserve(&sale, 11, "u11", 1).await.unwrap();
    let found = accounts(&process, &sale, &[here]).await;
    assert_eq!((found.waiting, found.rows, found.not_asked), (7, 1, 0));
    let named = |group: &order_worker::OrderGroup| {
        assert_eq!((group.orders, group.units), (1, 1), "{group:?}");
        (group.named[0].order_id, group.named[0].log.clone())
    };
    let log = Some(Owner(here.instance()).to_string());
    assert_eq!(named(&found.dead_letters), (orders[1].order_id, log.clone()));
    assert_eq!(named(&found.drained_without_row), (orders[2].order_id, log));
    assert_eq!(named(&found.nowhere), (order_id(11), None));
    assert_eq!(found.faults().len(), 2, "{:?}", found.faults());
    assert!(found.gap().unwrap().contains(&order_id(11).to_string()));

    // It stands in a neighbour's log, who took it for a dead one's.
    let neighbour = Process::start_closed(process.world.neighbour(), directories.1.path()).await;
    let pending = process.world.stock.pending(&sale, None, None, 512).await.unwrap();
    let taken = pending.iter().find(|(_, reservation)| reservation.order_id == order_id(11)).unwrap();
    neighbour.append(&taken.1.encode().unwrap()).await;
    let found = accounts(&process, &sale, &[here, &neighbour.queue]).await;
    assert_eq!((found.waiting, found.gap()), (8, None));
    // Without the log that has the seven they are nowhere.
    let found = accounts(&process, &sale, &[&neighbour.queue]).await;
    assert_eq!((found.waiting, found.rows, found.nowhere.orders), (1, 1, 9));
    drop(group);
    neighbour.end().await;
    process.end().await;
}
