//! The later life of rows of `floodgate_orders`.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use stock::{OrderId, OrderStatus, SaleId, Timestamp, UserId};

use super::transitions::apply;
use super::{DatabaseError, SqliteDatabase, journal, limit, parsed, parsed_option, sales, unsigned};
use crate::database::life::{Canceller, Closes, RowStatus};
use crate::database::transitions;
use crate::database::{CancelOutcome, CloseOutcome, Due, OrderRow, Standing};

const COLUMNS: &str = "order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason, metadata, \
                       created_at, updated_at, pay_by, version, rehearsal, paid_at, refunded_amount, sale_version";

/// The longest over first.
const LAPSED: &str = "SELECT order_id, sale_id FROM floodgate_orders INDEXED BY floodgate_orders_due
                      WHERE status = 'unpaid' AND pay_by <= ?1 ORDER BY pay_by LIMIT ?2";

impl SqliteDatabase {
    pub(in crate::database) async fn order(&self, order: OrderId) -> Result<Option<OrderRow>, DatabaseError> {
        self.read(move |transaction| find(transaction, order)).await
    }

    pub(in crate::database) async fn orders(
        &self,
        sale: SaleId,
        after: Option<OrderId>,
        rows: usize,
    ) -> Result<Vec<OrderRow>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM floodgate_orders WHERE sale_id = ?1 AND order_id > ?2
                 ORDER BY order_id LIMIT ?3"
            ))?;
            let after = after.map(|order| order.to_string()).unwrap_or_default();
            let page = statement.query_map(params![sale.as_str(), after, limit(rows)], order_row)?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn orders_of_user(
        &self,
        sale: SaleId,
        user: UserId,
        rows: usize,
    ) -> Result<Vec<OrderRow>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM floodgate_orders INDEXED BY floodgate_orders_user
                 WHERE sale_id = ?1 AND user_id = ?2 ORDER BY order_id DESC LIMIT ?3"
            ))?;
            let page = statement.query_map(params![sale.as_str(), user.as_str(), limit(rows)], order_row)?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn cancel(
        &self,
        order: OrderId,
        by: Canceller,
    ) -> Result<CancelOutcome, DatabaseError> {
        let outcome = self
            .write(move |transaction, now| {
                let Some(row) = find(transaction, order)? else {
                    return Ok(CancelOutcome::NotFound);
                };
                if by.is_stranger_to(&row) {
                    return Ok(CancelOutcome::NotFound);
                }
                if by.has_closed(&row) {
                    return Ok(CancelOutcome::Cancelled(row));
                }
                let is_settled = sales::find(transaction, &row.sale_id)?.is_some_and(|sale| sale.settled);
                let step = match transitions::close(&row, now, by.cause(), is_settled) {
                    Ok(step) => step,
                    Err(status) => return Ok(CancelOutcome::WrongState(status)),
                };
                // A crash before the commit leaves the order unpaid, one after it the release behind, which the relay finds.
                apply(transaction, &step)?;
                if let Some((author, change)) = by.journal(&row, &step.after) {
                    journal::append(transaction, author, now, change)?;
                }
                Ok(CancelOutcome::Cancelled(step.after))
            })
            .await?;
        if matches!(outcome, CancelOutcome::Cancelled(_)) {
            self.release_written.notify_one();
        }
        Ok(outcome)
    }

    pub(in crate::database) async fn close_all(
        &self,
        due: Vec<Due>,
        closes: Closes,
    ) -> Result<Vec<CloseOutcome>, DatabaseError> {
        let outcomes = self
            .write(move |transaction, now| {
                let mut settled: BTreeMap<SaleId, bool> = BTreeMap::new();
                let mut outcomes = Vec::with_capacity(due.len());
                for Due { order_id, .. } in due {
                    let Some(row) = find(transaction, order_id)? else {
                        outcomes.push(CloseOutcome::Absent);
                        continue;
                    };
                    let spared = closes.spares(&row, now).filter(|_| row.status == OrderStatus::Unpaid);
                    if let Some(outcome) = spared {
                        outcomes.push(outcome);
                        continue;
                    }
                    let is_settled = match settled.get(&row.sale_id) {
                        Some(is_settled) => *is_settled,
                        None => {
                            let sale = sales::find(transaction, &row.sale_id)?;
                            sale.iter().try_for_each(|sale| closes.check(sale))?;
                            let is_settled = sale.is_some_and(|sale| sale.settled);
                            settled.insert(row.sale_id.clone(), is_settled);
                            is_settled
                        }
                    };
                    // A crash before the commit leaves all of them unpaid, one after it their releases behind.
                    outcomes.push(match transitions::close(&row, now, closes.cause(), is_settled) {
                        Ok(step) => {
                            apply(transaction, &step)?;
                            CloseOutcome::Closed
                        }
                        Err(status) => CloseOutcome::Past(status),
                    });
                }
                Ok(outcomes)
            })
            .await?;
        if outcomes.contains(&CloseOutcome::Closed) {
            self.release_written.notify_one();
        }
        Ok(outcomes)
    }

    pub(in crate::database) async fn lapsed(
        &self,
        grace_ms: u64,
        rows: usize,
    ) -> Result<Vec<Due>, DatabaseError> {
        let before = Timestamp((self.now)().saturating_sub(grace_ms)).to_string();
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(LAPSED)?;
            let due = statement.query_map(params![before, limit(rows)], |row| {
                Ok(Due { order_id: parsed(row, 0)?, sale: parsed(row, 1)? })
            })?;
            Ok(due.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn statuses(
        &self,
        orders: Vec<OrderId>,
    ) -> Result<Vec<Option<Standing>>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction
                .prepare_cached("SELECT status, units_held FROM floodgate_orders WHERE order_id = ?1")?;
            let mut standings = Vec::with_capacity(orders.len());
            for order in orders {
                let standing = statement.query_row(params![order.to_string()], |row| {
                    Ok(Standing { status: parsed::<RowStatus>(row, 0)?.0, units_held: row.get(1)? })
                });
                standings.push(standing.optional()?);
            }
            Ok(standings)
        })
        .await
    }
}

pub(super) fn find(transaction: &Transaction<'_>, order: OrderId) -> Result<Option<OrderRow>, DatabaseError> {
    let mut statement =
        transaction.prepare_cached(&format!("SELECT {COLUMNS} FROM floodgate_orders WHERE order_id = ?1"))?;
    Ok(statement.query_row(params![order.to_string()], order_row).optional()?)
}

fn order_row(row: &Row<'_>) -> rusqlite::Result<OrderRow> {
    Ok(OrderRow {
        order_id: parsed(row, 0)?,
        sale_id: parsed(row, 1)?,
        user_id: parsed(row, 2)?,
        quantity: row.get(3)?,
        units_held: row.get(4)?,
        amount: unsigned(row, 5)?,
        currency: row.get(6)?,
        status: parsed::<RowStatus>(row, 7)?.0,
        reason: row.get(8)?,
        metadata: row.get(9)?,
        created_at: parsed(row, 10)?,
        updated_at: parsed(row, 11)?,
        pay_by: parsed_option(row, 12)?,
        version: unsigned(row, 13)?,
        rehearsal: row.get(14)?,
        paid_at: parsed_option(row, 15)?,
        refunded_amount: unsigned(row, 16)?,
        sale_version: row.get::<_, Option<i64>>(17)?.and_then(|version| u64::try_from(version).ok()),
    })
}
