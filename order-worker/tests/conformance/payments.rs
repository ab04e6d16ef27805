//! Money: captures, refunds, and what they make of an order; and the closing of what nobody paid.

use order_worker::database::{
    By, CancelOutcome, Capture, Captured, CloseOutcome, DatabaseError, Disposition, Due, OrderRow,
    RefundAsked, RefundBy, RefundHeard, RefundOutcome, RefundReason, RefundRow, RefundState, RefundTold,
};
use stock::{OrderId, OrderStatus, Timestamp};

use super::refunds::told;
use super::*;

/// What one unit of the sale costs.
pub(super) const PRICE: u64 = 206_640;
/// How long an order may be unpaid.
const PAY_WITHIN_MS: u64 = 900_000;

/// The whole price of one unit, paid by the `n`-th transaction.
pub(crate) fn capture(n: u64, order: u64) -> Capture {
    Capture {
        provider: "alipay".into(),
        payment_id: format!("t{n}"),
        order_id: Some(order_id(order)),
        trade_ref: order_id(order).to_string(),
        amount: PRICE,
        currency: "CNY".into(),
        paid_at: Some(Timestamp(START_MS - 5)),
    }
}

fn first(disposition: Disposition) -> Captured {
    Captured { disposition, is_repeat: false, differs: false }
}

fn again(disposition: Disposition) -> Captured {
    Captured { disposition, is_repeat: true, differs: false }
}

fn due(n: u64) -> Due {
    Due { order_id: order_id(n), sale: sale_id("s") }
}

impl Fixture {
    pub(super) async fn order(&self, n: u64) -> OrderRow {
        self.database.order(order_id(n)).await.unwrap().unwrap()
    }

    pub(super) async fn sold(&self) -> u32 {
        self.database.sale(&sale_id("s")).await.unwrap().unwrap().sold
    }

    pub(super) async fn capture(&self, capture: &Capture) -> Captured {
        self.database.capture(capture).await.unwrap()
    }

    /// All refunds of one payment.
    pub(super) async fn refunds(&self, n: u64) -> Vec<RefundRow> {
        self.database.payment("alipay", &format!("t{n}")).await.unwrap().unwrap().1
    }
}

pub(crate) async fn a_capture_pays_its_order_once(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.advance(50);
    assert_eq!(fixture.capture(&capture(1, 1)).await, first(Disposition::Kept));
    let paid = fixture.order(1).await;
    assert_eq!((paid.status, paid.version, paid.units_held), (OrderStatus::Paid, 2, 1));
    assert_eq!(
        (paid.paid_at, paid.updated_at.0),
        (Some(paid.updated_at), START_MS + 50),
        "the database's clock"
    );
    fixture.advance(50);
    assert_eq!(fixture.capture(&capture(1, 1)).await, again(Disposition::Kept));
    assert_eq!(fixture.order(1).await, paid, "a repeat changes nothing");
    let (row, refunds) = fixture.database.payment("alipay", "t1").await.unwrap().unwrap();
    assert_eq!((row.received_at.0, row.paid_at, row.amount), (START_MS + 50, capture(1, 1).paid_at, PRICE));
    assert!(refunds.is_empty());
    assert_eq!(fixture.database.payments_of(order_id(1)).await.unwrap(), [(row, refunds)]);
    assert_eq!(fixture.sold().await, 1);
    assert!(fixture.database.releases(None, &[], 10).await.unwrap().is_empty());
}

pub(crate) async fn a_capture_that_finds_its_order_otherwise_goes_back(fixture: Fixture) {
    fixture.publish("s", 3, 5).await;
    let rehearsal = SaleDefinition { rehearsal: true, ..definition("r", 5, 5) };
    fixture.database.publish(&rehearsal, &author()).await.unwrap();
    for n in [1, 2, 3, 4] {
        // The fourth is rejected.
        fixture.settle_one(reservation("s", n, "u", 1)).await;
    }
    fixture.settle_one(reservation("r", 5, "u", 1)).await;
    fixture.database.cancel(order_id(2), By::Operator(&author())).await.unwrap();
    assert_eq!(fixture.capture(&capture(1, 1)).await, first(Disposition::Kept));
    let cases = [
        (2, capture(2, 1), RefundReason::Second),
        (3, capture(3, 2), RefundReason::Late),
        (4, capture(4, 4), RefundReason::Late),
        (5, Capture { amount: PRICE - 1, ..capture(5, 3) }, RefundReason::WrongAmount),
        (6, Capture { currency: "USD".into(), ..capture(6, 3) }, RefundReason::WrongCurrency),
        (7, capture(7, 5), RefundReason::Rehearsal),
    ];
    for (n, capture, reason) in cases {
        let before = fixture.database.order(capture.order_id.unwrap()).await.unwrap();
        assert_eq!(fixture.capture(&capture).await, first(Disposition::Refund(reason)));
        assert_eq!(
            fixture.capture(&capture).await,
            again(Disposition::Refund(reason)),
            "the same at each repeat"
        );
        assert_eq!(fixture.database.order(capture.order_id.unwrap()).await.unwrap(), before);
        let refunds = fixture.refunds(n).await;
        assert_eq!(refunds.len(), 1, "one refund, however often it is told");
        let refund = &refunds[0];
        assert_eq!(
            (refund.amount, refund.whole, refund.state),
            (capture.amount, true, RefundState::Requested)
        );
        assert_eq!((refund.reason.as_deref(), refund.attempts), (Some(reason.as_str()), 0));
        assert_eq!((refund.requested_by.as_str(), refund.refund_id.len()), ("floodgate", 32));
    }
    assert_eq!(fixture.database.refunds_due(10).await.unwrap().len(), 6);
}

