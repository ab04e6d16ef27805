//! `floodgate_refunds`: money that goes back.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use stock::{OrderId, Timestamp};

use super::transitions::apply;
use super::{
    DatabaseError, SqliteDatabase, journal, life, limit, parsed, parsed_option, payments, sales, signed,
    unsigned,
};
use crate::database::payments::Disposition;
use crate::database::refunds::{
    Asker, Decision, OVERDUE_MS, OpenRefunds, Part, RefundAsked, RefundHeard, RefundRow, RefundState,
    RefundTold, asked, decide, retried, steps,
};
use crate::database::transitions;
use crate::journal::Author;

const COLUMNS: &str = "refund_id, provider, payment_id, order_id, amount, whole, reason, requested_by, state, attempts, \
                       next_try_at, provider_refund_id, last_error, created_at, updated_at";

impl SqliteDatabase {
    pub(in crate::database) async fn refund_told(
        &self,
        told: RefundTold,
    ) -> Result<RefundHeard, DatabaseError> {
        self.write(move |transaction, now| {
            let Some(row) = find(transaction, &told.refund_id)? else { return Ok(RefundHeard::Unknown) };
            let Some(after) = row.after(&told, now) else { return Ok(RefundHeard::Unchanged) };
            // A crash before the commit leaves the refund as it was, and the same is told again.
            update(transaction, &after, now)?;
            if after.state == RefundState::Succeeded
                && let Some(order) = after.order_id
                && let Some(order) = life::find(transaction, order)?
            {
                let payment = payments::find(transaction, &after.provider, &after.payment_id)?;
                let is_own = payment.is_some_and(|payment| payment.disposition == Disposition::Kept);
                apply(transaction, &transitions::money_is_back(&order, now, &after, is_own))?;
            }
            Ok(RefundHeard::Changed)
        })
        .await
    }

    pub(in crate::database) async fn refund(
        &self,
        order: OrderId,
        by: Asker,
        part: Option<Part>,
    ) -> Result<RefundAsked, DatabaseError> {
        let written = self
            .write(move |transaction, now| {
                let Some(row) = life::find(transaction, order)? else { return Ok(RefundAsked::NotFound) };
                if by.is_stranger_to(&row) {
                    return Ok(RefundAsked::NotFound);
                }
                let Some(payment) = payments::kept(transaction, order)? else {
                    return Ok(RefundAsked::WrongState(row.status));
                };
                let earlier = of_payment(transaction, &payment.provider, &payment.payment_id)?;
                let sale = sales::get(transaction, &row.sale_id)?;
                let refund = match decide((&sale, &row), &payment, &earlier, (&by, part.as_ref()), now)? {
                    Decision::Write(refund) => refund,
                    Decision::Answer(answer) => return Ok(answer),
                };
                // An answer that refuses must come before the first write: it commits as well. A crash before the commit leaves a paid
                // order, one after it a refund that is due.
                match steps(&sale, &row, &refund, now) {
                    Ok(steps) => steps.iter().try_for_each(|step| apply(transaction, step))?,
                    Err(status) => return Ok(RefundAsked::WrongState(status)),
                }
                insert(transaction, &refund)?;
                if let Asker::Operator(author) = &by {
                    journal::append(transaction, author, now, asked(&row, &refund))?;
                }
                Ok(RefundAsked::Written(refund))
            })
            .await?;
        if matches!(&written, RefundAsked::Written(refund) if refund.whole) {
            self.release_written.notify_one();
        }
        Ok(written)
    }

