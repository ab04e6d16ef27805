//! Servers that are killed, frozen, emptied and cut off. In each case all converge on the newest state afterwards, and whoever
//! is out of touch says *unknown*.

use std::time::Duration;

use stock::FlagState;
use stock::flag::FlagError;
use testbed::{Proxy, ZooKeeper, ZooKeeperEnsemble, ZooKeeperOptions};
use tokio::time::timeout;

use crate::{Peer, SERVER, by_watches_alone, open, sale, sold_out};

#[tokio::test]
async fn a_server_that_dies_makes_all_unknown_and_comes_back_with_what_was_published_meanwhile() {
    let server = ZooKeeper::start().unwrap();
    let place = format!("{}/floodgate", server.connect_string());
    let (first, second) = (Peer::start(place.clone()).await, Peer::start(place).await);
    let (demo, other) = (sale("demo"), sale("other"));
    first.publish(&demo, sold_out(1, 1)).await;
    first.publish(&other, sold_out(1, 5)).await;
    for sale in [&demo, &other] {
        second.hears(sale, first.flag.cell(sale).read()).await;
    }
    server.kill().unwrap();
    for peer in [&first, &second] {
        peer.in_touch(false).await;
        peer.hears(&demo, None).await;
        peer.hears(&other, None).await;
        assert!(peer.flag.feed().sales.is_empty());
    }
    // The ledger tells the first one of a returned unit: it knows, and says that nobody else does.
    let told = first.flag.publish(&demo, open(1, 2)).await;
    assert!(matches!(told, Err(FlagError::Unavailable(_))), "{told:?}");
    assert_eq!(first.flag.cell(&demo).read(), Some(open(1, 2)));
    assert_eq!(second.flag.cell(&demo).read(), None);
    server.restart().unwrap();
    for peer in [&first, &second] {
        peer.in_touch(true).await;
        peer.hears(&demo, Some(open(1, 2))).await;
        peer.hears(&other, Some(sold_out(1, 5))).await;
        peer.told_all().await;
    }
}

#[tokio::test]
async fn a_server_that_lost_everything_is_told_anew_and_old_states_do_not_return() {
    let server = ZooKeeper::start().unwrap();
    let port = server.port();
    let place = format!("{}/floodgate", server.connect_string());
    let (first, second) = (Peer::start(place.clone()).await, Peer::start(place).await);
    let demo = sale("demo");
    for counter in 1..=20 {
        first.publish(&demo, sold_out(3, counter)).await;
        second.hears(&demo, Some(sold_out(3, counter))).await;
    }
    first.told_all().await;
    drop(server);
    first.in_touch(false).await;
    second.in_touch(false).await;
    let _empty = ZooKeeper::start_with(ZooKeeperOptions { port: Some(port), ..Default::default() }).unwrap();
    first.in_touch(true).await;
    second.in_touch(true).await;
    assert_eq!(second.flag.cell(&demo).read(), None, "nobody has said anything since");
    // The znode's own version is 0 again, and somebody with an old answer of the ledger is first to write.
    first.publish(&demo, sold_out(3, 7)).await;
    second.hears(&demo, Some(sold_out(3, 7))).await;
    second.publish(&demo, open(4, 1)).await;
    first.hears(&demo, Some(open(4, 1))).await;
    first.publish(&demo, sold_out(3, 20)).await;
    first.told_all().await;
    assert_eq!(first.flag.cell(&demo).read(), Some(open(4, 1)));
    assert_eq!(second.flag.cell(&demo).read(), Some(open(4, 1)));
}

#[tokio::test]
async fn a_session_that_expires_is_replaced() {
    let server = ZooKeeper::start().unwrap();
    let place = format!("{}/floodgate", server.connect_string());
    let (first, second) = (Peer::start_impatient(place.clone()).await, Peer::start_impatient(place).await);
    let demo = sale("demo");
    first.publish(&demo, sold_out(1, 1)).await;
    second.hears(&demo, Some(sold_out(1, 1))).await;
    server.freeze().unwrap();
    for peer in [&first, &second] {
        peer.in_touch(false).await;
        peer.hears(&demo, None).await;
    }
    // Beyond the session timeout of 2 s, by the server's own count: it expires them as soon as it wakes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.publish(&demo, open(1, 2)).await;
    server.thaw().unwrap();
    for peer in [&first, &second] {
        peer.in_touch(true).await;
        peer.hears(&demo, Some(open(1, 2))).await;
    }
}