pub(crate) async fn a_repeat_that_says_something_else_changes_nothing(fixture: Fixture) {
    fixture.publish("s", 3, 5).await;
    for n in [1, 2] {
        fixture.settle_one(reservation("s", n, "u", 1)).await;
    }
    fixture.capture(&capture(1, 1)).await;
    let other = [
        capture(1, 2),
        Capture { amount: 1, ..capture(1, 1) },
        Capture { currency: "USD".into(), ..capture(1, 1) },
        Capture { order_id: None, ..capture(1, 1) },
    ];
    for other in other {
        let expected = Captured { disposition: Disposition::Kept, is_repeat: true, differs: true };
        assert_eq!(fixture.capture(&other).await, expected);
    }
    assert_eq!(fixture.order(2).await.status, OrderStatus::Unpaid);
    // Another provider may use the same id.
    let elsewhere = Capture { provider: "wechat-pay".into(), ..capture(1, 2) };
    assert_eq!(fixture.capture(&elsewhere).await, first(Disposition::Kept));
}

pub(crate) async fn what_no_row_can_hold_is_refused(fixture: Fixture) {
    let bad = [
        Capture { payment_id: String::new(), ..capture(1, 1) },
        Capture { payment_id: "x".repeat(129), ..capture(1, 1) },
        Capture { provider: "ali pay".into(), ..capture(1, 1) },
        Capture { currency: "元".into(), ..capture(1, 1) },
        Capture { currency: "C".repeat(17), ..capture(1, 1) },
        Capture { amount: 1 << 63, ..capture(1, 1) },
        Capture { trade_ref: "x".repeat(129), ..capture(1, 1) },
    ];
    for capture in bad {
        let refused = fixture.database.capture(&capture).await;
        assert!(matches!(refused, Err(DatabaseError::Invalid(_))), "{capture:?}: {refused:?}");
    }
    let odd = Capture { payment_id: "'; --\\ 元".into(), trade_ref: "\u{fffd}'\\".into(), ..capture(1, 1) };
    assert_eq!(fixture.capture(&odd).await, first(Disposition::Unmatched));
    assert_eq!(fixture.capture(&odd).await, again(Disposition::Unmatched));
}

pub(crate) async fn a_payment_before_its_row_is_joined_or_goes_back(fixture: Fixture) {
    fixture.publish("s", 1, 5).await;
    let nowhere = Capture { order_id: None, trade_ref: "shop-7".into(), ..capture(9, 9) };
    for capture in [&capture(1, 1), &capture(2, 1), &capture(3, 2), &nowhere] {
        assert_eq!(fixture.capture(capture).await, first(Disposition::Unmatched));
        fixture.advance(1);
    }
    assert_eq!(fixture.database.join_unmatched(10).await.unwrap(), 0, "no row has come");
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    assert_eq!(fixture.database.join_unmatched(1).await.unwrap(), 1, "the one that came first");
    assert_eq!(fixture.order(1).await.status, OrderStatus::Paid);
    assert_eq!(fixture.database.join_unmatched(10).await.unwrap(), 1);
    assert_eq!(fixture.capture(&capture(1, 1)).await, again(Disposition::Kept));
    assert_eq!(fixture.capture(&capture(2, 1)).await, again(Disposition::Refund(RefundReason::Second)));
    assert_eq!(fixture.database.join_unmatched(10).await.unwrap(), 0);

    // A day later: one order has come in the last moment, and was rejected; the other never.
    let day_ms = 86_400_000;
    assert_eq!(fixture.database.refund_unmatched(day_ms, 10).await.unwrap(), 0);
    fixture.advance(day_ms);
    fixture.settle_one(reservation("s", 2, "u", 1)).await;
    assert_eq!(fixture.database.refund_unmatched(day_ms, 10).await.unwrap(), 2);
    assert_eq!(fixture.database.refund_unmatched(day_ms, 10).await.unwrap(), 0);
    assert_eq!(fixture.capture(&capture(3, 2)).await, again(Disposition::Refund(RefundReason::Late)));
    assert_eq!(fixture.capture(&nowhere).await, again(Disposition::Refund(RefundReason::NoOrder)));
    assert_eq!(fixture.refunds(9).await[0].order_id, None);
}

