//! One topic's handles: permits, appends, and what is asked of the log as a whole. The lock-free side of a log; the committer is
//! the other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::files::io;
use super::format::{self, SOURCE_BYTES};
use super::group::DiskGroup;
use super::limits::Range;
use super::reader::Reader;
use super::shared::{OwnTopic, TopicShared, charge};
use crate::failpoint;
use crate::port::{
    AppendError, DeadLetter, KEY_BYTES_MAX, Lag, Message, NewRecord, Position, QueueError, Refused, StartAt,
    TAG_BYTES_MAX, TopicState,
};

/// One append in this many has its time measured.
const MEASURE_EVERY: u64 = 16;

/// A topic of a disk queue.
#[derive(Debug, Clone)]
pub struct DiskTopic {
    pub(crate) shared: Arc<TopicShared>,
}

/// Room for one record of a disk log.
#[derive(Debug)]
pub struct DiskPermit {
    shared: Arc<TopicShared>,
    words: u64,
    payload_bytes: usize,
}

/// An append to a disk log.
#[derive(Debug)]
pub struct DiskAppend {
    shared: Arc<TopicShared>,
    outcome: Result<u64, AppendError>,
    started: Option<Instant>,
}

impl DiskTopic {
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn try_permit(&self, payload_bytes: usize) -> Result<DiskPermit, Refused> {
        let Some(own) = &self.shared.own else { return Err(Refused::Closed) };
        own.try_permit(&self.shared, payload_bytes).inspect_err(|_| {
            own.metrics.refused.inc();
        })
    }

    pub(crate) fn append(&self, permit: DiskPermit, record: NewRecord<'_>) -> DiskAppend {
        let shared = Arc::clone(&permit.shared);
        let Some(own) = &shared.own else {
            drop(permit);
            return DiskAppend { shared, outcome: Err(AppendError::Closed), started: None };
        };
        let outcome = own.append((self.shared.now)(), permit, &record);
        let measured = outcome.is_ok_and(|sequence| sequence.is_multiple_of(MEASURE_EVERY));
        DiskAppend { shared, outcome, started: measured.then(Instant::now) }
    }

    pub(crate) fn state(&self) -> TopicState {
        let Some(own) = &self.shared.own else { return TopicState::Closed };
        if own.watermark.failed() {
            TopicState::Poisoned
        } else if own.closed.load(Ordering::Acquire) {
            TopicState::Closed
        } else if own.gone.load(Ordering::Relaxed)
            || own.backlog() >= own.backlog_max
            || own.room_bytes.load(Ordering::Relaxed) < own.charge_max() + own.reserve_bytes
        {
            TopicState::Full
        } else if own.is_stalled() {
            TopicState::Stalled
        } else {
            TopicState::Writable
        }
    }

    pub(crate) fn backlog_percent(&self) -> u64 {
        let Some(own) = &self.shared.own else { return 0 };
        own.backlog().saturating_mul(100) / own.backlog_max.max(1)
    }

    pub(crate) fn end(&self) -> Option<Position> {
        Some(self.shared.durable()).filter(|durable| *durable > 0).map(Position)
    }

    pub(crate) fn group(&self, name: &str, start: StartAt) -> Result<DiskGroup, QueueError> {
        DiskGroup::hold(&self.shared, name, start)
    }

    pub(crate) fn groups(&self) -> Result<Vec<String>, QueueError> {
        self.shared.group_names()
    }

    /// Its second file is what makes a group exist, and goes first: a crash before it is gone leaves the group as it was, one behind
    /// it leaves files that count for nothing, and that the next group of this name forgets.
    pub(crate) fn drop_group(&self, name: &str) -> Result<(), QueueError> {
        let held = DiskGroup::hold_existing(&self.shared, name)?;
        let storage = self.shared.storage();
        let directory = self.shared.group_directory(name);
        // It is not cut off at this moment, which would write one more file.
        let births = self.shared.wait_for_births()?;
        let second = directory.join("offset.1");
        storage.remove(&second).map_err(io("remove", &second))?;
        storage.sync_directory(&directory).map_err(io("sync", &directory))?;
        failpoint::hit("queue.drop-group");
        // The lock file goes with the directory; it is held until then.
        let removed = storage.remove_directory(&directory).map_err(io("remove", &directory));
        // Before the next group of this name can begin, which retention is to hear of.
        self.shared.groups.lock().remove(name);
        drop((births, held));
        self.shared.publish_slowest();
        if let Some(own) = &self.shared.own {
            own.upkeep.ring();
        }
        removed
    }

