//! The tables' versions: printing, checking and applying them.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::DatabaseError;

/// Every version's statements, the first one first. A version that was released is never changed: add the next.
const VERSIONS: &[&str] = &[include_str!("schema/0001.sql"), include_str!("schema/0002.sql")];

/// The version that this program writes.
pub const SCHEMA_VERSION: u32 = VERSIONS.len() as u32;

/// How the tables stand to this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// None of ours is there.
    Missing,
    /// Older than this program needs.
    Outdated {
        /// Their version.
        found: u32,
    },
    /// As this program writes them.
    Current,
    /// One version newer, which by our promise this program can still work with.
    NewerByOne,
    /// Too new for this program.
    TooNew {
        /// Their version.
        found: u32,
    },
}

impl SchemaState {
    /// Whether this program may work on them.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Current | Self::NewerByOne)
    }

    fn of(found: Option<u32>) -> Self {
        match found {
            None => Self::Missing,
            Some(found) if found < SCHEMA_VERSION => Self::Outdated { found },
            Some(found) if found == SCHEMA_VERSION => Self::Current,
            Some(found) if found == SCHEMA_VERSION + 1 => Self::NewerByOne,
            Some(found) => Self::TooNew { found },
        }
    }
}

impl std::fmt::Display for SchemaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => write!(f, "missing; wanted is version {SCHEMA_VERSION}"),
            Self::Outdated { found } => write!(f, "version {found}; wanted is {SCHEMA_VERSION}"),
            Self::Current => write!(f, "version {SCHEMA_VERSION}, up to date"),
            Self::NewerByOne => write!(f, "version {}, usable by this program", SCHEMA_VERSION + 1),
            Self::TooNew { found } => {
                write!(
                    f,
                    "version {found}, too new for this program, which writes {SCHEMA_VERSION}: upgrade it"
                )
            }
        }
    }
}

/// All statements, as `floodgate migrate --print` shows them.
#[must_use]
pub fn schema_sql() -> String {
    VERSIONS.join("\n")
}

/// How the tables stand.
pub(super) fn check(connection: &Connection) -> Result<SchemaState, DatabaseError> {
    Ok(SchemaState::of(found(connection)?))
}

fn found(connection: &Connection) -> Result<Option<u32>, DatabaseError> {
    let there: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'floodgate_meta')",
        [],
        |row| row.get(0),
    )?;
    if !there {
        return Ok(None);
    }
    let version: Option<String> = connection
        .query_row("SELECT value FROM floodgate_meta WHERE name = 'schema_version'", [], |row| row.get(0))
        .optional()?;
    let version = version.as_deref().map(str::parse).transpose();
    version.map_err(|_| DatabaseError::Broken("the recorded schema version is not a number".into()))
}

/// Brings the tables up to date, each version in one transaction of its own; answers with the versions applied.
///
/// A crash between two versions leaves the older one complete, and the next call goes on from there.
pub(super) fn apply(connection: &mut Connection) -> Result<Vec<u32>, DatabaseError> {
    let mut applied = Vec::new();
    for (version, statements) in (1u32..).zip(VERSIONS) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if found(&transaction)?.unwrap_or(0) >= version {
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
    match check(connection)? {
        state @ SchemaState::TooNew { .. } => Err(DatabaseError::Schema(state.to_string())),
        _ => Ok(applied),
    }
}
