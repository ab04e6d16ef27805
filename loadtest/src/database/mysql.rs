//! The two tables in MySQL or MariaDB, through a connection for each look.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use tokio::time::timeout;

use super::{Books, Row, created_at_ms};

/// A look takes no longer, connecting included.
const LOOK_MAX: Duration = Duration::from_secs(15);

/// Where the tables are.
#[derive(Debug, Clone)]
pub(crate) struct MysqlTables {
    opts: Opts,
}

impl MysqlTables {
    pub(super) fn at(url: &str) -> Result<Self, String> {
        // The parser's own words may show the password.
        Opts::from_url(url)
            .map(|opts| Self { opts })
            .map_err(|_| "give the orders database as mysql://USER:PASSWORD@HOST:PORT/DATABASE".into())
    }

    pub(super) async fn read(&self, sale: &str) -> Result<Books, String> {
        let place = format!(
            "mysql://{}:{}/{}",
            self.opts.ip_or_hostname(),
            self.opts.tcp_port(),
            self.opts.db_name().unwrap_or_default()
        );
        match timeout(LOOK_MAX, self.look(sale)).await {
            Ok(Ok(Some(books))) => Ok(books),
            Ok(Ok(None)) => Err(format!("{place}: no sale {sale}")),
            Ok(Err(error)) => Err(format!("{place}: {error}")),
            Err(_) => Err(format!("{place}: no answer within {} s", LOOK_MAX.as_secs())),
        }
    }

    async fn look(&self, sale: &str) -> mysql_async::Result<Option<Books>> {
        let mut connection = Conn::new(self.opts.clone()).await?;
        connection.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
        let sums: Option<(i64, i64)> = connection
            .exec_first(
                "SELECT CAST(total AS SIGNED), CAST(sold AS SIGNED) FROM floodgate_sales WHERE sale_id = ?",
                (sale,),
            )
            .await?;
        let rows: Vec<(String, String, i64, String, Option<String>)> = connection
            .exec(
                "SELECT order_id, user_id, CAST(units_held AS SIGNED), status, CAST(created_at AS CHAR)
                 FROM floodgate_orders WHERE sale_id = ?",
                (sale,),
            )
            .await?;
        connection.query_drop("COMMIT").await?;
        connection.disconnect().await?;
        let row = |(order_id, user_id, units_held, status, created_at): (_, _, _, _, Option<String>)| Row {
            order_id,
            user_id,
            units_held,
            status,
            created_at_ms: created_at.as_deref().and_then(created_at_ms),
        };
        Ok(sums.map(|(total, sold)| Books { total, sold, rows: rows.into_iter().map(row).collect() }))
    }
}
