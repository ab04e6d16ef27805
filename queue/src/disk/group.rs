//! A consumer group held by this process: what it has finished, what waits for its time, and the cursor.
//!
//! Only numbers are kept in memory: of each record that the cursor has passed and the group has not finished, and of those among them
//! that wait, in the order of their times. A due record is read again from the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::dead_letters;
use super::files::io;
use super::names::valid_name;
use super::offsets::Slots;
use super::pairs::Pairs;
use super::progress::{AT_ONCE, Change, DUE_MS_MAX, Passed, Progress, Retry, Unfinished};
use super::reader::Reader;
use super::rewriting::Rewriting;
use super::shared::{Standing, TopicShared};
use crate::failpoint;
use crate::port::{Message, Position, QueueError, StartAt};
use crate::storage::Lock;

/// Records looked at before other tasks of the thread get a turn.
const SCAN_RECORDS_MAX: usize = 4096;

/// Records that the cursor passes between two checkpoints at least: the next holder reads them again.
const PASSED_RECORDS_MIN: u64 = 65_536;

/// A group of a disk log.
#[derive(Debug)]
pub struct DiskGroup {
    pub(super) topic: Arc<TopicShared>,
    pub(super) name: String,
    slots: Slots,
    pub(super) progress: Progress,
    /// The cursor: records from here on have not been looked at.
    pub(super) reader: Reader,
    /// For records that are due.
    second_reader: Reader,
    /// Looked at, not finished, not delivered: when each is due, and which.
    waiting: Pairs,
    /// Delivered and not finished.
    delivered: BTreeSet<u64>,
    pub(super) rewriting: Rewriting,
    /// What the cursor has found to be finished and the journal does not know of yet: copies that stand for nothing.
    pub(super) dropped: Vec<Change>,
    /// How far the cursor has to be for the next checkpoint on its account.
    checkpoint_at: u64,
    /// The wall clock at the last look. It may go back: what is not due by it is not due, whatever it was before.
    clock_ms: u64,
    /// Whether it may be cut off.
    pub(super) limited: bool,
    /// The sequence through which it has been told of a cut.
    pub(super) cut_told: u64,
    dead: Option<dead_letters::DeadLetters>,
    /// Held until drop; last, so that everything is closed before another may take it.
    _lock: Lock,
}

impl DiskGroup {
    pub(crate) fn hold(topic: &Arc<TopicShared>, name: &str, start: StartAt) -> Result<Self, QueueError> {
        valid_name(name)?;
        let storage = topic.storage();
        let directory = topic.group_directory(name);
        storage.create_directory_within(&directory).map_err(io("create", &directory))?;
        let lock_path = directory.join("lock");
        let lock = storage.lock(&lock_path).map_err(io("lock", &lock_path))?;
        let lock =
            lock.ok_or_else(|| QueueError::GroupHeld { topic: topic.name.clone(), group: name.to_owned() })?;
        let (slots, progress, standing) = {
            // The owner must not retire the oldest segment between our look at it and the slots that hold it.
            let births = topic.wait_for_births()?;
            topic.files.refresh()?;
            let start = match start {
                StartAt::Oldest => topic.files.oldest().map_or(0, |oldest| oldest - 1),
                StartAt::End => topic.durable(),
            };
            let limits = topic.limit_files(name);
            if !topic.has_group(name)? {
                // Of one of this name that was dropped: a crash before its last file went has left them.
                limits.forget_all()?;
            }
            let opened = Slots::open(storage, &directory, topic.files.log_id, start)?;
            storage.sync_directory(&topic.groups_directory()).map_err(io("sync", &directory))?;
            let (limit, cut) = (limits.limit()?, limits.cut()?);
            let standing = Standing::of(&opened.1, cut, limit, true);
            topic.groups.lock().insert(name.to_owned(), standing);
            topic.publish_slowest();
            drop(births);
            (opened.0, opened.1, standing)
        };
        let mut waiting: Vec<_> =
            progress.unfinished_since(0).map(|found| (found.retry.due_at_ms, found.sequence)).collect();
        waiting.sort_unstable();
        Ok(Self {
            topic: Arc::clone(topic),
            name: name.to_owned(),
            reader: Reader::new(Arc::clone(&topic.files), progress.looked() + 1),
            second_reader: Reader::new(Arc::clone(&topic.files), 0),
            waiting: waiting.into_iter().collect(),
            delivered: BTreeSet::new(),
            rewriting: Rewriting::new(&topic.files),
            dropped: Vec::new(),
            checkpoint_at: 0,
            slots,
            progress,
            clock_ms: 0,
            limited: standing.behind_max.is_some() || standing.passed() > standing.low,
            cut_told: 0,
            dead: None,
            _lock: lock,
        })
    }

