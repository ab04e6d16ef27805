//! Confirmed, released, and what is remembered of them.

use stock::Owner;
use stock::ledger::{IdState, Ledger, ReserveOutcome};

use super::{OWNER, Sale};

pub(crate) async fn confirm_of_the_unknown_takes_units_even_below_zero(ledger: Ledger) {
    let sale = Sale::open(ledger, "below", 2).await;
    sale.take(1, "ann", 2).await;
    for _ in 0..2 {
        sale.confirm(2, "bob", 2).await;
        assert_eq!(sale.units().await, (-2, 2, 2));
    }
    let order_ids = vec![sale.order(2)];
    assert_eq!(sale.reserve(3, "bob", 1).await, ReserveOutcome::LimitReached { order_ids });
    assert_eq!(sale.reserve(4, "eve", 1).await, ReserveOutcome::SoldOut);
    sale.release(1, "ann", 2).await;
    assert_eq!(sale.reserve(5, "eve", 1).await, ReserveOutcome::SoldOut);
    assert_eq!(sale.units().await, (0, 0, 2));
}

pub(crate) async fn the_confirmed_quantity_counts(ledger: Ledger) {
    let sale = Sale::open(ledger, "quantity", 5).await;
    sale.take(1, "ann", 2).await;
    sale.confirm(1, "ann", 1).await;
    assert_eq!(sale.units().await, (4, 0, 1));
    sale.take(2, "ann", 1).await;
    sale.release(1, "ann", 2).await;
    assert_eq!(sale.units().await, (4, 1, 0));
}

pub(crate) async fn release_gives_units_back_once(ledger: Ledger) {
    let sale = Sale::open(ledger, "release", 5).await;
    sale.take(1, "ann", 2).await;
    sale.take(2, "bob", 2).await;
    sale.confirm(2, "bob", 2).await;
    for _ in 0..2 {
        sale.release(1, "ann", 2).await;
        sale.release(2, "bob", 2).await;
        assert_eq!(sale.units().await, (5, 0, 0));
    }
    assert_eq!(sale.reserve(1, "ann", 1).await, ReserveOutcome::PassUsed);
    sale.take(3, "ann", 2).await;
}

pub(crate) async fn released_is_final_even_before_the_reservation(ledger: Ledger) {
    let sale = Sale::open(ledger, "final", 5).await;
    sale.release(1, "ann", 2).await;
    assert_eq!(sale.units().await, (5, 0, 0));
    assert_eq!(sale.reserve(1, "ann", 2).await, ReserveOutcome::PassUsed);
    sale.confirm(1, "ann", 2).await;
    assert_eq!(sale.units().await, (5, 0, 0));
    assert_eq!(sale.state(1).await, IdState::Released);
}

pub(crate) async fn states_follow_the_ids(ledger: Ledger) {
    let sale = Sale::open(ledger, "states", 9).await;
    sale.take(1, "ann", 1).await;
    sale.take(2, "bob", 1).await;
    sale.confirm(2, "bob", 1).await;
    sale.confirm(3, "eve", 1).await;
    sale.release(4, "dan", 1).await;
    let ids = [5, 4, 3, 2, 1].map(|n| sale.order(n));
    use IdState::{Absent, Confirmed, Pending, Released};
    let states = sale.ledger.states(sale.id(), &ids).await.unwrap();
    assert_eq!(states, [Absent, Released, Confirmed, Confirmed, Pending]);
}

pub(crate) async fn pending_is_listed_by_id_owner_and_page(ledger: Ledger) {
    let sale = Sale::open(ledger, "pending", 9).await;
    for (n, user) in [(3, "ann"), (1, "bob"), (4, "eve"), (2, "dan")] {
        sale.take(n, user, 1).await;
    }
    let mut foreign = sale.batch(vec![sale.request(5, "zoe", 1)]);
    foreign.owner = Owner(7);
    sale.ledger.reserve(&foreign).await.unwrap();
    sale.confirm(1, "bob", 1).await;
    sale.release(4, "eve", 1).await;
    let page = async |owner, after: Option<u64>, limit| {
        let after = after.map(|n| sale.order(n));
        let page = sale.ledger.pending(sale.id(), owner, after, limit).await.unwrap();
        page.into_iter().map(|(owner, r)| (owner.0, r.order_id.0 as u64)).collect::<Vec<_>>()
    };
    assert_eq!(page(None, None, 10).await, [(0xF1, 2), (0xF1, 3), (7, 5)]);
    assert_eq!(page(Some(OWNER), None, 10).await, [(0xF1, 2), (0xF1, 3)]);
    assert_eq!(page(None, None, 1).await, [(0xF1, 2)]);
    assert_eq!(page(None, Some(2), 1).await, [(0xF1, 3)]);
    assert_eq!(page(Some(Owner(7)), Some(2), 1).await, [(7, 5)]);
    assert_eq!(page(None, Some(5), 10).await, []);
}

pub(crate) async fn a_users_orders_are_remembered_while_they_hold_units(ledger: Ledger) {
    let sale = Sale::named(ledger, "mine", 9).await;
    sale.ledger.install(&sale.version, 1).await.unwrap();
    let closed = sale.ledger.mine(sale.id(), &super::user_id("ann")).await;
    assert_eq!(closed, Err(stock::LedgerError::Closed), "absence means nothing yet");
    // A rebuild: the rows and a log.
    sale.confirm(1, "ann", 1).await;
    sale.ledger.restore(sale.id(), 1, OWNER, &[sale.reservation(2, "bob", 1)]).await.unwrap();
    sale.ledger.open(sale.id(), 1).await.unwrap();
    assert_eq!(sale.mine("ann").await, [(1, false)]);
    assert_eq!(sale.mine("bob").await, [(2, true)]);
    assert_eq!(sale.mine("eve").await, []);

    sale.take(3, "ann", 1).await;
    sale.confirm(2, "bob", 2).await;
    assert_eq!(sale.mine("ann").await, [(1, false), (3, true)]);
    assert_eq!(sale.mine("bob").await, [(2, false)], "another quantity, the same order");
    // The database is the truth of whose it is.
    sale.confirm(3, "eve", 1).await;
    assert_eq!((sale.mine("ann").await, sale.mine("eve").await), (vec![(1, false)], vec![(3, false)]));
    sale.release(1, "ann", 1).await;
    sale.release(3, "eve", 1).await;
    assert_eq!((sale.mine("ann").await, sale.mine("eve").await), (vec![], vec![]));
}

pub(crate) async fn of_many_orders_the_newest_are_remembered(ledger: Ledger) {
    let mut sale = Sale::open(ledger, "many", 900).await;
    sale.push(|version| version.per_user_limit = 100).await;
    for n in 1..=3 {
        sale.take(n, "ann", 1).await;
    }
    let more = (4..=70).map(|n| sale.request(n, "ann", 1)).collect();
    sale.reserve_all(more).await;
    let newest = |from: u64, to: u64| (from..=to).map(|n| (n, true)).collect::<Vec<_>>();
    assert_eq!(sale.mine("ann").await, newest(7, 70));
    sale.take(71, "ann", 1).await;
    assert_eq!(sale.mine("ann").await, newest(8, 71));
    // What is remembered no longer still counts.
    sale.release(1, "ann", 1).await;
    assert_eq!(sale.mine("ann").await, newest(8, 71));
    assert_eq!(sale.units().await, (830, 70, 0));
}
