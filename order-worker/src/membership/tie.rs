//! Which log belongs to which orders database. A log's header names its deployment and its last opening, the registry's row that opening
//! too; here they are compared, and moved at each opening by the log's owner. Reads no record, and never ties a log to a
//! deployment that is not its owner's.
//!
//! | the log's header | the row | |
//! | --- | --- | --- |
//! | none, no record | none | a new log: it is tied and registered |
//! | none, records | – | refused: nobody knows whose they are |
//! | another deployment | – | refused |
//! | this deployment | none | its last stop was clean: registered anew |
//! | this deployment | the same opening, or the one before | the last start came to its end, or to the point between the two writes |
//! | this deployment, ahead | an older opening | refused: the database was put back |
//! | this deployment, behind, or other nonce | a newer opening | refused: the log is a copy, or was put back |
//!
//! An operator's word makes a log fit ([`accept`]): it then says what the row says.

use std::fmt;

use queue::failpoint::hit;
use queue::{LogAddress, Now, Opening, Queue, QueueError, Tie, Topic};
use stock::{DeploymentId, Owner};

use crate::database::{Database, DatabaseError, ENGINE_DISK, Instance};
use crate::topics::ORDERS_TOPIC;

/// Why a log does not belong to a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// Its header names nobody, and it holds records.
    Untied,
    /// It is another deployment's.
    Elsewhere {
        /// What its header names.
        log: DeploymentId,
        /// What the database is.
        database: DeploymentId,
    },
    /// It is a copy, or was put back: the registry has seen a newer or another opening.
    Copy {
        /// As its header has it; none where it has lost that.
        log: Option<Opening>,
        /// As the row has it.
        row: Opening,
    },
    /// The database was put back: it has not seen the log's openings.
    Ahead {
        /// As its header has it.
        log: Opening,
        /// As the row has it.
        row: Opening,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untied => f.write_str("holds records and names no deployment that they belong to"),
            Self::Elsewhere { log, database } => {
                write!(f, "belongs to deployment {log}, and this database is deployment {database}")
            }
            Self::Copy { log: None, row } => {
                write!(f, "has lost its header, and the registry knows its opening {row}")
            }
            Self::Copy { log: Some(log), row } => {
                write!(
                    f,
                    "is a copy or was put back from a backup: its last opening is {log}, and the registry knows {row}"
                )
            }
            Self::Ahead { log, row } => {
                write!(
                    f,
                    "is ahead of this database, which was put back to an older state: its last opening is {log}, and the registry \
                     knows {row}"
                )
            }
        }
    }
}

/// Why a log could not be tied, or be compared with a database.
#[derive(Debug, thiserror::Error)]
pub enum TieError {
    /// The database's.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The log's.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// They do not belong together.
    #[error("the log {0}")]
    Misfit(Misfit),
}

/// What the row says of the last opening, and the generation of the next one.
struct Next {
    before: Option<Opening>,
    generation: u64,
}

/// How the opening in a log's header goes with its row's.
enum Fit {
    /// They are one.
    Same,
    /// The log's is the next one: its owner is, or died, between the two writes.
    BeforeTheRow,
}

fn compare(log: Opening, row: Opening) -> Result<Fit, Misfit> {
    match log.generation.checked_sub(row.generation) {
        Some(0) if log.nonce == row.nonce => Ok(Fit::Same),
        Some(1) => Ok(Fit::BeforeTheRow),
        Some(2..) => Err(Misfit::Ahead { log, row }),
        Some(0) | None => Err(Misfit::Copy { log: Some(log), row }),
    }
}

/// The table above.
fn judge(
    tie: Option<Tie>,
    holds_records: bool,
    row: Option<&Instance>,
    database: DeploymentId,
) -> Result<Next, Misfit> {
    let before = row.and_then(|row| row.opening);
    let generation = match (tie, before) {
        (Some(tie), _) if tie.deployment != database.0 => {
            return Err(Misfit::Elsewhere { log: DeploymentId(tie.deployment), database });
        }
        (Some(tie), None) => tie.opening.generation + 1,
        // A log that is ahead by one died between its header and the row, before its first promise of that opening. The next one is
        // counted from the row, so that it may die there any number of times.
        (Some(Tie { opening: log, .. }), Some(row)) => {
            compare(log, row)?;
            row.generation + 1
        }
        (None, Some(row)) => return Err(Misfit::Copy { log: None, row }),
        (None, None) if holds_records => return Err(Misfit::Untied),
        (None, None) => 1,
    };
    Ok(Next { before, generation })
}

/// Whether the log may be opened for `database`, which is `deployment`. Changes nothing.
///
/// # Errors
/// [`TieError::Misfit`]: it must not; the database's; the log's.
pub async fn check(queue: &Queue, database: &Database, deployment: DeploymentId) -> Result<(), TieError> {
    next(queue, database, deployment).await.map(drop)
}

async fn next(queue: &Queue, database: &Database, deployment: DeploymentId) -> Result<Next, TieError> {
    let owner = Owner(queue.instance());
    let tie = queue.tie().await?;
    let holds_records = tie.is_none() && holds_records(queue).await?;
    let instances = database.instances().await?;
    let row = instances.iter().find(|instance| instance.owner == owner);
    judge(tie, holds_records, row, deployment).map_err(TieError::Misfit)
}

async fn holds_records(queue: &Queue) -> Result<bool, QueueError> {
    if !queue.topics().await?.iter().any(|name| name == ORDERS_TOPIC) {
        return Ok(false);
    }
    Ok(queue.topic(ORDERS_TOPIC).await?.end().is_some())
}

