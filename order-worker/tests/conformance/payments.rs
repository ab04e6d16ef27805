//! Money: captures, refunds, and what they make of an order; and the closing of what nobody paid.

use order_worker::database::{
    By, CancelOutcome, Capture, Captured, CloseOutcome, DatabaseError, Disposition, Due, OrderRow,
    RefundAsked, RefundBy, RefundHeard, RefundOutcome, RefundReason, RefundRow, RefundState, RefundTold,
};
use stock::{OrderId, OrderStatus, Timestamp};

use super::*;

/// What one unit of the sale costs.
const PRICE: u64 = 206_640;
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

fn told(refund: &RefundRow, outcome: RefundOutcome) -> RefundTold {
    RefundTold { refund_id: refund.refund_id.clone(), outcome, provider_refund_id: Some("p".into()) }
}

impl Fixture {
    async fn order(&self, n: u64) -> OrderRow {
        self.database.order(order_id(n)).await.unwrap().unwrap()
    }

    async fn sold(&self) -> u32 {
        self.database.sale(&sale_id("s")).await.unwrap().unwrap().sold
    }

    async fn capture(&self, capture: &Capture) -> Captured {
        self.database.capture(capture).await.unwrap()
    }

    /// All refunds of one payment.
    async fn refunds(&self, n: u64) -> Vec<RefundRow> {
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

pub(crate) async fn a_whole_refund_gives_the_units_back(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 2)).await;
    let (user, stranger, author) = (user_id("u"), user_id("v"), author().because("broken"));
    let refund =
        async |by: RefundBy<'_>, amount| fixture.database.refund(order_id(1), by, amount).await.unwrap();
    let (buyer, operator) = (|| RefundBy::User(&user), || RefundBy::Operator(&author));
    assert_eq!(refund(buyer(), None).await, RefundAsked::WrongState(OrderStatus::Unpaid));
    fixture.capture(&Capture { amount: 2 * PRICE, ..capture(1, 1) }).await;
    assert_eq!(refund(RefundBy::User(&stranger), None).await, RefundAsked::NotFound);
    assert_eq!(refund(operator(), Some(2 * PRICE + 1)).await, RefundAsked::TooMuch(2 * PRICE));
    let nothing = fixture.database.refund(order_id(1), operator(), Some(0)).await;
    assert!(matches!(nothing, Err(DatabaseError::Invalid(_))), "{nothing:?}");

    // A part moves money only.
    let RefundAsked::Written(part) = refund(operator(), Some(PRICE)).await else { panic!() };
    assert_eq!(
        (part.whole, part.reason.as_deref(), part.requested_by.as_str()),
        (false, Some("broken"), "小明")
    );
    assert_eq!((fixture.order(1).await.status, fixture.sold().await), (OrderStatus::Paid, 2));
    assert_eq!(refund(operator(), Some(PRICE + 1)).await, RefundAsked::TooMuch(PRICE));

    // The rest is the whole: units come back at once, money when the provider says so.
    let RefundAsked::Written(rest) = refund(buyer(), None).await else { panic!() };
    assert_eq!((rest.whole, rest.amount, rest.requested_by.as_str()), (true, PRICE, "buyer"));
    assert_ne!(rest.refund_id, part.refund_id);
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.units_held, row.version), (OrderStatus::Refunding, 0, 3));
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (0, 1));
    assert_eq!(refund(buyer(), None).await, RefundAsked::Written(rest.clone()), "the same refund");
    assert_eq!(refund(operator(), Some(1)).await, RefundAsked::WrongState(OrderStatus::Refunding));

    let hear = async |refund, outcome| fixture.database.refund_told(&told(refund, outcome)).await.unwrap();
    assert_eq!(hear(&part, RefundOutcome::Succeeded).await, RefundHeard::Changed);
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.refunded_amount, row.version), (OrderStatus::Refunding, PRICE, 4));
    assert_eq!(hear(&rest, RefundOutcome::Succeeded).await, RefundHeard::Changed);
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.refunded_amount, row.version), (OrderStatus::Refunded, 2 * PRICE, 5));
    assert_eq!(hear(&rest, RefundOutcome::Succeeded).await, RefundHeard::Unchanged);
    assert_eq!(fixture.order(1).await, row);
    assert_eq!(
        fixture.capture(&Capture { amount: 2 * PRICE, ..capture(2, 1) }).await.disposition,
        Disposition::Refund(RefundReason::Late)
    );
}

