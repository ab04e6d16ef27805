//! What one process says and the others hear while nothing breaks.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use stock::flag::zookeeper::Timing;
use stock::ledger::{ReserveBatch, ReserveOutcome, ReserveRequest, Settlement};
use stock::{EmbeddedLedger, FlagVersion, Ledger, OrderId, Owner, SaleVersion, Stock, ZooKeeperFlag};
use tokio::time::timeout;
use zookeeper_client::{Acls, CreateMode};

use crate::{AT_LAST, Peer, SERVER, by_hand, by_watches_alone, config, open, sale, sold_out};

#[tokio::test]
async fn a_state_travels_to_every_process_and_never_back_in_time() {
    let place = format!("{}/travels", SERVER.connect_string());
    let (first, second) = (Peer::start(place.clone()).await, Peer::start(place.clone()).await);
    let demo = sale("demo");
    first.publish(&demo, sold_out(1, 1)).await;
    second.hears(&demo, Some(sold_out(1, 1))).await;
    second.publish(&demo, open(1, 2)).await;
    first.hears(&demo, Some(open(1, 2))).await;
    // Late, from a process that has heard of nothing else: it learns better, and nobody else is told.
    let late = Peer::start_with(place.clone(), by_watches_alone()).await;
    late.publish(&demo, sold_out(1, 1)).await;
    late.hears(&demo, Some(open(1, 2))).await;
    late.told_all().await;
    let newcomer = Peer::start(place).await;
    newcomer.hears(&demo, Some(open(1, 2))).await;
    assert_eq!(newcomer.flag.feed().sales.get(&demo), Some(&open(1, 2)));
    first.publish(&demo, sold_out(2, 0)).await;
    for peer in [&second, &late, &newcomer] {
        peer.hears(&demo, Some(sold_out(2, 0))).await;
    }
}

