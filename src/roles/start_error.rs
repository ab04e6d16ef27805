//! Why the process did not start, in a sentence that says what to do, and with which exit code.

use gateway::server::ServeError;
use order_worker::{DatabaseError, InstanceError, RebuildError};
use queue::QueueError;

use crate::config::ConfigError;
use crate::engines::EngineError;
use crate::queue_words::queue_words;

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
    #[error("{0}")]
    Instance(InstanceError),
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Stopped(String),
}

impl From<InstanceError> for StartError {
    fn from(error: InstanceError) -> Self {
        match error {
            InstanceError::Database(error) => error.into(),
            InstanceError::Queue(error) => error.into(),
            error => Self::Instance(error),
        }
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
