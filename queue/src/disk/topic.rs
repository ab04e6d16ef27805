//! One topic: permits, appends, and what readers and groups share. The lock-free side of a log; the committer is the other.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::committer::Trace;
use super::drive::Bell;
use super::files::{LogFiles, io};
use super::format::{self, BATCH_OVERHEAD_MAX, SOURCE_BYTES};
use super::group::DiskGroup;
use super::offsets;
use super::progress::Progress;
use super::reader::Reader;
use super::valid_name;
use super::watermark::Watermark;
use crate::Now;
use crate::failpoint;
use crate::metrics::TopicMetrics;
use crate::port::{
    AppendError, KEY_BYTES_MAX, Lag, Message, NewRecord, Position, QueueError, Refused, TAG_BYTES_MAX,
    TopicState,
};
use crate::ring::Ring;
use crate::storage::{SharedMark, Storage, SyncMethod};

/// One append in this many has its time measured.
const MEASURE_EVERY: u64 = 16;

/// How long a batch may be under way before the topic counts as stalled.
const STALLED_AFTER_MS: u64 = 5_000;

/// Everything about a topic that its handles, its committer and the upkeep share.
pub(crate) struct TopicShared {
    pub(crate) name: String,
    /// The topic's directory: `log/`, `groups/`, `mark`.
    pub(crate) directory: PathBuf,
    pub(crate) files: Arc<LogFiles>,
    pub(crate) method: SyncMethod,
    pub(crate) now: Now,
    /// Rings for consumers in this process at each acknowledgement.
    pub(crate) arrivals: Notify,
    /// How far each group is, as far as this process knows.
    pub(crate) groups: Mutex<BTreeMap<String, Standing>>,
    /// Absent when another process owns the log.
    pub(crate) own: Option<OwnTopic>,
    /// The page shared with other processes; absent in simulated storage.
    pub(crate) mark: Option<Arc<SharedMark>>,
    pub(crate) trace: Option<Trace>,
}

/// The appending side of a topic.
pub(crate) struct OwnTopic {
    pub(crate) ring: Ring,
    pub(crate) watermark: Watermark,
    /// The sequence of the ring's record 0.
    pub(crate) base: u64,
    /// Set once by shutdown, `Release`; `try_permit` loads `Acquire`. The ring's own flag decides about appends.
    pub(crate) closed: AtomicBool,
    /// Set by the upkeep when it could not make a segment, cleared when it could; `Relaxed`, a display.
    pub(crate) disk_full: AtomicBool,
    pub(crate) opened: Instant,
    /// When the batch under way was begun, ms behind `opened` plus 1; 0: none is. The committer alone stores, `Relaxed`: a display.
    pub(crate) batch_since_ms: AtomicU64,
    /// Whether the files are no longer where they were. Set and cleared by the upkeep, `Relaxed`: permits look at it as a notice
    /// that may be late.
    pub(crate) gone: AtomicBool,
    /// Bytes of prepared segments that are not promised to any permit. Permits take `Relaxed` by compare-and-swap and give
    /// back by addition, upkeep adds what it has made: a number that orders nothing but itself.
    pub(crate) room_bytes: AtomicI64,
    /// The sequence through which the slowest group is finished. Whoever moves a group stores `Relaxed`; permits load it as
    /// a bound that may be late.
    pub(crate) slowest: AtomicU64,
    /// The number of records that the group with the most unfinished ones has finished. As `slowest`.
    pub(crate) least_done: AtomicU64,
    /// Whether the one group's holder may rewrite records that wait; see [`super::DiskOptions::delayed`].
    pub(crate) rewrites: bool,
    /// Room that permits leave to rewritten copies, which are what frees segments.
    pub(crate) reserve_bytes: i64,
    /// Bytes of records that are rewritten at once at most.
    pub(crate) copy_bytes_max: u64,
    pub(crate) prepared: Mutex<Prepared>,
    pub(crate) segment_bytes: u64,
    /// Room at which a further segment is made.
    pub(crate) room_bytes_wanted: i64,
    pub(crate) ready_segments_max: usize,
    pub(crate) payload_bytes_max: usize,
    pub(crate) frame_bytes_max: u64,
    pub(crate) backlog_max: u64,
    pub(crate) upkeep: Arc<Bell>,
    pub(crate) metrics: TopicMetrics,
    /// Rings when the committer has ended.
    pub(crate) ended: Notify,
    pub(crate) has_ended: AtomicBool,
}

