//! What a group has finished and what it has not, as numbers of records. Does no I/O; never clones itself for a change.
//!
//! The group's cursor has passed everything through `looked`. Of what it has passed, the unfinished ones are kept, each with
//! the time that it waits for; everything else there is finished. Of what is still before it, only exceptions are kept: what
//! is finished already, and what is known to wait.

use std::collections::BTreeMap;

use super::pairs::{Pair, Pairs};

/// Bits of a record's number that are kept: as many records as a million a second are in nine years.
const SEQUENCE_BITS: u32 = 48;

/// Bits of the length of a record, in words of 8 bytes, and of its attempts. Longer or more count as so many.
const SMALL_BITS: u32 = 64 - SEQUENCE_BITS;
pub(crate) const SMALL_MAX: u64 = (1 << SMALL_BITS) - 1;

/// A time that never comes, as far as a record can wait: Unix ms in the year 10889.
pub(crate) const DUE_MS_MAX: u64 = (1 << (64 - SMALL_BITS)) - 1;

/// When a record is to be delivered again, and as which attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) due_at_ms: u64,
    pub(crate) attempt: u32,
}

/// Of a record that nothing is known of.
pub(crate) const AT_ONCE: Retry = Retry { due_at_ms: 0, attempt: 1 };

/// A record that the cursor has passed and the group has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub(crate) sequence: u64,
    /// Of its frame.
    pub(crate) words: u64,
    pub(crate) retry: Retry,
}

/// One change of a group's progress, as its journal keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// `first..=last` are finished.
    Finished { first: u64, last: u64 },
    /// A delivery failed.
    Retried { sequence: u64, retry: Retry },
    /// The record stands elsewhere now: what is known of `from` is known of `to`, and `from` is finished.
    Moved { from: u64, to: u64 },
    /// Everything through `low` is finished, nothing behind it is, no retry is known.
    Reset { low: u64 },
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Where the last reset, or the group's beginning, was: the rewritten copy of a record from before it stands for itself.
    pub(super) base: u64,
    pub(super) looked: u64,
    /// Number and words, due time and attempt.
    pub(super) unfinished: Pairs,
    unfinished_words: u64,
    /// Finished ranges behind `looked` that are neither empty nor touch each other.
    pub(super) ahead: BTreeMap<u64, u64>,
    ahead_records: u64,
    /// What is known of unfinished records behind `looked`.
    pub(super) early: BTreeMap<u64, Retry>,
}

/// What the cursor finds of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    Finished,
    /// It may have been retried or moved before the cursor came.
    Known(Retry),
    Unknown,
}

impl Progress {
    /// Everything through `low` finished, nothing else.
    pub(crate) fn through(low: u64) -> Self {
        Self { base: low, looked: low, ..Self::default() }
    }

    /// Everything through here is finished, and the next record is not.
    pub(crate) fn low(&self) -> u64 {
        self.unfinished.first().map_or(self.looked, |(first, _)| (first >> SMALL_BITS) - 1)
    }

    /// How many records are finished, counted from the log's first.
    pub(crate) fn done(&self) -> u64 {
        self.looked - self.unfinished.len() as u64 + self.ahead_records
    }

    /// How many are finished, or would be if everything through `cut` were.
    pub(crate) fn done_through(&self, cut: u64) -> u64 {
        if cut <= self.low() {
            return self.done();
        }
        let passed = self.unfinished_since(0).take_while(|found| found.sequence <= cut).count() as u64;
        let ahead = self.ahead.range(..=cut).map(|(first, last)| last.min(&cut) - first + 1).sum::<u64>();
        self.done() + passed + cut.saturating_sub(self.looked).saturating_sub(ahead)
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn looked(&self) -> u64 {
        self.looked
    }

    /// The newest record that anything is known of: it was durable once.
    pub(crate) fn newest(&self) -> u64 {
        let ahead = self.ahead.last_key_value().map_or(0, |(_, last)| *last);
        let early = self.early.last_key_value().map_or(0, |(sequence, _)| *sequence);
        self.looked.max(ahead).max(early)
    }

    pub(crate) fn unfinished_records(&self) -> usize {
        self.unfinished.len()
    }

    /// Bytes of the frames of what the cursor has passed and the group has not finished.
    pub(crate) fn unfinished_bytes(&self) -> u64 {
        self.unfinished_words * 8
    }

    /// What the cursor has passed and the group has not finished, from `sequence` on.
    pub(crate) fn unfinished_since(&self, sequence: u64) -> impl Iterator<Item = Unfinished> + '_ {
        self.unfinished.since((sequence << SMALL_BITS, 0)).map(unpack)
    }

    /// One of these.
    pub(crate) fn unfinished(&self, sequence: u64) -> Option<Unfinished> {
        self.unfinished_since(sequence).next().filter(|found| found.sequence == sequence)
    }

    /// What is known of an unfinished record, passed or not; `None`: it is finished.
    pub(crate) fn retry(&self, sequence: u64) -> Option<Retry> {
        if sequence <= self.looked {
            return self.unfinished(sequence).map(|found| found.retry);
        }
        if self.is_ahead(sequence) {
            return None;
        }
        Some(self.early.get(&sequence).copied().unwrap_or(AT_ONCE))
    }

