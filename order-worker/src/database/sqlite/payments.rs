//! `floodgate_payments`: captures, kept, refunded or unmatched.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use stock::{OrderId, OrderStatus, Timestamp};

use super::transitions::apply;
use super::{DatabaseError, SqliteDatabase, life, limit, parsed, parsed_option, refunds, signed, unsigned};
use crate::database::payments::{Capture, Captured, Disposition, PaymentRow, RefundReason, not_unpaid};
use crate::database::refunds::{RefundRow, of_capture};
use crate::database::transitions::{self, judge};

const COLUMNS: &str =
    "provider, payment_id, order_id, trade_ref, amount, currency, paid_at, received_at, disposition, reason";

/// The unmatched ones whose order has a row by now.
const JOINABLE: &str = "SELECT p.provider, p.payment_id
                        FROM floodgate_payments AS p INDEXED BY floodgate_payments_disposition
                        CROSS JOIN floodgate_orders AS o ON o.order_id = p.order_id
                        WHERE p.disposition = 'unmatched' ORDER BY p.received_at LIMIT ?1";

/// Those that have waited since `?1`.
const OVERDUE: &str =
    "SELECT provider, payment_id FROM floodgate_payments INDEXED BY floodgate_payments_disposition
                       WHERE disposition = 'unmatched' AND received_at <= ?1 ORDER BY received_at LIMIT ?2";

impl SqliteDatabase {
    pub(in crate::database) async fn capture(&self, capture: Capture) -> Result<Captured, DatabaseError> {
        self.write(move |transaction, now| {
            if let Some(row) = find(transaction, &capture.provider, &capture.payment_id)? {
                let (disposition, differs) = (row.disposition, row.differs_from(&capture));
                return Ok(Captured { disposition, is_repeat: true, differs });
            }
            let order = match capture.order_id {
                Some(order) => life::find(transaction, order)?,
                None => None,
            };
            let disposition = judge(order.as_ref(), &capture);
            let at = now.to_string();
            // A crash before the commit leaves nothing, and the provider, who has no answer, says it again; one after it leaves all.
            transaction
                .prepare_cached(
                    "INSERT INTO floodgate_payments (provider, payment_id, order_id, trade_ref, amount, currency, paid_at,
                                                     received_at, disposition, reason, updated_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?8)",
                )?
                .execute(params![
                    capture.provider,
                    capture.payment_id,
                    capture.order_id.map(|order| order.to_string()),
                    capture.trade_ref,
                    signed(capture.amount),
                    capture.currency,
                    capture.paid_at.map(|at| at.to_string()),
                    at,
                    disposition.as_str(),
                    disposition.reason(),
                ])?;
            carry_out(transaction, now, &capture, order, disposition)?;
            Ok(Captured { disposition, is_repeat: false, differs: false })
        })
        .await
    }

    pub(in crate::database) async fn join_unmatched(&self, rows: usize) -> Result<usize, DatabaseError> {
        let found = self
            .read(move |transaction| {
                let mut statement = transaction.prepare_cached(JOINABLE)?;
                let found =
                    statement.query_map(params![limit(rows)], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(found.collect::<Result<Vec<(String, String)>, _>>()?)
            })
            .await?;
        self.judge_again(found, false).await
    }

    pub(in crate::database) async fn refund_unmatched(
        &self,
        waited_ms: u64,
        rows: usize,
    ) -> Result<usize, DatabaseError> {
        let since = Timestamp((self.now)().saturating_sub(waited_ms)).to_string();
        let found = self
            .read(move |transaction| {
                let mut statement = transaction.prepare_cached(OVERDUE)?;
                let found =
                    statement.query_map(params![since, limit(rows)], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(found.collect::<Result<Vec<(String, String)>, _>>()?)
            })
            .await?;
        self.judge_again(found, true).await
    }

    /// One transaction for all of them. Where no order has come, `is_over` refunds.
    async fn judge_again(
        &self,
        payments: Vec<(String, String)>,
        is_over: bool,
    ) -> Result<usize, DatabaseError> {
        if payments.is_empty() {
            return Ok(0);
        }
        self.write(move |transaction, now| {
            let mut judged = 0;
            for (provider, payment_id) in payments {
                let Some(row) = find(transaction, &provider, &payment_id)? else { continue };
                if row.disposition != Disposition::Unmatched {
                    continue;
                }
                let capture = row.capture();
                let order = match capture.order_id {
                    Some(order) => life::find(transaction, order)?,
                    None => None,
                };
                let disposition = match judge(order.as_ref(), &capture) {
                    Disposition::Unmatched if is_over => Disposition::Refund(RefundReason::NoOrder),
                    Disposition::Unmatched => continue,
                    disposition => disposition,
                };
                transaction
                    .prepare_cached(
                        "UPDATE floodgate_payments SET disposition = ?3, reason = ?4, updated_at = ?5
                         WHERE provider = ?1 AND payment_id = ?2 AND disposition = 'unmatched'",
                    )?
                    .execute(params![
                        provider,
                        payment_id,
                        disposition.as_str(),
                        disposition.reason(),
                        now.to_string()
                    ])?;
                carry_out(transaction, now, &capture, order, disposition)?;
                judged += 1;
            }
            Ok(judged)
        })
        .await
    }

    pub(in crate::database) async fn payment(
        &self,
        provider: String,
        payment_id: String,
    ) -> Result<Option<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        self.read(move |transaction| {
            let Some(row) = find(transaction, &provider, &payment_id)? else { return Ok(None) };
            let refunds = refunds::of_payment(transaction, &provider, &payment_id)?;
            Ok(Some((row, refunds)))
        })
        .await
    }

    pub(in crate::database) async fn payments_of(
        &self,
        order: OrderId,
    ) -> Result<Vec<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM floodgate_payments INDEXED BY floodgate_payments_order
                 WHERE order_id = ?1 ORDER BY received_at, provider, payment_id"
            ))?;
            let rows = statement.query_map(params![order.to_string()], payment_row)?;
            let mut payments = Vec::new();
            for row in rows.collect::<Result<Result<Vec<_>, _>, _>>()?? {
                let refunds = refunds::of_payment(transaction, &row.provider, &row.payment_id)?;
                payments.push((row, refunds));
            }
            Ok(payments)
        })
        .await
    }

    pub(in crate::database) async fn clock(&self) -> Result<Timestamp, DatabaseError> {
        Ok(Timestamp((self.now)()))
    }
}

