//! What calls on the port can meet, and which of it may be tried again.

use std::path::PathBuf;

use super::Position;

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More is in flight than the ring holds: wait for some appends.
    #[error("too many appends are in flight; try again when some have been answered")]
    RingFull,
    /// The slowest group is `backlog_max` behind.
    #[error("the backlog is at its bound; drain the slowest group or raise queue.backlog_max")]
    BacklogFull,
    /// No preallocated disk space left, and none to be had at the moment.
    #[error("the queue's disk is full; free space or let the groups catch up")]
    DiskFull,
    /// Its files were moved, removed or exchanged behind the process's back.
    #[error("the queue's files are no longer where they were; put them back, or restart the process")]
    Gone,
    /// The log is not tied yet by this opening of it.
    #[error("the log is not tied to a deployment yet; its owner does so at its start")]
    Untied,
    /// A payload of no bytes or of more than the topic takes.
    #[error("a payload has between 1 byte and the topic's maximum")]
    PayloadSize,
    /// See [`TopicState::Poisoned`].
    #[error("a sync failed and the log takes no more; restart the process so that it recovers")]
    Poisoned,
    /// See [`TopicState::Closed`].
    #[error("the queue is shut down, or owned by another process")]
    Closed,
}

impl Refused {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::RingFull | Self::BacklogFull | Self::DiskFull)
    }
}

/// Why an append has no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The record may or may not be durable: a write or sync failed. The next recovery tells.
    #[error("a sync failed: whether the record is durable shows after the next start")]
    Uncertain,
    /// The log was shut down before the record got in: it is not there.
    #[error("the queue was shut down before the record was written")]
    Closed,
    /// Key, tag or payload are longer than allowed or than the permit: nothing was written.
    #[error("the record is empty or larger than its permit, or its key or tag is too long")]
    RecordSize,
}

impl AppendError {
    /// Whether appending again may help: never without a restart or a change of the record.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Why a call on the queue failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Another process owns the directory.
    #[error("{directory} is in use by another process; stop it, or give this one another queue.directory")]
    InUse {
        /// The queue's directory.
        directory: PathBuf,
    },
    /// Another process, or another `Group` of this one, holds the group.
    #[error(
        "group {group} of topic {topic} is held by another consumer; it is free as soon as that one ends"
    )]
    GroupHeld {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
    /// Something else's file or directory.
    #[error("{path} is not Floodgate's: {found}; give another queue.directory")]
    Foreign {
        /// What was looked at.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Written by another version.
    #[error("{path} has format version {found}, this binary reads {supported}; use the binary that wrote it")]
    OtherVersion {
        /// What was looked at.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// Ours.
        supported: u16,
    },
    /// Something acknowledged does not read back.
    #[error(
        "{file} is damaged at byte {offset}: {found}; keep a copy of the directory, see `floodgate queue verify`"
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// The first damaged byte's batch.
        offset: u64,
        /// What was found there.
        found: String,
    },
    /// The operating system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// The verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// A topic's or group's name that is not allowed.
    #[error("{0:?} is no name: use 1 to 64 letters, digits, '-', '_' or '.', not starting with '.'")]
    InvalidName(String),
    /// No such topic.
    #[error("there is no topic {0}; `floodgate queue topics` lists them")]
    UnknownTopic(String),
    /// No such group.
    #[error("topic {topic} has no group {group}; `floodgate queue groups` lists them")]
    UnknownGroup {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
    /// The group was further behind than it may be. Told once: the next pull goes on behind `through`.
    #[error(
        "group {group} of topic {topic} was too far behind and is cut off: it will not see up to {records} records, through \
         position {through}; raise its bound, or make its consumer faster"
    )]
    Cut {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
        /// So many at most were not finished.
        records: u64,
        /// The last of them.
        through: Position,
    },
    /// All records of that time, or some behind that position, are gone.
    #[error(
        "what was written before the asked time or place is not kept any more; the oldest kept record is of Unix ms {oldest_ms}"
    )]
    NotKept {
        /// When the oldest kept record was written, Unix ms.
        oldest_ms: u64,
    },
    /// A position beyond the durable end.
    #[error("position {0} is beyond the durable end of the log")]
    OutOfRange(Position),
    /// The queue was shut down.
    #[error("the queue is shut down")]
    Closed,
    /// Only the directory's owner can do this.
    #[error("only the process that owns the directory can do this")]
    NotOwner,
}

impl QueueError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::GroupHeld { .. } | Self::UnknownTopic(_) => true,
            Self::Io { source, .. } => !matches!(
                source.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
            ),
            Self::Foreign { .. }
            | Self::OtherVersion { .. }
            | Self::Corrupt { .. }
            | Self::InvalidName(_)
            | Self::UnknownGroup { .. }
            | Self::OutOfRange(_)
            | Self::Cut { .. }
            | Self::NotKept { .. }
            | Self::Closed
            | Self::NotOwner => false,
        }
    }
}