    pub(crate) fn hold_existing(topic: &Arc<TopicShared>, name: &str) -> Result<Self, QueueError> {
        topic.standing(name)?;
        Self::hold(topic, name, StartAt::Oldest)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn committed(&self) -> Option<Position> {
        let low = self.progress.low();
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
                .waiting
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
        self.clock_ms = (self.topic.now)();
        let durable = self.topic.durable();
        self.rewrite(durable)?;
        let mut messages = self.take_due(max, durable)?;
        let mut looked = 0;
        while messages.len() < max {
            if looked == SCAN_RECORDS_MAX {
                self.keep_dropped();
                return Ok((messages, true));
            }
            looked += 1;
            let expected = self.reader.next();
            let frame = match self.reader.read(durable) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                // What was found so far counts as delivered, and so is: the next look meets the error.
                Err(_) if !messages.is_empty() => break,
                Err(error) => return Err(error),
            };
            let sequence = frame.sequence;
            if sequence != expected {
                // Cut off while we looked. What was found so far was there.
                self.reader.seek(expected);
                if !messages.is_empty() {
                    break;
                }
                return Err(self.missing(expected));
            }
            let passed = self.progress.pass(sequence);
            let retry = match (passed, frame.source.filter(|source| *source > self.progress.base())) {
                (Passed::Finished, _) => {
                    if self.progress.looked() >= self.reader.next() {
                        self.reader.seek(self.progress.looked() + 1);
                    }
                    continue;
                }
                // The journal does not know of this copy: the record itself is finished, or delivered, or still to be moved.
                (Passed::Unknown, Some(source)) => {
                    if is_waiting(&self.progress, &self.waiting, source) {
                        // Of two copies the newer one is to stand for it.
                        let older = self.rewriting.found(source, sequence);
                        if let Some(older) = older.filter(|older| *older < sequence) {
                            self.dropped.push(Change::Finished { first: older, last: older });
                        }
                    } else {
                        self.rewriting.drop_copy(source, sequence);
                        finish(&mut self.dropped, sequence, sequence);
                    }
                    continue;
                }
                (Passed::Unknown, None) => AT_ONCE,
                (Passed::Known(retry), _) => retry,
            };
            // On a disk that lied the retry may be of a record that is lost, and another one have its number.
            let due_at_ms = retry.due_at_ms.max(frame.deliver_at_ms).min(DUE_MS_MAX);
            let retry = Retry { due_at_ms, ..retry };
            self.progress.add(Unfinished { sequence, words: frame.words, retry });
            self.rewriting.earn(frame.words);
            if due_at_ms > self.clock_ms {
                self.waiting.insert((due_at_ms, sequence));
            } else {
                self.delivered.insert(sequence);
                messages.push(frame.to_message(retry.attempt));
            }
        }
        self.checkpoint_the_cursor();
        self.keep_dropped();
        Ok((messages, false))
    }

    /// Records whose time has come, earliest first, read in the log's order.
    fn take_due(&mut self, max: usize, durable: u64) -> Result<Vec<Message>, QueueError> {
        let mut due = Vec::new();
        while let Some((due_at_ms, sequence)) = self.waiting.first()
            && due_at_ms <= self.clock_ms
            && due.len() < max
        {
            self.waiting.remove((due_at_ms, sequence));
            due.push((due_at_ms, sequence));
        }
        let read = self.read_all(&due, durable);
        match &read {
            Ok(_) => self.delivered.extend(due.iter().map(|(_, sequence)| *sequence)),
            Err(_) => due.iter().for_each(|pair| _ = self.waiting.insert(*pair)),
        }
        read
    }

