//! The process's wall clock: never going back and never standing still for long, whatever the system's clock does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Smaller steps back, and what threads are ahead of each other, are waited for.
const STEP_MS: u64 = 1_000;

/// Milliseconds since the Unix epoch. After a step back it goes on at half its pace until the system's clock has caught up: were
/// it to stand still, whatever waits for a moment would wait for as long as the step was.
pub(crate) fn system() -> Arc<dyn Fn() -> u64 + Send + Sync> {
    let clock = Clock::default();
    let begun = Instant::now();
    Arc::new(move || {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        clock.read(wall, begun.elapsed())
    })
}

#[derive(Default)]
struct Clock {
    /// The latest answer. Relaxed: the value itself is all that is shared.
    latest_ms: AtomicU64,
    slow: Mutex<Slow>,
}

/// From where on, by the monotonic clock, it goes at half its pace, and how far it got.
#[derive(Default)]
struct Slow {
    since: Duration,
    from_ms: u64,
    told_ms: u64,
}

impl Clock {
    fn read(&self, wall_ms: u64, monotonic: Duration) -> u64 {
        let latest_ms = self.latest_ms.fetch_max(wall_ms, Ordering::Relaxed);
        if wall_ms + STEP_MS > latest_ms {
            return latest_ms.max(wall_ms);
        }
        let mut slow = self.slow.lock();
        if latest_ms > slow.told_ms {
            // It has followed the system's clock since the last step.
            *slow = Slow { since: monotonic, from_ms: latest_ms, told_ms: latest_ms };
        }
        let gone_ms = monotonic.saturating_sub(slow.since).as_millis() as u64;
        slow.told_ms = slow.told_ms.max(slow.from_ms + gone_ms / 2);
        self.latest_ms.fetch_max(slow.told_ms, Ordering::Relaxed).max(slow.told_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_after_a_step_back_and_never_back() {
        let clock = Clock::default();
        let hour_ms = 3_600_000;
        let begin_ms = 100 * hour_ms;
        let mut told = Vec::new();
        // The system's clock is set back by an hour, twice.
        for second in 0..20_000 {
            let stepped_ms = hour_ms * (u64::from(second >= 10) + u64::from(second >= 10_000));
            let wall_ms = begin_ms + second * 1_000 - stepped_ms;
            told.push(clock.read(wall_ms, Duration::from_secs(second)));
        }
        assert!(told.is_sorted());
        for (second, window) in told.windows(5).enumerate() {
            let gone_ms = window[4] - window[0];
            assert!((1_000..=4_000).contains(&gone_ms), "{second}: {gone_ms} ms in 4 s");
        }
        assert_eq!(told[9_999], begin_ms + 9_999_000 - hour_ms, "it has been caught up with");
        assert_eq!(clock.read(begin_ms + 50 * hour_ms, Duration::from_secs(20_001)), begin_ms + 50 * hour_ms);
    }
}