    pub(crate) fn committed(&self, group: &str) -> Result<Option<Position>, QueueError> {
        let passed = self.shared.standing(group)?.passed();
        Ok((passed > 0).then_some(Position(passed)))
    }

    pub(crate) fn lag(&self, group: &str) -> Result<Lag, QueueError> {
        let standing = self.shared.standing(group)?;
        self.shared.lag(standing)
    }

    pub(crate) fn read(&self, after: Option<Position>, max: usize) -> Result<Vec<Message>, QueueError> {
        let first = after.map_or(1, |position| position.0 + 1);
        let mut reader = Reader::new(Arc::clone(&self.shared.files), first);
        let durable = self.shared.durable();
        let mut messages = Vec::new();
        while messages.len() < max {
            match reader.read(durable)? {
                Some(frame) => messages.push(frame.to_message(1)),
                None => break,
            }
        }
        Ok(messages)
    }

    pub(crate) fn read_last(
        &self,
        through: Option<Position>,
        max: usize,
    ) -> Result<Vec<Message>, QueueError> {
        let last = through.map_or(u64::MAX, |position| position.0).min(self.shared.durable());
        let after = last.saturating_sub(max as u64);
        let mut messages = self.read((after > 0).then_some(Position(after)), max)?;
        messages.retain(|message| message.position.0 <= last);
        Ok(messages)
    }

    /// A sequence is a number of records.
    pub(crate) fn records_between(from: Option<Position>, to: Position) -> u64 {
        to.0.saturating_sub(from.map_or(0, |position| position.0))
    }

    pub(crate) fn dead_letters(
        &self,
        group: &str,
        after: Option<Position>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        self.committed(group)?;
        super::dead_letters::letters(&self.shared, group, after, max)
    }

    pub(crate) fn skipped(&self, group: &str) -> Result<Vec<Range>, QueueError> {
        self.committed(group)?;
        self.shared.limit_files(group).skipped()
    }

    pub(crate) fn position_before(&self, unix_ms: u64) -> Result<Option<Position>, QueueError> {
        self.shared.files.refresh()?;
        // The last indexed batch of an earlier time, then on from there batch by batch.
        let segments = self.shared.files.segments.read().clone();
        let mut found = None;
        for segment in &segments {
            for (at, entry) in segment.index.iter().enumerate() {
                if entry.written_at_ms < unix_ms {
                    found = Some((segment, at));
                }
            }
        }
        let Some((segment, at)) = found else {
            return match segments.first() {
                Some(oldest) if oldest.first_sequence > 1 => {
                    Err(QueueError::NotKept { oldest_ms: self.shared.files.oldest_ms() })
                }
                _ => Ok(None),
            };
        };
        let mut place = segment.place(segment.index[at].offset);
        let mut buffer = Vec::new();
        let mut last = segment.index[at].sequence.saturating_sub(1);
        while let Ok(header) = self.shared.files.read_batch(&place, &mut buffer)? {
            if header.written_at_ms >= unix_ms {
                break;
            }
            last = header.next_sequence() - 1;
            place.offset += header.padded_bytes();
        }
        let last = last.min(self.shared.durable());
        Ok((last > 0).then_some(Position(last)))
    }
}

