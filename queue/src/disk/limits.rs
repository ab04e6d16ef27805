//! The files that say how far a group may be behind, where it was cut off, and what it was put past. Decides nothing.
//!
//! Three files below the group, each replaced as a whole: magic (8), version (2), zero (2), CRC32C of the whole with this field 0 (4), log
//! id (8), and pairs of numbers (8 + 8), one in the first two. `behind-max` holds records and milliseconds (0: no such bound) and is written
//! by whoever holds the group. `cut` holds the sequences between which the group was cut, `(from, through]`, and is written by the log's
//! owner. A cut counts while the group has not finished `through`. `skipped` holds in the same way what resets have put the group past
//! without its finishing it, rising, and is written by whoever holds the group.

use std::path::PathBuf;
use std::time::Duration;

use super::files::{corrupt, io};
use super::format::{FORMAT_VERSION, read_u32, read_u64};
use crate::failpoint;
use crate::port::{BehindMax, QueueError};
use crate::storage::Storage;

const LIMIT_MAGIC: &[u8; 8] = b"FLGBEHND";
const CUT_MAGIC: &[u8; 8] = b"FLGCUTOF";
const SKIPPED_MAGIC: &[u8; 8] = b"FLGSKIPD";
/// What comes before the pairs.
const HEAD_BYTES: usize = 24;
const PAIR_BYTES: usize = 16;
/// Ranges that are remembered one by one; beyond it the two oldest become one, with what is between them.
const SKIPPED_RANGES_MAX: usize = 1_024;

/// A record's sequence is above the first, and not above the second.
pub(crate) type Range = (u64, u64);

/// One group's three files.
#[derive(Debug)]
pub(crate) struct LimitFiles<'a> {
    storage: &'a Storage,
    directory: PathBuf,
    log_id: u64,
}

impl<'a> LimitFiles<'a> {
    /// Of the group whose directory this is.
    pub(crate) fn new(storage: &'a Storage, directory: PathBuf, log_id: u64) -> Self {
        Self { storage, directory, log_id }
    }

    /// The bound; `None`: the group is never cut.
    pub(crate) fn limit(&self) -> Result<Option<BehindMax>, QueueError> {
        let some = |number: u64| (number > 0).then_some(number);
        let limit = |(records, age_ms)| BehindMax {
            records: some(records),
            age: some(age_ms).map(Duration::from_millis),
        };
        let limit = self.read_one("behind-max", LIMIT_MAGIC)?.map(limit);
        Ok(limit.filter(|limit| *limit != BehindMax::default()))
    }

