//! Reads `floodgate_payments` as a whole, for the audit.

use rusqlite::{Transaction, params};
use stock::OrderId;

use super::executor::Lane;
use super::{DatabaseError, SqliteDatabase, life, limit, parsed, payments, refunds};
use crate::database::money::{MoneyRow, PaidOtherwise};

const WITHOUT_PAYMENT: &str = "SELECT o.order_id FROM floodgate_orders AS o INDEXED BY floodgate_orders_due
     WHERE o.status IN ('paid', 'refunding', 'refunded')
       AND NOT EXISTS (SELECT 1 FROM floodgate_payments AS p INDEXED BY floodgate_payments_order
                       WHERE p.order_id = o.order_id AND p.disposition = 'kept')
     LIMIT ?1";
const MORE_THAN_ONCE: &str = "SELECT order_id FROM floodgate_payments INDEXED BY floodgate_payments_order
     WHERE order_id IS NOT NULL AND disposition = 'kept' GROUP BY order_id HAVING count(*) > 1 LIMIT ?1";

impl SqliteDatabase {
    pub(in crate::database) async fn payment_providers(&self) -> Result<Vec<String>, DatabaseError> {
        self.read_in(Lane::Sum, |transaction| {
            let mut statement = transaction
                .prepare_cached("SELECT DISTINCT provider FROM floodgate_payments ORDER BY provider")?;
            let providers = statement.query_map([], |row| row.get(0))?;
            Ok(providers.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn money(
        &self,
        provider: String,
        after: String,
        rows: usize,
    ) -> Result<Vec<MoneyRow>, DatabaseError> {
        self.read_in(Lane::Sum, move |transaction| {
            let page = payments::page(transaction, &provider, &after, rows)?;
            page.into_iter()
                .map(|payment| {
                    let refunds = refunds::of_payment(transaction, &payment.provider, &payment.payment_id)?;
                    let order = match payment.order_id {
                        Some(order) => life::find(transaction, order)?,
                        None => None,
                    };
                    Ok(MoneyRow { payment, refunds, order })
                })
                .collect()
        })
        .await
    }

    pub(in crate::database) async fn paid_otherwise(
        &self,
        rows: usize,
    ) -> Result<PaidOtherwise, DatabaseError> {
        self.read_in(Lane::Sum, move |transaction| {
            Ok(PaidOtherwise {
                without_payment: orders(transaction, WITHOUT_PAYMENT, rows)?,
                more_than_once: orders(transaction, MORE_THAN_ONCE, rows)?,
            })
        })
        .await
    }
}

fn orders(transaction: &Transaction<'_>, select: &str, rows: usize) -> Result<Vec<OrderId>, DatabaseError> {
    let mut statement = transaction.prepare_cached(select)?;
    let orders = statement.query_map(params![limit(rows)], |row| parsed(row, 0))?;
    Ok(orders.collect::<Result<_, _>>()?)
}
