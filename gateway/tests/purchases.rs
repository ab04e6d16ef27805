//! The purchase path below HTTP, in one thread: thousands at once, repeats, buyers who leave, what a crash left behind.

mod support;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use gateway::purchase::{Attempt, PurchaseAnswer, Purchases};
use stock::ledger::{ReserveBatch, ReserveRequest};
use stock::{FlagState, FlagVersion, OrderId, Owner};
use support::{Options, SALE, Site, now_ms};
use tokio::sync::watch;

fn attempt<'a>(pass: &'a str, quantity: u32) -> Attempt<'a> {
    Attempt { sale: SALE, pass: Some(pass), quantity, metadata: None, sale_version: None, address: None }
}

/// Runs `work` beside the batcher, on the test's own thread.
fn with_batcher<T>(site: &Site, work: impl AsyncFnOnce(&Purchases) -> T) -> T {
    let purchases = Arc::new(site.gateway.purchases());
    let (end, ended) = watch::channel(false);
    let work = async {
        let result = work(&purchases).await;
        end.send_replace(true);
        result
    };
    let both = async { tokio::join!(purchases.run(ended), work).1 };
    let limited = async { tokio::time::timeout(Duration::from_secs(60), both).await };
    site.runtime.block_on(limited).expect("answered in time")
}

#[test]
fn ten_thousand_at_once() {
    let mut options = Options::default();
    options.sale.total = 1_000;
    options.sale.per_user_limit = 1;
    // Every one of them holds a permit, and so room in the ring and on the disk, at the same time.
    options.segment_bytes = 64 << 20;
    options.ring_bytes = 32 << 20;
    let site = Site::start(options);
    // A place of one's own counts records, of which recovery must add none.
    site.await_recovered();
    let passes: Vec<_> = (0..10_000).map(|n| site.pass(&format!("user-{n}"))).collect();
    let answers = with_batcher(&site, async |purchases| {
        join_all(passes.iter().map(|(pass, _)| purchases.purchase(attempt(pass, 1)))).await
    });
    let promised: BTreeSet<OrderId> = answers
        .iter()
        .filter_map(|answer| match answer {
            PurchaseAnswer::Accepted { order_id, .. } => Some(*order_id),
            _ => None,
        })
        .collect();
    let sold_out = answers.iter().filter(|answer| **answer == PurchaseAnswer::SoldOut).count();
    assert_eq!((promised.len(), sold_out), (1_000, 9_000));
    let logged: Vec<_> = site.log().iter().map(|reservation| reservation.order_id).collect();
    assert_eq!(logged.len(), 1_000);
    assert_eq!(logged.into_iter().collect::<BTreeSet<_>>(), promised);
    let books = site.snapshot();
    assert_eq!((books.remaining, books.pending), (0, 1_000));
    let positions: BTreeSet<_> = answers
        .iter()
        .filter_map(|answer| match answer {
            PurchaseAnswer::Accepted { estimate, .. } => estimate.position,
            _ => None,
        })
        .collect();
    assert_eq!(positions, (0..1_000).collect(), "everybody has a place of their own");
    // They went together: far fewer calls than buyers.
    let metrics = site.admin().get("/metrics", &[]).text();
    let calls = metrics.lines().find_map(|l| l.strip_prefix("floodgate_ledger_batch_size_count "));
    let calls: u64 = calls.expect("a count").parse().expect("a number");
    assert!(calls <= 40, "{calls} ledger calls");
}

#[test]
fn a_disk_that_hangs_holds_no_buyer_for_long() {
    let site = Site::start(Options::default());
    let (pass, order_id) = site.pass("alice");
    let purchases = site.gateway.purchases();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    // Nobody polls the batcher: as far as the buyer can tell, the same as a ledger or a disk that hangs.
    let answer = runtime.expect("a runtime").block_on(async {
        tokio::time::timeout(Duration::from_secs(60), purchases.purchase(attempt(&pass, 1))).await
    });
    assert_eq!(answer.expect("an answer"), PurchaseAnswer::Uncertain { order_id });
}

#[test]
fn the_same_pass_at_once_is_one_order() {
    let site = Site::start(Options::default());
    let (pass, order_id) = site.pass("alice");
    let answers = with_batcher(&site, async |purchases| {
        join_all((0..200).map(|_| purchases.purchase(attempt(&pass, 2)))).await
    });
    let same = |answer: &PurchaseAnswer| matches!(answer, PurchaseAnswer::Accepted { order_id: id, .. } if *id == order_id);
    assert!(answers.iter().all(same), "{answers:?}");
    assert_eq!((site.snapshot().pending, site.snapshot().remaining), (2, 98));
    assert!(site.log().iter().all(|r| r.order_id == order_id && r.quantity == 2));
}

