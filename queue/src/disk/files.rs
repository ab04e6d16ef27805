//! The files of one log and what is known of them: segments, their first sequences, a sparse index. Writes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::format::{BatchHeader, HEADER_BYTES, Invalid};
use crate::port::QueueError;
use crate::storage::{Access, BLOCK_BYTES, File, Storage};

/// Bytes between two entries of a segment's index.
const INDEX_EVERY_BYTES: u64 = 64 * 1024;

/// A segment that holds batches.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) first_sequence: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
    pub(crate) bytes: u64,
    /// Sequence, offset and clock of some batches, rising; the first is the segment's first.
    pub(crate) index: Vec<IndexEntry>,
}

/// One batch of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexEntry {
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
    pub(crate) written_at_ms: u64,
}

/// The segments of one log, oldest first. The committer adds before it publishes a sequence in them; upkeep removes what all
/// groups are past.
#[derive(Debug)]
pub(crate) struct LogFiles {
    pub(crate) storage: Storage,
    pub(crate) directory: PathBuf,
    pub(crate) log_id: u64,
    /// Whether another process writes this log, so that its files change behind our back.
    pub(crate) foreign: bool,
    pub(crate) segments: RwLock<Vec<Segment>>,
}

/// The place of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
}

impl LogFiles {
    pub(crate) fn new(storage: Storage, directory: PathBuf, log_id: u64, foreign: bool) -> Self {
        Self { storage, directory, log_id, foreign, segments: RwLock::new(Vec::new()) }
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016x}.seg"))
    }

    /// The numbers of all segment files, rising.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>, QueueError> {
        let names = self.storage.list(&self.directory).map_err(io("list", &self.directory))?;
        Ok(names.iter().filter_map(|name| u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()).collect())
    }

    /// Where to begin looking for `sequence`: the nearest indexed batch that is not behind it. The oldest kept batch if
    /// `sequence` is older still; `None` in an empty log.
    pub(crate) fn locate(&self, sequence: u64) -> Option<Place> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.first_sequence <= sequence);
        let segment = segments.get(after.saturating_sub(1))?;
        let entry = segment.index.partition_point(|entry| entry.sequence <= sequence);
        let offset = segment.index.get(entry.saturating_sub(1)).map_or(0, |entry| entry.offset);
        Some(segment.place(offset))
    }

    /// The number of the segment that `sequence` is in or will be in.
    pub(crate) fn segment_of(&self, sequence: u64) -> Option<u64> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.first_sequence <= sequence);
        segments.get(after.saturating_sub(1)).map(|segment| segment.number)
    }

    /// The first sequence of the segment that `sequence` is in or will be in; 0 in an empty log.
    pub(crate) fn first_of_segment(&self, sequence: u64) -> u64 {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.first_sequence <= sequence);
        segments.get(after.saturating_sub(1)).map_or(0, |segment| segment.first_sequence)
    }

    /// The oldest kept sequence, or the first that will be.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.segments.read().first().map(|segment| segment.first_sequence)
    }

    /// When the oldest kept batch was written, Unix ms; 0 in an empty log.
    pub(crate) fn oldest_ms(&self) -> u64 {
        let segments = self.segments.read();
        segments.first().and_then(|oldest| oldest.index.first()).map_or(0, |entry| entry.written_at_ms)
    }

    /// Remembers a batch that was written.
    pub(crate) fn note(&self, header: &BatchHeader, bytes: u64) -> Result<(), QueueError> {
        let newest = self.segments.read().last().map(|segment| {
            let last = segment.index.last().map_or(0, |entry| entry.offset);
            (segment.number, last)
        });
        let entry = IndexEntry {
            sequence: header.first_sequence,
            offset: header.offset,
            written_at_ms: header.written_at_ms,
        };
        match newest {
            Some((number, last)) if number == header.segment => {
                if header.count > 0
                    && header.offset - last >= INDEX_EVERY_BYTES
                    && let Some(segment) = self.segments.write().last_mut()
                {
                    segment.index.push(entry);
                }
                Ok(())
            }
            _ => {
                let path = self.segment_path(header.segment);
                let file = self.storage.open(&path, Access::Read).map_err(io("open", &path))?;
                self.segments.write().push(Segment {
                    number: header.segment,
                    first_sequence: header.first_sequence,
                    path,
                    file: Arc::new(file),
                    bytes,
                    index: vec![entry],
                });
                Ok(())
            }
        }
    }

    /// Finds segments that another process has added and forgets those that it has recycled.
    pub(crate) fn refresh(&self) -> Result<(), QueueError> {
        if !self.foreign {
            return Ok(());
        }
        let mut found = Vec::new();
        for number in self.numbers()? {
            let known = self.segments.read().iter().find(|segment| segment.number == number).cloned();
            if let Some(segment) = known {
                found.push(segment);
                continue;
            }
            let path = self.segment_path(number);
            let file = match self.storage.open(&path, Access::Read) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io("open", &path)(error)),
            };
            let bytes = file.length().map_err(io("measure", &path))?;
            let place =
                Place { segment: number, offset: 0, bytes, file: Arc::clone(&file), path: path.clone() };
            let mut buffer = Vec::new();
            if let Ok(header) = self.read_batch(&place, &mut buffer)? {
                let entry = IndexEntry {
                    sequence: header.first_sequence,
                    offset: 0,
                    written_at_ms: header.written_at_ms,
                };
                let first_sequence = header.first_sequence;
                found.push(Segment { number, first_sequence, path, file, bytes, index: vec![entry] });
            }
        }
        *self.segments.write() = found;
        Ok(())
    }

    /// Reads the batch at a place into `buffer` (header first) and checks it, its log, segment and offset included.
    pub(crate) fn read_batch(
        &self,
        place: &Place,
        buffer: &mut Vec<u8>,
    ) -> Result<Result<BatchHeader, Invalid>, QueueError> {
        let fail = |error| io("read", &place.path)(error);
        buffer.resize(BLOCK_BYTES, 0);
        let filled = place.file.read_at_most(&mut buffer[..], place.offset).map_err(fail)?;
        let header = match BatchHeader::peek(&buffer[..filled]) {
            Ok(header) => header,
            Err(invalid) => return Ok(Err(invalid)),
        };
        if header.segment != place.segment || header.log_id != self.log_id {
            return Ok(Err(Invalid::Absent));
        }
        let bytes = HEADER_BYTES as u64 + u64::from(header.body_bytes);
        if place.offset + bytes > place.bytes {
            return Ok(Err(Invalid::Damaged("a batch that ends beyond its file")));
        }
        if bytes > BLOCK_BYTES as u64 {
            buffer.resize(bytes as usize, 0);
            let rest = place.offset + BLOCK_BYTES as u64;
            let read = place.file.read_at_most(&mut buffer[BLOCK_BYTES..], rest).map_err(fail)?;
            buffer.truncate(BLOCK_BYTES + read);
        } else {
            buffer.truncate(filled.min(bytes as usize));
        }
        Ok(BatchHeader::check(buffer).and_then(|header| {
            let here = header.offset == place.offset;
            if here { Ok(header) } else { Err(Invalid::Damaged("a batch of another place")) }
        }))
    }
}

impl Segment {
    pub(crate) fn place(&self, offset: u64) -> Place {
        Place {
            segment: self.number,
            offset,
            bytes: self.bytes,
            file: Arc::clone(&self.file),
            path: self.path.clone(),
        }
    }
}

/// Names what was being done to which path when the operating system refused.
pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> QueueError + use<> {
    let path = path.to_path_buf();
    move |source| QueueError::Io { doing, path, source }
}

/// The error for something acknowledged that does not read back.
pub(crate) fn corrupt(path: &Path, offset: u64, found: impl Into<String>) -> QueueError {
    QueueError::Corrupt { file: path.to_path_buf(), offset, found: found.into() }
}
