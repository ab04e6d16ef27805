//! Money that goes back.

use order_worker::database::{
    By, Capture, DatabaseError, Disposition, OVERDUE_MS, Part, RefundAsked, RefundBy, RefundHeard,
    RefundOutcome, RefundReason, RefundRow, RefundState, RefundTold,
};
use stock::{OrderStatus, RefundPolicy, Timestamp};

use super::payments::PRICE;
use super::*;

pub(super) fn told(refund: &RefundRow, outcome: RefundOutcome) -> RefundTold {
    RefundTold { refund_id: refund.refund_id.clone(), outcome, provider_refund_id: Some("p".into()) }
}

pub(super) fn part(request_id: &str, amount: u64) -> Part {
    Part { request_id: request_id.into(), amount }
}

pub(crate) async fn a_whole_refund_gives_the_units_back(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 2)).await;
    let (user, stranger, author) = (user_id("u"), user_id("v"), author().because("broken"));
    let refund = async |by: RefundBy<'_>, part: Option<Part>| {
        fixture.database.refund(order_id(1), by, part.as_ref()).await.unwrap()
    };
    let (buyer, operator) = (|| RefundBy::User(&user), || RefundBy::Operator(&author));
    assert_eq!(refund(buyer(), None).await, RefundAsked::WrongState(OrderStatus::Unpaid));
    fixture.capture(&Capture { amount: 2 * PRICE, ..capture(1, 1) }).await;
    assert_eq!(refund(RefundBy::User(&stranger), None).await, RefundAsked::NotFound);
    let too_much = refund(operator(), Some(part("a", 2 * PRICE + 1))).await;
    assert_eq!(too_much, RefundAsked::TooMuch(2 * PRICE));
    for wrong in [part("a", 0), part("", 1), part(&"x".repeat(129), 1)] {
        let refused = fixture.database.refund(order_id(1), operator(), Some(&wrong)).await;
        assert!(matches!(refused, Err(DatabaseError::Invalid(_))), "{wrong:?}: {refused:?}");
    }

    // A part moves money only.
    let RefundAsked::Written(first) = refund(operator(), Some(part("a", PRICE))).await else { panic!() };
    assert_eq!(
        (first.whole, first.reason.as_deref(), first.requested_by.as_str()),
        (false, Some("broken"), "小明")
    );
    assert_eq!((fixture.order(1).await.status, fixture.sold().await), (OrderStatus::Paid, 2));
    // Who lost the answer asks again, under the same request id.
    assert_eq!(refund(operator(), Some(part("a", PRICE))).await, RefundAsked::Written(first.clone()));
    let other = fixture.database.refund(order_id(1), operator(), Some(&part("a", 1))).await;
    assert!(matches!(other, Err(DatabaseError::Invalid(_))), "{other:?}");
    assert_eq!(refund(operator(), Some(part("b", PRICE + 1))).await, RefundAsked::TooMuch(PRICE));

    // The rest is the whole: units come back at once, money when the provider says so.
    let RefundAsked::Written(rest) = refund(buyer(), None).await else { panic!() };
    assert_eq!((rest.whole, rest.amount, rest.requested_by.as_str()), (true, PRICE, "buyer"));
    assert_ne!(rest.refund_id, first.refund_id);
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.units_held, row.version), (OrderStatus::Refunding, 0, 3));
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (0, 1));
    assert_eq!(refund(buyer(), None).await, RefundAsked::Written(rest.clone()), "the same refund");
    let more = refund(operator(), Some(part("c", 1))).await;
    assert_eq!(more, RefundAsked::WrongState(OrderStatus::Refunding));
    assert_eq!(refund(operator(), Some(part("a", PRICE))).await, RefundAsked::Written(first.clone()));

    let hear = async |refund, outcome| fixture.database.refund_told(&told(refund, outcome)).await.unwrap();
    assert_eq!(hear(&first, RefundOutcome::Succeeded).await, RefundHeard::Changed);
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

pub(crate) async fn an_order_is_refunded_once_all_of_its_money_is_back(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.capture(&capture(1, 1)).await;
    let author = author();
    let refund = async |wanted: Option<Part>| match fixture
        .database
        .refund(order_id(1), RefundBy::Operator(&author), wanted.as_ref())
        .await
        .unwrap()
    {
        RefundAsked::Written(refund) => refund,
        other => panic!("{other:?}"),
    };
    let hear = async |refund, outcome| fixture.database.refund_told(&told(refund, outcome)).await.unwrap();
    let first = refund(Some(part("a", PRICE / 3))).await;
    let rest = refund(None).await;
    hear(&first, RefundOutcome::Failed("closed account".into())).await;
    hear(&rest, RefundOutcome::Succeeded).await;
    let row = fixture.order(1).await;
    assert_eq!(
        (row.status, row.refunded_amount),
        (OrderStatus::Refunding, PRICE - PRICE / 3),
        "the buyer waits for the stuck part"
    );
    fixture.database.retry_refund(&first.refund_id, &author).await.unwrap();
    hear(&first, RefundOutcome::Succeeded).await;
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.refunded_amount), (OrderStatus::Refunded, PRICE));
}