pub(crate) async fn captures_at_once_are_kept_once(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    // Three transactions for one order, and two for one that has no row, each told four times.
    let all = (0..20u64).map(|n| {
        let database = fixture.database.clone();
        let capture = if n % 5 < 3 { capture(n % 5, 1) } else { capture(n % 5, 2) };
        tokio::spawn(async move { (capture.payment_id.clone(), database.capture(&capture).await.unwrap()) })
    });
    let (mut kept, mut firsts) = (Vec::new(), Vec::new());
    for one in all.collect::<Vec<_>>() {
        let (id, captured) = one.await.unwrap();
        if !captured.is_repeat {
            firsts.push(id.clone());
        }
        if captured.disposition == Disposition::Kept {
            kept.push(id);
        }
    }
    firsts.sort();
    assert_eq!(firsts, ["t0", "t1", "t2", "t3", "t4"], "each is new once");
    assert_eq!(kept.len(), 4, "one transaction, at each of its calls");
    kept.dedup();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fixture.database.refunds_due(10).await.unwrap().len(), 2);
    assert_eq!(fixture.order(1).await.version, 2);
}

pub(crate) async fn what_nobody_paid_is_closed_at_its_time(fixture: Fixture) {
    fixture.publish("s", 10, 9).await;
    fixture.publish("t", 10, 9).await;
    for n in 1..=4 {
        fixture.settle_one(reservation("s", n, "u", 2)).await;
        fixture.advance(10);
    }
    fixture.settle_one(reservation("t", 5, "u", 2)).await;
    fixture.capture(&Capture { amount: 2 * PRICE, ..capture(1, 2) }).await;
    let grace_ms = 1_000;
    let all = [due(4), due(1), due(2), due(9), due(1), Due { sale: sale_id("t"), ..due(5) }];
    assert!(fixture.database.lapsed(grace_ms, 10).await.unwrap().is_empty());
    fixture.advance(PAY_WITHIN_MS + grace_ms - 41);
    let early = fixture.database.close_due(&[due(1)], grace_ms).await.unwrap();
    assert_eq!(early, [CloseOutcome::Early(1)]);
    fixture.advance(1);
    let outcomes = fixture.database.close_due(&all, grace_ms).await.unwrap();
    let closed = CloseOutcome::Past(OrderStatus::Closed);
    let paid = CloseOutcome::Past(OrderStatus::Paid);
    let early = CloseOutcome::Early;
    assert_eq!(outcomes, [early(30), CloseOutcome::Closed, paid, CloseOutcome::Absent, closed, early(40)]);
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.reason.as_deref(), row.units_held), (OrderStatus::Closed, Some("lapsed"), 0));
    assert_eq!((row.version, row.quantity), (2, 2));
    assert_eq!(fixture.sold().await, 6);
    assert_eq!(fixture.database.close_due(&[due(1)], grace_ms).await.unwrap(), [closed]);
    let releases = fixture.database.releases(None, &[], 10).await.unwrap();
    assert_eq!((releases.len(), releases[0].1.order_id, releases[0].1.quantity), (1, order_id(1), 2));

    // The index finds the others, the longest over first.
    fixture.advance(1_000);
    let lapsed = fixture.database.lapsed(grace_ms, 10).await.unwrap();
    assert_eq!(lapsed, [due(3), due(4), Due { sale: sale_id("t"), ..due(5) }]);
    assert_eq!(fixture.database.lapsed(grace_ms, 1).await.unwrap(), [due(3)]);
    assert_eq!(fixture.database.close_due(&lapsed, grace_ms).await.unwrap(), [CloseOutcome::Closed; 3]);
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (2, 4));
    assert!(fixture.database.close_due(&[], grace_ms).await.unwrap().is_empty());
    let cancelled = fixture.database.cancel(order_id(1), By::User(&user_id("u"))).await.unwrap();
    assert_eq!(cancelled, CancelOutcome::WrongState(OrderStatus::Closed));
}

