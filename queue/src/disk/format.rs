//! The bytes of a log. Owns layouts and checks; does no I/O.
//!
//! A segment file is a run of *batches*, each a whole number of 4 KiB blocks, never rewritten. All integers are little
//! endian. A batch is a [`BatchHeader`] of 96 bytes, `body_bytes` of frames, and zeros up to the block's end:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `FLGBATCH` |
//! | 8 | 2 | format version |
//! | 10 | 2 | header length, 96 |
//! | 12 | 4 | CRC32C of header (this field 0) and body |
//! | 16 | 8 | log id: random, one a topic directory |
//! | 24 | 8 | epoch: one higher each time that a log is opened |
//! | 32 | 8 | number of the segment file |
//! | 40 | 8 | offset in it |
//! | 48 | 8 | sequence of the first record |
//! | 56 | 8 | durable sequence when it was written: proves that everything through there was acknowledged or could be |
//! | 64 | 8 | the log's clock, Unix ms, never going back |
//! | 72 | 4 | records; 0 marks an opening or a closing |
//! | 76 | 4 | body length |
//! | 80 | 4 | CRC of the batch before |
//! | 84 | 12 | zero |
//!
//! A *frame*, in the ring as on the disk, is a whole number of 8-byte words: length in bytes (4), kind (1), tag length (1), key
//! length (2); appended at (8); deliver at (8, 0 is at once); payload length (4), zero (4); key and tag, zeros up to a word;
//! payload, zeros up to a word. The rewritten copy of a record has another kind and, before its key, the sequence that it was copied
//! from (8); its times are the first one's. Zeros never decode, neither as a batch nor as a frame; segment number and offset keep the stale
//! bytes of a recycled segment from decoding.

use std::mem::offset_of;

use crate::port::{KEY_BYTES_MAX, Message, NewRecord, Position, TAG_BYTES_MAX};
use crate::storage::BLOCK_BYTES;

/// Of batches and identity files.
pub(crate) const FORMAT_VERSION: u16 = 1;

/// Bytes of a [`BatchHeader`] on the disk.
pub(crate) const HEADER_BYTES: usize = 96;

/// Bytes of a frame before its key.
pub(crate) const FRAME_HEADER_BYTES: usize = 32;

/// Bytes beyond its frame that a record may cost on the disk, when it is alone in its batch.
pub(crate) const BATCH_OVERHEAD_MAX: u64 = (HEADER_BYTES + BLOCK_BYTES) as u64;

const MAGIC: [u8; 8] = *b"FLGBATCH";
const KIND_RECORD: u8 = 1;
const KIND_PADDING: u8 = 2;
const KIND_COPY: u8 = 3;

/// Bytes that a copy has more than its record.
pub(crate) const SOURCE_BYTES: usize = 8;

/// What stands before the records of a batch; the layout is the disk's.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BatchHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: u16,
    pub(super) header_bytes: u16,
    pub(crate) crc: u32,
    pub(crate) log_id: u64,
    pub(crate) epoch: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) first_sequence: u64,
    pub(crate) durable_sequence: u64,
    pub(crate) written_at_ms: u64,
    pub(crate) count: u32,
    pub(crate) body_bytes: u32,
    pub(crate) previous_crc: u32,
    pub(super) reserved: [u8; 12],
}

const _: () = {
    assert!(size_of::<BatchHeader>() == HEADER_BYTES);
    assert!(offset_of!(BatchHeader, version) == 8 && offset_of!(BatchHeader, header_bytes) == 10);
    assert!(offset_of!(BatchHeader, crc) == 12 && offset_of!(BatchHeader, log_id) == 16);
    assert!(offset_of!(BatchHeader, epoch) == 24 && offset_of!(BatchHeader, segment) == 32);
    assert!(offset_of!(BatchHeader, offset) == 40 && offset_of!(BatchHeader, first_sequence) == 48);
    assert!(offset_of!(BatchHeader, durable_sequence) == 56);
    assert!(offset_of!(BatchHeader, written_at_ms) == 64 && offset_of!(BatchHeader, count) == 72);
    assert!(offset_of!(BatchHeader, body_bytes) == 76 && offset_of!(BatchHeader, previous_crc) == 80);
    assert!(HEADER_BYTES.is_multiple_of(8) && FRAME_HEADER_BYTES.is_multiple_of(8));
    assert!(KEY_BYTES_MAX <= u16::MAX as usize && TAG_BYTES_MAX <= u8::MAX as usize);
};

/// Why bytes are no batch of the log at this place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Nothing was ever written here, or another life of the segment wrote it.
    Absent,
    /// A sound batch of another format version.
    Version(u16),
    /// Something that may have been a batch.
    Damaged(&'static str),
}

