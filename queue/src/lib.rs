//! Topics, appends, groups, delayed messages, dead letters. Knows bytes, never what they mean.

mod config;
mod disk;
pub mod failpoint;
mod port;
mod push;
mod storage;

use std::sync::Arc;

pub use config::{QueueBackend, QueueConfig};
pub use disk::{DiskAppend, DiskGroup, DiskOptions, DiskPermit, DiskQueue, DiskTopic, Driver};
pub use port::{
    Append, AppendBatch, AppendError, Capabilities, Group, InvalidPosition, KEY_BYTES_MAX, Lag, Message,
    NewRecord, PAYLOAD_BYTES_MAX, Permit, Position, Queue, QueueError, Refused, RetryLevels, TAG_BYTES_MAX,
    Topic, TopicState, Verdict,
};
pub use storage::Storage;
#[cfg(feature = "simulation")]
pub use storage::simulated::{Faults, SimulatedDisk};

/// The injected wall clock: milliseconds since the Unix epoch, never going back.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The injected randomness: 64 fresh bits a call.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;
