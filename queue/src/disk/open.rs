//! Opening: whose directory it is, who may use it, and bringing a topic's log back.
//!
//! ```text
//! directory/
//!   floodgate-queue      identity: magic, version, sync method, CRC32C, instance
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

use super::committer::Committer;
use super::drive::Bell;
use super::files::{LogFiles, corrupt, io};
use super::format::{self, FORMAT_VERSION, read_u32, read_u64};
use super::recovery::{Recovered, recover};
use super::topic::{OwnTopic, Prepared, Standing, TopicShared, charge};
use super::watermark::Watermark;
use super::writer::{self, Writer, promised_bytes};
use super::{DiskOptions, READY_BYTES_MAX, READY_SEGMENTS, RING_BYTES_MAX, offsets};
use crate::failpoint;
use crate::metrics::QueueMetrics;
use crate::port::{KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, QueueError, TAG_BYTES_MAX};
use crate::ring::Ring;
use crate::storage::{Access, AlignedBuffer, BLOCK_BYTES, Lock, SharedMark, Storage, SyncMethod};

const QUEUE_MAGIC: &[u8; 8] = b"FLGQUEUE";
pub(super) const TOPIC_MAGIC: &[u8; 8] = b"FLGTOPIC";
const IDENTITY_BYTES: usize = 24;

/// Largest body of one batch, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Smallest ring bytes for one record: bounds the waiters' slots.
const RING_BYTES_A_RECORD: usize = 128;

/// Writes of each size and method in a probe.
const PROBE_ROUNDS: usize = 24;

/// Sizes of the writes of a probe: the smallest batch, and one of a spike.
const PROBE_BYTES: [usize; 2] = [BLOCK_BYTES, 128 * 1024];

/// What an identity file says.
pub(super) struct Identity {
    pub(super) id: u64,
    pub(super) method: SyncMethod,
}

