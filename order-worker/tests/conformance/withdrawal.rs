//! Sales that are withdrawn, and orders that an operator closes.

use order_worker::database::{
    By, CancelOutcome, CloseOutcome, DatabaseError, Disposition, Due, OrderRow, Outcome, RefundAsked,
    RefundReason, RefundState, RejectReason, SaleRow,
};
use stock::OrderStatus;

use super::payments::PRICE;
use super::*;

fn due(n: u64) -> Due {
    Due { order_id: order_id(n), sale: sale_id("s") }
}

fn told(row: &OrderRow) -> (OrderStatus, Option<&str>, u32, u64) {
    (row.status, row.reason.as_deref(), row.units_held, row.version)
}

impl Fixture {
    async fn withdraw(&self, with_orders: bool) -> SaleRow {
        let author = author().because("recalled");
        self.database.withdraw(&sale_id("s"), with_orders, &author).await.unwrap()
    }

    async fn actions(&self) -> Vec<(String, Option<String>)> {
        let rows = self.database.journal(0, 100).await.unwrap();
        rows.into_iter().map(|row| (row.action, row.reason)).collect()
    }
}

pub(crate) async fn an_operator_closes_what_is_unpaid(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    for n in [1, 2, 3] {
        fixture.settle_one(reservation("s", n, "u", 1)).await;
    }
    fixture.capture(&capture(2, 2)).await;
    fixture.database.cancel(order_id(3), By::Operator(&author())).await.unwrap();
    let author = author().because("a test");
    let close = async |n| fixture.database.close_order(order_id(n), &author).await.unwrap();
    let CancelOutcome::Cancelled(closed) = close(1).await else { panic!() };
    assert_eq!(told(&closed), (OrderStatus::Closed, Some("operator"), 0, 2));
    assert_eq!(close(1).await, CancelOutcome::Cancelled(closed), "a repeat changes nothing");
    assert_eq!(close(2).await, CancelOutcome::WrongState(OrderStatus::Paid));
    assert_eq!(close(3).await, CancelOutcome::WrongState(OrderStatus::Closed), "for another reason");
    assert_eq!(close(4).await, CancelOutcome::NotFound);
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (1, 2));
    let closes = ("order close".to_owned(), Some("a test".to_owned()));
    assert_eq!(fixture.actions().await.iter().filter(|row| **row == closes).count(), 1);
}

pub(crate) async fn a_withdrawn_sale_ends_and_keeps_its_orders(fixture: Fixture) {
    let definition = fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.advance(50);
    let row = fixture.withdraw(false).await;
    assert_eq!((row.ends_at.0, row.withdrawn_at, row.version), (START_MS + 50, None, 2));
    assert_eq!(row.definition.starts_at, definition.starts_at);
    fixture.advance(50);
    assert_eq!(fixture.withdraw(false).await, row, "a repeat changes nothing");
    assert!(fixture.database.withdrawing().await.unwrap().is_empty());
    // What was promised is kept.
    let queued = fixture.settle_one(reservation("s", 2, "u", 1)).await;
    assert_eq!((queued.status, queued.outcome), (OrderStatus::Unpaid, Outcome::Inserted));
    assert_eq!(fixture.capture(&capture(1, 1)).await.disposition, Disposition::Kept);
    let refused = fixture.database.close_withdrawn(&[due(2)]).await;
    assert!(matches!(refused, Err(DatabaseError::Invalid(_))), "{refused:?}");
    assert_eq!(fixture.order(2).await.status, OrderStatus::Unpaid);
    let withdrawn = ("sale withdraw".to_owned(), Some("recalled".to_owned()));
    assert_eq!(fixture.actions().await[1..], *std::slice::from_ref(&withdrawn));
    // With its orders after all.
    let row = fixture.withdraw(true).await;
    assert_eq!((row.ends_at.0, row.withdrawn_at.map(|at| at.0)), (START_MS + 50, Some(START_MS + 100)));
    assert_eq!(fixture.actions().await[1..], [withdrawn.clone(), withdrawn]);
    let unknown = fixture.database.withdraw(&sale_id("nowhere"), true, &author()).await;
    assert_eq!(unknown, Err(DatabaseError::UnknownSale(sale_id("nowhere"))));
}

pub(crate) async fn a_sale_withdrawn_with_its_orders_closes_and_refunds_them(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    for n in [1, 2, 3] {
        fixture.settle_one(reservation("s", n, "u", 1)).await;
    }
    for n in [1, 2] {
        fixture.capture(&capture(n, n)).await;
    }
    let row = fixture.withdraw(true).await;
    assert!(row.withdrawn_at.is_some() && row.ends_at <= row.withdrawn_at.unwrap());
    assert_eq!(fixture.withdraw(true).await, row, "a repeat changes nothing");
    let restock = fixture.database.restock(&sale_id("s"), "r", 1, &author()).await;
    assert!(matches!(restock, Err(DatabaseError::Invalid(_))), "{restock:?}");
    assert_eq!(fixture.database.withdrawing().await.unwrap(), [sale_id("s")]);
    assert!(!fixture.database.withdrawal_done(&sale_id("s")).await.unwrap());

    // The unpaid one is closed whatever its deadline, the paid ones are left to their refunds.
    let outcomes = fixture.database.close_withdrawn(&[due(1), due(3), due(9), due(3)]).await.unwrap();
    let past = |status| CloseOutcome::Past(status);
    assert_eq!(
        outcomes,
        [past(OrderStatus::Paid), CloseOutcome::Closed, CloseOutcome::Absent, past(OrderStatus::Closed)]
    );
    assert_eq!(told(&fixture.order(3).await), (OrderStatus::Closed, Some("withdrawn"), 0, 2));
    assert_eq!(fixture.sold().await, 2);
    let late = fixture.capture(&capture(3, 3)).await;
    assert_eq!(late.disposition, Disposition::Refund(RefundReason::Withdrawn));
    assert!(!fixture.database.withdrawal_done(&sale_id("s")).await.unwrap(), "two are paid");
    let refund = async |n| fixture.database.refund_withdrawn(order_id(n)).await.unwrap();
    for n in [1, 2] {
        let RefundAsked::Written(refunded) = refund(n).await else { panic!() };
        let why = (refunded.reason.as_deref(), refunded.requested_by.as_str(), refunded.amount);
        assert_eq!((refunded.whole, why), (true, (Some("withdrawn"), "floodgate", PRICE)));
        assert_eq!(told(&fixture.order(n).await), (OrderStatus::Refunding, None, 0, 3));
        assert_eq!(refund(n).await, RefundAsked::Written(refunded), "once");
    }
    assert_eq!(refund(3).await, RefundAsked::WrongState(OrderStatus::Closed));
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (0, 3));
    assert!(fixture.database.withdrawal_done(&sale_id("s")).await.unwrap());
    assert!(fixture.database.withdrawing().await.unwrap().is_empty());
    // Of a sale that is on offer nothing is refunded for it.
    fixture.database.publish(&definition("t", 3, 5), &author()).await.unwrap();
    fixture.settle_one(reservation("t", 7, "u", 1)).await;
    fixture.capture(&capture(7, 7)).await;
    assert_eq!(refund(7).await, RefundAsked::WrongState(OrderStatus::Paid));
}

