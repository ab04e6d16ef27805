//! What goes through the port: records, messages, positions, and how a topic or a group stands.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is to be appended.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// At most [`super::KEY_BYTES_MAX`]; may be empty.
    pub key: &'a [u8],
    /// The message type, at most [`super::TAG_BYTES_MAX`]; may be empty.
    pub tag: &'a str,
    /// Unix ms before which no group sees it; `None` is at once.
    pub deliver_at_ms: Option<u64>,
    /// At least one byte, at most what the permit was asked for.
    pub payload: &'a [u8],
}

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it stands.
    pub position: Position,
    /// As appended.
    pub key: Vec<u8>,
    /// As appended.
    pub tag: String,
    /// As appended.
    pub payload: Vec<u8>,
    /// The appender's clock, Unix ms.
    pub appended_at_ms: u64,
    /// As appended.
    pub deliver_at_ms: Option<u64>,
    /// 1 at first, one more for each nack. Always 1 where no group reads.
    pub attempt: u32,
}

/// A record's place in its topic. Opaque: compare, print, parse, store; counting is the adapter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Position(pub(crate) u64);

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.0.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = InvalidPosition;

    fn try_from(text: String) -> Result<Self, InvalidPosition> {
        text.parse()
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => Err(InvalidPosition),
        }
    }
}

/// A text that is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a position; a position is a decimal number from 1 as `floodgate queue dump` prints it")]
pub struct InvalidPosition;

/// Where a group begins that does not exist yet. One that exists goes on where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// With the oldest record that is kept.
    Oldest,
    /// With the first record that becomes durable after it was made.
    End,
}

/// How far a group may be behind before it is cut off, so that it does not hold what nobody else needs. None of both: never.
///
/// Records go when either bound is exceeded, up to an eighth more than need be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BehindMax {
    /// So many records, at least 1.
    pub records: Option<u64>,
    /// The age of the oldest unfinished record, at least a millisecond. By the time that the owner has seen pass: a clock that is put
    /// forward cuts nobody.
    pub age: Option<Duration>,
}

/// How far a group is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Durable records that the group has not finished, those waiting for their delay included.
    pub records: u64,
    /// Age of the oldest of them; 0 without any.
    pub age_ms: u64,
}

/// Whether a topic takes records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicState {
    /// It does.
    Writable,
    /// No room in backlog or on the disk at the moment, or the log is not where it was.
    Full,
    /// A write or sync has not come back for seconds: whatever is appended waits for it.
    Stalled,
    /// A sync failed: what was under way is uncertain and nothing more is taken until the process restarts and recovers.
    Poisoned,
    /// Shut down, or attached without being the owner.
    Closed,
}

/// A message that its group gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its place among the group's letters.
    pub letter: Position,
    /// The message; its position is the source's.
    pub message: Message,
    /// Why.
    pub reason: String,
    /// When it was given up, Unix ms.
    pub at_ms: u64,
}
