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

#[cfg(test)]
mod tests {
    use testbed::MariaDb;

    use super::super::{Auditor, Books, Row};

    /// The two tables as outsiders may rely on them: ids as text, more columns than are read; `times` is the type of a moment.
    fn tables(times: &str) -> String {
        format!(
            "CREATE TABLE floodgate_sales (sale_id VARCHAR(64) PRIMARY KEY, title TEXT, total INT UNSIGNED NOT NULL,
                 sold INT UNSIGNED NOT NULL) CHARACTER SET utf8mb4;
             CREATE TABLE floodgate_orders (order_id CHAR(26) PRIMARY KEY, sale_id VARCHAR(64) NOT NULL,
                 user_id VARCHAR(128) NOT NULL, quantity INT UNSIGNED NOT NULL, units_held INT UNSIGNED NOT NULL,
                 amount BIGINT UNSIGNED NOT NULL, currency CHAR(3) NOT NULL, status VARCHAR(16) NOT NULL, metadata TEXT,
                 created_at {times} NULL, pay_by {times} NULL) CHARACTER SET utf8mb4;"
        )
    }

    fn order(id: &str, sale: &str, user: &str, units_held: u32, status: &str, created_at: &str) -> String {
        format!(
            "INSERT INTO floodgate_orders VALUES
                 ('{id}', '{sale}', '{user}', 2, {units_held}, 100, 'CNY', '{status}', NULL, {created_at}, NULL);"
        )
    }

    fn row(order_id: &str, user_id: &str, units_held: i64, status: &str, created_at_ms: Option<u64>) -> Row {
        let text = str::to_owned;
        Row {
            order_id: text(order_id),
            user_id: text(user_id),
            units_held,
            status: text(status),
            created_at_ms,
        }
    }

    async fn read(url: &str, sale: &str) -> Result<Books, String> {
        let mut books = Auditor::new(url).expect("a url").read(sale).await?;
        books.rows.sort_by(|one, other| one.order_id.cmp(&other.order_id));
        Ok(books)
    }

    #[tokio::test]
    async fn the_rows_of_one_sale_are_read_whatever_type_their_times_have() {
        let server = MariaDb::start().expect("MariaDB");
        let at_ms = Some(1_794_398_400_500);
        for (database, times, at) in [
            ("texts", "CHAR(24)", "'2026-11-11T12:00:00.500Z'"),
            ("times", "DATETIME(3)", "'2026-11-11 12:00:00.500'"),
            ("numbers", "BIGINT", "1794398400500"),
        ] {
            let url = server.url(database).expect("a database");
            let script = [
                "SET NAMES utf8mb4;".to_owned(),
                tables(times),
                "INSERT INTO floodgate_sales VALUES ('s', 'S', 4294967295, 3), ('t', 'T', 1, 1);".to_owned(),
                order("01ARZ3NDEKTSV4RRFFQ69G5FA1", "s", "ann", 2, "unpaid", at),
                order("01ARZ3NDEKTSV4RRFFQ69G5FA2", "s", "汉字 🎉", 1, "paid", at),
                order("01ARZ3NDEKTSV4RRFFQ69G5FA3", "s", "bob", 0, "rejected", "NULL"),
                order("01ARZ3NDEKTSV4RRFFQ69G5FA4", "t", "ann", 1, "unpaid", at),
            ];
            server.sql(database, &script.concat()).expect("rows");
            let rows = vec![
                row("01ARZ3NDEKTSV4RRFFQ69G5FA1", "ann", 2, "unpaid", at_ms),
                row("01ARZ3NDEKTSV4RRFFQ69G5FA2", "汉字 🎉", 1, "paid", at_ms),
                row("01ARZ3NDEKTSV4RRFFQ69G5FA3", "bob", 0, "rejected", None),
            ];
            assert_eq!(
                read(&url, "s").await,
                Ok(Books { total: 4_294_967_295, sold: 3, rows }),
                "{database}"
            );
            assert_eq!(read(&url, "t").await.expect("books").rows.len(), 1);
            let unknown = read(&url, "nowhere").await.expect_err("no such sale");
            assert!(unknown.contains(database) && unknown.contains("no sale nowhere"), "{unknown}");
        }

        let url = server.url("empty").expect("a database");
        let no_tables = read(&url, "s").await.expect_err("no tables");
        assert!(no_tables.contains("floodgate_sales"), "{no_tables}");
        let wrong = url.replace("floodgate:floodgate@", "floodgate:sesame@");
        let refused = read(&wrong, "s").await.expect_err("a wrong password");
        assert!(refused.contains("Access denied") && !refused.contains("sesame"), "{refused}");
        server.kill().expect("killed");
        let gone = read(&url, "s").await.expect_err("nobody answers");
        assert!(gone.contains(&server.port().to_string()) && !gone.contains("floodgate:floodgate"), "{gone}");
    }
}
