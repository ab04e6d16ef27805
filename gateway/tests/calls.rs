//! Every call of the public interface and of the admin listener, as it should be.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;
use stock::OrderStatus;

use gateway::config::ChallengeKind;
use serde_json::json;
use support::{ADMIN_TOKEN, Options, Site, bearer, now_ms, sale};

#[test]
fn from_login_to_order_and_cancel() {
    let site = Site::start(Options::default());
    site.await_recovered();
    let mut buyer = site.connect();

    let login = buyer.post("/api/v1/demo/login", &[], r#"{"user":"alice"}"#);
    assert_eq!(login.status, 200, "{}", login.text());
    let cookie = login.header("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
    assert!(login.header("set-cookie").is_some_and(|c| c.contains("HttpOnly")));

    let pass = buyer.post("/api/v1/sales/demo/passes", &[("Cookie", &cookie)], "{}");
    assert_eq!(pass.status, 201, "{}", pass.text());
    assert_eq!(pass.header("cache-control"), Some("no-store"));
    let pass = pass.json();
    let (text, order_id) =
        (pass["pass"].as_str().expect("a pass"), pass["order_id"].as_str().expect("an id"));

    let body = r#"{"quantity":2,"metadata":"blue"}"#;
    let accepted = buyer.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", text)], body);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(accepted.header("location"), Some(format!("/api/v1/orders/{order_id}").as_str()));
    assert_eq!(accepted.header("cache-control"), Some("no-store"));
    assert_eq!(accepted.json()["order_id"], order_id);
    assert_eq!(accepted.json()["status"], "queued");
    assert_eq!(accepted.json()["position"], 0);
    assert!(accepted.json()["eta_ms"].is_u64() && accepted.json()["poll_after_ms"].is_u64());

    // The log holds exactly what was promised.
    let log = site.records();
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].quantity, log[0].metadata.as_deref()), (2, Some("blue")));
    assert_eq!((log[0].order_id.to_string(), log[0].user.as_str()), (order_id.to_owned(), "alice"));

    // The same pass again: the same order, no second record, whatever the repeat asks for.
    let again = buyer.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", text)], "{}");
    assert_eq!((again.status, again.json()["order_id"].clone()), (202, json!(order_id)));
    assert_eq!(site.records().len(), 1);

    // Queued: told from the ledger, without a read of the books; by cookie and by pass.
    let path = format!("/api/v1/orders/{order_id}");
    let by_cookie = buyer.get(&path, &[("Cookie", &cookie)]);
    assert_eq!(by_cookie.status, 200, "{}", by_cookie.text());
    assert_eq!(by_cookie.json()["status"], "queued");
    assert_eq!(by_cookie.json()["amount"], 2_000);
    assert_eq!(by_cookie.json()["currency"], "CNY");
    assert_eq!(by_cookie.json()["sale"], "demo");
    assert_eq!(by_cookie.json()["position"], 0);
    assert_eq!(buyer.get(&path, &[("Floodgate-Pass", text)]).status, 200);
    assert_eq!(site.books.order_reads.load(std::sync::atomic::Ordering::Relaxed), 0);
    let too_early = buyer.post(&format!("{path}/cancel"), &[("Cookie", &cookie)], "{}");
    too_early.is(409, "wrong-state");

    // Drained: unpaid, from the books.
    site.drain();
    let unpaid = buyer.get(&path, &[("Cookie", &cookie)]);
    assert_eq!(unpaid.json()["status"], "unpaid");
    assert!(unpaid.json()["pay_by"].is_string() && unpaid.json().get("position").is_none());
    let repeated = buyer.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", text)], "{}");
    assert_eq!((repeated.status, repeated.json()["status"].clone()), (202, json!("unpaid")));

    // Cancelled: the units return, and the pass is used.
    assert_eq!(site.snapshot().remaining, 98);
    let cancelled = buyer.post(&format!("{path}/cancel"), &[("Cookie", &cookie)], "");
    assert_eq!((cancelled.status, cancelled.json()["status"].clone()), (200, json!("closed")));
    assert_eq!(site.snapshot().remaining, 100);
    // Whoever lost the answer asks again, and hears it.
    let again = buyer.post(&format!("{path}/cancel"), &[("Cookie", &cookie)], "{}");
    assert_eq!((again.status, again.json()), (200, cancelled.json()));
    assert_eq!(site.snapshot().remaining, 100);
    let used = buyer.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", text)], "{}");
    used.is(409, "pass-used");
    assert_eq!(used.json()["order_id"], order_id);
}

