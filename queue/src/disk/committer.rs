//! The committer of one log: writes what gathered while the last batch was being synced, as one batch. No timer, no linger.
//!
//! One [`Committer::step`] does one phase, so that a simulation can stop the world between any two:
//!
//! ## Idle => Written
//! Frames are copied out of the ring, sealed into a batch, and written behind the last one.
//! ## Written => Idle
//! The batch is synced; *then* readers' table, watermark, wake-ups, and the ring's room, in this order.
//! ## any => Poisoned
//! A write or a sync failed. Nothing is tried again: after a failed sync the kernel counts lost pages as clean.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::format::BatchHeader;
use super::shared::{OwnTopic, TopicShared, charge};
use super::trace::BatchTrace;
use super::writer::{Writer, promised_bytes};
use crate::failpoint;
use crate::port::{Position, QueueError};
use crate::ring::{Consumer, Gathered};
use crate::storage::Lock;

/// See the module.
pub(crate) struct Committer {
    topic: Arc<TopicShared>,
    writer: Writer,
    consumer: Consumer,
    phase: Phase,
    /// The directory's lock, given up only when nothing more will be written.
    lock: Option<Arc<Lock>>,
}

enum Phase {
    Idle,
    Written { header: BatchHeader, gathered: Gathered, passed: Passed },
    Poisoned,
    Ended,
}

/// When a batch that is written passed the stages before.
#[derive(Clone, Copy)]
struct Passed {
    started: Instant,
    gathered_at: Instant,
    sealed_at: Instant,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Worked,
    Nothing,
    Ended,
}

impl Committer {
    pub(crate) fn new(topic: Arc<TopicShared>, writer: Writer, lock: Option<Arc<Lock>>) -> Self {
        Self { topic, writer, consumer: Consumer::default(), phase: Phase::Idle, lock }
    }

