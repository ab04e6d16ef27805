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
//! - MUST keep every record until the slowest group is past it; a group ends only by an explicit drop;
//! - MUST stop and say where when something acknowledged does not read back, never skip it.
//!
//! What one adapter cannot promise beyond this is a named [`Capabilities`] field.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::registry::Registry;

use crate::disk::{self, DiskOptions};

mod error;
mod record;

pub use error::{AppendError, QueueError, Refused};
pub use record::{InvalidPosition, Lag, Message, NewRecord, Position, TopicState};

/// Longest key of a record, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// Longest tag of a record, in bytes.
pub const TAG_BYTES_MAX: usize = 64;
/// Longest payload of a record, in bytes. Small segments lower it to an eighth of the segment.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// One instance's topics. Cheap to clone; the last clone's drop gives up what [`Queue::shutdown`] would have settled.
#[derive(Debug, Clone)]
pub enum Queue {
    /// The log on the local disk.
    Disk(disk::DiskQueue),
}

impl Queue {
    /// Opens the directory as its one owner: creates what is absent, takes the lock, recovers every topic that exists.
    ///
    /// # Errors
    /// [`QueueError::InUse`] if another process owns it; `Foreign`, `OtherVersion`, `Corrupt` or `Io` otherwise.
    pub fn open_disk(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        disk::DiskQueue::open(options, registry).map(Self::Disk)
    }

    /// Attaches to a directory that another process on this machine owns: its topics can be read and its groups held, but
    /// nothing can be appended. Woken within about a millisecond of the owner's acknowledgement.
    ///
    /// # Errors
    /// `Foreign`, `OtherVersion` or `Io`; a directory that does not exist yet is `Io` (not found).
    pub fn attach_disk(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        disk::DiskQueue::attach(options, registry).map(Self::Disk)
    }

    /// The instance: the log directory's id, drawn at its creation, outliving restarts.
    pub fn instance(&self) -> u64 {
        match self {
            Self::Disk(queue) => queue.instance(),
        }
    }

    /// What this adapter promises beyond the port.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Disk(_) => Capabilities {
                total_order: true,
                distance: true,
                deliver_at: true,
                acknowledge_each: true,
                reset: true,
                cross_process: true,
            },
        }
    }

    /// The topic of this name (letters, digits, `-`, `_`, `.`; at most 64 bytes), created if absent.
    ///
    /// # Errors
    /// `InvalidName`; `UnknownTopic` when attached and the owner has not created it; what recovery finds.
    pub fn topic(&self, name: &str) -> Result<Topic, QueueError> {
        match self {
            Self::Disk(queue) => queue.topic(name).map(Topic::Disk),
        }
    }

    /// The names of all topics that exist, sorted.
    ///
    /// # Errors
    /// `Io`.
    pub fn topics(&self) -> Result<Vec<String>, QueueError> {
        match self {
            Self::Disk(queue) => queue.topics(),
        }
    }

    /// With `Driver::Driven`: the committers and the upkeep of all topics, present and future, as one future that its owner
    /// polls; it ends after [`Queue::shutdown`]. With `Driver::Thread` it waits for that and does nothing else.
    pub fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        match self {
            Self::Disk(queue) => queue.run(),
        }
    }

    /// Refuses new permits, settles every record that is in a ring and syncs; the locks are kept until [`Self::shutdown`]. Lags
    /// and states are final afterwards.
    pub async fn settle(&self) {
        match self {
            Self::Disk(queue) => queue.settle().await,
        }
    }

    /// Refuses new permits, settles every record that is in a ring, syncs, and gives up the locks. Appends that come after it
    /// with an old permit get `Closed`. With `Driver::Driven`, [`Queue::run`] must be polled meanwhile.
    pub async fn shutdown(&self) {
        match self {
            Self::Disk(queue) => queue.shutdown().await,
        }
    }
}

/// What an adapter promises beyond the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Records of the topic have one order, and groups see it.
    pub total_order: bool,
    /// [`Topic::distance`] is exact.
    pub distance: bool,
    /// Any `deliver_at_ms`, not only fixed levels.
    pub deliver_at: bool,
    /// [`Group::ack`] and [`Group::nack`] of single positions.
    pub acknowledge_each: bool,
    /// A group's offset can be reset by position and by time.
    pub reset: bool,
    /// Groups may live in other processes than the appender.
    pub cross_process: bool,
}

/// One topic of one instance. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Topic {
    /// A log of its own below the queue's directory.
    Disk(disk::DiskTopic),
}

