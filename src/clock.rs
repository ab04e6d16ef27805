//! The process's wall clock, as far as it may be believed: one that jumps against the monotonic clock is followed only once it has
//! stayed where it is for a while, and at once where it comes back. Sets no clock, and never goes back by less than a second.
//!
//! With one clock alone only jumps during the process's life can be seen: a start believes what it finds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Smaller steps are followed at once; back, and what threads are ahead of each other, is waited for.
const STEP_MS: i64 = 1_000;
/// A jump that lasts shorter is of no consequence.
const BELIEVED_AFTER: Duration = Duration::from_secs(10);
/// How long a jump stays a note in `/readyz`.
const NOTED_FOR: Duration = Duration::from_secs(600);
/// Where the clock stood before: coming back there is believed at once.
const FORMER_MAX: usize = 4;

/// Of all of this process's clocks together.
static JUMPS: LazyLock<Counter> = LazyLock::new(Counter::default);
static JUMPED_AT: Mutex<Option<Instant>> = Mutex::new(None);

/// Milliseconds since the Unix epoch.
pub(crate) fn system() -> Arc<dyn Fn() -> u64 + Send + Sync> {
    let begun = Instant::now();
    let read = move || {
        let earliest = begun.elapsed();
        let wall_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        Reading { wall_ms, earliest_ms: ms(earliest), latest_ms: ms(begun.elapsed()) }
    };
    let clock = Clock::new(read());
    Arc::new(move || clock.now_ms(read()))
}

/// Shows the jumps in `registry`.
pub(crate) fn register(registry: &mut Registry) {
    let help = "Jumps of the system's clock against the monotonic clock";
    registry.register("floodgate_clock_jumps", help, JUMPS.clone());
}

