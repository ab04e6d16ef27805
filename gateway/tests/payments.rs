//! Payment providers' calls over HTTP: which answer each of them hears, and what a crowd of them may take.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use stock::{OrderStatus, RefundPolicy};
use support::{ADMIN_TOKEN, Connection, Options, Site, bearer};

const CALLBACK: &str = "/api/v1/payments/callback";
const WECHAT_PAY: &str = "/api/v1/payments/wechat-pay";
const ALIPAY: &str = "/api/v1/payments/alipay";
/// As many as the gateway takes between body and answer.
const IN_FLIGHT_MAX: u64 = 64;

#[test]
fn each_provider_hears_its_own_words() {
    let site = Site::start(Options::default());
    let mut caller = site.connect();
    for (body, status, word) in [
        ("unsigned", 401, "signature-invalid"),
        ("malformed", 400, "bad-request"),
        ("not ours", 403, "not-ours"),
        ("our fault", 500, "internal"),
        ("mismatch", 409, "amount-mismatch"),
    ] {
        caller.post(CALLBACK, &[], body).is(status, word);
        let wechat = caller.post(WECHAT_PAY, &[], body);
        let alipay = caller.post(ALIPAY, &[], body);
        if body == "mismatch" {
            // Neither can do anything about it: the money goes back, and a repeat would change nothing.
            assert_eq!((wechat.status, wechat.json()["code"].as_str()), (200, Some("SUCCESS")));
            assert_eq!((alipay.status, alipay.text().as_str()), (200, "success"));
        } else {
            assert_eq!((wechat.status, wechat.json()["code"].as_str()), (status, Some("FAIL")));
            assert_eq!(wechat.json()["message"], "why");
            assert_eq!((alipay.status, alipay.text().as_str()), (status, "failure"));
        }
    }
    for again in 0..2 {
        let callback = caller.post(CALLBACK, &[], "{}");
        assert_eq!((callback.status, callback.text().as_str()), (200, "{}"), "{again}");
        assert_eq!(callback.header("cache-control"), Some("no-store"));
        let wechat = caller.post(WECHAT_PAY, &[], "{}");
        assert_eq!((wechat.status, wechat.header("content-type")), (200, Some("application/json")));
        let alipay = caller.post(ALIPAY, &[], "a=1");
        assert_eq!((alipay.status, alipay.text().as_str()), (200, "success"));
        assert_eq!(alipay.header("content-type"), Some("text/plain"));
    }
    let metrics = site.admin().get("/metrics", &[]).text();
    for line in [
        "floodgate_payment_calls_total{provider=\"alipay\",outcome=\"received\"} 2",
        "floodgate_payment_calls_total{provider=\"callback\",outcome=\"unsigned\"} 1",
        "floodgate_payment_calls_total{provider=\"wechat-pay\",outcome=\"amount-mismatch\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn whom_nobody_configured_is_not_found_and_a_database_out_of_reach_means_later() {
    let site = Site::start(Options::default());
    let mut caller = site.connect();
    caller.post("/api/v1/payments/stripe", &[], "{}").is(404, "not-found");
    caller.get(CALLBACK, &[]).is(405, "method-not-allowed");
    site.books.unreachable.store(true, Ordering::Relaxed);
    caller.post(WECHAT_PAY, &[], "{}").is(404, "not-found");
    let later = caller.post(CALLBACK, &[], "{}");
    later.is(503, "busy");
    assert!(later.header("retry-after").is_some());
    let alipay = caller.post(ALIPAY, &[], "a=1");
    assert_eq!((alipay.status, alipay.text().as_str()), (503, "failure"));
    site.books.unreachable.store(false, Ordering::Relaxed);
    assert_eq!(caller.post(CALLBACK, &[], "{}").status, 200);
}

#[test]
fn ten_megabytes_are_too_large_for_every_provider() {
    let site = Site::start(Options::default());
    let before = site.books.order_reads.load(Ordering::Relaxed);
    for path in [CALLBACK, WECHAT_PAY, ALIPAY] {
        // The head alone says it: not a byte of the body is waited for.
        let mut caller = site.connect();
        caller
            .send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n").as_bytes());
        let answer = caller.answer(true).expect("an answer");
        assert_eq!(answer.status, 413, "{path}: {}", answer.text());
        assert!(caller.is_closed_within(Duration::from_secs(30)), "{path}");
        // In pieces of no stated length.
        let mut caller = site.connect();
        caller.send(
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes(),
        );
        caller.send(format!("9000\r\n{}\r\n", "x".repeat(0x9000)).as_bytes());
        assert_eq!(caller.answer(true).expect("an answer").status, 413, "{path}");
    }
    assert_eq!(site.books.order_reads.load(Ordering::Relaxed), before, "nobody was asked about them");
    // More than any other call may have is fine.
    assert_eq!(site.connect().post(CALLBACK, &[], &" ".repeat(32_768)).status, 200);
    site.connect().post(CALLBACK, &[], &" ".repeat(32_769)).is(413, "too-large");
}

#[test]
fn so_many_at_once_and_no_more_and_purchases_go_on() {
    let site = Site::start(Options::default());
    site.await_recovered();
    site.books.silent.store(true, Ordering::Relaxed);
    let began = site.books.order_reads.load(Ordering::Relaxed);
    let taken = || site.books.order_reads.load(Ordering::Relaxed) - began;
    let mut held: Vec<Connection> = (0..IN_FLIGHT_MAX).map(|_| site.connect()).collect();
    for caller in &mut held {
        caller.send(&support::http::request("POST", CALLBACK, &[], Some(b"{}")));
    }
    while taken() < IN_FLIGHT_MAX {
        std::thread::sleep(Duration::from_millis(5));
    }
    site.connect().post(CALLBACK, &[], "{}").is(503, "busy");
    assert_eq!(taken(), IN_FLIGHT_MAX, "the one too many was asked about");
    let (pass, _) = site.pass("buyer");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    // Those that nobody answers are told to come again, and their places come free.
    for caller in &mut held {
        caller.answer(true).expect("an answer").is(503, "busy");
    }
    site.books.silent.store(false, Ordering::Relaxed);
    assert_eq!(site.connect().post(CALLBACK, &[], "{}").status, 200);
}

#[test]
fn the_demo_pays_by_a_callback_and_only_for_whom_it_is() {
    let site = Site::start(Options::default());
    site.await_recovered();
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let body = format!("{{\"order_id\":\"{order_id}\"}}");
    let alice = bearer("alice");
    let bob = bearer("bob");
    let path = "/api/v1/demo/payments";
    let mut buyer = site.connect();
    buyer.post(path, &[("Authorization", &alice)], &body).is(409, "wrong-state");
    site.drain();
    buyer.post(path, &[], &body).is(401, "unauthorized");
    buyer.post(path, &[("Authorization", &bob)], &body).is(404, "not-found");
    let forwarded = [("Authorization", alice.as_str()), ("X-Forwarded-For", "10.0.0.1")];
    buyer.post(path, &forwarded, &body).is(403, "forbidden");
    for again in 0..2 {
        let paid = buyer.post(path, &[("Authorization", &alice)], &body);
        assert_eq!(paid.status, 200, "{again}: {}", paid.text());
    }
    let order = buyer.get(&format!("/api/v1/orders/{order_id}"), &[("Authorization", &alice)]);
    assert_eq!(order.json()["status"], "paid");
    site.books.set_status(order_id, OrderStatus::Closed);
    buyer.post(path, &[("Authorization", &alice)], &body).is(409, "wrong-state");

    let off = Site::start(Options {
        auth: gateway::config::AuthConfig { demo: false, ..Options::default().auth },
        ..Options::default()
    });
    off.connect().post(path, &[("Authorization", &alice)], &body).is(404, "not-found");
}

#[test]
fn a_buyer_asks_for_money_where_the_sale_lets_buyers() {
    for policy in [RefundPolicy::Buyer, RefundPolicy::Operator] {
        let mut options = Options::default();
        options.sale.refund = policy;
        let site = Site::start(options);
        let mut buyer = site.connect();
        let offered = buyer.get("/api/v1/sales/demo", &[]).json();
        assert_eq!(offered["refund"], if policy == RefundPolicy::Buyer { "buyer" } else { "operator" });
        let (pass, order_id) = site.pass("alice");
        assert_eq!(site.buy(&pass, "{}").status, 202);
        let (alice, bob) = (bearer("alice"), bearer("bob"));
        let path = format!("/api/v1/orders/{order_id}/refund");
        let mut refund = |token: &str, body: &str| buyer.post(&path, &[("Authorization", token)], body);
        refund(&alice, "{}").is(409, "wrong-state");
        site.drain();
        if policy == RefundPolicy::Operator {
            site.books.set_status(order_id, OrderStatus::Paid);
            let refused = refund(&alice, "{}");
            refused.is(409, "wrong-state");
            assert!(refused.text().contains("ask the shop"), "{}", refused.text());
            continue;
        }
        refund(&alice, "{}").is(409, "wrong-state");
        site.books.set_status(order_id, OrderStatus::Paid);
        refund(&bob, "{}").is(404, "not-found");
        refund(&alice, r#"{"amount":1}"#).is(400, "bad-request");
        for _ in 0..2 {
            let asked = refund(&alice, "{}");
            assert_eq!((asked.status, asked.json()["status"].as_str()), (202, Some("refunding")));
        }
        site.books.set_status(order_id, OrderStatus::Refunded);
        let back = refund(&alice, "");
        assert_eq!((back.status, back.json()["status"].as_str()), (200, Some("refunded")));
        buyer.get(&path, &[]).is(405, "method-not-allowed");
    }
}

#[test]
fn an_operator_closes_refunds_and_withdraws() {
    let site = Site::start(Options::default());
    let mut admin = site.admin();
    let operator = format!("Bearer {ADMIN_TOKEN}");
    let operator = [("Authorization", operator.as_str())];
    let order = |user: &str, status| {
        let (pass, order_id) = site.pass(user);
        assert_eq!(site.buy(&pass, "{}").status, 202);
        site.drain();
        site.books.set_status(order_id, status);
        order_id
    };
    let (open, paid) = (order("alice", OrderStatus::Unpaid), order("bob", OrderStatus::Paid));
    let mut post = |path: &str, body: &str| admin.post(&format!("/admin/v1/{path}"), &operator, body);
    for (path, body) in [
        ("refund", r#"{"amount":1}"#),
        ("refund", r#"{"request_id":"a"}"#),
        ("refund", r#"{"request_id":"a","amount":0}"#),
        ("refund", r#"{"request_id":"","amount":1}"#),
        ("refund", r#"{"request_id":"a","amount":-1}"#),
        ("close", r#"{"reason":""}"#),
        ("close", r#"{"reason":"a\nb"}"#),
        ("cancel", r#"{"why":"x"}"#),
    ] {
        post(&format!("orders/{paid}/{path}"), body).is(400, "bad-request");
    }
    post(&format!("orders/{paid}/close"), "{}").is(409, "wrong-state");
    let closed = post(&format!("orders/{open}/close"), r#"{"reason":"a test"}"#);
    assert_eq!((closed.status, closed.json()["status"].as_str()), (200, Some("closed")));
    let part = post(&format!("orders/{paid}/refund"), r#"{"request_id":"a","amount":10,"reason":"late"}"#);
    assert_eq!((part.status, part.json()["order"]["status"].as_str()), (200, Some("paid")));
    assert_eq!(
        (&part.json()["refund"]["amount"], &part.json()["refund"]["reason"]),
        (&json!(10), &json!("late"))
    );
    post(&format!("orders/{paid}/refund"), r#"{"request_id":"b","amount":1001}"#).is(400, "bad-request");
    let whole = post(&format!("orders/{paid}/refund"), "{}");
    assert_eq!((whole.status, whole.json()["order"]["status"].as_str()), (200, Some("refunding")));
    post("orders/x/refund", "{}").is(404, "not-found");
    assert_eq!(post(&format!("refunds/{paid}/retry"), "{}").json()["refund_id"], paid.to_string());
    post("refunds/none/retry", "{}").is(404, "not-found");
    post("sales/nowhere/withdraw", "{}").is(404, "unknown-sale");
    post("sales/demo/withdraw", r#"{"orders":1}"#).is(400, "bad-request");
    let withdrawn = post("sales/demo/withdraw", r#"{"orders":true,"reason":"recalled"}"#);
    assert!(withdrawn.json()["withdrawn_at"].is_string(), "{}", withdrawn.text());
    let (pass, _) = site.pass("carol");
    site.buy(&pass, "{}").is(403, "ended");
    admin.get("/admin/v1/sales/demo/withdraw", &operator).is(405, "method-not-allowed");
}
