//! The bytes of a group's progress: checkpoints, and batches of changes in the journal behind one. Owns layouts and checks; does
//! no I/O.
//!
//! A file begins with a checkpoint, filled up with zeros to a whole number of 4 KiB blocks, and has its journal behind it:
//! batches of whole blocks, one for each durable change. Both have a header of 48 bytes, little endian:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `FLGOFFST` of a checkpoint, `FLGDELTA` of a batch |
//! | 8 | 2 | version |
//! | 10 | 2 | zero |
//! | 12 | 4 | CRC32C of header (this field 0) and body |
//! | 16 | 8 | log id |
//! | 24 | 8 | generation: one higher with each checkpoint; a batch has its checkpoint's |
//! | 32 | 8 | of a checkpoint the room of its journal in bytes, of a batch its place in the file |
//! | 40 | 8 | body length |
//!
//! Bodies are LEB128 numbers; "±" is a zigzag of the difference from the one before. A checkpoint: base, looked, how many are
//! unfinished; each of them: distance from the one before times 2, plus 1 if it is a first attempt as long as the one before, due
//! time ±, and without that bit attempt and words; how many ranges are finished ahead, each its distance from the end of the one
//! before and its length; how many are early, each its distance, due time ±, attempt. A batch: changes, each a kind and what it
//! needs: 1 finished (first ±, length), 2 retried (sequence ±, due ±, attempt), 3 moved (from ±, to - from), 4 reset (low).

use super::format::{read_u32, read_u64};
use super::progress::{Change, DUE_MS_MAX, Progress, Retry, SMALL_MAX, Unfinished};
use crate::storage::BLOCK_BYTES;

/// Of checkpoints and journals. 1 had no journal.
pub(crate) const PROGRESS_VERSION: u16 = 2;

/// Bytes before a body.
pub(crate) const HEADER_BYTES: usize = 48;

const CHECKPOINT_MAGIC: &[u8; 8] = b"FLGOFFST";
const BATCH_MAGIC: &[u8; 8] = b"FLGDELTA";

const FINISHED: u64 = 1;
const RETRIED: u64 = 2;
const MOVED: u64 = 3;
const RESET: u64 = 4;

/// Numbers of records are below this: more would not fit what is kept of them.
const SEQUENCE_END: u64 = 1 << 48;

/// A checkpoint as read.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) progress: Progress,
    pub(crate) generation: u64,
    /// Where its journal begins and ends.
    pub(crate) journal: std::ops::Range<u64>,
}

/// What a batch's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchOf {
    pub(crate) generation: u64,
    pub(crate) bytes: u64,
}

/// A checkpoint of whole blocks, to be [`seal`]ed with the room of its journal.
pub(crate) fn encode_checkpoint(progress: &Progress) -> Vec<u8> {
    let mut bytes = Bytes(vec![0; HEADER_BYTES]);
    bytes.0[..8].copy_from_slice(CHECKPOINT_MAGIC);
    bytes.number(progress.base);
    bytes.number(progress.looked);
    bytes.number(progress.unfinished_records() as u64);
    let (mut sequence, mut due, mut words) = (0, 0, 0);
    for found in progress.unfinished_since(0) {
        let plain = found.retry.attempt == 1 && found.words == words;
        bytes.number((found.sequence - sequence) << 1 | u64::from(plain));
        bytes.change(due, found.retry.due_at_ms);
        if !plain {
            bytes.number(u64::from(found.retry.attempt));
            bytes.number(found.words);
        }
        (sequence, due, words) = (found.sequence, found.retry.due_at_ms, found.words);
    }
    bytes.number(progress.ahead.len() as u64);
    let mut end = 0;
    for (first, last) in &progress.ahead {
        bytes.number(first - end);
        bytes.number(last - first + 1);
        end = last + 1;
    }
    bytes.number(progress.early.len() as u64);
    let (mut sequence, mut due) = (0, 0);
    for (next, retry) in &progress.early {
        bytes.number(next - sequence);
        bytes.change(due, retry.due_at_ms);
        bytes.number(u64::from(retry.attempt));
        (sequence, due) = (*next, retry.due_at_ms);
    }
    bytes.finish()
}

