//! Rewriting: a group's waiting records are copied from the oldest segment to the log's end, so that the segment can go. Decides and
//! appends; that a record has moved is the group's to say, when its copy is durable. Never touches a record that was pulled.
//!
//! The log goes from its oldest segment on, so that one record that waits for 30 days would hold everything behind it. When all
//! segments but the newest are together more than twice as long as what is unfinished, the oldest segment is rewritten: at
//! least as much of the log is then garbage as is ever copied to get at it. Besides, no more is copied than has been appended and
//! finished since, so that nothing is copied in circles, however badly copies fill their blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::files::{LogFiles, corrupt};
use super::pairs::Pairs;
use super::progress::Progress;
use super::reader::Reader;
use super::shared::{OwnTopic, TopicShared, charge};
use crate::failpoint;
use crate::port::{Message, NewRecord, QueueError};

/// Bytes of records that one round copies at most. Small rings and segments lower it.
pub(crate) const ROUND_BYTES_MAX: u64 = 256 * 1024;

/// Unfinished records of the oldest segment that one round looks at.
const ROUND_RECORDS_MAX: usize = 4096;

/// What one group's holder is rewriting.
#[derive(Debug)]
pub(crate) struct Rewriting {
    reader: Reader,
    /// From where to where: copies that the group's journal does not know yet.
    moves: BTreeMap<u64, u64>,
    /// Bytes that may still be copied.
    credit_bytes: u64,
}

/// Records that are to be copied.
#[derive(Debug, Default)]
struct Round {
    records: Vec<Message>,
    bytes: u64,
    charge: i64,
}

impl Rewriting {
    pub(crate) fn new(files: &Arc<LogFiles>) -> Self {
        // What is in the log by now may be copied once.
        let credit_bytes = files.segments.read().iter().map(|segment| segment.bytes).sum();
        Self { reader: Reader::new(Arc::clone(files), 0), moves: BTreeMap::new(), credit_bytes }
    }

    /// A record was passed by the cursor, or finished.
    pub(crate) fn earn(&mut self, words: u64) {
        self.credit_bytes = self.credit_bytes.saturating_add(words * 8);
    }

    /// The cursor found the copy of a record that still waits: a crash came between the copy and the journal.
    /// Returns another copy of it that was found before.
    pub(crate) fn found(&mut self, from: u64, to: u64) -> Option<u64> {
        self.moves.insert(from, to).filter(|other| *other != to)
    }

    /// The cursor found the copy of a record that does not wait: it is none, even if the record waits again later.
    pub(crate) fn drop_copy(&mut self, from: u64, to: u64) {
        if self.moves.get(&from) == Some(&to) {
            self.moves.remove(&from);
        }
    }

    /// Copies that are durable, and so may be said to have taken their records' place. See [`Rewriting::keep`].
    pub(crate) fn durable(&mut self, durable: u64) -> BTreeMap<u64, u64> {
        let all = self.moves.values().all(|to| *to <= durable);
        if all { std::mem::take(&mut self.moves) } else { BTreeMap::new() }
    }

    /// The journal did not take them: again later.
    pub(crate) fn keep(&mut self, moves: BTreeMap<u64, u64>) {
        self.moves.extend(moves);
    }

    pub(crate) fn forget(&mut self) {
        self.moves.clear();
    }

