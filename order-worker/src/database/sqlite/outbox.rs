//! `floodgate_releases`.

use rusqlite::params;
use serde_json::Value;
use stock::ledger::Settlement;
use stock::{OrderId, SaleId};

use super::{DatabaseError, SqliteDatabase, limit, parsed};

impl SqliteDatabase {
    pub(in crate::database) async fn releases(
        &self,
        after: Option<OrderId>,
        except: Vec<SaleId>,
        rows: usize,
    ) -> Result<Vec<(SaleId, Settlement)>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT sale_id, order_id, user_id, quantity FROM floodgate_releases
                 WHERE order_id > ?1 AND sale_id NOT IN (SELECT value FROM json_each(?2)) ORDER BY order_id LIMIT ?3",
            )?;
            let after = after.map(|order| order.to_string()).unwrap_or_default();
            let except = Value::from(except.iter().map(SaleId::as_str).collect::<Vec<_>>()).to_string();
            let page = statement.query_map(params![after, except, limit(rows)], |row| {
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
