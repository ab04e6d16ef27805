//! Every refusal, their order, and input that makes no sense: the right 4xx, nothing changed.

mod support;

use gateway::admission::pass::{Pass, PassKeys};
use gateway::config::{ChallengeKind, PassSecret, Secret};
use serde_json::json;
use stock::{OrderId, Timestamp};
use support::{Options, SALE, Site, bearer, now_ms, token};

const ORDERS: &str = "/api/v1/sales/demo/orders";

/// Every state that refuses, put on one by one from the last to the first: each hides those behind it.
#[test]
fn the_first_refusal_that_applies_is_given() {
    let mut options = Options::default();
    options.sale.total = 1;
    options.sale.per_user_limit = 1;
    options.limits.per_user_rps = 2;
    options.backlog_max = 1;
    let site = Site::start(options);
    let (pass, _) = site.pass("alice");
    assert_eq!(site.snapshot().remaining, 1);

    // 503 busy: the queue has no room, and stock has not been touched.
    fill_the_log(&site);
    let busy = site.buy(&pass, "{}");
    busy.is(503, "busy");
    assert!(busy.header("retry-after").is_some());
    assert_eq!((site.snapshot().remaining, site.snapshot().pending), (1, 0));

    // 429 slow-down goes before it, unless a second has passed between two presses.
    let slow = support::http::until_too_fast(|| site.buy(&pass, "{}"));
    slow.is(429, "slow-down");
    assert!(slow.header("retry-after").is_some());

    // 401 pass-invalid goes before that.
    let invalid = site.buy("nonsense", "{}");
    invalid.is(401, "pass-invalid");
    assert!(invalid.header("www-authenticate").is_some());

    // 403 ended and not-started go before that.
    retime(&site, now_ms() - 2_000, now_ms() - 1_000);
    site.buy("nonsense", "{}").is(403, "ended");
    let opens_ms = now_ms() + 90_000;
    retime(&site, opens_ms, opens_ms + 10_000);
    let early = site.buy("nonsense", "{}");
    early.is(403, "not-started");
    early.wait_leads_to(opens_ms, opens_ms - 90_000);

    // 503 paused goes before that.
    site.books.sales.lock().get_mut(&SALE.parse().expect("a sale")).expect("a sale").paused_by =
        Some("op".into());
    retime(&site, opens_ms, opens_ms + 10_000);
    site.buy("nonsense", "{}").is(503, "paused");

    // 410 sold-out goes before that: the flag is enough.
    let sold_out = stock::FlagState { sold_out: true, version: stock::FlagVersion { epoch: 9, counter: 9 } };
    let sale_id = SALE.parse().expect("a sale");
    site.runtime.block_on(site.stock.flag().publish(&sale_id, sold_out)).expect("published");
    site.buy("nonsense", "{}").is(410, "sold-out");

    // 404 unknown-sale, 413 and 400 go before everything.
    let mut buyer = site.connect();
    buyer.post("/api/v1/sales/none/orders", &[], "{}").is(404, "unknown-sale");
    let long = format!(r#"{{"metadata":"{}"}}"#, "x".repeat(1_025));
    buyer.post("/api/v1/sales/none/orders", &[], &long).is(413, "too-large");
    buyer.post("/api/v1/sales/none/orders", &[], "{").is(400, "bad-request");
    assert_eq!(site.log().len(), 1, "what filled the log");
}

/// The whole seconds of Retry-After.
fn fill_the_log(site: &Site) {
    let payload = stock::Reservation {
        order_id: OrderId(1),
        sale: SALE.parse().expect("a sale"),
        user: "filler".parse().expect("a user"),
        quantity: 1,
        metadata: None,
        reserved_at_ms: 1,
        sale_version: None,
    }
    .encode()
    .expect("json");
    let permit = site.topic.try_permit(payload.len()).expect("room");
    let record = queue::NewRecord { key: b"", tag: "order", deliver_at_ms: None, payload: &payload };
    site.runtime.block_on(site.topic.append(permit, record)).expect("appended");
}

/// Moves the window as the catalog shows it.
fn retime(site: &Site, starts_at_ms: u64, ends_at_ms: u64) {
    let sales = site.books.sales.lock();
    let offered = sales.values().map(|view| {
        let mut definition = view.definition.clone();
        definition.starts_at = Timestamp(starts_at_ms);
        definition.ends_at = Timestamp(ends_at_ms);
        gateway::catalog::CatalogSale {
            definition,
            version: view.version,
            terms_version: view.terms_version,
            total: view.total_now,
            paused_by: view.paused_by.clone(),
            epoch: 1,
        }
    });
    site.gateway.catalog().replace(offered.collect());
}

#[test]
fn what_the_ledger_refuses() {
    let mut options = Options::default();
    options.sale.total = 4;
    options.sale.per_user_limit = 3;
    let site = Site::start(options);
    let buy =
        |user: &str, quantity: u32| site.buy(&site.pass(user).0, &json!({"quantity": quantity}).to_string());
    buy("alice", 4).is(409, "limit-reached");
    assert_eq!(buy("alice", 2).status, 202);
    buy("alice", 2).is(409, "limit-reached");
    let short = buy("bob", 3);
    short.is(409, "not-enough");
    assert_eq!(short.json()["remaining"], 2);
    assert_eq!(buy("bob", 2).status, 202);
    buy("carol", 1).is(410, "sold-out");
    let books = site.snapshot();
    assert_eq!((books.remaining, books.pending), (0, 4));
    assert_eq!(site.log().len(), 2);
}

#[test]
fn a_ledger_of_another_life_or_in_rebuild_is_busy() {
    let site = Site::start(Options::default());
    let (pass, order_id) = site.pass("alice");
    let version = stock::SaleVersion {
        sale: SALE.parse().expect("a sale"),
        version: 1,
        total: 100,
        starts_at_ms: 0,
        ends_at_ms: u64::MAX,
        per_user_limit: 1,
        passes_per_unit: 0,
        paused: false,
        terms_version: 1,
    };
    site.runtime.block_on(site.stock.install(&version, 2)).expect("installed");
    site.buy(&pass, "{}").is(503, "busy");
    // Closed: nobody can say that there is no such order.
    let path = format!("/api/v1/orders/{order_id}");
    site.connect().get(&path, &[("Floodgate-Pass", &pass)]).is(503, "busy");
    site.runtime.block_on(site.stock.open(&version.sale, 2)).expect("opened");
    site.buy(&pass, "{}").is(503, "busy");
    site.connect().get(&path, &[("Floodgate-Pass", &pass)]).is(404, "not-found");
    assert_eq!(site.log().len(), 0);
}

#[test]
fn passes_that_are_not_ours() {
    let site = Site::start(Options::default());
    let refused = |pass: &str| site.buy(pass, "{}").is(401, "pass-invalid");
    let (good, _) = site.pass("alice");
    let (expired, expired_id) = site.pass_for(SALE, "alice", now_ms() - 1);
    refused(&expired);
    refused(&site.pass_for("other", "alice", now_ms() + 60_000).0);
    refused("");
    refused(&"A".repeat(4_000));
    for length in [1, 10, good.len() - 1] {
        refused(&good[..length]);
    }
    for at in [0, 20, good.len() / 2, good.len() - 2] {
        let mut flipped = good.clone().into_bytes();
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        refused(&String::from_utf8(flipped).expect("text"));
    }
    // Made with a key of the same id that is not ours.
    let foreign = PassKeys::new(&gateway::config::GateConfig {
        pass_secrets: vec![PassSecret {
            id: "k1".into(),
            secret: Some(Secret::new("z".repeat(40))),
            secret_file: None,
        }],
        ..Default::default()
    });
    let pass = Pass {
        sale: SALE.parse().expect("a sale"),
        user: "alice".parse().expect("a user"),
        order_id: OrderId(77),
        expires_at_ms: now_ms() + 60_000,
    };
    refused(&foreign.expect("keys").issue(&pass));
    // None at all.
    site.connect().post(ORDERS, &[], "{}").is(401, "pass-invalid");
    site.connect().post(ORDERS, &[("Authorization", &bearer("alice"))], "{}").is(401, "pass-invalid");
    // Bytes that are no text.
    let mut raw = site.connect();
    raw.send(b"POST /api/v1/sales/demo/orders HTTP/1.1\r\nHost: x\r\nFloodgate-Pass: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}");
    raw.answer(true).expect("an answer").is(401, "pass-invalid");
    // Twice.
    let twice = [("Floodgate-Pass", good.as_str()), ("Floodgate-Pass", good.as_str())];
    site.connect().post(ORDERS, &twice, "{}").is(400, "bad-request");
    assert_eq!((site.snapshot().remaining, site.log().len()), (100, 0));
    // An expired pass still shows its order, and only its own.
    let path = format!("/api/v1/orders/{expired_id}");
    site.connect().get(&path, &[("Floodgate-Pass", &expired)]).is(404, "not-found");
    site.connect().get(&path, &[("Floodgate-Pass", &good)]).is(401, "unauthorized");
}

#[test]
fn bodies_that_make_no_sense() {
    let site = Site::start(Options::default());
    let (pass, _) = site.pass("alice");
    let deep = format!(r#"{{"metadata":{}}}"#, "[".repeat(5_000));
    for body in [
        "{",
        "}",
        "[]",
        "null",
        "1",
        "\"x\"",
        "{}x",
        "{\"quantity\"}",
        "\u{feff}{}",
        "{,}",
        r#"{"quantity":0}"#,
        r#"{"quantity":-1}"#,
        r#"{"quantity":1.0}"#,
        r#"{"quantity":1e2}"#,
        r#"{"quantity":"1"}"#,
        r#"{"quantity":true}"#,
        r#"{"quantity":null}"#,
        r#"{"quantity":[1]}"#,
        r#"{"quantity":4294967296}"#,
        r#"{"quantity":99999999999999999999999999999999999999}"#,
        r#"{"quantity":1,"quantity":2}"#,
        r#"{"metadata":"a","metadata":"b"}"#,
        r#"{"amount":1}"#,
        r#"{"Quantity":1}"#,
        r#"{"metadata":7}"#,
        r#"{"metadata":["a"]}"#,
        r#"{"metadata":true}"#,
        r#"{"metadata":"a\u0000b"}"#,
        r#"{"metadata":"\ud800"}"#,
        "{\"metadata\":\"a\u{0}b\"}",
        &deep,
    ] {
        let answer = site.buy(&pass, body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert_eq!(answer.word(), "bad-request", "{body}");
    }
    // Not UTF-8.
    let answer =
        site.connect().call("POST", ORDERS, &[("Floodgate-Pass", &pass)], Some(b"{\"metadata\":\"\xff\"}"));
    answer.is(400, "bad-request");
    // Too large: by a byte, by its length alone, chunk by chunk.
    site.buy(&pass, &json!({"metadata": "x".repeat(1_025)}).to_string()).is(413, "too-large");
    site.buy(&pass, &format!("{{{}}}", " ".repeat(9_000))).is(413, "too-large");
    let mut chunks = site.connect();
    chunks.send(format!("POST {ORDERS} HTTP/1.1\r\nHost: x\r\nFloodgate-Pass: {pass}\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes());
    chunks.send(
        format!("2000\r\n{}\r\n2000\r\n{}\r\n0\r\n\r\n", " ".repeat(8_192), " ".repeat(8_192)).as_bytes(),
    );
    chunks.answer(true).expect("an answer").is(413, "too-large");
    assert_eq!((site.snapshot().remaining, site.log().len()), (100, 0), "nothing changed");

    // What does make sense: nothing at all, exactly 1 KiB, any unicode, an object.
    assert_eq!(site.buy(&site.pass("a").0, "").status, 202);
    let kib = "汉".repeat(341) + "x";
    assert_eq!(site.buy(&site.pass("b").0, &json!({"metadata": kib}).to_string()).status, 202);
    assert_eq!(site.buy(&site.pass("c").0, r#"{"metadata":"🎉\n\u2028","quantity":1}"#).status, 202);
    assert_eq!(site.buy(&site.pass("d").0, r#"{"metadata":{"size":"L"}}"#).status, 202);
    let log = site.log();
    assert_eq!(log[1].metadata.as_deref(), Some(kib.as_str()));
    assert_eq!(log[2].metadata.as_deref(), Some("🎉\n\u{2028}"));
    assert_eq!(log[3].metadata.as_deref(), Some(r#"{"size":"L"}"#));
}

#[test]
fn names_that_are_none() {
    let site = Site::start(Options::default());
    let mut buyer = site.connect();
    let (pass, _) = site.pass("alice");
    for sale in ["", "DEMO", "demo%00", "%64emo", "demo;x", &"x".repeat(65), "..", "汉"] {
        let path = format!("/api/v1/sales/{sale}/orders");
        if path.is_ascii() {
            buyer.post(&path, &[("Floodgate-Pass", &pass)], "{}").is(404, "unknown-sale");
        }
    }
    let alice = bearer("alice");
    for order in
        ["", "x", "01ARZ3NDEKTSV4RRFFQ69G5FA", "81ARZ3NDEKTSV4RRFFQ69G5FAV", "01arz3ndektsv4rrffq69g5fav"]
    {
        buyer.get(&format!("/api/v1/orders/{order}"), &[("Authorization", &alice)]).is(404, "not-found");
        let cancel = format!("/api/v1/orders/{order}/cancel");
        buyer.post(&cancel, &[("Authorization", &alice)], "{}").is(404, "not-found");
    }
}

#[test]
fn another_users_order_is_none() {
    let site = Site::start(Options::default());
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let path = format!("/api/v1/orders/{order_id}");
    let (alice, bob) = (bearer("alice"), bearer("bob"));
    for _ in ["queued", "unpaid"] {
        let mut buyer = site.connect();
        assert_eq!(buyer.get(&path, &[("Authorization", &alice)]).status, 200);
        buyer.get(&path, &[("Authorization", &bob)]).is(404, "not-found");
        buyer.get(&format!("{path}/events"), &[("Authorization", &bob)]).is(404, "not-found");
        buyer.post(&format!("{path}/cancel"), &[("Authorization", &bob)], "{}").is(404, "not-found");
        buyer.get(&path, &[("Floodgate-Pass", &site.pass("bob").0)]).is(401, "unauthorized");
        let nobody = buyer.get(&path, &[]);
        nobody.is(401, "unauthorized");
        assert!(nobody.header("www-authenticate").is_some());
        site.drain();
    }
    assert_eq!(site.snapshot().confirmed, 1);
}

#[test]
fn books_out_of_reach_are_said_to_be() {
    let site = Site::start(Options::default());
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    site.drain();
    site.books.unreachable.store(true, std::sync::atomic::Ordering::Relaxed);
    let path = format!("/api/v1/orders/{order_id}");
    site.connect().get(&path, &[("Floodgate-Pass", &pass)]).is(503, "busy");
    let again = site.buy(&pass, "{}");
    again.is(503, "uncertain");
    assert_eq!(again.json()["order_id"], order_id.to_string());
    // A new purchase needs no books.
    assert_eq!(site.buy(&site.pass("bob").0, "{}").status, 202);
}

#[test]
fn books_that_hang_hold_nobody_for_long() {
    let site = Site::start(Options::default());
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    site.drain();
    site.books.silent.store(true, std::sync::atomic::Ordering::Relaxed);
    let (path, token) = (format!("/api/v1/orders/{order_id}"), support::bearer("alice"));
    // The connections of these tests give up after a minute.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            site.connect().get(&path, &[("Floodgate-Pass", &pass)]).is(503, "busy");
        });
        scope.spawn(|| {
            let cancel = [("Authorization", token.as_str())];
            site.connect().post(&format!("{path}/cancel"), &cancel, "{}").is(503, "busy");
        });
        scope.spawn(|| site.buy(&pass, "{}").is(503, "uncertain"));
    });
}

#[test]
fn questions_and_passes_are_refused_like_purchases() {
    let mut options = Options::default();
    options.gate.challenge = ChallengeKind::ProofOfWork;
    options.gate.opens_before_s = 60;
    options.limits.per_user_rps = 3;
    let site = Site::start(options);
    let alice = bearer("alice");
    let ask = |what: &str, sale: &str, who: &str, body: &str| {
        site.connect().post(&format!("/api/v1/sales/{sale}/{what}"), &[("Authorization", who)], body)
    };
    for what in ["challenges", "passes"] {
        ask(what, "none", &alice, "{}").is(404, "unknown-sale");
        ask(what, SALE, &alice, r#"{"x":1}"#).is(400, "bad-request");
        ask(what, SALE, &alice, "[").is(400, "bad-request");
        ask(what, SALE, "Bearer nonsense", "{}").is(401, "unauthorized");
        site.connect().post(&format!("/api/v1/sales/demo/{what}"), &[], "{}").is(401, "unauthorized");
        let cookie = format!("floodgate_user={}", token("alice"));
        let form = [("Cookie", cookie.as_str()), ("Content-Type", "text/plain")];
        site.connect().post(&format!("/api/v1/sales/demo/{what}"), &form, "{}").is(400, "bad-request");
    }
    for body in [r#"{"challenge":"x","answer":"1"}"#, r#"{"challenge":"x"}"#, "{}"] {
        ask("passes", SALE, &bearer("bob"), body).is(400, "bad-request");
    }
    for _ in 0..3 {
        assert_eq!(ask("challenges", SALE, &alice, "{}").status, 201);
    }
    support::http::until_too_fast(|| ask("challenges", SALE, &alice, "{}")).is(429, "slow-down");

    let asked_ms = now_ms();
    retime(&site, asked_ms + 150_000, asked_ms + 200_000);
    let early = ask("challenges", SALE, &alice, "{}");
    early.is(403, "not-started");
    // Until questions are asked.
    early.wait_leads_to(asked_ms + 90_000, asked_ms);
    retime(&site, now_ms() + 50_000, now_ms() + 200_000);
    assert_eq!(ask("challenges", SALE, &bearer("dave"), "{}").status, 201);
    retime(&site, now_ms() - 20, now_ms() - 10);
    ask("passes", SALE, &alice, "{}").is(403, "ended");
    let sold_out = stock::FlagState { sold_out: true, version: stock::FlagVersion { epoch: 9, counter: 9 } };
    site.runtime
        .block_on(site.stock.flag().publish(&SALE.parse().expect("a sale"), sold_out))
        .expect("published");
    ask("passes", SALE, &alice, "{}").is(410, "sold-out");
    ask("challenges", SALE, "", "{}").is(410, "sold-out");
}

#[test]
fn the_demo_login_is_for_this_machine() {
    let site = Site::start(Options::default());
    let login =
        |headers: &[(&str, &str)], body: &str| site.connect().post("/api/v1/demo/login", headers, body);
    assert_eq!(login(&[], r#"{"user":"汉字"}"#).status, 200);
    login(&[("X-Forwarded-For", "192.0.2.1")], r#"{"user":"a"}"#).is(403, "forbidden");
    login(&[("Forwarded", "for=192.0.2.1")], r#"{"user":"a"}"#).is(403, "forbidden");
    login(&[("Content-Type", "text/plain")], r#"{"user":"a"}"#).is(400, "bad-request");
    for body in ["{}", r#"{"user":""}"#, r#"{"user":7}"#, r#"{"user":"a\u0000"}"#, r#"{"user":"a","x":1}"#] {
        login(&[], body).is(400, "bad-request");
    }
    login(&[], &json!({"user": "x".repeat(129)}).to_string()).is(400, "bad-request");
    let mut raw = site.connect();
    raw.send(b"POST /api/v1/demo/login HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"user\":\"a\"}");
    raw.answer(true).expect("an answer").is(403, "forbidden");
    drop(raw);

    let mut options = Options::default();
    options.auth.demo = false;
    let site = Site::start(options);
    site.connect().post("/api/v1/demo/login", &[], r#"{"user":"a"}"#).is(404, "not-found");
}

#[test]
fn limits_count_users_and_addresses_behind_the_proxy() {
    let mut options = Options::default();
    options.limits.per_user_rps = 100;
    options.limits.per_address_rps = 2;
    let site = Site::start(options);
    let buy = |user: &str, from: &str| {
        let (pass, _) = site.pass(user);
        site.connect().post(ORDERS, &[("Floodgate-Pass", &pass), ("X-Forwarded-For", from)], "{}").status
    };
    // At least two a second; on a machine that is slow enough, more as the seconds pass.
    let let_in = |name: &str, from: &dyn Fn(usize) -> String| {
        let statuses: Vec<u16> = (0..40).map(|n| buy(&format!("{name}{n}"), &from(n))).collect();
        assert_eq!(statuses[..2], [202, 202]);
        assert!(statuses.contains(&429), "{statuses:?}");
    };
    let_in("four", &|_| String::from("192.0.2.1"));
    assert_eq!(buy("another", "192.0.2.2"), 202);
    let_in("six", &|n| format!("2001:db8::{n:x}"));
}

#[test]
fn looks_at_orders_are_counted_apart() {
    let mut options = Options::default();
    options.limits.per_user_rps = 1;
    let site = Site::start(options);
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let path = format!("/api/v1/orders/{order_id}");
    let statuses = [0; 60].map(|_| site.connect().get(&path, &[("Floodgate-Pass", &pass)]).status);
    assert_eq!(statuses[..4], [200; 4], "four looks a purchase");
    assert!(statuses[4..].contains(&429), "and more only as time passes: {statuses:?}");
}

#[test]
fn a_stale_sold_out_heals_by_itself() {
    let mut options = Options::default();
    options.sale.total = 1;
    let site = Site::start(options);
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let (next, _) = site.pass("bob");
    site.buy(&next, "{}").is(410, "sold-out");
    // The unit returns, but nobody tells the flag: as if another process had released it while ours was cut off.
    let settlement =
        stock::ledger::Settlement { order_id, user: "alice".parse().expect("a user"), quantity: 1 };
    let sale = SALE.parse().expect("a sale");
    site.runtime.block_on(site.stock.ledger().release(&sale, &[settlement])).expect("released");
    site.buy(&next, "{}").is(410, "sold-out");
    let healed = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        site.buy(&next, "{}").status == 202
    });
    assert!(healed, "a held sold-out is doubted every 2 s");
}

#[test]
fn a_request_names_its_host_once() {
    let site = Site::start(Options::default());
    for (head, status) in [
        ("GET /api/v1/time HTTP/1.1\r\n\r\n", 400),
        ("GET /api/v1/time HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /api/v1/time HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET /api/v1/time HTTP/1.0\r\n\r\n", 200),
        ("GET /api/v1/time HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ] {
        let mut raw = site.connect();
        raw.send(head.as_bytes());
        let answer = raw.answer(true).expect("an answer");
        assert_eq!(answer.status, status, "{head:?}");
        let is_named = String::from_utf8_lossy(&answer.body).contains("bad-request");
        assert_eq!(is_named, status == 400, "{head:?}");
    }
}
