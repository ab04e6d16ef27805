//! What nobody pays is closed: by its deadline's message, or, where no log has that, by the index; once, and never before its time.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use order_worker::database::{By, Capture, Disposition};
use order_worker::{
    Closing, ClosingParts, DrainConfig, GetTopic, Shop, TIMEOUTS_TOPIC, Timeouts, Worker, WorkerParts,
    join_payments,
};
use queue::{NewRecord, Topic};
use stock::{OrderStatus, SaleId};
use tokio::sync::watch;
use world::process::Process;
use world::{World, author, order_id, reservation};

const PAY_WITHIN_MS: u64 = 900_000;

/// A closing over `topic`, `grace_ms` after each deadline.
fn closing(world: &World, topic: Option<Topic>, grace_ms: u64) -> (Arc<Closing>, Timeouts) {
    let topic: GetTopic = Arc::new(move || topic.clone());
    let timeouts = Timeouts::new(topic, grace_ms, &world.metrics);
    let closing = Closing::new(ClosingParts {
        database: world.database.clone(),
        stock: world.stock.clone(),
        timeouts: timeouts.clone(),
        shop: Shop::default(),
        budget: DrainConfig::default(),
        now: world.now(),
        metrics: world.metrics.clone(),
    });
    (Arc::new(closing), timeouts)
}

/// The process's drain, with deadlines kept in its own log.
async fn worker(process: &Process, timeouts: Timeouts) -> Worker {
    let parts = process.worker_parts(100_000).await;
    Worker::new(WorkerParts { timeouts, ..parts }, process.shutdown.subscribe())
}

fn capture(n: u64) -> Capture {
    Capture {
        provider: "sandbox".into(),
        payment_id: format!("t{n}"),
        order_id: Some(order_id(n)),
        trade_ref: order_id(n).to_string(),
        amount: 206_640,
        currency: "CNY".into(),
        paid_at: None,
    }
}

fn closed_by(world: &World, found: &str) -> u64 {
    world.counted(&format!("floodgate_closed_orders_total{{found=\"{found}\"}}")) as u64
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("not within a minute");
}

async fn statuses<const N: usize>(world: &World, orders: [u64; N]) -> [OrderStatus; N] {
    let ids = orders.map(order_id);
    let standings = world.database.statuses(&ids).await.unwrap();
    let standings: Vec<_> = standings.into_iter().map(|standing| standing.unwrap().status).collect();
    standings.try_into().unwrap()
}

use OrderStatus::{Closed, Paid, Refunding, Unpaid};

async fn promised(process: &Process, orders: std::ops::Range<u64>) -> SaleId {
    let sale = process.world.open("s", 10, 10).await;
    for n in orders {
        process.promise(&sale, n, "u", 1).await.unwrap();
    }
    sale
}

#[tokio::test]
async fn each_deadline_closes_its_order_at_its_time_and_the_units_are_on_sale_again() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(World::new(), directory.path()).await;
    let sale = promised(&process, 1..4).await;
    let topic = process.queue.topic(TIMEOUTS_TOPIC).await.unwrap();
    let grace_ms = 1_000;
    // The drain knows nothing of the grace: each message comes before the row lets it close, and comes again.
    let (_, early) = closing(&process.world, Some(topic.clone()), 0);
    let (closing, _) = closing(&process.world, Some(topic.clone()), grace_ms);
    let drain = tokio::spawn(worker(&process, early).await.run());
    process.drained(&sale).await;
    assert_eq!(topic.read(None, 10).await.unwrap().len(), 3, "a deadline each");
    let kept = process.world.database.capture(&capture(2)).await.unwrap();
    assert_eq!(kept.disposition, Disposition::Kept);

    let closer = tokio::spawn({
        let (closing, down) = (closing.clone(), process.shutdown.subscribe());
        async move { closing.by_message(down).await }
    });
    process.world.advance(PAY_WITHIN_MS - 1);
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(statuses(&process.world, [1, 2, 3]).await, [Unpaid, Paid, Unpaid], "not before its time");
    process.world.advance(1);
    let lag = async || topic.lag("closing").await.map_or(3, |lag| lag.records);
    until(async || lag().await == 2).await;
    assert_eq!(statuses(&process.world, [1, 2, 3]).await, [Unpaid, Paid, Unpaid], "the grace is not over");
    process.world.advance(grace_ms);
    until(async || statuses(&process.world, [1, 2, 3]).await == [Closed, Paid, Closed]).await;
    until(async || lag().await == 0).await;
    assert_eq!((closed_by(&process.world, "message"), closed_by(&process.world, "sweep")), (2, 0));

    process.world.relay().pass().await.unwrap();
    assert_eq!(process.world.units(&sale).await, (9, 0, 1));
    assert!(process.audit().await.sales.iter().all(|sale| sale.broken.is_empty()));
    process.shutdown.send_replace(true);
    closer.await.unwrap();
    process.stop(drain).await;
}