impl OwnTopic {
    fn try_permit(&self, shared: &Arc<TopicShared>, payload_bytes: usize) -> Result<DiskPermit, Refused> {
        if self.watermark.failed() {
            return Err(Refused::Poisoned);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Refused::Closed);
        }
        if !self.tied.load(Ordering::Acquire) {
            return Err(Refused::Untied);
        }
        if self.gone.load(Ordering::Relaxed) {
            return Err(Refused::Gone);
        }
        if payload_bytes == 0 || payload_bytes > self.payload_bytes_max {
            return Err(Refused::PayloadSize);
        }
        let words = format::frame_words(KEY_BYTES_MAX + TAG_BYTES_MAX, payload_bytes);
        self.reserve(shared, words, payload_bytes, self.backlog_max, self.reserve_bytes)
    }

    /// Room for the copy of a record that is in the log already: its backlog does not grow, and the reserve is for it.
    pub(crate) fn permit_for_copy(
        &self,
        shared: &Arc<TopicShared>,
        copy: &NewRecord<'_>,
    ) -> Result<DiskPermit, Refused> {
        if self.closed.load(Ordering::Acquire) || self.gone.load(Ordering::Relaxed) {
            return Err(Refused::Closed);
        }
        let prefix = copy.key.len() + copy.tag.len() + SOURCE_BYTES;
        let words = format::frame_words(prefix, copy.payload.len());
        self.reserve(shared, words, copy.payload.len(), u64::MAX, 0)
    }

    /// Takes room in ring, backlog and prepared segments, of which it leaves `reserve_bytes`.
    fn reserve(
        &self,
        shared: &Arc<TopicShared>,
        words: u64,
        payload_bytes: usize,
        backlog_max: u64,
        reserve_bytes: i64,
    ) -> Result<DiskPermit, Refused> {
        let held = self.ring.try_reserve(words).ok_or(Refused::RingFull)?;
        let backlog =
            (self.watermark.durable() + held).saturating_sub(self.least_done.load(Ordering::Relaxed));
        if backlog > backlog_max {
            self.ring.give_back(1, words);
            self.upkeep.ring();
            return Err(Refused::BacklogFull);
        }
        let charge = charge(words);
        let taken = self.room_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
            (room >= charge + reserve_bytes).then_some(room - charge)
        });
        match taken {
            Err(_) => {
                self.ring.give_back(1, words);
                self.upkeep.ring();
                Err(Refused::DiskFull)
            }
            Ok(room) => {
                if self.wants_segment(room - charge) && !self.wants_segment(room) {
                    self.upkeep.ring();
                }
                Ok(DiskPermit { shared: Arc::clone(shared), words, payload_bytes })
            }
        }
    }

    fn append(&self, now_ms: u64, permit: DiskPermit, record: &NewRecord<'_>) -> Result<u64, AppendError> {
        let fits = !record.payload.is_empty()
            && record.payload.len() <= permit.payload_bytes
            && record.key.len() <= KEY_BYTES_MAX
            && record.tag.len() <= TAG_BYTES_MAX;
        if !fits {
            return Err(AppendError::RecordSize);
        }
        failpoint::hit("queue.append");
        self.claim(now_ms, permit, record, None)
    }

    /// Appends the copy of a record, with its first times.
    pub(crate) fn append_copy(
        &self,
        appended_at_ms: u64,
        permit: DiskPermit,
        record: &NewRecord<'_>,
        source: u64,
    ) -> Result<u64, AppendError> {
        self.claim(appended_at_ms, permit, record, Some(source))
    }

    fn claim(
        &self,
        appended_at_ms: u64,
        mut permit: DiskPermit,
        record: &NewRecord<'_>,
        source: Option<u64>,
    ) -> Result<u64, AppendError> {
        let prefix = record.key.len() + record.tag.len() + source.map_or(0, |_| SOURCE_BYTES);
        let words = format::frame_words(prefix, record.payload.len());
        let surplus = permit.words - words;
        // From here on the claim accounts for the permit's room.
        permit.words = 0;
        let claim = self.ring.claim(words, format::padding_word(words));
        if surplus > 0 {
            self.ring.give_back(0, surplus);
            self.room_bytes.fetch_add((surplus * 8) as i64, Ordering::Relaxed);
        }
        let mut claim = claim.ok_or(AppendError::Closed)?;
        let sequence = self.base + claim.sequence();
        let first = format::encode_frame(record, appended_at_ms, source, |word| claim.push(word));
        claim.commit(first);
        Ok(sequence)
    }
}

impl DiskPermit {
    pub(crate) fn bytes(&self) -> u64 {
        self.words * 8
    }
}

impl Drop for DiskPermit {
    fn drop(&mut self) {
        if self.words > 0
            && let Some(own) = &self.shared.own
        {
            own.ring.give_back(1, self.words);
            own.room_bytes.fetch_add(charge(self.words), Ordering::Relaxed);
        }
    }
}

impl Future for DiskAppend {
    type Output = Result<Position, AppendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (sequence, Some(own)) = (self.outcome?, &self.shared.own) else {
            return Poll::Ready(Err(AppendError::Closed));
        };
        let Poll::Ready(durable) = own.watermark.poll(sequence, context) else {
            return Poll::Pending;
        };
        if let Some(started) = self.started {
            own.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        }
        Poll::Ready(if durable { Ok(Position(sequence)) } else { Err(AppendError::Uncertain) })
    }
}
