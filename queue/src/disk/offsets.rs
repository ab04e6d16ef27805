//! What a group has finished, and the two slots that keep it. Knows sequences, never records.
//!
//! A slot file holds: magic `FLGOFFST` (8), version (2), zero (2), CRC32C of the whole with this field 0 (4), log id (8),
//! generation (8), finished through (8), ranges above it (4), retries (4); each range first and last sequence (8 + 8); each
//! retry sequence (8), due at in Unix ms (8), attempt (4), zero (4). Slots are written in turn, the one that was not
//! written well last; the sound one of the higher generation counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::{corrupt, io};
use super::format::{FORMAT_VERSION, read_u32, read_u64};
use crate::failpoint;
use crate::port::QueueError;
use crate::storage::{Access, File, Storage};

const MAGIC: &[u8; 8] = b"FLGOFFST";
const SLOT_HEADER_BYTES: usize = 48;
const RANGE_BYTES: usize = 16;
const RETRY_BYTES: usize = 24;

/// Sequences that are finished: all through `low`, and ranges above it that are neither empty nor touch each other or `low`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    low: u64,
    above: BTreeMap<u64, u64>,
}

/// A delivery that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) due_at_ms: u64,
    pub(crate) attempt: u32,
}

/// Everything that a group keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) finished: Finished,
    pub(crate) retries: BTreeMap<u64, Retry>,
}

/// The two slots of a group.
#[derive(Debug)]
pub(crate) struct Slots {
    files: [File; 2],
    paths: [PathBuf; 2],
    log_id: u64,
    generation: u64,
    /// The slot that holds what counts; the other one is written next.
    current: usize,
    bytes: Vec<u8>,
}

impl Finished {
    /// Everything through `low`.
    pub(crate) fn through(low: u64) -> Self {
        Self { low, above: BTreeMap::new() }
    }

    pub(crate) fn low(&self) -> u64 {
        self.low
    }

    pub(crate) fn contains(&self, sequence: u64) -> bool {
        sequence <= self.low
            || self.above.range(..=sequence).next_back().is_some_and(|(_, last)| sequence <= *last)
    }

    /// Finished ones above `low`.
    pub(crate) fn above(&self) -> u64 {
        self.above.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Finishes `first..=last`.
    pub(crate) fn insert(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first.max(self.low + 1), last);
        if first > last {
            return;
        }
        if let Some((before, end)) = self.above.range(..first).next_back().map(|(a, b)| (*a, *b))
            && end + 1 >= first
        {
            first = before;
            last = last.max(end);
            self.above.remove(&before);
        }
        while let Some((next, end)) = self.above.range(first..).next().map(|(a, b)| (*a, *b)) {
            if next > last + 1 {
                break;
            }
            last = last.max(end);
            self.above.remove(&next);
        }
        if first == self.low + 1 {
            self.low = last;
        } else {
            self.above.insert(first, last);
        }
    }
}

impl Slots {
    /// Opens a group's slots, both created at `start` in a new group, and reads what counts.
    pub(crate) fn open(
        storage: &Storage,
        directory: &Path,
        log_id: u64,
        start: u64,
    ) -> Result<(Self, Progress), QueueError> {
        let paths = slot_paths(directory);
        let fresh = !storage.exists(&paths[1]).map_err(io("look for", &paths[1]))?;
        if fresh {
            // The second slot's name is what makes the group exist; a crash before it begins anew.
            let progress = Progress { finished: Finished::through(start), retries: BTreeMap::new() };
            for (slot, path) in paths.iter().enumerate() {
                let bytes = encode(&progress, log_id, slot as u64);
                storage.replace(path, &bytes).map_err(io("create", path))?;
            }
        }
        let (progress, generation, current) = load(storage, directory, log_id)?;
        let open = |path: &PathBuf| storage.open(path, Access::Write).map_err(io("open", path));
        let files = [open(&paths[0])?, open(&paths[1])?];
        let mut slots = Self { files, paths, log_id, generation, current, bytes: Vec::new() };
        if !fresh {
            slots.settle(&progress)?;
            // A write that failed may be whole on the disk where zeros are read: gone over, it cannot come back.
            slots.write(&progress)?;
        }
        Ok((slots, progress))
    }

    /// Makes what was read durable: it may be in the page cache alone, and wrongly be taken for clean there.
    ///
    /// The same bytes go to the same place. A crash on the way leaves them torn only if they were not durable before, and then the
    /// other slot is what was durable last: it must not be touched until this one is.
    fn settle(&mut self, progress: &Progress) -> Result<(), QueueError> {
        self.bytes = encode(progress, self.log_id, self.generation);
        self.put(self.current)
    }