pub(crate) async fn a_refund_is_tried_under_one_id_until_it_is_over(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    for n in [1, 2] {
        fixture.capture(&capture(n, 1)).await;
    }
    let refund = fixture.refunds(2).await.remove(0);
    let hear = async |outcome| fixture.database.refund_told(&told(&refund, outcome)).await.unwrap();
    let now_due = async || fixture.database.refunds_due(10).await.unwrap();
    assert_eq!(now_due().await, std::slice::from_ref(&refund));
    let later = RefundOutcome::Again { error: "503".into(), after_ms: 5_000 };
    assert_eq!(hear(later).await, RefundHeard::Changed);
    assert!(now_due().await.is_empty());
    fixture.advance(5_000);
    let tried = now_due().await.remove(0);
    assert_eq!(
        (tried.attempts, tried.last_error.as_deref(), tried.state),
        (1, Some("503"), RefundState::Requested)
    );
    assert_eq!(tried.refund_id, refund.refund_id);
    assert_eq!(hear(RefundOutcome::Sent).await, RefundHeard::Changed);
    assert_eq!(fixture.refunds(2).await[0].state, RefundState::Sent);
    assert!(now_due().await.is_empty(), "the provider will say how it ended");
    fixture.advance(3_600_000);
    assert_eq!(now_due().await.len(), 1, "and is asked again, for its word may be lost");

    let no = format!("closed account \0{}", "错".repeat(400));
    assert_eq!(hear(RefundOutcome::Failed(no)).await, RefundHeard::Changed);
    let stuck = fixture.database.refunds(RefundState::Stuck, None, 10).await.unwrap();
    assert_eq!((stuck.len(), stuck[0].next_try_at, stuck[0].attempts), (1, None, 3));
    assert_eq!(stuck[0].last_error.as_deref().map(|error| error.chars().count()), Some(255));
    assert!(
        fixture.database.refunds(RefundState::Stuck, Some(&refund.refund_id), 10).await.unwrap().is_empty()
    );
    assert_eq!(hear(RefundOutcome::Sent).await, RefundHeard::Unchanged, "it is over until somebody looks");
    fixture.advance(86_400_000);
    assert!(now_due().await.is_empty());

    let retried = fixture.database.retry_refund(&refund.refund_id, &author()).await.unwrap().unwrap();
    assert_eq!((retried.state, &retried.refund_id), (RefundState::Requested, &refund.refund_id));
    let same = fixture.database.retry_refund(&refund.refund_id, &author()).await.unwrap().unwrap();
    assert_eq!(same, retried, "it is not stuck");
    assert_eq!(fixture.database.retry_refund("nowhere", &author()).await.unwrap(), None);
    assert_eq!(now_due().await.len(), 1);

    let before = fixture.order(1).await;
    assert_eq!(hear(RefundOutcome::Succeeded).await, RefundHeard::Changed);
    let after = fixture.order(1).await;
    assert_eq!((after.status, after.refunded_amount), (OrderStatus::Paid, 0), "it was another payment's");
    assert_eq!(after.version, before.version + 1, "which subscribers hear");
    let no = RefundOutcome::Failed("no".into());
    assert_eq!(hear(no).await, RefundHeard::Unchanged, "what is back is back");
    let unknown =
        RefundTold { refund_id: "f".repeat(32), outcome: RefundOutcome::Succeeded, provider_refund_id: None };
    assert_eq!(fixture.database.refund_told(&unknown).await.unwrap(), RefundHeard::Unknown);
}

pub(crate) async fn refunds_at_once_never_exceed_the_payment(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.capture(&capture(1, 1)).await;
    let part = PRICE / 5;
    let asked = (0..12).map(|_| {
        let database = fixture.database.clone();
        tokio::spawn(async move {
            let author = author();
            database.refund(order_id(1), RefundBy::Operator(&author), Some(part)).await.unwrap()
        })
    });
    let mut written = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        match asked.await.unwrap() {
            RefundAsked::Written(refund) => written.push(refund.refund_id),
            // The fifth was the last of it.
            RefundAsked::WrongState(OrderStatus::Refunding) => {}
            other => panic!("{other:?}"),
        }
    }
    written.sort();
    written.dedup();
    assert_eq!(written.len(), 5, "each under an id of its own");
    let refunds = fixture.refunds(1).await;
    assert_eq!(refunds.iter().map(|refund| refund.amount).sum::<u64>(), PRICE);
    assert_eq!(refunds.iter().filter(|refund| refund.whole).count(), 1);
    assert_eq!(fixture.database.books(None).await.unwrap()[0].units_held, 0);
}

pub(crate) async fn a_sale_settles_though_refunds_are_on_their_way(fixture: Fixture) {
    let definition = fixture.publish("s", 10, 5).await;
    for n in [1, 2] {
        fixture.settle_one(reservation("s", n, "u", 1)).await;
        fixture.capture(&capture(n, n)).await;
    }
    let refund = async |n| {
        let author = author();
        fixture.database.refund(order_id(n), RefundBy::Operator(&author), None).await.unwrap()
    };
    refund(1).await;
    let releases = fixture.database.releases(None, &[], 10).await.unwrap();
    fixture.database.releases_done(&[releases[0].1.order_id]).await.unwrap();
    fixture.now.store(definition.ends_at.0, Ordering::SeqCst);
    assert!(fixture.database.mark_settled(&sale_id("s")).await.unwrap());
    // Under a settled row no ledger would take a release.
    assert!(matches!(refund(2).await, RefundAsked::Written(_)));
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (0, 0));
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