    /// These records, in this order.
    fn read_all(&mut self, due: &[(u64, u64)], durable: u64) -> Result<Vec<Message>, QueueError> {
        let mut in_order: Vec<u64> = due.iter().map(|(_, sequence)| *sequence).collect();
        in_order.sort_unstable();
        let mut messages = BTreeMap::new();
        for sequence in in_order {
            self.second_reader.seek(sequence);
            match self.second_reader.read(durable)? {
                Some(frame) if frame.sequence == sequence => {
                    let attempt = self.progress.unfinished(sequence).map_or(1, |found| found.retry.attempt);
                    messages.insert(sequence, frame.to_message(attempt));
                }
                _ => return Err(self.missing(sequence)),
            }
        }
        Ok(due.iter().filter_map(|(_, sequence)| messages.remove(sequence)).collect())
    }

    /// Says of copies that are durable that they have taken their records' place, and begins to copy more.
    ///
    /// The copy is durable before the journal says so, and the journal is before anything acts on it: whatever a crash leaves, each
    /// record is unfinished in one place.
    fn rewrite(&mut self, durable: u64) -> Result<(), QueueError> {
        if self.topic.own.as_ref().is_some_and(|own| own.is_poisoned()) {
            self.rewriting.forget();
            return Ok(());
        }
        let moves = self.rewriting.durable(durable);
        let mut changes = Vec::with_capacity(moves.len());
        for (from, to) in &moves {
            if is_waiting(&self.progress, &self.waiting, *from) {
                changes.push(Change::Moved { from: *from, to: *to });
            } else if *to <= self.progress.looked() {
                // What has become due meanwhile is delivered where it was, and the cursor does not come by its copy again.
                changes.push(Change::Finished { first: *to, last: *to });
            }
        }
        if !changes.is_empty() {
            failpoint::hit("queue.rewritten");
        }
        if let Err(error) = self.keep(changes) {
            let (topic, group) = (&self.topic.name, &self.name);
            tracing::warn!(topic, group, %error, "records that were rewritten count where they were, for now");
            self.rewriting.keep(moves);
            return Ok(());
        }
        // Cut off while we looked, as everywhere: a record that is gone is damage only where no cut says so.
        let begun = self.rewriting.begin(&self.topic, &self.progress, &self.waiting);
        begun.map_err(|error| self.meet_cut().err().unwrap_or(error))
    }

    /// Keeps how far the cursor is, so that the next holder does not read everything again. Costs about as much for each record that
    /// was passed as its share of a checkpoint; an error costs the next holder time and nobody anything else.
    fn checkpoint_the_cursor(&mut self) {
        let every = PASSED_RECORDS_MIN.max(self.progress.unfinished_records() as u64 / 2);
        let looked = self.progress.looked();
        if looked < self.checkpoint_at.max(self.slots.looked() + every) {
            return;
        }
        self.checkpoint_at = looked + every;
        match self.slots.checkpoint(&self.progress, 0) {
            Ok(()) => self.dropped.clear(),
            Err(error) => {
                let (topic, group) = (&self.topic.name, &self.name);
                tracing::warn!(topic, group, %error, "cannot keep how far the group has read");
            }
        }
    }

