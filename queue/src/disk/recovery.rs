//! Reading a whole log back: what survived, what a crash tore off, and what is damage. Changes nothing on the disk.
//!
//! The chain of batches is followed from the oldest kept segment on: each must continue its predecessor's sequence and
//! carry its checksum. Where it ends, everything behind is searched for a batch that proves, by its durable sequence, that
//! more was acknowledged than can be read: that is damage. Without such a proof it is a torn tail, and dropped.

use super::files::{LogFiles, Place, corrupt, io};
use super::format::{BatchHeader, FORMAT_VERSION, Invalid};
use crate::port::QueueError;
use crate::storage::{Access, AlignedBuffer, BLOCK_BYTES};

/// Bytes read at once when searching behind the end of the chain.
const SEARCH_BYTES: usize = 1 << 20;

/// What a log holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recovered {
    /// The sequence that the next record gets.
    pub(crate) next_sequence: u64,
    /// The newest epoch seen; 0 in a new log.
    pub(crate) epoch: u64,
    /// The checksum that the next batch carries on.
    pub(crate) previous_crc: u32,
    /// The newest time stamp seen.
    pub(crate) clock_ms: u64,
    /// The highest segment number seen.
    pub(crate) last_number: u64,
    /// Segment files without a batch, and their lengths.
    pub(crate) unused: Vec<(u64, u64)>,
    /// Sound batches.
    pub(crate) batches: u64,
    /// The last batch.
    pub(crate) last: Option<Place>,
    /// Where the chain ends.
    pub(crate) end: Option<Place>,
}

impl Recovered {
    /// Everything through `acknowledged` was once: is it there?
    pub(crate) fn check_acknowledged(&self, files: &LogFiles, acknowledged: u64) -> Result<(), QueueError> {
        self.check_end(files, acknowledged, || format!("records through {acknowledged} were acknowledged"))
    }

    /// What a group has seen was acknowledged; and is what it has not finished, behind `passed`, still there?
    pub(crate) fn check_group(
        &self,
        files: &LogFiles,
        group: &str,
        (seen, passed): (u64, u64),
    ) -> Result<(), QueueError> {
        self.check_end(files, seen, || format!("group {group} has seen record {seen}"))?;
        let oldest = files.oldest().unwrap_or(self.next_sequence);
        if passed + 1 < oldest {
            let found = format!("group {group} has finished record {passed}, the log begins at {oldest}");
            return Err(corrupt(&files.directory, 0, found));
        }
        Ok(())
    }

    fn check_end(
        &self,
        files: &LogFiles,
        proven: u64,
        proof: impl FnOnce() -> String,
    ) -> Result<(), QueueError> {
        if proven < self.next_sequence {
            return Ok(());
        }
        let (file, offset) =
            self.end.as_ref().map_or((files.directory.as_path(), 0), |end| (end.path.as_path(), end.offset));
        let found = format!("{}, the log ends at {}", proof(), self.next_sequence - 1);
        Err(corrupt(file, offset, found))
    }
}

/// Follows the chain and fills the table of segments. Of those whose records are all at or below `finished`, kept though nobody waits
/// for them, only the first batch is looked at: what is in them is checked when it is read.
pub(crate) fn recover(files: &LogFiles, finished: u64) -> Result<Recovered, QueueError> {
    let mut recovered = Recovered { next_sequence: 1, ..Recovered::default() };
    let mut buffer = Vec::new();
    let numbers = files.numbers()?;
    let begins = first_needed(files, &numbers, finished)?;
    for number in numbers {
        if number < begins {
            let place = first_place(files, number)?;
            if let Ok(header) = files.read_batch(&place, &mut buffer)? {
                files.note(&header, place.bytes)?;
                continue;
            }
        }
        recovered.last_number = recovered.last_number.max(number);
        let mut place = first_place(files, number)?;
        let bytes = place.bytes;
        loop {
            match files.read_batch(&place, &mut buffer)? {
                Ok(header) => {
                    follow(&mut recovered, &header, &place)?;
                    files.note(&header, bytes)?;
                    recovered.last = Some(place.clone());
                    place.offset += header.padded_bytes();
                }
                Err(Invalid::Version(found)) => {
                    return Err(QueueError::OtherVersion {
                        path: place.path,
                        found,
                        supported: FORMAT_VERSION,
                    });
                }
                Err(invalid) => {
                    search(files, &recovered, &place, &invalid)?;
                    break;
                }
            }
        }
        if place.offset == 0 {
            recovered.unused.push((number, bytes));
        } else {
            recovered.end = Some(place);
        }
    }
    Ok(recovered)
}

