//! The disk adapter of the port: one log per topic below one directory that one process owns.
//!
//! An append's way: `topic` (permit, claim in the ring) → `committer` (batch) → `writer` (disk) → `watermark` (answer).
//! A message's way: `reader` (below the watermark) → `group` → `offsets`. `open` and `recovery` bring a log back, `upkeep` makes and
//! recycles segments, `format` has the bytes.

mod committer;
mod dead;
mod drive;
mod files;
mod format;
mod group;
mod offsets;
mod open;
mod pairs;
mod progress;
mod progress_bytes;
mod reader;
mod recovery;
mod rewriting;
mod topic;
mod upkeep;
mod verify;
mod watermark;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use self::committer::{Committer, Step};
use self::drive::Bell;
use self::files::io;
use self::topic::TopicShared;
use crate::metrics::QueueMetrics;
use crate::port::QueueError;
use crate::storage::{BELL_WAIT_MAX, Lock, Storage, SyncMethod};
use crate::{Now, Random};

pub use self::committer::{BatchTrace, Trace};
pub use self::dead::DeadLetter;
pub(crate) use self::drive::block_on;
pub use self::group::DiskGroup;
pub use self::open::ProbedDisk;
pub(crate) use self::open::probe;
pub use self::topic::{DiskAppend, DiskPermit, DiskTopic};
pub(crate) use self::verify::verify;
pub use self::verify::{DamagedBatch, VerifiedLog};

/// Longest time between two rounds of upkeep, so that groups of other processes are followed.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);

/// Smallest segment, in bytes.
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// The most that [`DiskOptions::in_flight_max`] raises a topic's ring to.
const RING_BYTES_MAX: usize = 256 << 20;

/// The most that [`DiskOptions::in_flight_max`] raises a topic's ready segments to.
const READY_BYTES_MAX: u64 = 1 << 30;

/// Segments kept ready at least, if groups give back so many.
const READY_SEGMENTS: usize = 4;

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
    /// Length of a segment file, rounded up to blocks, at least 64 KiB.
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
    /// Told of every batch.
    pub trace: Option<Trace>,
    pub(crate) sync: Option<SyncMethod>,
}

impl DiskOptions {
    /// Real storage, committers in threads, 32 MiB segments, rings of 16 MiB, a backlog of ten million records.
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
            trace: None,
            sync: None,
        }
    }

    /// Has the one group of this topic, held by the process that owns the log, rewrite records that wait when they would keep old
    /// segments for themselves, so that the log is about twice as long as what is unfinished, whatever the delays.
    ///
    /// A rewritten record has a new position, which its message tells; the old one counts as finished, and `read` may show it at
    /// both. What a consumer has pulled and not finished is never rewritten. Not for topics of promises, nor with a second group:
    /// while there is one, nothing is rewritten.
    pub fn delayed(&mut self, topic: &str) {
        self.delayed.insert(topic.to_owned());
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

/// A directory of logs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DiskQueue {
    inner: Arc<Inner>,
}

struct Inner {
    options: DiskOptions,
    instance: u64,
    method: SyncMethod,
    metrics: QueueMetrics,
    upkeep: Arc<Bell>,
    /// Rings when a topic was opened or the queue closes: for [`DiskQueue::run`].
    changed: Bell,
    topics: Mutex<BTreeMap<String, Arc<TopicShared>>>,
    /// Committers that `run` has not taken yet.
    committers: Mutex<Vec<Committer>>,
    closing: Arc<AtomicBool>,
    lock: Mutex<Option<Arc<Lock>>>,
    /// The upkeep thread, which must be gone before the lock is.
    upkeep_thread: Arc<UpkeepThread>,
    foreign: bool,
}

/// Whether the upkeep thread runs: what it makes and renames is the owner's alone.
#[derive(Debug, Default)]
struct UpkeepThread {
    runs: AtomicBool,
    ended: Notify,
}

impl fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Inner").field("directory", &self.options.directory).finish_non_exhaustive()
    }
}

