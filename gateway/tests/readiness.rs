//! `/readyz`: what takes a gateway out of its balancer, and what is a note.
#![cfg(feature = "simulation")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use queue::{NewRecord, Storage};
use serde_json::Value;
use stock::ledger::{FaultPlan, SimulatedServer};
use stock::{Ledger, LedgerIdentity};
use support::{Options, Site, now_ms};

/// The answer once these words, and no others, hold.
fn comes_to(site: &Site, words: &[&str]) -> (u16, Value) {
    let mut last = Value::Null;
    for _ in 0..2_400 {
        let answer = site.admin().get("/readyz", &[]);
        last = answer.json();
        let held: Vec<_> = last["conditions"].as_array().expect("conditions").iter().collect();
        if held.iter().map(|held| held["word"].as_str().unwrap_or_default()).eq(words.iter().copied()) {
            for held in held {
                let since = held["since"].as_str().expect("a time");
                assert!(
                    since.parse::<stock::Timestamp>().is_ok_and(|at| at.0 <= now_ms() + 60_000),
                    "{held}"
                );
            }
            return (answer.status, last);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("never {words:?}; last: {last}");
}

fn buy(site: &Site, user: &str) -> u16 {
    let (pass, _) = site.pass(user);
    site.buy(&pass, "{}").status
}

/// What the queue exists for: a balancer that took every gateway out would end the sale.
#[test]
fn while_the_database_is_away_gateways_sell_and_stay_ready() {
    let site = Site::start(Options::default());
    site.await_ready();
    assert_eq!(buy(&site, "before"), 202);
    site.books.unreachable.store(true, Ordering::Relaxed);
    let (status, said) = comes_to(&site, &["orders-away"]);
    assert_eq!(
        (status, said["ready"].clone(), said["lacks"].clone()),
        (200, true.into(), Value::Array(vec![]))
    );
    assert!(said["notes"].to_string().contains("the orders are out of reach"), "{said}");
    let since = said["conditions"][0]["since"].clone();
    for n in 0..5 {
        assert_eq!(buy(&site, &format!("during-{n}")), 202);
    }
    let (status, said) = comes_to(&site, &["orders-away"]);
    assert_eq!((status, &said["conditions"][0]["since"]), (200, &since), "since it began");
    let metrics = site.admin().get("/metrics", &[]).text();
    for line in ["floodgate_gateway_ready 1", "floodgate_gateway_condition{word=\"orders-away\"} 1"] {
        assert!(metrics.contains(&format!("{line}\n")), "{line}: {metrics}");
    }
    site.books.unreachable.store(false, Ordering::Relaxed);
    comes_to(&site, &[]);
}

#[test]
fn a_backlog_near_its_bound_takes_the_gateway_out_before_it_refuses() {
    let site = Site::start(Options { backlog_max: 20, ..Options::default() });
    site.await_ready();
    for n in 0..17 {
        assert_eq!(buy(&site, &format!("u{n}")), 202);
    }
    comes_to(&site, &[]);
    assert_eq!(buy(&site, "the-eighteenth"), 202);
    let (status, said) = comes_to(&site, &["backlog"]);
    assert_eq!(status, 503, "{said}");
    assert_eq!(buy(&site, "who-came-all-the-same"), 202);
    assert_eq!(buy(&site, "the-last"), 202);
    let (status, _) = comes_to(&site, &["log-full", "backlog"]);
    assert_eq!(status, 503);
}

#[test]
fn a_log_that_failed_takes_the_gateway_out() {
    let disk = queue::SimulatedDisk::new(1, queue::Faults::default());
    let site = Site::start(Options { storage: Storage::Simulated(disk.clone()), ..Options::default() });
    site.await_ready();
    assert_eq!(buy(&site, "before"), 202);
    disk.set_faults(queue::Faults { sync_error: 10_000, write_error: 10_000, ..Default::default() });
    let payload = b"something";
    let permit = site.topic.try_permit(payload.len()).expect("room");
    let record = NewRecord { key: b"k", tag: "order", deliver_at_ms: None, payload };
    assert!(site.runtime.block_on(site.topic.append(permit, record)).is_err());
    let (status, said) = comes_to(&site, &["log-failed"]);
    assert_eq!((status, said["ready"].clone()), (503, false.into()), "{said}");
}

#[test]
fn another_ledger_takes_the_gateway_out_and_a_silent_one_does_not() {
    let server = SimulatedServer::new(1, Arc::new(now_ms), FaultPlan::default());
    let site =
        Site::start(Options { ledger: Some(Ledger::Simulated(server.connect())), ..Options::default() });
    site.await_ready();
    server.set_plan(FaultPlan { refused: 1_000, ..FaultPlan::default() });
    let (status, said) = comes_to(&site, &["ledger-silent"]);
    assert_eq!(status, 200, "no other gateway has another one: {said}");
    server.set_plan(FaultPlan::default());
    comes_to(&site, &[]);

    // As the membership finds it: others see the recorded ledger.
    site.stock.sales_live_in(Some(LedgerIdentity::new("another")));
    site.stock.set_elsewhere(true);
    let (status, said) = comes_to(&site, &["other-ledger"]);
    assert_eq!(status, 503);
    assert!(said["lacks"].to_string().contains("stock.redis_urls"), "{said}");
    let (pass, order) = site.pass("nobody");
    assert_eq!(site.buy(&pass, "{}").status, 503);
    // Nor is any order said to be absent by a ledger that cannot know.
    let asked = site.connect().get(&format!("/api/v1/orders/{order}"), &[("Floodgate-Pass", &pass)]);
    assert_eq!(asked.status, 503, "{}", asked.text());
    site.stock.sales_live_in(None);
    site.stock.set_elsewhere(false);
    comes_to(&site, &[]);
    assert_eq!(site.buy(&pass, "{}").status, 202);
}

#[test]
fn what_holds_of_a_worker_in_the_same_process_is_a_note() {
    use gateway::conditions::Condition::{ClocksApart, RefundsStuck};
    let site = Site::start(Options::default());
    site.await_ready();
    comes_to(&site, &[]);
    let holds = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let does_hold = holds.clone();
    site.gateway.show_worker(Box::new(move || match does_hold.load(Ordering::Relaxed) {
        true => vec![ClocksApart, RefundsStuck],
        false => vec![],
    }));
    let (status, said) = comes_to(&site, &["clocks-apart", "refunds-stuck"]);
    assert_eq!((status, &said["lacks"]), (200, &Value::Array(vec![])), "buyers can buy");
    assert!(said["notes"].to_string().contains("payment.refund_url"), "{said}");
    assert_eq!(buy(&site, "ann"), 202);
    holds.store(false, Ordering::Relaxed);
    comes_to(&site, &[]);
}