    /// Retries and moves known of records that the cursor has not passed.
    pub(crate) fn early_since(&self, sequence: u64) -> impl Iterator<Item = u64> + '_ {
        self.early.range(sequence..).map(|(sequence, _)| *sequence)
    }

    /// The cursor passes a record. What lies between the last one and this is none, and so counts as finished, as does this
    /// until it is [`Progress::add`]ed.
    pub(crate) fn pass(&mut self, sequence: u64) -> Passed {
        let mut looked = sequence;
        let mut passed = Passed::Unknown;
        while let Some((first, last)) = self.ahead.first_key_value().map(|(first, last)| (*first, *last))
            && first <= sequence
        {
            self.ahead.pop_first();
            self.ahead_records -= last - first + 1;
            if last >= sequence {
                (looked, passed) = (last, Passed::Finished);
            }
        }
        while let Some((early, retry)) = self.early.first_key_value().map(|(early, retry)| (*early, *retry))
            && early <= sequence
        {
            self.early.pop_first();
            if early == sequence {
                passed = Passed::Known(retry);
            }
        }
        self.looked = looked;
        passed
    }

    /// One that the cursor has passed is not finished.
    pub(crate) fn add(&mut self, found: Unfinished) {
        debug_assert!(found.sequence <= self.looked && found.sequence >> SEQUENCE_BITS == 0, "{found:?}");
        let pair = pack(&found);
        if self.unfinished.insert(pair) {
            self.unfinished_words += unpack(pair).words;
        }
    }

    /// Makes one change, and tells of each record that was unfinished, and passed, before it.
    pub(crate) fn apply(&mut self, change: &Change, mut gone: impl FnMut(Unfinished)) {
        match *change {
            Change::Finished { first, last } => {
                self.take(first, last.min(self.looked), &mut gone);
                self.finish_ahead(first.max(self.looked + 1), last);
            }
            Change::Retried { sequence, retry } if sequence > self.looked => {
                if !self.is_ahead(sequence) {
                    self.early.insert(sequence, retry);
                }
            }
            Change::Retried { sequence, retry } => {
                if let Some(found) = self.unfinished(sequence) {
                    self.take(sequence, sequence, &mut gone);
                    self.add(Unfinished { retry, ..found });
                }
            }
            Change::Moved { from, to } => {
                let Some(retry) = self.retry(from) else { return };
                let words = self.unfinished(from).map_or(0, |found| found.words);
                self.apply(&Change::Finished { first: from, last: from }, gone);
                if to > self.looked {
                    self.early.insert(to, retry);
                } else {
                    self.add(Unfinished { sequence: to, words, retry });
                }
            }
            Change::Reset { low } => {
                self.unfinished_since(0).for_each(gone);
                *self = Self::through(low);
            }
        }
    }

    fn is_ahead(&self, sequence: u64) -> bool {
        self.ahead.range(..=sequence).next_back().is_some_and(|(_, last)| sequence <= *last)
    }

    /// Removes what is unfinished in `first..=last`.
    fn take(&mut self, first: u64, last: u64, gone: &mut impl FnMut(Unfinished)) {
        let words = &mut self.unfinished_words;
        self.unfinished.remove_range(
            (first << SMALL_BITS, 0),
            (last << SMALL_BITS | SMALL_MAX, u64::MAX),
            |pair| {
                let found = unpack(pair);
                *words -= found.words;
                gone(found);
            },
        );
    }

    /// Finishes `first..=last`, which the cursor has not passed.
    pub(super) fn finish_ahead(&mut self, mut first: u64, mut last: u64) {
        if first > last {
            return;
        }
        let early: Vec<u64> = self.early.range(first..=last).map(|(sequence, _)| *sequence).collect();
        for sequence in early {
            self.early.remove(&sequence);
        }
        if let Some((before, end)) = self.ahead.range(..first).next_back().map(|(a, b)| (*a, *b))
            && end + 1 >= first
        {
            first = before;
            last = last.max(end);
            self.forget_ahead(before, end);
        }
        while let Some((next, end)) = self.ahead.range(first..).next().map(|(a, b)| (*a, *b)) {
            if next > last.saturating_add(1) {
                break;
            }
            last = last.max(end);
            self.forget_ahead(next, end);
        }
        if first == self.looked + 1 {
            self.looked = last;
        } else {
            self.ahead.insert(first, last);
            self.ahead_records += last - first + 1;
        }
    }

    fn forget_ahead(&mut self, first: u64, last: u64) {
        self.ahead.remove(&first);
        self.ahead_records -= last - first + 1;
    }
}

fn pack(found: &Unfinished) -> Pair {
    let attempt = u64::from(found.retry.attempt).min(SMALL_MAX);
    let due_at_ms = found.retry.due_at_ms.min(DUE_MS_MAX);
    (found.sequence << SMALL_BITS | found.words.min(SMALL_MAX), due_at_ms << SMALL_BITS | attempt)
}

fn unpack((sequence, due): Pair) -> Unfinished {
    let retry = Retry { due_at_ms: due >> SMALL_BITS, attempt: (due & SMALL_MAX) as u32 };
    Unfinished { sequence: sequence >> SMALL_BITS, words: sequence & SMALL_MAX, retry }
}
