//! An order's later life, the outbox, the sums.

use std::time::Duration;

use order_worker::database::{By, CancelOutcome, DatabaseError, Outcome, RejectReason, SaleBooks, Standing};
use stock::OrderStatus;

use super::*;

pub(crate) async fn cancel_gives_units_back_once(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 2)).await;
    fixture.advance(50);
    let user = user_id("u");
    let first = fixture.database.cancel(order_id(1), By::User(&user)).await.unwrap();
    let CancelOutcome::Cancelled(row) = &first else { panic!("{first:?}") };
    assert_eq!(
        (row.status, row.reason.as_deref(), row.units_held),
        (OrderStatus::Closed, Some("cancelled"), 0)
    );
    assert_eq!((row.version, row.updated_at.0, row.quantity), (2, START_MS + 50, 2));
    assert_eq!(fixture.database.sale(&sale_id("s")).await.unwrap().unwrap().sold, 0);
    let releases = fixture.database.releases(None, &[], 10).await.unwrap();
    assert_eq!((releases.len(), releases[0].1.quantity, &releases[0].1.user), (1, 2, &user));
    fixture.database.releases_done(&[order_id(1)]).await.unwrap();
    fixture.advance(50);
    let second = fixture.database.cancel(order_id(1), By::User(&user)).await.unwrap();
    assert_eq!(second, first, "the same answer, nothing changed");
    assert!(fixture.database.releases(None, &[], 10).await.unwrap().is_empty());
    assert_eq!(fixture.database.sale(&sale_id("s")).await.unwrap().unwrap().sold, 0);
}

pub(crate) async fn cancel_minds_its_owner(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 2)).await;
    let other = user_id("other");
    assert_eq!(
        fixture.database.cancel(order_id(1), By::User(&other)).await.unwrap(),
        CancelOutcome::NotFound
    );
    assert_eq!(
        fixture.database.cancel(order_id(2), By::Operator(&author())).await.unwrap(),
        CancelOutcome::NotFound
    );
    assert_eq!(fixture.database.order(order_id(1)).await.unwrap().unwrap().version, 1);
    let by_operator = fixture.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    assert!(matches!(by_operator, CancelOutcome::Cancelled(_)));
    assert_eq!(
        fixture.database.cancel(order_id(1), By::User(&other)).await.unwrap(),
        CancelOutcome::NotFound
    );
}

pub(crate) async fn cancel_of_a_rejected_order_is_refused(fixture: Fixture) {
    fixture.publish("s", 1, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 2)).await;
    let outcome = fixture.database.cancel(order_id(1), By::User(&user_id("u"))).await.unwrap();
    assert_eq!(outcome, CancelOutcome::WrongState(OrderStatus::Rejected));
}

pub(crate) async fn a_cancelled_unit_can_be_sold_again(fixture: Fixture) {
    fixture.publish("s", 1, 1).await;
    for n in 0..5 {
        let settled = fixture.settle_one(reservation("s", n, "u", 1)).await;
        assert_eq!(settled.outcome, Outcome::Inserted);
        fixture.database.cancel(order_id(n), By::Operator(&author())).await.unwrap();
    }
    assert_eq!(fixture.database.releases(None, &[], 10).await.unwrap().len(), 5);
}

pub(crate) async fn concurrent_cancels_release_once(fixture: Fixture) {
    fixture.publish("s", 3, 3).await;
    fixture.settle_one(reservation("s", 1, "u", 3)).await;
    let cancels = (0..10).map(|_| {
        let database = fixture.database.clone();
        tokio::spawn(async move { database.cancel(order_id(1), By::Operator(&author())).await.unwrap() })
    });
    for cancel in cancels.collect::<Vec<_>>() {
        assert!(matches!(cancel.await.unwrap(), CancelOutcome::Cancelled(row) if row.version == 2));
    }
    let books = &fixture.database.books(None).await.unwrap()[0];
    assert_eq!((books.sold, books.units_held, books.releases), (0, 0, 1));
}

