//! Promised orders become rows.

use order_worker::database::{By, DatabaseError, Outcome, RejectReason};
use stock::{OrderStatus, Timestamp};

use super::*;

pub(crate) async fn settle_writes_the_whole_row(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.advance(1_234);
    let settled = fixture.settle_one(reservation("s", 1, "u", 3)).await;
    assert_eq!(
        (settled.outcome, settled.status, settled.units_held),
        (Outcome::Inserted, OrderStatus::Unpaid, 3)
    );
    assert_eq!((settled.sale, settled.user, settled.quantity), (sale_id("s"), user_id("u"), 3));
    let row = fixture.database.order(order_id(1)).await.unwrap().unwrap();
    assert_eq!((row.order_id, row.sale_id, row.user_id), (order_id(1), sale_id("s"), user_id("u")));
    assert_eq!((row.quantity, row.units_held, row.amount, row.currency.as_str()), (3, 3, 619_920, "CNY"));
    assert_eq!((row.status, row.reason, row.version), (OrderStatus::Unpaid, None, 1));
    assert_eq!(row.metadata.as_deref(), Some("{\"gift\":true}"));
    let written = Timestamp(START_MS + 1_234);
    assert_eq!((row.created_at, row.updated_at), (written, written), "the database's clock");
    assert_eq!(row.pay_by, Some(Timestamp(written.0 + 900_000)));
    assert_eq!(fixture.database.sale(&sale_id("s")).await.unwrap().unwrap().sold, 3);
}

pub(crate) async fn rows_of_a_rehearsal_are_marked(fixture: Fixture) {
    fixture.publish("s", 10, 2).await;
    let rehearsal = SaleDefinition { rehearsal: true, ..definition("r", 1, 2) };
    fixture.database.publish(&rehearsal, &author()).await.unwrap();
    let one = |n, sale| reservation(sale, n, &format!("u{n}"), 1);
    fixture.database.settle(vec![one(1, "r"), one(2, "s")]).await.unwrap();
    // Too many, and what could not be written: rejected ones are marked as well.
    fixture.database.settle(vec![one(3, "r"), one(4, "s")]).await.unwrap();
    fixture.database.reject(&one(5, "r"), RejectReason::Unwritable).await.unwrap();
    fixture.database.reject(&one(6, "nowhere"), RejectReason::Unwritable).await.unwrap();
    for (n, is_marked) in [(1, true), (2, false), (3, true), (4, false), (5, true), (6, false)] {
        assert_eq!(fixture.database.order(order_id(n)).await.unwrap().unwrap().rehearsal, is_marked, "{n}");
    }
}

pub(crate) async fn settle_tells_inserts_from_duplicates(fixture: Fixture) {
    fixture.publish("s", 10, 1).await;
    let batch =
        || vec![reservation("s", 1, "a", 1), reservation("s", 2, "b", 1), reservation("s", 1, "a", 1)];
    let outcomes = |settled: Vec<Settled>| settled.into_iter().map(|s| s.outcome).collect::<Vec<_>>();
    let first = outcomes(fixture.database.settle(batch()).await.unwrap());
    assert_eq!(first, [Outcome::Inserted, Outcome::Inserted, Outcome::Duplicate]);
    let again = fixture.database.settle(batch()).await.unwrap();
    assert_eq!((again[0].status, again[0].units_held), (OrderStatus::Unpaid, 1));
    assert_eq!(outcomes(again), [Outcome::Duplicate; 3]);
    assert_eq!(fixture.database.sale(&sale_id("s")).await.unwrap().unwrap().sold, 2);
}

