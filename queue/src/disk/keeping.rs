//! How long and how much of what is drained stays, and the clock that its age is counted by. Lets nothing go by itself.
//!
//! Time goes on by the smaller step of wall clock and monotonic clock: a clock that is put back or forward under a running process makes
//! nothing older.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A step of the wall clock that is this much longer than the time that has passed is said.
const JUMP_MS: u64 = 60_000;

/// Shortest step: both clocks are cut to milliseconds, and what the smaller of two loses by that must not add up.
const TICK_MS: u64 = 100;

/// What one topic keeps of what is drained, and the clock that it goes by.
#[derive(Debug)]
pub(crate) struct Keeping {
    pub(crate) keep_ms: u64,
    pub(crate) bytes_max: u64,
    clock: Mutex<SteadyClock>,
    /// Whether the last segment went before its time: one line for each spell of it. Upkeep alone, `Relaxed`.
    pub(crate) goes_early: AtomicBool,
}

#[derive(Debug)]
struct SteadyClock {
    ms: u64,
    wall_ms: u64,
    seen: Instant,
}

impl Keeping {
    pub(crate) fn new(keep: Duration, bytes_max: u64, wall_ms: u64) -> Self {
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        let clock = SteadyClock { ms: wall_ms, wall_ms, seen: Instant::now() };
        Self { keep_ms, bytes_max, clock: Mutex::new(clock), goes_early: AtomicBool::new(false) }
    }

    /// The time that ages are counted by.
    pub(crate) fn now_ms(&self, wall_ms: u64) -> u64 {
        self.clock.lock().advance(wall_ms)
    }
}

impl SteadyClock {
    fn advance(&mut self, wall_ms: u64) -> u64 {
        let passed = u64::try_from(self.seen.elapsed().as_millis()).unwrap_or(u64::MAX);
        if passed < TICK_MS {
            return self.ms;
        }
        self.seen += Duration::from_millis(passed);
        let step = wall_ms.saturating_sub(self.wall_ms);
        if step > passed.saturating_add(JUMP_MS) || self.wall_ms > wall_ms.saturating_add(JUMP_MS) {
            let (before, after) = (self.wall_ms.saturating_add(passed), wall_ms);
            tracing::warn!(
                before,
                after,
                "the clock was put: drained records stay as long as if it had not been"
            );
        }
        self.wall_ms = wall_ms;
        self.ms += step.min(passed);
        self.ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_by_the_smaller_step() {
        let mut clock = SteadyClock { ms: 9_000_000, wall_ms: 9_000_000, seen: Instant::now() };
        let (mut wall, mut expected) = (9_000_000, 9_000_000);
        for (passes, wall_step) in [(200, 200), (200, 1_000_000), (200, -2_000_000), (200, 200), (300, 250)] {
            tokio::time::advance(Duration::from_millis(passes)).await;
            wall = (wall as i64 + wall_step) as u64;
            expected += passes.min(wall_step.max(0) as u64);
            assert_eq!(clock.advance(wall), expected, "{passes} {wall_step}");
        }
        for _ in 0..1_000 {
            tokio::time::advance(Duration::from_micros(500)).await;
            wall += 1;
            clock.advance(wall);
            tokio::time::advance(Duration::from_micros(500)).await;
            clock.advance(wall);
        }
        assert_eq!(clock.advance(wall), expected + 1_000, "many short steps add up");
    }
}