/// What follows from a disposition, beside the payment's own row.
fn carry_out(
    transaction: &Transaction<'_>,
    now: Timestamp,
    capture: &Capture,
    order: Option<crate::database::OrderRow>,
    disposition: Disposition,
) -> Result<(), DatabaseError> {
    match (disposition, order) {
        (Disposition::Kept, Some(order)) => match transitions::pay(&order, now, capture) {
            Ok(step) => apply(transaction, &step),
            Err(status) => Err(not_unpaid(status)),
        },
        (Disposition::Kept, None) => Err(not_unpaid(OrderStatus::Queued)),
        (Disposition::Refund(reason), _) => refunds::insert(transaction, &of_capture(capture, reason, now)),
        (Disposition::Unmatched, _) => Ok(()),
    }
}

pub(super) fn find(
    transaction: &Transaction<'_>,
    provider: &str,
    payment_id: &str,
) -> Result<Option<PaymentRow>, DatabaseError> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM floodgate_payments WHERE provider = ?1 AND payment_id = ?2"
    ))?;
    statement.query_row(params![provider, payment_id], payment_row).optional()?.transpose()
}

/// A provider's payments behind one, by id.
pub(super) fn page(
    transaction: &Transaction<'_>,
    provider: &str,
    after: &str,
    rows: usize,
) -> Result<Vec<PaymentRow>, DatabaseError> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM floodgate_payments WHERE provider = ?1 AND payment_id > ?2
         ORDER BY payment_id LIMIT ?3"
    ))?;
    let rows = statement.query_map(params![provider, after, limit(rows)], payment_row)?;
    rows.collect::<Result<Result<Vec<_>, _>, _>>()?
}

/// The payment that an order was paid by.
pub(super) fn kept(
    transaction: &Transaction<'_>,
    order: OrderId,
) -> Result<Option<PaymentRow>, DatabaseError> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM floodgate_payments INDEXED BY floodgate_payments_order
         WHERE order_id = ?1 AND disposition = 'kept'"
    ))?;
    statement.query_row(params![order.to_string()], payment_row).optional()?.transpose()
}

fn payment_row(row: &Row<'_>) -> rusqlite::Result<Result<PaymentRow, DatabaseError>> {
    let (word, reason): (String, Option<String>) = (row.get(8)?, row.get(9)?);
    let disposition = match Disposition::of_row(&word, reason.as_deref()) {
        Ok(disposition) => disposition,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(PaymentRow {
        provider: row.get(0)?,
        payment_id: row.get(1)?,
        order_id: parsed_option(row, 2)?,
        trade_ref: row.get(3)?,
        amount: unsigned(row, 4)?,
        currency: row.get(5)?,
        paid_at: parsed_option(row, 6)?,
        received_at: parsed(row, 7)?,
        disposition,
    }))
}
