//! Calls on a shop's service. Refunds against one that is down, that answers 500 after it has paid, and that says no: one id at every
//! try. Closings against one that knows of a payment, and one that is down.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use order_worker::database::{Capture, Disposition, RefundOutcome, RefundState, RefundTold};
use order_worker::life::outward::Service;
use order_worker::life::payments::config::{PaymentConfig, PaymentSecret};
use order_worker::life::payments::standard_webhooks::StandardWebhooks;
use order_worker::life::refunds::{Refunds, watch_refunds};
use order_worker::{Closing, ClosingParts, DrainConfig, Shop, Worker, WorkerParts};
use parking_lot::Mutex;
use stock::OrderStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use world::process::Process;
use world::{World, order_id};

/// What it answers, one after the other; then 200. And what it was sent: bodies by their idempotency key.
#[derive(Default)]
struct Till {
    answers: Mutex<Vec<&'static str>>,
    heard: Mutex<BTreeMap<String, Vec<serde_json::Value>>>,
}

async fn serve(listener: TcpListener, shop: Arc<Till>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let (head, body) = loop {
            let mut part = [0; 4096];
            let read = stream.read(&mut part).await.unwrap();
            bytes.extend_from_slice(&part[..read]);
            let text = String::from_utf8(bytes.clone()).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.unwrap().parse::<usize>().unwrap() {
                break (head.to_owned(), body.to_owned());
            }
        };
        assert!(head.starts_with("POST /shop HTTP/1.1") && head.contains("webhook-signature: v1,"), "{head}");
        let key = head.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap();
        let body = serde_json::from_str(&body).unwrap();
        shop.heard.lock().entry(key.to_owned()).or_default().push(body);
        let answer = shop
            .answers
            .lock()
            .pop()
            .unwrap_or("200 OK\r\ncontent-length: 21\r\n\r\n{\"state\":\"succeeded\"}");
        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
    }
}

fn service(port: u16) -> Service {
    let url = serde_json::json!({ "refund_url": format!("http://127.0.0.1:{port}/shop") });
    let config: PaymentConfig = serde_json::from_value(url).unwrap();
    let secret = PaymentSecret::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let config = PaymentConfig { callback_secret: Some(secret), ..config };
    let webhooks = StandardWebhooks::new(config.secrets().unwrap());
    Service::new(config.refund_url.as_ref().unwrap(), webhooks).unwrap()
}

fn refunds(world: &World, port: u16) -> Refunds {
    Refunds::new(world.database.clone(), service(port), world.metrics.clone())
}

/// A payment that goes back; its refund's id.
async fn late(world: &World, n: u64) -> String {
    let capture = Capture {
        provider: "sandbox".into(),
        payment_id: format!("t{n}"),
        order_id: Some(order_id(n)),
        trade_ref: order_id(n).to_string(),
        amount: 5,
        currency: "CNY".into(),
        paid_at: None,
    };
    let sale = world.database.sale(&"s".parse().unwrap()).await.unwrap();
    let sale = match sale {
        Some(sale) => sale.definition.id,
        None => world.open("s", 10, 10).await,
    };
    let order = world.reserve(&sale, n, "u", 1).await.unwrap();
    world.database.settle(vec![order]).await.unwrap();
    let captured = world.database.capture(&capture).await.unwrap();
    assert!(matches!(captured.disposition, Disposition::Refund(_)));
    let (_, refunds) = world.database.payment("sandbox", &format!("t{n}")).await.unwrap().unwrap();
    refunds[0].refund_id.clone()
}

async fn state(world: &World, n: u64) -> (RefundState, u32) {
    let (_, refunds) = world.database.payment("sandbox", &format!("t{n}")).await.unwrap().unwrap();
    (refunds[0].state, refunds[0].attempts)
}

