//! Why the process did not start, in a sentence that says what to do, and with which exit code.

use gateway::server::ServeError;
use order_worker::{DRAIN_GROUP, DatabaseError, ORDERS_TOPIC, RebuildError};
use queue::QueueError;

use super::kinship::Lack;
use crate::config::ConfigError;
use crate::engines::EngineError;

/// Why the process did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Database(#[from] DatabaseError),
    #[error("{}", queue_words(.0))]
    Queue(#[from] QueueError),
    #[error("{0}")]
    Rebuild(#[from] RebuildError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Serve(#[from] ServeError),
    /// What the log has handed over would be forgotten and its units sold again, or what it holds be rejected.
    #[error(
        "the orders database {database} {lack}, so the queue in {queue} belongs to another one, or to a newer state of it: put \
         that database back. If it was put back from a backup, `floodgate queue reset-offset {ORDERS_TOPIC} {DRAIN_GROUP} --before TIME`, with \
         a time before the backup was begun, has what it lacks written again, as far as the queue keeps it (--oldest: everything kept); \
         if they are to be forgotten, remove the queue's directory"
    )]
    ForeignDatabase { database: String, queue: String, lack: Lack },
    /// Two ledgers in memory over one database would promise every unit twice.
    #[error(
        "another floodgate is registered in {database} (instance {other}, {place}), and two ledgers in memory would promise every \
         unit twice: stop it (a clean stop takes it off the registry), share the ledger with stock.backend = \"redis\", or give \
         this one a database of its own with orders.database_url"
    )]
    SecondLedger { database: String, other: String, place: String },
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Stopped(String),
}

fn queue_words(error: &QueueError) -> String {
    match error {
        QueueError::Io { .. } => {
            format!(
                "{error}; queue.directory must be a directory that this user may write, on a disk with room"
            )
        }
        error => error.to_string(),
    }
}

impl StartError {
    /// 2 for what the configuration can mend, 1 for what the world has to.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}