/// A batch of whole blocks, to be [`seal`]ed with its place.
pub(crate) fn encode_batch(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Bytes(vec![0; HEADER_BYTES]);
    bytes.0[..8].copy_from_slice(BATCH_MAGIC);
    let (mut before, mut due) = (0, 0);
    for change in changes {
        match *change {
            Change::Finished { first, last } => {
                bytes.number(FINISHED);
                bytes.change(before, first);
                bytes.number(last - first + 1);
                before = last;
            }
            Change::Retried { sequence, retry } => {
                bytes.number(RETRIED);
                bytes.change(before, sequence);
                bytes.change(due, retry.due_at_ms);
                bytes.number(u64::from(retry.attempt));
                (before, due) = (sequence, retry.due_at_ms);
            }
            Change::Moved { from, to } => {
                bytes.number(MOVED);
                bytes.change(before, from);
                bytes.number(to - from);
                before = from;
            }
            Change::Reset { low } => {
                bytes.number(RESET);
                bytes.number(low);
            }
        }
    }
    bytes.finish()
}

/// Completes an encoded checkpoint or batch. `place`: see the header's table.
pub(crate) fn seal(bytes: &mut [u8], log_id: u64, generation: u64, place: u64) {
    bytes[8..10].copy_from_slice(&PROGRESS_VERSION.to_le_bytes());
    bytes[12..16].fill(0);
    for (at, long) in [log_id, generation, place].iter().enumerate() {
        bytes[16 + 8 * at..24 + 8 * at].copy_from_slice(&long.to_le_bytes());
    }
    let end = HEADER_BYTES + read_u64(bytes, 40) as usize;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// The generation that something speaks of which may be a torn batch.
pub(crate) fn peek_generation(bytes: &[u8], log_id: u64) -> Option<u64> {
    let is_ours = bytes.len() >= HEADER_BYTES && &bytes[..8] == BATCH_MAGIC && read_u64(bytes, 16) == log_id;
    is_ours.then(|| read_u64(bytes, 24))
}

/// The version of a checkpoint that is none of ours, and not damaged as far as one can tell.
pub(crate) fn other_version(bytes: &[u8]) -> Option<u16> {
    let version = u16::from_le_bytes([*bytes.get(8)?, *bytes.get(9)?]);
    (&bytes[..8] == CHECKPOINT_MAGIC && version != PROGRESS_VERSION && version < 1 << 8).then_some(version)
}

/// Whatever the bytes: `None`, or exactly what was encoded and sealed.
pub(crate) fn decode_checkpoint(bytes: &[u8], log_id: u64) -> Option<Checkpoint> {
    let mut body = check(bytes, CHECKPOINT_MAGIC, log_id)?;
    let mut progress = Progress::through(body.below(SEQUENCE_END)?);
    progress.looked = body.below(SEQUENCE_END)?;
    let (mut sequence, mut due, mut words) = (0, 0, 0);
    for _ in 0..body.number()? {
        let distance = body.number()?;
        sequence = body.rising(sequence, distance >> 1)?;
        due = body.change(due, DUE_MS_MAX)?;
        let mut attempt = 1;
        if distance & 1 == 0 {
            attempt = body.below(SMALL_MAX + 1)? as u32;
            words = body.below(SMALL_MAX + 1)?;
        }
        if sequence > progress.looked {
            return None;
        }
        progress.add(Unfinished { sequence, words, retry: Retry { due_at_ms: due, attempt } });
    }
    let mut end = 0;
    for _ in 0..body.number()? {
        let distance = body.number()?;
        let first = body.rising(end, distance)?;
        let length = body.number()?;
        let last = body.rising(first - 1, length)?;
        if first <= progress.looked {
            return None;
        }
        progress.finish_ahead(first, last);
        end = last + 1;
    }
    let (mut sequence, mut due) = (0, 0);
    for _ in 0..body.number()? {
        let distance = body.number()?;
        sequence = body.rising(sequence, distance)?;
        due = body.change(due, u64::MAX)?;
        let attempt = body.below(1 << 32)? as u32;
        if progress.retry(sequence).is_none() || sequence <= progress.looked {
            return None;
        }
        progress.early.insert(sequence, Retry { due_at_ms: due, attempt });
    }
    let begin = (HEADER_BYTES + body.length).next_multiple_of(BLOCK_BYTES) as u64;
    let journal = begin..begin.checked_add(read_u64(bytes, 32))?;
    Some(Checkpoint { progress, generation: read_u64(bytes, 24), journal })
}

/// Whether a sound batch of this log stands there, and was written for this place.
pub(crate) fn check_batch(bytes: &[u8], log_id: u64, place: u64) -> Option<BatchOf> {
    let body = check(bytes, BATCH_MAGIC, log_id)?;
    let bytes_padded = (HEADER_BYTES + body.length).next_multiple_of(BLOCK_BYTES) as u64;
    (read_u64(bytes, 32) == place).then(|| BatchOf { generation: read_u64(bytes, 24), bytes: bytes_padded })
}

/// The changes of a batch that [`check_batch`] has found sound. Whatever the bytes: `None`, or what was encoded.
pub(crate) fn decode_batch(bytes: &[u8]) -> Option<Vec<Change>> {
    let length = usize::try_from(read_u64(bytes.get(..HEADER_BYTES)?, 40)).ok()?;
    let mut body = Body { bytes: bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?, length };
    let (mut before, mut due) = (0, 0);
    let mut changes = Vec::new();
    while !body.bytes.is_empty() {
        let kind = body.number()?;
        changes.push(match kind {
            FINISHED => {
                let first = body.sequence(before)?;
                let length = body.number()?;
                before = body.rising(first - 1, length)?;
                Change::Finished { first, last: before }
            }
            RETRIED => {
                before = body.sequence(before)?;
                due = body.change(due, u64::MAX)?;
                let attempt = body.below(1 << 32)? as u32;
                Change::Retried { sequence: before, retry: Retry { due_at_ms: due, attempt } }
            }
            MOVED => {
                before = body.sequence(before)?;
                let distance = body.number()?;
                Change::Moved { from: before, to: body.rising(before, distance)? }
            }
            RESET => Change::Reset { low: body.below(SEQUENCE_END)? },
            _ => return None,
        });
    }
    Some(changes)
}

fn check<'a>(bytes: &'a [u8], magic: &[u8; 8], log_id: u64) -> Option<Body<'a>> {
    let header = bytes.get(..HEADER_BYTES)?;
    let version = u16::from_le_bytes([header[8], header[9]]);
    if &header[..8] != magic || version != PROGRESS_VERSION || read_u64(header, 16) != log_id {
        return None;
    }
    let length = usize::try_from(read_u64(header, 40)).ok()?;
    let body = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &[0; 4]);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &header[16..]), body);
    (crc == read_u32(header, 12)).then_some(Body { bytes: body, length })
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn number(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// Zigzag.
    fn change(&mut self, before: u64, now: u64) {
        let difference = now.wrapping_sub(before) as i64;
        self.number((difference << 1 ^ difference >> 63) as u64);
    }

    /// The body's length, and zeros up to a block.
    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() - HEADER_BYTES) as u64;
        self.0[40..48].copy_from_slice(&length.to_le_bytes());
        self.0.resize(self.0.len().next_multiple_of(BLOCK_BYTES), 0);
        self.0
    }
}