#[test]
fn sales_and_time() {
    let site = Site::start(Options::default());
    let mut anyone = site.connect();
    let one = anyone.get("/api/v1/sales/demo", &[]);
    assert_eq!(one.status, 200);
    assert_eq!((one.json()["price"].clone(), one.json()["total"].clone()), (json!(1_000), json!(100)));
    assert_eq!(
        (one.json()["sold_out"].clone(), one.json()["challenge"].clone()),
        (json!(false), json!("off"))
    );
    assert!(one.json().get("passes_per_unit").is_none(), "not the buyer's business");
    assert!(one.header("cache-control").is_some_and(|c| c.contains("max-age=1")));
    let etag = one.header("etag").expect("an etag").to_owned();
    let known = anyone.get("/api/v1/sales/demo", &[("If-None-Match", &etag)]);
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(known.header("etag"), Some(etag.as_str()));
    assert_eq!(anyone.get("/api/v1/sales/demo", &[("If-None-Match", "\"x\"")]).status, 200);
    anyone.get("/api/v1/sales/none", &[]).is(404, "unknown-sale");

    let list = anyone.get("/api/v1/sales", &[]);
    assert_eq!(list.json()["sales"][0]["id"], "demo");
    let etag = list.header("etag").expect("an etag").to_owned();
    assert_eq!(anyone.get("/api/v1/sales", &[("If-None-Match", &etag)]).status, 304);

    let head = anyone.call("HEAD", "/api/v1/sales/demo", &[], None);
    assert_eq!((head.status, head.header("content-length").is_some()), (200, true));

    let asked_ms = now_ms();
    let time = anyone.get("/api/v1/time", &[]);
    let now: stock::Timestamp = serde_json::from_value(time.json()["now"].clone()).expect("a time");
    // Ledger time goes by its own anchor: a little beside the wall clock.
    assert!((asked_ms - 500..=now_ms() + 500).contains(&now.0), "{asked_ms} {now:?}");
    assert_eq!(time.header("cache-control"), Some("no-store"));
}

#[test]
fn pages_are_served_and_the_rest_is_not_found() {
    let site = Site::start(Options::default());
    let mut anyone = site.connect();
    for page in ["/", "/sales/demo", "/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV"] {
        let answer = anyone.get(page, &[]);
        assert_eq!(answer.status, 200, "{page}");
        assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/html")), "{page}");
    }
    for nothing in
        ["/nothing", "/api/v1/nothing", "/api/v1/sales/demo/orders/x", "/admin/v1/sales", "/readyz"]
    {
        anyone.get(nothing, &[]).is(404, "not-found");
    }
}