pub(crate) async fn refunds_that_wait_are_counted(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    let open = async || {
        let open = fixture.database.open_refunds().await.unwrap();
        (open.due, open.overdue, open.stuck)
    };
    assert_eq!(open().await, (0, 0, 0));
    for n in [1, 2, 3] {
        fixture.capture(&capture(n, 1)).await;
    }
    let refunds = [fixture.refunds(2).await.remove(0), fixture.refunds(3).await.remove(0)];
    let hear = async |n: usize, outcome| {
        fixture.database.refund_told(&told(&refunds[n], outcome)).await.unwrap();
    };
    assert_eq!(open().await, (2, 0, 0));
    // A real server's time passes by itself.
    fixture.advance(OVERDUE_MS - 20_000);
    assert_eq!(open().await, (2, 0, 0));
    fixture.advance(20_000);
    assert_eq!(open().await, (2, 2, 0), "nobody has sent them for a minute");
    hear(0, RefundOutcome::Again { error: "503".into(), after_ms: 5_000 }).await;
    assert_eq!(open().await, (1, 1, 0), "that one was");
    hear(1, RefundOutcome::Failed("no".into())).await;
    assert_eq!(open().await, (0, 0, 1));
    fixture.advance(5_000);
    hear(0, RefundOutcome::Succeeded).await;
    assert_eq!(open().await, (0, 0, 1));
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
    let asked = (0..12).map(|n| {
        let database = fixture.database.clone();
        tokio::spawn(async move {
            let (author, wish) = (author(), part(&format!("{n}"), PRICE / 5));
            database.refund(order_id(1), RefundBy::Operator(&author), Some(&wish)).await.unwrap()
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

pub(crate) async fn a_sale_says_whose_word_refunds_and_whether_units_return(fixture: Fixture) {
    let strict = SaleDefinition {
        refund: RefundPolicy::Operator,
        unit_returns_on_refund: false,
        ..definition("s", 10, 5)
    };
    fixture.database.publish(&strict, &author()).await.unwrap();
    let version = fixture.database.sale_version(&sale_id("s"), 1).await.unwrap().unwrap();
    assert_eq!(version.definition, strict, "each version carries it");
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.capture(&capture(1, 1)).await;
    let (user, author) = (user_id("u"), author());
    let by_buyer = fixture.database.refund(order_id(1), RefundBy::User(&user), None).await.unwrap();
    assert_eq!(by_buyer, RefundAsked::NotOffered);
    assert_eq!(fixture.order(1).await.status, OrderStatus::Paid);

    // The units are not on sale again: neither now nor when the money is back.
    let asked = fixture.database.refund(order_id(1), RefundBy::Operator(&author), None).await.unwrap();
    let RefundAsked::Written(refund) = asked else { panic!("{asked:?}") };
    for status in [OrderStatus::Refunding, OrderStatus::Refunded] {
        let row = fixture.order(1).await;
        assert_eq!((row.status, row.units_held), (status, 1));
        let outstanding = fixture.database.releases_outstanding().await.unwrap();
        assert_eq!((fixture.sold().await, outstanding), (1, 0));
        fixture.database.refund_told(&told(&refund, RefundOutcome::Succeeded)).await.unwrap();
    }
}

pub(crate) async fn an_order_that_costs_nothing_is_refunded_at_once(fixture: Fixture) {
    let free = SaleDefinition { price: 0, ..definition("s", 10, 5) };
    fixture.database.publish(&free, &author()).await.unwrap();
    fixture.settle_one(reservation("s", 1, "u", 2)).await;
    fixture.capture(&Capture { amount: 0, ..capture(1, 1) }).await;
    let user = user_id("u");
    let refund = async || fixture.database.refund(order_id(1), RefundBy::User(&user), None).await.unwrap();
    let RefundAsked::Written(refunded) = refund().await else { panic!() };
    assert_eq!((refunded.amount, refunded.state, refunded.next_try_at), (0, RefundState::Succeeded, None));
    let row = fixture.order(1).await;
    assert_eq!((row.status, row.units_held, row.version), (OrderStatus::Refunded, 0, 4));
    assert_eq!((fixture.sold().await, fixture.database.refunds_due(10).await.unwrap()), (0, Vec::new()));
    assert_eq!(refund().await, RefundAsked::Written(refunded), "the same refund");
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
