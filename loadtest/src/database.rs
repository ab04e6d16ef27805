//! The target's orders database, read from outside: two tables, by SQL, read-only, in one transaction.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

#[cfg(feature = "mysql")]
mod mysql;

/// One order row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) order_id: String,
    pub(crate) user_id: String,
    pub(crate) units_held: i64,
    pub(crate) status: String,
    /// Milliseconds since the Unix epoch; `None` where the column cannot be read as a time.
    pub(crate) created_at_ms: Option<u64>,
}

/// What the database says of one sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) total: i64,
    pub(crate) sold: i64,
    pub(crate) rows: Vec<Row>,
}

/// Reads an orders database from outside.
#[derive(Debug, Clone)]
pub(crate) enum Auditor {
    Sqlite(PathBuf),
    #[cfg(feature = "mysql")]
    Mysql(mysql::MysqlTables),
}

impl Auditor {
    /// `url` is `sqlite://PATH`, or `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. No error shows the password.
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        if url.starts_with("mysql://") {
            #[cfg(feature = "mysql")]
            return mysql::MysqlTables::at(url).map(Self::Mysql);
            #[cfg(not(feature = "mysql"))]
            return Err(
                "a mysql:// database is audited by a load tester built with it: cargo run --release -p loadtest --features mysql"
                    .into(),
            );
        }
        match url.strip_prefix("sqlite://") {
            Some(path) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            _ => Err("give the orders database as sqlite://PATH or mysql://USER:PASSWORD@HOST:PORT/DATABASE"
                .into()),
        }
    }

    /// The rows of one sale at this moment.
    pub(crate) async fn read(&self, sale: &str) -> Result<Books, String> {
        match self {
            Self::Sqlite(path) => {
                read_file(path, sale).map_err(|error| format!("{}: {error}", path.display()))
            }
            #[cfg(feature = "mysql")]
            Self::Mysql(tables) => tables.read(sale).await,
        }
    }
}

fn read_file(path: &PathBuf, sale: &str) -> rusqlite::Result<Books> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let transaction = connection.transaction()?;
    let (total, sold) = transaction.query_row(
        "SELECT total, sold FROM floodgate_sales WHERE sale_id = ?1",
        [sale],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let mut select = transaction.prepare(
        "SELECT order_id, user_id, units_held, status, created_at FROM floodgate_orders WHERE sale_id = ?1",
    )?;
    let rows = select
        .query_map([sale], |row| {
            Ok(Row {
                order_id: row.get(0)?,
                user_id: row.get(1)?,
                units_held: row.get(2)?,
                status: row.get(3)?,
                created_at_ms: match row.get_ref(4)? {
                    ValueRef::Text(text) => std::str::from_utf8(text).ok().and_then(created_at_ms),
                    ValueRef::Integer(number) => created_at_ms(&number.to_string()),
                    _ => None,
                },
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Books { total, sold, rows })
}

/// Times may stand as RFC 3339 text, as SQL's own text, or as Unix time in seconds, milliseconds or microseconds.
fn created_at_ms(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse::<u64>() {
        return Some(match number {
            0..100_000_000_000 => number * 1_000,
            100_000_000_000..100_000_000_000_000 => number,
            _ => number / 1_000,
        });
    }
    crate::clock::parse_ms(text)
        .or_else(|| crate::clock::parse_ms(&format!("{}Z", text.replacen(' ', "T", 1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_understood_in_each_form() {
        let at = 1_767_225_600_500;
        for text in
            ["2026-01-01T00:00:00.500Z", "2026-01-01 00:00:00.500", "1767225600500", "1767225600500000"]
        {
            assert_eq!(created_at_ms(text), Some(at), "{text}");
        }
        assert_eq!(created_at_ms("1767225600"), Some(1_767_225_600_000));
        assert_eq!(created_at_ms("yesterday"), None);
    }

    #[tokio::test]
    async fn wrong_addresses_say_what_to_write_and_show_no_password() {
        for url in ["sqlite://", "postgres://u:pw@h/d"] {
            let error = Auditor::new(url).expect_err("not an address of ours");
            assert!(error.contains("sqlite://PATH") && !error.contains("pw@"), "{error}");
        }
        let absent = Auditor::new("sqlite:///nowhere/orders.db").expect("a url").read("s").await;
        assert!(absent.expect_err("no file").contains("/nowhere/orders.db"));
    }

    #[cfg(not(feature = "mysql"))]
    #[test]
    fn mysql_names_the_command_that_builds_it() {
        let error = Auditor::new("mysql://u:pw@h/d").expect_err("not compiled in");
        assert!(error.contains("--features mysql") && !error.contains("pw"), "{error}");
    }

    #[cfg(feature = "mysql")]
    #[tokio::test]
    async fn a_mysql_server_out_of_reach_is_named_without_its_password() {
        let auditor = Auditor::new("mysql://u:sesame@127.0.0.1:1/d").expect("a url");
        let error = auditor.read("s").await.expect_err("nobody listens on port 1");
        assert!(error.contains("127.0.0.1:1") && !error.contains("sesame"), "{error}");
        assert!(!Auditor::new("mysql://u:sesame@").expect_err("no host").contains("sesame"));
    }
}