    /// Begins one more round if that is wanted and there is room, in the ring and on the disk, beside everybody else's appends.
    ///
    /// A crash leaves copies that no journal knows of: the cursor finds them, each beside a record that waits, and takes one of
    /// them for the other.
    pub(crate) fn begin(
        &mut self,
        topic: &Arc<TopicShared>,
        progress: &Progress,
        waiting: &Pairs,
    ) -> Result<(), QueueError> {
        let Some(own) = topic.own.as_ref().filter(|own| own.rewrites) else { return Ok(()) };
        if !self.moves.is_empty() {
            return Ok(());
        }
        let Some(end) = self.end(topic, progress) else { return Ok(()) };
        let round = self.gather(topic, own, progress, waiting, end)?;
        let records: Vec<_> = round.records.iter().map(as_new).collect();
        let mut permits = Vec::with_capacity(records.len());
        let mut bytes = 0;
        for record in &records {
            let Ok(permit) = own.permit_for_copy(topic, record) else { break };
            bytes += permit.bytes();
            permits.push(permit);
        }
        // A few records in a batch of their own would fill little of their block.
        if 2 * bytes < round.bytes || permits.is_empty() {
            return Ok(());
        }
        failpoint::hit("queue.rewrite");
        own.metrics.rewritten.inc_by(permits.len() as u64);
        for ((permit, record), message) in permits.into_iter().zip(&records).zip(&round.records) {
            let copied = own.append_copy(message.appended_at_ms, permit, record, message.position.0);
            let Ok(to) = copied else { break };
            self.moves.insert(message.position.0, to);
        }
        self.credit_bytes = self.credit_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// The end of the segment to rewrite, if it is time to.
    fn end(&self, topic: &TopicShared, progress: &Progress) -> Option<u64> {
        if self.credit_bytes == 0 || topic.groups.lock().len() != 1 {
            return None;
        }
        let segments = topic.files.segments.read();
        let (newest, closed) = segments.split_last()?;
        // What the cursor has not passed may be waiting too.
        if progress.looked() + 1 < newest.first_sequence {
            return None;
        }
        let closed_bytes: u64 = closed.iter().map(|segment| segment.bytes).sum();
        let end = closed.get(1).unwrap_or(newest).first_sequence;
        (closed_bytes > 2 * progress.unfinished_bytes()).then_some(end)
    }

    fn gather(
        &mut self,
        topic: &TopicShared,
        own: &OwnTopic,
        progress: &Progress,
        waiting: &Pairs,
        end: u64,
    ) -> Result<Round, QueueError> {
        let durable = own.watermark.durable();
        let mut round = Round::default();
        // Each may come to be alone in its block; half of the room is left to others.
        let charge_max = own.reserve_bytes.max(own.room_bytes.load(Ordering::Relaxed) / 2);
        let oldest = progress.unfinished_since(0).take_while(|found| found.sequence < end);
        for found in oldest.take(ROUND_RECORDS_MAX) {
            if !waiting.contains((found.retry.due_at_ms, found.sequence)) {
                continue;
            }
            round.bytes += found.words * 8;
            round.charge += charge(found.words + 1);
            let is_full = round.bytes > own.copy_bytes_max || round.charge > charge_max;
            if is_full && !round.records.is_empty() {
                round.bytes -= found.words * 8;
                break;
            }
            self.reader.seek(found.sequence);
            match self.reader.read(durable)? {
                Some(frame) if frame.sequence == found.sequence => {
                    round.records.push(frame.to_message(found.retry.attempt));
                }
                _ => return Err(lost(&topic.files, found.sequence)),
            }
        }
        Ok(round)
    }
}

/// The error for a record that waits and is not in the log.
pub(crate) fn lost(files: &LogFiles, sequence: u64) -> QueueError {
    corrupt(&files.directory, 0, format!("record {sequence}, which is not finished, is not in the log"))
}

fn as_new(message: &Message) -> NewRecord<'_> {
    let Message { key, tag, payload, deliver_at_ms, .. } = message;
    NewRecord { key, tag, deliver_at_ms: *deliver_at_ms, payload }
}

/// The largest round of a ring of so many bytes: a quarter of it, so that it is never full of copies.
pub(crate) fn round_bytes(ring_bytes: usize) -> u64 {
    ROUND_BYTES_MAX.min(ring_bytes as u64 / 4)
}

impl OwnTopic {
    /// Whether copies that were appended will ever be durable.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.watermark.failed() || self.has_ended.load(Ordering::Acquire)
    }
}