pub(crate) async fn settle_fits_first_in_log_order(fixture: Fixture) {
    fixture.publish("s", 5, 10).await;
    // Ids fall while the log goes on: it is the order given that counts.
    let batch = vec![
        reservation("s", 9, "a", 3),
        reservation("s", 8, "b", 3),
        reservation("s", 7, "c", 2),
        reservation("s", 6, "d", 1),
    ];
    let settled = fixture.database.settle(batch).await.unwrap();
    let outcomes: Vec<_> = settled.iter().map(|s| s.outcome).collect();
    let full = Outcome::Rejected(RejectReason::NotEnough);
    assert_eq!(outcomes, [Outcome::Inserted, full, Outcome::Inserted, full]);
    assert_eq!((settled[1].status, settled[1].units_held), (OrderStatus::Rejected, 0));
    let row = fixture.database.order(order_id(8)).await.unwrap().unwrap();
    assert_eq!((row.status, row.reason.as_deref()), (OrderStatus::Rejected, Some("not-enough")));
    assert_eq!((row.units_held, row.quantity, row.pay_by), (0, 3, None));
    let releases = fixture.database.releases(None, &[], 10).await.unwrap();
    let owed: Vec<_> = releases.iter().map(|(sale, s)| (sale.as_str(), s.order_id, s.quantity)).collect();
    assert_eq!(owed, [("s", order_id(6), 1), ("s", order_id(8), 3)]);
    assert_eq!(fixture.database.sale(&sale_id("s")).await.unwrap().unwrap().sold, 5);
}

pub(crate) async fn settle_keeps_the_per_user_limit_over_batches(fixture: Fixture) {
    fixture.publish("s", 100, 2).await;
    fixture.publish("t", 100, 2).await;
    let limited = Outcome::Rejected(RejectReason::LimitReached);
    let batch = vec![reservation("s", 1, "u", 1), reservation("s", 2, "u", 1), reservation("s", 3, "u", 1)];
    let outcomes: Vec<_> = fixture.database.settle(batch).await.unwrap().iter().map(|s| s.outcome).collect();
    assert_eq!(outcomes, [Outcome::Inserted, Outcome::Inserted, limited]);
    assert_eq!(fixture.settle_one(reservation("s", 4, "u", 1)).await.outcome, limited);
    assert_eq!(fixture.settle_one(reservation("s", 5, "v", 3)).await.outcome, limited);
    assert_eq!(
        fixture.settle_one(reservation("t", 6, "u", 2)).await.outcome,
        Outcome::Inserted,
        "another sale"
    );
    fixture.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    let again = fixture.settle_one(reservation("s", 7, "u", 1)).await;
    assert_eq!(again.outcome, Outcome::Inserted, "only units held count");
}

pub(crate) async fn settle_writes_nothing_of_an_unknown_sale(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    let unknown = Err(DatabaseError::UnknownSale(sale_id("nowhere")));
    let batch =
        vec![reservation("s", 1, "u", 1), reservation("nowhere", 2, "u", 1), reservation("s", 3, "u", 1)];
    assert_eq!(fixture.database.settle(batch.clone()).await, unknown);
    for n in 1..=3 {
        assert_eq!(fixture.database.order(order_id(n)).await.unwrap(), None, "{n}");
    }
    assert_eq!(fixture.database.releases(None, &[], 10).await.unwrap(), []);
    // An order that has a row is settled, whatever became of its sale.
    fixture.database.reject(&batch[1], RejectReason::Unwritable).await.unwrap();
    let settled = fixture.database.settle(batch).await.unwrap();
    let outcomes: Vec<_> = settled.iter().map(|settled| settled.outcome).collect();
    assert_eq!(outcomes, [Outcome::Inserted, Outcome::Duplicate, Outcome::Inserted]);
    let row = fixture.database.order(order_id(2)).await.unwrap().unwrap();
    assert_eq!((row.amount, row.currency.as_str(), row.units_held), (0, "XXX", 0));
}

pub(crate) async fn settle_writes_the_largest_amount(fixture: Fixture) {
    let mut dear = definition("s", 100, 1);
    dear.price = i64::MAX as u64;
    fixture.database.publish(&dear, &author()).await.unwrap();
    assert_eq!(fixture.settle_one(reservation("s", 1, "u", 1)).await.outcome, Outcome::Inserted);
    let settled = fixture.settle_one(reservation("s", 2, "v", 2)).await;
    assert_eq!(settled.outcome, Outcome::Rejected(RejectReason::LimitReached));
    assert_eq!(fixture.database.order(order_id(1)).await.unwrap().unwrap().amount, i64::MAX as u64);
    assert_eq!(fixture.database.order(order_id(2)).await.unwrap().unwrap().amount, 0);
}

