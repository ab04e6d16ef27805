//! What the ledger was not told, or was told twice, or too late: relay and reconciler make it equal to the database.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use order_worker::database::{Begun, By, DatabaseError, Outcome, RejectReason};
use order_worker::{DrainConfig, Pace, ReconcileError, Relay, bring};
use prometheus_client::registry::Registry;
use stock::ledger::{IdState, ReserveBatch, ReserveOutcome, ReserveRequest, Settlement};
use stock::{EmbeddedFlag, EmbeddedLedger, Flag, Ledger, LedgerError, Reservation, Stock};
use tokio::sync::watch;
use world::{OWNER, UNSEEN, World, author, order_id, sale_id};

#[tokio::test]
async fn a_cancelled_order_gives_its_units_back_and_lifts_the_flag() {
    let world = World::new();
    let sale = world.open("s", 2, 2).await;
    let order = world.reserve(&sale, 1, "u", 2).await.unwrap();
    world.database.settle(vec![order.clone()]).await.unwrap();
    assert!(world.stock.flag().cell(&sale).read().unwrap().sold_out);
    world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    world.relay().pass().await.unwrap();
    assert_eq!(world.units(&sale).await, (2, 0, 0));
    assert!(!world.stock.flag().cell(&sale).read().unwrap().sold_out);
    assert_eq!(world.database.releases_outstanding().await.unwrap(), 0);
    assert_eq!(world.reserve(&sale, 1, "u", 2).await, Err(ReserveOutcome::PassUsed));
    world.reserve(&sale, 2, "u", 2).await.unwrap();
    assert!((world.metric("floodgate_releases_relayed_total") - 1.0).abs() < 0.1);
}

#[tokio::test(start_paused = true)]
async fn the_running_relay_is_woken_by_a_release_and_stopped_by_shutdown() {
    let world = World::new();
    let sale = world.open("s", 1, 1).await;
    let order = world.reserve(&sale, 1, "u", 1).await.unwrap();
    world.database.settle(vec![order]).await.unwrap();
    let (shutdown, down) = watch::channel(false);
    let relay = tokio::spawn(world.relay().run(down));
    // Paused time goes on when everybody waits: the relay has looked, and would look again much later.
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.units(&sale).await, (1, 0, 0), "not within a tenth of its interval");
    shutdown.send_replace(true);
    relay.await.unwrap();
}