pub(crate) async fn closing_races_with_payment(fixture: Fixture) {
    fixture.publish("s", 20, 20).await;
    let batch: Vec<_> = (0..20).map(|n| reservation("s", n, "u", 1)).collect();
    fixture.database.settle(batch).await.unwrap();
    fixture.advance(PAY_WITHIN_MS);
    let closings = (0..4).map(|part| {
        let database = fixture.database.clone();
        let due: Vec<_> = (0..20).map(|n| due((n * 7 + part) % 20)).collect();
        tokio::spawn(async move {
            let outcomes = database.close_due(&due, 0).await.unwrap();
            outcomes.iter().filter(|outcome| **outcome == CloseOutcome::Closed).count() as u64
        })
    });
    let closings: Vec<_> = closings.collect();
    let payments = (0..20).map(|n| {
        let database = fixture.database.clone();
        tokio::spawn(async move { database.capture(&capture(n, n)).await.unwrap().disposition })
    });
    let (mut kept, mut closed) = (0, 0);
    for payment in payments.collect::<Vec<_>>() {
        kept += u64::from(payment.await.unwrap() == Disposition::Kept);
    }
    for closing in closings {
        closed += closing.await.unwrap();
    }
    assert_eq!(kept + closed, 20, "each is paid or closed");
    let books = &fixture.database.books(None).await.unwrap()[0];
    assert_eq!((books.sold, books.units_held, books.releases), (kept, kept, closed));
    assert_eq!(fixture.database.refunds_due(100).await.unwrap().len() as u64, closed);
}

pub(crate) async fn the_clock_is_the_databases(fixture: Fixture) {
    fixture.advance(77);
    assert_eq!(fixture.database.now().await.unwrap(), Timestamp(START_MS + 77));
}

/// Of each order, the rows of `floodgate_events` as `(version, type, payload)`: `read` reads them.
pub(crate) async fn each_version_behind_the_first_has_one_event(
    fixture: &Fixture,
    read: impl Fn(OrderId) -> Vec<(u64, String, String)>,
) {
    fixture.publish("s", 10, 5).await;
    let rehearsal = SaleDefinition { rehearsal: true, ..definition("r", 5, 5) };
    fixture.database.publish(&rehearsal, &author()).await.unwrap();
    for n in [1, 2, 3] {
        fixture.settle_one(reservation("s", n, "小明'\\", 1)).await;
    }
    fixture.settle_one(reservation("r", 4, "u", 1)).await;
    for n in [1, 2] {
        fixture.capture(&capture(n, 1)).await;
    }
    let author = author();
    let RefundAsked::Written(own) =
        fixture.database.refund(order_id(1), RefundBy::Operator(&author), None).await.unwrap()
    else {
        panic!()
    };
    let others = fixture.refunds(2).await.remove(0);
    for refund in [&others, &own] {
        fixture.database.refund_told(&told(refund, RefundOutcome::Succeeded)).await.unwrap();
    }
    fixture.database.cancel(order_id(2), By::User(&user_id("小明'\\"))).await.unwrap();
    fixture.advance(PAY_WITHIN_MS);
    let of_rehearsal = Due { sale: sale_id("r"), ..due(4) };
    let closed = fixture.database.close_due(&[due(3), of_rehearsal], 0).await.unwrap();
    assert_eq!(closed, [CloseOutcome::Closed; 2]);

    let types =
        |n| read(order_id(n)).into_iter().map(|(version, word, _)| (version, word)).collect::<Vec<_>>();
    let expected =
        |words: &[&str]| (2..).zip(words.iter().map(|word| (*word).to_owned())).collect::<Vec<_>>();
    let whole = ["order.paid", "order.refunding", "payment.refunded", "order.refunded"];
    assert_eq!(types(1), expected(&whole));
    assert_eq!(types(2), expected(&["order.closed"]));
    assert_eq!(types(3), expected(&["order.closed"]));
    assert!(types(4).is_empty(), "a practice run");
    for (n, cause) in [(1, Some("second")), (2, Some("cancelled")), (3, Some("lapsed"))] {
        let row = fixture.order(n).await;
        let mut causes = Vec::new();
        for (version, word, payload) in read(order_id(n)) {
            let event: serde_json::Value = serde_json::from_str(&payload).unwrap();
            assert_eq!(
                (&event["v"], &event["type"], &event["version"]),
                (&1.into(), &word.into(), &version.into())
            );
            assert_eq!(event["id"], format!("{}-{version}", order_id(n)));
            assert_eq!(
                (&event["order"]["user_id"], &event["order"]["version"]),
                (&"小明'\\".into(), &version.into())
            );
            causes.extend(event["cause"].as_str().map(str::to_owned));
            if version == row.version {
                assert_eq!(event["order"], serde_json::to_value(&row).unwrap(), "the whole order");
            }
        }
        assert_eq!(causes, cause.map(str::to_owned).into_iter().collect::<Vec<_>>());
    }
}