    /// One phase.
    pub(crate) fn step(&mut self) -> Step {
        let topic = Arc::clone(&self.topic);
        let Some(own) = &topic.own else { return Step::Ended };
        let result = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => self.write(own),
            Phase::Written { header, gathered, passed } => self.settle(own, &header, gathered, passed),
            Phase::Poisoned => {
                self.phase = Phase::Poisoned;
                if !own.closed.load(Ordering::Acquire) {
                    return Step::Nothing;
                }
                self.end(own);
                return Step::Ended;
            }
            Phase::Ended => {
                self.phase = Phase::Ended;
                return Step::Ended;
            }
        };
        result.unwrap_or_else(|error| {
            tracing::error!(topic = topic.name, %error, "the log is poisoned: restart the process");
            own.metrics.poisoned.set(1);
            self.phase = Phase::Poisoned;
            own.watermark.fail();
            topic.arrivals.notify_waiters();
            Step::Worked
        })
    }

    /// Ready when a step has something to do.
    pub(crate) fn poll_work(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(own) = &self.topic.own else { return Poll::Ready(()) };
        match self.phase {
            Phase::Idle => own.ring.poll_committed(&self.consumer, context),
            Phase::Written { .. } | Phase::Ended => Poll::Ready(()),
            // Only the close rings then.
            Phase::Poisoned => own.ring.poll_closed(context),
        }
    }

    /// Runs until the topic is shut down.
    pub(crate) async fn run(mut self) {
        loop {
            match self.step() {
                Step::Worked => {}
                Step::Nothing => poll_fn(|context| self.poll_work(context)).await,
                Step::Ended => return,
            }
        }
    }

    fn write(&mut self, own: &OwnTopic) -> Result<Step, QueueError> {
        let Some(words) = own.ring.next_words(&self.consumer) else {
            return if own.ring.is_drained(&self.consumer) { self.close(own) } else { Ok(Step::Nothing) };
        };
        own.note_batch(true);
        if self.writer.body_room() < words as usize * 8 {
            self.roll(own)?;
        }
        let started = Instant::now();
        let durable = own.watermark.durable();
        let words_max = self.writer.body_room() as u64 / 8;
        let mut body = self.writer.body();
        let gathered =
            own.ring.gather(&mut self.consumer, words_max, u64::from(u32::MAX), |words| body.extend(words));
        debug_assert!(gathered.records > 0, "a segment takes at least one record");
        let now_ms = (self.topic.now)();
        let gathered_at = Instant::now();
        let header = self.writer.seal(gathered.records as u32, durable, now_ms);
        let header = header.map_err(|error| self.failed("write", error))?;
        let sealed_at = Instant::now();
        self.writer.write(&header).map_err(|error| self.failed("write", error))?;
        let charged = charge(0) * gathered.records as i64 + (gathered.words * 8) as i64;
        own.room_bytes.fetch_add(charged - header.padded_bytes() as i64, Ordering::Relaxed);
        let passed = Passed { started, gathered_at, sealed_at };
        self.phase = Phase::Written { header, gathered, passed };
        Ok(Step::Worked)
    }

    /// A crash before the sync's end may lose the batch, of which nobody has heard. A crash after it finds the batch, of which
    /// nobody may have heard: appends that got no answer are uncertain to their callers.
    fn settle(
        &mut self,
        own: &OwnTopic,
        header: &BatchHeader,
        gathered: Gathered,
        passed: Passed,
    ) -> Result<Step, QueueError> {
        self.writer.sync().map_err(|error| self.failed("sync", error))?;
        let durable_at = Instant::now();
        own.note_batch(false);
        own.metrics.sync_seconds.observe((durable_at - passed.sealed_at).as_secs_f64());
        self.writer.note(header)?;
        failpoint::hit("queue.publish");
        let last = header.next_sequence() - 1;
        own.watermark.publish(last);
        if let Some(mark) = &self.topic.mark {
            mark.publish(last);
        }
        failpoint::hit("queue.wake");
        own.watermark.wake(header.first_sequence, last);
        self.topic.arrivals.notify_waiters();
        own.ring.release(gathered);
        own.metrics.records.inc_by(gathered.records);
        own.metrics.batches.inc();
        own.metrics.written_bytes.inc_by(header.padded_bytes());
        if let Some(trace) = &self.topic.trace {
            trace.0(&BatchTrace {
                first: Position(header.first_sequence),
                records: gathered.records,
                bytes: header.padded_bytes(),
                started: passed.started,
                gathered_at: passed.gathered_at,
                sealed_at: passed.sealed_at,
                durable_at,
                released_at: Instant::now(),
            });
        }
        Ok(Step::Worked)
    }

    /// Goes on in the next prepared segment, whose first batch, of no records, says what is durable: from then on a loss of
    /// the former tail is provable damage.
    fn roll(&mut self, own: &OwnTopic) -> Result<(), QueueError> {
        if failpoint::hit("queue.roll") {
            return Err(self.failed("enter the next segment", io::Error::from_raw_os_error(libc::EIO)));
        }
        if let Some((written, bytes)) = self.writer.active_bytes() {
            // More may have been written than was promised of the segment; the next one's promise does not pay for it.
            let promised = promised_bytes(bytes, own.frame_bytes_max);
            own.room_bytes.fetch_add(written as i64 - promised as i64, Ordering::Relaxed);
        }
        let next = own.prepared.lock().ready.pop_front();
        let (number, bytes) = next.ok_or_else(|| {
            self.failed(
                "enter the next segment",
                io::Error::other("permits were given for room that is not there"),
            )
        })?;
        self.writer.enter(number, bytes)?;
        own.upkeep.ring();
        self.mark(own)
    }

    /// Writes a batch without records, durable.
    fn mark(&mut self, own: &OwnTopic) -> Result<(), QueueError> {
        let now_ms = (self.topic.now)();
        let durable = self.writer.next_sequence() - 1;
        debug_assert_eq!(durable, own.watermark.durable(), "nothing is under way between two batches");
        let header = self.writer.seal(0, durable, now_ms).map_err(|error| self.failed("write", error))?;
        self.writer.write(&header).map_err(|error| self.failed("write", error))?;
        own.room_bytes.fetch_sub(header.padded_bytes() as i64, Ordering::Relaxed);
        self.writer.sync().map_err(|error| self.failed("sync", error))?;
        self.writer.note(&header)
    }

    /// Begins the log's new epoch in its first segment, if there is one yet.
    pub(crate) fn begin(&mut self) -> Result<(), QueueError> {
        let topic = Arc::clone(&self.topic);
        let Some(own) = &topic.own else { return Ok(()) };
        let none = own.prepared.lock().ready.is_empty();
        if none { Ok(()) } else { self.roll(own) }
    }

    fn close(&mut self, own: &OwnTopic) -> Result<Step, QueueError> {
        let room = self.writer.body_room() > 0;
        if room {
            self.mark(own)?;
        }
        self.end(own);
        Ok(Step::Ended)
    }

    fn end(&mut self, own: &OwnTopic) {
        self.phase = Phase::Ended;
        self.lock = None;
        own.has_ended.store(true, Ordering::Release);
        own.ended.notify_waiters();
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> QueueError {
        QueueError::Io { doing, path: self.topic.files.directory.clone(), source }
    }
}

impl Drop for Committer {
    /// Gone without its end, by a panic or with a queue that nobody drives any more: whoever waits hears that nothing will come.
    fn drop(&mut self) {
        let Some(own) = &self.topic.own else { return };
        if !own.has_ended.load(Ordering::Acquire) {
            own.watermark.fail();
            own.has_ended.store(true, Ordering::Release);
            own.ended.notify_waiters();
            self.topic.arrivals.notify_waiters();
        }
    }
}