impl BatchHeader {
    /// The bytes that the batch takes in its file.
    pub(crate) fn padded_bytes(&self) -> u64 {
        padded(self.body_bytes as usize) as u64
    }

    /// The sequence after its last record.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.count))
    }

    /// Completes a batch whose body already stands behind the header's place: writes the header, zeroes the rest of the last
    /// block, and returns the CRC.
    pub(crate) fn seal(mut self, batch: &mut [u8]) -> u32 {
        self.magic = MAGIC;
        self.version = FORMAT_VERSION;
        self.header_bytes = HEADER_BYTES as u16;
        self.crc = 0;
        let end = HEADER_BYTES + self.body_bytes as usize;
        self.write(batch);
        batch[end..padded(self.body_bytes as usize)].fill(0);
        self.crc = crc32c::crc32c(&batch[..end]);
        batch[12..16].copy_from_slice(&self.crc.to_le_bytes());
        self.crc
    }

    /// Reads the header alone, unchecked but for what tells how long the batch is.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Self, Invalid> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(Invalid::Absent);
        };
        if bytes[..8] != MAGIC {
            let zeros = bytes.iter().all(|byte| *byte == 0);
            return Err(if zeros { Invalid::Absent } else { Invalid::Damaged("no batch header") });
        }
        let header = Self::read(bytes);
        let body = header.body_bytes as usize;
        if header.version == FORMAT_VERSION
            && (usize::from(header.header_bytes) != HEADER_BYTES || !body.is_multiple_of(8))
        {
            return Err(Invalid::Damaged("lengths that cannot be"));
        }
        Ok(header)
    }

    /// Checks a whole batch, header and body.
    pub(crate) fn check(bytes: &[u8]) -> Result<Self, Invalid> {
        let header = Self::peek(bytes)?;
        let end = HEADER_BYTES + header.body_bytes as usize;
        let Some(batch) = bytes.get(..end) else {
            return Err(Invalid::Damaged("a batch that ends beyond its file"));
        };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&batch[..12]), &[0; 4]);
        if crc32c::crc32c_append(crc, &batch[16..]) != header.crc {
            return Err(Invalid::Damaged("a checksum that does not match"));
        }
        if header.version != FORMAT_VERSION {
            return Err(Invalid::Version(header.version));
        }
        Ok(header)
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[..HEADER_BYTES].fill(0);
        bytes[..8].copy_from_slice(&self.magic);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.header_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.crc.to_le_bytes());
        let longs = [
            self.log_id,
            self.epoch,
            self.segment,
            self.offset,
            self.first_sequence,
            self.durable_sequence,
            self.written_at_ms,
        ];
        for (at, long) in longs.iter().enumerate() {
            bytes[16 + 8 * at..24 + 8 * at].copy_from_slice(&long.to_le_bytes());
        }
        for (at, word) in [self.count, self.body_bytes, self.previous_crc].iter().enumerate() {
            bytes[72 + 4 * at..76 + 4 * at].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn read(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut magic = [0; 8];
        magic.copy_from_slice(&bytes[..8]);
        let long = |at: usize| read_u64(bytes, at);
        let word = |at: usize| read_u32(bytes, at);
        Self {
            magic,
            version: u16::from_le_bytes([bytes[8], bytes[9]]),
            header_bytes: u16::from_le_bytes([bytes[10], bytes[11]]),
            crc: word(12),
            log_id: long(16),
            epoch: long(24),
            segment: long(32),
            offset: long(40),
            first_sequence: long(48),
            durable_sequence: long(56),
            written_at_ms: long(64),
            count: word(72),
            body_bytes: word(76),
            previous_crc: word(80),
            reserved: [0; 12],
        }
    }
}

/// The bytes on the disk of a batch with this body.
pub(crate) fn padded(body_bytes: usize) -> usize {
    (HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES)
}

/// The little-endian number at `at`; the caller has checked the length.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The little-endian number at `at`; the caller has checked the length.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Words of the frame of a record with these lengths.
pub(crate) fn frame_words(prefix_bytes: usize, payload_bytes: usize) -> u64 {
    ((FRAME_HEADER_BYTES + prefix_bytes).next_multiple_of(8) + payload_bytes.next_multiple_of(8)) as u64 / 8
}

/// The first word of a frame that only fills a place.
pub(crate) fn padding_word(words: u64) -> u64 {
    (words * 8) | (u64::from(KIND_PADDING) << 32)
}

