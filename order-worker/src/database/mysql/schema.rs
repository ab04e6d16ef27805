//! The tables' versions: printing, checking and applying them. Never at start.

use mysql_async::Row;

use super::fault::Fault;
use super::session::{Purpose, Server, Session};
use super::sql::{get, parsed};
use crate::database::schema::{Found, MARK};
use crate::database::{DatabaseError, SchemaState};

/// Every version's statements, the first one first. A version that was released is never changed: add the next. Each
/// statement MUST be repeatable, for a crash may come between any two.
const VERSIONS: &[&str] = &[include_str!("schema/0001.sql")];

/// The version that this program writes.
const SCHEMA_VERSION: u32 = VERSIONS.len() as u32;

/// Of which only one at a time changes a database's tables. The name is the server's, hence the database in it.
const LOCK: &str = "CONCAT('floodgate-', LEFT(SHA2(DATABASE(), 256), 32))";
/// How long another migration is waited for.
const LOCK_S: u32 = 60;

/// All statements, as `floodgate migrate --print` shows them for MySQL and MariaDB.
#[must_use]
pub fn mysql_schema_sql() -> String {
    VERSIONS.join("\n")
}

/// How the tables stand.
pub(in crate::database) async fn check(url: &str) -> Result<SchemaState, DatabaseError> {
    let server = Server::new(url, None)?;
    let mut session = server.connect(Purpose::Read).await.map_err(Fault::into_error)?;
    let found = found(&mut session).await;
    session.close().await;
    Ok(SchemaState::of(found.map_err(Fault::into_error)?, SCHEMA_VERSION))
}

/// Whether this program may work on the tables, and whether the server keeps what it has committed.
pub(super) async fn verify(server: &Server) -> Result<(), DatabaseError> {
    let mut session = server.connect(Purpose::Read).await.map_err(Fault::into_error)?;
    let seen = async {
        let found = found(&mut session).await?;
        let flush: u64 = session.ask("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit;").await?.value()?;
        Ok::<_, Fault>((found, flush))
    };
    let seen = seen.await;
    session.close().await;
    let (found, flush) = seen.map_err(Fault::into_error)?;
    let state = SchemaState::of(found, SCHEMA_VERSION);
    if !state.is_usable() {
        return Err(DatabaseError::Schema(state.to_string()));
    }
    if flush != 1 {
        tracing::warn!(
            innodb_flush_log_at_trx_commit = flush,
            "the orders database may forget its last commits in a crash: set it to 1"
        );
    }
    Ok(())
}

async fn found(session: &mut Session) -> Result<Option<Found>, Fault> {
    let ask = format!(
        "SELECT value, EXISTS (SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{MARK}')
         FROM floodgate_meta WHERE name = 'schema_version';"
    );
    match session.ask(&ask).await {
        Ok(mut answers) => {
            let found =
                |mut row: Row| Ok(Found { version: parsed(&mut row, 0)?, is_marked: get(&mut row, 1)? });
            answers.row().map(found).transpose()
        }
        Err(Fault::Final(DatabaseError::Schema(_))) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Brings the tables up to date; answers with the versions applied.
///
/// DDL commits by itself, so a version is recorded after its last statement: a crash before that leaves it unrecorded, and the next call
/// repeats its statements.
pub(in crate::database) async fn migrate(url: &str) -> Result<Vec<u32>, DatabaseError> {
    let server = Server::new(url, None)?;
    let mut session = server.connect(Purpose::Migrate).await.map_err(Fault::into_error)?;
    let applied = apply(&mut session).await;
    // The lock goes with the connection.
    session.close().await;
    applied.map_err(Fault::into_error)
}

async fn apply(session: &mut Session) -> Result<Vec<u32>, Fault> {
    let locked: Option<Row> = session.ask(&format!("SELECT GET_LOCK({LOCK}, {LOCK_S});")).await?.row();
    let locked = locked.map(|mut row| get::<Option<i64>>(&mut row, 0)).transpose()?.flatten();
    if locked != Some(1) {
        let text = format!("another migration of it has been under way for {LOCK_S} s");
        return Err(DatabaseError::Unavailable(text).into());
    }
    SchemaState::of(found(session).await?, SCHEMA_VERSION).may_migrate()?;
    let mut applied = Vec::new();
    for (version, statements) in (1u32..).zip(VERSIONS) {
        if found(session).await?.is_some_and(|found| found.version >= version) {
            continue;
        }
        session.ask(statements).await?;
        let record = format!(
            "INSERT INTO floodgate_meta (name, value) VALUES ('schema_version', '{version}')
             ON DUPLICATE KEY UPDATE value = '{version}';"
        );
        session.ask(&record).await?;
        applied.push(version);
    }
    Ok(applied)
}
