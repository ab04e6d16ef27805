//! The append ring: many producers, one consumer, bounded, lock-free. Owns the order of records; never touches the disk.
//!
//! A producer first *reserves* room (a credit of one record and so many words, by compare-and-swap, refused when there is
//! none), then *claims* a place with one fetch-and-add, writes its words, and *commits* by storing the record's commit word. The
//! consumer gathers committed frames in order and *releases* them, giving the credit back, when they are durable. The scheme is
//! Aeron's, with three changes: frames may wrap around the end of the ring, since the consumer copies them; the claim yields
//! the record's sequence number too, for one packed fetch-and-add moves both; and commit words stand side by side in a table by
//! sequence, each tagged with the table's lap. So nothing has to be zeroed, and the consumer finds a batch's end with one miss of
//! its cache for eight records, where frame headers would cost it one each, every one depending on the one before.
//!
//! Between commit and release a frame is the consumer's alone, which therefore copies it as plain memory.

use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, fence};

/// Low bits of the claim word, which count words; the rest counts records. Small under loom, so that both wrap.
#[cfg(not(loom))]
const WORD_BITS: u32 = 32;
#[cfg(loom)]
const WORD_BITS: u32 = 3;

const WORD_MASK: u64 = (1 << WORD_BITS) - 1;
const RECORD_MASK: u64 = u64::MAX >> WORD_BITS;
const ONE_RECORD: u64 = 1 << WORD_BITS;

/// Bytes of a frame are the low half of its first word and of its commit word; zero is "never committed".
const LENGTH_MASK: u64 = u32::MAX as u64;

/// The high half of a commit word, which tells the laps of the table apart. Small under loom, so that it wraps.
#[cfg(not(loom))]
const TAG_MASK: u64 = u32::MAX as u64;
#[cfg(loom)]
const TAG_MASK: u64 = 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Frames. A claim's owner writes its words `Relaxed`, before its commit word; the consumer reads them after that one.
    words: Box<[AtomicU64]>,
    /// Commit words: that of record n in slot n modulo the length, a power of two not below `records_max`, so that a slot's former
    /// record is released before the next is claimed. Its producer stores `Release`; the consumer loads `Acquire`.
    commits: Box<[AtomicU64]>,
    /// Claims so far, words in the low bits and records in the high ones, both modulo. Producers add `AcqRel`, so that each
    /// sees what the claimers before it saw of `released_*`; the closer reads it after a `SeqCst` fence.
    claimed: AtomicU64,
    /// Words released so far. The consumer stores `Release`; claimers load `Acquire` to widen their modular claim.
    released_words: AtomicU64,
    /// Records released so far. As `released_words`.
    released_records: AtomicU64,
    /// Room taken: records in the high half, words in the low one. Producers take by compare-and-swap `Acquire`, pairing with
    /// the `Release` subtraction of whoever gives back, so that they write only behind the consumer's copying.
    credit: AtomicU64,
    /// Set once by the closer. Each claimer reads it `Relaxed` after its claim and a `SeqCst` fence; the consumer reads it
    /// `Relaxed`, then a `SeqCst` fence, then `claimed`: a claim that the consumer does not count sees it.
    closed: AtomicBool,
    /// Whether the consumer sleeps. The consumer stores it `Relaxed`, then a `SeqCst` fence, then looks at the next commit
    /// word; a producer stores its commit word, then a `SeqCst` fence, then looks here. One of them sees the other.
    idle: AtomicBool,
    /// Whom to wake. Written by the consumer before `idle`, taken by the producer that clears `idle`.
    waker: Mutex<Option<Waker>>,
    records_max: u64,
}

/// A claimed place that must be committed. Dropping it commits padding, so that a panic between cannot stall the consumer.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    ring: &'a Ring,
    start: u64,
    words: u64,
    written: u64,
    sequence: u64,
    pad: u64,
}

/// The consumer's own place; there is one for each ring.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    gathered_words: u64,
    gathered_records: u64,
}

/// What one call of [`Ring::gather`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Gathered {
    pub(crate) words: u64,
    pub(crate) records: u64,
}

