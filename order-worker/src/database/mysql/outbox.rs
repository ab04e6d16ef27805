//! `floodgate_releases`.

use stock::ledger::Settlement;
use stock::{OrderId, SaleId};

use super::MysqlDatabase;
use super::fault::Fault;
use super::session::in_parts;
use super::sql::{get, ids, list, parsed};
use crate::database::DatabaseError;

impl MysqlDatabase {
    pub(in crate::database) async fn releases(
        &self,
        after: Option<OrderId>,
        except: Vec<SaleId>,
        rows: usize,
    ) -> Result<Vec<(SaleId, Settlement)>, DatabaseError> {
        let page = self.read(async move |session| {
            let except = list(except.iter().map(SaleId::as_str));
            let others = if except.is_empty() { except } else { format!("AND sale_id NOT IN ({except})") };
            let page = format!(
                "SELECT sale_id, order_id, user_id, quantity FROM floodgate_releases
                 WHERE order_id > '{}' {others} ORDER BY order_id LIMIT {rows};",
                after.map(|order| order.to_string()).unwrap_or_default(),
            );
            let rows = session.ask(&page).await?.rest();
            let releases = rows.map(|mut row| {
                let row = &mut row;
                let settlement =
                    Settlement { order_id: parsed(row, 1)?, user: parsed(row, 2)?, quantity: get(row, 3)? };
                Ok((parsed(row, 0)?, settlement))
            });
            releases.collect::<Result<Vec<(SaleId, Settlement)>, Fault>>()
        });
        let page = page.await?;
        if !page.is_empty() {
            // The ledger is about to sell these units again, so that they must not come back with a crash of the server: a row is
            // seen a moment before it is on disk.
            self.write(async |session| session.commit_found().await).await?;
        }
        Ok(page)
    }

    pub(in crate::database) async fn releases_done(&self, orders: Vec<OrderId>) -> Result<(), DatabaseError> {
        if orders.is_empty() {
            return Ok(());
        }
        // A crash before COMMIT leaves them, and the ledger hears of them again, which changes nothing there.
        let done = in_parts(&orders, |part| {
            format!("DELETE FROM floodgate_releases WHERE order_id IN ({});", ids(part))
        });
        self.write(async move |session| session.commit(done.clone()).await).await
    }
}