/// How far a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Everything through here is finished.
    pub(crate) low: u64,
    /// How many records are finished, counted from the log's first.
    pub(crate) done: u64,
    /// Whether this process holds it, and so knows best.
    pub(crate) held: bool,
}

/// Segment files that are ready, oldest number first.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) ready: VecDeque<(u64, u64)>,
    pub(crate) next_number: u64,
}

impl fmt::Debug for TopicShared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Topic").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A topic of a disk queue.
#[derive(Debug, Clone)]
pub struct DiskTopic {
    pub(crate) shared: Arc<TopicShared>,
}

/// Room for one record of a disk log.
#[derive(Debug)]
pub struct DiskPermit {
    shared: Arc<TopicShared>,
    words: u64,
    payload_bytes: usize,
}

/// An append to a disk log.
#[derive(Debug)]
pub struct DiskAppend {
    shared: Arc<TopicShared>,
    outcome: Result<u64, AppendError>,
    started: Option<Instant>,
}

impl DiskTopic {
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn try_permit(&self, payload_bytes: usize) -> Result<DiskPermit, Refused> {
        let Some(own) = &self.shared.own else { return Err(Refused::Closed) };
        own.try_permit(&self.shared, payload_bytes).inspect_err(|_| {
            own.metrics.refused.inc();
        })
    }

    pub(crate) fn append(&self, permit: DiskPermit, record: NewRecord<'_>) -> DiskAppend {
        let shared = Arc::clone(&permit.shared);
        let Some(own) = &shared.own else {
            drop(permit);
            return DiskAppend { shared, outcome: Err(AppendError::Closed), started: None };
        };
        let outcome = own.append((self.shared.now)(), permit, &record);
        let measured = outcome.is_ok_and(|sequence| sequence.is_multiple_of(MEASURE_EVERY));
        DiskAppend { shared, outcome, started: measured.then(Instant::now) }
    }

    pub(crate) fn state(&self) -> TopicState {
        let Some(own) = &self.shared.own else { return TopicState::Closed };
        if own.watermark.failed() {
            TopicState::Poisoned
        } else if own.closed.load(Ordering::Acquire) {
            TopicState::Closed
        } else if own.gone.load(Ordering::Relaxed)
            || own.backlog() >= own.backlog_max
            || own.room_bytes.load(Ordering::Relaxed) < own.charge_max() + own.reserve_bytes
        {
            TopicState::Full
        } else if own.is_stalled() {
            TopicState::Stalled
        } else {
            TopicState::Writable
        }
    }

    pub(crate) fn end(&self) -> Option<Position> {
        Some(self.shared.durable()).filter(|durable| *durable > 0).map(Position)
    }

    pub(crate) fn group(&self, name: &str) -> Result<DiskGroup, QueueError> {
        DiskGroup::hold(&self.shared, name)
    }

    pub(crate) fn groups(&self) -> Result<Vec<String>, QueueError> {
        self.shared.group_names()
    }

    pub(crate) fn drop_group(&self, name: &str) -> Result<(), QueueError> {
        let held = DiskGroup::hold_existing(&self.shared, name)?;
        let directory = self.shared.group_directory(name);
        // The lock file goes with the directory; it is held until then.
        self.shared.files.storage.remove_directory(&directory).map_err(io("remove", &directory))?;
        drop(held);
        self.shared.groups.lock().remove(name);
        self.shared.publish_slowest();
        if let Some(own) = &self.shared.own {
            own.upkeep.ring();
        }
        Ok(())
    }

    pub(crate) fn committed(&self, group: &str) -> Result<Option<Position>, QueueError> {
        let low = self.shared.standing(group)?.low;
        Ok((low > 0).then_some(Position(low)))
    }

