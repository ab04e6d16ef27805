//! `floodgate_payments`: captures, kept, refunded or unmatched.
//!
//! Locks in one order everywhere: sale (where units move), order, payment, refund. A payment takes no sale's lock: it changes no `sold`, and never
//! waits for the drain.

use mysql_async::Row;
use stock::{OrderId, OrderStatus, Timestamp};

use super::fault::Fault;
use super::session::{NOW, Session, now};
use super::sql::{Answers, Text, TextOrNull, get, parsed, parsed_option};
use super::transitions::apply;
use super::{MysqlDatabase, life, refunds};
use crate::database::payments::{Capture, Captured, Disposition, PaymentRow, RefundReason, not_unpaid};
use crate::database::refunds::{RefundRow, of_capture};
use crate::database::transitions::{self, judge};
use crate::database::{DatabaseError, OrderRow};

const COLUMNS: &str =
    "provider, payment_id, order_id, trade_ref, amount, currency, paid_at, received_at, disposition, reason";

/// The unmatched ones whose order has a row by now.
const JOINABLE: &str = "SELECT STRAIGHT_JOIN p.provider, p.payment_id
                        FROM floodgate_payments AS p FORCE INDEX (floodgate_payments_disposition)
                        JOIN floodgate_orders AS o ON o.order_id = p.order_id
                        WHERE p.disposition = 'unmatched' ORDER BY p.received_at";

impl MysqlDatabase {
    pub(in crate::database) async fn capture(&self, capture: Capture) -> Result<Captured, DatabaseError> {
        self.write(async move |session| receive(session, &capture).await).await
    }

    pub(in crate::database) async fn join_unmatched(&self, rows: usize) -> Result<usize, DatabaseError> {
        let found = self
            .read(async move |session| named(session.ask(&format!("{JOINABLE} LIMIT {rows};")).await?))
            .await?;
        self.judge_again(found, false).await
    }

    pub(in crate::database) async fn refund_unmatched(
        &self,
        waited_ms: u64,
        rows: usize,
    ) -> Result<usize, DatabaseError> {
        let found = self
            .read(async move |session| {
                let now = now(&mut session.transact(NOW).await?)?;
                let since = Timestamp(now.0.saturating_sub(waited_ms));
                let overdue = format!(
                    "SELECT provider, payment_id FROM floodgate_payments FORCE INDEX (floodgate_payments_disposition)
                     WHERE disposition = 'unmatched' AND received_at <= '{since}' ORDER BY received_at LIMIT {rows};"
                );
                named(session.ask(&overdue).await?)
            })
            .await?;
        self.judge_again(found, true).await
    }

    /// A transaction for each, so that no more is locked than one payment and its order. Where no order has come, `is_over` refunds.
    async fn judge_again(
        &self,
        payments: Vec<(String, String)>,
        is_over: bool,
    ) -> Result<usize, DatabaseError> {
        let mut judged = 0;
        for (provider, payment_id) in payments {
            let again =
                self.write(async move |session| judge_again(session, &provider, &payment_id, is_over).await);
            judged += usize::from(again.await?);
        }
        Ok(judged)
    }

