//! Topics, appends, groups, delayed messages, dead letters. Knows bytes, never what they mean.

mod config;
mod disk;
pub mod failpoint;
mod metrics;
pub mod operator;
mod port;
mod push;
mod ring;
mod storage;
mod sync;

use std::sync::Arc;

pub use config::{QueueBackend, QueueConfig};
#[cfg(feature = "simulation")]
pub use disk::decode_anything;
pub use disk::{
    BatchTrace, DiskAppend, DiskGroup, DiskOptions, DiskPermit, DiskQueue, DiskTopic, Driver, Trace,
};
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

/// Named places between two steps at which a simulation may crash the process or fail the step.
pub const FAILPOINTS: &[&str] = &[
    "queue.append",
    "queue.write",
    "queue.sync",
    "queue.publish",
    "queue.wake",
    "queue.roll",
    "queue.prepare",
    "queue.recycle",
    "queue.retire",
    "queue.recover-sync",
    "queue.offset-write",
    "queue.offset-sync",
    "queue.offset-publish",
    "queue.checkpoint-write",
    "queue.checkpoint-sync",
    "queue.dead-letter",
];

/// Those that only the group of a topic passes whose records are rewritten.
pub const REWRITING_FAILPOINTS: &[&str] = &["queue.rewrite", "queue.rewritten"];
