//! Writing batches: one at a time, each a run of whole blocks behind the last, in segments that were zeroed before.

use std::sync::Arc;

use super::files::{LogFiles, corrupt, io};
use super::format::{BatchHeader, HEADER_BYTES, padded};
use super::recovery::Recovered;
use crate::failpoint;
use crate::port::QueueError;
use crate::storage::{Access, AlignedBuffer, BLOCK_BYTES, File, SyncMethod};

/// Bytes of zeros written at once into a new segment: few enough that a batch in between does not wait long.
const ZEROES_BYTES: usize = 256 * 1024;

/// Bytes of the disk that a new segment leaves to others, such as the offsets and a database beside the log. Found out before it is
/// written: to fill the disk and free it again, time after time, would meet them all the same.
const FREE_BYTES_MIN: u64 = 8 << 20;

/// The one writer of a log.
#[derive(Debug)]
pub(crate) struct Writer {
    files: Arc<LogFiles>,
    method: SyncMethod,
    epoch: u64,
    active: Option<Active>,
    previous_crc: u32,
    clock_ms: u64,
    next_sequence: u64,
    buffer: AlignedBuffer,
    filled: usize,
}

#[derive(Debug)]
struct Active {
    file: File,
    number: u64,
    offset: u64,
    bytes: u64,
}

impl Writer {
    /// Continues a recovered log in a new epoch; batches have bodies of at most `body_bytes_max`.
    pub(crate) fn new(
        files: Arc<LogFiles>,
        method: SyncMethod,
        recovered: &Recovered,
        body_bytes_max: usize,
    ) -> Self {
        Self {
            files,
            method,
            epoch: recovered.epoch + 1,
            active: None,
            previous_crc: recovered.previous_crc,
            clock_ms: recovered.clock_ms,
            next_sequence: recovered.next_sequence,
            buffer: AlignedBuffer::new(padded(body_bytes_max)),
            filled: 0,
        }
    }

    /// The sequence that the next record gets.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Bytes of body that the active segment and the buffer still take.
    pub(crate) fn body_room(&self) -> usize {
        let segment = self.active.as_ref().map_or(0, |active| (active.bytes - active.offset) as usize);
        segment.min(self.buffer.bytes().len()).saturating_sub(HEADER_BYTES)
    }

    /// Bytes written into the active segment so far, and its length.
    pub(crate) fn active_bytes(&self) -> Option<(u64, u64)> {
        self.active.as_ref().map(|active| (active.offset, active.bytes))
    }

    /// Goes on in a prepared segment, from its first byte.
    pub(crate) fn enter(&mut self, number: u64, bytes: u64) -> Result<(), QueueError> {
        let path = self.files.segment_path(number);
        let file = self.files.storage.open(&path, Access::Append(self.method)).map_err(io("open", &path))?;
        self.active = Some(Active { file, number, offset: 0, bytes });
        Ok(())
    }

    /// The place for a body's words.
    pub(crate) fn body(&mut self) -> BodyWords<'_> {
        BodyWords { body: &mut self.buffer.bytes_mut()[HEADER_BYTES..], filled: &mut self.filled }
    }

    /// Makes what was pushed one batch of `count` records, which is to be written next.
    pub(crate) fn seal(
        &mut self,
        count: u32,
        durable_sequence: u64,
        now_ms: u64,
    ) -> std::io::Result<BatchHeader> {
        let active = self.active.as_ref().ok_or(std::io::ErrorKind::StorageFull)?;
        self.clock_ms = self.clock_ms.max(now_ms);
        let mut header = BatchHeader {
            log_id: self.files.log_id,
            epoch: self.epoch,
            segment: active.number,
            offset: active.offset,
            first_sequence: self.next_sequence,
            durable_sequence,
            written_at_ms: self.clock_ms,
            count,
            body_bytes: self.filled as u32,
            previous_crc: self.previous_crc,
            ..BatchHeader::default()
        };
        let bytes = padded(self.filled);
        header.crc = header.seal(&mut self.buffer.bytes_mut()[..bytes]);
        Ok(header)
    }

    /// Writes the sealed batch. It is not durable before [`Writer::sync`].
    ///
    /// A crash while it is under way leaves any subset of its sectors: the checksum then fails, nothing later proves that it
    /// was acknowledged, and recovery drops it. The sectors of earlier batches are never touched.
    pub(crate) fn write(&mut self, header: &BatchHeader) -> std::io::Result<()> {
        let active = self.active.as_mut().ok_or(std::io::ErrorKind::StorageFull)?;
        let bytes = padded(self.filled);
        if failpoint::hit("queue.write") {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        active.file.write_all_at(&self.buffer.bytes()[..bytes], active.offset)?;
        active.offset += bytes as u64;
        self.previous_crc = header.crc;
        self.next_sequence = header.next_sequence();
        self.filled = 0;
        Ok(())
    }

    /// Makes what was written durable. After an error nobody knows what is; the log must take nothing more.
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        if failpoint::hit("queue.sync") {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        match (&self.active, self.method) {
            (Some(active), SyncMethod::DataSync) => active.file.sync(),
            _ => Ok(()),
        }
    }

    /// Tells the readers' table of a durable batch.
    pub(crate) fn note(&self, header: &BatchHeader) -> Result<(), QueueError> {
        self.files.note(header, self.active.as_ref().map_or(0, |active| active.bytes))
    }
}