impl Topic {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Disk(topic) => topic.name(),
        }
    }

    /// Room for one record of at most `payload_bytes`, in ring, backlog and on the disk. Costs no I/O and takes no lock.
    /// Dropping the permit gives the room back.
    ///
    /// # Errors
    /// Which room is lacking, or why there will be none.
    pub fn try_permit(&self, payload_bytes: usize) -> Result<Permit, Refused> {
        match self {
            Self::Disk(topic) => topic.try_permit(payload_bytes).map(Permit::Disk),
        }
    }

    /// Appends asynchronously: when this returns the record is in the ring, in order; the future tells when it is durable.
    /// Dropping the future only stops waiting.
    pub fn append(&self, permit: Permit, record: NewRecord<'_>) -> Append {
        match (self, permit) {
            (Self::Disk(topic), Permit::Disk(permit)) => Append::Disk(topic.append(permit, record)),
        }
    }

    /// Appends synchronously: blocks this thread until the record is durable. Not for async code, nor with
    /// `Driver::Driven`.
    ///
    /// # Errors
    /// As the future of [`Topic::append`].
    pub fn append_blocking(&self, permit: Permit, record: NewRecord<'_>) -> Result<Position, AppendError> {
        disk::block_on(self.append(permit, record))
    }

    /// Appends several records in order; the future tells the positions once all are durable. A crash may keep a prefix.
    pub fn append_batch<'a>(
        &self,
        records: impl IntoIterator<Item = (Permit, NewRecord<'a>)>,
    ) -> AppendBatch {
        let appends = records.into_iter().map(|(permit, record)| self.append(permit, record)).collect();
        AppendBatch { appends, positions: Vec::new() }
    }

    /// Appends one-way and promises nothing: nobody learns whether the record became durable.
    pub fn append_without_promise(&self, permit: Permit, record: NewRecord<'_>) {
        drop(self.append(permit, record));
    }

    /// Whether permits are to be had.
    pub fn state(&self) -> TopicState {
        match self {
            Self::Disk(topic) => topic.state(),
        }
    }

    /// The newest durable position; `None` while the topic is empty.
    pub fn end(&self) -> Option<Position> {
        match self {
            Self::Disk(topic) => topic.end(),
        }
    }

    /// Takes the lock of (log, group), creating the group at the oldest kept record if absent.
    ///
    /// # Errors
    /// [`QueueError::GroupHeld`] while another process or another [`Group`] holds it; `InvalidName`; `Corrupt`; `Io`.
    pub fn group(&self, name: &str) -> Result<Group, QueueError> {
        match self {
            Self::Disk(topic) => topic.group(name).map(Group::Disk),
        }
    }

    /// The names of all groups of this topic, sorted.
    ///
    /// # Errors
    /// `Io`.
    pub fn groups(&self) -> Result<Vec<String>, QueueError> {
        match self {
            Self::Disk(topic) => topic.groups(),
        }
    }

    /// Drops a group and its offset, so that it holds back no record any more. Its dead letters go with it.
    ///
    /// # Errors
    /// `GroupHeld` while somebody holds it; `UnknownGroup`; `Io`.
    pub fn drop_group(&self, name: &str) -> Result<(), QueueError> {
        match self {
            Self::Disk(topic) => topic.drop_group(name),
        }
    }

    /// The position through which the group has finished everything; `None` at the beginning of the log.
    ///
    /// # Errors
    /// `UnknownGroup`, `Corrupt`, `Io`.
    pub fn committed(&self, group: &str) -> Result<Option<Position>, QueueError> {
        match self {
            Self::Disk(topic) => topic.committed(group),
        }
    }

    /// How far the group is behind the durable end.
    ///
    /// # Errors
    /// `UnknownGroup`, `Corrupt`, `Io`.
    pub fn lag(&self, group: &str) -> Result<Lag, QueueError> {
        match self {
            Self::Disk(topic) => topic.lag(group),
        }
    }

    /// Up to `max` records after `after` (from the oldest kept one with `None`) in log order, `deliver_at_ms` not regarded,
    /// never beyond the durable watermark. An empty answer means the end. Needs no group.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn read(&self, after: Option<Position>, max: usize) -> Result<Vec<Message>, QueueError> {
        match self {
            Self::Disk(topic) => topic.read(after, max),
        }
    }

    /// Records in (`from`, `to`]; `None` where an adapter cannot tell.
    pub fn distance(&self, from: Option<Position>, to: Position) -> Option<u64> {
        match self {
            Self::Disk(_) => Some(to.0.saturating_sub(from.map_or(0, |position| position.0))),
        }
    }

    /// The last position of the records written before `unix_ms`, by the log's own clock, which never goes back; what a
    /// group is reset to by time. `None` if all kept records are newer.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn position_before(&self, unix_ms: u64) -> Result<Option<Position>, QueueError> {
        match self {
            Self::Disk(topic) => topic.position_before(unix_ms),
        }
    }
}

/// A consumer group, held by this process alone until dropped.
#[derive(Debug)]
pub enum Group {
    /// A group of a disk log.
    Disk(disk::DiskGroup),
}

