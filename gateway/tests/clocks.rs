//! Whose clock counts: a ledger of three servers whose clocks stand minutes apart and move only by the test's hand, and a process
//! whose wall clock is right by none of them.
#![cfg(feature = "simulation")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use gateway::config::ChallengeKind;
use serde_json::Value;
use stock::ledger::{FaultPlan, SimulatedLedger, SimulatedServer};
use stock::{EmbeddedLedger, Ledger, SaleDefinition, Timestamp};
use support::{ADMIN_TOKEN, Answer, Options, Site, bearer, now_ms, sale};

const MINUTE_MS: u64 = 60_000;
/// A gateway counts on from a server's time by its own clock; no test takes so long between two of the server's answers.
const DRIFT_MAX_MS: u64 = 50_000;

/// The servers' clocks: of leases and `demo`, of `slow`, of `fast`.
struct Hands([Arc<AtomicU64>; 3]);

const LEASES: usize = 0;
const SLOW: usize = 1;
const FAST: usize = 2;

impl Hands {
    fn new() -> Self {
        let leases_ms = now_ms();
        let hands = [leases_ms, leases_ms - 5 * MINUTE_MS, leases_ms + 5 * MINUTE_MS];
        Self(hands.map(|ms| Arc::new(AtomicU64::new(ms))))
    }

    fn now_ms(&self, server: usize) -> u64 {
        self.0[server].load(Ordering::Relaxed)
    }

    fn ledger(&self) -> SimulatedLedger {
        self.ledger_placed(|sale| ["demo", "slow", "fast"].iter().position(|name| *name == sale).unwrap_or(0))
    }

    fn ledger_placed(&self, place: impl Fn(&str) -> usize + Send + Sync + 'static) -> SimulatedLedger {
        let servers = self.0.clone().map(|hand| {
            SimulatedServer::new(1, Arc::new(move || hand.load(Ordering::Relaxed)), FaultPlan::default())
        });
        SimulatedLedger::of_several(&servers, Arc::new(move |sale| place(sale.as_str())))
    }

