//! Topics, appends, groups, delayed messages, dead letters. Knows bytes, never what they mean.

mod config;
mod disk;
pub mod failpoint;
mod handles;
mod injected;
mod metrics;
pub mod operator;
mod port;
mod push;
mod ring;
mod storage;
mod sync;
mod watch;

pub use config::{QueueBackend, QueueConfig};
#[cfg(feature = "simulation")]
pub use disk::decode_anything;
pub use disk::{
    BatchTrace, DiskAppend, DiskGroup, DiskOptions, DiskPermit, DiskQueue, DiskTopic, Driver, Trace,
};
pub use handles::{Append, AppendBatch, Group, Permit, Queue, Topic};
pub use injected::{Now, Random};
pub use port::{
    AppendError, BehindMax, Capabilities, InvalidAddress, InvalidPosition, KEY_BYTES_MAX, Lag, LogAddress,
    Message, NewRecord, Opening, PAYLOAD_BYTES_MAX, Position, QueueError, Refused, StartAt, TAG_BYTES_MAX,
    Tie, TopicState,
};
pub use push::{RetryLevels, Verdict};
pub use storage::Storage;
#[cfg(feature = "simulation")]
pub use storage::simulated::{Faults, SimulatedDisk};
pub use watch::{GroupWatch, Movement};

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

/// That which only a log passes one of whose groups may be cut off.
pub const CUT_FAILPOINTS: &[&str] = &["queue.cut", "queue.limits-sync"];

/// Those that only the group of a topic passes whose records are rewritten.
pub const REWRITING_FAILPOINTS: &[&str] = &["queue.rewrite", "queue.rewritten"];