impl Group {
    /// Up to `max` messages: first those whose delay has ended, then the log's in order, continuing after the last pulled.
    /// Waits at most `wait` for the first one; an empty answer means none came. Cancel safe.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, QueueError> {
        match self {
            Self::Disk(group) => group.pull(max, wait).await,
        }
    }

    /// Finishes everything pulled through `through`; durable when it returns. What waits for its `deliver_at_ms` or its
    /// retry is not finished by it.
    ///
    /// # Errors
    /// `OutOfRange` beyond the durable end; `Io` (the offset is then as before, or as wanted).
    pub async fn commit(&mut self, through: Position) -> Result<(), QueueError> {
        match self {
            Self::Disk(group) => group.commit(through),
        }
    }

    /// Puts the cursor back behind the committed offset: what was pulled and not finished will be pulled again.
    pub fn rewind(&mut self) {
        match self {
            Self::Disk(group) => group.rewind(),
        }
    }

    /// Finishes one position; durable when it returns. A finished one again is harmless.
    ///
    /// # Errors
    /// As [`Group::commit`].
    pub async fn ack(&mut self, position: Position) -> Result<(), QueueError> {
        self.ack_all(&[position]).await
    }

    /// Finishes many positions with one durable write.
    ///
    /// # Errors
    /// As [`Group::commit`].
    pub async fn ack_all(&mut self, positions: &[Position]) -> Result<(), QueueError> {
        match self {
            Self::Disk(group) => group.ack_all(positions),
        }
    }

    /// Has one pulled position delivered again after `delay`, its `attempt` one higher; durable when it returns.
    ///
    /// # Errors
    /// As [`Group::commit`].
    pub async fn nack(&mut self, position: Position, delay: Duration) -> Result<(), QueueError> {
        self.nack_all(&[(position, delay)]).await
    }

    /// As [`Group::nack`], many positions with one durable write.
    ///
    /// # Errors
    /// As [`Group::commit`].
    pub async fn nack_all(&mut self, positions: &[(Position, Duration)]) -> Result<(), QueueError> {
        match self {
            Self::Disk(group) => group.nack_all(positions),
        }
    }

    /// Moves a message to the group's dead letters: durable there first, then finished here. A crash between leaves a
    /// letter and a redelivery.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn dead_letter(&mut self, message: &Message, reason: &str) -> Result<(), QueueError> {
        match self {
            Self::Disk(group) => group.dead_letter(message, reason),
        }
    }

    /// Sets the offset: everything through `through` counts as finished, everything after it as not, retries forgotten.
    ///
    /// # Errors
    /// As [`Group::commit`].
    pub async fn reset(&mut self, through: Option<Position>) -> Result<(), QueueError> {
        match self {
            Self::Disk(group) => group.reset(through),
        }
    }

    /// The position through which everything is finished.
    pub fn committed(&self) -> Option<Position> {
        match self {
            Self::Disk(group) => group.committed(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Disk(group) => group.name(),
        }
    }

    /// Pushes messages to `handle`, at most `concurrency` at once, until `stop` completes; then lets those under way finish.
    /// [`Verdict::Retry`] follows `retries`; past its last level the message becomes a dead letter. Finished ones are
    /// acknowledged together. Spawns nothing.
    ///
    /// # Errors
    /// As [`Group::pull`] and [`Group::ack`]; what was under way is delivered again to the next holder.
    pub async fn push<H, F>(
        &mut self,
        concurrency: usize,
        retries: &RetryLevels,
        mut handle: H,
        stop: impl Future<Output = ()>,
    ) -> Result<(), QueueError>
    where
        H: FnMut(Message) -> F,
        F: Future<Output = Verdict>,
    {
        crate::push::run(self, concurrency, retries, &mut handle, stop).await
    }
}

/// What a push handler made of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Finished.
    Done,
    /// Again, after the next level's back-off.
    Retry(String),
    /// Never again: to the dead letters, with this reason.
    Dead(String),
}

/// The back-off after each failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryLevels(pub Vec<Duration>);

impl RetryLevels {
    /// The wait after the failed `attempt` (1 is the first); `None` when the levels are used up.
    pub fn after(&self, attempt: u32) -> Option<Duration> {
        self.0.get(attempt.saturating_sub(1) as usize).copied()
    }
}

impl Default for RetryLevels {
    /// 1 s, 5 s, 10 s, 30 s, 1 min, 2 min, 5 min, 10 min, 30 min, 1 h.
    fn default() -> Self {
        Self([1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600].map(Duration::from_secs).to_vec())
    }
}

/// Room for one record. Dropping it gives the room back.
#[derive(Debug)]
#[must_use = "a permit that is dropped gives its room back"]
pub enum Permit {
    /// Of a disk log.
    Disk(disk::DiskPermit),
}

/// An append under way.
#[derive(Debug)]
#[must_use = "only a completed append is durable"]
pub enum Append {
    /// To a disk log.
    Disk(disk::DiskAppend),
}

impl Future for Append {
    type Output = Result<Position, AppendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Disk(append) => Pin::new(append).poll(context),
        }
    }
}

/// Several appends under way; see [`Topic::append_batch`].
#[derive(Debug)]
#[must_use = "only a completed append is durable"]
pub struct AppendBatch {
    appends: Vec<Append>,
    positions: Vec<Position>,
}

impl Future for AppendBatch {
    type Output = Result<Vec<Position>, AppendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        while let Some(append) = this.appends.get_mut(this.positions.len()) {
            match Pin::new(append).poll(context) {
                Poll::Ready(Ok(position)) => this.positions.push(position),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(std::mem::take(&mut this.positions)))
    }
}
