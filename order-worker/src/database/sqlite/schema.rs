//! The tables' versions: printing, checking and applying them.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::DatabaseError;
use crate::database::SchemaState;
use crate::database::schema::{Found, MARK};

/// Every version's statements, the first one first. A version that was released is never changed: add the next.
const VERSIONS: &[&str] = &[include_str!("schema/0001.sql")];

/// The version that this program writes.
const SCHEMA_VERSION: u32 = VERSIONS.len() as u32;

/// All statements, as `floodgate migrate --print` shows them.
#[must_use]
pub fn schema_sql() -> String {
    VERSIONS.join("\n")
}

/// How the tables stand.
pub(super) fn check(connection: &Connection) -> Result<SchemaState, DatabaseError> {
    Ok(SchemaState::of(found(connection)?, SCHEMA_VERSION))
}

fn found(connection: &Connection) -> Result<Option<Found>, DatabaseError> {
    let is_there = |table: &str| {
        let there = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1)";
        connection.query_row(there, [table], |row| row.get::<_, bool>(0))
    };
    if !is_there("floodgate_meta")? {
        return Ok(None);
    }
    let version: Option<String> = connection
        .query_row("SELECT value FROM floodgate_meta WHERE name = 'schema_version'", [], |row| row.get(0))
        .optional()?;
    let Some(version) = version else { return Ok(None) };
    let version = version
        .parse()
        .map_err(|_| DatabaseError::Broken("the recorded schema version is not a number".into()))?;
    Ok(Some(Found { version, is_marked: is_there(MARK)? }))
}

/// Brings the tables up to date, each version in one transaction of its own; answers with the versions applied.
///
/// A crash between two versions leaves the older one complete, and the next call goes on from there.
pub(super) fn apply(connection: &mut Connection) -> Result<Vec<u32>, DatabaseError> {
    check(connection)?.may_migrate()?;
    let mut applied = Vec::new();
    for (version, statements) in (1u32..).zip(VERSIONS) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if found(&transaction)?.is_some_and(|found| found.version >= version) {
            continue;
        }
        transaction.execute_batch(statements)?;
        transaction.execute(
            "INSERT INTO floodgate_meta (name, value) VALUES ('schema_version', ?1)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            params![version.to_string()],
        )?;
        transaction.commit()?;
        applied.push(version);
    }
    Ok(applied)
}