    /// Has the journal know what the cursor found to be finished. Retention hears of it only then: the next holder must not look
    /// for what is gone.
    fn keep_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped.is_empty() {
            return;
        }
        if let Err(error) = self.keep(dropped.clone()) {
            let (topic, group) = (&self.topic.name, &self.name);
            tracing::warn!(topic, group, %error, "cannot keep what need not be delivered");
            self.dropped = dropped;
        }
    }

    pub(crate) fn commit(&mut self, through: Position) -> Result<(), QueueError> {
        self.check(through)?;
        let mut changes = Vec::new();
        self.delivered.range(..=through.0).for_each(|sequence| finish(&mut changes, *sequence, *sequence));
        // What is before the cursor, but for what is known to wait.
        let mut first = self.progress.looked() + 1;
        for early in self.progress.early_since(first).take_while(|early| *early <= through.0) {
            finish(&mut changes, first, early - 1);
            first = early + 1;
        }
        finish(&mut changes, first, through.0);
        self.keep(changes)
    }

    pub(crate) fn ack_all(&mut self, positions: &[Position]) -> Result<(), QueueError> {
        let mut sequences = Vec::with_capacity(positions.len());
        for position in positions {
            self.check(*position)?;
            sequences.push(position.0);
        }
        sequences.sort_unstable();
        let mut changes = Vec::new();
        for sequence in sequences {
            if self.progress.retry(sequence).is_some() {
                finish(&mut changes, sequence, sequence);
            }
        }
        self.keep(changes)
    }

    pub(crate) fn nack_all(&mut self, positions: &[(Position, Duration)]) -> Result<(), QueueError> {
        self.clock_ms = (self.topic.now)();
        let mut changes = Vec::with_capacity(positions.len());
        for (position, delay) in positions {
            self.check(*position)?;
            let Some(known) = self.progress.retry(position.0) else { continue };
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            let due_at_ms = self.clock_ms.saturating_add(delay_ms).min(DUE_MS_MAX);
            let retry = Retry { due_at_ms, attempt: known.attempt.saturating_add(1) };
            changes.push(Change::Retried { sequence: position.0, retry });
        }
        self.keep(changes)
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

    pub(crate) fn rewind(&mut self) {
        for sequence in std::mem::take(&mut self.delivered) {
            if let Some(found) = self.progress.unfinished(sequence) {
                self.waiting.insert((found.retry.due_at_ms, sequence));
            }
        }
    }

    /// Durable first, in memory second, the retention's bound last.
    pub(super) fn keep(&mut self, changes: Vec<Change>) -> Result<(), QueueError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.slots.append(&self.progress, &changes)?;
        failpoint::hit("queue.offset-publish");
        changes.iter().for_each(|change| self.make(change));
        if self.progress.looked() >= self.reader.next() {
            self.reader.seek(self.progress.looked() + 1);
        }
        if self.dropped.is_empty() {
            self.topic.note_group(&self.name, &self.progress);
        }
        Ok(())
    }

    /// Makes a durable change in memory.
    fn make(&mut self, change: &Change) {
        let (waiting, delivered, rewriting) = (&mut self.waiting, &mut self.delivered, &mut self.rewriting);
        self.progress.apply(change, |gone| {
            if !waiting.remove((gone.retry.due_at_ms, gone.sequence)) {
                delivered.remove(&gone.sequence);
            }
            if matches!(change, Change::Finished { .. }) {
                rewriting.earn(gone.words);
            }
        });
        // What waits now and is behind the cursor is not found by it.
        if let Change::Retried { sequence, .. } | Change::Moved { to: sequence, .. } = *change
            && let Some(found) = self.progress.unfinished(sequence)
        {
            self.waiting.insert((found.retry.due_at_ms, sequence));
        }
    }

    fn check(&self, position: Position) -> Result<(), QueueError> {
        if position.0 > self.topic.durable() { Err(QueueError::OutOfRange(position)) } else { Ok(()) }
    }
}

impl Drop for DiskGroup {
    /// From now on others may know better.
    fn drop(&mut self) {
        if let Some(standing) = self.topic.groups.lock().get_mut(&self.name) {
            standing.held = false;
        }
    }
}

/// Whether a record that the cursor has passed waits, and so nobody has it.
fn is_waiting(progress: &Progress, waiting: &Pairs, sequence: u64) -> bool {
    progress.unfinished(sequence).is_some_and(|found| waiting.contains((found.retry.due_at_ms, sequence)))
}

/// Adds a range behind all that are in `changes`, if it is one.
fn finish(changes: &mut Vec<Change>, first: u64, last: u64) {
    if first > last {
        return;
    }
    match changes.last_mut() {
        Some(Change::Finished { last: end, .. }) if *end + 1 >= first => *end = last,
        _ => changes.push(Change::Finished { first, last }),
    }
}

#[cfg(test)]
pub(super) mod tests;