    pub(crate) fn lag(&self, group: &str) -> Result<Lag, QueueError> {
        let standing = self.shared.standing(group)?;
        self.shared.lag(standing)
    }

    pub(crate) fn read(&self, after: Option<Position>, max: usize) -> Result<Vec<Message>, QueueError> {
        let first = after.map_or(1, |position| position.0 + 1);
        let mut reader = Reader::new(Arc::clone(&self.shared.files), first);
        let durable = self.shared.durable();
        let mut messages = Vec::new();
        while messages.len() < max {
            match reader.read(durable)? {
                Some(frame) => messages.push(frame.to_message(1)),
                None => break,
            }
        }
        Ok(messages)
    }

    pub(crate) fn dead_letters(
        &self,
        group: &str,
        after: Option<Position>,
        max: usize,
    ) -> Result<Vec<super::DeadLetter>, QueueError> {
        super::dead::letters(&self.shared, group, after, max)
    }

    pub(crate) fn position_before(&self, unix_ms: u64) -> Result<Option<Position>, QueueError> {
        self.shared.files.refresh()?;
        // The last indexed batch of an earlier time, then on from there batch by batch.
        let segments = self.shared.files.segments.read().clone();
        let mut found = None;
        for segment in &segments {
            for (at, entry) in segment.index.iter().enumerate() {
                if entry.written_at_ms < unix_ms {
                    found = Some((segment, at));
                }
            }
        }
        let Some((segment, at)) = found else { return Ok(None) };
        let mut place = segment.place(segment.index[at].offset);
        let mut buffer = Vec::new();
        let mut last = segment.index[at].sequence.saturating_sub(1);
        while let Ok(header) = self.shared.files.read_batch(&place, &mut buffer)? {
            if header.written_at_ms >= unix_ms {
                break;
            }
            last = header.next_sequence() - 1;
            place.offset += header.padded_bytes();
        }
        let last = last.min(self.shared.durable());
        Ok((last > 0).then_some(Position(last)))
    }
}

