//! The queue's port: topics of small records, acknowledged only when durable, read by groups with durable offsets.
//!
//! Every adapter
//! - MUST answer an append with a [`Position`] only when the record can no longer be lost by a crash of process or system;
//! - MUST answer `Uncertain`, and accept nothing more, once it cannot tell whether a record is durable; it never retries a
//!   failed sync;
//! - MUST refuse a [`Permit`], before anything is promised to anybody, when ring, backlog or disk have no room; a granted
//!   permit's append MUST NOT fail for lack of room;
//! - MUST give the records of one topic and instance one total order, positions rising;
//! - MUST NOT show a reader a record that a crash could take back;
//! - MUST hand out a record with `deliver_at_ms` not before that time, and every record at least once to each group, until it
//!   is committed, acknowledged or dead-lettered there;
//! - MUST let one process at a time hold a group of a log; another may take it as soon as the first is gone;
//! - MUST have a group's offset or acknowledgement durable when the call returns, and a dead letter durable before the source
//!   position moves;
//! - MUST keep every record until the slowest group is past it, and for a stated time longer; a group ends only by an explicit drop;
//! - MAY give a record of a topic that was opened as delayed a new position while it waits, in the one group of that topic: the old
//!   position then counts as finished, `read` may show the record at both, its times stay, and it MUST NOT be lost or come twice;
//!   one that was pulled and is not finished MUST keep its position;
//! - MUST NOT take a record from a group that has not finished it, unless the group has a [`BehindMax`]; where it has one, MUST tell of
//!   each cut by [`QueueError::Cut`] before the group goes on behind it;
//! - MUST keep to whom the log belongs ([`Tie`]): written by the log's owner alone and durable when the call returns, read by anybody.
//!   Where its opener asked for that ([`crate::DiskOptions::tied`]), MUST refuse every [`Permit`] until the opening has written its own;
//! - MUST answer from memory, without I/O and without waiting, what the path of a purchase asks: permit, append, state, end.
//!   Everything that a broker would be asked over a network is asynchronous;
//! - MUST count for its callers ("the last n", "how many ahead"): positions are opaque, nobody else calculates with them;
//! - MUST stop and say where when something acknowledged does not read back, never skip it.
//!
//! What one adapter cannot promise beyond this is a named [`Capabilities`] field. Here is the contract alone: `handles` chooses the
//! adapter for each call, adapters import from here and know no handle.

mod address;
mod error;
mod record;
mod tie;

pub use address::{InvalidAddress, LogAddress};
pub use error::{AppendError, QueueError, Refused};
pub use record::{
    BehindMax, DeadLetter, InvalidPosition, Lag, Message, NewRecord, Position, StartAt, TopicState,
};
pub use tie::{Opening, Tie};

/// Longest key of a record, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// Longest tag of a record, in bytes.
pub const TAG_BYTES_MAX: usize = 64;
/// Longest payload of a record, in bytes. Small segments lower it to an eighth of the segment.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// What an adapter promises beyond the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Records of the topic have one order, and groups see it.
    pub total_order: bool,
    /// Lags and numbers of records ahead are exact, not only an upper bound.
    pub exact_counts: bool,
    /// Any `deliver_at_ms`, not only fixed levels.
    pub deliver_at: bool,
    /// Single positions can be acknowledged, and given back.
    pub acknowledge_each: bool,
    /// A group's offset can be reset by position and by time.
    pub reset: bool,
    /// Groups may live in other processes than the appender.
    pub cross_process: bool,
}
