//! Counts what was tried and answered while a crowd plays, by moment and by kind; latencies in histograms.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::api::{Pass, Press, Refusal};

/// One bar of the charts over time.
pub(crate) const SLICE: Duration = Duration::from_millis(100);
const SLICES_MAX: usize = 6_000;
const LATENCY_US_MAX: u64 = 120_000_000;

/// What happened in one [`SLICE`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Slice {
    pub(crate) sent: u32,
    pub(crate) accepted: u32,
    /// Of the accepted, orders promised for the first time.
    pub(crate) promised: u32,
    pub(crate) sold_out: u32,
    pub(crate) other_refusals: u32,
    pub(crate) unanswered: u32,
    /// The highest sample, if one was taken.
    pub(crate) backlog: Option<u32>,
}

/// Everything counted so far.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Presses of the button, whatever became of them.
    pub(crate) attempts: u64,
    /// 202 for an order that had none yet.
    pub(crate) accepted: u64,
    /// 202 for an order that had one already: pressed again with the same pass.
    pub(crate) accepted_again: u64,
    pub(crate) refusals: BTreeMap<Refusal, u64>,
    pub(crate) uncertain: u64,
    /// Answers that the interface does not know, and attempts without an answer.
    pub(crate) errors: u64,
    /// Of the errors: attempts that never left (no connection).
    pub(crate) not_sent: u64,
    /// Attempts on which the crowd itself hung up.
    pub(crate) hung_up: u64,
    pub(crate) passes_asked: u64,
    pub(crate) passes_granted: u64,
    pub(crate) pass_refusals: BTreeMap<Refusal, u64>,
    pub(crate) pass_errors: u64,
    pub(crate) status_calls: u64,
    /// The first few strange answers, word for word.
    pub(crate) strange: Vec<String>,
    pub(crate) accepted_latency_us: Histogram<u64>,
    pub(crate) sold_out_latency_us: Histogram<u64>,
    pub(crate) slices: Vec<Slice>,
    /// First and last attempt.
    pub(crate) first: Option<Instant>,
    pub(crate) last: Option<Instant>,
    pub(crate) backlog_max: u64,
}

/// [`Counts`], shared by everybody who plays.
pub(crate) struct Tally {
    started: Instant,
    counts: Mutex<Counts>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        // Fixed valid arguments: bounds 1 and 120 s, three significant figures.
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid");
        let counts = Counts {
            attempts: 0,
            accepted: 0,
            accepted_again: 0,
            refusals: BTreeMap::new(),
            uncertain: 0,
            errors: 0,
            not_sent: 0,
            hung_up: 0,
            passes_asked: 0,
            passes_granted: 0,
            pass_refusals: BTreeMap::new(),
            pass_errors: 0,
            status_calls: 0,
            strange: Vec::new(),
            accepted_latency_us: histogram(),
            sold_out_latency_us: histogram(),
            slices: Vec::new(),
            first: None,
            last: None,
            backlog_max: 0,
        };
        Self { started: Instant::now(), counts: Mutex::new(counts) }
    }

    /// A copy of everything counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }

    /// Reads without copying the histograms.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Counts) -> T) -> T {
        read(&self.counts.lock())
    }

    /// An attempt begins at its intended time.
    pub(crate) fn sent(&self, intended: Instant) {
        let mut counts = self.counts.lock();
        counts.attempts += 1;
        counts.first = Some(counts.first.map_or(intended, |first| first.min(intended)));
        if let Some(slice) = self.slice(&mut counts, intended) {
            slice.sent += 1;
        }
    }

    /// An attempt was answered, or not. Latency counts from the intended time, so that a client that waited for a socket does
    /// not hide what a buyer would have felt.
    pub(crate) fn answered(&self, intended: Instant, press: &Press, first_promise: bool) {
        let now = Instant::now();
        let latency_us =
            (now.saturating_duration_since(intended).as_micros() as u64).clamp(1, LATENCY_US_MAX);
        let mut counts = self.counts.lock();
        counts.last = Some(now);
        match press {
            Press::Accepted { .. } => {
                *(if first_promise { &mut counts.accepted } else { &mut counts.accepted_again }) += 1;
                counts.accepted_latency_us.saturating_record(latency_us);
            }
            Press::Refused(refusal, _) => {
                *counts.refusals.entry(*refusal).or_default() += 1;
                if *refusal == Refusal::SoldOut {
                    counts.sold_out_latency_us.saturating_record(latency_us);
                }
            }
            Press::Uncertain { .. } => counts.uncertain += 1,
            Press::Strange(text) => {
                counts.errors += 1;
                keep_strange(&mut counts, text);
            }
            Press::Lost(lost) => {
                counts.errors += 1;
                counts.not_sent += u64::from(matches!(lost, crate::http::Lost::NotSent(_)));
            }
        }
        if let Some(slice) = self.slice(&mut counts, now) {
            match press {
                Press::Accepted { .. } => {
                    slice.accepted += 1;
                    slice.promised += u32::from(first_promise);
                }
                Press::Refused(Refusal::SoldOut, _) => slice.sold_out += 1,
                Press::Refused(..) | Press::Strange(_) => slice.other_refusals += 1,
                Press::Uncertain { .. } | Press::Lost(_) => slice.unanswered += 1,
            }
        }
    }

    /// The crowd hung up on its own attempt.
    pub(crate) fn hung_up(&self) {
        self.counts.lock().hung_up += 1;
    }

    pub(crate) fn pass(&self, pass: &Pass) {
        let mut counts = self.counts.lock();
        counts.passes_asked += 1;
        match pass {
            Pass::Granted { .. } => counts.passes_granted += 1,
            Pass::Refused(refusal, _) => *counts.pass_refusals.entry(*refusal).or_default() += 1,
            Pass::Strange(text) => {
                counts.pass_errors += 1;
                keep_strange(&mut counts, text);
            }
            Pass::Lost(_) => counts.pass_errors += 1,
        }
    }

    pub(crate) fn status_call(&self) {
        self.counts.lock().status_calls += 1;
    }

    /// The backlog as the operator sees it.
    pub(crate) fn backlog(&self, records: u64) {
        let mut counts = self.counts.lock();
        counts.backlog_max = counts.backlog_max.max(records);
        if let Some(slice) = self.slice(&mut counts, Instant::now()) {
            slice.backlog = slice.backlog.max(Some(u32::try_from(records).unwrap_or(u32::MAX)));
        }
    }

    fn slice<'a>(&self, counts: &'a mut Counts, at: Instant) -> Option<&'a mut Slice> {
        let index = (at.saturating_duration_since(self.started).as_millis() / SLICE.as_millis()) as usize;
        if index >= SLICES_MAX {
            return None;
        }
        if counts.slices.len() <= index {
            counts.slices.resize(index + 1, Slice::default());
        }
        counts.slices.get_mut(index)
    }
}