#[test]
fn a_buyer_who_leaves_still_gets_the_order() {
    let site = Site::start(Options::default());
    let passes: Vec<_> = (0..50).map(|n| site.pass(&format!("user-{n}"))).collect();
    with_batcher(&site, async |purchases| {
        for (pass, _) in &passes {
            // One poll hands it to the batcher, then the future is gone.
            assert_eq!(purchases.purchase(attempt(pass, 1)).now_or_never(), None);
        }
    });
    let logged: BTreeSet<_> = site.log().iter().map(|r| r.order_id).collect();
    assert_eq!(logged, passes.iter().map(|(_, id)| *id).collect());
    assert_eq!(site.snapshot().pending, 50);
}

#[test]
fn a_full_queue_refuses_before_stock_is_taken() {
    let site = Site::start(Options { backlog_max: 3, ..Options::default() });
    let passes: Vec<_> = (0..10).map(|n| site.pass(&format!("user-{n}"))).collect();
    let answers = with_batcher(&site, async |purchases| {
        join_all(passes.iter().map(|(pass, _)| purchases.purchase(attempt(pass, 1)))).await
    });
    let accepted = answers.iter().filter(|a| matches!(a, PurchaseAnswer::Accepted { .. })).count();
    let busy = answers.iter().filter(|a| **a == PurchaseAnswer::Busy).count();
    assert_eq!((accepted, busy), (3, 7));
    assert_eq!((site.snapshot().pending, site.log().len()), (3, 3));
}

#[test]
fn more_in_flight_than_allowed_are_refused() {
    let mut options = Options::default();
    options.limits.in_flight_max = 5;
    let site = Site::start(options);
    let passes: Vec<_> = (0..8).map(|n| site.pass(&format!("user-{n}"))).collect();
    let answers = with_batcher(&site, async |purchases| {
        join_all(passes.iter().map(|(pass, _)| purchases.purchase(attempt(pass, 1)))).await
    });
    let busy = answers.iter().filter(|a| **a == PurchaseAnswer::Busy).count();
    assert_eq!(busy, 3);
    // The places came back.
    let (pass, _) = site.pass("late");
    assert_eq!(site.buy(&pass, "{}").status, 202);
}

#[test]
fn the_owner_appends_what_a_crash_kept_from_the_log() {
    let mut options = Options::default();
    options.sale.total = 2_000;
    let mut site = Site::start(options);
    // As after a crash between ledger and log: units are pending, for us and for another instance.
    assert!(site.shutdown());
    let reserve = |owner: Owner, order: u128| ReserveBatch {
        sale: SALE.parse().expect("a sale"),
        epoch: 1,
        deadline_ms: now_ms() + 20_000,
        terms_version: 1,
        owner,
        requests: vec![ReserveRequest {
            order_id: OrderId(order),
            user: format!("user-{order}").parse().expect("a user"),
            quantity: 2,
            metadata: Some("from before".into()),
        }],
    };
    let own = Owner(site.queue.instance());
    for order in 1..=700 {
        let batch = reserve(own, order);
        let answer = site.runtime.block_on(site.stock.reserve(&batch));
        assert!(answer.is_ok());
    }
    let foreign = reserve(Owner(own.0 ^ 1), 1_000);
    assert!(site.runtime.block_on(site.stock.reserve(&foreign)).is_ok());

    let (end, ended) = watch::channel(false);
    let gateway = site.gateway.clone();
    let recovered = async {
        for _ in 0..3_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if gateway.recovered() {
                break;
            }
        }
        end.send_replace(true);
    };
    site.runtime.block_on(both(gateway.background(ended), recovered));
    let log = site.log();
    assert_eq!(log.len(), 700, "everything of ours over several pages, nothing of the other's");
    assert!(log.iter().all(|r| r.order_id.0 < 1_000 && r.metadata.as_deref() == Some("from before")));
}

#[test]
fn a_sold_out_flag_of_a_life_that_the_ledger_never_had_is_dropped() {
    let site = Site::start(Options::default());
    // As left in the flag's store by a database that was put back or made anew.
    let stale = FlagState { sold_out: true, version: FlagVersion { epoch: 7, counter: 3 } };
    let sale = SALE.parse().expect("a sale");
    site.runtime.block_on(site.stock.flag().publish(&sale, stale)).expect("published");
    let (pass, _) = site.pass("alice");
    site.buy(&pass, "{}").is(410, "sold-out");
    let bought = (0..1_500).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        site.buy(&pass, "{}").status == 202
    });
    assert!(bought, "units are left, and nobody can buy them");
}

async fn both(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::join!(one, other);
}