/// Takes a body's words one after the other.
pub(crate) struct BodyWords<'a> {
    body: &'a mut [u8],
    filled: &'a mut usize,
}

impl BodyWords<'_> {
    pub(crate) fn extend(&mut self, words: &[u64]) {
        let place = &mut self.body[*self.filled..*self.filled + words.len() * 8];
        for (bytes, word) in place.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        *self.filled += words.len() * 8;
    }
}

/// Makes what recovery read durable before anybody hears of it: a killed process may have left it in the page cache alone,
/// and after a sync that failed the kernel takes such pages for clean, so that a sync alone would do nothing.
///
/// The last batch, the only one that can be in doubt, is therefore written again, byte for byte; a crash on the way leaves
/// any mixture of equal sectors.
pub(crate) fn settle_tail(files: &LogFiles, recovered: &Recovered) -> Result<(), QueueError> {
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

/// Whether the disk takes so many bytes more and leaves others what they need; true where only trying tells.
pub(crate) fn has_room(files: &LogFiles, bytes: u64) -> bool {
    files.storage.bytes_free(&files.directory).is_none_or(|free| free >= bytes + FREE_BYTES_MIN)
}

/// Makes a zeroed segment file of whole blocks, durable, its name included.
///
/// A crash on the way leaves a draft, which the next open removes, or a segment without a batch, which it reuses.
pub(crate) fn prepare(files: &LogFiles, number: u64, bytes: u64, method: SyncMethod) -> std::io::Result<()> {
    if failpoint::hit("queue.prepare") {
        return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
    }
    if !has_room(files, bytes) {
        return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let draft = files.directory.join(format!("{number:016x}.draft"));
    let result = (|| {
        let created = files.storage.open(&draft, Access::Write)?;
        let file = if method == SyncMethod::DirectWrite && files.storage.is_real() {
            // Zeros that go around the page cache leave no pages there for the batches to invalidate.
            files.storage.open(&draft, Access::Append(SyncMethod::DirectWrite))?
        } else {
            created
        };
        let zeros = AlignedBuffer::new(ZEROES_BYTES.min(bytes as usize));
        let mut offset = 0;
        while offset < bytes {
            let chunk = zeros.bytes().len().min((bytes - offset) as usize);
            file.write_all_at(&zeros.bytes()[..chunk], offset)?;
            offset += chunk as u64;
        }
        file.sync()?;
        files.storage.rename(&draft, &files.segment_path(number))?;
        files.storage.sync_directory(&files.directory)
    })();
    if result.is_err() {
        // What cannot be removed now is removed at the next open. Synced, since only then its blocks are free.
        let _ = files.storage.remove(&draft).and_then(|()| files.storage.sync_directory(&files.directory));
    }
    result
}

/// Gives a segment file that nobody needs any more a new number, under which none of its stale batches decodes.
///
/// A crash before the directory's sync leaves it under the old name, as an old segment that all groups are past.
pub(crate) fn recycle(files: &LogFiles, from: u64, to: u64) -> std::io::Result<()> {
    if failpoint::hit("queue.recycle") {
        return Err(std::io::Error::from_raw_os_error(libc::EIO));
    }
    files.storage.rename(&files.segment_path(from), &files.segment_path(to))?;
    files.storage.sync_directory(&files.directory)
}

/// Bytes of a segment that room may be promised for: the rest may be too short for the next record, or goes to the opening
/// and closing batches.
pub(crate) fn promised_bytes(segment_bytes: u64, frame_bytes_max: u64) -> u64 {
    segment_bytes.saturating_sub(frame_bytes_max + 4 * BLOCK_BYTES as u64)
}
