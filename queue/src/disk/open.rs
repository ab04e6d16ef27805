//! Opening a topic: bringing its log back as the owner, or attaching to another process's.
//!
//! ```text
//! directory/
//!   floodgate-queue      identity: magic, version, sync method, CRC32C, instance; deployment and opening, once it is tied
//!   lock                 held by the owner
//!   TOPIC/
//!     topic              identity: magic, version, CRC32C, log id
//!     mark               the page shared with consumers in other processes
//!     births             held while a group begins or a segment goes
//!     log/NUMBER.seg     segments, numbered in hexadecimal
//!     groups/GROUP/      lock, offset.0, offset.1, dead/NUMBER.seg
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bell::Bell;
use super::committer::Committer;
use super::files::{LogFiles, io};
use super::format;
use super::identity::{Identity, TOPIC_MAGIC, read_identity, write_identity};
use super::keeping::Keeping;
use super::offsets;
use super::options::DiskOptions;
use super::recovery::{Recovered, recover};
use super::shared::{OwnTopic, Prepared, Standing, TopicShared, charge};
use super::watermark::Watermark;
use super::writer::{self, Writer, promised_bytes, settle_tail};
use crate::metrics::QueueMetrics;
use crate::port::{KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, QueueError, TAG_BYTES_MAX};
use crate::ring::Ring;
use crate::storage::{Lock, SharedMark, Storage, SyncMethod};

/// Largest body of one batch, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The most that [`DiskOptions::in_flight_max`] raises a topic's ring to.
const RING_BYTES_MAX: usize = 256 << 20;

/// The most that [`DiskOptions::in_flight_max`] raises a topic's ready segments to.
const READY_BYTES_MAX: u64 = 1 << 30;

/// Segments kept ready at least, if groups give back so many.
const READY_SEGMENTS: usize = 4;

/// Smallest ring bytes for one record: bounds the waiters' slots.
const RING_BYTES_A_RECORD: usize = 128;

/// Opens a topic as its owner: creates or recovers it.
///
/// A crash at any point leaves either no topic file, and the creation begins anew, or a log that recovers again: nothing
/// is written into old segments, and the new epoch's first batch goes to a segment number never used before.
pub(super) fn open_topic(
    options: &DiskOptions,
    name: &str,
    method: SyncMethod,
    metrics: &QueueMetrics,
    (upkeep, tied): (&Arc<Bell>, &Arc<AtomicBool>),
    lock: Option<Arc<Lock>>,
) -> Result<(Arc<TopicShared>, Committer), QueueError> {
    let storage = &options.storage;
    let directory = options.directory.join(name);
    let log = directory.join("log");
    for path in [&log, &directory.join("groups")] {
        storage.create_directory(path).map_err(io("create", path))?;
    }
    let identity_path = directory.join("topic");
    let log_id = match read_identity(storage, &identity_path, TOPIC_MAGIC)? {
        Some(identity) => identity.id,
        None => {
            let identity = Identity { id: (options.random)(), method, tie: None };
            write_identity(storage, &identity_path, TOPIC_MAGIC, &identity)?;
            storage.sync_directory(&options.directory).map_err(io("sync", &options.directory))?;
            identity.id
        }
    };
    for draft in storage.list(&log).map_err(io("list", &log))?.iter().filter(|name| name.ends_with(".draft"))
    {
        storage.remove(&log.join(draft)).map_err(io("remove", &log))?;
    }
    let files = Arc::new(LogFiles::new(storage.clone(), log, log_id, false));
    let recovered = recover(&files, finished_by_all(storage, &directory.join("groups"), log_id))?;
    settle_tail(&files, &recovered)?;
    let durable = recovered.next_sequence - 1;
    let mark = if storage.is_real() {
        let path = directory.join("mark");
        let (mark, before) = SharedMark::own(&path, log_id).map_err(io("map", &path))?;
        recovered.check_acknowledged(&files, before.unwrap_or(0))?;
        Some(Arc::new(mark))
    } else {
        None
    };

    let payload_bytes_max = PAYLOAD_BYTES_MAX.min(options.segment_bytes as usize / 8);
    let prefix_bytes_max = KEY_BYTES_MAX + TAG_BYTES_MAX + format::SOURCE_BYTES;
    let frame_bytes_max = 8 * format::frame_words(prefix_bytes_max, payload_bytes_max);
    let frame_words = format::frame_words(KEY_BYTES_MAX + TAG_BYTES_MAX, options.in_flight_bytes.max(1));
    let in_flight = options.in_flight_max.saturating_mul(8 * frame_words as usize).min(RING_BYTES_MAX);
    let ring_bytes = options.ring_bytes.max(frame_bytes_max as usize).max(in_flight).next_power_of_two();
    let records_max = ring_bytes / RING_BYTES_A_RECORD;
    let body_bytes_max = BODY_BYTES_MAX.min(ring_bytes).max(frame_bytes_max as usize);
    let prepared = reclaim(&files, &recovered, options.segment_bytes)?;
    let promised = promised_bytes(options.segment_bytes, frame_bytes_max) as i64;
    let room_bytes = promised * prepared.ready.len() as i64;
    let in_flight =
        charge(frame_words).saturating_mul(options.in_flight_max as i64).min(READY_BYTES_MAX as i64);
    let rewrites = options.delayed.contains(name);
    let reserve_bytes = if rewrites { promised / 2 } else { 0 };
    // Nobody is told its records again, and its length must stay a multiple of what is unfinished.
    let keep_drained = if rewrites { Duration::ZERO } else { options.keep_drained };
    let room_bytes_wanted = promised + promised.max(in_flight) + reserve_bytes;
    let writer = Writer::new(Arc::clone(&files), method, &recovered, body_bytes_max);
    let topic = Arc::new(TopicShared {
        name: name.to_owned(),
        directory,
        files,
        method,
        now: Arc::clone(&options.now),
        arrivals: Notify::new(),
        groups: Mutex::default(),
        stamps: Mutex::default(),
        own: Some(OwnTopic {
            ring: Ring::new(ring_bytes / 8, records_max as u64),
            watermark: Watermark::new(durable, records_max),
            base: recovered.next_sequence,
            closed: AtomicBool::new(false),
            tied: Arc::clone(tied),
            disk_full: AtomicBool::new(false),
            opened: Instant::now(),
            batch_since_ms: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            room_bytes: AtomicI64::new(room_bytes),
            slowest: AtomicU64::new(0),
            least_done: AtomicU64::new(0),
            slowest_segment: AtomicU64::new(0),
            rewrites,
            reserve_bytes,
            copy_bytes_max: super::rewriting::round_bytes(ring_bytes),
            keeping: Keeping::new(keep_drained, options.keep_drained_bytes_max, (options.now)()),
            prepared: Mutex::new(prepared),
            segment_bytes: options.segment_bytes,
            room_bytes_wanted,
            ready_segments_max: READY_SEGMENTS.max((room_bytes_wanted / promised) as usize + 1),
            payload_bytes_max,
            frame_bytes_max,
            backlog_max: options.backlog_max,
            upkeep: Arc::clone(upkeep),
            metrics: metrics.topic(name),
            ended: Notify::new(),
            has_ended: AtomicBool::new(false),
        }),
        mark,
        trace: options.trace.clone(),
    });
    check_groups(&topic, &recovered)?;
    topic.publish_slowest();
    if topic.own.as_ref().is_some_and(|own| own.prepared.lock().ready.is_empty()) {
        // A full disk is no reason not to start: the backlog can still be drained.
        super::upkeep::make_segment(&topic);
    }
    let mut committer = Committer::new(Arc::clone(&topic), writer, lock);
    committer.begin()?;
    if let Some(mark) = &topic.mark {
        mark.publish(durable);
    }
    Ok((topic, committer))
}