fn keep_strange(counts: &mut Counts, text: &str) {
    if counts.strange.len() < 5 {
        counts.strange.push(text.to_owned());
    }
}

impl Counts {
    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.refusals.get(&refusal).copied().unwrap_or(0)
    }

    /// Refusals for having asked too much: a limit of units, of passes or of haste.
    pub(crate) fn limited(&self) -> u64 {
        [Refusal::LimitReached, Refusal::NotEnough, Refusal::SlowDown, Refusal::GateFull]
            .into_iter()
            .map(|refusal| self.refused(refusal))
            .sum()
    }

    /// All other refusals but `sold-out`.
    pub(crate) fn refused_otherwise(&self) -> u64 {
        self.refusals.values().sum::<u64>() - self.refused(Refusal::SoldOut) - self.limited()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Lost;

    fn accepted() -> Press {
        Press::Accepted { order_id: "O".into(), poll_after: Duration::ZERO }
    }

    #[tokio::test(start_paused = true)]
    async fn every_attempt_is_counted_in_exactly_one_place() {
        let tally = Tally::new();
        let answers = [
            accepted(),
            Press::Refused(Refusal::SoldOut, None),
            Press::Refused(Refusal::SlowDown, None),
            Press::Refused(Refusal::LimitReached, None),
            Press::Refused(Refusal::PassInvalid, None),
            Press::Refused(Refusal::Busy, None),
            Press::Uncertain { order_id: None, retry_after_s: None },
            Press::Strange("500".into()),
            Press::Lost(Lost::NotSent("x".into())),
            Press::Lost(Lost::Unanswered("x".into())),
        ];
        for press in &answers {
            tally.sent(Instant::now());
            tally.answered(Instant::now(), press, true);
        }
        tally.sent(Instant::now());
        tally.answered(Instant::now(), &accepted(), false);
        tally.sent(Instant::now());
        tally.hung_up();
        let counts = tally.counts();
        assert_eq!(
            (counts.accepted, counts.accepted_again, counts.limited(), counts.refused_otherwise()),
            (1, 1, 2, 2)
        );
        assert_eq!((counts.uncertain, counts.errors, counts.not_sent, counts.hung_up), (1, 3, 1, 1));
        let all = counts.accepted
            + counts.accepted_again
            + counts.refused(Refusal::SoldOut)
            + counts.limited()
            + counts.refused_otherwise()
            + counts.uncertain
            + counts.errors
            + counts.hung_up;
        assert_eq!(counts.attempts, all);
        assert_eq!(counts.strange, ["500"]);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_the_intended_time() {
        let tally = Tally::new();
        let intended = Instant::now();
        tokio::time::advance(Duration::from_millis(250)).await;
        tally.sent(intended);
        tokio::time::advance(Duration::from_millis(50)).await;
        tally.answered(intended, &accepted(), true);
        let max = tally.counts().accepted_latency_us.max();
        assert!((299_000..302_000).contains(&max), "{max}");
    }

    #[tokio::test(start_paused = true)]
    async fn slices_hold_what_happened_in_them() {
        let tally = Tally::new();
        tally.sent(Instant::now());
        tokio::time::advance(SLICE * 3).await;
        tally.answered(tally.started, &accepted(), true);
        tally.backlog(9);
        let slices = tally.counts().slices;
        assert_eq!((slices[0].sent, slices[0].accepted), (1, 0));
        assert_eq!((slices[3].accepted, slices[3].promised, slices[3].backlog), (1, 1, Some(9)));
        tokio::time::advance(SLICE * 100_000).await;
        tally.backlog(9);
        assert!(tally.counts().slices.len() <= SLICES_MAX, "time without end takes no memory without end");
    }
}
