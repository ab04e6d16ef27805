//! Event streams: how many one user may have, how often they look, what wakes them, and that a place comes free.
//!
//! `cargo test -p gateway --test streams -- --nocapture one_account` prints how many looks were made.

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stock::OrderId;
use support::{Answer, Connection, Options, Site, bearer};

const STREAMS_A_USER: usize = 4;

fn path(order_id: OrderId) -> String {
    format!("/api/v1/orders/{order_id}/events")
}

/// Asks for a stream; the answer's head, and the rest where it is none.
fn open(site: &Site, order_id: OrderId, pass: &str) -> (Connection, Answer) {
    let mut connection = site.connect();
    connection.send(&support::http::request("GET", &path(order_id), &[("Floodgate-Pass", pass)], None));
    let head = connection.answer(false).expect("an answer");
    (connection, head)
}

fn event(stream: &mut Connection, status: &str) -> bool {
    std::iter::from_fn(|| stream.chunk()).any(|event| event.contains(&format!("\"{status}\"")))
}

fn order(site: &Site, user: &str) -> (String, OrderId) {
    let (pass, order_id) = site.pass(user);
    assert_eq!(site.buy(&pass, "{}").status, 202);
    (pass, order_id)
}

fn looks_at_the_ledger(site: &Site) -> u64 {
    let metrics = site.admin().get("/metrics", &[]).text();
    let calls =
        metrics.lines().filter(|line| line.starts_with("floodgate_ledger_calls_total{call=\"pending\""));
    calls.map(|line| line.rsplit(' ').next().expect("a value").parse::<u64>().expect("a count")).sum()
}

#[test]
fn one_account_does_not_take_all_places() {
    let mut options = Options::default();
    options.gateway.event_streams_max = 40;
    options.limits.in_flight_max = 200;
    let site = Site::start(options);
    let (pass, order_id) = order(&site, "greedy");
    let (honest_pass, honest_order) = order(&site, "honest");
    site.drain();
    let before = (site.books.order_reads.load(Ordering::Relaxed), looks_at_the_ledger(&site));
    let begun = Instant::now();
    let mut streams: Vec<_> = (0..60).map(|_| open(&site, order_id, &pass)).collect();
    let got = streams.iter().filter(|(_, head)| head.status == 200).count();
    let (mut honest, head) = open(&site, honest_order, &honest_pass);
    std::thread::sleep(Duration::from_secs(5).saturating_sub(begun.elapsed()));
    let looks =
        (site.books.order_reads.load(Ordering::Relaxed) - before.0, looks_at_the_ledger(&site) - before.1);
    println!(
        "one account has {got} of 40 places, another is answered {}; looks in {:.1} s: {} at the orders, {} at the ledger",
        head.status,
        begun.elapsed().as_secs_f64(),
        looks.0,
        looks.1
    );
    assert_eq!(got, STREAMS_A_USER);
    assert_eq!(head.status, 200, "the other account's stream");
    assert!(event(&mut honest, "unpaid"));
    for (connection, head) in streams.iter_mut().filter(|(_, head)| head.status != 200) {
        assert_eq!(head.status, 429);
        assert!(head.header("retry-after").is_some(), "{head:?}");
        drop(connection.stream.shutdown(std::net::Shutdown::Both));
    }
}

#[test]
fn streams_and_questions_share_a_users_looks() {
    let mut options = Options::default();
    options.limits.per_user_rps = 1;
    let site = Site::start(options);
    let (pass, order_id) = order(&site, "alice");
    let headers = [("Floodgate-Pass", pass.as_str())];
    // Four a second; a stream's opening is one.
    let refused = support::http::until_too_fast(|| {
        let (_, head) = open(&site, order_id, &pass);
        head
    });
    assert!(refused.header("retry-after").is_some());
    let mut buyer = site.connect();
    let refused =
        support::http::until_too_fast(|| buyer.get(&format!("/api/v1/orders/{order_id}"), &headers));
    refused.is(429, "slow-down");
}

#[test]
fn a_final_status_is_remembered() {
    let site = Site::start(Options::default());
    let (pass, order_id) = order(&site, "alice");
    site.drain();
    let alice = bearer("alice");
    let cancel =
        site.connect().post(&format!("/api/v1/orders/{order_id}/cancel"), &[("Authorization", &alice)], "{}");
    assert_eq!(cancel.status, 200);
    let get = |who: &str| {
        site.connect().get(&format!("/api/v1/orders/{order_id}"), &[("Authorization", &bearer(who))])
    };
    let first = get("alice");
    assert_eq!(first.json()["status"], "closed");
    let before = (site.books.order_reads.load(Ordering::Relaxed), looks_at_the_ledger(&site));
    for _ in 0..50 {
        assert_eq!(get("alice").body, first.body);
        let (mut stream, head) = open(&site, order_id, &pass);
        assert_eq!(head.status, 200);
        assert!(event(&mut stream, "closed"));
        assert_eq!(stream.chunk(), None);
    }
    get("bob").is(404, "not-found");
    let after = (site.books.order_reads.load(Ordering::Relaxed), looks_at_the_ledger(&site));
    assert_eq!(after.0 - before.0, 0, "reads of the orders for what cannot change");
    // The owner's recovery looks as well, now and then.
    assert!(after.1 - before.1 < 50, "{} looks at the ledger", after.1 - before.1);
}

#[test]
fn what_happens_here_wakes_a_stream() {
    let site = Site::start(Options::default());
    let (pass, order_id) = order(&site, "alice");
    let (mut stream, _) = open(&site, order_id, &pass);
    assert!(event(&mut stream, "queued"));
    let drained = Instant::now();
    site.drain();
    assert!(event(&mut stream, "unpaid"));
    let (woken, reads) = (drained.elapsed(), site.books.order_reads.load(Ordering::Relaxed));
    assert!(reads <= 2, "{reads} reads for one row");
    let alice = bearer("alice");
    let cancelled = Instant::now();
    let cancel =
        site.connect().post(&format!("/api/v1/orders/{order_id}/cancel"), &[("Authorization", &alice)], "{}");
    assert_eq!(cancel.status, 200);
    assert!(event(&mut stream, "closed"));
    println!("told {woken:?} after the drain, {:?} after the cancel", cancelled.elapsed());
    assert_eq!(stream.chunk(), None);
}

#[test]
fn a_reader_that_is_gone_frees_its_place() {
    let mut options = Options::default();
    options.gateway.event_streams_max = STREAMS_A_USER;
    let site = Site::start(options);
    let (pass, order_id) = order(&site, "alice");
    for round in 0..5 {
        let mut streams = Vec::new();
        let begun = Instant::now();
        while streams.len() < STREAMS_A_USER && begun.elapsed() < Duration::from_secs(60) {
            let (mut stream, head) = open(&site, order_id, &pass);
            if head.status == 200 {
                assert!(event(&mut stream, "queued"));
                streams.push(stream);
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        println!("round {round}: {:?}", begun.elapsed());
        assert_eq!(streams.len(), STREAMS_A_USER, "places of readers that are gone");
    }
}