pub(crate) async fn what_is_still_in_a_log_is_closed_with_its_row(fixture: Fixture) {
    fixture.publish("s", 3, 5).await;
    fixture.publish("t", 3, 5).await;
    // So that the adapter knows the sale's terms.
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.withdraw(true).await;
    fixture.advance(50);
    let batch = vec![
        reservation("s", 2, "u", 2),
        reservation("t", 3, "u", 1),
        reservation("s", 4, "v", 1),
        reservation("s", 1, "u", 1),
    ];
    let settled = fixture.database.settle(batch.clone()).await.unwrap();
    let answers: Vec<_> = settled.iter().map(|row| (row.status, row.units_held, row.outcome)).collect();
    // First fit as ever: what is closed takes its place before it gives it back, so that nothing depends on who reads
    // when.
    let rejected = Outcome::Rejected(RejectReason::NotEnough);
    assert_eq!(
        answers,
        [
            (OrderStatus::Closed, 0, Outcome::Inserted),
            (OrderStatus::Unpaid, 1, Outcome::Inserted),
            (OrderStatus::Rejected, 0, rejected),
            (OrderStatus::Unpaid, 1, Outcome::Duplicate),
        ]
    );
    let row = fixture.order(2).await;
    assert_eq!(told(&row), (OrderStatus::Closed, Some("withdrawn"), 0, 2));
    assert_eq!((row.quantity, row.amount, row.created_at), (2, 2 * PRICE, row.updated_at));
    assert_eq!(fixture.order(3).await.version, 1, "another sale's");
    assert_eq!((fixture.sold().await, fixture.database.releases_outstanding().await.unwrap()), (1, 2));
    let again = fixture.database.settle(batch).await.unwrap();
    assert!(again.iter().all(|row| row.outcome == Outcome::Duplicate));
    assert_eq!(again[0].status, OrderStatus::Closed);
    assert_eq!(fixture.database.releases_outstanding().await.unwrap(), 2, "once");
    // Money for it that came before its row goes back, too.
    fixture.capture(&capture(5, 5)).await;
    fixture.settle_one(reservation("s", 5, "u", 1)).await;
    assert_eq!(fixture.database.join_unmatched(10).await.unwrap(), 1);
    let refund = fixture.refunds(5).await.remove(0);
    assert_eq!((refund.reason.as_deref(), refund.state), (Some("withdrawn"), RefundState::Requested));
}

pub(crate) async fn a_withdrawal_races_with_intake_and_payments(fixture: Fixture) {
    fixture.publish("s", 60, 60).await;
    let settle = (0..20).map(|n| {
        let database = fixture.database.clone();
        tokio::spawn(async move {
            let batch: Vec<_> = (0..3).map(|i| reservation("s", n * 3 + i, &format!("u{n}"), 1)).collect();
            database.settle(batch).await.unwrap();
            database.capture(&capture(n * 3, n * 3)).await.unwrap();
        })
    });
    let mut actors: Vec<_> = settle.collect();
    let database = fixture.database.clone();
    actors.push(tokio::spawn(async move {
        database.withdraw(&sale_id("s"), true, &author()).await.unwrap();
        let all: Vec<Due> = (0..60).map(due).collect();
        database.close_withdrawn(&all).await.unwrap();
    }));
    for actor in actors {
        actor.await.unwrap();
    }
    // Whatever order they had: once all have come, one more look leaves no order unpaid.
    let all: Vec<Due> = (0..60).map(due).collect();
    fixture.database.close_withdrawn(&all).await.unwrap();
    let rows = fixture.database.orders(&sale_id("s"), None, 100).await.unwrap();
    assert_eq!(rows.len(), 60);
    let held: u32 = rows.iter().map(|row| row.units_held).sum();
    let paid = rows.iter().filter(|row| row.status == OrderStatus::Paid).count();
    assert!(rows.iter().all(|row| matches!(row.status, OrderStatus::Paid | OrderStatus::Closed)), "{rows:?}");
    assert_eq!((held, fixture.sold().await), (paid as u32, paid as u32));
    assert_eq!(fixture.database.releases_outstanding().await.unwrap(), 60 - paid as u64);
    assert_eq!(fixture.database.withdrawal_done(&sale_id("s")).await.unwrap(), paid == 0);
}
