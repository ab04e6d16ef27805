//! Sums over `floodgate_orders`.

use std::collections::BTreeMap;

use rusqlite::{Transaction, params};
use stock::{SaleId, Timestamp};

use super::executor::Lane;
use super::{DatabaseError, SqliteDatabase, limit, parsed, sales, unsigned};
use crate::database::{RejectedOrder, SaleBooks};

impl SqliteDatabase {
    pub(in crate::database) async fn books(
        &self,
        sale: Option<SaleId>,
    ) -> Result<Vec<SaleBooks>, DatabaseError> {
        self.read_in(Lane::Sum, move |transaction| {
            let sales = match sale {
                Some(sale) => vec![sale],
                None => named_anywhere(transaction)?,
            };
            sales.into_iter().map(|sale| books_of(transaction, sale)).collect()
        })
        .await
    }

    pub(in crate::database) async fn sales_named(&self) -> Result<Vec<SaleId>, DatabaseError> {
        self.read_in(Lane::Sum, named_anywhere).await
    }

    pub(in crate::database) async fn rejected_orders(
        &self,
        sale: SaleId,
        since: Timestamp,
        rows: usize,
    ) -> Result<(u64, Vec<RejectedOrder>), DatabaseError> {
        self.read_in(Lane::Sum, move |transaction| {
            let rejected =
                "FROM floodgate_orders WHERE sale_id = ?1 AND status = 'rejected' AND created_at >= ?2";
            let (sale, since) = (sale.as_str(), since.to_string());
            let count = format!("SELECT count(*) {rejected}");
            let count = transaction.query_row(&count, params![sale, since], |row| unsigned(row, 0))?;
            let named = format!("SELECT order_id, reason, created_at {rejected} ORDER BY order_id LIMIT ?3");
            let mut statement = transaction.prepare_cached(&named)?;
            let orders = statement.query_map(params![sale, since, limit(rows)], |row| {
                let (order_id, created_at) = (parsed(row, 0)?, parsed(row, 2)?);
                Ok(RejectedOrder { order_id, reason: row.get(1)?, created_at })
            })?;
            Ok((count, orders.collect::<Result<_, _>>()?))
        })
        .await
    }

    pub(in crate::database) async fn releases_outstanding(&self) -> Result<u64, DatabaseError> {
        self.read(|transaction| {
            let count = "SELECT count(*) FROM floodgate_releases";
            Ok(transaction.query_row(count, [], |row| unsigned(row, 0))?)
        })
        .await
    }
}

fn named_anywhere(transaction: &Transaction<'_>) -> Result<Vec<SaleId>, DatabaseError> {
    let mut statement = transaction.prepare_cached(
        "SELECT sale_id FROM floodgate_sales UNION SELECT DISTINCT sale_id FROM floodgate_orders ORDER BY 1",
    )?;
    let sales = statement.query_map([], |row| parsed(row, 0))?;
    Ok(sales.collect::<Result<_, _>>()?)
}

fn books_of(transaction: &Transaction<'_>, sale: SaleId) -> Result<SaleBooks, DatabaseError> {
    let row = sales::find(transaction, &sale)?;
    let per_user_limit = row.as_ref().map_or(0, |row| u64::from(row.definition.per_user_limit));
    let mut books = SaleBooks {
        total: row.as_ref().map(|row| row.total),
        version: row.as_ref().map(|row| row.version),
        sold: row.as_ref().map_or(0, |row| u64::from(row.sold)),
        units_held: 0,
        orders: 0,
        rejected: 0,
        users_over_limit: 0,
        releases: 0,
        sale,
    };
    let mut held: BTreeMap<String, u64> = BTreeMap::new();
    let mut orders = transaction.prepare_cached(
        "SELECT user_id, units_held, status = 'rejected' FROM floodgate_orders INDEXED BY floodgate_orders_sale
         WHERE sale_id = ?1",
    )?;
    let mut rows = orders.query(params![books.sale.as_str()])?;
    while let Some(row) = rows.next()? {
        let units = unsigned(row, 1)?;
        books.orders += 1;
        books.units_held += units;
        books.rejected += u64::from(row.get::<_, bool>(2)?);
        if units > 0 {
            *held.entry(row.get(0)?).or_default() += units;
        }
    }
    books.users_over_limit = held.values().filter(|&&units| units > per_user_limit).count() as u64;
    let releases = "SELECT count(*) FROM floodgate_releases WHERE sale_id = ?1";
    books.releases = transaction.query_row(releases, params![books.sale.as_str()], |row| unsigned(row, 0))?;
    Ok(books)
}