impl DiskQueue {
    pub(crate) fn open(mut options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        options.segment_bytes = options.segment_bytes.max(SEGMENT_BYTES_MIN).next_multiple_of(4096);
        let (storage, directory) = (&options.storage, &options.directory);
        storage.create_directory(directory).map_err(io("create", directory))?;
        let lock_path = directory.join("lock");
        let lock = storage.lock(&lock_path).map_err(io("lock", &lock_path))?;
        let lock = lock.ok_or_else(|| QueueError::InUse { directory: directory.clone() })?;
        let identity = open::identify_queue(&options)?;
        let queue = Self::build(options, identity, QueueMetrics::register(registry), Some(lock));
        for name in queue.topics()? {
            queue.topic(&name)?;
        }
        Ok(queue)
    }

    pub(crate) fn attach(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        let identity = open::identify_foreign(&options)?;
        Ok(Self::build(options, identity, QueueMetrics::register(registry), None))
    }

    fn build(
        options: DiskOptions,
        identity: open::Identity,
        metrics: QueueMetrics,
        lock: Option<Lock>,
    ) -> Self {
        let inner = Inner {
            foreign: lock.is_none(),
            options,
            instance: identity.id,
            method: identity.method,
            metrics,
            upkeep: Arc::default(),
            changed: Bell::default(),
            topics: Mutex::default(),
            committers: Mutex::default(),
            closing: Arc::default(),
            lock: Mutex::new(lock.map(Arc::new)),
            upkeep_thread: Arc::default(),
        };
        let inner = Arc::new(inner);
        if !inner.foreign && inner.options.driver == Driver::Thread {
            let upkeep = Arc::clone(&inner.upkeep);
            let thread = Arc::clone(&inner.upkeep_thread);
            thread.runs.store(true, Ordering::Release);
            let lock = inner.lock.lock().clone();
            let (closing, weak) = (Arc::clone(&inner.closing), Arc::downgrade(&inner));
            spawn("queue-upkeep", move || {
                loop {
                    drive::park_on(poll_fn(|context| upkeep.poll_rung(context)), Some(UPKEEP_EVERY));
                    if closing.load(Ordering::Acquire) {
                        break;
                    }
                    let Some(topics) = weak.upgrade().map(|inner| inner.open_topics()) else { break };
                    topics.iter().for_each(|topic| upkeep::round(topic));
                }
                drop(lock);
                thread.runs.store(false, Ordering::Release);
                thread.ended.notify_waiters();
            });
        }
        Self { inner }
    }

    pub(crate) fn instance(&self) -> u64 {
        self.inner.instance
    }

    pub(crate) fn topics(&self) -> Result<Vec<String>, QueueError> {
        let (storage, directory) = (&self.inner.options.storage, &self.inner.options.directory);
        let mut names = storage.list(directory).map_err(io("list", directory))?;
        names.retain(|name| storage.exists(&directory.join(name).join("topic")).unwrap_or(false));
        Ok(names)
    }

    pub(crate) fn topic(&self, name: &str) -> Result<DiskTopic, QueueError> {
        valid_name(name)?;
        let inner = &self.inner;
        let mut topics = inner.topics.lock();
        if let Some(shared) = topics.get(name) {
            return Ok(DiskTopic { shared: Arc::clone(shared) });
        }
        if inner.closing.load(Ordering::Acquire) {
            return Err(QueueError::Closed);
        }
        let shared = if inner.foreign {
            let shared = open::attach_topic(&inner.options, name, inner.method)?;
            listen(&shared);
            shared
        } else {
            let (shared, committer) = open::open_topic(
                &inner.options,
                name,
                inner.method,
                &inner.metrics,
                &inner.upkeep,
                inner.lock.lock().clone(),
            )?;
            match inner.options.driver {
                Driver::Thread => {
                    spawn("queue-committer", move || {
                        drive::park_on(committer.run(), None);
                    });
                }
                Driver::Driven => inner.committers.lock().push(committer),
            }
            shared
        };
        topics.insert(name.to_owned(), Arc::clone(&shared));
        inner.upkeep.ring();
        inner.changed.ring();
        Ok(DiskTopic { shared })
    }