/// Hands out the words of a record's frame but for the first, and returns that one, which is to be stored last. `source`: the
/// sequence that it is a copy of.
pub(crate) fn encode_frame(
    record: &NewRecord<'_>,
    appended_at_ms: u64,
    source: Option<u64>,
    mut push: impl FnMut(u64),
) -> u64 {
    const PREFIX_MAX: usize = (KEY_BYTES_MAX + TAG_BYTES_MAX).next_multiple_of(8);
    let prefix = record.key.len() + record.tag.len();
    let mut names = [0; PREFIX_MAX];
    names[..record.key.len()].copy_from_slice(record.key);
    names[record.key.len()..prefix].copy_from_slice(record.tag.as_bytes());
    push(appended_at_ms);
    push(record.deliver_at_ms.unwrap_or(0));
    push(record.payload.len() as u64);
    if let Some(source) = source {
        push(source);
    }
    for word in names[..prefix.next_multiple_of(8)].chunks_exact(8) {
        push(read_u64(word, 0));
    }
    let words = record.payload.chunks_exact(8);
    let rest = words.remainder();
    for word in words {
        push(read_u64(word, 0));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        push(u64::from_le_bytes(last));
    }
    let kind = if source.is_some() { KIND_COPY } else { KIND_RECORD };
    let prefix = prefix + if source.is_some() { SOURCE_BYTES } else { 0 };
    (frame_words(prefix, record.payload.len()) * 8)
        | (u64::from(kind) << 32)
        | ((record.tag.len() as u64) << 40)
        | ((record.key.len() as u64) << 48)
}

/// A record in its batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) sequence: u64,
    /// Of the whole frame.
    pub(crate) words: u64,
    /// What it is a copy of.
    pub(crate) source: Option<u64>,
    pub(crate) appended_at_ms: u64,
    pub(crate) deliver_at_ms: u64,
    pub(crate) key: &'a [u8],
    pub(crate) tag: &'a str,
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    pub(crate) fn to_message(self, attempt: u32) -> Message {
        Message {
            position: Position(self.sequence),
            key: self.key.to_vec(),
            tag: self.tag.to_owned(),
            payload: self.payload.to_vec(),
            appended_at_ms: self.appended_at_ms,
            deliver_at_ms: (self.deliver_at_ms != 0).then_some(self.deliver_at_ms),
            attempt,
        }
    }
}

/// The frames of a checked batch's body, in order; padding is left out. `None` if the body is not `count` frames.
pub(crate) fn decode_frames(header: &BatchHeader, body: &[u8]) -> Option<Vec<(u64, usize)>> {
    let mut places = Vec::with_capacity((header.count as usize).min(body.len() / FRAME_HEADER_BYTES + 1));
    let mut at = 0;
    for sequence in header.first_sequence..header.next_sequence() {
        let first = body.get(at..at + 8).map(|word| read_u64(word, 0))?;
        let length = (first & u64::from(u32::MAX)) as usize;
        if length == 0 || !length.is_multiple_of(8) || body.len() - at < length {
            return None;
        }
        if matches!((first >> 32) as u8, KIND_RECORD | KIND_COPY) {
            places.push((sequence, at));
        }
        at += length;
    }
    (at == body.len()).then_some(places)
}

/// The record whose frame begins at `at` in a body.
pub(crate) fn decode_frame(sequence: u64, body: &[u8], at: usize) -> Option<Frame<'_>> {
    let first = body.get(at..at + 8).map(|word| read_u64(word, 0))?;
    let frame = body.get(at..at + (first & u64::from(u32::MAX)) as usize)?;
    if frame.len() < FRAME_HEADER_BYTES {
        return None;
    }
    let (source, key_at) = match (first >> 32) as u8 {
        KIND_RECORD => (None, FRAME_HEADER_BYTES),
        KIND_COPY => {
            let end = FRAME_HEADER_BYTES + SOURCE_BYTES;
            (Some(read_u64(frame.get(FRAME_HEADER_BYTES..end)?, 0)), end)
        }
        _ => return None,
    };
    let tag_bytes = usize::from((first >> 40) as u8);
    let key_bytes = usize::from((first >> 48) as u16);
    let key_end = key_at + key_bytes;
    let payload_at = (key_end + tag_bytes).next_multiple_of(8);
    let payload_bytes = read_u32(frame, 24) as usize;
    Some(Frame {
        sequence,
        words: frame.len() as u64 / 8,
        source,
        appended_at_ms: read_u64(frame, 8),
        deliver_at_ms: read_u64(frame, 16),
        key: frame.get(key_at..key_end)?,
        tag: std::str::from_utf8(frame.get(key_end..key_end + tag_bytes)?).ok()?,
        payload: frame.get(payload_at..payload_at.checked_add(payload_bytes)?)?,
    })
}