    /// Makes `progress` durable.
    ///
    /// A crash or an error on the way leaves the other slot, so that the group stands where it stood, or where it was to
    /// stand if the new slot got through whole. The next write goes to the same slot again, never to the sound one.
    pub(crate) fn write(&mut self, progress: &Progress) -> Result<(), QueueError> {
        let next = 1 - self.current;
        self.bytes = encode(progress, self.log_id, self.generation + 1);
        if let Err(error) = self.put(next) {
            // Nobody may act on a slot that a crash could take back: the other one is to count.
            let _ = self.files[next].write_all_at(&[0; SLOT_HEADER_BYTES], 0);
            return Err(error);
        }
        self.generation += 1;
        self.current = next;
        Ok(())
    }

    /// Writes the encoded bytes to a slot and syncs it.
    fn put(&self, slot: usize) -> Result<(), QueueError> {
        let path = &self.paths[slot];
        let injected = |name| {
            if failpoint::hit(name) { Err(std::io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        };
        injected("queue.offset-write")
            .and_then(|()| self.files[slot].write_all_at(&self.bytes, 0))
            .map_err(io("write", path))?;
        injected("queue.offset-sync").and_then(|()| self.files[slot].sync()).map_err(io("sync", path))
    }
}

/// What counts of a group's slots, its generation, and which slot that is.
pub(crate) fn load(
    storage: &Storage,
    directory: &Path,
    log_id: u64,
) -> Result<(Progress, u64, usize), QueueError> {
    let paths = slot_paths(directory);
    let mut best: Option<(Progress, u64, usize)> = None;
    for (slot, path) in paths.iter().enumerate() {
        let bytes = match storage.read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io("read", path)(error)),
        };
        if let Some((progress, generation)) = decode(&bytes, log_id)
            && best.as_ref().is_none_or(|(_, newest, _)| generation > *newest)
        {
            best = Some((progress, generation, slot));
        }
    }
    best.ok_or_else(|| corrupt(&paths[0], 0, "neither of the two offset slots is sound"))
}

fn slot_paths(directory: &Path) -> [PathBuf; 2] {
    [directory.join("offset.0"), directory.join("offset.1")]
}

fn encode(progress: &Progress, log_id: u64, generation: u64) -> Vec<u8> {
    let above = &progress.finished.above;
    let mut bytes = Vec::with_capacity(
        SLOT_HEADER_BYTES + above.len() * RANGE_BYTES + progress.retries.len() * RETRY_BYTES,
    );
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    for long in [log_id, generation, progress.finished.low] {
        bytes.extend_from_slice(&long.to_le_bytes());
    }
    bytes.extend_from_slice(&(above.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(progress.retries.len() as u32).to_le_bytes());
    for (first, last) in above {
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&last.to_le_bytes());
    }
    for (sequence, retry) in &progress.retries {
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&retry.due_at_ms.to_le_bytes());
        bytes.extend_from_slice(&u64::from(retry.attempt).to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whatever the bytes: `None`, or exactly what [`encode`] was given.
pub(crate) fn decode(bytes: &[u8], log_id: u64) -> Option<(Progress, u64)> {
    if bytes.len() < SLOT_HEADER_BYTES || &bytes[..8] != MAGIC || read_u64(bytes, 16) != log_id {
        return None;
    }
    let (ranges, retries) = (read_u32(bytes, 40) as usize, read_u32(bytes, 44) as usize);
    let end = SLOT_HEADER_BYTES + ranges * RANGE_BYTES + retries * RETRY_BYTES;
    let bytes = bytes.get(..end)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
    if crc32c::crc32c_append(crc, &bytes[16..]) != read_u32(bytes, 12) {
        return None;
    }
    let (ranges, retries) = bytes[SLOT_HEADER_BYTES..].split_at(ranges * RANGE_BYTES);
    let mut progress =
        Progress { finished: Finished::through(read_u64(bytes, 32)), retries: BTreeMap::new() };
    for range in ranges.chunks_exact(RANGE_BYTES) {
        progress.finished.insert(read_u64(range, 0), read_u64(range, 8));
    }
    for retry in retries.chunks_exact(RETRY_BYTES) {
        let attempt = read_u32(retry, 16);
        progress.retries.insert(read_u64(retry, 0), Retry { due_at_ms: read_u64(retry, 8), attempt });
    }
    Some((progress, read_u64(bytes, 24)))
}
