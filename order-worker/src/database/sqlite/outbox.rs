//! `floodgate_releases`.

use rusqlite::params;
use stock::ledger::Settlement;
use stock::{OrderId, SaleId};

use super::{DatabaseError, SqliteDatabase, limit, parsed};

impl SqliteDatabase {
    pub(in crate::database) async fn releases(
        &self,
        after: Option<OrderId>,
        rows: usize,
    ) -> Result<Vec<(SaleId, Settlement)>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT sale_id, order_id, user_id, quantity FROM floodgate_releases
                 WHERE order_id > ?1 ORDER BY order_id LIMIT ?2",
            )?;
            let after = after.map(|order| order.to_string()).unwrap_or_default();
            let page = statement.query_map(params![after, limit(rows)], |row| {
                let settlement =
                    Settlement { order_id: parsed(row, 1)?, user: parsed(row, 2)?, quantity: row.get(3)? };
                Ok((parsed(row, 0)?, settlement))
            })?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn releases_done(&self, orders: Vec<OrderId>) -> Result<(), DatabaseError> {
        self.write(move |transaction, _| {
            let mut statement =
                transaction.prepare_cached("DELETE FROM floodgate_releases WHERE order_id = ?1")?;
            for order in orders {
                statement.execute(params![order.to_string()])?;
            }
            Ok(())
        })
        .await
    }
}
