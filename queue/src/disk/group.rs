//! A consumer group held by this process: what it has finished, what waits for its time, and the cursor.
//!
//! Only sequences are kept in memory: of delayed records those not yet delivered, of finished ones the ranges between the
//! unfinished. A due record is read again from the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::dead_letters;
use super::files::{corrupt, io};
use super::names::valid_name;
use super::offsets::{Finished, Progress, Retry, Slots};
use super::reader::Reader;
use super::shared::TopicShared;
use crate::failpoint;
use crate::port::{BehindMax, Message, Position, QueueError, StartAt};
use crate::storage::Lock;

/// Records looked at before other tasks of the thread get a turn.
const SCAN_RECORDS_MAX: usize = 4096;

/// How long and how often a group that begins waits for another one, or for a segment that goes.
const BIRTH_TRY_AGAIN: Duration = Duration::from_millis(2);
const BIRTH_TRIES_MAX: u32 = 1_000;

/// A group of a disk log.
#[derive(Debug)]
pub struct DiskGroup {
    topic: Arc<TopicShared>,
    name: String,
    slots: Slots,
    progress: Progress,
    /// The cursor: records from here on have not been looked at since the last rewind.
    reader: Reader,
    /// For records that are due.
    second_reader: Reader,
    /// Looked at, not finished, not delivered: when each is due.
    waiting: BTreeMap<u64, u64>,
    due: BTreeSet<(u64, u64)>,
    /// The group's own clock never goes back.
    clock_ms: u64,
    /// Whether it may be cut off.
    limited: bool,
    /// The sequence through which it has been told of a cut.
    cut_told: u64,
    dead: Option<dead_letters::DeadLetters>,
    /// Held until drop; last, so that everything is closed before another may take it.
    _lock: Lock,
}

impl DiskGroup {
    pub(crate) fn hold(topic: &Arc<TopicShared>, name: &str, start: StartAt) -> Result<Self, QueueError> {
        valid_name(name)?;
        let storage = topic.storage();
        let directory = topic.group_directory(name);
        storage.create_directory(&directory).map_err(io("create", &directory))?;
        let lock_path = directory.join("lock");
        let lock = storage.lock(&lock_path).map_err(io("lock", &lock_path))?;
        let lock =
            lock.ok_or_else(|| QueueError::GroupHeld { topic: topic.name.clone(), group: name.to_owned() })?;
        let (slots, progress) = {
            // The owner must not retire the oldest segment between our look at it and the slots that hold it.
            let births = wait_for(topic)?;
            topic.files.refresh()?;
            let start = match start {
                StartAt::Oldest => topic.files.oldest().map_or(0, |oldest| oldest - 1),
                StartAt::End => topic.durable(),
            };
            let opened = Slots::open(storage, &directory, topic.files.log_id, start)?;
            storage.sync_directory(&topic.groups_directory()).map_err(io("sync", &directory))?;
            topic.note_group(name, opened.1.finished.low());
            let limits = topic.limit_files(name);
            let (limit, cut) = (limits.limit()?, limits.cut()?);
            if let Some(mark) = topic.groups.lock().get_mut(name) {
                (mark.behind_max, mark.cut) = (limit, cut);
            }
            drop(births);
            opened
        };
        let low = progress.finished.low();
        Ok(Self {
            topic: Arc::clone(topic),
            name: name.to_owned(),
            slots,
            progress,
            reader: Reader::new(Arc::clone(&topic.files), low + 1),
            second_reader: Reader::new(Arc::clone(&topic.files), low + 1),
            waiting: BTreeMap::new(),
            due: BTreeSet::new(),
            clock_ms: 0,
            limited: topic.limit_files(name).limit()?.is_some(),
            cut_told: 0,
            dead: None,
            _lock: lock,
        })
    }

