//! What the handles, the committer and the upkeep of one topic share. Appends nothing and reads no record but the oldest
//! unfinished one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bell::Bell;
use super::files::{LogFiles, io};
use super::format::BATCH_OVERHEAD_MAX;
use super::keeping::Keeping;
use super::limits::LimitFiles;
use super::names::valid_name;
use super::offsets;
use super::progress::Progress;
use super::reader::Reader;
use super::trace::Trace;
use super::watermark::Watermark;
use super::writer::promised_bytes;
use crate::injected::Now;
use crate::metrics::TopicMetrics;
use crate::port::{BehindMax, Lag, QueueError};
use crate::ring::Ring;
use crate::storage::{FileStamp, Lock, SharedMark, Storage, SyncMethod};

/// What of a group other processes write.
pub(crate) const GROUP_FILES: [&str; 4] = ["offset.0", "offset.1", "behind-max", "cut"];

/// How long and how often a group that begins or goes back waits for another one, or for a segment that goes.
const BIRTH_TRY_AGAIN: Duration = Duration::from_millis(2);
const BIRTH_TRIES_MAX: u32 = 1_000;

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
    /// Of groups that other processes hold, what need not be read again.
    pub(crate) stamps: Mutex<BTreeMap<String, [Option<FileStamp>; GROUP_FILES.len()]>>,
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
    /// One for all topics of the queue: whether it may append. Set once, `Release`, when its tie is durable; `try_permit` loads `Acquire`.
    pub(crate) tied: Arc<AtomicBool>,
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
    /// The sequence through which the slowest group is finished. Each move of a group stores `Relaxed`; permits load it as
    /// a bound that may be late.
    pub(crate) slowest: AtomicU64,
    /// The number of records that the group with the most unfinished ones has finished. As `slowest`.
    pub(crate) least_done: AtomicU64,
    /// The first sequence of the segment that the slowest group is in. Each move of a group swaps it, `Relaxed`: a change rings for
    /// the upkeep, which looks for itself.
    pub(crate) slowest_segment: AtomicU64,
    /// Whether the one group's holder may rewrite records that wait; see [`super::DiskOptions::delayed`].
    pub(crate) rewrites: bool,
    /// Room that permits leave to rewritten copies, which are what frees segments.
    pub(crate) reserve_bytes: i64,
    /// Bytes of records that are rewritten at once at most.
    pub(crate) copy_bytes_max: u64,
    pub(crate) keeping: Keeping,
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

/// How far one group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Everything through here is finished.
    pub(crate) low: u64,
    /// How many records need nothing of it any more, counted from the log's first: finished, or cut off.
    pub(crate) done: u64,
    /// Whether this process holds it, and so knows best.
    pub(crate) held: bool,
    /// The sequence through which it was cut off; 0: never.
    pub(crate) cut: u64,
    /// How far it may be behind; `None`: as far as it likes.
    pub(crate) behind_max: Option<BehindMax>,
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

/// Bytes of prepared disk that a record of so many words may cost.
pub(crate) fn charge(words: u64) -> i64 {
    (words * 8 + BATCH_OVERHEAD_MAX) as i64
}

impl OwnTopic {
    pub(crate) fn take_number(&self) -> u64 {
        let mut prepared = self.prepared.lock();
        prepared.next_number += 1;
        prepared.next_number - 1
    }