#[tokio::test]
async fn a_refund_survives_an_outage_and_a_service_that_answers_500_after_it_has_paid() {
    let world = World::new();
    let id = late(&world, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let refunds = refunds(&world, port);
    for attempt in 1..=3 {
        assert_eq!(refunds.pass().await.unwrap(), 1);
        assert_eq!(state(&world, 1).await, (RefundState::Requested, attempt), "nobody is there");
        assert_eq!(refunds.pass().await.unwrap(), 0, "not before its pause is over");
        world.advance(3_600_000);
    }
    let shop = Arc::new(Till::default());
    shop.answers.lock().push("500 Internal Server Error\r\ncontent-length: 0\r\n\r\n");
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let serving = tokio::spawn(serve(listener, shop.clone()));
    assert_eq!(refunds.pass().await.unwrap(), 1);
    assert_eq!(state(&world, 1).await, (RefundState::Requested, 4));
    world.advance(3_600_000);
    assert_eq!(refunds.pass().await.unwrap(), 1);
    assert_eq!(state(&world, 1).await, (RefundState::Succeeded, 5));
    world.advance(86_400_000);
    assert_eq!(refunds.pass().await.unwrap(), 0);
    let heard = shop.heard.lock().clone();
    assert_eq!(heard.len(), 1, "one id at every try, so that the service pays once");
    let bodies = &heard[&id];
    assert_eq!((bodies.len(), &bodies[0]), (2, &bodies[1]));
    assert_eq!(
        (&bodies[0]["amount"], &bodies[0]["currency"], &bodies[0]["refund_id"]),
        (&5.into(), &"CNY".into(), &id.into())
    );
    serving.abort();
}

#[tokio::test]
async fn a_final_no_is_stuck_until_somebody_has_it_tried_again() {
    let world = World::new();
    let id = late(&world, 1).await;
    let shop = Arc::new(Till::default());
    let no = "422 Unprocessable Content\r\ncontent-length: 27\r\n\r\n{\"reason\":\"closed account\"}";
    shop.answers.lock().push(no);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refunds = refunds(&world, listener.local_addr().unwrap().port());
    let serving = tokio::spawn(serve(listener, shop.clone()));
    refunds.pass().await.unwrap();
    let stuck = world.database.refunds(RefundState::Stuck, None, 10).await.unwrap();
    assert_eq!((stuck.len(), stuck[0].last_error.as_deref()), (1, Some("closed account")));
    world.advance(86_400_000);
    assert_eq!(refunds.pass().await.unwrap(), 0);
    world.database.retry_refund(&id, &world::author()).await.unwrap();
    assert_eq!(refunds.pass().await.unwrap(), 1);
    assert_eq!(state(&world, 1).await, (RefundState::Succeeded, 2));
    assert_eq!(shop.heard.lock().keys().collect::<Vec<_>>(), [&id]);
    serving.abort();
}

/// Closes what lapsed of one order whose deadline no log has, with a check and a farewell at these ports.
async fn close(check: u16, farewell: u16) -> (World, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(World::new(), directory.path()).await;
    let sale = process.world.open("s", 10, 10).await;
    process.promise(&sale, 1, "u", 1).await.unwrap();
    let timeouts = process.timeouts();
    let closing = Closing::new(ClosingParts {
        database: process.world.database.clone(),
        stock: process.world.stock.clone(),
        timeouts: timeouts.clone(),
        shop: Shop::new(Some(service(check)), Some(service(farewell))),
        budget: DrainConfig::default(),
        now: process.world.now(),
        metrics: process.world.metrics.clone(),
    });
    let parts = process.worker_parts(100_000).await;
    let drain = Worker::new(WorkerParts { timeouts, ..parts }, process.shutdown.subscribe());
    let drain = tokio::spawn(drain.run());
    process.drained(&sale).await;
    process.world.advance(900_000);
    let down = process.shutdown.subscribe();
    let sweep = tokio::spawn(async move { closing.by_index(down).await });
    let done = async {
        while process.status(1).await.unwrap().0 == OrderStatus::Unpaid {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done)
        .await
        .expect("neither paid nor closed within a minute");
    process.shutdown.send_replace(true);
    sweep.await.unwrap();
    (process.stop(drain).await, directory)
}

async fn listening(answers: Vec<&'static str>) -> (Arc<Till>, u16) {
    let till = Arc::new(Till { answers: Mutex::new(answers), ..Till::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(listener, till.clone()));
    (till, port)
}

#[tokio::test]
async fn an_order_that_the_shop_knows_to_be_paid_is_paid() {
    let paid = "200 OK\r\ncontent-length: 67\r\n\r\n{\"state\":\"paid\",\"payment_id\":\"t1\",\"amount\":206640,\"currency\":\"CNY\"}";
    let (asked, check) = listening(vec![paid]).await;
    let (told, farewell) = listening(Vec::new()).await;
    let (world, _directory) = close(check, farewell).await;
    let row = world.database.order(order_id(1)).await.unwrap().unwrap();
    assert_eq!((row.status, row.units_held), (OrderStatus::Paid, 1));
    let (payment, _) = world.database.payment("standard-webhooks", "t1").await.unwrap().unwrap();
    assert_eq!(payment.disposition, Disposition::Kept, "as a callback would have been");
    assert_eq!(asked.heard.lock()[&order_id(1).to_string()].len(), 1);
    assert!(told.heard.lock().is_empty());
}

#[tokio::test]
async fn a_shop_that_gives_no_answer_holds_up_no_closing() {
    let (told, farewell) = listening(Vec::new()).await;
    let (_, check) = listening(vec!["503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"]).await;
    let (world, _directory) = close(check, farewell).await;
    let row = world.database.order(order_id(1)).await.unwrap().unwrap();
    assert_eq!(row.status, OrderStatus::Closed);
    // The row is there before the word.
    let told = async {
        while told.heard.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        told.heard.lock().keys().cloned().collect::<Vec<_>>()
    };
    let told = tokio::time::timeout(Duration::from_secs(60), told).await.expect("not told within a minute");
    assert_eq!(told, [format!("{}-closed", order_id(1))]);
}

#[tokio::test(start_paused = true)]
async fn refunds_that_nobody_sends_are_seen() {
    let world = World::new();
    let (shutdown, down) = tokio::sync::watch::channel(false);
    let watching = tokio::spawn(watch_refunds(world.database.clone(), world.metrics.clone(), false, down));
    let figures = async || {
        // Longer than between two counts.
        tokio::time::sleep(Duration::from_secs(11)).await;
        ["due", "overdue", "stuck"].map(|state| {
            let line = format!("floodgate_open_refunds{{state=\"{state}\"}}");
            world.metric(&line) as u64
        })
    };
    assert_eq!((figures().await, world.metrics.are_refunds_stuck()), ([0, 0, 0], false));
    let id = late(&world, 1).await;
    assert_eq!((figures().await, world.metrics.are_refunds_stuck()), ([1, 0, 0], false));
    world.advance(60_000);
    assert_eq!((figures().await, world.metrics.are_refunds_stuck()), ([1, 1, 0], true));
    let told = |outcome| RefundTold { refund_id: id.clone(), outcome, provider_refund_id: None };
    world.database.refund_told(&told(RefundOutcome::Failed("no".into()))).await.unwrap();
    assert_eq!((figures().await, world.metrics.are_refunds_stuck()), ([0, 0, 1], true));
    world.database.refund_told(&told(RefundOutcome::Succeeded)).await.unwrap();
    assert_eq!((figures().await, world.metrics.are_refunds_stuck()), ([0, 0, 0], false));
    shutdown.send_replace(true);
    watching.await.unwrap();
}
