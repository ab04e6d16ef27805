//! Whose clock a time belongs to.

use super::leases::fresh_owner;
use super::*;

pub(crate) async fn a_sale_goes_by_the_clock_of_its_server(ledger: Ledger) {
    // "two" is where another sale is: nothing of it may come from there.
    let other = Sale::open(ledger.clone(), "two", 5).await;
    let mut sale = Sale::open(ledger, "clock", 5).await;
    let before_ms = sale.now_ms().await;
    let answer = sale.reserve_all(vec![sale.request(1, "ann", 1)]).await;
    let after_ms = sale.now_ms().await;
    assert!((before_ms..=after_ms).contains(&answer.now_ms), "{before_ms} {} {after_ms}", answer.now_ms);
    let theirs = other.reserve_all(vec![other.request(1, "ann", 1)]).await;
    assert!((other.now_ms..=other.now_ms().await).contains(&theirs.now_ms));

    // The first millisecond of the window and the first after it, by that clock.
    sale.push(|version| version.starts_at_ms = after_ms + HOUR_MS / 60).await;
    assert_eq!(sale.reserve(2, "bob", 1).await, ReserveOutcome::NotStarted);
    sale.push(|version| version.starts_at_ms = after_ms).await;
    sale.take(2, "bob", 1).await;
    sale.push(|version| version.ends_at_ms = after_ms).await;
    assert_eq!(sale.reserve(3, "eve", 1).await, ReserveOutcome::Ended);
}

pub(crate) async fn leases_go_by_the_clock_of_theirs(ledger: Ledger) {
    let owner = fresh_owner();
    let before_ms = ledger.now_ms(ledger.leases_server()).await.unwrap();
    let renewed_ms = ledger.renew_lease(owner, HOUR_MS).await.unwrap();
    let (told_ms, leases) = ledger.leases().await.unwrap();
    let after_ms = ledger.now_ms(ledger.leases_server()).await.unwrap();
    let times = [before_ms, renewed_ms, told_ms, after_ms];
    assert!(times.is_sorted(), "not of one clock: {times:?}");
    assert!(leases.contains(&(owner, renewed_ms + HOUR_MS)));
    ledger.end_lease(owner).await.unwrap();
}

pub(crate) async fn every_server_in_use_is_ready_and_keeps_its_number(ledger: Ledger) {
    let sale = Sale::open(ledger, "server", 5).await;
    for server in [sale.ledger.server_of(sale.id()), sale.ledger.leases_server()] {
        assert_eq!(sale.ledger.ready(server).await, Ok(()));
        assert_eq!(LedgerServer::numbered(server.number()), server);
    }
    assert_eq!(sale.ledger.server_of(sale.id()), sale.ledger.server_of(&sale.version.sale));
}