    pub(crate) fn hold_existing(topic: &Arc<TopicShared>, name: &str) -> Result<Self, QueueError> {
        topic.progress(name)?;
        Self::hold(topic, name, StartAt::Oldest)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn committed(&self) -> Option<Position> {
        let low = self.progress.finished.low();
        (low > 0).then_some(Position(low))
    }

    pub(crate) async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, QueueError> {
        let deadline = Instant::now() + wait;
        let topic = Arc::clone(&self.topic);
        loop {
            // Registered before looking, so that no arrival falls between.
            let arrival = topic.arrivals.notified();
            let mut arrival = std::pin::pin!(arrival);
            arrival.as_mut().enable();
            self.meet_cut()?;
            let (messages, more) = self.look(max)?;
            if !messages.is_empty() || max == 0 {
                return Ok(messages);
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            if topic.own.as_ref().is_some_and(|own| own.has_ended.load(std::sync::atomic::Ordering::Acquire))
            {
                return Err(QueueError::Closed);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Vec::new());
            }
            let due = self
                .due
                .first()
                .map(|(due, _)| now + Duration::from_millis(due.saturating_sub(self.clock_ms).max(1)));
            let until = due.map_or(deadline, |due| due.min(deadline));
            tokio::select! {
                biased;
                () = arrival => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// What can be delivered now, and whether there is more to look at.
    fn look(&mut self, max: usize) -> Result<(Vec<Message>, bool), QueueError> {
        self.clock_ms = self.clock_ms.max((self.topic.now)());
        let durable = self.topic.durable();
        let mut messages = self.take_due(max, durable)?;
        let mut looked = 0;
        while messages.len() < max {
            if looked == SCAN_RECORDS_MAX {
                return Ok((messages, true));
            }
            looked += 1;
            let expected = self.reader.next();
            let Some(frame) = self.reader.read(durable)? else { break };
            let sequence = frame.sequence;
            if sequence != expected {
                // Cut off while we looked: the next look tells. What was found so far was there.
                self.reader.seek(expected);
                self.meet_cut()?;
                let found = format!("record {sequence} where record {expected} should be");
                return Err(corrupt(&self.topic.files.directory, 0, found));
            }
            if self.progress.finished.contains(sequence) {
                continue;
            }
            let retry = self.progress.retries.get(&sequence);
            // On a disk that lied the retry may be of a record that is lost, and another one have its number.
            let due = retry.map_or(0, |retry| retry.due_at_ms).max(frame.deliver_at_ms);
            if due > self.clock_ms {
                self.waiting.insert(sequence, due);
                self.due.insert((due, sequence));
            } else {
                messages.push(frame.to_message(retry.map_or(1, |retry| retry.attempt)));
            }
        }
        Ok((messages, false))
    }

    /// Records whose time has come, earliest first, read in the log's order.
    fn take_due(&mut self, max: usize, durable: u64) -> Result<Vec<Message>, QueueError> {
        let mut sequences = Vec::new();
        while let Some((due, sequence)) = self.due.first().copied()
            && due <= self.clock_ms
            && sequences.len() < max
        {
            self.due.remove(&(due, sequence));
            sequences.push((due, sequence));
        }
        let mut in_order = sequences.clone();
        in_order.sort_unstable_by_key(|(_, sequence)| *sequence);
        let mut messages = BTreeMap::new();
        for (at, (_, sequence)) in in_order.iter().enumerate() {
            self.second_reader.seek(*sequence);
            let read = self.second_reader.read(durable);
            match read {
                Ok(Some(frame)) if frame.sequence == *sequence => {
                    let attempt = self.progress.retries.get(sequence).map_or(1, |retry| retry.attempt);
                    messages.insert(*sequence, frame.to_message(attempt));
                }
                Ok(_) => {}
                Err(error) => {
                    self.due.extend(in_order.iter().copied());
                    let _ = at;
                    return Err(error);
                }
            }
        }
        for (_, sequence) in &sequences {
            self.waiting.remove(sequence);
        }
        Ok(sequences.iter().filter_map(|(_, sequence)| messages.remove(sequence)).collect())
    }

    pub(crate) fn commit(&mut self, through: Position) -> Result<(), QueueError> {
        self.check(through)?;
        let mut next = self.progress.clone();
        let mut first = next.finished.low() + 1;
        for sequence in self.waiting.range(..=through.0).map(|(sequence, _)| *sequence) {
            if sequence > first {
                next.finished.insert(first, sequence - 1);
            }
            first = first.max(sequence + 1);
        }
        next.finished.insert(first, through.0);
        next.retries.retain(|sequence, _| !next.finished.contains(*sequence));
        self.keep(next)?;
        if self.reader.next() <= through.0 {
            self.reader.seek(through.0 + 1);
        }
        Ok(())
    }

    pub(crate) fn ack_all(&mut self, positions: &[Position]) -> Result<(), QueueError> {
        let mut next = self.progress.clone();
        for position in positions {
            self.check(*position)?;
            next.finished.insert(position.0, position.0);
            next.retries.remove(&position.0);
        }
        self.keep(next)?;
        for position in positions {
            self.forget_waiting(position.0);
        }
        Ok(())
    }

    pub(crate) fn nack(&mut self, position: Position, delay: Duration) -> Result<(), QueueError> {
        self.check(position)?;
        if self.progress.finished.contains(position.0) {
            return Ok(());
        }
        self.clock_ms = self.clock_ms.max((self.topic.now)());
        let due = self.clock_ms.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let attempt = self.progress.retries.get(&position.0).map_or(1, |retry| retry.attempt) + 1;
        let mut next = self.progress.clone();
        next.retries.insert(position.0, Retry { due_at_ms: due, attempt });
        self.keep(next)?;
        self.forget_waiting(position.0);
        if position.0 < self.reader.next() {
            self.waiting.insert(position.0, due);
            self.due.insert((due, position.0));
        }
        Ok(())
    }

    pub(crate) fn dead_letter(&mut self, message: &Message, reason: &str) -> Result<(), QueueError> {
        self.check(message.position)?;
        if self.dead.is_none() {
            self.dead = Some(dead_letters::DeadLetters::open(&self.topic, &self.name)?);
        }
        if let Some(dead) = &mut self.dead {
            let kept = dead.append(message, reason, (self.topic.now)());
            if kept.is_err() {
                // What a failed write left is only known after a recovery of that log.
                self.dead = None;
            }
            kept?;
        }
        failpoint::hit("queue.dead-letter");
        self.ack_all(&[message.position])
    }

    pub(crate) fn reset(&mut self, through: Option<Position>) -> Result<(), QueueError> {
        let low = through.map_or(0, |position| position.0);
        if low > self.topic.durable() {
            return Err(QueueError::OutOfRange(Position(low)));
        }
        // What the group goes back to must not be retired before the slots hold it.
        let _births = wait_for(&self.topic)?;
        self.topic.files.refresh()?;
        let oldest = self.topic.files.oldest().map_or(0, |oldest| oldest - 1);
        self.keep(Progress { finished: Finished::through(low.max(oldest)), retries: BTreeMap::new() })?;
        // A crash before this leaves a cut that lies ahead again: the group is told of it.
        self.topic.limit_files(&self.name).forget_cut()?;
        if let Some(mark) = self.topic.groups.lock().get_mut(&self.name) {
            mark.cut = 0;
        }
        self.cut_told = 0;
        self.topic.publish_slowest();
        self.rewind();
        Ok(())
    }

    pub(crate) fn rewind(&mut self) {
        self.waiting.clear();
        self.due.clear();
        self.reader.seek(self.progress.finished.low() + 1);
    }

    pub(crate) fn limit_behind(&mut self, limit: Option<BehindMax>) -> Result<(), QueueError> {
        self.topic.limit_files(&self.name).set_limit(limit)?;
        self.limited = limit.is_some();
        if let Some(mark) = self.topic.groups.lock().get_mut(&self.name) {
            mark.behind_max = limit;
        }
        Ok(())
    }

    /// A cut is told first and finished by the next call: a crash in between tells it again.
    fn meet_cut(&mut self) -> Result<(), QueueError> {
        if !self.limited {
            return Ok(());
        }
        let through = match &self.topic.own {
            Some(_) => self.topic.groups.lock().get(&self.name).map_or(0, |mark| mark.cut),
            None => self.topic.limit_files(&self.name).cut()?,
        };
        if self.cut_told > self.progress.finished.low() {
            let mut next = self.progress.clone();
            next.finished.insert(1, self.cut_told);
            next.retries.retain(|sequence, _| !next.finished.contains(*sequence));
            self.keep(next)?;
            self.waiting.retain(|sequence, _| *sequence > self.cut_told);
            self.due.retain(|(_, sequence)| *sequence > self.cut_told);
            if self.reader.next() <= self.cut_told {
                self.reader.seek(self.cut_told + 1);
            }
        }
        let low = self.progress.finished.low();
        if through <= low {
            return Ok(());
        }
        self.cut_told = through;
        Err(QueueError::Cut {
            topic: self.topic.name.clone(),
            group: self.name.clone(),
            records: through - low,
            through: Position(through),
        })
    }

    /// Durable first, in memory second, the retention's bound last.
    fn keep(&mut self, next: Progress) -> Result<(), QueueError> {
        if next != self.progress {
            self.slots.write(&next)?;
            failpoint::hit("queue.offset-publish");
            self.progress = next;
            self.topic.note_group(&self.name, self.progress.finished.low());
        }
        Ok(())
    }

    fn check(&self, position: Position) -> Result<(), QueueError> {
        if position.0 > self.topic.durable() { Err(QueueError::OutOfRange(position)) } else { Ok(()) }
    }

    fn forget_waiting(&mut self, sequence: u64) {
        if let Some(due) = self.waiting.remove(&sequence) {
            self.due.remove(&(due, sequence));
        }
    }
}

/// The lock under which groups begin. Others hold it for a rename or a few small writes.
fn wait_for(topic: &TopicShared) -> Result<Lock, QueueError> {
    let path = topic.births();
    for _ in 0..BIRTH_TRIES_MAX {
        if let Some(lock) = topic.storage().lock(&path).map_err(io("lock", &path))? {
            return Ok(lock);
        }
        std::thread::sleep(BIRTH_TRY_AGAIN);
    }
    Err(io("lock", &path)(std::io::ErrorKind::TimedOut.into()))
}