#[tokio::test]
async fn a_repeated_batch_moves_no_deadline_and_what_is_no_deadline_holds_up_none() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(World::new(), directory.path()).await;
    let sale = promised(&process, 1..3).await;
    let topic = process.queue.topic(TIMEOUTS_TOPIC).await.unwrap();
    let (closing, timeouts) = closing(&process.world, Some(topic.clone()), 0);
    let drain = tokio::spawn(worker(&process, timeouts).await.run());
    process.drained(&sale).await;
    // Much later the same records again: duplicates, whose deadlines are the rows'.
    process.world.advance(PAY_WITHIN_MS - 10);
    let orders = process.topic.read(None, 10).await.unwrap();
    for order in &orders {
        process.append(&order.payload).await;
    }
    process.drained(&sale).await;
    let due = |message: &queue::Message| message.deliver_at_ms;
    let deadlines: Vec<_> = topic.read(None, 10).await.unwrap().iter().map(due).collect();
    assert_eq!((deadlines.len(), deadlines[0]), (4, deadlines[2]), "the batch was repeated whole");
    for payload in [&b"{}"[..], b"{\"v\":2}"] {
        let permit = topic.try_permit(payload.len()).unwrap();
        let record = NewRecord { key: b"", tag: "", deliver_at_ms: None, payload };
        topic.append(permit, record).await.unwrap();
    }
    process.world.advance(10);
    let closer = tokio::spawn({
        let down = process.shutdown.subscribe();
        async move { closing.by_message(down).await }
    });
    until(async || statuses(&process.world, [1, 2]).await == [Closed, Closed]).await;
    until(async || topic.lag("closing").await.is_ok_and(|lag| lag.records == 0)).await;
    assert_eq!(closed_by(&process.world, "message"), 2, "each once");
    assert_eq!(process.world.metric("floodgate_order_dead_letters_total") as u64, 2);
    process.shutdown.send_replace(true);
    closer.await.unwrap();
    process.stop(drain).await;
}

#[tokio::test]
async fn deadlines_that_no_log_takes_hold_up_no_drain_and_are_found_by_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(World::new(), directory.path()).await;
    let sale = promised(&process, 1..3).await;
    let (closing, timeouts) = closing(&process.world, None, 0);
    let drain = tokio::spawn(worker(&process, timeouts).await.run());
    process.drained(&sale).await;
    assert_eq!(process.world.metric("floodgate_timeouts_left_total") as u64, 2);
    process.world.database.cancel(order_id(2), By::Operator(&author())).await.unwrap();
    process.world.advance(PAY_WITHIN_MS);
    let sweep = tokio::spawn({
        let down = process.shutdown.subscribe();
        async move { closing.by_index(down).await }
    });
    until(async || statuses(&process.world, [1, 2]).await == [Closed, Closed]).await;
    until(async || closed_by(&process.world, "sweep") == 1).await;
    process.shutdown.send_replace(true);
    sweep.await.unwrap();
    process.stop(drain).await;
}

#[tokio::test]
async fn a_look_that_failed_leaves_its_deadlines_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(World::new(), directory.path()).await;
    let sale = promised(&process, 1..2).await;
    let (closing, timeouts) = closing(&process.world, None, 0);
    let drain = tokio::spawn(worker(&process, timeouts).await.run());
    process.drained(&sale).await;
    process.world.advance(PAY_WITHIN_MS + 1);
    let rename = |from: &str, to: &str| {
        let rename = format!("ALTER TABLE {from} RENAME TO {to}");
        process.world.connection.with(|connection| connection.execute_batch(&rename).unwrap());
    };
    rename("floodgate_orders", "elsewhere");
    let sweep = tokio::spawn({
        let down = process.shutdown.subscribe();
        async move { closing.by_index(down).await }
    });
    // Longer than one interval: the look after the last deadline has failed.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    rename("elsewhere", "floodgate_orders");
    // Not the minute that the net leaves to a message: no clock moves.
    until(async || statuses(&process.world, [1]).await == [Closed]).await;
    process.shutdown.send_replace(true);
    sweep.await.unwrap();
    process.stop(drain).await;
}