    pub(in crate::database) async fn refunds_due(
        &self,
        rows: usize,
    ) -> Result<Vec<RefundRow>, DatabaseError> {
        let now = Timestamp((self.now)()).to_string();
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM floodgate_refunds INDEXED BY floodgate_refunds_due
                 WHERE next_try_at <= ?1 ORDER BY next_try_at LIMIT ?2"
            ))?;
            let due = statement.query_map(params![now, limit(rows)], refund_row)?;
            Ok(due.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn open_refunds(&self) -> Result<OpenRefunds, DatabaseError> {
        let now = Timestamp((self.now)());
        let since = Timestamp(now.0.saturating_sub(OVERDUE_MS)).to_string();
        self.read(move |transaction| {
            let count = "SELECT (SELECT COUNT(*) FROM floodgate_refunds WHERE next_try_at <= ?1),
                                (SELECT COUNT(*) FROM floodgate_refunds WHERE next_try_at <= ?2),
                                (SELECT COUNT(*) FROM floodgate_refunds WHERE state = 'stuck')";
            let open = transaction.query_row(count, params![now.to_string(), since], |row| {
                Ok(OpenRefunds {
                    due: unsigned(row, 0)?,
                    overdue: unsigned(row, 1)?,
                    stuck: unsigned(row, 2)?,
                })
            })?;
            Ok(open)
        })
        .await
    }

    pub(in crate::database) async fn refunds(
        &self,
        state: RefundState,
        after: String,
        rows: usize,
    ) -> Result<Vec<RefundRow>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM floodgate_refunds INDEXED BY floodgate_refunds_state
                 WHERE state = ?1 AND refund_id > ?2 ORDER BY refund_id LIMIT ?3"
            ))?;
            let page = statement.query_map(params![state.as_str(), after, limit(rows)], refund_row)?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn retry_refund(
        &self,
        refund_id: String,
        author: Author,
    ) -> Result<Option<RefundRow>, DatabaseError> {
        self.write(move |transaction, now| {
            let Some(row) = find(transaction, &refund_id)? else { return Ok(None) };
            let Some((after, change)) = retried(&row, now) else { return Ok(Some(row)) };
            update(transaction, &after, now)?;
            journal::append(transaction, &author, now, change)?;
            Ok(Some(after))
        })
        .await
    }
}

pub(super) fn insert(transaction: &Transaction<'_>, refund: &RefundRow) -> Result<(), DatabaseError> {
    transaction
        .prepare_cached(
            "INSERT INTO floodgate_refunds (refund_id, provider, payment_id, order_id, amount, whole, reason, requested_by, state,
                                            attempts, next_try_at, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12)",
        )?
        .execute(params![
            refund.refund_id,
            refund.provider,
            refund.payment_id,
            refund.order_id.map(|order| order.to_string()),
            signed(refund.amount),
            refund.whole,
            refund.reason,
            refund.requested_by,
            refund.state.as_str(),
            refund.attempts,
            refund.next_try_at.map(|at| at.to_string()),
            refund.created_at.to_string(),
        ])?;
    Ok(())
}

/// What changes of a refund; its amount and its id never do.
fn update(transaction: &Transaction<'_>, refund: &RefundRow, now: Timestamp) -> Result<(), DatabaseError> {
    transaction
        .prepare_cached(
            "UPDATE floodgate_refunds
             SET state = ?2, attempts = ?3, next_try_at = ?4, provider_refund_id = ?5, last_error = ?6, updated_at = ?7
             WHERE refund_id = ?1",
        )?
        .execute(params![
            refund.refund_id,
            refund.state.as_str(),
            refund.attempts,
            refund.next_try_at.map(|at| at.to_string()),
            refund.provider_refund_id,
            refund.last_error,
            now.to_string(),
        ])?;
    Ok(())
}

fn find(transaction: &Transaction<'_>, refund_id: &str) -> Result<Option<RefundRow>, DatabaseError> {
    let mut statement = transaction
        .prepare_cached(&format!("SELECT {COLUMNS} FROM floodgate_refunds WHERE refund_id = ?1"))?;
    Ok(statement.query_row(params![refund_id], refund_row).optional()?)
}

pub(super) fn of_payment(
    transaction: &Transaction<'_>,
    provider: &str,
    payment_id: &str,
) -> Result<Vec<RefundRow>, DatabaseError> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM floodgate_refunds INDEXED BY floodgate_refunds_payment
         WHERE provider = ?1 AND payment_id = ?2 ORDER BY created_at, refund_id"
    ))?;
    let rows = statement.query_map(params![provider, payment_id], refund_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn refund_row(row: &Row<'_>) -> rusqlite::Result<RefundRow> {
    Ok(RefundRow {
        refund_id: row.get(0)?,
        provider: row.get(1)?,
        payment_id: row.get(2)?,
        order_id: parsed_option(row, 3)?,
        amount: unsigned(row, 4)?,
        whole: row.get(5)?,
        reason: row.get(6)?,
        requested_by: row.get(7)?,
        state: parsed(row, 8)?,
        attempts: row.get(9)?,
        next_try_at: parsed_option(row, 10)?,
        provider_refund_id: row.get(11)?,
        last_error: row.get(12)?,
        created_at: parsed(row, 13)?,
        updated_at: parsed(row, 14)?,
    })
}