/// What is left of a body.
struct Body<'a> {
    bytes: &'a [u8],
    /// Of all of it.
    length: usize,
}

impl Body<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn below(&mut self, end: u64) -> Option<u64> {
        self.number().filter(|number| *number < end)
    }

    fn change(&mut self, before: u64, max: u64) -> Option<u64> {
        let zigzag = self.number()?;
        let now = before.wrapping_add((zigzag >> 1) ^ (zigzag & 1).wrapping_neg());
        (now <= max).then_some(now)
    }

    fn sequence(&mut self, before: u64) -> Option<u64> {
        self.change(before, SEQUENCE_END - 1).filter(|sequence| *sequence > 0)
    }

    /// A number of a record behind `before`, by at least one.
    fn rising(&self, before: u64, distance: u64) -> Option<u64> {
        before.checked_add(distance).filter(|sequence| distance > 0 && *sequence < SEQUENCE_END)
    }
}

/// See [`super::decode_anything`]: as it is, and with a header that fits.
#[cfg(feature = "simulation")]
pub(super) fn decode_anything(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    for magic in [CHECKPOINT_MAGIC, BATCH_MAGIC] {
        for sound in [false, true] {
            if sound && bytes.len() >= HEADER_BYTES {
                sealed[..8].copy_from_slice(magic);
                sealed[40..48].copy_from_slice(&((bytes.len() - HEADER_BYTES) as u64).to_le_bytes());
                seal(&mut sealed, 0, 1, 0);
            }
            let checkpoint = decode_checkpoint(&sealed, 0);
            if check_batch(&sealed, 0, 0).is_some() {
                let mut progress = checkpoint.map_or_else(|| Progress::through(5), |found| found.progress);
                for change in decode_batch(&sealed).unwrap_or_default() {
                    progress.apply(&change, |_| {});
                }
                assert!(progress.low() <= progress.done() && progress.done() <= progress.newest());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        let mut progress = Progress::through(3);
        for sequence in 4..400 {
            assert_eq!(progress.pass(sequence), super::super::progress::Passed::Unknown);
            if sequence % 3 == 0 {
                let retry =
                    Retry { due_at_ms: sequence * 7_919 % 1_000_000, attempt: 1 + (sequence % 5) as u32 };
                progress.add(Unfinished { sequence, words: 30 + sequence % 2, retry });
            }
        }
        let retry = Retry { due_at_ms: u64::MAX, attempt: 9 };
        for change in [
            Change::Finished { first: 402, last: 402 },
            Change::Finished { first: 404, last: 500 },
            Change::Retried { sequence: 403, retry },
            Change::Retried { sequence: 12, retry },
            Change::Moved { from: 6, to: 600 },
            Change::Moved { from: 9, to: 601 },
            Change::Moved { from: 601, to: 700 },
        ] {
            progress.apply(&change, |_| {});
        }
        progress
    }

    fn sealed(mut bytes: Vec<u8>, place: u64) -> Vec<u8> {
        seal(&mut bytes, 7, 5, place);
        bytes
    }

    fn same(one: &Progress, other: &Progress) {
        assert!(one.unfinished_since(0).eq(other.unfinished_since(0)));
        assert_eq!(
            (one.base(), one.looked(), &one.ahead, &one.early),
            (other.base(), other.looked(), &other.ahead, &other.early)
        );
        assert_eq!(
            (one.low(), one.done(), one.newest(), one.unfinished_bytes()),
            (other.low(), other.done(), other.newest(), other.unfinished_bytes())
        );
    }

    #[test]
    fn a_checkpoint_reads_back_and_no_flipped_bit_does() {
        let progress = progress();
        assert_eq!((progress.low(), progress.newest()), (11, 700));
        assert_eq!(progress.done(), 399 - 130 + 1 + 97 + 1);
        let bytes = sealed(encode_checkpoint(&progress), 64 << 10);
        let read = decode_checkpoint(&bytes, 7).unwrap();
        assert_eq!((read.generation, read.journal), (5, 4096..4096 + (64 << 10)));
        same(&read.progress, &progress);
        assert!(decode_checkpoint(&bytes, 8).is_none(), "another log's");
        for bit in 0..(HEADER_BYTES + 300) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_checkpoint(&flipped, 7).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_reads_back_where_it_was_written_for() {
        let retry = Retry { due_at_ms: 1_700_000_000_000, attempt: 3 };
        let changes = [
            Change::Retried { sequence: 900, retry },
            Change::Finished { first: 5, last: 905 },
            Change::Moved { from: 4, to: 5_000 },
            Change::Reset { low: 0 },
        ];
        let bytes = sealed(encode_batch(&changes), 8_192);
        assert_eq!(check_batch(&bytes, 7, 8_192), Some(BatchOf { generation: 5, bytes: 4_096 }));
        assert_eq!(decode_batch(&bytes).unwrap(), changes);
        assert_eq!((check_batch(&bytes, 8, 8_192), check_batch(&bytes, 7, 4_096)), (None, None));
    }

    /// Memory that changes and a journal that is replayed onto an older checkpoint end in the same place.
    #[test]
    fn a_replayed_journal_is_what_the_cursor_finds() {
        let mut live = Progress::through(0);
        let mut kept = Progress::through(0);
        let both = |live: &mut Progress, kept: &mut Progress, change: Change| {
            live.apply(&change, |_| {});
            kept.apply(&change, |_| {});
        };
        for sequence in 1..=20 {
            live.pass(sequence);
            live.add(Unfinished { sequence, words: 8, retry: Retry { due_at_ms: 50, attempt: 1 } });
        }
        let retry = Retry { due_at_ms: 90, attempt: 2 };
        both(&mut live, &mut kept, Change::Finished { first: 1, last: 2 });
        both(&mut live, &mut kept, Change::Retried { sequence: 5, retry });
        both(&mut live, &mut kept, Change::Finished { first: 7, last: 9 });
        both(&mut live, &mut kept, Change::Moved { from: 5, to: 21 });
        both(&mut live, &mut kept, Change::Moved { from: 3, to: 22 });
        assert_eq!((live.low(), kept.low(), live.done(), kept.done()), (3, 3, 7, 7));
        while kept.looked() < 22 {
            let sequence = kept.looked() + 1;
            let retry = match kept.pass(sequence) {
                Passed::Finished => continue,
                Passed::Known(retry) => Retry { due_at_ms: retry.due_at_ms.max(50), ..retry },
                Passed::Unknown => Retry { due_at_ms: 50, attempt: 1 },
            };
            kept.add(Unfinished { sequence, words: 8, retry });
        }
        for sequence in [21, 22] {
            let Passed::Known(retry) = live.pass(sequence) else { panic!("{sequence} is a copy") };
            live.add(Unfinished { sequence, words: 8, retry });
        }
        same(&live, &kept);
        assert_eq!(live.retry(21), Some(retry));
        assert_eq!((live.retry(3), live.retry(5), live.retry(9)), (None, None, None));
    }
    use super::super::progress::Passed;
}
