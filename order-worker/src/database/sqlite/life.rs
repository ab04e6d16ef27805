//! The later life of rows of `floodgate_orders`.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use stock::{OrderId, OrderStatus, SaleId};

use super::{DatabaseError, SqliteDatabase, intake, journal, limit, parsed, parsed_option, unsigned};
use crate::database::life::{Canceller, RowStatus, cancelled};
use crate::database::{CancelOutcome, OrderRow, Standing};

const COLUMNS: &str = "order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason, metadata, \
                       created_at, updated_at, pay_by, version, rehearsal";

/// Why an order is closed that somebody cancelled.
const CANCELLED: &str = "cancelled";

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
                if row.status == OrderStatus::Closed && row.reason.as_deref() == Some(CANCELLED) {
                    return Ok(CancelOutcome::Cancelled(row));
                }
                if row.status != OrderStatus::Unpaid {
                    return Ok(CancelOutcome::WrongState(row.status));
                }
                let (order_id, at, now) = (order.to_string(), now, now.to_string());
                let mut close = transaction.prepare_cached(&format!(
                    "UPDATE floodgate_orders
                     SET status = 'closed', reason = ?2, units_held = 0, version = version + 1, updated_at = ?3
                     WHERE order_id = ?1 AND status = 'unpaid' RETURNING {COLUMNS}"
                ))?;
                let closed = close.query_row(params![order_id, CANCELLED, now], order_row)?;
                transaction
                    .prepare_cached(
                        "UPDATE floodgate_sales SET sold = sold - ?2, updated_at = ?3 WHERE sale_id = ?1",
                    )?
                    .execute(params![row.sale_id.as_str(), row.units_held, now])?;
                let (sale, user) = (row.sale_id.as_str(), row.user_id.as_str());
                intake::release(transaction, &order_id, sale, user, row.quantity, &now)?;
                if let Canceller::Operator(author) = &by {
                    journal::append(transaction, author, at, cancelled(&row, &closed))?;
                }
                Ok(CancelOutcome::Cancelled(closed))
            })
            .await?;
        if matches!(outcome, CancelOutcome::Cancelled(_)) {
            self.release_written.notify_one();
        }
        Ok(outcome)
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

fn find(transaction: &Transaction<'_>, order: OrderId) -> Result<Option<OrderRow>, DatabaseError> {
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
    })
}