pub(super) fn write_identity(
    storage: &Storage,
    path: &Path,
    magic: &[u8; 8],
    identity: &Identity,
) -> Result<(), QueueError> {
    let mut bytes = [0; IDENTITY_BYTES];
    bytes[..8].copy_from_slice(magic);
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[10] = u8::from(identity.method == SyncMethod::DirectWrite);
    bytes[16..24].copy_from_slice(&identity.id.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    storage.replace(path, &bytes).map_err(io("create", path))
}

pub(super) fn read_identity(
    storage: &Storage,
    path: &Path,
    magic: &[u8; 8],
) -> Result<Option<Identity>, QueueError> {
    if !storage.exists(path).map_err(io("look for", path))? {
        return Ok(None);
    }
    let bytes = storage.read(path).map_err(io("read", path))?;
    if bytes.len() < IDENTITY_BYTES || &bytes[..8] != magic {
        let found = String::from("its identity file is of something else");
        return Err(QueueError::Foreign { path: path.to_path_buf(), found });
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
    if crc32c::crc32c_append(crc, &bytes[16..IDENTITY_BYTES]) != read_u32(&bytes, 12) {
        return Err(corrupt(path, 0, "an identity whose checksum does not match"));
    }
    let found = u16::from_le_bytes([bytes[8], bytes[9]]);
    if found != FORMAT_VERSION {
        return Err(QueueError::OtherVersion { path: path.to_path_buf(), found, supported: FORMAT_VERSION });
    }
    let method = if bytes[10] == 1 { SyncMethod::DirectWrite } else { SyncMethod::DataSync };
    Ok(Some(Identity { id: read_u64(&bytes, 16), method }))
}

/// The directory's identity; made, with the sync method that this disk is faster with, in an empty directory.
pub(super) fn identify_queue(options: &DiskOptions) -> Result<Identity, QueueError> {
    let (storage, directory) = (&options.storage, options.directory.as_path());
    let path = directory.join("floodgate-queue");
    if let Some(identity) = read_identity(storage, &path, QUEUE_MAGIC)? {
        return Ok(identity);
    }
    let names = storage.list(directory).map_err(io("list", directory))?;
    if let Some(other) = names.iter().find(|name| *name != "lock" && !name.ends_with(".draft")) {
        let found = format!("it has no identity file but holds {other:?}");
        return Err(QueueError::Foreign { path: directory.to_path_buf(), found });
    }
    let method = match options.sync {
        Some(method) => method,
        None => probe(storage, directory)?.method,
    };
    let identity = Identity { id: (options.random)(), method };
    write_identity(storage, &path, QUEUE_MAGIC, &identity)?;
    Ok(identity)
}

/// The identity of a directory that somebody else made.
pub(super) fn identify_foreign(options: &DiskOptions) -> Result<Identity, QueueError> {
    let path = options.directory.join("floodgate-queue");
    read_identity(&options.storage, &path, QUEUE_MAGIC)?.ok_or_else(|| QueueError::Io {
        doing: "attach to",
        path: options.directory.clone(),
        source: std::io::Error::new(std::io::ErrorKind::NotFound, "nobody has made a queue there yet"),
    })
}

/// What the disk does by each method: medians.
#[derive(Debug, Clone, Copy)]
pub struct ProbedDisk {
    /// A write and `fdatasync` over zeros, of 4 KiB and of 128 KiB.
    pub data_sync: [Duration; 2],
    /// An `O_DIRECT | O_DSYNC` write of the same; `None` where the file system cannot.
    pub direct_write: Option<[Duration; 2]>,
    pub(crate) method: SyncMethod,
}

impl ProbedDisk {
    /// The name of the faster method.
    pub fn chosen(&self) -> &'static str {
        match self.method {
            SyncMethod::DataSync => "fdatasync",
            SyncMethod::DirectWrite => "O_DIRECT|O_DSYNC",
        }
    }
}

/// Measures both methods, taking turns, on a file that is removed again. The choice is for ever: the methods may be equals with one
/// block, the batch of a quiet hour, and far apart with the batches of a spike.
pub(crate) fn probe(storage: &Storage, directory: &Path) -> Result<ProbedDisk, QueueError> {
    if !storage.is_real() {
        let data_sync = [Duration::ZERO; 2];
        return Ok(ProbedDisk { data_sync, direct_write: None, method: SyncMethod::DataSync });
    }
    let path = directory.join("probe.draft");
    let result = (|| {
        let mut batch = AlignedBuffer::new(PROBE_BYTES[1]);
        let file = storage.open(&path, Access::Write)?;
        for region in 0..2 {
            file.write_all_at(batch.bytes(), region * PROBE_BYTES[1] as u64)?;
        }
        file.sync()?;
        batch.bytes_mut().fill(1);
        let data = storage.open(&path, Access::Append(SyncMethod::DataSync))?;
        let direct = storage.open(&path, Access::Append(SyncMethod::DirectWrite)).ok();
        let mut data_sync = [[Duration::ZERO; PROBE_ROUNDS]; 2];
        let mut direct_write = data_sync;
        let mut direct_works = direct.is_some();
        for round in 0..PROBE_ROUNDS {
            for (size, bytes) in PROBE_BYTES.iter().enumerate() {
                let started = Instant::now();
                data.write_all_at(&batch.bytes()[..*bytes], 0)?;
                data.sync()?;
                data_sync[size][round] = started.elapsed();
                if let Some(direct) = &direct {
                    // Not where the other method has left pages in the cache.
                    let started = Instant::now();
                    let wrote = direct.write_all_at(&batch.bytes()[..*bytes], PROBE_BYTES[1] as u64);
                    direct_write[size][round] = started.elapsed();
                    direct_works &= wrote.is_ok();
                }
            }
        }
        let data_sync = data_sync.map(median);
        let direct_write = direct_works.then(|| direct_write.map(median));
        let total = |medians: [Duration; 2]| medians[0] + medians[1];
        let method = match direct_write {
            Some(direct) if total(direct) <= total(data_sync) => SyncMethod::DirectWrite,
            _ => SyncMethod::DataSync,
        };
        Ok(ProbedDisk { data_sync, direct_write, method })
    })();
    let removed = storage.remove(&path);
    let probed = result.map_err(io("probe", &path))?;
    removed.map_err(io("remove", &path))?;
    Ok(probed)
}

fn median(mut times: [Duration; PROBE_ROUNDS]) -> Duration {
    times.sort_unstable();
    times[PROBE_ROUNDS / 2]
}

/// Makes what recovery read durable before anybody hears of it: a killed process may have left it in the page cache alone,
/// and after a sync that failed the kernel takes such pages for clean, so that a sync alone would do nothing.
///
/// The last batch, the only one that can be in doubt, is therefore written again, byte for byte; a crash on the way leaves
/// any mixture of equal sectors.
pub(super) fn settle_tail(files: &LogFiles, recovered: &Recovered) -> Result<(), QueueError> {
    let Some(last) = &recovered.last else { return Ok(()) };
    let fail = |error| io("sync", &last.path)(error);
    if failpoint::hit("queue.recover-sync") {
        return Err(fail(std::io::Error::from_raw_os_error(libc::EIO)));
    }
    let mut batch = Vec::new();
    if let Err(invalid) = files.read_batch(last, &mut batch)? {
        return Err(corrupt(
            &last.path,
            last.offset,
            format!("a batch that was sound a moment ago: {invalid:?}"),
        ));
    }
    let file = files.storage.open(&last.path, Access::Write).map_err(fail)?;
    file.write_all_at(&batch, last.offset).and_then(|()| file.sync()).map_err(fail)
}

/// Opens a topic as its owner: creates or recovers it.
///
/// A crash at any point leaves either no topic file, and the creation begins anew, or a log that recovers again: nothing
/// is written into old segments, and the new epoch's first batch goes to a segment number never used before.
pub(super) fn open_topic(
    options: &DiskOptions,
    name: &str,
    method: SyncMethod,
    metrics: &QueueMetrics,
    upkeep: &Arc<Bell>,
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
            let identity = Identity { id: (options.random)(), method };
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
    let recovered = recover(&files)?;
    settle_tail(&files, &recovered)?;
    let durable = recovered.next_sequence - 1;
    let mark = if storage.is_real() {
        let path = directory.join("mark");
        let (mark, before) = SharedMark::own(&path, log_id).map_err(io("map", &path))?;
        let end = recovered.end.as_ref();
        if let Some(before) = before.filter(|before| *before > durable) {
            let found = format!("records through {before} were acknowledged, the log ends at {durable}");
            let (file, offset) = end.map_or((path.as_path(), 0), |end| (end.path.as_path(), end.offset));
            return Err(corrupt(file, offset, found));
        }
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
        own: Some(OwnTopic {
            ring: Ring::new(ring_bytes / 8, records_max as u64),
            watermark: Watermark::new(durable, records_max),
            base: recovered.next_sequence,
            closed: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
            opened: Instant::now(),
            batch_since_ms: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            room_bytes: AtomicI64::new(room_bytes),
            slowest: AtomicU64::new(0),
            least_done: AtomicU64::new(0),
            rewrites,
            reserve_bytes,
            copy_bytes_max: super::rewriting::round_bytes(ring_bytes),
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

/// What a group has finished was acknowledged, and what it has not finished must still be there.
fn check_groups(topic: &TopicShared, recovered: &Recovered) -> Result<(), QueueError> {
    let durable = recovered.next_sequence - 1;
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
        let (low, newest) = (progress.low(), progress.newest());
        let (file, offset) = recovered
            .end
            .as_ref()
            .map_or((topic.files.directory.as_path(), 0), |end| (end.path.as_path(), end.offset));
        if newest > durable {
            let found = format!("group {name} has seen record {newest}, the log ends at {durable}");
            return Err(corrupt(file, offset, found));
        }
        if low + 1 < oldest {
            let found = format!("group {name} has finished record {low}, the log begins at {oldest}");
            return Err(corrupt(&topic.files.directory, 0, found));
        }
        topic.groups.lock().insert(name, Standing::of(&progress, false));
    }
    Ok(())
}
