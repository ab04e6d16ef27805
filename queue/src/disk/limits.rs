//! The files that say how far a group may be behind, and where it was cut off. Decides nothing.
//!
//! Two files below the group, each replaced as a whole: magic (8), version (2), zero (2), CRC32C of the whole with this field 0 (4), log
//! id (8), and two numbers (8 + 8). `behind-max` holds records and milliseconds (0: no such bound) and is written by whoever holds the
//! group. `cut` holds the sequences between which the group was cut, `(from, through]`, and is written by the log's owner. A cut
//! counts while the group has not finished `through`.

use std::path::PathBuf;
use std::time::Duration;

use super::files::{corrupt, io};
use super::format::{FORMAT_VERSION, read_u32, read_u64};
use crate::failpoint;
use crate::port::{BehindMax, QueueError};
use crate::storage::Storage;

const LIMIT_MAGIC: &[u8; 8] = b"FLGBEHND";
const CUT_MAGIC: &[u8; 8] = b"FLGCUTOF";
const BYTES: usize = 40;

/// One group's two files.
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
        let limit = |[records, age_ms]: [u64; 2]| BehindMax {
            records: some(records),
            age: some(age_ms).map(Duration::from_millis),
        };
        let limit = self.read("behind-max", LIMIT_MAGIC)?.map(limit);
        Ok(limit.filter(|limit| *limit != BehindMax::default()))
    }

    /// Makes the bound durable. A crash on the way leaves the one before.
    pub(crate) fn set_limit(&self, limit: Option<BehindMax>) -> Result<(), QueueError> {
        let limit = limit.unwrap_or_default();
        let age_ms = limit.age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1));
        self.write("behind-max", LIMIT_MAGIC, [limit.records.map_or(0, |records| records.max(1)), age_ms])
    }

    /// The sequence through which the group was cut off; 0: never.
    pub(crate) fn cut(&self) -> Result<u64, QueueError> {
        Ok(self.read("cut", CUT_MAGIC)?.map_or(0, |[_, through]| through))
    }

    /// Makes a cut of `(from, through]` durable. A crash on the way leaves none, or the one before.
    pub(crate) fn set_cut(&self, from: u64, through: u64) -> Result<(), QueueError> {
        self.write("cut", CUT_MAGIC, [from, through])
    }

    /// Forgets the cut. A crash on the way leaves it in force, or not.
    pub(crate) fn forget_cut(&self) -> Result<(), QueueError> {
        self.remove("cut")?;
        self.sync()
    }

    /// Forgets what a group of this name that was dropped has left. A crash on the way leaves some of it, without a group.
    pub(crate) fn forget_all(&self) -> Result<(), QueueError> {
        let (cut, limit) = (self.remove("cut")?, self.remove("behind-max")?);
        if cut || limit { self.sync() } else { Ok(()) }
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

    fn write(&self, name: &str, magic: &[u8; 8], numbers: [u64; 2]) -> Result<(), QueueError> {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(magic);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        for (at, number) in [self.log_id, numbers[0], numbers[1]].into_iter().enumerate() {
            bytes[16 + 8 * at..24 + 8 * at].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let path = self.directory.join(name);
        self.storage.replace(&path, &bytes).map_err(io("write", &path))
    }

    fn read(&self, name: &str, magic: &[u8; 8]) -> Result<Option<[u64; 2]>, QueueError> {
        let path = self.directory.join(name);
        let bytes = match self.storage.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let sound = bytes.len() == BYTES && &bytes[..8] == magic && read_u64(&bytes, 16) == self.log_id && {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
            crc32c::crc32c_append(crc, &bytes[16..]) == read_u32(&bytes, 12)
        };
        match sound {
            true => Ok(Some([read_u64(&bytes, 24), read_u64(&bytes, 32)])),
            false => Err(corrupt(&path, 0, "a checksum that does not match")),
        }
    }
}