    /// Numbers are entered in rising order, so that the chain can be followed by them.
    pub(crate) fn add_ready(&self, number: u64, bytes: u64) {
        {
            let mut prepared = self.prepared.lock();
            let at = prepared.ready.partition_point(|(other, _)| *other < number);
            prepared.ready.insert(at, (number, bytes));
        }
        let promised = promised_bytes(bytes, self.frame_bytes_max);
        self.room_bytes.fetch_add(promised as i64, Ordering::Relaxed);
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

    pub(crate) fn is_stalled(&self) -> bool {
        let since_ms = self.batch_since_ms.load(Ordering::Relaxed);
        since_ms > 0 && self.age_ms().saturating_sub(since_ms) > STALLED_AFTER_MS
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    pub(crate) fn charge_max(&self) -> i64 {
        charge(self.frame_bytes_max / 8)
    }

    pub(crate) fn backlog(&self) -> u64 {
        self.watermark.durable().saturating_sub(self.least_done.load(Ordering::Relaxed))
    }
}

impl Standing {
    pub(crate) fn of(progress: &Progress, cut: u64, behind_max: Option<BehindMax>, held: bool) -> Self {
        Self { low: progress.low(), done: progress.done_through(cut), held, cut, behind_max }
    }

    /// The sequence through which the group needs nothing any more.
    pub(crate) fn passed(&self) -> u64 {
        self.low.max(self.cut)
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

    /// The lock that is held while a group begins, goes back or is cut off, or a segment goes.
    pub(crate) fn births(&self) -> PathBuf {
        self.directory.join("births")
    }

    /// Takes that lock. Others hold it for a rename or a few small writes.
    pub(crate) fn wait_for_births(&self) -> Result<Lock, QueueError> {
        let path = self.births();
        for _ in 0..BIRTH_TRIES_MAX {
            if let Some(lock) = self.storage().lock(&path).map_err(io("lock", &path))? {
                return Ok(lock);
            }
            std::thread::sleep(BIRTH_TRY_AGAIN);
        }
        Err(io("lock", &path)(std::io::ErrorKind::TimedOut.into()))
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
            // A cut is the owner's to make: beside it only the file tells, until the holder meets it.
            if self.own.is_some() || self.limit_files(group).cut()? == held.cut {
                return Ok(held);
            }
        }
        if !self.has_group(group)? {
            return Err(QueueError::UnknownGroup { topic: self.name.clone(), group: group.to_owned() });
        }
        self.stored(group)
    }

    /// Whether there is a group of that name: it is its second file that makes it one.
    pub(crate) fn has_group(&self, group: &str) -> Result<bool, QueueError> {
        let path = self.group_directory(group).join("offset.1");
        self.storage().exists(&path).map_err(io("look for", &path))
    }

    /// How far a group is, as its files say.
    pub(crate) fn stored(&self, group: &str) -> Result<Standing, QueueError> {
        let progress = offsets::load(self.storage(), &self.group_directory(group), self.files.log_id)?;
        let limits = self.limit_files(group);
        Ok(Standing::of(&progress, limits.cut()?, limits.limit()?, false))
    }

    /// As [`TopicShared::stored`], and durable: its holder, in another process, may be in the middle of a write, or have died there.
    pub(crate) fn settled(&self, group: &str) -> Result<Standing, QueueError> {
        let progress =
            offsets::load_settled(self.storage(), &self.group_directory(group), self.files.log_id)?;
        let limits = self.limit_files(group);
        Ok(Standing::of(&progress, limits.cut()?, limits.limit()?, false))
    }

    pub(crate) fn lag(&self, standing: Standing) -> Result<Lag, QueueError> {
        let durable = self.durable();
        let records = durable.saturating_sub(standing.done);
        if records == 0 {
            return Ok(Lag::default());
        }
        let mut reader = Reader::new(Arc::clone(&self.files), standing.passed() + 1);
        let appended_at_ms = reader.read(durable)?.map(|frame| frame.appended_at_ms);
        Ok(Lag { records, age_ms: appended_at_ms.map_or(0, |at| (self.now)().saturating_sub(at)) })
    }

    /// The files of a group's bound and cut.
    pub(crate) fn limit_files(&self, group: &str) -> LimitFiles<'_> {
        LimitFiles::new(self.storage(), self.group_directory(group), self.files.log_id)
    }

    /// Remembers how far a group that this process holds is; what it is past may be recycled.
    pub(crate) fn note_group(&self, name: &str, progress: &Progress) {
        if let Some(known) = self.groups.lock().get_mut(name) {
            *known = Standing::of(progress, known.cut, known.behind_max, true);
        }
        self.publish_slowest();
    }

    /// A group was cut off through there, durably.
    pub(crate) fn note_cut(&self, name: &str, cut: u64) {
        // What it had finished behind the cut its holder knows anyway, and the next look at its files tells.
        let done = self.stored(name).map_or(cut, |stored| stored.done);
        if let Some(known) = self.groups.lock().get_mut(name) {
            (known.cut, known.done) = (known.cut.max(cut), known.done.max(done));
        }
    }

    pub(crate) fn publish_slowest(&self) {
        let Some(own) = &self.own else { return };
        let (slowest, least_done) = {
            let groups = self.groups.lock();
            let slowest = groups.values().map(Standing::passed).min();
            (slowest, groups.values().map(|standing| standing.done).min())
        };
        let slowest = slowest.unwrap_or_else(|| self.files.oldest().map_or(0, |oldest| oldest - 1));
        own.slowest.store(slowest, Ordering::Relaxed);
        own.least_done.store(least_done.unwrap_or(slowest), Ordering::Relaxed);
        own.metrics.backlog.set(own.backlog() as i64);
        // The slowest group has left a segment, whose room may be used again.
        let begins = self.files.first_of_segment(slowest + 1);
        if own.slowest_segment.swap(begins, Ordering::Relaxed) != begins {
            own.upkeep.ring();
        }
    }
}
