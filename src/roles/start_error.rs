//! Why the process did not start, in a sentence that says what to do, and with which exit code.

use gateway::server::ServeError;
use order_worker::{DatabaseError, RebuildError};
use queue::QueueError;

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
    /// Every order that the log has handed over would be forgotten, and its units sold again.
    #[error(
        "the orders database {database} is new, but the queue in {queue} has handed its orders to another one: put that \
         database back; if its orders are to be forgotten, remove the queue's directory too"
    )]
    ForeignDatabase { database: String, queue: String },
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
