//! How much of its limit a drain uses: all of it while the database is well, less while it suffers. Knows neither clock nor
//! database: it is told how long each commit took, and when.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, 1989). Well or not is judged against what the database was
//! seen to need when it was well, not against a figure that somebody thought of.

use std::time::Duration;

/// It never uses less of the limit than this.
const PART_MIN: f64 = 1.0 / 8.0;
/// Of the limit, at the start. A drain that lasts seconds must not lose 2 % by it.
const PART_FIRST: f64 = 1.0 / 2.0;
/// What is added while all is well, once in [`STEP`].
const INCREASE: f64 = 1.0 / 20.0;
/// What is left after a slow commit.
const DECREASE: f64 = 0.7;
/// What is left after an error.
const DECREASE_ERROR: f64 = 0.5;
/// At most one step up, and one down, in this time: a change must be seen to work before the next one.
const STEP: Duration = Duration::from_millis(250);
/// While warming up the part doubles after so many quick commits.
const WARM_COMMITS: u32 = 4;
/// Commits are slow beyond so many times the base …
const SLOW_TIMES: f64 = 4.0;
/// … but nobody suffers from this.
const SLOW_MIN: Duration = Duration::from_millis(50);
/// Until the base is learned.
const SLOW_UNLEARNED: Duration = Duration::from_millis(500);
/// One commit this many times over the threshold is believed at once; otherwise two of the last three are.
const GROSS_TIMES: f64 = 4.0;
/// Commits that the base is learned from.
const LEARN: u32 = 8;
/// The base creeps up by this with each step without a slow commit, doubling in about 3 minutes: a database that has become
/// slower for good is accepted at last.
const FORGET: f64 = 1.001;

/// See the module.
#[derive(Debug)]
pub(super) struct Adaptation {
    part: f64,
    phase: Phase,
    /// What a whole batch needs when the database is well, seconds.
    base: f64,
    learned: u32,
    last: [f64; 3],
    up_at: Option<Duration>,
    down_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// After a start or an outage: caches are cold, others come back at the same time.
    Warming { quick: u32 },
    /// One step at a time.
    Steady,
}

impl Adaptation {
    pub(super) fn new() -> Self {
        Self {
            part: PART_FIRST,
            phase: Phase::Warming { quick: 0 },
            base: f64::INFINITY,
            learned: 0,
            last: [0.0; 3],
            up_at: None,
            down_at: None,
        }
    }

    /// Without warming up.
    pub(super) fn warm() -> Self {
        Self { part: 1.0, phase: Phase::Steady, ..Self::new() }
    }

    /// Of the limit, above 0 and at most 1.
    pub(super) fn part(&self) -> f64 {
        self.part
    }

    /// A transaction was committed. `whole`: of as many orders as a batch may have, or nearly. `now` counts from anywhere.
    pub(super) fn committed(&mut self, now: Duration, took: Duration, whole: bool) {
        let took = took.as_secs_f64();
        self.last.rotate_left(1);
        self.last[2] = took;
        let mut sorted = self.last;
        sorted.sort_by(f64::total_cmp);
        let (typical, slow) = (sorted[1], self.slow_s());
        if typical > slow || took > GROSS_TIMES * slow {
            self.slower(now, DECREASE);
            self.phase = Phase::Steady;
            return;
        }
        if took > slow {
            // One alone says nothing.
            return;
        }
        if whole {
            self.base = self.base.min(took);
            self.learned = self.learned.saturating_add(1);
        }
        self.quicker(now);
    }

    /// The database did not take a transaction.
    pub(super) fn failed(&mut self, now: Duration) {
        self.slower(now, DECREASE_ERROR);
        // ## Steady => Warming
        self.phase = Phase::Warming { quick: 0 };
    }

    fn slow_s(&self) -> f64 {
        if self.learned < LEARN {
            return SLOW_UNLEARNED.as_secs_f64();
        }
        (SLOW_TIMES * self.base).max(SLOW_MIN.as_secs_f64())
    }