#[tokio::test]
async fn a_release_that_the_ledger_does_not_take_stays_and_holds_up_no_other() {
    let world = World::new();
    let gone = world.publish("a-gone", 9, 9).await;
    let sale = world.open("s", 9, 9).await;
    let (first, second) = (world.reserve(&sale, 2, "u", 1).await.unwrap(), {
        let mut other = world.reserve(&sale, 1, "u", 1).await.unwrap();
        other.sale = gone.clone();
        other
    });
    world.database.settle(vec![first, second]).await.unwrap();
    world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    world.database.cancel(order_id(2), By::Operator(&author())).await.unwrap();
    world.relay().pass().await.unwrap();
    let left = world.database.releases(None, &[], 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].0, gone, "the ledger has not heard of it yet");
    bring(&world.database, &world.stock, &gone).await.unwrap();
    world.relay().pass().await.unwrap();
    assert_eq!(world.database.releases_outstanding().await.unwrap(), 0);
    assert_eq!(world.units(&gone).await, (9, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_no_ledger_takes_is_tried_less_and_less_often() {
    let world = World::new();
    let gone = world.publish("a-gone", 9, 9).await;
    let sale = world.open("s", 9, 9).await;
    let order = world.reserve(&sale, 1, "u", 1).await.unwrap();
    let elsewhere = Reservation { order_id: order_id(2), sale: gone.clone(), ..order.clone() };
    world.database.settle(vec![order, elsewhere]).await.unwrap();
    world.database.cancel(order_id(2), By::Operator(&author())).await.unwrap();
    let refused = || world.counter("floodgate_ledger_calls_total{call=\"release\",outcome=\"unknown_sale\"}");
    let (shutdown, down) = watch::channel(false);
    let relay = tokio::spawn(world.relay().run(down));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let tries = refused();
    assert!((5..=90).contains(&tries), "{tries} tries in 10 minutes");
    assert!((world.metric("floodgate_releases_refused_sales") - 1.0).abs() < 0.1);
    // Others are as quick as ever.
    world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((world.units(&sale).await, refused()), ((9, 0, 0), tries));

    bring(&world.database, &world.stock, &gone).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.database.releases_outstanding().await.unwrap(), 0);
    assert!(world.metric("floodgate_releases_refused_sales").abs() < 0.1);
    shutdown.send_replace(true);
    relay.await.unwrap();
}

#[tokio::test]
async fn a_release_of_a_sale_that_no_ledger_will_hold_again_is_done() {
    let world = World::new();
    let sale = world.open("s", 9, 9).await;
    let mut order = world.reserve(&sale, 1, "u", 1).await.unwrap();
    order.sale = sale_id("nowhere");
    let settled = world.database.reject(&order, RejectReason::Unwritable).await.unwrap();
    assert_eq!(settled.outcome, Outcome::Rejected(RejectReason::Unwritable));
    world.relay().pass().await.unwrap();
    assert_eq!(world.database.releases_outstanding().await.unwrap(), 0);
}

#[tokio::test]
async fn a_release_that_only_a_replaced_ledger_has_heard_stays() {
    let world = World::new();
    let sale = world.open("s", 2, 2).await;
    let order = world.reserve(&sale, 1, "u", 2).await.unwrap();
    world.database.settle(vec![order]).await.unwrap();
    // Another server holds the present life, and read the order as held; this process still speaks with the old one.
    let present = EmbeddedLedger::new(world.now());
    let mut registry = Registry::default();
    let present = Stock::new(Ledger::Embedded(present), Flag::Embedded(EmbeddedFlag::new(2)), &mut registry);
    assert_eq!(world.database.next_epoch_after(1, &[], UNSEEN).await.unwrap(), Begun::Epoch(2));
    let row = world.database.sale(&sale).await.unwrap().unwrap();
    present.install(&row.ledger_version(), 2).await.unwrap();
    let held = Settlement { order_id: order_id(1), user: "u".parse().unwrap(), quantity: 2 };
    present.confirm(&sale, &[held]).await.unwrap();
    world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    world.relay().pass().await.unwrap();
    assert_eq!(
        world.database.releases_outstanding().await.unwrap(),
        1,
        "the present life has not heard of it"
    );

    let mut relay = Relay::new(world.database.clone(), Arc::new(present), world.metrics.clone());
    relay.pass().await.unwrap();
    assert_eq!(world.database.releases_outstanding().await.unwrap(), 0);
}

#[tokio::test]
async fn a_relay_that_fails_at_any_step_repeats_without_harm() {
    for step in ["relay.read", "relay.released", "database.begin", "database.commit", "database.committed"] {
        let world = World::new();
        let sale = world.open("s", 3, 3).await;
        for n in 0..3 {
            let order = world.reserve(&sale, n, "u", 1).await.unwrap();
            world.database.settle(vec![order]).await.unwrap();
        }
        world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
        {
            let _hook = world::fail(step, 1);
            let _ = world.relay().pass().await;
        }
        world.relay().pass().await.unwrap();
        assert_eq!(world.database.releases_outstanding().await.unwrap(), 0, "{step}");
        let (remaining, ..) = world.units(&sale).await;
        assert_eq!(remaining, 1, "{step}");
    }
}

#[tokio::test]
async fn lost_confirmations_are_found_after_the_grace_period() {
    let world = World::new();
    let sale = world.open("s", 9, 9).await;
    let held = world.reserve(&sale, 1, "u", 2).await.unwrap();
    let rejected = world.reserve(&sale, 2, "v", 1).await.unwrap();
    let promised = world.reserve(&sale, 3, "w", 1).await.unwrap();
    world.database.settle(vec![held]).await.unwrap();
    world.database.reject(&rejected, RejectReason::Unwritable).await.unwrap();
    world.reconciler().pass().await.unwrap();
    assert_eq!(world.units(&sale).await, (5, 4, 0), "young ids are left alone");
    world.advance(10_000);
    world.reconciler().pass().await.unwrap();
    assert_eq!(world.units(&sale).await, (6, 1, 2));
    assert!((world.metric("floodgate_pending_orders_without_row") - 1.0).abs() < 0.1);
    let ids = [order_id(1), order_id(2), order_id(3), order_id(4)];
    let states = world.stock.states(&sale, &ids).await.unwrap();
    assert_eq!(states, [IdState::Confirmed, IdState::Released, IdState::Pending, IdState::Absent]);
    for _ in 0..5 {
        world.advance(3_600_000);
        world.reconciler().pass().await.unwrap();
    }
    assert_eq!(world.units(&sale).await.1, 1, "units never come back by a timer alone");
    world.database.settle(vec![promised]).await.unwrap();
    world.reconciler().pass().await.unwrap();
    assert_eq!(world.units(&sale).await, (6, 0, 3));
    world.reconciler().pass().await.unwrap();
    assert!(world.metric("floodgate_pending_orders_without_row").abs() < 0.1);
    assert!((world.metric("floodgate_reconciled_orders_total{found=\"confirmed\"}") - 2.0).abs() < 0.1);
}

#[tokio::test]
async fn what_a_pass_could_not_look_at_keeps_its_figure() {
    let world = World::new();
    let (sale, other) = (world.open("s", 9, 9).await, world.open("t", 9, 9).await);
    world.reserve(&sale, 1, "u", 1).await.unwrap();
    world.reserve(&sale, 2, "u", 1).await.unwrap();
    world.reserve(&other, 3, "u", 1).await.unwrap();
    world.advance(10_000);
    let without_row = || world.metric("floodgate_pending_orders_without_row").round() as i64;
    let mut reconciler = world.reconciler();
    reconciler.pass().await.unwrap();
    assert_eq!(without_row(), 3);

    // One sale is lost and not rebuilt yet: nobody can say that its orders have become rows.
    world.stock.forget(&sale).await.unwrap();
    let moved = world.reserve(&other, 4, "u", 1).await.unwrap();
    world.advance(10_000);
    for _ in 0..3 {
        reconciler.pass().await.unwrap();
    }
    assert_eq!(without_row(), 4);
    world.database.settle(vec![moved]).await.unwrap();
    reconciler.pass().await.unwrap();
    assert_eq!(without_row(), 3, "what could be looked at is up to date");
}

#[tokio::test]
async fn more_pending_ids_than_a_page_are_all_looked_up() {
    let world = World::new();
    let sale = world.open("s", 2_000, 1).await;
    let mut orders = Vec::new();
    for n in 0..1_100 {
        orders.push(world.reserve(&sale, n, &format!("u{n}"), 1).await.unwrap());
    }
    world.database.settle(orders).await.unwrap();
    world.advance(10_000);
    world.reconciler().pass().await.unwrap();
    assert_eq!(world.units(&sale).await, (900, 0, 1_100));
}

#[tokio::test]
async fn rows_are_brought_to_the_ledger_until_equal() {
    let world = World::new();
    world.begin().await;
    let sale = world.publish("s", 2, 2).await;
    world.reconciler().pass().await.unwrap();
    let snapshot = world.snapshot(&sale).await;
    assert!(snapshot.open && !snapshot.paused && snapshot.total == 2);
    assert!(world.database.sale(&sale).await.unwrap().unwrap().was_opened());

    world.reserve(&sale, 1, "u", 2).await.unwrap();
    world.database.restock(&sale, "r", 3, &author()).await.unwrap();
    world.reconciler().pass().await.unwrap();
    assert_eq!(world.units(&sale).await, (3, 2, 0));
    assert!(!world.stock.flag().cell(&sale).read().unwrap().sold_out, "a restock lifts the flag");

    world.database.pause(&sale, "alice", &author()).await.unwrap();
    bring(&world.database, &world.stock, &sale).await.unwrap();
    assert_eq!(world.reserve(&sale, 2, "v", 1).await, Err(ReserveOutcome::Paused));
    world.database.resume(&sale, &author()).await.unwrap();
    bring(&world.database, &world.stock, &sale).await.unwrap();
    world.reserve(&sale, 2, "v", 1).await.unwrap();
    world.database.end_now(&sale, &author()).await.unwrap();
    bring(&world.database, &world.stock, &sale).await.unwrap();
    assert_eq!(world.reserve(&sale, 3, "w", 1).await, Err(ReserveOutcome::Ended));

    let unknown = bring(&world.database, &world.stock, &sale_id("nowhere")).await.unwrap_err();
    assert!(matches!(unknown, ReconcileError::Database(DatabaseError::UnknownSale(_))), "{unknown:?}");
}

#[tokio::test]
async fn before_the_first_life_nothing_is_brought() {
    let world = World::new();
    let sale = world.publish("s", 2, 2).await;
    let early = bring(&world.database, &world.stock, &sale).await.unwrap_err();
    assert!(matches!(early, ReconcileError::Ledger(LedgerError::Closed)), "{early:?}");
    assert!(early.is_retryable());
    world.begin().await;
    bring(&world.database, &world.stock, &sale).await.unwrap();
    assert!(world.snapshot(&sale).await.open);
}

#[tokio::test]
async fn a_sale_that_was_open_is_never_installed_empty() {
    let world = World::new();
    let sale = world.open("s", 2, 2).await;
    world.reserve(&sale, 1, "u", 1).await.unwrap();
    let world = world.restart();
    let amnesia = bring(&world.database, &world.stock, &sale).await.unwrap_err();
    assert!(matches!(amnesia, ReconcileError::Ledger(LedgerError::UnknownSale(_))), "{amnesia:?}");
    world.reconciler().pass().await.unwrap();
    assert!(world.stock.snapshot(&sale).await.is_err());
}

#[tokio::test]
async fn a_crash_between_remembering_and_opening_needs_a_rebuild_not_a_guess() {
    let world = World::new();
    world.begin().await;
    let sale = world.publish("s", 2, 2).await;
    let crashed = {
        let _hook = world::crash("reconciler.marked_opened", 1);
        let (database, stock, sale) = (world.database.clone(), world.stock.clone(), sale.clone());
        tokio::spawn(async move { bring(&database, &stock, &sale).await }).await
    };
    assert!(crashed.unwrap_err().is_panic());
    assert!(!world.snapshot(&sale).await.open);
    let world = world.restart();
    assert!(bring(&world.database, &world.stock, &sale).await.is_err());
}

#[tokio::test]
async fn an_ended_sale_settles_once_nothing_is_outstanding_and_is_forgotten() {
    let world = World::new();
    let sale = world.open("s", 2, 2).await;
    let order = world.reserve(&sale, 1, "u", 1).await.unwrap();
    world.advance(3_600_000);
    world.reconciler().pass().await.unwrap();
    world.advance(60_000);
    world.reconciler().pass().await.unwrap();
    assert!(!world.database.sale(&sale).await.unwrap().unwrap().settled, "an id is pending");
    world.database.settle(vec![order]).await.unwrap();
    world.reconciler().pass().await.unwrap();
    assert!(!world.database.sale(&sale).await.unwrap().unwrap().settled, "an order is unpaid");
    world.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    world.reconciler().pass().await.unwrap();
    assert!(!world.database.sale(&sale).await.unwrap().unwrap().settled, "a release is owed");
    world.relay().pass().await.unwrap();
    world.reconciler().pass().await.unwrap();
    assert!(world.database.sale(&sale).await.unwrap().unwrap().settled);
    assert!(matches!(world.stock.snapshot(&sale).await, Err(LedgerError::UnknownSale(_))));
}

#[tokio::test]
async fn a_sale_that_its_ledger_still_sells_is_not_settled() {
    let behind_ms = 300_000;
    let world = World::with_slow_ledger(behind_ms);
    let sale = world.open("s", 2, 2).await;
    world.advance(3_600_000 + 60_000);
    world.reconciler().pass().await.unwrap();
    assert!(!world.database.sale(&sale).await.unwrap().unwrap().settled, "its window is not over there");
    // By the ledger's clock, as a gateway reserves.
    let batch = ReserveBatch {
        sale: sale.clone(),
        epoch: world.stock.snapshot(&sale).await.unwrap().epoch,
        deadline_ms: world.stock.now_ms_of(&sale).await.unwrap() + 500,
        terms_version: 1,
        owner: OWNER,
        requests: vec![ReserveRequest {
            order_id: order_id(1),
            user: "u".parse().unwrap(),
            quantity: 1,
            metadata: None,
        }],
    };
    let reserved = world.stock.reserve(&batch).await.unwrap().outcomes;
    assert!(matches!(reserved[..], [ReserveOutcome::Pending { .. }]), "{reserved:?}");
    let cancelled = Settlement { order_id: order_id(1), user: "u".parse().unwrap(), quantity: 1 };
    world.stock.release(&sale, &[cancelled]).await.unwrap();
    world.advance(behind_ms);
    world.reconciler().pass().await.unwrap();
    assert!(!world.database.sale(&sale).await.unwrap().unwrap().settled, "nobody knows which clock is right");
    assert!((world.metric("floodgate_clocks_apart") - 1.0).abs() < 0.1);

    let world = World::with_slow_ledger(4_000);
    let sale = world.open("s", 2, 2).await;
    world.advance(3_600_000 + 60_000);
    world.reconciler().pass().await.unwrap();
    assert!(!world.database.sale(&sale).await.unwrap().unwrap().settled, "not over by the later clock");
    world.advance(4_000);
    world.reconciler().pass().await.unwrap();
    assert!(world.database.sale(&sale).await.unwrap().unwrap().settled);
}

#[tokio::test]
async fn queued_orders_are_not_looked_up_again_and_again() {
    // Of a log that this process drains, and of one that it does not.
    for (drained_here, most) in [(true, 0), (false, 64 * 5)] {
        let world = World::new();
        let sale = world.open("s", 6_000, 1).await;
        for n in 0..6_000 {
            world.reserve(&sale, n, &format!("u{n}"), 1).await.unwrap();
        }
        let pace = Arc::new(Pace::new(&DrainConfig::default()));
        let _drain = drained_here.then(|| pace.enter(OWNER));
        let mut reconciler = world.reconciler_beside(pace);
        for _ in 0..20 {
            world.advance(1_000);
            reconciler.pass().await.unwrap();
        }
        let looked_up = world.counter("floodgate_reconciled_orders_total{found=\"absent\"}");
        assert!(
            looked_up <= most,
            "{looked_up} look-ups in 20 s of 6,000 queued orders; drained here: {drained_here}"
        );
    }
}

#[tokio::test]
async fn behind_the_drain_rows_are_confirmed_while_the_rest_waits() {
    let world = World::new();
    let sale = world.open("s", 6_000, 1).await;
    let mut orders = Vec::new();
    for n in 0..6_000 {
        orders.push(world.reserve(&sale, n, &format!("u{n}"), 1).await.unwrap());
        world.advance(10);
    }
    // Ten seconds' worth are rows of which the ledger was not told; the drain knows how far it has come.
    for batch in orders[..1_000].chunks(256) {
        world.database.settle(batch).await.unwrap();
    }
    world.drain.has_settled_through(orders[999].reserved_at_ms);
    let mut reconciler = world.reconciler();
    for _ in 0..10 {
        reconciler.pass().await.unwrap();
    }
    // The last three seconds' worth are still on their usual way.
    assert_eq!(world.units(&sale).await, (0, 5_300, 700));
    assert_eq!(world.counter("floodgate_reconciled_orders_total{found=\"absent\"}"), 0);
    world.drain.has_settled_everything();
    for _ in 0..10 {
        reconciler.pass().await.unwrap();
    }
    assert_eq!(world.units(&sale).await, (0, 5_000, 1_000));
}

#[tokio::test]
async fn a_log_that_nobody_drains_any_more_comes_to_rest() {
    let world = World::new();
    let sale = world.open("s", 20_000, 1).await;
    let mut orders = Vec::new();
    for n in 0..20_000 {
        orders.push(world.reserve(&sale, n, &format!("u{n}"), 1).await.unwrap());
    }
    for batch in orders.chunks(512) {
        world.database.settle(batch).await.unwrap();
    }
    // Its worker is gone for good, and has told the ledger of nothing: another one, which drains other logs, does.
    let pace = Arc::new(Pace::new(&DrainConfig::default()));
    let mut reconciler = world.reconciler_beside(pace);
    for _ in 0..50 {
        world.advance(1_000);
        reconciler.pass().await.unwrap();
    }
    assert_eq!(world.units(&sale).await, (0, 0, 20_000));
}

#[tokio::test]
async fn ended_sales_cost_next_to_nothing() {
    let world = World::new();
    // Half of them have an order that nobody ever pays, and never settle.
    for n in 0..80 {
        let sale = world.open(&format!("s{n:02}"), 2, 2).await;
        if n % 2 == 0 {
            let order = world.reserve(&sale, n, "u", 1).await.unwrap();
            world.database.settle(vec![order]).await.unwrap();
        }
    }
    world.advance(3_700_000);
    let mut reconciler = world.reconciler();
    for _ in 0..20 {
        reconciler.pass().await.unwrap();
    }
    let unsettled = world.database.sales().await.unwrap().iter().filter(|row| !row.settled).count();
    assert_eq!(unsettled, 40);
    let transactions = Arc::new(AtomicU64::new(0));
    let _hook = world::count_in("database.", &transactions);
    let calls = world.sum("floodgate_ledger_calls_total");
    for _ in 0..100 {
        reconciler.pass().await.unwrap();
    }
    let (calls, transactions) =
        (world.sum("floodgate_ledger_calls_total") - calls, transactions.load(Ordering::Relaxed));
    // A second: the sales, once; four of them, in turn, each with the time of its server.
    assert!(calls <= 800, "{calls} calls on the ledger in 100 s");
    assert!(transactions <= 100 + 3 * 800, "{transactions} steps of transactions in 100 s");
}