    pub(in crate::database) async fn payment(
        &self,
        provider: String,
        payment_id: String,
    ) -> Result<Option<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        self.read(async move |session| {
            let both = select(&provider, &payment_id, "") + &refunds::of_payment(&provider, &payment_id, "");
            let mut answers = session.ask(&both).await?;
            let Some(row) = answers.row().map(payment_row).transpose()? else { return Ok(None) };
            let refunds: Result<_, Fault> = answers.rest().map(refunds::refund_row).collect();
            Ok(Some((row, refunds?)))
        })
        .await
    }

    pub(in crate::database) async fn payments_of(
        &self,
        order: OrderId,
    ) -> Result<Vec<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        self.read(async move |session| {
            let of_order = format!(
                "SELECT {COLUMNS} FROM floodgate_payments FORCE INDEX (floodgate_payments_order)
                 WHERE order_id = '{order}' ORDER BY received_at, provider, payment_id;"
            );
            let rows: Result<Vec<PaymentRow>, Fault> =
                session.ask(&of_order).await?.rest().map(payment_row).collect();
            let mut payments = Vec::new();
            for row in rows? {
                let refunds = session.ask(&refunds::of_payment(&row.provider, &row.payment_id, "")).await?;
                let refunds: Result<_, Fault> = refunds.rest().map(refunds::refund_row).collect();
                payments.push((row, refunds?));
            }
            Ok(payments)
        })
        .await
    }

    pub(in crate::database) async fn clock(&self) -> Result<Timestamp, DatabaseError> {
        self.read(async |session| now(&mut session.transact(NOW).await?)).await
    }
}

/// Of two columns, the payments that they name.
fn named(answers: Answers) -> Result<Vec<(String, String)>, Fault> {
    answers.rest().map(|mut row| Ok((get(&mut row, 0)?, get(&mut row, 1)?))).collect()
}

async fn receive(session: &mut Session, capture: &Capture) -> Result<Captured, Fault> {
    // 1. Lock the order, if it is there, then the payment; then the time.
    let (order, payment, now) =
        locked(session, capture.order_id, &capture.provider, &capture.payment_id).await?;
    if let Some(row) = payment {
        return repeated(session, &row, capture).await;
    }

    // 2. Judge and write. A crash before COMMIT leaves nothing, and the provider, who has no answer, says it again; one after it
    // leaves all.
    let disposition = judge(order.as_ref(), capture);
    let insert = format!(
        "INSERT INTO floodgate_payments (provider, payment_id, order_id, trade_ref, amount, currency, paid_at, received_at,
                                         disposition, reason, updated_at)
         VALUES ({}, {}, {}, {}, {}, {}, {}, '{now}', '{}', {}, '{now}');",
        Text(&capture.provider),
        Text(&capture.payment_id),
        TextOrNull(capture.order_id.map(|order| order.to_string()).as_deref()),
        Text(&capture.trade_ref),
        capture.amount,
        Text(&capture.currency),
        TextOrNull(capture.paid_at.map(|at| at.to_string()).as_deref()),
        disposition.as_str(),
        TextOrNull(disposition.reason()),
    );
    let follows = carry_out(now, capture, order, disposition)?;
    match session.commit(insert + &follows).await {
        Ok(()) => Ok(Captured { disposition, is_repeat: false, differs: false }),
        // Another call for the same payment came between: what it wrote holds, and nothing of ours was written.
        Err(Fault::Duplicate(_)) => {
            let select = select(&capture.provider, &capture.payment_id, " FOR UPDATE");
            let row = session.transact(&select).await?.row().map(payment_row).transpose()?;
            match row {
                Some(row) => repeated(session, &row, capture).await,
                None => Err(Fault::Again("a payment was there and is gone".into())),
            }
        }
        Err(fault) => Err(fault),
    }
}

async fn repeated(session: &mut Session, row: &PaymentRow, capture: &Capture) -> Result<Captured, Fault> {
    session.commit_found().await?;
    Ok(Captured { disposition: row.disposition, is_repeat: true, differs: row.differs_from(capture) })
}