/// Whether the clock has jumped lately.
pub(crate) fn has_jumped() -> bool {
    JUMPED_AT.lock().is_some_and(|at| at.elapsed() < NOTED_FOR)
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The wall clock, read between two looks at the monotonic one.
#[derive(Debug, Clone, Copy)]
struct Reading {
    wall_ms: i64,
    earliest_ms: i64,
    latest_ms: i64,
}

struct Clock {
    /// Wall minus monotonic, as believed. Relaxed, as all here: each value is all that is shared, and a thread that reads an older one
    /// tells a time of a moment ago.
    offset_ms: AtomicI64,
    told_ms: AtomicI64,
    is_doubtful: AtomicBool,
    doubt: Mutex<Doubt>,
}

#[derive(Default)]
struct Doubt {
    /// Where the clock has jumped to, and since when by the monotonic clock.
    jumped: Option<(i64, i64)>,
    /// The latest last.
    former: VecDeque<i64>,
}

fn is_near(one_ms: i64, other_ms: i64) -> bool {
    one_ms.abs_diff(other_ms) <= STEP_MS.unsigned_abs()
}

impl Clock {
    fn new(first: Reading) -> Self {
        let Reading { wall_ms, latest_ms, .. } = first;
        Self {
            offset_ms: AtomicI64::new(wall_ms - latest_ms),
            told_ms: AtomicI64::new(wall_ms),
            is_doubtful: AtomicBool::new(false),
            doubt: Mutex::default(),
        }
    }

    fn now_ms(&self, reading: Reading) -> u64 {
        let Reading { wall_ms, earliest_ms, latest_ms } = reading;
        let believed_ms = self.offset_ms.load(Ordering::Relaxed);
        // A thread that had no turn between the looks has seen no jump.
        let offset_ms = believed_ms.clamp(wall_ms - latest_ms, wall_ms - earliest_ms);
        let now_ms = if is_near(offset_ms, believed_ms) {
            if offset_ms != believed_ms {
                self.offset_ms.store(offset_ms, Ordering::Relaxed);
            }
            if self.is_doubtful.swap(false, Ordering::Relaxed) {
                self.doubt.lock().jumped = None;
                tracing::warn!("the system's clock is back where it was; nothing has followed its jump");
            }
            wall_ms
        } else {
            self.doubt(offset_ms, latest_ms)
        };
        u64::try_from(self.tell(now_ms)).unwrap_or(0)
    }

    /// Never back by less than a step, so that threads agree.
    fn tell(&self, now_ms: i64) -> i64 {
        let told_ms = self.told_ms.fetch_max(now_ms, Ordering::Relaxed);
        if told_ms <= now_ms || told_ms - now_ms <= STEP_MS {
            return told_ms.max(now_ms);
        }
        // It was followed back; a thread that has not seen that yet may tell the old time once more.
        self.told_ms.store(now_ms, Ordering::Relaxed);
        now_ms
    }

    // ## Believed => Doubtful => (Believed again | Followed)
    fn doubt(&self, offset_ms: i64, monotonic_ms: i64) -> i64 {
        let mut doubt = self.doubt.lock();
        let believed_ms = self.offset_ms.load(Ordering::Relaxed);
        if is_near(offset_ms, believed_ms) {
            // Another thread was faster.
            return monotonic_ms + offset_ms;
        }
        let jump_s = (offset_ms - believed_ms) as f64 / 1e3;
        let is_former = doubt.former.iter().any(|former_ms| is_near(*former_ms, offset_ms));
        let lasts_ms = match doubt.jumped {
            Some((to_ms, since_ms)) if is_near(to_ms, offset_ms) => monotonic_ms - since_ms,
            _ => {
                doubt.jumped = Some((offset_ms, monotonic_ms));
                self.is_doubtful.store(true, Ordering::Relaxed);
                JUMPS.inc();
                *JUMPED_AT.lock() = Some(Instant::now());
                tracing::error!(
                    jump_s,
                    "the system's clock has jumped against the monotonic clock: it is followed once it has stayed there for 10 s, or \
                     at once where it comes from; see to the time server of this machine"
                );
                0
            }
        };
        if !is_former && lasts_ms < ms(BELIEVED_AFTER) {
            return monotonic_ms + believed_ms;
        }
        tracing::warn!(jump_s, "the system's clock is followed");
        doubt.jumped = None;
        doubt.former.retain(|former_ms| !is_near(*former_ms, believed_ms));
        doubt.former.push_back(believed_ms);
        if doubt.former.len() > FORMER_MAX {
            doubt.former.pop_front();
        }
        self.is_doubtful.store(false, Ordering::Relaxed);
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
        monotonic_ms + offset_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const BEGIN_MS: i64 = 100 * HOUR_MS;

    fn reading(ahead_ms: i64, monotonic_ms: i64) -> Reading {
        Reading {
            wall_ms: BEGIN_MS + ahead_ms + monotonic_ms,
            earliest_ms: monotonic_ms,
            latest_ms: monotonic_ms,
        }
    }

    /// What it tells beyond the time that has passed.
    fn ahead(clock: &Clock, ahead_ms: i64, monotonic_ms: i64) -> i64 {
        clock.now_ms(reading(ahead_ms, monotonic_ms)) as i64 - BEGIN_MS - monotonic_ms
    }

    #[test]
    fn a_jump_is_followed_once_it_has_lasted_and_its_end_at_once() {
        let clock = Clock::new(reading(0, 0));
        assert_eq!(ahead(&clock, 0, 1_000), 0);
        // An hour ahead for 3 s, and again later: nothing follows.
        for from_ms in [2_000, 20_000] {
            for monotonic_ms in from_ms..from_ms + 3_000 {
                assert_eq!(ahead(&clock, HOUR_MS, monotonic_ms), 0, "{monotonic_ms}");
            }
            assert_eq!(ahead(&clock, 0, from_ms + 3_000), 0);
        }
        // For longer: it is followed, and so is its end.
        assert_eq!(ahead(&clock, HOUR_MS, 30_000), 0);
        assert_eq!(ahead(&clock, HOUR_MS, 39_999), 0);
        assert_eq!(ahead(&clock, HOUR_MS + 3, 40_000), HOUR_MS + 3);
        assert_eq!(ahead(&clock, HOUR_MS + 3, 50_000), HOUR_MS + 3);
        assert_eq!(ahead(&clock, -4, 50_001), -4, "back where it was");
        assert_eq!(ahead(&clock, HOUR_MS, 50_002), HOUR_MS, "a place that was believed is believed");
        assert_eq!(ahead(&clock, -24 * HOUR_MS, 50_003), HOUR_MS);
        assert_eq!(ahead(&clock, -24 * HOUR_MS, 60_003), -24 * HOUR_MS);
    }

    #[test]
    fn small_steps_are_followed_and_never_back() {
        let clock = Clock::new(reading(0, 0));
        let told: Vec<_> =
            (0..20_i64).map(|n| clock.now_ms(reading(if n % 2 == 0 { 0 } else { -900 }, n * 300))).collect();
        assert!(told.is_sorted(), "{told:?}");
        // As NTP slews: for good, an hour in the end.
        let clock = Clock::new(reading(0, 0));
        for n in 0..7_200 {
            assert_eq!(ahead(&clock, n * 500, n * 1_000), n * 500);
        }
    }

    #[test]
    fn a_thread_without_a_turn_has_seen_no_jump() {
        let clock = Clock::new(reading(0, 0));
        let reading = Reading { wall_ms: BEGIN_MS, earliest_ms: 0, latest_ms: 60_000 };
        assert_eq!(clock.now_ms(reading), BEGIN_MS as u64);
        assert!(clock.doubt.lock().jumped.is_none());
    }
}