pub(crate) async fn orders_come_in_pages(fixture: Fixture) {
    fixture.publish("s", 100, 1).await;
    fixture.publish("t", 100, 1).await;
    let batch = (0..40).map(|n| reservation(["t", "s"][n as usize % 2], n, &format!("u{}", 40 - n), 1));
    fixture.database.settle(batch.collect::<Vec<_>>()).await.unwrap();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = fixture.database.orders(&sale_id("s"), after, 7).await.unwrap();
        let last = page.len() < 7;
        after = page.last().map(|row| row.order_id);
        seen.extend(page.into_iter().map(|row| row.order_id));
        if last {
            break;
        }
    }
    assert_eq!(seen, (0..20).map(|n| order_id(n * 2 + 1)).collect::<Vec<_>>());
    assert!(fixture.database.orders(&sale_id("nowhere"), None, 7).await.unwrap().is_empty());
}

pub(crate) async fn a_users_orders_come_newest_first(fixture: Fixture) {
    fixture.publish("s", 100, 50).await;
    fixture.publish("t", 100, 50).await;
    for (n, sale, user) in [(1, "s", "u"), (3, "s", "u"), (2, "s", "u"), (4, "s", "v"), (5, "t", "u")] {
        fixture.settle_one(reservation(sale, n, user, 1)).await;
    }
    fixture.database.cancel(order_id(2), By::Operator(&author())).await.unwrap();
    let of = async |sale: &str, user: &str, limit| {
        let rows = fixture.database.orders_of_user(&sale_id(sale), &user_id(user), limit).await.unwrap();
        rows.into_iter().map(|row| (row.order_id, row.status)).collect::<Vec<_>>()
    };
    let (unpaid, closed) = (OrderStatus::Unpaid, OrderStatus::Closed);
    assert_eq!(of("s", "u", 10).await, [(order_id(3), unpaid), (order_id(2), closed), (order_id(1), unpaid)]);
    assert_eq!(of("s", "u", 1).await, [(order_id(3), unpaid)]);
    assert_eq!(of("t", "v", 10).await, []);
}

pub(crate) async fn statuses_answer_in_order(fixture: Fixture) {
    fixture.publish("s", 2, 2).await;
    let batch = vec![reservation("s", 1, "a", 1), reservation("s", 2, "b", 2), reservation("s", 3, "c", 1)];
    fixture.database.settle(batch).await.unwrap();
    fixture.database.cancel(order_id(3), By::Operator(&author())).await.unwrap();
    let asked = [order_id(3), order_id(9), order_id(2), order_id(1)];
    let standing = |status, units_held| Some(Standing { status, units_held });
    let expected = [
        standing(OrderStatus::Closed, 0),
        None,
        standing(OrderStatus::Rejected, 0),
        standing(OrderStatus::Unpaid, 1),
    ];
    assert_eq!(fixture.database.statuses(&asked).await.unwrap(), expected);
    assert!(fixture.database.statuses(&[]).await.unwrap().is_empty());
}

pub(crate) async fn releases_come_in_pages_until_done(fixture: Fixture) {
    fixture.publish("s", 1, 1).await;
    let batch: Vec<_> = (0..10).map(|n| reservation("s", n, &format!("u{n}"), 2)).collect();
    fixture.database.settle(batch).await.unwrap();
    assert_eq!(fixture.database.releases_outstanding().await.unwrap(), 10);
    let first = fixture.database.releases(None, &[], 4).await.unwrap();
    assert_eq!(first.len(), 4);
    let behind = fixture.database.releases(Some(first[3].1.order_id), &[], 100).await.unwrap();
    assert_eq!(behind.len(), 6);
    let done: Vec<_> = first.iter().map(|(_, s)| s.order_id).collect();
    fixture.database.releases_done(&done).await.unwrap();
    fixture.database.releases_done(&done).await.unwrap();
    assert_eq!(fixture.database.releases(None, &[], 100).await.unwrap(), behind);
    let (sale, other) = (sale_id("s"), sale_id("other"));
    assert_eq!(fixture.database.releases(None, std::slice::from_ref(&other), 100).await.unwrap(), behind);
    assert_eq!(fixture.database.releases(None, &[other, sale], 100).await.unwrap(), []);
}

