//! The handles that users of the crate hold: queue, topic, group, permit, append. Each call goes to the adapter that made the handle;
//! what it promises stands in [`crate::port`]. Decides nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::registry::Registry;

use crate::disk::{self, DiskOptions};
use crate::injected::Now;
use crate::port::{
    AppendError, BehindMax, Capabilities, DeadLetter, Lag, LogAddress, Message, NewRecord, Opening, Position,
    QueueError, Refused, StartAt, Tie, TopicState,
};

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

    /// Attaches to a log that another process owns: its topics can be read and its groups held, but nothing can be appended. Where
    /// it is a directory on this machine, consumers are woken within about a millisecond of the owner's acknowledgement.
    ///
    /// # Errors
    /// `Foreign`, `OtherVersion` or `Io`; a log that does not exist yet is `Io` (not found).
    pub async fn attach(address: &LogAddress, now: Now) -> Result<Self, QueueError> {
        match address {
            LogAddress::Disk(directory) => Self::attach_disk(DiskOptions::new(directory, now)),
        }
    }

    /// The same for a directory with options of its own.
    ///
    /// # Errors
    /// As [`Queue::attach`].
    pub fn attach_disk(options: DiskOptions) -> Result<Self, QueueError> {
        disk::DiskQueue::attach(options).map(Self::Disk)
    }

    /// The instance: the log directory's id, drawn at its creation, outliving restarts.
    pub fn instance(&self) -> u64 {
        match self {
            Self::Disk(queue) => queue.instance(),
        }
    }

    /// To whom the log belongs, as it says now; `None` while nobody has tied it. Its owner or anybody else may ask.
    ///
    /// # Errors
    /// `Foreign`, `OtherVersion`, `Corrupt`, `Io`.
    pub async fn tie(&self) -> Result<Option<Tie>, QueueError> {
        match self {
            Self::Disk(queue) => queue.tie(),
        }
    }

    /// Ties the log to a deployment by a new opening of this generation, and answers with that; durable when it returns, and
    /// permits are to be had from then on. Whether the log may belong to that deployment is the caller's to know.
    ///
    /// # Errors
    /// `NotOwner` when attached, `Closed` after the shutdown; `Io`: the log says the old or the new one.
    pub async fn tie_to(&self, deployment: u128, generation: u64) -> Result<Opening, QueueError> {
        match self {
            Self::Disk(queue) => queue.tie_to(deployment, generation),
        }
    }

    /// What this adapter promises beyond the port.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Disk(_) => Capabilities {
                total_order: true,
                exact_counts: true,
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
    pub async fn topic(&self, name: &str) -> Result<Topic, QueueError> {
        match self {
            Self::Disk(queue) => queue.topic(name).map(Topic::Disk),
        }
    }

    /// The names of all topics that exist, sorted.
    ///
    /// # Errors
    /// `Io`.
    pub async fn topics(&self) -> Result<Vec<String>, QueueError> {
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

    /// Records that some group has not finished, in percent of the backlog that the log may have; 0 beside its owner.
    pub fn backlog_percent(&self) -> u64 {
        match self {
            Self::Disk(topic) => topic.backlog_percent(),
        }
    }

    /// The newest durable position; `None` while the topic is empty.
    pub fn end(&self) -> Option<Position> {
        match self {
            Self::Disk(topic) => topic.end(),
        }
    }

    /// Takes the lock of (log, group), creating the group at `start` if absent.
    ///
    /// # Errors
    /// [`QueueError::GroupHeld`] while another process or another [`Group`] holds it; `InvalidName`; `Corrupt`; `Io`.
    pub async fn group(&self, name: &str, start: StartAt) -> Result<Group, QueueError> {
        match self {
            Self::Disk(topic) => topic.group(name, start).map(Group::Disk),
        }
    }

    /// The names of all groups of this topic, sorted.
    ///
    /// # Errors
    /// `Io`.
    pub async fn groups(&self) -> Result<Vec<String>, QueueError> {
        match self {
            Self::Disk(topic) => topic.groups(),
        }
    }

    /// Drops a group and its offset, so that it holds back no record any more. Its dead letters go with it.
    ///
    /// # Errors
    /// `GroupHeld` while somebody holds it; `UnknownGroup`; `Io`.
    pub async fn drop_group(&self, name: &str) -> Result<(), QueueError> {
        match self {
            Self::Disk(topic) => topic.drop_group(name),
        }
    }

    /// The position through which the group has finished everything; `None` at the beginning of the log.
    ///
    /// # Errors
    /// `UnknownGroup`, `Corrupt`, `Io`.
    pub async fn committed(&self, group: &str) -> Result<Option<Position>, QueueError> {
        match self {
            Self::Disk(topic) => topic.committed(group),
        }
    }

    /// How far the group is behind the durable end.
    ///
    /// # Errors
    /// `UnknownGroup`, `Corrupt`, `Io`.
    pub async fn lag(&self, group: &str) -> Result<Lag, QueueError> {
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

    /// The last `max` records through `through` (`None`: through the durable end) that are still kept, in log order.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn read_last(&self, through: Option<Position>, max: usize) -> Result<Vec<Message>, QueueError> {
        match self {
            Self::Disk(topic) => topic.read_last(through, max),
        }
    }

    /// How many records through `position` the group has not finished, at most.
    ///
    /// # Errors
    /// `UnknownGroup`, `Corrupt`, `Io`.
    pub async fn behind(&self, group: &str, position: Position) -> Result<u64, QueueError> {
        let committed = self.committed(group).await?;
        Ok(self.records_between(committed, position))
    }

    /// Records after `from` (from the beginning with `None`) through `to`, from memory.
    pub(crate) fn records_between(&self, from: Option<Position>, to: Position) -> u64 {
        match self {
            Self::Disk(_) => disk::DiskTopic::records_between(from, to),
        }
    }

    /// See [`crate::operator::dead_letters`].
    pub(crate) async fn dead_letters(
        &self,
        group: &str,
        after: Option<Position>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        match self {
            Self::Disk(topic) => topic.dead_letters(group, after, max),
        }
    }

    /// The last position of the records written before `unix_ms`, by the log's own clock, which never goes back; what a
    /// group is reset to by time. `None` if the topic has never had one.
    ///
    /// # Errors
    /// `NotKept` if there was one and none is kept; `Corrupt`, `Io`.
    pub async fn position_before(&self, unix_ms: u64) -> Result<Option<Position>, QueueError> {
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
    /// `Corrupt`, `Io`, `Closed`; `Cut`, told once, after which the next call goes on.
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

    /// Gives the group a bound on how far it may be behind; durable when it returns. Without one, as at first, it is never cut off.
    ///
    /// # Errors
    /// `Io`.
    pub async fn limit_behind(&mut self, limit: Option<BehindMax>) -> Result<(), QueueError> {
        match self {
            Self::Disk(group) => group.limit_behind(limit),
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

    /// Sets the offset: everything through `through` (`None`: all that is not kept any more) counts as finished, everything after it as
    /// not, retries and cuts forgotten.
    ///
    /// # Errors
    /// `NotKept`, and nothing changes, if a record after `through` is gone; else as [`Group::commit`].
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
