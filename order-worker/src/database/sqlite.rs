//! The embedded orders database: SQLite through rusqlite, WAL, `synchronous = FULL`.
//!
//! One writer at a time is SQLite's own rule, and `BEGIN IMMEDIATE` takes that turn before the first read: every
//! transaction here stands under every sale's row. The database's clock is the injected one.

mod books;
mod claim;
mod executor;
mod intake;
mod journal;
mod life;
mod money;
mod outbox;
mod payments;
mod refunds;
mod registry;
mod sales;
mod schema;
mod shares;
mod transitions;
mod witness;

use std::str::FromStr;

use rusqlite::types::FromSql;
use rusqlite::{Connection, ErrorCode, Row, Transaction, TransactionBehavior};
use stock::{Now, Timestamp};
use tokio::sync::Notify;

pub use claim::StockClaim;
pub use executor::{Executor, SharedConnection};
pub use schema::schema_sql;

use super::schema::MIGRATE;
use super::{DatabaseError, SchemaState};
use executor::{Lane, Lanes};

/// The adapter; see [`super::Database`] for what each method promises.
pub struct SqliteDatabase {
    lanes: Lanes,
    now: Now,
    release_written: Notify,
}

impl SqliteDatabase {
    pub(super) fn open(url: &str, executor: Executor, now: Now) -> Result<Self, DatabaseError> {
        let path = executor::path_of(url);
        // Before any thread: so that two threads never race for the first version.
        let first = SharedConnection::open(&path)?;
        let database = Self::over(first, now)?;
        Ok(match executor {
            Executor::Inline => database,
            Executor::Thread => Self { lanes: Lanes::threads(&path)?, ..database },
        })
    }

    pub(super) async fn close(&self) {
        let empty = |connection: &mut Connection| {
            connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .map_err(DatabaseError::from)
        };
        if let Err(error) = self.lanes.run(Lane::Write, empty).await {
            tracing::info!(%error, "the orders database keeps its log for the next start");
        }
    }

    pub(super) fn over(connection: SharedConnection, now: Now) -> Result<Self, DatabaseError> {
        connection.with(schema::apply)?;
        Ok(Self { lanes: Lanes::Inline(connection), now, release_written: Notify::new() })
    }

    /// Never makes or changes the file.
    pub(super) fn check(url: &str) -> Result<SchemaState, DatabaseError> {
        let path = executor::path_of(url);
        if !path.exists() {
            return Ok(SchemaState::Missing);
        }
        SharedConnection::open(path)?.with(|connection| schema::check(connection))
    }

    pub(super) fn migrate(url: &str) -> Result<Vec<u32>, DatabaseError> {
        SharedConnection::open(executor::path_of(url))?.with(schema::apply)
    }

    pub(super) async fn release_written(&self) {
        self.release_written.notified().await;
    }

    /// One writing transaction: all of `work` or, on any error, nothing.
    ///
    /// A crash before the commit leaves nothing; one after it leaves everything without an answer, and the caller's
    /// repetition finds it: each method can be repeated.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>, Timestamp) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let now = self.now.clone();
        let transact = move |connection: &mut Connection| {
            fail_here("database.begin")?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let answer = work(&transaction, Timestamp(now()))?;
            fail_here("database.commit")?;
            transaction.commit()?;
            fail_here("database.committed")?;
            Ok(answer)
        };
        self.lanes.run(Lane::Write, transact).await
    }

    /// One reading transaction: everything that `work` sees is of one moment.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        self.read_in(Lane::Read, work).await
    }

    /// The same in a lane of choice.
    async fn read_in<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let transact = move |connection: &mut Connection| {
            fail_here("database.read")?;
            work(&connection.transaction()?)
        };
        self.lanes.run(lane, transact).await
    }
}

/// Passes a failpoint of every transaction; a failed step is a database out of reach.
fn fail_here(failpoint: &'static str) -> Result<(), DatabaseError> {
    if queue::failpoint::hit(failpoint) {
        return Err(DatabaseError::Unavailable(format!("failpoint {failpoint}")));
    }
    Ok(())
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Unavailable(format!("{text}: free some room on its disk")),
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted
                | ErrorCode::OperationAborted
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::ReadOnly,
            ) => Self::Unavailable(text),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Record(text)
            }
            Some(ErrorCode::SchemaChanged) => Self::Unavailable(text),
            Some(ErrorCode::Unknown) if text.contains("no such") => {
                Self::Schema(format!("{text}; {MIGRATE}"))
            }
            _ => Self::Broken(text),
        }
    }
}

/// A column that holds text of ours.
fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// A column that may hold text of ours.
fn parsed_option<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        return Ok(None);
    }
    parsed(row, column).map(Some)
}

/// A column of an unsigned number, which SQLite keeps as a signed one.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value = i64::column_result(row.get_ref(column)?)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// An unsigned number on its way into a statement.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A page length on its way into a statement.
fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
