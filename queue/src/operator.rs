//! What an operator does with a queue: list, look, verify, reset, replay, probe. The command line's side of the crate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk;
use crate::handles::{Queue, Topic};
use crate::injected::Now;
use crate::port::{Lag, LogAddress, Message, NewRecord, Position, QueueError, Refused, StartAt, Tie};
use crate::storage::Storage;

pub use crate::disk::{DamagedBatch, ProbedDisk, VerifiedLog};
pub use crate::port::DeadLetter;

/// One group of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// The topic.
    pub topic: String,
    /// The group.
    pub group: String,
    /// Finished through here.
    pub committed: Option<Position>,
    /// How far behind.
    pub lag: Lag,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub topic: String,
    /// The oldest kept position.
    pub oldest: Option<Position>,
    /// The newest durable position.
    pub end: Option<Position>,
    /// Its groups.
    pub groups: Vec<String>,
}

/// All topics of a queue, by name.
///
/// # Errors
/// `Corrupt`, `Io`.
pub async fn topics(queue: &Queue) -> Result<Vec<TopicSummary>, QueueError> {
    let mut summaries = Vec::new();
    for name in queue.topics().await? {
        let topic = queue.topic(&name).await?;
        let oldest = topic.read(None, 1).await?.first().map(|message| message.position);
        summaries.push(TopicSummary { topic: name, oldest, end: topic.end(), groups: topic.groups().await? });
    }
    Ok(summaries)
}

/// All groups of a queue with their offsets and lags, by topic and name.
///
/// # Errors
/// `Corrupt`, `Io`.
pub async fn groups(queue: &Queue) -> Result<Vec<GroupSummary>, QueueError> {
    let mut summaries = Vec::new();
    for name in queue.topics().await? {
        let topic = queue.topic(&name).await?;
        for group in topic.groups().await? {
            let committed = topic.committed(&group).await?;
            let lag = topic.lag(&group).await?;
            summaries.push(GroupSummary { topic: name.clone(), group, committed, lag });
        }
    }
    Ok(summaries)
}

/// The newest records that a group has finished, of the last `max` before its offset those that the log still keeps.
///
/// # Errors
/// `UnknownGroup`, `Corrupt`, `Io`.
pub async fn finished(topic: &Topic, group: &str, max: usize) -> Result<Vec<Message>, QueueError> {
    match topic.committed(group).await? {
        Some(committed) => topic.read_last(Some(committed), max).await,
        None => Ok(Vec::new()),
    }
}

/// Records that a reset has put a group past, though it had not finished them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// Not this one: the last that was finished.
    pub after: Option<Position>,
    /// The last of them.
    pub through: Position,
}

impl Skipped {
    /// Whether the record there is one of them.
    #[must_use]
    pub fn contains(&self, position: Position) -> bool {
        self.after.is_none_or(|after| after < position) && position <= self.through
    }
}

/// What resets have put a group past, oldest first; not what a later reset went back to. Where there are very many, some of what lies
/// between the oldest counts as skipped too.
///
/// # Errors
/// `UnknownGroup`, `Corrupt`, `Io`.
pub async fn skipped(topic: &Topic, group: &str) -> Result<Vec<Skipped>, QueueError> {
    let ranges = match topic {
        Topic::Disk(topic) => topic.skipped(group)?,
    };
    let skipped = |(after, through)| Skipped {
        after: (after > 0).then_some(Position(after)),
        through: Position(through),
    };
    Ok(ranges.into_iter().map(skipped).collect())
}

/// Walks every batch of every segment of every topic below a directory, whether it is in use or not, and changes nothing.
///
/// # Errors
/// `Foreign`, `OtherVersion`, `Io`; damage is not an error but part of the answer.
pub fn verify(directory: &Path) -> Result<Vec<VerifiedLog>, QueueError> {
    disk::verify(&Storage::Real, directory)
}

/// Has a group continue after `through` (`None`: with the oldest kept record).
///
/// # Errors
/// `GroupHeld` while a consumer runs; `UnknownGroup`; `OutOfRange`; `NotKept`; `Io`.
pub async fn reset_to_position(
    topic: &Topic,
    group: &str,
    through: Option<Position>,
) -> Result<(), QueueError> {
    topic.committed(group).await?;
    topic.group(group, StartAt::Oldest).await?.reset(through).await
}

/// Up to `max` dead letters of a group after the letter `after`.
///
/// # Errors
/// `UnknownGroup`, `Corrupt`, `Io`.
pub async fn dead_letters(
    topic: &Topic,
    group: &str,
    after: Option<Position>,
    max: usize,
) -> Result<Vec<DeadLetter>, QueueError> {
    topic.dead_letters(group, after, max).await
}

/// Appends one dead letter's message to its topic again, durable when it returns; every group sees it as a new record. The
/// letter stays. Needs the directory's owner.
///
/// # Errors
/// `NotOwner` when attached, `Closed` when shut down or poisoned, `Io` (retryable) when there is no room.
pub async fn replay_dead_letter(topic: &Topic, letter: &DeadLetter) -> Result<Position, QueueError> {
    let message = &letter.message;
    let permit = topic.try_permit(message.payload.len()).map_err(|refused| match refused {
        Refused::Closed | Refused::Poisoned => QueueError::NotOwner,
        refused => QueueError::Io {
            doing: "replay into",
            path: PathBuf::from(topic.name()),
            source: std::io::Error::other(refused),
        },
    })?;
    let record =
        NewRecord { key: &message.key, tag: &message.tag, deliver_at_ms: None, payload: &message.payload };
    topic.append(permit, record).await.map_err(|_| QueueError::Closed)
}

/// Has a log say that it belongs as `tie` says, whatever it said before; durable when it returns. Nothing else of it is read or
/// changed, so that what a restored database lacks stays in it. Two copies of one log that are both accepted are two logs of one name:
/// the caller answers for there being one.
///
/// # Errors
/// `InUse` while its owner runs; `Foreign`, `OtherVersion`, `Corrupt`, `Io`.
pub async fn accept(log: &LogAddress, tie: Tie, now: Now) -> Result<(), QueueError> {
    match log {
        LogAddress::Disk(directory) => disk::DiskQueue::accept(&disk::DiskOptions::new(directory, now), tie),
    }
}

/// Measures how fast the disk below a directory makes 4 KiB durable, by both methods: `queue probe-disk`.
///
/// # Errors
/// `Io`.
pub fn probe_disk(directory: &Path) -> Result<ProbedDisk, QueueError> {
    disk::probe(&Storage::Real, directory)
}

/// A duration in microseconds, as the command line prints it.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