#[test]
fn wrong_methods_are_told_the_right_ones() {
    let site = Site::start(Options::default());
    let mut anyone = site.connect();
    for (method, path, allow) in [
        ("GET", "/api/v1/sales/demo/orders", "POST"),
        ("DELETE", "/api/v1/sales/demo/passes", "POST"),
        ("PUT", "/api/v1/sales/demo/challenges", "POST"),
        ("POST", "/api/v1/sales", "GET, HEAD"),
        ("POST", "/api/v1/time", "GET, HEAD"),
        ("POST", "/api/v1/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ] {
        let answer = anyone.call(method, path, &[], Some(b"{}"));
        answer.is(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
}

#[test]
fn proof_of_work_from_question_to_pass() {
    let mut options = Options::default();
    options.gate.challenge = ChallengeKind::ProofOfWork;
    options.gate.pow_bits = 8;
    let site = Site::start(options);
    let mut buyer = site.connect();
    let alice = bearer("alice");
    let question = buyer.post("/api/v1/sales/demo/challenges", &[("Authorization", &alice)], "");
    assert_eq!(question.status, 201, "{}", question.text());
    let question = question.json();
    assert_eq!(
        (question["kind"].clone(), question["puzzle"]["algorithm"].clone()),
        (json!("proof-of-work"), json!("sha256"))
    );
    let prefix = question["puzzle"]["prefix"].as_str().expect("a prefix");
    let solved = (0u64..).find(|n| {
        use sha2::Digest;
        sha2::Sha256::digest(format!("{prefix}:{n}"))[0] == 0
    });
    let answer = |answer: String| json!({"challenge": question["challenge"], "answer": answer}).to_string();
    let path = "/api/v1/sales/demo/passes";
    let right = solved.expect("a solution");
    // Another user's answer, a wrong one, none at all.
    let bob = bearer("bob");
    let foreign = buyer.post(path, &[("Authorization", &bob)], &answer(right.to_string()));
    assert_eq!(foreign.status, 400, "{}", foreign.text());
    let wrong = (0u64..).find(|n| *n != right && *n > right).expect("another number");
    buyer.post(path, &[("Authorization", &alice)], &answer(format!("{wrong}x"))).is(403, "wrong-answer");
    buyer.post(path, &[("Authorization", &alice)], "{}").is(400, "bad-request");
    // A number may come as a number.
    let number = json!({"challenge": question["challenge"], "answer": right}).to_string();
    let pass = buyer.post(path, &[("Authorization", &alice)], &number);
    assert_eq!(pass.status, 201, "{}", pass.text());
    // One use.
    buyer.post(path, &[("Authorization", &alice)], &answer(right.to_string())).is(410, "challenge-expired");
    let pass = pass.json();
    assert_eq!(site.buy(pass["pass"].as_str().expect("a pass"), "{}").status, 202);
}

#[test]
fn image_questions_show_their_picture() {
    let mut options = Options::default();
    options.gate.challenge = ChallengeKind::Image;
    let site = Site::start(options);
    site.await_ready();
    let mut buyer = site.connect();
    let alice = bearer("alice");
    let question = buyer.post("/api/v1/sales/demo/challenges", &[("Authorization", &alice)], "{}").json();
    assert_eq!(question["kind"], "image");
    let picture = buyer.get(question["image_url"].as_str().expect("a path"), &[]);
    assert_eq!(picture.header("content-type"), Some("image/png"));
    assert_eq!(&picture.body[1..4], b"PNG");
    assert_eq!(picture.header("cache-control"), Some("no-store"));
    buyer.get("/api/v1/challenges/nothing.png", &[]).is(404, "not-found");
    let blind = buyer.post(
        "/api/v1/sales/demo/challenges",
        &[("Authorization", &alice)],
        r#"{"kind":"proof-of-work"}"#,
    );
    assert_eq!(blind.json()["kind"], "proof-of-work");
}

#[test]
fn the_gate_hands_out_as_many_passes_as_the_stock_allows() {
    let mut options = Options::default();
    options.sale.total = 1;
    options.sale.passes_per_unit = 2;
    let site = Site::start(options);
    let mut buyer = site.connect();
    let mut ask =
        |user: &str| buyer.post("/api/v1/sales/demo/passes", &[("Authorization", &bearer(user))], "{}");
    let first = ask("alice");
    assert_eq!(first.status, 201, "{}", first.text());
    assert_eq!(ask("alice").json()["pass"], first.json()["pass"], "the live pass again");
    assert_eq!(ask("bob").status, 201);
    ask("carol").is(429, "gate-full");
    assert!(ask("carol").header("retry-after").is_some());
    assert_eq!(site.buy(first.json()["pass"].as_str().expect("a pass"), "{}").status, 202);
    ask("carol").is(410, "sold-out");
}

#[test]
fn a_pass_lives_from_the_opening_if_that_is_later() {
    let mut options = Options::default();
    options.gate.opens_before_s = 600;
    let starts_ms = now_ms() + 300_000;
    options.sale.starts_at = stock::Timestamp(starts_ms);
    let site = Site::start(options);
    let pass = site.connect().post("/api/v1/sales/demo/passes", &[("Authorization", &bearer("alice"))], "{}");
    assert_eq!(pass.status, 201, "{}", pass.text());
    let ends: stock::Timestamp = serde_json::from_value(pass.json()["expires_at"].clone()).expect("a time");
    assert!(ends.0 > starts_ms + 100_000, "{ends}");
    let asked_ms = now_ms();
    let early = site.buy(pass.json()["pass"].as_str().expect("a pass"), "{}");
    early.is(403, "not-started");
    early.wait_leads_to(starts_ms, asked_ms);
}

#[test]
fn events_tell_each_status_once_and_end() {
    let mut options = Options::default();
    options.gateway.event_streams_max = 1;
    let site = Site::start(options);
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let path = format!("/api/v1/orders/{order_id}/events");

    let mut stream = site.connect();
    stream.send(&support::http::request("GET", &path, &[("Floodgate-Pass", &pass)], None));
    let head = stream.answer(false).expect("an answer");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.chunk().as_deref(), Some("retry: 2000\n\n"));
    let queued = stream.chunk().expect("an event");
    assert!(queued.starts_with("event: status\ndata: {") && queued.contains("\"queued\""), "{queued}");

    // One more than the bound.
    site.connect().get(&path, &[("Floodgate-Pass", &pass)]).is(503, "busy");

    site.drain();
    assert!(stream.chunk().expect("an event").contains("\"unpaid\""));
    site.books.set_status(order_id, OrderStatus::Paid);
    assert!(stream.chunk().expect("an event").contains("\"paid\""));
    site.books.set_status(order_id, OrderStatus::Closed);
    assert!(stream.chunk().expect("an event").contains("\"closed\""));
    assert_eq!(stream.chunk(), None, "a final status ends the stream");

    site.connect()
        .get("/api/v1/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV/events", &[("Authorization", &bearer("a"))])
        .is(404, "not-found");
}

#[test]
fn the_operators_calls() {
    let site = Site::start(Options::default());
    let token = format!("Bearer {ADMIN_TOKEN}");
    let operator = [("Authorization", token.as_str())];
    let mut admin = site.admin();
    for path in ["/admin/v1/sales", "/admin/v1/sales/demo", "/admin/v1/nothing"] {
        let refused = admin.get(path, &[]);
        refused.is(401, "unauthorized");
        assert!(refused.header("www-authenticate").is_some());
        admin.get(path, &[("Authorization", "Bearer wrong")]).is(401, "unauthorized");
    }
    let lower_case = format!("bearer  {ADMIN_TOKEN}");
    assert_eq!(admin.get("/admin/v1/sales", &[("Authorization", &lower_case)]).status, 200);
    assert_eq!(admin.get("/admin/v1/sales", &operator).json()["sales"][0]["id"], "demo");
    let figures = admin.get("/admin/v1/sales/demo", &operator).json();
    assert_eq!(
        (figures["total"].clone(), figures["remaining"].clone(), figures["epoch"].clone()),
        (json!(100), json!(100), json!(1))
    );

    let second = serde_json::to_string(&sale("second")).expect("json");
    for _ in 0..2 {
        let published = admin.call("PUT", "/admin/v1/sales", &operator, Some(second.as_bytes()));
        assert_eq!(published.status, 200, "{}", published.text());
    }
    assert_eq!(site.connect().get("/api/v1/sales/second", &[]).status, 200);
    let mut other = sale("second");
    other.price += 1;
    let other = serde_json::to_string(&other).expect("json");
    admin.call("PUT", "/admin/v1/sales", &operator, Some(other.as_bytes())).is(409, "sale-differs");

    let (pass, _) = site.pass("alice");
    assert_eq!(admin.post("/admin/v1/sales/demo/pause", &operator, r#"{"by":"eve"}"#).status, 200);
    let paused = site.buy(&pass, "{}");
    paused.is(503, "paused");
    assert!(paused.header("retry-after").is_some());
    assert_eq!(admin.get("/admin/v1/sales/demo", &operator).json()["paused_by"], "eve");
    assert_eq!(admin.post("/admin/v1/sales/demo/resume", &operator, "").status, 200);
    assert_eq!(site.buy(&pass, "{}").status, 202);

    for _ in 0..2 {
        let restocked =
            admin.post("/admin/v1/sales/demo/restock", &operator, r#"{"restock_id":"r1","units":5}"#);
        assert_eq!(restocked.status, 200, "{}", restocked.text());
    }
    assert_eq!(site.snapshot().total, 105);

    let (pass, order_id) = site.pass("bob");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    site.drain();
    let cancel = format!("/admin/v1/orders/{order_id}/cancel");
    admin.post(&cancel, &[], "").is(401, "unauthorized");
    assert_eq!(admin.post(&cancel, &operator, "").json()["status"], "closed");
    assert_eq!(admin.post(&cancel, &operator, "{}").json()["status"], "closed");
    site.books.set_status(order_id, OrderStatus::Paid);
    admin.post(&cancel, &operator, "{}").is(409, "wrong-state");
    admin.post("/admin/v1/orders/x/cancel", &operator, "{}").is(404, "not-found");

    for (path, body) in [
        ("restock", r#"{"restock_id":"r1"}"#),
        ("restock", r#"{"restock_id":"","units":1}"#),
        ("restock", r#"{"restock_id":"x","units":0}"#),
        ("restock", r#"{"restock_id":"x","units":-1}"#),
        ("restock", r#"{"restock_id":"x","units":4294967296}"#),
        ("restock", r#"{"restock_id":"x\u0000","units":1}"#),
        ("pause", r#"{"who":"x"}"#),
        ("pause", "[]"),
        ("resume", "{"),
    ] {
        admin.post(&format!("/admin/v1/sales/demo/{path}"), &operator, body).is(400, "bad-request");
    }
    for nobody in ["", "a\\u0000", &"x".repeat(65)] {
        let by = format!(r#"{{"by":"{nobody}"}}"#);
        admin.post("/admin/v1/sales/demo/pause", &operator, &by).is(400, "bad-request");
    }
    let long = format!(r#"{{"by":"{}"}}"#, "x".repeat(70_000));
    site.admin().post("/admin/v1/sales/demo/pause", &operator, &long).is(413, "too-large");
    admin.post("/admin/v1/sales/none/pause", &operator, "{}").is(404, "unknown-sale");
    admin.get("/admin/v1/sales/none", &operator).is(404, "unknown-sale");
    admin.get("/admin/v1/sales/demo/nothing", &operator).is(404, "not-found");
    admin.post("/admin/v1/sales", &operator, "{}").is(405, "method-not-allowed");
    admin.get("/admin/v1/sales/demo/pause", &operator).is(405, "method-not-allowed");
    assert_eq!(site.snapshot().total, 105);
}

#[test]
fn a_rebuild_is_the_operators_and_names_its_log() {
    let site = Site::start(Options::default());
    let token = format!("Bearer {ADMIN_TOKEN}");
    let operator = [("Authorization", token.as_str())];
    let mut admin = site.admin();
    let path = "/admin/v1/ledger/rebuild";
    admin.post(path, &[], "{}").is(401, "unauthorized");
    admin.post(path, &[("Authorization", "Bearer wrong")], "{}").is(401, "unauthorized");
    let get = admin.get(path, &operator);
    get.is(405, "method-not-allowed");
    assert_eq!(get.header("allow"), Some("POST"));
    admin.post("/admin/v1/ledger", &operator, "{}").is(404, "not-found");
    admin.post("/admin/v1/ledger/rebuild/now", &operator, "{}").is(404, "not-found");
    for body in [
        "{",
        "[]",
        r#"{"with":"ff"}"#,
        r#"{"without":255}"#,
        r#"{"without":""}"#,
        r#"{"without":"0x7f"}"#,
        r#"{"without":"+7f"}"#,
        r#"{"without":"-1"}"#,
        r#"{"without":"gateway-1"}"#,
        r#"{"without":"10000000000000000"}"#,
    ] {
        admin.post(path, &operator, body).is(400, "bad-request");
    }
    assert_eq!(site.books.rebuilds.load(Ordering::Relaxed), 0, "none of these began one");

    for (body, at_risk) in [
        ("", json!(null)),
        ("{}", json!(null)),
        (r#"{"without":null}"#, json!(null)),
        (r#"{"without":"7f"}"#, json!(127)),
        (r#"{"without":"000000000000007F"}"#, json!(127)),
    ] {
        let begun = admin.post(path, &operator, body);
        assert_eq!(begun.status, 200, "{body}: {}", begun.text());
        assert_eq!(begun.json(), json!({"epoch": 2, "orders_at_risk": at_risk, "units_at_risk": at_risk}));
    }
    assert_eq!(site.books.rebuilds.load(Ordering::Relaxed), 5);
    site.books.unreachable.store(true, Ordering::Relaxed);
    let unreachable = admin.post(path, &operator, "{}");
    assert_eq!(unreachable.status, 503, "{}", unreachable.text());
}

#[test]
fn probes_and_metrics() {
    let site = Site::start(Options::default());
    site.await_ready();
    assert_eq!(site.admin().get("/healthz", &[]).status, 200);
    let ready = site.admin().get("/readyz", &[]).json();
    assert_eq!(ready, serde_json::json!({"ready": true, "conditions": [], "lacks": [], "notes": []}));
    let (pass, _) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    // Neither a repeat nor what could not be read is a second order, and all of it is counted.
    assert_eq!(site.buy(&pass, "{}").status, 202);
    site.buy(&pass, "{").is(400, "bad-request");
    site.buy(&pass, &" ".repeat(9_000)).is(413, "too-large");
    let metrics = site.admin().get("/metrics", &[]).text();
    for counted in [
        r#"{sale="demo",outcome="accepted"} 1"#,
        r#"{sale="demo",outcome="repeated"} 1"#,
        r#"{sale="",outcome="bad-request"} 1"#,
        r#"{sale="",outcome="too-large"} 1"#,
    ] {
        assert!(metrics.contains(&format!("floodgate_purchases_total{counted}\n")), "{counted}: {metrics}");
    }
    assert!(metrics.contains("floodgate_purchase_duration_seconds_count 2"), "{metrics}");
    assert!(metrics.contains("floodgate_ledger_batch_size"), "{metrics}");
    assert!(metrics.contains("floodgate_gateway_ready 1"), "{metrics}");

    assert!(metrics.contains("floodgate_gateway_condition{word=\"orders-away\"} 0\n"), "{metrics}");
}

#[test]
fn the_edge_feed_answers_when_something_changes() {
    let mut options = Options::default();
    options.sale.total = 1;
    let site = Site::start(options);
    let first = site.admin().get("/internal/v1/edge", &[]).json();
    let version = first["version"].as_u64().expect("a version");
    assert_eq!(first["sales"]["demo"]["sold_out"], false);
    let address = site.admin_address();
    let poll = std::thread::spawn(move || {
        support::Connection::open(address).get(&format!("/internal/v1/edge?since={version}"), &[]).json()
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(!poll.is_finished());
    let (pass, _) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let changed = poll.join().expect("an answer");
    assert_eq!(
        (changed["sales"]["demo"]["sold_out"].clone(), changed["instance"].clone()),
        (json!(true), first["instance"].clone())
    );
    assert!(changed["version"].as_u64() > Some(version));
    // Of another instance's version: at once.
    assert_eq!(site.admin().get("/internal/v1/edge?since=999999", &[]).status, 200);
    site.admin().get("/internal/v1/edge?since=x", &[]).is(400, "bad-request");
}