impl OwnTopic {
    fn try_permit(&self, shared: &Arc<TopicShared>, payload_bytes: usize) -> Result<DiskPermit, Refused> {
        if self.watermark.failed() {
            return Err(Refused::Poisoned);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Refused::Closed);
        }
        if self.gone.load(Ordering::Relaxed) {
            return Err(Refused::Gone);
        }
        if payload_bytes == 0 || payload_bytes > self.payload_bytes_max {
            return Err(Refused::PayloadSize);
        }
        let words = format::frame_words(KEY_BYTES_MAX + TAG_BYTES_MAX, payload_bytes);
        self.reserve(shared, words, payload_bytes, self.backlog_max, self.reserve_bytes)
    }

    /// Room for the copy of a record that is in the log already: its backlog does not grow, and the reserve is for it.
    pub(crate) fn permit_for_copy(
        &self,
        shared: &Arc<TopicShared>,
        copy: &NewRecord<'_>,
    ) -> Result<DiskPermit, Refused> {
        if self.closed.load(Ordering::Acquire) || self.gone.load(Ordering::Relaxed) {
            return Err(Refused::Closed);
        }
        let prefix = copy.key.len() + copy.tag.len() + SOURCE_BYTES;
        let words = format::frame_words(prefix, copy.payload.len());
        self.reserve(shared, words, copy.payload.len(), u64::MAX, 0)
    }

    /// Takes room in ring, backlog and prepared segments, of which it leaves `reserve_bytes`.
    fn reserve(
        &self,
        shared: &Arc<TopicShared>,
        words: u64,
        payload_bytes: usize,
        backlog_max: u64,
        reserve_bytes: i64,
    ) -> Result<DiskPermit, Refused> {
        let held = self.ring.try_reserve(words).ok_or(Refused::RingFull)?;
        let backlog =
            (self.watermark.durable() + held).saturating_sub(self.least_done.load(Ordering::Relaxed));
        if backlog > backlog_max {
            self.ring.give_back(1, words);
            self.upkeep.ring();
            return Err(Refused::BacklogFull);
        }
        let charge = charge(words);
        let taken = self.room_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
            (room >= charge + reserve_bytes).then_some(room - charge)
        });
        match taken {
            Err(_) => {
                self.ring.give_back(1, words);
                self.upkeep.ring();
                Err(Refused::DiskFull)
            }
            Ok(room) => {
                if self.wants_segment(room - charge) && !self.wants_segment(room) {
                    self.upkeep.ring();
                }
                Ok(DiskPermit { shared: Arc::clone(shared), words, payload_bytes })
            }
        }
    }

    fn append(&self, now_ms: u64, permit: DiskPermit, record: &NewRecord<'_>) -> Result<u64, AppendError> {
        let fits = !record.payload.is_empty()
            && record.payload.len() <= permit.payload_bytes
            && record.key.len() <= KEY_BYTES_MAX
            && record.tag.len() <= TAG_BYTES_MAX;
        if !fits {
            return Err(AppendError::RecordSize);
        }
        failpoint::hit("queue.append");
        self.claim(now_ms, permit, record, None)
    }

    /// Appends the copy of a record, with its first times.
    pub(crate) fn append_copy(
        &self,
        appended_at_ms: u64,
        permit: DiskPermit,
        record: &NewRecord<'_>,
        source: u64,
    ) -> Result<u64, AppendError> {
        self.claim(appended_at_ms, permit, record, Some(source))
    }

    fn claim(
        &self,
        appended_at_ms: u64,
        mut permit: DiskPermit,
        record: &NewRecord<'_>,
        source: Option<u64>,
    ) -> Result<u64, AppendError> {
        let prefix = record.key.len() + record.tag.len() + source.map_or(0, |_| SOURCE_BYTES);
        let words = format::frame_words(prefix, record.payload.len());
        let surplus = permit.words - words;
        // From here on the claim accounts for the permit's room.
        permit.words = 0;
        let claim = self.ring.claim(words, format::padding_word(words));
        if surplus > 0 {
            self.ring.give_back(0, surplus);
            self.room_bytes.fetch_add((surplus * 8) as i64, Ordering::Relaxed);
        }
        let mut claim = claim.ok_or(AppendError::Closed)?;
        let sequence = self.base + claim.sequence();
        let first = format::encode_frame(record, appended_at_ms, source, |word| claim.push(word));
        claim.commit(first);
        Ok(sequence)
    }

    /// Whether a further segment is to be made when so much room is left.
    pub(crate) fn wants_segment(&self, room_bytes: i64) -> bool {
        room_bytes < self.room_bytes_wanted
    }

    /// A batch begins, or has ended.
    pub(crate) fn note_batch(&self, is_under_way: bool) {
        let since_ms = if is_under_way { self.age_ms() + 1 } else { 0 };
        self.batch_since_ms.store(since_ms, Ordering::Relaxed);
    }

    fn is_stalled(&self) -> bool {
        let since_ms = self.batch_since_ms.load(Ordering::Relaxed);
        since_ms > 0 && self.age_ms().saturating_sub(since_ms) > STALLED_AFTER_MS
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    pub(crate) fn charge_max(&self) -> i64 {
        charge(self.frame_bytes_max / 8)
    }

    fn backlog(&self) -> u64 {
        self.watermark.durable().saturating_sub(self.least_done.load(Ordering::Relaxed))
    }
}

impl Standing {
    pub(crate) fn of(progress: &Progress, held: bool) -> Self {
        Self { low: progress.low(), done: progress.done(), held }
    }
}

/// Bytes of prepared disk that a record of so many words may cost.
pub(crate) fn charge(words: u64) -> i64 {
    (words * 8 + BATCH_OVERHEAD_MAX) as i64
}

impl DiskPermit {
    pub(crate) fn bytes(&self) -> u64 {
        self.words * 8
    }
}

impl Drop for DiskPermit {
    fn drop(&mut self) {
        if self.words > 0
            && let Some(own) = &self.shared.own
        {
            own.ring.give_back(1, self.words);
            own.room_bytes.fetch_add(charge(self.words), Ordering::Relaxed);
        }
    }
}