pub(crate) async fn settle_spans_sales(fixture: Fixture) {
    fixture.publish("s", 1, 1).await;
    fixture.publish("t", 1, 1).await;
    let batch = (0..6).map(|n| reservation(["t", "s"][n as usize % 2], n, &format!("u{n}"), 1));
    let settled = fixture.database.settle(batch.collect::<Vec<_>>()).await.unwrap();
    let inserted = settled.iter().filter(|s| s.outcome == Outcome::Inserted);
    assert_eq!(inserted.map(|s| s.order_id).collect::<Vec<_>>(), [order_id(0), order_id(1)]);
    assert!(fixture.database.sales().await.unwrap().iter().all(|row| row.sold == 1));
}

pub(crate) async fn settle_of_nothing_is_nothing(fixture: Fixture) {
    assert!(fixture.database.settle(Vec::new()).await.unwrap().is_empty());
}

pub(crate) async fn a_duplicate_is_never_written_again(fixture: Fixture) {
    fixture.publish("s", 3, 3).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    let before = fixture.database.order(order_id(1)).await.unwrap();
    let mut other = reservation("s", 1, "somebody else", 3);
    other.metadata = None;
    let settled = fixture.settle_one(other).await;
    assert_eq!(
        (settled.outcome, settled.status, settled.units_held),
        (Outcome::Duplicate, OrderStatus::Closed, 0)
    );
    assert_eq!((settled.user, settled.quantity), (user_id("u"), 1), "as the row says");
    assert_eq!(fixture.database.order(order_id(1)).await.unwrap(), before);
    assert_eq!(fixture.database.releases(None, &[], 10).await.unwrap().len(), 1);
}

pub(crate) async fn reject_writes_a_bare_row_once(fixture: Fixture) {
    fixture.publish("s", 3, 3).await;
    let settled =
        fixture.database.reject(&reservation("s", 1, "u", 1), RejectReason::Unwritable).await.unwrap();
    assert_eq!(settled.outcome, Outcome::Rejected(RejectReason::Unwritable));
    let row = fixture.database.order(order_id(1)).await.unwrap().unwrap();
    assert_eq!((row.status, row.reason.as_deref()), (OrderStatus::Rejected, Some("unwritable")));
    assert_eq!((row.metadata, row.units_held, row.currency.as_str()), (None, 0, "CNY"));
    let again =
        fixture.database.reject(&reservation("s", 1, "u", 1), RejectReason::Unwritable).await.unwrap();
    assert_eq!(again.outcome, Outcome::Duplicate);
    assert_eq!(fixture.database.releases(None, &[], 10).await.unwrap().len(), 1);
}

pub(crate) async fn concurrent_batches_never_oversell(fixture: Fixture) {
    fixture.publish("s", 50, 1).await;
    let batches = (0..8u64).map(|b| {
        let batch: Vec<_> =
            (0..20).map(|n| reservation("s", b * 20 + n, &format!("u{}", n + b), 1)).collect();
        let database = fixture.database.clone();
        tokio::spawn(async move { database.settle(batch).await.unwrap() })
    });
    let mut inserted = 0;
    for batch in batches.collect::<Vec<_>>() {
        inserted += batch.await.unwrap().iter().filter(|s| s.outcome == Outcome::Inserted).count();
    }
    let books = &fixture.database.books(None).await.unwrap()[0];
    assert_eq!((books.sold, books.units_held, books.orders), (inserted as u64, inserted as u64, 160));
    assert_eq!((inserted, books.users_over_limit), (27, 0), "27 users, one each");
}

pub(crate) async fn restocks_race_with_intake(fixture: Fixture) {
    fixture.publish("s", 10, 1).await;
    let restocks = (0..10).map(|n| {
        let database = fixture.database.clone();
        // Each twice: the operator's client repeats.
        tokio::spawn(async move {
            database.restock(&sale_id("s"), &format!("r{}", n / 2), 10, &author()).await.unwrap()
        })
    });
    let restocks: Vec<_> = restocks.collect();
    for n in 0..100 {
        fixture.settle_one(reservation("s", n, &format!("u{n}"), 1)).await;
    }
    for restock in restocks {
        restock.await.unwrap();
    }
    let row = fixture.database.sale(&sale_id("s")).await.unwrap().unwrap();
    assert_eq!((row.total, row.version), (60, 6));
    let books = &fixture.database.books(None).await.unwrap()[0];
    assert!(books.sold >= 10 && books.sold <= 60 && books.sold == books.units_held, "{books:?}");
    assert_eq!(books.orders, 100);
    for n in 100..200 {
        fixture.settle_one(reservation("s", n, &format!("u{n}"), 1)).await;
    }
    assert_eq!(fixture.database.books(None).await.unwrap()[0].sold, 60, "what was brought can be sold");
}

