//! Sums over `floodgate_orders`.

use stock::{SaleId, Timestamp};

use super::fault::Fault;
use super::session::{Purpose, Session};
use super::sql::{Text, get, parsed};
use super::{MysqlDatabase, sales};
use crate::database::{DatabaseError, RejectedOrder, SaleBooks};

impl MysqlDatabase {
    pub(in crate::database) async fn books(
        &self,
        sale: Option<SaleId>,
    ) -> Result<Vec<SaleBooks>, DatabaseError> {
        let all = async move |session: &mut Session| {
            let sales = match &sale {
                Some(sale) => vec![sale.clone()],
                None => named_anywhere(session).await?,
            };
            let mut books = Vec::with_capacity(sales.len());
            for sale in sales {
                books.push(books_of(session, sale).await?);
            }
            Ok(books)
        };
        self.pool.run(Purpose::Sums, all).await
    }

    pub(in crate::database) async fn sales_named(&self) -> Result<Vec<SaleId>, DatabaseError> {
        self.pool.run(Purpose::Sums, async |session: &mut Session| named_anywhere(session).await).await
    }

    pub(in crate::database) async fn rejected_orders(
        &self,
        sale: SaleId,
        since: Timestamp,
        limit: usize,
    ) -> Result<(u64, Vec<RejectedOrder>), DatabaseError> {
        let both = async move |session: &mut Session| {
            let rejected = format!(
                "FROM floodgate_orders WHERE sale_id = {} AND status = 'rejected' AND created_at >= '{since}'",
                Text(sale.as_str())
            );
            let both = format!(
                "SELECT COUNT(*) {rejected};
                 SELECT order_id, reason, created_at {rejected} ORDER BY order_id LIMIT {limit};"
            );
            let mut answers = session.transact(&both).await?;
            let count = answers.value()?;
            let orders = answers.rest().map(|mut row| {
                let row = &mut row;
                Ok(RejectedOrder {
                    order_id: parsed(row, 0)?,
                    reason: get(row, 1)?,
                    created_at: parsed(row, 2)?,
                })
            });
            Ok((count, orders.collect::<Result<_, Fault>>()?))
        };
        self.pool.run(Purpose::Sums, both).await
    }

    pub(in crate::database) async fn releases_outstanding(&self) -> Result<u64, DatabaseError> {
        self.read(async |session| session.ask("SELECT COUNT(*) FROM floodgate_releases;").await?.value())
            .await
    }
}

async fn named_anywhere(session: &mut Session) -> Result<Vec<SaleId>, Fault> {
    let named =
        "SELECT sale_id FROM floodgate_sales UNION SELECT DISTINCT sale_id FROM floodgate_orders ORDER BY 1;";
    session.transact(named).await?.rest().map(|mut row| parsed(&mut row, 0)).collect()
}

async fn books_of(session: &mut Session, sale: SaleId) -> Result<SaleBooks, Fault> {
    let row = session.transact(&sales::select(&sale)).await?.row().map(sales::sale_row).transpose()?;
    let per_user_limit = row.as_ref().map_or(0, |row| row.definition.per_user_limit);
    let id = Text(sale.as_str());
    let sums = format!(
        "SELECT COUNT(*), COALESCE(SUM(units_held), 0), COALESCE(SUM(status = 'rejected'), 0)
         FROM floodgate_orders FORCE INDEX (floodgate_orders_sale) WHERE sale_id = {id};
         SELECT COUNT(*) FROM floodgate_releases WHERE sale_id = {id};
         SELECT COUNT(*) FROM (SELECT 1 FROM floodgate_orders FORCE INDEX (floodgate_orders_user)
                               WHERE sale_id = {id} AND units_held > 0
                               GROUP BY user_id HAVING SUM(units_held) > {per_user_limit}) AS over_limit;"
    );
    let mut answers = session.transact(&sums).await?;
    let mut orders =
        answers.row().ok_or_else(|| DatabaseError::Broken("a sum over orders has no answer".into()))?;
    Ok(SaleBooks {
        total: row.as_ref().map(|row| row.total),
        version: row.as_ref().map(|row| row.version),
        sold: row.as_ref().map_or(0, |row| u64::from(row.sold)),
        orders: get(&mut orders, 0)?,
        units_held: get(&mut orders, 1)?,
        rejected: get(&mut orders, 2)?,
        releases: answers.value()?,
        users_over_limit: answers.value()?,
        sale,
    })
}