impl Future for DiskAppend {
    type Output = Result<Position, AppendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (sequence, Some(own)) = (self.outcome?, &self.shared.own) else {
            return Poll::Ready(Err(AppendError::Closed));
        };
        let Poll::Ready(durable) = own.watermark.poll(sequence, context) else {
            return Poll::Pending;
        };
        if let Some(started) = self.started {
            own.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        }
        Poll::Ready(if durable { Ok(Position(sequence)) } else { Err(AppendError::Uncertain) })
    }
}

impl TopicShared {
    /// The newest sequence that readers may see.
    pub(crate) fn durable(&self) -> u64 {
        match (&self.own, &self.mark) {
            (Some(own), _) => own.watermark.durable(),
            (None, Some(mark)) => mark.durable(),
            (None, None) => 0,
        }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.files.storage
    }

    pub(crate) fn groups_directory(&self) -> PathBuf {
        self.directory.join("groups")
    }

    pub(crate) fn group_directory(&self, name: &str) -> PathBuf {
        self.groups_directory().join(name)
    }

    /// The lock that is held while a group begins or a segment goes.
    pub(crate) fn births(&self) -> PathBuf {
        self.directory.join("births")
    }

    pub(crate) fn group_names(&self) -> Result<Vec<String>, QueueError> {
        let directory = self.groups_directory();
        let mut names = self.storage().list(&directory).map_err(io("list", &directory))?;
        // A directory without its second slot is a group whose creation a crash cut off.
        names.retain(|name| {
            let slot = directory.join(name).join("offset.1");
            self.storage().exists(&slot).unwrap_or(true)
        });
        Ok(names)
    }

    /// How far a group is: as its holder knows if that is us, else as its files say.
    pub(crate) fn standing(&self, group: &str) -> Result<Standing, QueueError> {
        valid_name(group)?;
        let known = self.groups.lock().get(group).copied();
        if let Some(held) = known.filter(|known| known.held) {
            return Ok(held);
        }
        let directory = self.group_directory(group);
        if !self.storage().exists(&directory.join("offset.1")).map_err(io("look for", &directory))? {
            return Err(QueueError::UnknownGroup { topic: self.name.clone(), group: group.to_owned() });
        }
        let progress = offsets::load(self.storage(), &directory, self.files.log_id)?;
        Ok(Standing::of(&progress, false))
    }

    pub(crate) fn lag(&self, standing: Standing) -> Result<Lag, QueueError> {
        let durable = self.durable();
        let records = durable.saturating_sub(standing.done);
        if records == 0 {
            return Ok(Lag::default());
        }
        let mut reader = Reader::new(Arc::clone(&self.files), standing.low + 1);
        let appended_at_ms = reader.read(durable)?.map(|frame| frame.appended_at_ms);
        Ok(Lag { records, age_ms: appended_at_ms.map_or(0, |at| (self.now)().saturating_sub(at)) })
    }

    /// Remembers how far a group is; what it is past may be recycled.
    pub(crate) fn note_group(&self, name: &str, standing: Standing) {
        {
            let mut groups = self.groups.lock();
            match groups.get_mut(name) {
                Some(known) => *known = standing,
                None => _ = groups.insert(name.to_owned(), standing),
            }
        }
        self.publish_slowest();
    }

    pub(crate) fn publish_slowest(&self) {
        let Some(own) = &self.own else { return };
        let (slowest, least_done) = {
            let groups = self.groups.lock();
            let slowest = groups.values().map(|standing| standing.low).min();
            (slowest, groups.values().map(|standing| standing.done).min())
        };
        let slowest = slowest.unwrap_or_else(|| self.files.oldest().map_or(0, |oldest| oldest - 1));
        own.slowest.store(slowest, Ordering::Relaxed);
        own.least_done.store(least_done.unwrap_or(slowest), Ordering::Relaxed);
        own.metrics.backlog.set(own.backlog() as i64);
        // The oldest segment is done with: its room can be used again.
        let second = self.files.segments.read().get(1).map(|segment| segment.first_sequence);
        if second.is_some_and(|first| first <= slowest + 1) {
            own.upkeep.ring();
        }
    }
}
