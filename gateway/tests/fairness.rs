//! A full server: who loses a place when somebody new comes, and that honest buyers are served whatever others hold.
//!
//! `cargo test -p gateway --test fairness -- --nocapture one_byte` prints how long honest requests took.

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Connection, Options, Site};

const STREAMS: usize = 20;
const ATTACKERS: usize = 500;
const HONEST_REQUESTS: usize = 60;
/// Loopback addresses that are no trusted proxy.
const ATTACKER: [u8; 4] = [127, 0, 0, 2];
const BUYER: [u8; 4] = [127, 0, 0, 3];
const NEWCOMER: [u8; 4] = [127, 0, 0, 4];
/// Longest wait for anything, on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

/// One thread and so many places; no deadline ends anything for an hour, so that only making room does.
fn site(places: usize) -> Site {
    let mut options = Options::default();
    options.gateway.threads = 1;
    options.gateway.header_read_max_ms = 3_600_000;
    options.gateway.body_read_max_ms = 3_600_000;
    options.limits.in_flight_max = places;
    options.sale.total = 1_000;
    Site::start(options)
}

/// A stream that has told `queued`, of an order of `user`.
fn stream(site: &Site, source: [u8; 4], user: &str) -> Connection {
    let (pass, order_id) = site.pass(user);
    let mut connection = Connection::open_from(source, site.address());
    assert_eq!(connection.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", &pass)], "{}").status, 202);
    let path = format!("/api/v1/orders/{order_id}/events");
    connection.send(&support::http::request("GET", &path, &[("Floodgate-Pass", &pass)], None));
    assert_eq!(connection.answer(false).expect("an answer").status, 200);
    while !connection.chunk().expect("an event").contains("\"queued\"") {}
    connection
}

/// The event that its order has a row, if the stream comes to it.
fn hears_of_its_row(stream: &mut Connection) -> Option<String> {
    std::iter::from_fn(|| stream.chunk()).find(|event| event.contains("\"unpaid\""))
}

/// The start of a request whose body never comes whole.
fn slow_body(forwarded_for: Option<&str>) -> Vec<u8> {
    let forwarded = forwarded_for.map_or(String::new(), |client| format!("X-Forwarded-For: {client}\r\n"));
    format!(
        "POST /api/v1/sales/demo/orders HTTP/1.1\r\nHost: x\r\n{forwarded}Content-Type: application/json\r\n\
         Content-Length: 100\r\n\r\n{{"
    )
    .into_bytes()
}

fn open_with(source: [u8; 4], address: SocketAddr, bytes: &[u8]) -> Connection {
    let mut connection = Connection::open_from(source, address);
    connection.send(bytes);
    connection
}

/// Holds as many connections as it can, each with one byte or a body that does not come, and opens another for each that
/// it loses.
fn attack(source: [u8; 4], address: SocketAddr, begun: &AtomicUsize, over: &AtomicBool) -> usize {
    let open = |n: usize| match n % 2 {
        0 => open_with(source, address, b"G"),
        _ => open_with(source, address, &slow_body(None)),
    };
    let mut held: Vec<_> = (0..ATTACKERS).map(open).collect();
    begun.store(ATTACKERS, Ordering::Release);
    let mut lost = 0;
    while !over.load(Ordering::Acquire) {
        for (n, connection) in held.iter_mut().enumerate() {
            if connection.is_closed() {
                *connection = open(n);
                lost += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    lost
}

#[test]
fn one_byte_keeps_nobody_out() {
    let site = site(STREAMS + ATTACKERS);
    let mut streams: Vec<_> = (0..STREAMS).map(|n| stream(&site, BUYER, &format!("buyer-{n}"))).collect();
    let (begun, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (took, lost) = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(ATTACKER, site.address(), &begun, &over));
        while begun.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Each from an address of its own, and kept: every one needs a place that an attacker holds.
        let (mut took, mut kept) = (Vec::new(), Vec::new());
        for n in 0..HONEST_REQUESTS {
            let asked = Instant::now();
            let mut honest = Connection::open_from([127, 0, 4, n as u8], site.address());
            honest.send(&support::http::request("GET", "/api/v1/time", &[], None));
            let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| honest.answer(true)));
            if !answered.is_ok_and(|answer| answer.is_some_and(|answer| answer.status == 200)) {
                break;
            }
            took.push(asked.elapsed());
            kept.push(honest);
            // Time for the attacker to come back.
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Release);
        (took, attacker.join().expect("an attacker"))
    });
    site.drain();
    let kept = streams.iter_mut().filter_map(hears_of_its_row).count();
    let mut sorted = took.clone();
    sorted.sort_unstable();
    println!(
        "{} of {HONEST_REQUESTS} honest requests answered: median {:?}, longest {:?}; streams kept {kept} of {STREAMS}; \
         attackers lost {lost} connections",
        took.len(),
        sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
        sorted.last().copied().unwrap_or_default(),
    );
    assert_eq!((took.len(), kept), (HONEST_REQUESTS, STREAMS), "(requests answered, streams kept)");
}