async fn judge_again(
    session: &mut Session,
    provider: &str,
    payment_id: &str,
    is_over: bool,
) -> Result<bool, Fault> {
    // Which order it names never changes, so that can be asked without a lock.
    let seen =
        session.transact(&select(provider, payment_id, "")).await?.row().map(payment_row).transpose()?;
    let Some(seen) = seen else { return Ok(false) };
    let (order, payment, now) = locked(session, seen.order_id, provider, payment_id).await?;
    let Some(payment) = payment.filter(|payment| payment.disposition == Disposition::Unmatched) else {
        return Ok(false);
    };
    let capture = payment.capture();
    let disposition = match judge(order.as_ref(), &capture) {
        Disposition::Unmatched if is_over => Disposition::Refund(RefundReason::NoOrder),
        Disposition::Unmatched => return Ok(false),
        disposition => disposition,
    };
    let update = format!(
        "UPDATE floodgate_payments SET disposition = '{}', reason = {}, updated_at = '{now}'
         WHERE provider = {} AND payment_id = {} AND disposition = 'unmatched';",
        disposition.as_str(),
        TextOrNull(disposition.reason()),
        Text(provider),
        Text(payment_id),
    );
    // A crash before COMMIT leaves it unmatched, and the next look finds it again.
    let follows = carry_out(now, &capture, order, disposition)?;
    session.commit(update + &follows).await?;
    Ok(true)
}

/// Locks an order, if one is named, and a payment, each if it is there.
pub(super) async fn locked(
    session: &mut Session,
    order: Option<OrderId>,
    provider: &str,
    payment_id: &str,
) -> Result<(Option<OrderRow>, Option<PaymentRow>, Timestamp), Fault> {
    let mut statements = order.map(|order| life::select(order, " FOR UPDATE")).unwrap_or_default();
    statements += &select(provider, payment_id, " FOR UPDATE");
    statements.push_str(NOW);
    let mut answers = session.transact(&statements).await?;
    let order = match order {
        Some(_) => answers.row().map(life::order_row).transpose()?,
        None => None,
    };
    let payment = answers.row().map(payment_row).transpose()?;
    Ok((order, payment, now(&mut answers)?))
}

/// What follows from a disposition, beside the payment's own row.
fn carry_out(
    now: Timestamp,
    capture: &Capture,
    order: Option<OrderRow>,
    disposition: Disposition,
) -> Result<String, DatabaseError> {
    match (disposition, order) {
        (Disposition::Kept, Some(order)) => match transitions::pay(&order, now, capture) {
            Ok(step) => apply(&[step]),
            Err(status) => Err(not_unpaid(status)),
        },
        (Disposition::Kept, None) => Err(not_unpaid(OrderStatus::Queued)),
        (Disposition::Refund(reason), _) => Ok(refunds::insert(&of_capture(capture, reason, now))),
        (Disposition::Unmatched, _) => Ok(String::new()),
    }
}

fn select(provider: &str, payment_id: &str, lock: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM floodgate_payments WHERE provider = {} AND payment_id = {}{lock};",
        Text(provider),
        Text(payment_id)
    )
}

/// A provider's payments behind one, by id.
pub(super) fn page(provider: &str, after: &str, rows: usize) -> String {
    format!(
        "SELECT {COLUMNS} FROM floodgate_payments FORCE INDEX (PRIMARY)
         WHERE provider = {} AND payment_id > {} ORDER BY payment_id LIMIT {rows};",
        Text(provider),
        Text(after)
    )
}

/// The payment that an order was paid by.
pub(super) fn kept(order: OrderId) -> String {
    format!(
        "SELECT {COLUMNS} FROM floodgate_payments FORCE INDEX (floodgate_payments_order)
         WHERE order_id = '{order}' AND disposition = 'kept' FOR UPDATE;"
    )
}

pub(super) fn payment_row(mut row: Row) -> Result<PaymentRow, Fault> {
    let row = &mut row;
    let (word, reason): (String, Option<String>) = (get(row, 8)?, get(row, 9)?);
    Ok(PaymentRow {
        provider: get(row, 0)?,
        payment_id: get(row, 1)?,
        order_id: parsed_option(row, 2)?,
        trade_ref: get(row, 3)?,
        amount: get(row, 4)?,
        currency: get(row, 5)?,
        paid_at: parsed_option(row, 6)?,
        received_at: parsed(row, 7)?,
        disposition: Disposition::of_row(&word, reason.as_deref())?,
    })
}
