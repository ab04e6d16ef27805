//! Failpoints and a ledger that loses answers: what is uncertain resolves to exactly one of won and lost.
#![cfg(feature = "simulation")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use gateway::purchase::{Attempt, PurchaseAnswer};
use queue::failpoint;
use queue::{Faults, SimulatedDisk, Storage};
use stock::OrderId;
use support::{Options, SALE, Site};
use tokio::sync::watch;

fn buy_all(site: &Site, passes: &[(String, OrderId)]) -> Vec<PurchaseAnswer> {
    let purchases = Arc::new(site.gateway.purchases());
    let (end, ended) = watch::channel(false);
    let attempt = |pass| Attempt {
        sale: SALE,
        pass: Some(pass),
        quantity: 1,
        metadata: None,
        sale_version: None,
        address: None,
    };
    let work = async {
        let answers = join_all(passes.iter().map(|(pass, _)| purchases.purchase(attempt(pass)))).await;
        end.send_replace(true);
        answers
    };
    site.runtime.block_on(async { tokio::join!(purchases.run(ended), work).1 })
}

/// Fails each step once, in the middle of a crowd; then the same passes again, until everything is certain.
#[test]
fn a_step_that_fails_leaks_nothing() {
    for (name, uncertain) in [
        ("gateway.permitted", false),
        ("gateway.reserving", false),
        ("gateway.reserved", true),
        ("gateway.appending", true),
        ("gateway.appended", true),
        ("gateway.durable", true),
        ("gateway.answered", false),
    ] {
        assert!(gateway::FAILPOINTS.contains(&name));
        let site = Site::start(Options::default());
        let passes: Vec<_> = (0..20).map(|n| site.pass(&format!("user-{n}"))).collect();
        let mut passed = 0;
        failpoint::set_hook(Some(Box::new(move |hit| {
            passed += usize::from(hit == name);
            hit == name && passed == 1
        })));
        let first = buy_all(&site, &passes);
        failpoint::set_hook(None);
        let unsure = first.iter().any(|a| matches!(a, PurchaseAnswer::Uncertain { .. }));
        assert_eq!(unsure, uncertain, "{name}: {first:?}");

        // The site's own background recovers what the failed step left.
        let healed = (0..3_000).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            site.gateway.recovered() && site.log().len() as u64 == site.snapshot().pending
        });
        assert!(healed, "{name}: {} pending, {} logged", site.snapshot().pending, site.log().len());

        let again = buy_all(&site, &passes);
        assert!(again.iter().all(|a| matches!(a, PurchaseAnswer::Accepted { .. })), "{name}: {again:?}");
        assert_eq!((site.snapshot().pending, site.snapshot().remaining), (20, 80), "{name}");
    }
}

/// A disk with room for some segments and no more: whoever comes after that is told so before any stock is taken.
#[test]
fn a_full_disk_is_busy_before_stock_is_taken() {
    let disk = SimulatedDisk::new(1, Faults { capacity_bytes: 1 << 20, ..Faults::default() });
    let mut options =
        Options { storage: Storage::Simulated(disk.clone()), segment_bytes: 128 << 10, ..Options::default() };
    options.sale.total = 100_000;
    let site = Site::start(options);
    let passes: Vec<_> = (0..6_000).map(|n| site.pass(&format!("user-{n}"))).collect();
    // Always fresh passes: a repeat of one that the log holds needs no room. The upkeep may still find room for a last
    // segment: full for good is busy again and again, a while apart.
    let all_busy = |passes| buy_all(&site, passes).iter().all(|answer| *answer == PurchaseAnswer::Busy);
    let before = passes.chunks(10).find_map(|passes| {
        if !all_busy(passes) {
            return None;
        }
        let before = site.snapshot();
        let for_good = (0..3).all(|_| {
            std::thread::sleep(Duration::from_secs(1));
            all_busy(passes)
        });
        for_good.then_some(before)
    });
    assert_eq!(before.expect("the disk never filled up"), site.snapshot(), "nothing was taken");
    site.buy(&passes[5_999].0, "{}").is(503, "busy");
    assert_eq!(site.log().len() as u64, site.snapshot().pending);
    // Room again: the same pass buys.
    disk.set_faults(Faults::default());
    let bought = (0..3_000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        site.buy(&passes[5_999].0, "{}").status == 202
    });
    assert!(bought, "the queue did not find the new room");
}