    fn slower(&mut self, now: Duration, left: f64) {
        if self.down_at.is_none_or(|at| now >= at + STEP) {
            self.part = (self.part * left).max(PART_MIN);
            self.down_at = Some(now);
            self.up_at = Some(now);
        }
    }

    fn quicker(&mut self, now: Duration) {
        match &mut self.phase {
            Phase::Warming { quick } => {
                *quick += 1;
                if *quick >= WARM_COMMITS {
                    *quick = 0;
                    self.part = (self.part * 2.0).min(1.0);
                }
                // ## Warming => Steady
                if self.part >= 1.0 {
                    self.phase = Phase::Steady;
                }
            }
            Phase::Steady => {
                if self.up_at.is_none_or(|at| now >= at + STEP) {
                    self.part = (self.part + INCREASE).min(1.0);
                    self.base *= FORGET;
                    self.up_at = Some(now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A commit every 50 ms.
    struct Database {
        adaptation: Adaptation,
        now: Duration,
    }

    impl Database {
        fn new() -> Self {
            Self { adaptation: Adaptation::new(), now: Duration::ZERO }
        }

        fn commits(&mut self, commits: u32, took_ms: u64) -> f64 {
            for _ in 0..commits {
                self.now += Duration::from_millis(50);
                self.adaptation.committed(self.now, Duration::from_millis(took_ms), true);
            }
            self.adaptation.part()
        }

        fn fails(&mut self, times: u32) -> f64 {
            for _ in 0..times {
                self.now += STEP;
                self.adaptation.failed(self.now);
            }
            self.adaptation.part()
        }
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn it_warms_up_by_doubling() {
        let mut database = Database::new();
        assert!(near(database.commits(3, 5), 0.5));
        assert!(near(database.commits(1, 5), 1.0));
        assert!(near(database.fails(1), 0.5));
        assert!(near(database.fails(10), PART_MIN));
        assert!(near(database.commits(4, 5), 0.25));
        assert!(near(database.commits(4, 5), 0.5));
        assert!(near(database.commits(4, 5), 1.0));
    }

    #[test]
    fn it_sinks_by_parts_and_rises_by_steps() {
        let mut database = Database::new();
        database.commits(20, 20);
        // Four times 20 ms is the threshold; the first slow one is not believed, the second is.
        assert!(near(database.commits(1, 90), 1.0));
        assert!(near(database.commits(1, 90), 0.7));
        // Not twice within 250 ms.
        assert!(near(database.commits(4, 90), 0.7));
        assert!(near(database.commits(1, 90), 0.49));
        assert!(near(database.commits(200, 90), PART_MIN));
        // Two quick ones make the last three quick; then one step in 250 ms.
        let low = database.commits(2, 20);
        let part = database.commits(20, 20);
        assert!(part > low + 3.0 * INCREASE && part < low + 5.0 * INCREASE, "{low} {part}");
        assert!(near(database.commits(200, 20), 1.0));
    }

    #[test]
    fn a_gross_delay_is_believed_at_once_and_a_small_one_never() {
        let mut database = Database::new();
        database.commits(20, 1);
        assert!(near(database.commits(50, 45), 1.0), "45 ms trouble nobody, whatever the base");
        assert!(near(database.commits(1, 1_000), 0.7));
    }

    #[test]
    fn a_database_that_is_slower_for_good_is_accepted_at_last() {
        let mut database = Database::new();
        database.commits(20, 20);
        database.commits(20, 70);
        assert!(near(database.adaptation.part(), 1.0), "below four times the base");
        let before = database.adaptation.slow_s();
        database.commits(2_000, 70);
        assert!(database.adaptation.slow_s() > before * 1.3);
    }

    #[test]
    fn small_batches_teach_nothing() {
        let mut adaptation = Adaptation::new();
        for n in 0..100 {
            adaptation.committed(Duration::from_millis(n * 50), Duration::from_millis(1), false);
        }
        assert!(near(adaptation.slow_s(), SLOW_UNLEARNED.as_secs_f64()));
    }
}