/// The number of the segment that the first record after `finished` is in.
fn first_needed(files: &LogFiles, numbers: &[u64], finished: u64) -> Result<u64, QueueError> {
    let (mut needed, mut last, mut buffer) = (0, 0, Vec::new());
    for number in numbers {
        // A segment without a sound first batch: from the one before it on, everything is looked at.
        let Ok(header) = files.read_batch(&first_place(files, *number)?, &mut buffer)? else { break };
        if header.first_sequence > finished + 1 || header.first_sequence < last {
            break;
        }
        (needed, last) = (*number, header.first_sequence);
    }
    Ok(needed)
}

fn first_place(files: &LogFiles, number: u64) -> Result<Place, QueueError> {
    let path = files.segment_path(number);
    let file = files.storage.open(&path, Access::Read).map_err(io("open", &path))?;
    let bytes = file.length().map_err(io("measure", &path))?;
    Ok(Place { segment: number, offset: 0, bytes, file: file.into(), path })
}

fn follow(recovered: &mut Recovered, header: &BatchHeader, place: &Place) -> Result<(), QueueError> {
    let first = recovered.batches == 0;
    if !first {
        let (file, offset) = match &recovered.end {
            Some(end) if place.offset == 0 => (&end.path, end.offset),
            _ => (&place.path, place.offset),
        };
        if header.first_sequence != recovered.next_sequence {
            let found = format!(
                "the next batch starts with record {}, not {}",
                header.first_sequence, recovered.next_sequence
            );
            return Err(corrupt(file, offset, found));
        }
        if header.previous_crc != recovered.previous_crc || header.epoch < recovered.epoch {
            return Err(corrupt(file, offset, "the next batch continues another one"));
        }
    }
    recovered.next_sequence = header.next_sequence();
    recovered.epoch = header.epoch;
    recovered.previous_crc = header.crc;
    recovered.clock_ms = recovered.clock_ms.max(header.written_at_ms);
    recovered.batches += 1;
    Ok(())
}

/// Looks behind the end of a segment's chain for proof that more had been acknowledged.
fn search(files: &LogFiles, recovered: &Recovered, end: &Place, invalid: &Invalid) -> Result<(), QueueError> {
    let mut chunk = AlignedBuffer::new(SEARCH_BYTES.min(end.bytes as usize).max(BLOCK_BYTES));
    let mut buffer = Vec::new();
    let mut at = end.offset + BLOCK_BYTES as u64;
    while at < end.bytes {
        let filled = end.file.read_at_most(chunk.bytes_mut(), at).map_err(io("read", &end.path))?;
        for (block, bytes) in chunk.bytes()[..filled].chunks(BLOCK_BYTES).enumerate() {
            let Ok(header) = BatchHeader::peek(bytes) else { continue };
            if header.segment != end.segment || header.log_id != files.log_id {
                continue;
            }
            let place = Place { offset: at + (block * BLOCK_BYTES) as u64, ..end.clone() };
            if let Ok(header) = files.read_batch(&place, &mut buffer)?
                && header.durable_sequence >= recovered.next_sequence
            {
                let what = match invalid {
                    Invalid::Damaged(what) => what,
                    _ => "nothing",
                };
                let found = format!(
                    "{what} where record {} should be, and the batch at byte {} proves that it was acknowledged",
                    recovered.next_sequence, place.offset
                );
                return Err(corrupt(&end.path, end.offset, found));
            }
        }
        at += filled.max(BLOCK_BYTES) as u64;
    }
    Ok(())
}
