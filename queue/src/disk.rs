//! The disk adapter of the port: one log per topic below one directory that one process owns.
//!
//! An append's way: `topic` (permit, claim in the ring) → `committer` (batch) → `writer` (disk) → `watermark` (answer).
//! A message's way: `reader` (below the watermark) → `group` → `offsets`. `open` and `recovery` bring a log back, `upkeep` makes and
//! recycles segments, `format` has the bytes.

mod bell;
mod committer;
mod cut;
mod dead_letters;
mod files;
mod format;
mod group;
mod identity;
mod keeping;
mod limits;
mod names;
mod offsets;
mod open;
mod options;
mod others;
mod pairs;
mod probe;
mod progress;
mod progress_bytes;
mod reader;
mod recovery;
mod reset;
mod retention;
mod rewriting;
mod shared;
mod topic;
mod trace;
mod upkeep;
mod verify;
mod watermark;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use self::bell::Bell;
use self::committer::{Committer, Step};
use self::files::io;
use self::identity::{Identity, identify_foreign, identify_queue, read_tie, write_tie};
use self::names::valid_name;
use self::shared::TopicShared;
use crate::metrics::QueueMetrics;
use crate::port::{Opening, QueueError, Tie};
use crate::storage::{BELL_WAIT_MAX, Lock, SyncMethod};

pub(crate) use self::bell::block_on;
pub use self::group::DiskGroup;
pub use self::options::{DiskOptions, Driver};
pub use self::probe::ProbedDisk;
pub(crate) use self::probe::probe;
pub use self::topic::{DiskAppend, DiskPermit, DiskTopic};
pub use self::trace::{BatchTrace, Trace};
pub(crate) use self::verify::verify;
pub use self::verify::{DamagedBatch, VerifiedLog};

/// Longest time between two rounds of upkeep, so that groups of other processes are followed.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);

/// Smallest segment, in bytes.
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

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
    /// See `OwnTopic::tied`.
    tied: Arc<AtomicBool>,
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
        let lock = Self::lock(&options)?;
        let identity = identify_queue(&options)?;
        let queue = Self::build(options, identity, QueueMetrics::register(registry), Some(lock));
        for name in queue.topics()? {
            queue.topic(&name)?;
        }
        Ok(queue)
    }

    /// Its metrics are shown by the owner.
    pub(crate) fn attach(options: DiskOptions) -> Result<Self, QueueError> {
        let identity = identify_foreign(&options)?;
        Ok(Self::build(options, identity, QueueMetrics::register(&mut Registry::default()), None))
    }

    fn build(options: DiskOptions, identity: Identity, metrics: QueueMetrics, lock: Option<Lock>) -> Self {
        let inner = Inner {
            foreign: lock.is_none(),
            tied: Arc::new(AtomicBool::new(!options.tied)),
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
                    bell::park_on(poll_fn(|context| upkeep.poll_rung(context)), Some(UPKEEP_EVERY));
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

    pub(crate) fn tie(&self) -> Result<Option<Tie>, QueueError> {
        read_tie(&self.inner.options)
    }

    pub(crate) fn tie_to(&self, deployment: u128, generation: u64) -> Result<Opening, QueueError> {
        let inner = &self.inner;
        // Held until it is written: a shutdown gives the lock to the next owner, who ties the log anew.
        let lock = inner.lock.lock();
        if lock.is_none() {
            return Err(if inner.foreign { QueueError::NotOwner } else { QueueError::Closed });
        }
        let opening = Opening { generation, nonce: (inner.options.random)() };
        write_tie(&inner.options, Tie { deployment, opening })?;
        inner.tied.store(true, Ordering::Release);
        Ok(opening)
    }

    /// See [`crate::operator::accept`].
    pub(crate) fn accept(options: &DiskOptions, tie: Tie) -> Result<(), QueueError> {
        let _lock = Self::lock(options)?;
        write_tie(options, tie)
    }

    fn lock(options: &DiskOptions) -> Result<Lock, QueueError> {
        let path = options.directory.join("lock");
        let lock = options.storage.lock(&path).map_err(io("lock", &path))?;
        lock.ok_or_else(|| QueueError::InUse { directory: options.directory.clone() })
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
                &inner.options.of_topic(name),
                name,
                inner.method,
                &inner.metrics,
                (&inner.upkeep, &inner.tied),
                inner.lock.lock().clone(),
            )?;
            match inner.options.driver {
                Driver::Thread => {
                    spawn("queue-committer", move || {
                        bell::park_on(committer.run(), None);
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