impl Ring {
    /// A ring of `words` (a power of two) for at most `records_max` records.
    pub(crate) fn new(words: usize, records_max: u64) -> Self {
        assert!(words.is_power_of_two() && (words as u64) < 1 << WORD_BITS, "ring size");
        assert!(records_max > 0 && records_max < u64::from(u32::MAX), "ring records");
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            commits: (0..records_max.next_power_of_two()).map(|_| AtomicU64::new(0)).collect(),
            claimed: AtomicU64::new(0),
            released_words: AtomicU64::new(0),
            released_records: AtomicU64::new(0),
            credit: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            waker: Mutex::new(None),
            records_max,
        }
    }

    /// Takes room for one record of `words`; the answer counts all records that hold room now, itself included.
    pub(crate) fn try_reserve(&self, words: u64) -> Option<u64> {
        let mut seen = self.credit.load(Ordering::Relaxed);
        loop {
            let (records, taken) = (seen >> 32, seen & LENGTH_MASK);
            if records >= self.records_max || taken + words > self.words.len() as u64 {
                return None;
            }
            let wanted = ((records + 1) << 32) | (taken + words);
            match self.credit.compare_exchange_weak(seen, wanted, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(records + 1),
                Err(now) => seen = now,
            }
        }
    }

    /// Gives room back that was reserved and not claimed.
    pub(crate) fn give_back(&self, records: u64, words: u64) {
        self.credit.fetch_sub((records << 32) | words, Ordering::Release);
    }

    /// Claims the next place for a frame of `words`, for which room is reserved. `pad` is the commit word of a padding frame
    /// of that length. `None` once the ring is closed.
    pub(crate) fn claim(&self, words: u64, pad: u64) -> Option<Claim<'_>> {
        let before = self.claimed.fetch_add(ONE_RECORD + words, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let closed = self.closed.load(Ordering::Relaxed);
        // The consumer cannot pass this claim before it is committed, and the reserved room bounds how far behind it is, so
        // that the modular counters have exactly one full value each.
        let base = self.released_words.load(Ordering::Acquire);
        let start = base + ((before & WORD_MASK).wrapping_sub(base) & WORD_MASK);
        let records = (before >> WORD_BITS).wrapping_sub(start >> WORD_BITS) & RECORD_MASK;
        let base = self.released_records.load(Ordering::Acquire);
        let sequence = base + (records.wrapping_sub(base) & RECORD_MASK);
        let claim = Claim { ring: self, start, words, written: 1, sequence, pad };
        if closed { None } else { Some(claim) }
    }

    /// Copies committed frames, at most `words_max` words and `records_max` records of them, in order; a call of `copy` gets
    /// whole words of one frame or of several.
    pub(crate) fn gather(
        &self,
        consumer: &mut Consumer,
        words_max: u64,
        records_max: u64,
        mut copy: impl FnMut(&[u64]),
    ) -> Gathered {
        let mut gathered = Gathered::default();
        let start = consumer.gathered_words;
        while gathered.records < records_max
            && let Some(words) = self.committed(consumer.gathered_records + gathered.records)
            && gathered.words + words <= words_max
        {
            gathered.words += words;
            gathered.records += 1;
        }
        consumer.gathered_words += gathered.words;
        consumer.gathered_records += gathered.records;
        for run in self.runs(start, gathered.words) {
            committed_words(run, &mut copy);
        }
        gathered
    }

    /// The number of words of the next committed frame.
    pub(crate) fn next_words(&self, consumer: &Consumer) -> Option<u64> {
        self.committed(consumer.gathered_records)
    }

    /// The number of words of a record's frame, once it is committed.
    fn committed(&self, record: u64) -> Option<u64> {
        let (slot, tag) = self.slot(record);
        let commit = slot.load(Ordering::Acquire);
        (commit != 0 && commit >> 32 == tag).then_some((commit & LENGTH_MASK) / 8)
    }

    /// Where a record's commit word stands, and its tag: another one than that of the slot's former record.
    fn slot(&self, record: u64) -> (&AtomicU64, u64) {
        let lap = record >> self.commits.len().trailing_zeros();
        (&self.commits[record as usize & (self.commits.len() - 1)], (lap + 1) & TAG_MASK)
    }

    /// Frees the oldest gathered frames, which are durable now.
    pub(crate) fn release(&self, gathered: Gathered) {
        let start = self.released_words.load(Ordering::Relaxed);
        self.released_words.store(start + gathered.words, Ordering::Release);
        let records = self.released_records.load(Ordering::Relaxed);
        self.released_records.store(records + gathered.records, Ordering::Release);
        self.give_back(gathered.records, gathered.words);
    }

    /// Ready when a frame waits to be gathered, or the ring is closed; otherwise the next commit or the close wakes.
    pub(crate) fn poll_committed(&self, consumer: &Consumer, context: &mut Context<'_>) -> Poll<()> {
        if self.next_words(consumer).is_some() {
            return Poll::Ready(());
        }
        *self.waker.lock() = Some(context.waker().clone());
        self.idle.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.next_words(consumer).is_some() || self.closed.load(Ordering::Relaxed) {
            // `idle` stays set: the next commit wakes once too often, which is harmless.
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Ready when the ring is closed.
    pub(crate) fn poll_closed(&self, context: &mut Context<'_>) -> Poll<()> {
        *self.waker.lock() = Some(context.waker().clone());
        if self.closed.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Refuses claims from now on and wakes the consumer. Claims that were earlier are to be gathered still: see
    /// [`Ring::is_drained`].
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// Whether everything that was claimed before [`Ring::close`] has been gathered. Claims after it are padding that nobody
    /// waits for; they are within the first look or never looked at.
    pub(crate) fn is_drained(&self, consumer: &Consumer) -> bool {
        if !self.closed.load(Ordering::Relaxed) {
            return false;
        }
        fence(Ordering::SeqCst);
        self.claimed.load(Ordering::Acquire) & WORD_MASK == consumer.gathered_words & WORD_MASK
    }

    fn at(&self, word: u64) -> &AtomicU64 {
        &self.words[word as usize & (self.words.len() - 1)]
    }

    /// `words` from `start` on, which may go around the ring's end.
    fn runs(&self, start: u64, words: u64) -> [&[AtomicU64]; 2] {
        let (start, words) = (start as usize & (self.words.len() - 1), words as usize);
        let before_end = words.min(self.words.len() - start);
        [&self.words[start..start + before_end], &self.words[..words - before_end]]
    }

    fn wake_consumer(&self) {
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::AcqRel) {
            let waker = self.waker.lock().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Hands out the words of committed frames.
#[cfg(not(loom))]
fn committed_words(run: &[AtomicU64], copy: &mut impl FnMut(&[u64])) {
    // SAFETY: an `AtomicU64` is laid out as a `u64`. Each frame's producer wrote it before the commit word that `gather` loaded
    // with `Acquire`, and nobody writes it again before this consumer has released it, so that the borrow sees no change.
    copy(unsafe { std::slice::from_raw_parts(run.as_ptr().cast::<u64>(), run.len()) });
}

/// Loom's atomics have another layout.
#[cfg(loom)]
fn committed_words(run: &[AtomicU64], copy: &mut impl FnMut(&[u64])) {
    run.iter().for_each(|word| copy(&[word.load(Ordering::Relaxed)]));
}

impl Claim<'_> {
    /// The record's number in this ring, from 0.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Writes the next word of the frame, from the second on.
    pub(crate) fn push(&mut self, word: u64) {
        assert!(self.written < self.words, "a frame longer than its claim");
        self.ring.at(self.start + self.written).store(word, Ordering::Relaxed);
        self.written += 1;
    }

    /// Publishes the frame to the consumer. `first` is its first word, whose low half is its length in bytes.
    pub(crate) fn commit(self, first: u64) {
        assert!(first & LENGTH_MASK == self.words * 8, "a frame's length is its claim's");
        assert!(self.written == self.words, "a frame is as long as its claim");
        self.publish(first);
        std::mem::forget(self);
    }

    fn publish(&self, first: u64) {
        self.ring.at(self.start).store(first, Ordering::Relaxed);
        let (slot, tag) = self.ring.slot(self.sequence);
        slot.store((tag << 32) | (self.words * 8), Ordering::Release);
        self.ring.wake_consumer();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Padding goes to the disk: what an earlier record left here does not.
        while self.written < self.words {
            self.push(0);
        }
        self.publish(self.pad);
    }
}