pub(crate) async fn any_text_comes_back_as_it_was(fixture: Fixture) {
    fixture.publish("s", 10, 1).await;
    let texts =
        ["'; DROP TABLE floodgate_orders; --", "小明 👩‍👩‍👧", "\u{fffd}%_\\\"", "A", "a", "é", "e\u{301}"];
    for (n, text) in (0..).zip(texts) {
        let mut one = reservation("s", n, text, 1);
        one.metadata = Some(format!("{text}\0\n{text}").into());
        assert_eq!(fixture.settle_one(one.clone()).await.outcome, Outcome::Inserted, "{text:?}");
        let row = fixture.database.order(order_id(n)).await.unwrap().unwrap();
        assert_eq!((row.user_id, row.metadata), (one.user, one.metadata));
    }
}

pub(crate) async fn an_order_is_judged_by_the_version_under_which_it_was_promised(fixture: Fixture) {
    let database = &fixture.database;
    let before = fixture.publish("s", 100, 2).await;
    let edit = stock::SaleEdit {
        price: Some(before.price + 50),
        currency: Some("EUR".into()),
        per_user_limit: Some(1),
        pay_within_s: Some(60),
        ..stock::SaleEdit::default()
    };
    let promised = |n: u64, user: &str, quantity, sale_version| Reservation {
        sale_version,
        ..reservation("s", n, user, quantity)
    };
    // Before the edit, as the drain usually finds it: so the terms are known where they are remembered.
    fixture.settle_one(promised(1, "a", 2, Some(1))).await;
    database.edit_sale(&before.id, &edit, &author()).await.unwrap();
    let batch = vec![
        promised(2, "b", 2, Some(1)),
        promised(3, "c", 1, Some(2)),
        promised(4, "d", 2, Some(2)),
        promised(5, "e", 1, None),
        // Of a version that a database which was put back has never had.
        promised(6, "f", 1, Some(9)),
    ];
    let settled = database.settle(batch).await.unwrap();
    let rejected = Outcome::Rejected(RejectReason::LimitReached);
    let inserted = Outcome::Inserted;
    let outcomes: Vec<_> = settled.iter().map(|settled| settled.outcome).collect();
    assert_eq!(outcomes, [inserted, inserted, rejected, inserted, inserted]);
    let (old, new) = ((before.price, "CNY", before.pay_within_s), (before.price + 50, "EUR", 60));
    for (n, quantity, terms, version) in [
        (1, 2, old, Some(1)),
        (2, 2, old, Some(1)),
        (3, 1, new, Some(2)),
        (5, 1, new, None),
        (6, 1, new, Some(9)),
    ] {
        let row = database.order(order_id(n)).await.unwrap().unwrap();
        assert_eq!((row.amount, &*row.currency), (terms.0 * quantity, terms.1), "{n}");
        let pay_by = Timestamp(row.created_at.0 + u64::from(terms.2) * 1_000);
        assert_eq!((row.pay_by, row.sale_version), (Some(pay_by), version), "{n}");
    }
    // The whole batch of the new terms, which are known by now; and the old ones once more.
    let settled =
        database.settle(vec![promised(7, "g", 1, Some(2)), promised(8, "h", 1, Some(2))]).await.unwrap();
    assert!(settled.iter().all(|settled| settled.outcome == Outcome::Inserted), "{settled:?}");
    assert_eq!(database.order(order_id(8)).await.unwrap().unwrap().amount, before.price + 50);
    fixture.settle_one(promised(9, "i", 1, Some(1))).await;
    assert_eq!(database.order(order_id(9)).await.unwrap().unwrap().amount, before.price);
}