#[test]
fn the_biggest_holder_loses_its_oldest_first() {
    let site = site(8);
    // Older than everything else, and of somebody who holds nothing else.
    let mut slow = open_with(BUYER, site.address(), b"GET /api/v1/time HTTP/1.1\r\n");
    let attackers: Vec<_> = (0..7).map(|_| open_with(ATTACKER, site.address(), b"GET")).collect();
    let mut newcomers = Vec::new();
    for n in 1..=3 {
        let mut newcomer = Connection::open_from(NEWCOMER, site.address());
        assert_eq!(newcomer.get("/api/v1/time", &[]).status, 200);
        newcomers.push(newcomer);
        let closed: Vec<_> = attackers.iter().map(Connection::is_closed).collect();
        let expected: Vec<_> = (0..7).map(|at| at < n).collect();
        assert_eq!(closed, expected, "after {n} newcomers");
    }
    slow.send(b"Host: x\r\n\r\n");
    assert_eq!(slow.answer(true).expect("an answer").status, 200);
}

#[test]
fn behind_a_trusted_proxy_its_clients_count() {
    let site = site(8);
    let proxy = [127, 0, 0, 1];
    let honest: Vec<_> = (1..=3)
        .map(|n| open_with(proxy, site.address(), &slow_body(Some(&format!("192.0.2.{n}")))))
        .collect();
    let attackers: Vec<_> = (0..5)
        .map(|n| open_with(proxy, site.address(), &slow_body(Some(&format!("2001:db8:0:1::{n}")))))
        .collect();
    let mut newcomers = Vec::new();
    for _ in 0..3 {
        let mut newcomer = Connection::open_from(NEWCOMER, site.address());
        assert_eq!(newcomer.get("/api/v1/time", &[]).status, 200);
        newcomers.push(newcomer);
    }
    assert!(!honest.iter().any(Connection::is_closed), "the oldest, of clients with one connection each");
    assert_eq!(attackers.iter().filter(|attacker| attacker.is_closed()).count(), 3, "one /64 is one holder");
}

#[test]
fn streams_end_last_and_only_the_biggest_holders() {
    let site = site(6);
    let mut single = stream(&site, BUYER, "single");
    let mut many: Vec<_> = (0..3).map(|n| stream(&site, ATTACKER, &format!("many-{n}"))).collect();
    let incomplete: Vec<_> = (0..2).map(|_| open_with(NEWCOMER, site.address(), b"G")).collect();
    // The incomplete go first, though their holder has fewer.
    let mut newcomers: Vec<_> =
        (0..2u8).map(|n| Connection::open_from([127, 0, 1, n], site.address())).collect();
    for newcomer in &mut newcomers {
        newcomer.send(&slow_body(None));
    }
    let gone = |connections: &[Connection]| connections.iter().all(Connection::is_closed);
    let patience = Instant::now() + PATIENCE;
    while !gone(&incomplete) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(gone(&incomplete));
    // Nothing but streams is left once those have been answered for.
    for newcomer in &mut newcomers {
        let rest = format!("}}{}", " ".repeat(100 - 2));
        newcomer.send(rest.as_bytes());
        newcomer.answer(true).expect("an answer");
    }
    let others: Vec<_> = (0..2u8).map(|n| stream(&site, [127, 0, 2, n], &format!("other-{n}"))).collect();
    assert_eq!(others.len(), 2, "idle ones made room");
    let mut last = Connection::open_from([127, 0, 3, 1], site.address());
    assert_eq!(last.get("/api/v1/time", &[]).status, 200);
    site.drain();
    assert_eq!(hears_of_its_row(&mut many[0]), None, "the oldest of the biggest holder");
    for kept in many.iter_mut().skip(1).chain([&mut single]) {
        assert!(hears_of_its_row(kept).is_some());
    }
}

#[test]
fn requests_without_a_pause_keep_nobody_out() {
    let site = site(8);
    let over = AtomicBool::new(false);
    let begun = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let open = || Connection::open_from(ATTACKER, site.address());
            let mut held: Vec<_> = (0..8).map(|_| open()).collect();
            while !over.load(Ordering::Acquire) {
                for connection in &mut held {
                    if connection.is_closed() {
                        *connection = open();
                    }
                    // Lost in this moment, or not served yet: the next turn sees.
                    let request = support::http::request("GET", "/api/v1/time", &[], None);
                    let _ = connection.stream.write_all(&request);
                }
                begun.store(8, Ordering::Release);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        while begun.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 0..3 {
                let mut honest = Connection::open_from([127, 0, 4, n], site.address());
                assert_eq!(honest.get("/api/v1/time", &[]).status, 200);
            }
        }));
        over.store(true, Ordering::Release);
        asked.expect("answers");
    });
}