pub(crate) async fn a_written_release_wakes_the_relay(fixture: Fixture) {
    fixture.publish("s", 1, 1).await;
    let woken_within = |wait| tokio::time::timeout(wait, fixture.database.release_written());
    let woken = || woken_within(Duration::from_secs(60));
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    assert!(woken_within(Duration::from_millis(20)).await.is_err(), "nothing was released");
    fixture.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    assert!(woken().await.is_ok());
    fixture.settle_one(reservation("s", 2, "u", 2)).await;
    assert!(woken().await.is_ok());
}

pub(crate) async fn books_sum_the_orders(fixture: Fixture) {
    fixture.publish("s", 4, 2).await;
    fixture.publish("t", 4, 2).await;
    let batch = vec![reservation("s", 1, "a", 2), reservation("s", 2, "b", 1), reservation("s", 3, "c", 2)];
    fixture.database.settle(batch).await.unwrap();
    // An order whose sale somebody has deleted since.
    fixture.database.reject(&reservation("nowhere", 4, "c", 1), RejectReason::Unwritable).await.unwrap();
    fixture.database.cancel(order_id(2), By::Operator(&author())).await.unwrap();
    let empty = SaleBooks {
        version: Some(1),
        sale: sale_id("t"),
        total: Some(4),
        sold: 0,
        units_held: 0,
        orders: 0,
        rejected: 0,
        users_over_limit: 0,
        releases: 0,
    };
    let s = SaleBooks {
        version: Some(1),
        sale: sale_id("s"),
        sold: 2,
        units_held: 2,
        orders: 3,
        rejected: 1,
        releases: 2,
        ..empty.clone()
    };
    let nowhere = SaleBooks {
        version: None,
        sale: sale_id("nowhere"),
        total: None,
        orders: 1,
        rejected: 1,
        releases: 1,
        ..empty.clone()
    };
    assert_eq!(fixture.database.books(None).await.unwrap(), [nowhere, s.clone(), empty]);
    assert_eq!(fixture.database.books(Some(&sale_id("s"))).await.unwrap(), [s]);
    assert_eq!(RejectReason::NotEnough.as_str(), "not-enough");
}

/// What a row must not say, for a row whose status somebody else has written: `write` writes it.
pub(crate) async fn a_row_with_another_word_is_an_error_that_names_it(
    fixture: &Fixture,
    write: impl Fn(&str),
) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "a", 1)).await;
    let order = order_id(1);
    for status in OrderStatus::ALL.into_iter().filter(|status| *status != OrderStatus::Queued) {
        write(status.as_str());
        assert_eq!(fixture.database.order(order).await.unwrap().unwrap().status, status);
        assert_eq!(fixture.database.statuses(&[order]).await.unwrap()[0].unwrap().status, status);
    }
    for word in ["shipped", "Paid", "queued", ""] {
        write(word);
        let database = &fixture.database;
        let again = vec![reservation("s", 1, "a", 1)];
        let errors = [
            database.order(order).await.map(drop),
            database.statuses(&[order]).await.map(drop),
            database.orders(&sale_id("s"), None, 10).await.map(drop),
            database.cancel(order, By::Operator(&author())).await.map(drop),
            database.settle(again).await.map(drop),
        ];
        for error in errors {
            let error = error.unwrap_err();
            assert!(matches!(error, DatabaseError::Broken(_)), "{error:?}");
            assert!(error.to_string().contains(&format!("{word:?}")), "{error} names {word:?}");
        }
    }
}