#[tokio::test]
async fn an_ensemble_that_loses_its_leader_goes_on() {
    let ensemble = ZooKeeperEnsemble::start().unwrap();
    let place = format!("{}/floodgate", ensemble.connect_string());
    let (first, second) = (Peer::start(place.clone()).await, Peer::start(place).await);
    let demo = sale("demo");
    first.publish(&demo, sold_out(1, 1)).await;
    second.hears(&demo, Some(sold_out(1, 1))).await;
    ensemble.leader().unwrap().kill().unwrap();
    // Whoever noticed says unknown, whoever did not still knows the newest state there is.
    let held = second.flag.cell(&demo).read();
    assert!(matches!(held, None | Some(FlagState { sold_out: true, .. })), "{held:?}");
    first.publish(&demo, open(1, 2)).await;
    second.hears(&demo, Some(open(1, 2))).await;
    second.in_touch(true).await;
    second.publish(&demo, sold_out(1, 3)).await;
    first.hears(&demo, Some(sold_out(1, 3))).await;
    first.told_all().await;
    second.told_all().await;
}

#[tokio::test]
async fn one_that_is_cut_off_says_unknown_while_the_others_go_on() {
    let proxy = Proxy::start(SERVER.port()).unwrap();
    let near = Peer::start(format!("{}/cut", SERVER.connect_string())).await;
    let far = Peer::start_impatient(format!("127.0.0.1:{}/cut", proxy.port())).await;
    let demo = sale("demo");
    near.publish(&demo, sold_out(1, 1)).await;
    far.hears(&demo, Some(sold_out(1, 1))).await;

    // Refused connections.
    proxy.cut().unwrap();
    far.in_touch(false).await;
    far.hears(&demo, None).await;
    near.publish(&demo, open(1, 2)).await;
    assert_eq!(near.flag.cell(&demo).read(), Some(open(1, 2)));
    proxy.heal().unwrap();
    far.hears(&demo, Some(open(1, 2))).await;

    // A network that swallows: the watch is stale until the silence is noticed, and then nothing is believed.
    proxy.stall();
    near.publish(&demo, sold_out(1, 3)).await;
    far.in_touch(false).await;
    far.hears(&demo, None).await;
    far.publish(&demo, open(1, 4)).await;
    proxy.heal().unwrap();
    near.hears(&demo, Some(open(1, 4))).await;
    far.hears(&demo, Some(open(1, 4))).await;
    far.told_all().await;
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_found_by_reading() {
    let proxy = Proxy::start(SERVER.port()).unwrap();
    let near = Peer::start(format!("{}/lost-answer", SERVER.connect_string())).await;
    let far = Peer::start(format!("127.0.0.1:{}/lost-answer", proxy.port())).await;
    let demo = sale("demo");
    far.publish(&demo, sold_out(1, 1)).await;
    near.hears(&demo, Some(sold_out(1, 1))).await;
    far.told_all().await;
    let mut counter = 1;
    loop {
        counter += 1;
        let state = open(1, counter);
        proxy.drop_replies(true);
        far.publish(&demo, state).await;
        far.in_touch(false).await;
        // The answer that was swallowed may have been an earlier read's: then the write was never sent, and it is tried again.
        let carried_out = timeout(Duration::from_secs(2), near.hears(&demo, Some(state))).await.is_ok();
        if carried_out {
            break;
        }
        proxy.drop_replies(false);
        far.in_touch(true).await;
        far.told_all().await;
        near.hears(&demo, Some(state)).await;
    }
    // Carried out, though its writer cannot know. Meanwhile the others go on, which must not be undone.
    near.publish(&demo, sold_out(1, counter + 1)).await;
    proxy.drop_replies(false);
    far.hears(&demo, Some(sold_out(1, counter + 1))).await;
    far.told_all().await;
    near.told_all().await;
    assert_eq!(near.flag.cell(&demo).read(), Some(sold_out(1, counter + 1)));
}

#[tokio::test]
async fn without_zookeeper_it_starts_all_the_same_and_catches_up() {
    let server = ZooKeeper::start().unwrap();
    let port = server.port();
    let place = format!("{}/floodgate", server.connect_string());
    drop(server);
    let early = Peer::start_with(place.clone(), by_watches_alone()).await;
    let demo = sale("demo");
    assert!(!early.flag.in_touch());
    assert_eq!(early.flag.cell(&demo).read(), None);
    assert!(early.flag.publish(&demo, sold_out(1, 1)).await.is_err());
    assert_eq!(early.flag.cell(&demo).read(), Some(sold_out(1, 1)));
    let _server = ZooKeeper::start_with(ZooKeeperOptions { port: Some(port), ..Default::default() }).unwrap();
    early.told_all().await;
    let late = Peer::start(place).await;
    late.hears(&demo, Some(sold_out(1, 1))).await;
    early.in_touch(true).await;
}