    pub(crate) fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.inner);
        async move {
            let mut taken = Taken { inner: &inner, committers: Vec::new() };
            loop {
                let committers = &mut taken.committers;
                committers.append(&mut inner.committers.lock());
                let mut worked = false;
                committers.retain_mut(|committer| {
                    let step = committer.step();
                    worked |= step == Step::Worked;
                    step != Step::Ended
                });
                if worked {
                    // One phase a turn, so that everybody else gets in between.
                    tokio::task::yield_now().await;
                    continue;
                }
                if committers.is_empty() && inner.closing.load(Ordering::Acquire) {
                    return;
                }
                let driven = inner.options.driver == Driver::Driven;
                poll_fn(|context| {
                    let mut ready = inner.changed.poll_rung(context).is_ready();
                    if driven && inner.upkeep.poll_rung(context).is_ready() {
                        inner.open_topics().iter().for_each(|topic| upkeep::round(topic));
                        ready |= inner.upkeep.poll_rung(context).is_ready();
                    }
                    for committer in committers.iter() {
                        ready |= committer.poll_work(context).is_ready();
                    }
                    if ready { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        }
    }

    pub(crate) async fn shutdown(&self) {
        self.settle().await;
        self.inner.lock.lock().take();
    }

    pub(crate) async fn settle(&self) {
        let inner = &self.inner;
        inner.close();
        for topic in inner.open_topics() {
            let Some(own) = &topic.own else { continue };
            loop {
                let ended = own.ended.notified();
                let mut ended = std::pin::pin!(ended);
                ended.as_mut().enable();
                if own.has_ended.load(Ordering::Acquire) {
                    break;
                }
                ended.await;
            }
            topic.arrivals.notify_waiters();
        }
        let thread = &inner.upkeep_thread;
        loop {
            let ended = thread.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            if !thread.runs.load(Ordering::Acquire) {
                break;
            }
            ended.await;
        }
    }
}

/// Committers that one `run` has taken; another `run` may go on with them when it is dropped.
struct Taken<'a> {
    inner: &'a Inner,
    committers: Vec<Committer>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.inner.committers.lock().append(&mut self.committers);
    }
}

impl Inner {
    fn open_topics(&self) -> Vec<Arc<TopicShared>> {
        self.topics.lock().values().cloned().collect()
    }

    /// Has committers settle what is in the rings and end.
    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        for topic in self.topics.lock().values() {
            if let Some(own) = &topic.own {
                own.closed.store(true, Ordering::Release);
                own.ring.close();
            }
        }
        self.upkeep.ring();
        self.changed.ring();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Passes the owner's bell on to this process's consumers, for as long as there are handles on the topic.
fn listen(topic: &Arc<TopicShared>) {
    let Some(mark) = topic.mark.clone() else { return };
    let weak = Arc::downgrade(topic);
    spawn("queue-listener", move || {
        let mut seen = mark.durable();
        loop {
            mark.wait(seen, BELL_WAIT_MAX);
            let Some(topic) = weak.upgrade() else { return };
            let durable = mark.durable();
            if durable != seen {
                seen = durable;
                topic.arrivals.notify_waiters();
            }
        }
    });
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    assert!(spawned.is_ok(), "the system has no thread for {name}: {spawned:?}");
}

/// What the fuzzer and the random test feed: decodes bytes as a batch with its frames, as a group's checkpoint and as a batch of its
/// journal, with the checksum as it is and with one that fits, so that what lies behind it is reached. Panics are the only failure.
#[cfg(feature = "simulation")]
pub fn decode_anything(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    for sound in [false, true] {
        if sound && bytes.len() >= 48 {
            let body = bytes.len().min(1 << 16) as u32 / 8 * 8;
            sealed[..8].copy_from_slice(b"FLGBATCH");
            sealed[8..12].copy_from_slice(&[1, 0, 96, 0]);
            if let Some(length) = sealed.get_mut(76..80) {
                length.copy_from_slice(&(body.saturating_sub(96)).to_le_bytes());
            }
            sealed[12..16].fill(0);
            let end = (body as usize).max(96).min(sealed.len());
            let crc = crc32c::crc32c(&sealed[..end]);
            sealed[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(header) = format::BatchHeader::check(&sealed) {
            let body = &sealed[format::HEADER_BYTES..format::HEADER_BYTES + header.body_bytes as usize];
            for (sequence, at) in format::decode_frames(&header, body).unwrap_or_default() {
                format::decode_frame(sequence, body, at);
            }
        }
    }
    progress_bytes::decode_anything(bytes);
}

/// Names of topics and groups become directories.
pub(crate) fn valid_name(name: &str) -> Result<(), QueueError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !matches!(name, "lock" | "floodgate-queue");
    if valid { Ok(()) } else { Err(QueueError::InvalidName(name.to_owned())) }
}