/// Attaches to a topic that another process owns.
pub(super) fn attach_topic(
    options: &DiskOptions,
    name: &str,
    method: SyncMethod,
) -> Result<Arc<TopicShared>, QueueError> {
    let directory = options.directory.join(name);
    let unknown = || QueueError::UnknownTopic(name.to_owned());
    let identity =
        read_identity(&options.storage, &directory.join("topic"), TOPIC_MAGIC)?.ok_or_else(unknown)?;
    let path = directory.join("mark");
    let mark = match SharedMark::attach(&path, identity.id) {
        Ok(mark) => mark.ok_or_else(unknown)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(unknown()),
        Err(error) => return Err(io("map", &path)(error)),
    };
    let files = LogFiles::new(options.storage.clone(), directory.join("log"), identity.id, true);
    files.refresh()?;
    let topic = TopicShared {
        name: name.to_owned(),
        directory,
        files: Arc::new(files),
        method,
        now: Arc::clone(&options.now),
        arrivals: Notify::new(),
        groups: Mutex::default(),
        stamps: Mutex::default(),
        own: None,
        mark: Some(Arc::new(mark)),
        trace: None,
    };
    Ok(Arc::new(topic))
}

/// Gives the segments without a batch fresh numbers, so that nothing a torn batch left in them ever decodes.
fn reclaim(files: &LogFiles, recovered: &Recovered, segment_bytes: u64) -> Result<Prepared, QueueError> {
    let mut prepared = Prepared { next_number: recovered.last_number + 1, ..Prepared::default() };
    for (number, bytes) in &recovered.unused {
        let path = files.segment_path(*number);
        if *bytes == segment_bytes {
            let next = prepared.next_number;
            writer::recycle(files, *number, next).map_err(io("rename", &path))?;
            prepared.ready.push_back((next, *bytes));
            prepared.next_number += 1;
        } else {
            files.storage.remove(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(prepared)
}

/// The sequence through which every group of a log has finished, as their files say before the log is read; 0 where one cannot tell.
fn finished_by_all(storage: &Storage, groups: &Path, log_id: u64) -> u64 {
    let Ok(names) = storage.list(groups) else { return 0 };
    let low = |name: &String| {
        offsets::load(storage, &groups.join(name), log_id).map_or(0, |progress| progress.low())
    };
    names.iter().map(low).min().unwrap_or(0)
}

/// What a group has finished was acknowledged, and what it has not finished must still be there.
fn check_groups(topic: &TopicShared, recovered: &Recovered) -> Result<(), QueueError> {
    let oldest = topic.files.oldest().unwrap_or(recovered.next_sequence);
    let names = topic.group_names()?;
    if names.is_empty() && oldest > 1 {
        tracing::info!(topic = topic.name, oldest, "no group is left; records before the oldest are gone");
    }
    for name in names {
        let directory = topic.group_directory(&name);
        let lock_path = directory.join("lock");
        let progress = match topic.storage().lock(&lock_path).map_err(io("lock", &lock_path))? {
            // Nobody holds it: what its slots show may be in the page cache alone.
            Some(_held) => offsets::Slots::open(topic.storage(), &directory, topic.files.log_id, 0)?.1,
            None => offsets::load(topic.storage(), &directory, topic.files.log_id)?,
        };
        let limits = topic.limit_files(&name);
        let standing = Standing::of(&progress, limits.cut()?, limits.limit()?, false);
        let seen = progress.newest().max(standing.cut);
        recovered.check_group(&topic.files, &name, (seen, standing.passed()))?;
        topic.groups.lock().insert(name, standing);
    }
    Ok(())
}