/// Moves log and registry to the next opening, by the log's owner, before its first append. The log keeps nothing of an opening that
/// the row has not: what is appended comes after both.
///
/// # Errors
/// As [`check`]; then the log must not be appended to.
pub async fn tie(
    queue: &Queue,
    database: &Database,
    deployment: DeploymentId,
    place: &str,
) -> Result<Opening, TieError> {
    let Next { before, generation } = next(queue, database, deployment).await?;
    // The log first. A crash before this write leaves everything as it was. One after it leaves a log that is one opening ahead of its
    // row, which the next start knows; were the row first, a log behind its row would be what an old backup is, too.
    let opening = queue.tie_to(deployment.0, generation).await?;
    hit("tie.written");
    // Then the row, if it is still what the log was compared with. A crash after it leaves both at an opening without a record.
    let owner = Owner(queue.instance());
    if !database.register_opening(owner, (place, ENGINE_DISK), before, opening).await? {
        let rows = database.instances().await?;
        let row = rows.iter().find(|row| row.owner == owner).and_then(|row| row.opening);
        return Err(TieError::Misfit(Misfit::Copy { log: Some(opening), row: row.unwrap_or(opening) }));
    }
    hit("tie.registered");
    Ok(opening)
}

/// Whether the log at hand is the one that `row` is of: one that died between header and row is, a copy that is not the
/// newest is not.
///
/// # Errors
/// As [`check`].
pub(super) async fn check_row(queue: &Queue, row: &Instance, database: &Database) -> Result<(), TieError> {
    let tie = queue.tie().await?;
    let Some(deployment) = database.known_deployment().await? else {
        return Err(TieError::Misfit(Misfit::Untied));
    };
    // Its row says that it was registered before its first record.
    judge(tie, tie.is_none(), Some(row), deployment).map(drop).map_err(TieError::Misfit)
}

/// Has the log say what the registry of `database` says of it, or that it belongs there where that has no row. Answers with what kept it
/// from that; `None`: it fits, and nothing is changed. Not while its owner runs.
///
/// # Errors
/// [`QueueError::InUse`] while its owner runs; the database's; the log's.
pub async fn accept(
    queue: &Queue,
    log: &LogAddress,
    database: &Database,
    deployment: DeploymentId,
    now: Now,
) -> Result<Option<Misfit>, TieError> {
    let misfit = match check(queue, database, deployment).await {
        Ok(()) => return Ok(None),
        Err(TieError::Misfit(misfit)) => misfit,
        Err(error) => return Err(error),
    };
    let owner = Owner(queue.instance());
    let instances = database.instances().await?;
    let registered = instances.iter().find(|row| row.owner == owner).and_then(|row| row.opening);
    let known = queue.tie().await?.map(|tie| tie.opening);
    // A log that was never tied begins before its first opening.
    let opening = registered.or(known).unwrap_or(Opening { generation: 0, nonce: 0 });
    queue::operator::accept(log, Tie { deployment: deployment.0, opening }, now).await?;
    Ok(Some(misfit))
}

/// Why a log is not to be drained into a database at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotOurs {
    /// Its owner has not registered it yet, or has left for good; nothing may be lost.
    NotRegistered,
    /// It was left out of a rebuild.
    LeftOut,
    /// It is another database's.
    Misfit(Misfit),
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegistered => f.write_str(
                "it is not registered in this worker's orders database: its gateway has not started or has left, or \
                 orders.database_url is not the gateway's",
            ),
            Self::LeftOut => {
                f.write_str("it was left out of a rebuild: it is drained again once its gateway has started")
            }
            Self::Misfit(misfit) => write!(f, "it {misfit}: orders.database_url must be its gateway's"),
        }
    }
}

/// Whether a log that somebody else appends to may be drained into `database`: its header names this deployment, and the registry has
/// it, at the very opening that the header has. A copy of the database, or an older state of it, lacks the opening that came after.
///
/// # Errors
/// What could not be read: then nobody knows.
pub async fn is_ours(queue: &Queue, database: &Database) -> Result<Result<(), NotOurs>, TieError> {
    let Some(tie) = queue.tie().await? else { return Ok(Err(NotOurs::NotRegistered)) };
    let Some(deployment) = database.known_deployment().await? else {
        return Ok(Err(NotOurs::NotRegistered));
    };
    if tie.deployment != deployment.0 {
        let log = DeploymentId(tie.deployment);
        return Ok(Err(NotOurs::Misfit(Misfit::Elsewhere { log, database: deployment })));
    }
    let owner = Owner(queue.instance());
    let instances = database.instances().await?;
    let Some(row) = instances.into_iter().find(|row| row.owner == owner && row.holds_promises) else {
        return Ok(Err(NotOurs::NotRegistered));
    };
    if row.left_out {
        return Ok(Err(NotOurs::LeftOut));
    }
    let Some(opening) = row.opening else { return Ok(Err(NotOurs::NotRegistered)) };
    Ok(match compare(tie.opening, opening) {
        Ok(Fit::Same) => Ok(()),
        Ok(Fit::BeforeTheRow) => Err(NotOurs::NotRegistered),
        Err(misfit) => Err(NotOurs::Misfit(misfit)),
    })
}

/// What waits in the log for its drain, where that can be told.
pub(crate) async fn waits(orders: &Topic) -> bool {
    match orders.lag(crate::topics::DRAIN_GROUP).await {
        Ok(lag) => lag.records > 0,
        Err(_) => orders.end().is_some(),
    }
}