    /// Steps one clock, and waits until the gateway has heard of it.
    fn step(&self, site: &Site, server: usize, ms: u64) {
        let now_ms = self.0[server].fetch_add(ms, Ordering::Relaxed) + ms;
        let name = ["demo", "slow", "fast"][server];
        until("the step is heard of", || told(site, &format!("?sale={name}")) >= now_ms);
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let found = (0..2_400).any(|_| {
        let is_so = is_so();
        std::thread::sleep(Duration::from_millis(if is_so { 0 } else { 25 }));
        is_so
    });
    assert!(found, "waited in vain until {what}");
}

fn time(site: &Site, query: &str) -> Answer {
    site.connect().get(&format!("/api/v1/time{query}"), &[])
}

fn told(site: &Site, query: &str) -> u64 {
    let answer = time(site, query);
    assert_eq!(answer.status, 200, "{}", answer.text());
    moment(&answer.json()["now"])
}

fn moment(json: &Value) -> u64 {
    serde_json::from_value::<Timestamp>(json.clone()).expect("a time").0
}

/// Opens a minute from now by its server's clock, for five minutes.
fn about_to_open(id: &str, now_ms: u64) -> SaleDefinition {
    SaleDefinition {
        starts_at: Timestamp(now_ms + MINUTE_MS),
        ends_at: Timestamp(now_ms + 6 * MINUTE_MS),
        ..sale(id)
    }
}

fn start(hands: &Hands, ledger: SimulatedLedger, change: impl FnOnce(&mut Options)) -> Site {
    let mut options = Options {
        ledger: Some(Ledger::Simulated(ledger)),
        wall: Arc::new(|| now_ms() + 20 * MINUTE_MS),
        sale: about_to_open("demo", hands.now_ms(LEASES)),
        ..Options::default()
    };
    options.gate.opens_before_s = 60;
    change(&mut options);
    let site = Site::start(options);
    for (name, server) in [("slow", SLOW), ("fast", FAST)] {
        let sale = serde_json::to_vec(&about_to_open(name, hands.now_ms(server))).expect("JSON");
        let token = format!("Bearer {ADMIN_TOKEN}");
        let put =
            site.admin().call("PUT", "/admin/v1/sales", &[("Authorization", token.as_str())], Some(&sale));
        assert_eq!(put.status, 200, "{}", put.text());
    }
    // Every server has been asked once.
    for (name, server) in [("demo", LEASES), ("slow", SLOW), ("fast", FAST)] {
        let now_ms = hands.now_ms(server);
        let is_theirs = || (now_ms..now_ms + DRIFT_MAX_MS).contains(&told(&site, &format!("?sale={name}")));
        until("each sale goes by its server's clock", is_theirs);
    }
    site
}

fn post(site: &Site, path: &str, body: &str) -> Answer {
    site.connect().post(path, &[("Authorization", &bearer("alice"))], body)
}

fn buy(site: &Site, sale: &str, pass: &str) -> Answer {
    site.connect().post(&format!("/api/v1/sales/{sale}/orders"), &[("Floodgate-Pass", pass)], "{}")
}

#[test]
fn the_time_is_told_by_sale() {
    let hands = Hands::new();
    let site = start(&hands, hands.ledger(), |_| {});
    let leases_ms = hands.now_ms(LEASES);
    for query in ["", "?", "?sales=slow", "?x=1&y", "?sale=demo", "?x=1&sale=demo"] {
        let told_ms = told(&site, query);
        assert!((leases_ms..leases_ms + DRIFT_MAX_MS).contains(&told_ms), "{query}: {told_ms}");
    }
    let head = site.connect().call("HEAD", "/api/v1/time?sale=slow", &[], None);
    assert_eq!((head.status, head.header("cache-control")), (200, Some("no-store")));
    for query in ["?sale=nowhere", "?sale=", "?sale=slow%20"] {
        time(&site, query).is(404, "unknown-sale");
    }
    time(&site, "?sale=slow&sale=fast").is(400, "bad-request");
    hands.step(&site, SLOW, 60 * MINUTE_MS);
    let told_ms = told(&site, "");
    assert!((leases_ms..leases_ms + DRIFT_MAX_MS).contains(&told_ms), "another server's step: {told_ms}");
}

#[test]
fn a_sale_opens_sells_and_ends_by_its_own_clock() {
    let hands = Hands::new();
    let site = start(&hands, hands.ledger(), |_| {});
    for (name, server) in [("slow", SLOW), ("fast", FAST)] {
        let starts_ms = hands.now_ms(server) + MINUTE_MS;
        let pass = post(&site, &format!("/api/v1/sales/{name}/passes"), "{}");
        assert_eq!(pass.status, 201, "{name}: {}", pass.text());
        let pass = pass.json();
        assert_eq!(moment(&pass["expires_at"]), starts_ms + 120_000, "{name}: from its opening");
        let pass = pass["pass"].as_str().expect("a pass").to_owned();
        let early = buy(&site, name, &pass);
        early.is(403, "not-started");
        let wait_s: u64 = early.header("retry-after").expect("a wait").parse().expect("seconds");
        assert!(wait_s <= 60, "{name}: {wait_s}");

        // The batch's deadline: of a clock that is behind it would have passed already.
        hands.step(&site, server, MINUTE_MS);
        let bought = buy(&site, name, &pass);
        assert_eq!(bought.status, 202, "{name}: {}", bought.text());

        hands.step(&site, server, 2 * MINUTE_MS + 1);
        buy(&site, name, &pass).is(401, "pass-invalid");
        hands.step(&site, server, 3 * MINUTE_MS);
        buy(&site, name, &pass).is(403, "ended");
        post(&site, &format!("/api/v1/sales/{name}/passes"), "{}").is(403, "ended");
    }
    // No clock but those two has moved.
    post(&site, "/api/v1/sales/demo/passes", "{}").json()["pass"].as_str().expect("a pass");
}

#[test]
fn a_question_expires_by_the_clock_of_its_sale() {
    let hands = Hands::new();
    let site = start(&hands, hands.ledger(), |options| options.gate.challenge = ChallengeKind::ProofOfWork);
    for (name, server) in [("slow", SLOW), ("fast", FAST)] {
        let asked = post(&site, &format!("/api/v1/sales/{name}/challenges"), "{}");
        assert_eq!(asked.status, 201, "{}", asked.text());
        let asked = asked.json();
        let due_ms = hands.now_ms(server) + 120_000;
        assert!((due_ms..due_ms + DRIFT_MAX_MS).contains(&moment(&asked["expires_at"])), "{name}: {asked}");
        let wrong = format!(r#"{{"challenge":{},"answer":"x"}}"#, asked["challenge"]);
        let path = format!("/api/v1/sales/{name}/passes");
        post(&site, &path, &wrong).is(403, "wrong-answer");
        hands.step(&site, server, 4 * MINUTE_MS);
        post(&site, &path, &wrong).is(410, "challenge-expired");
    }
}

#[test]
fn a_token_goes_by_the_leases_clock_whatever_the_sale() {
    let hands = Hands::new();
    let site = start(&hands, hands.ledger(), |_| {});
    // It lives for an hour.
    let orders = "/api/v1/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let ask = || site.connect().get(orders, &[("Authorization", &bearer("alice"))]);
    hands.step(&site, FAST, 120 * MINUTE_MS);
    ask().is(404, "not-found");
    hands.step(&site, LEASES, 120 * MINUTE_MS);
    ask().is(401, "unauthorized");
}

#[test]
fn a_sale_that_moves_goes_by_its_new_servers_clock() {
    let hands = Hands::new();
    let home = Arc::new(AtomicUsize::new(SLOW));
    let moved = home.clone();
    let ledger = hands.ledger_placed(move |sale| match sale {
        "slow" => moved.load(Ordering::Relaxed),
        "fast" => FAST,
        _ => LEASES,
    });
    let site = start(&hands, ledger, |_| {});
    home.store(FAST, Ordering::Relaxed);
    let fast_ms = hands.now_ms(FAST);
    until("the move is heard of", || told(&site, "?sale=slow") >= fast_ms);
}

/// Both draw, both ask; each must be able to show what the other one asks about.
#[test]
fn a_gateway_with_a_slow_wall_clock_shows_its_neighbours_pictures() {
    let ledger = Ledger::Embedded(EmbeddedLedger::new(Arc::new(now_ms)));
    let gateway = |behind_ms: u64| {
        let mut options = Options {
            ledger: Some(ledger.clone()),
            wall: Arc::new(move || now_ms() - behind_ms),
            ..Options::default()
        };
        options.gate.challenge = ChallengeKind::Image;
        Site::start(options)
    };
    let sites = [gateway(0), gateway(5 * MINUTE_MS)];
    sites.iter().for_each(Site::await_ready);
    for (asked, shown) in [(0, 1), (1, 0)] {
        for _ in 0..10 {
            let question = post(&sites[asked], "/api/v1/sales/demo/challenges", "{}").json();
            let picture = question["image_url"].as_str().expect("a picture").to_owned();
            // The other one may be about to draw it.
            until("a neighbour shows the picture", || {
                sites[shown].connect().get(&picture, &[]).status == 200
            });
        }
    }
}