#[tokio::test]
async fn writers_out_of_order_end_with_the_newest() {
    let place = format!("{}/order", SERVER.connect_string());
    let peers = [Peer::start(place.clone()).await, Peer::start(place.clone()).await];
    let reader = Peer::start(place).await;
    let demo = sale("demo");
    for round in 0..50u64 {
        // Each publishes every other state, the second one starting with the newest.
        let states: Vec<_> = (1..=8).map(|n| sold_out(1, round * 8 + n)).collect();
        let forward = async {
            for state in states.iter().step_by(2) {
                peers[0].publish(&demo, *state).await;
                tokio::task::yield_now().await;
            }
        };
        let backward = async {
            for state in states.iter().rev().step_by(2) {
                peers[1].publish(&demo, *state).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(forward, backward);
        for peer in peers.iter().chain([&reader]) {
            peer.hears(&demo, states.last().copied()).await;
        }
    }
}

#[tokio::test]
async fn a_thousand_changes_arrive_in_order_and_end_with_the_last() {
    let place = format!("{}/thousand", SERVER.connect_string());
    let (writer, reader) = (Peer::start(place.clone()).await, Peer::start(place).await);
    let demo = sale("demo");
    let cell = reader.flag.cell(&demo);
    let mut changes = reader.flag.subscribe();
    let watching = tokio::spawn(async move {
        let mut seen: Vec<FlagVersion> = Vec::new();
        loop {
            if let Some(state) = cell.read() {
                seen.push(state.version);
                if state.version.counter == 1_000 {
                    return seen;
                }
            }
            changes.changed().await.unwrap();
        }
    });
    for counter in 1..=1_000 {
        let state = if counter % 2 == 0 { open(1, counter) } else { sold_out(1, counter) };
        writer.publish(&demo, state).await;
        // Some are coalesced, some are not.
        if counter % 3 == 0 {
            tokio::task::yield_now().await;
        }
        if counter % 50 == 0 {
            writer.told_all().await;
            reader.hears(&demo, Some(state)).await;
        }
    }
    let seen = timeout(AT_LAST, watching).await.expect("the last change should arrive").unwrap();
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.len() >= 20, "only {} of the changes were seen", seen.len());
    writer.told_all().await;
}

#[tokio::test]
async fn many_sales_at_once_and_a_settled_one_that_goes() {
    let place = format!("{}/many", SERVER.connect_string());
    let (writer, reader) = (Peer::start(place.clone()).await, Peer::start(place.clone()).await);
    let sales: Vec<_> = (0..100).map(|n| sale(&format!("sale-{n}"))).collect();
    for sale in &sales {
        writer.publish(sale, sold_out(1, 1)).await;
    }
    for sale in &sales {
        reader.hears(sale, Some(sold_out(1, 1))).await;
    }
    let settled = &sales[42];
    writer.flag.forget(settled);
    assert_eq!(writer.flag.cell(settled).read(), None);
    reader.hears(settled, None).await;
    writer.told_all().await;
    let names = by_hand(&SERVER).await.list_children("/many/sold-out").await.unwrap();
    assert_eq!(names.len(), 99);
    // Another sale of that name, later: its znode begins anew, and so may its versions.
    reader.publish(settled, open(1, 1)).await;
    writer.hears(settled, Some(open(1, 1))).await;
    reader.publish(settled, sold_out(1, 2)).await;
    writer.hears(settled, Some(sold_out(1, 2))).await;
}

#[tokio::test]
async fn reading_again_finds_what_no_watch_told() {
    let place = format!("{}/again", SERVER.connect_string());
    let often = Timing { reread_interval: Duration::from_millis(50), ..by_watches_alone() };
    let peer = Peer::start_with(place, often).await;
    peer.in_touch(true).await;
    let demo = sale("demo");
    peer.publish(&demo, sold_out(2, 9)).await;
    peer.told_all().await;
    // Somebody restores a backup: an older state stands there, and this process knows better.
    let client = by_hand(&SERVER).await;
    client.set_data("/again/sold-out/demo", b"1 2 8 open", None).await.unwrap();
    let restored = async {
        while client.get_data("/again/sold-out/demo").await.unwrap().0 != b"1 2 9 sold-out" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_LAST, restored).await.expect("the newest state should be written again");
    assert_eq!(peer.flag.cell(&demo).read(), Some(sold_out(2, 9)));
}

#[tokio::test]
async fn what_a_newer_version_wrote_is_neither_believed_nor_overwritten() {
    let place = format!("{}/foreign", SERVER.connect_string());
    let peer = Peer::start(place).await;
    let client = by_hand(&SERVER).await;
    let everybody = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create("/foreign/sold-out/future", b"2 all is different", &everybody).await.unwrap();
    client.create("/foreign/sold-out/not a sale", b"1 9 9 sold-out", &everybody).await.unwrap();
    let (future, demo) = (sale("future"), sale("demo"));
    peer.publish(&future, sold_out(1, 1)).await;
    // Its own sales are not held up.
    peer.publish(&demo, sold_out(1, 1)).await;
    let written = async {
        while client.get_data("/foreign/sold-out/demo").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_LAST, written).await.expect("the other sale should be written");
    assert_eq!(client.get_data("/foreign/sold-out/future").await.unwrap().0, b"2 all is different");
    // That it is written is seen before its writer has the answer.
    let answered = async {
        while peer.store.waiting() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_LAST, answered).await.expect("the other sale should not wait");
    assert_eq!(peer.store.waiting(), 1);
    assert_eq!(peer.flag.feed().sales.len(), 2, "what is known is what this process published");
}

#[tokio::test]
async fn a_login_keeps_others_out() {
    let server = SERVER.connect_string();
    let ours = Peer::start(format!("shop:s3cret@{server}/guarded")).await;
    let demo = sale("demo");
    ours.publish(&demo, sold_out(1, 1)).await;
    ours.told_all().await;
    let other = Peer::start(format!("shop:s3cret@{server}/guarded")).await;
    other.hears(&demo, Some(sold_out(1, 1))).await;
    let stranger = by_hand(&SERVER).await;
    let refused = stranger.get_data("/guarded/sold-out/demo").await;
    assert_eq!(refused.unwrap_err(), zookeeper_client::Error::NoAuth);
    let refused = ZooKeeperFlag::connect(&config(format!("shop:s3cret@{server}/a//b")), 1).await.unwrap_err();
    assert!(!refused.to_string().contains("s3cret"), "{refused}");
}

/// Two processes on one ledger, a reservation that takes the last unit, and its release by a process that dies before it
/// can publish.
#[tokio::test]
async fn units_that_return_lift_the_flag_although_nobody_published_them() {
    let place = format!("{}/lifted", SERVER.connect_string());
    let (gateway, edge) = (Peer::start(place.clone()).await, Peer::start(place).await);
    let demo = sale("demo");
    let ledger = EmbeddedLedger::new(Arc::new(|| 1_000));
    let version = SaleVersion {
        sale: demo.clone(),
        version: 1,
        total: 1,
        starts_at_ms: 0,
        ends_at_ms: u64::MAX,
        per_user_limit: 1,
        passes_per_unit: 0,
        paused: false,
        terms_version: 1,
    };
    let stock = Stock::new(Ledger::Embedded(ledger), gateway.flag.clone(), &mut Registry::default());
    stock.install(&version, 1).await.unwrap();
    stock.open(&demo, 1).await.unwrap();
    let request = ReserveRequest {
        order_id: OrderId::new(1, &demo, 1),
        user: "u".parse().unwrap(),
        quantity: 1,
        metadata: None,
    };
    let batch = ReserveBatch {
        sale: demo.clone(),
        owner: Owner(1),
        epoch: 1,
        deadline_ms: 2_000,
        terms_version: 1,
        requests: vec![request.clone()],
    };
    // The process that takes the last unit dies before it publishes: others learn it with the next refusal.
    let answer = stock.ledger().reserve(&batch).await.unwrap();
    assert!(matches!(answer.outcomes[0], ReserveOutcome::Pending { .. }));
    let next =
        ReserveRequest { order_id: OrderId::new(2, &demo, 2), user: "v".parse().unwrap(), ..request.clone() };
    let refused = stock.reserve(&ReserveBatch { requests: vec![next], ..batch }).await.unwrap();
    assert!(matches!(refused.outcomes[0], ReserveOutcome::SoldOut));
    let heard = gateway.flag.cell(&demo).read().unwrap();
    assert!(heard.sold_out);
    edge.hears(&demo, Some(heard)).await;
    // A worker gives it back and dies before it publishes.
    let settled = Settlement { order_id: request.order_id, user: request.user, quantity: 1 };
    stock.ledger().release(&demo, &[settled]).await.unwrap();
    assert_eq!(edge.flag.cell(&demo).read(), Some(heard));
    // The gateway doubts what it holds, as it does every 2 s; its answer reaches everybody.
    stock.snapshot(&demo).await.unwrap();
    let lifted = gateway.flag.cell(&demo).read().unwrap();
    assert!(!lifted.sold_out && lifted.version > heard.version);
    edge.hears(&demo, Some(lifted)).await;
}

#[tokio::test]
async fn a_flag_of_a_life_that_never_was_goes_though_a_state_follows_at_once() {
    let place = format!("{}/dropped", SERVER.connect_string());
    let (first, second) = (Peer::start(place.clone()).await, Peer::start(place).await);
    let demo = sale("demo");
    first.publish(&demo, sold_out(9, 4)).await;
    second.hears(&demo, Some(sold_out(9, 4))).await;
    // As a gateway does whose ledger has begun anew: it drops the flag, and the ledger's next answer brings a lower one.
    second.flag.forget(&demo);
    second.publish(&demo, open(2, 1)).await;
    first.hears(&demo, Some(open(2, 1))).await;
    second.hears(&demo, Some(open(2, 1))).await;
    for peer in [&first, &second] {
        peer.told_all().await;
        assert_eq!(peer.flag.cell(&demo).read(), Some(open(2, 1)));
    }
}
