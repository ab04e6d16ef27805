//! How a disk queue is opened. Opens nothing.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::trace::Trace;
use crate::injected::{Now, Random};
use crate::storage::{Storage, SyncMethod};

/// Longest segment of a topic that is [`DiskOptions::delayed`], in bytes. Its log is to be a multiple of what is unfinished, and the
/// segments that are kept ready, and those that are rewritten next, count in full however few records wait.
const DELAYED_SEGMENT_BYTES_MAX: u64 = 4 << 20;

/// Who runs the committers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A thread per topic and one for upkeep, started when the topic is first opened.
    Thread,
    /// Nobody but [`crate::Queue::run`], polled by its owner.
    Driven,
}

/// How to open a disk queue.
#[derive(Clone)]
pub struct DiskOptions {
    /// Where it lives; created if absent.
    pub directory: PathBuf,
    /// The wall clock: time stamps, `deliver_at_ms`, ages.
    pub now: Now,
    /// Draws the ids of a new directory and of new topics.
    pub random: Random,
    /// The disk.
    pub storage: Storage,
    /// Who runs the committers.
    pub driver: Driver,
    /// Length of a segment file, rounded up to blocks, at least 64 KiB. At most 4 MiB where a topic is [`DiskOptions::delayed`].
    pub segment_bytes: u64,
    /// Memory for records that are not durable yet, a topic; rounded up to a power of two.
    pub ring_bytes: usize,
    /// So many permits at once always find room in a topic's ring and on its prepared segments, each for a payload of
    /// `in_flight_bytes`: `ring_bytes` is raised to it (at most to 256 MiB), and so are the segments kept ready (at most 1 GiB).
    /// 0: what the ring and two segments happen to hold.
    pub in_flight_max: usize,
    /// See `in_flight_max`.
    pub in_flight_bytes: usize,
    /// Records that the slowest group may be behind before permits are refused.
    pub backlog_max: u64,
    /// Topics whose records may be rewritten to a new position while they wait; see [`DiskOptions::delayed`].
    pub(crate) delayed: BTreeSet<String>,
    /// How long records stay after all groups have finished them; not at all on a topic that is [`DiskOptions::delayed`].
    pub keep_drained: Duration,
    /// Bytes of segments that stay for it at most, a topic; then the oldest go earlier. On a full disk they do so too.
    pub keep_drained_bytes_max: u64,
    /// Whether permits are refused until [`crate::Queue::tie_to`] has written this opening into the log: nothing is then promised
    /// by a log of which nobody knows to whom it belongs.
    pub tied: bool,
    /// Told of every batch.
    pub trace: Option<Trace>,
    pub(crate) sync: Option<SyncMethod>,
}

impl DiskOptions {
    /// Real storage, committers in threads, 32 MiB segments, rings of 16 MiB, a backlog of ten million records, and nothing
    /// that is drained.
    pub fn new(directory: impl Into<PathBuf>, now: Now) -> Self {
        Self {
            directory: directory.into(),
            now,
            random: Arc::new(random_from_system),
            storage: Storage::Real,
            driver: Driver::Thread,
            segment_bytes: 32 << 20,
            ring_bytes: 16 << 20,
            in_flight_max: 0,
            in_flight_bytes: 0,
            backlog_max: 10_000_000,
            delayed: BTreeSet::new(),
            keep_drained: Duration::ZERO,
            keep_drained_bytes_max: 1 << 30,
            tied: false,
            trace: None,
            sync: None,
        }
    }

    /// Has the one group of this topic, held by the process that owns the log, rewrite records that wait when they would keep old
    /// segments for themselves, so that the log is about twice as long as what is unfinished, whatever the delays.
    ///
    /// A rewritten record has a new position, which its message tells; the old one counts as finished, and `read` may show it at
    /// both. What a consumer has pulled and not finished is never rewritten. Not for topics of promises, nor with a second group:
    /// while there is one, nothing is rewritten. What is drained does not stay: [`DiskOptions::keep_drained`] counts as zero here.
    pub fn delayed(&mut self, topic: &str) {
        self.delayed.insert(topic.to_owned());
    }

    /// How that topic is opened.
    pub(crate) fn of_topic(&self, topic: &str) -> Cow<'_, Self> {
        let mut options = Cow::Borrowed(self);
        if self.delayed.contains(topic) && self.segment_bytes > DELAYED_SEGMENT_BYTES_MAX {
            options.to_mut().segment_bytes = DELAYED_SEGMENT_BYTES_MAX;
        }
        options
    }
}

impl fmt::Debug for DiskOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DiskOptions").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Fresh bits from the system; ids need to differ, not to be secret, so that the clock's address serves where there are none.
fn random_from_system() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(std::process::id())
    })
}
