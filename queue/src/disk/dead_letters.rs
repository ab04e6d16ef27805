//! Dead letters of one group: a small log of its own below the group, written by whoever holds the group.
//!
//! A letter is a record with the message's key and tag, and the payload: source position (8), attempt (4), length of the
//! reason (4), reason, the message's payload; little endian. Letters are numbered by their own positions.

use std::sync::Arc;

use super::files::{LogFiles, io};
use super::format::{self, encode_frame, read_u32, read_u64};
use super::reader::Reader;
use super::recovery::recover;
use super::shared::TopicShared;
use super::writer::{Writer, prepare, settle_tail};
use crate::port::{
    DeadLetter, KEY_BYTES_MAX, Message, NewRecord, PAYLOAD_BYTES_MAX, Position, QueueError, TAG_BYTES_MAX,
};
use crate::storage::SyncMethod;

/// Bytes of a segment of dead letters.
const SEGMENT_BYTES: u64 = 256 * 1024;

/// Longest kept reason, in bytes; a longer one is cut.
const REASON_BYTES_MAX: usize = 1024;

const LETTER_HEADER_BYTES: usize = 16;

/// The letters of a group that this process holds.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    files: Arc<LogFiles>,
    writer: Writer,
    next_number: u64,
    durable: u64,
}

impl DeadLetters {
    pub(crate) fn open(topic: &TopicShared, group: &str) -> Result<Self, QueueError> {
        let files = Arc::new(letter_files(topic, group));
        let storage = &files.storage;
        storage.create_directory(&files.directory).map_err(io("create", &files.directory))?;
        let recovered = recover(&files, 0)?;
        settle_tail(&files, &recovered)?;
        let body_bytes_max = 8 * frame_words_max() as usize;
        let writer = Writer::new(Arc::clone(&files), SyncMethod::DataSync, &recovered, body_bytes_max);
        let durable = recovered.next_sequence - 1;
        Ok(Self { files, writer, next_number: recovered.last_number + 1, durable })
    }

    /// Durable when it returns. After an error this value must not be used again.
    pub(crate) fn append(&mut self, message: &Message, reason: &str, now_ms: u64) -> Result<(), QueueError> {
        let fail = |error| io("write", &self.files.directory)(error);
        let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
        let mut payload = Vec::with_capacity(LETTER_HEADER_BYTES + reason.len() + message.payload.len());
        payload.extend_from_slice(&message.position.0.to_le_bytes());
        payload.extend_from_slice(&message.attempt.to_le_bytes());
        payload.extend_from_slice(&(reason.len() as u32).to_le_bytes());
        payload.extend_from_slice(reason.as_bytes());
        payload.extend_from_slice(&message.payload);
        let record =
            NewRecord { key: &message.key, tag: &message.tag, deliver_at_ms: None, payload: &payload };
        let words = format::frame_words(message.key.len() + message.tag.len(), payload.len());
        if self.writer.body_room() < words as usize * 8 {
            prepare(&self.files, self.next_number, SEGMENT_BYTES, SyncMethod::DataSync).map_err(fail)?;
            self.writer.enter(self.next_number, SEGMENT_BYTES)?;
            self.next_number += 1;
        }
        let mut frame = Vec::with_capacity(words as usize);
        let first = encode_frame(&record, now_ms, None, |word| frame.push(word));
        let mut body = self.writer.body();
        body.extend(&[first]);
        body.extend(&frame);
        let header = self.writer.seal(1, self.durable, now_ms).map_err(fail)?;
        self.writer.write(&header).map_err(fail)?;
        self.writer.sync().map_err(fail)?;
        self.writer.note(&header)?;
        self.durable = header.first_sequence;
        Ok(())
    }
}

/// Reads up to `max` letters of a group after `after`, whoever holds it. A letter that is being written is not seen yet.
pub(crate) fn letters(
    topic: &TopicShared,
    group: &str,
    after: Option<Position>,
    max: usize,
) -> Result<Vec<DeadLetter>, QueueError> {
    let files = Arc::new(letter_files(topic, group));
    if !files.storage.exists(&files.directory).map_err(io("look for", &files.directory))? {
        return Ok(Vec::new());
    }
    let durable = recover(&files, 0)?.next_sequence - 1;
    let mut reader = Reader::new(files, after.map_or(1, |position| position.0 + 1));
    let mut letters = Vec::new();
    while letters.len() < max
        && let Some(frame) = reader.read(durable)?
    {
        let message = frame.to_message(1);
        letters.extend(decode(message));
    }
    Ok(letters)
}

fn decode(mut message: Message) -> Option<DeadLetter> {
    let bytes = std::mem::take(&mut message.payload);
    let reason_bytes = read_u32(bytes.get(..LETTER_HEADER_BYTES)?, 12) as usize;
    let rest = &bytes[LETTER_HEADER_BYTES..];
    let reason = String::from_utf8_lossy(rest.get(..reason_bytes)?).into_owned();
    message.payload = rest[reason_bytes..].to_vec();
    message.attempt = read_u32(&bytes, 8);
    let letter = std::mem::replace(&mut message.position, Position(read_u64(&bytes, 0)));
    let at_ms = message.appended_at_ms;
    Some(DeadLetter { letter, message, reason, at_ms })
}

fn letter_files(topic: &TopicShared, group: &str) -> LogFiles {
    let directory = topic.group_directory(group).join("dead");
    LogFiles::new(topic.storage().clone(), directory, topic.files.log_id, false)
}

fn frame_words_max() -> u64 {
    let payload = LETTER_HEADER_BYTES + REASON_BYTES_MAX + PAYLOAD_BYTES_MAX;
    format::frame_words(KEY_BYTES_MAX + TAG_BYTES_MAX, payload)
}