    /// Makes the bound durable. A crash on the way leaves the one before.
    pub(crate) fn set_limit(&self, limit: Option<BehindMax>) -> Result<(), QueueError> {
        let limit = limit.unwrap_or_default();
        let age_ms = limit.age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1));
        self.write("behind-max", LIMIT_MAGIC, &[(limit.records.map_or(0, |records| records.max(1)), age_ms)])
    }

    /// The sequence through which the group was cut off; 0: never.
    pub(crate) fn cut(&self) -> Result<u64, QueueError> {
        Ok(self.read_one("cut", CUT_MAGIC)?.map_or(0, |(_, through)| through))
    }

    /// Makes a cut of `(from, through]` durable. A crash on the way leaves none, or the one before.
    pub(crate) fn set_cut(&self, from: u64, through: u64) -> Result<(), QueueError> {
        self.write("cut", CUT_MAGIC, &[(from, through)])
    }

    /// Forgets the cut. A crash on the way leaves it in force, or not.
    pub(crate) fn forget_cut(&self) -> Result<(), QueueError> {
        self.remove("cut")?;
        self.sync()
    }

    /// What resets have put the group past, rising.
    pub(crate) fn skipped(&self) -> Result<Vec<Range>, QueueError> {
        Ok(self.read("skipped", SKIPPED_MAGIC)?.unwrap_or_default())
    }

    /// Makes durable that the group is put past `skipped`, which it has not finished. A crash on the way leaves what was there before.
    pub(crate) fn add_skipped(&self, skipped: Range) -> Result<(), QueueError> {
        let mut ranges = self.skipped()?;
        ranges.push(skipped);
        ranges.sort_unstable();
        let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.0 <= last.1 => last.1 = last.1.max(range.1),
                _ => joined.push(range),
            }
        }
        if joined.len() > SKIPPED_RANGES_MAX {
            let oldest = joined.remove(0);
            joined[0].0 = oldest.0;
        }
        self.write("skipped", SKIPPED_MAGIC, &joined)
    }

    /// The group gets what is above `low` again: it is skipped no more. A crash on the way leaves what was there before.
    pub(crate) fn forget_skipped_above(&self, low: u64) -> Result<(), QueueError> {
        let ranges = self.skipped()?;
        if ranges.last().is_none_or(|(_, through)| *through <= low) {
            return Ok(());
        }
        let below = ranges.into_iter().filter(|(from, _)| *from < low);
        let below: Vec<Range> = below.map(|(from, through)| (from, through.min(low))).collect();
        self.write("skipped", SKIPPED_MAGIC, &below)
    }

    /// Forgets what a group of this name that was dropped has left. A crash on the way leaves some of it, without a group.
    pub(crate) fn forget_all(&self) -> Result<(), QueueError> {
        let were_there = [self.remove("cut")?, self.remove("behind-max")?, self.remove("skipped")?];
        if were_there.contains(&true) { self.sync() } else { Ok(()) }
    }

    /// Makes durable which of the files there are: each was synced before it got its name.
    pub(crate) fn sync(&self) -> Result<(), QueueError> {
        if failpoint::hit("queue.limits-sync") {
            return Err(self.failed());
        }
        self.storage.sync_directory(&self.directory).map_err(io("sync", &self.directory))
    }

    /// The error of a sync that a failpoint fails.
    pub(crate) fn failed(&self) -> QueueError {
        io("sync", &self.directory)(std::io::Error::from_raw_os_error(libc::EIO))
    }

    /// Whether it was there.
    fn remove(&self, name: &str) -> Result<bool, QueueError> {
        let path = self.directory.join(name);
        match self.storage.remove(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true).map_err(io("remove", &path)),
        }
    }

    fn write(&self, name: &str, magic: &[u8; 8], pairs: &[Range]) -> Result<(), QueueError> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[..8].copy_from_slice(magic);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.log_id.to_le_bytes());
        for number in pairs.iter().flat_map(|(first, second)| [first, second]) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let path = self.directory.join(name);
        self.storage.replace(&path, &bytes).map_err(io("write", &path))
    }

    /// Of a file with one pair.
    fn read_one(&self, name: &str, magic: &[u8; 8]) -> Result<Option<(u64, u64)>, QueueError> {
        match self.read(name, magic)?.as_deref() {
            None => Ok(None),
            Some([pair]) => Ok(Some(*pair)),
            Some(_) => Err(corrupt(&self.directory.join(name), 0, "another length than its own")),
        }
    }

    fn read(&self, name: &str, magic: &[u8; 8]) -> Result<Option<Vec<Range>>, QueueError> {
        let path = self.directory.join(name);
        let bytes = match self.storage.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let is_whole = bytes.len() >= HEAD_BYTES && (bytes.len() - HEAD_BYTES).is_multiple_of(PAIR_BYTES);
        let sound = is_whole && &bytes[..8] == magic && read_u64(&bytes, 16) == self.log_id && {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
            crc32c::crc32c_append(crc, &bytes[16..]) == read_u32(&bytes, 12)
        };
        match sound {
            true => {
                let pairs = (HEAD_BYTES..bytes.len()).step_by(PAIR_BYTES);
                Ok(Some(pairs.map(|at| (read_u64(&bytes, at), read_u64(&bytes, at + 8))).collect()))
            }
            false => Err(corrupt(&path, 0, "a checksum that does not match")),
        }
    }
}