/// Its rows, unpaid.
async fn settled(world: &World, orders: std::ops::Range<u64>) {
    let sale = world.open("s", 10, 10).await;
    for n in orders {
        let order = world.reserve(&sale, n, "u", 1).await.unwrap();
        world.database.settle(vec![order]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_sweep_leaves_a_minute_to_the_message() {
    let world = World::new();
    settled(&world, 1..3).await;
    let (closing, _) = closing(&world, None, 0);
    let (shutdown, down) = watch::channel(false);
    let sweep = tokio::spawn(async move { closing.by_index(down).await });
    world.advance(PAY_WITHIN_MS + 59_999);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(statuses(&world, [1, 2]).await, [Unpaid, Unpaid]);
    world.advance(1);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(statuses(&world, [1, 2]).await, [Closed, Closed]);
    assert_eq!(closed_by(&world, "sweep"), 2, "which says that messages were lost");
    shutdown.send_replace(true);
    sweep.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_closed_while_a_clock_is_wrong() {
    let world = World::with_slow_ledger(6_000);
    // By that ledger's clock the sale has not begun: the row comes from elsewhere.
    world.publish("s", 10, 10).await;
    world.database.settle(vec![reservation("s", 1, "u", 1)]).await.unwrap();
    let (closing, _) = closing(&world, None, 0);
    let (shutdown, down) = watch::channel(false);
    let sweep = tokio::spawn(async move { closing.by_index(down).await });
    world.advance(10 * PAY_WITHIN_MS);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(statuses(&world, [1]).await, [Unpaid]);
    assert_eq!((world.metric("floodgate_clocks_apart") as u64, world.metrics.are_clocks_apart()), (1, true));
    shutdown.send_replace(true);
    sweep.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_payment_that_came_first_finds_its_row_within_two_seconds_and_goes_back_after_its_day() {
    let world = World::new();
    let day_ms = 86_400_000;
    for n in [1, 2] {
        let captured = world.database.capture(&capture(n)).await.unwrap();
        assert_eq!(captured.disposition, Disposition::Unmatched);
    }
    let (shutdown, down) = watch::channel(false);
    let joining = tokio::spawn(join_payments(world.database.clone(), day_ms, down));
    tokio::time::sleep(Duration::from_secs(5)).await;
    settled(&world, 1..2).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(statuses(&world, [1]).await, [Paid]);
    world.advance(day_ms);
    tokio::time::sleep(Duration::from_secs(70)).await;
    let (_, refunds) = world.database.payment("sandbox", "t2").await.unwrap().unwrap();
    assert_eq!(refunds.len(), 1);
    shutdown.send_replace(true);
    joining.await.unwrap();
}

#[tokio::test]
async fn a_withdrawn_sale_is_carried_through_with_what_is_still_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(World::new(), directory.path()).await;
    let sale = promised(&process, 1..4).await;
    let (closing, timeouts) = closing(&process.world, None, 0);
    let drain = tokio::spawn(worker(&process, timeouts).await.run());
    process.drained(&sale).await;
    let kept = process.world.database.capture(&capture(2)).await.unwrap();
    assert_eq!(kept.disposition, Disposition::Kept);

    process.world.database.withdraw(&sale, true, &author()).await.unwrap();
    process.promise(&sale, 4, "u", 1).await.unwrap();
    until(async || process.world.database.order(order_id(4)).await.unwrap().is_some()).await;
    assert_eq!(statuses(&process.world, [1, 2, 3, 4]).await, [Unpaid, Paid, Unpaid, Closed]);

    let down = process.shutdown.subscribe();
    let sweep = tokio::spawn(async move { closing.by_index(down).await });
    let is_done = async || process.world.database.withdrawing().await.unwrap().is_empty();
    until(is_done).await;
    assert_eq!(statuses(&process.world, [1, 2, 3, 4]).await, [Closed, Refunding, Closed, Closed]);
    let refunds = process.world.database.refunds_due(10).await.unwrap();
    let told: Vec<_> = refunds.iter().map(|refund| (refund.whole, refund.reason.as_deref())).collect();
    assert_eq!(told, [(true, Some("withdrawn"))]);
    assert_eq!(closed_by(&process.world, "withdrawal"), 2);

    process.world.relay().pass().await.unwrap();
    assert_eq!(process.world.units(&sale).await, (10, 0, 0));
    assert!(process.audit().await.sales.iter().all(|sale| sale.broken.is_empty()));
    process.shutdown.send_replace(true);
    sweep.await.unwrap();
    process.stop(drain).await;
}
