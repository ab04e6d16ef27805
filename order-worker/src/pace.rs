//! Pacing: how many orders may go to the database now. Exact above 1,000 a second, where sleeping by the millisecond is not.
//!
//! A token bucket (governor's GCRA) in nanoseconds of tokio's monotonic clock. A timer that wakes late loses nothing as
//! long as the bucket has room, hence the slack above one batch. Batches are at most a twentieth of the limit: one that
//! the database held up and the full bucket behind it stay within a tenth.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::config::DrainConfig;

/// governor's own clocks do not stand still with tokio's paused time, and its default one is not monotonic.
#[derive(Debug, Clone)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// Room in the bucket above one batch, as time: the timer's granularity and a scheduler's whim.
const SLACK_MS: u32 = 3;
/// A transaction that takes longer says that the database suffers.
const SLOW: Duration = Duration::from_millis(500);
/// One that takes less says that it is well.
const QUICK: Duration = Duration::from_millis(200);
/// Adaptive pacing never goes below this part of the limit.
const SLOWEST_PART: u32 = 8;

/// The drain's pace. Cheap to ask, never shared.
pub struct Pace {
    bucket: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Nanos>>,
    clock: TokioClock,
    limit: u32,
    batch: u32,
    capacity: u32,
    /// Orders a second now; at most the limit.
    rate: u32,
    adaptive: bool,
}

impl Pace {
    /// A full bucket.
    #[must_use]
    pub fn new(config: &DrainConfig) -> Self {
        let limit = config.orders_per_second_max.max(1);
        let batch = config.batch_size_max.min(limit / 20).max(1);
        // Below 20 a second a whole order more would be more than the promised tenth.
        let slack = if limit < 20 { 0 } else { (limit / (1_000 / SLACK_MS)).max(1) };
        let capacity = batch.saturating_add(slack);
        let some = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let clock = TokioClock(Instant::now());
        let quota = Quota::per_second(some(limit)).allow_burst(some(capacity));
        let bucket = RateLimiter::direct_with_clock(quota, clock.clone());
        Self { bucket, clock, limit, batch, capacity, rate: limit, adaptive: config.adaptive }
    }

    /// Most orders that the next batch may have; at least 1.
    #[must_use]
    pub fn batch_max(&self) -> usize {
        let scaled = u64::from(self.batch) * u64::from(self.rate) / u64::from(self.limit);
        usize::try_from(scaled).unwrap_or(usize::MAX).max(1)
    }

    /// Orders a second that it lets through now.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Waits until `orders`, at most [`Self::batch_max`], may go. A dropped wait has taken nothing.
    pub async fn take(&self, orders: usize) {
        // At half the limit an order costs two tokens, and so on.
        let cost = (orders as u64 * u64::from(self.limit)).div_ceil(u64::from(self.rate));
        let cost = u32::try_from(cost).unwrap_or(u32::MAX).min(self.capacity);
        let Some(cost) = NonZeroU32::new(cost) else { return };
        while let Ok(Err(wait)) = self.bucket.check_n(cost) {
            tokio::time::sleep(wait.wait_time_from(self.clock.now())).await;
        }
    }

    /// Hears how long a transaction took. With `adaptive` a slow one lowers the rate by a third, a quick one raises it by a
    /// twentieth of the limit.
    pub fn observe(&mut self, took: Duration) {
        if !self.adaptive {
            return;
        }
        if took >= SLOW {
            self.rate = (self.rate - self.rate / 3).max(self.limit / SLOWEST_PART).max(1);
        } else if took <= QUICK {
            self.rate = self.rate.saturating_add((self.limit / 20).max(1)).min(self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(orders_per_second_max: u32, batch_size_max: u32) -> DrainConfig {
        DrainConfig { orders_per_second_max, batch_size_max, adaptive: true }
    }

    /// Drains a standing backlog for 20 s; answers with (when, how many) of each batch.
    async fn drain(pace: &mut Pace, settle: impl Fn(u64) -> Duration) -> Vec<(Duration, usize)> {
        let begun = Instant::now();
        let mut batches = Vec::new();
        while begun.elapsed() < Duration::from_secs(20) {
            let orders = pace.batch_max();
            pace.take(orders).await;
            tokio::time::sleep(settle(batches.len() as u64)).await;
            batches.push((begun.elapsed(), orders));
        }
        batches
    }

    fn most_in_a_second(batches: &[(Duration, usize)]) -> usize {
        let window = |from: usize| {
            let end = batches[from].0 + Duration::from_secs(1);
            batches[from..].iter().take_while(|(at, _)| *at < end).map(|(_, orders)| orders).sum()
        };
        (0..batches.len()).map(window).max().unwrap_or(0)
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_is_exact_and_no_second_exceeds_a_tenth_more() {
        for (limit, batch_size_max) in [
            (1, 256),
            (7, 256),
            (20, 1),
            (100, 256),
            (333, 256),
            (1_000, 10),
            (2_000, 256),
            (7_777, 256),
            (50_000, 512),
        ] {
            for settle in [|_| Duration::ZERO, |n| Duration::from_micros(n * 7_919 % 9_000)] {
                // Where a jittering transaction takes longer than the pace leaves, the database is the limit.
                let mut pace = Pace::new(&config(limit, batch_size_max));
                let jitter_binds = pace.batch_max() as u64 * 1_000 / u64::from(limit) < 9;
                let batches = drain(&mut pace, settle).await;
                let orders: usize = batches.iter().map(|(_, orders)| orders).sum();
                let rate = orders as f64 / batches[batches.len() - 1].0.as_secs_f64();
                let off = rate / f64::from(limit) - 1.0;
                let burst = (pace.capacity + 1) as f64 / (20.0 * f64::from(limit));
                assert!(off < 0.02 + burst, "{limit}/{batch_size_max}: {rate}");
                assert!(off > -0.02 || jitter_binds, "{limit}/{batch_size_max}: {rate}");
                let most = most_in_a_second(&batches);
                let allowed = limit as usize + (limit as usize / 10).max(pace.batch_max());
                assert!(most <= allowed, "{limit}/{batch_size_max}: {most} in one second");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_not_caught_up_with_a_flood() {
        let mut pace = Pace::new(&config(2_000, 256));
        let batches = drain(&mut pace, |n| Duration::from_millis(if n == 50 { 5_000 } else { 0 })).await;
        let most = most_in_a_second(&batches);
        assert!(most <= 2_200, "{most} in one second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_database_is_spared_and_a_quick_one_used() {
        let mut pace = Pace::new(&config(2_000, 256));
        for _ in 0..3 {
            pace.observe(Duration::from_secs(1));
        }
        assert!(pace.rate() < 700, "{}", pace.rate());
        let slow = drain(&mut pace, |_| Duration::ZERO).await;
        let orders: usize = slow.iter().map(|(_, orders)| orders).sum();
        let rate = orders as f64 / slow[slow.len() - 1].0.as_secs_f64();
        assert!((rate / f64::from(pace.rate()) - 1.0).abs() < 0.03, "{rate} at {}", pace.rate());
        for _ in 0..100 {
            pace.observe(Duration::from_secs(1));
        }
        assert_eq!(pace.rate(), 2_000 / 8);
        assert!(pace.batch_max() >= 1);
        for _ in 0..20 {
            pace.observe(Duration::from_millis(1));
        }
        assert_eq!(pace.rate(), 2_000);
        let mut fixed = Pace::new(&DrainConfig { adaptive: false, ..config(2_000, 256) });
        fixed.observe(Duration::from_secs(9));
        assert_eq!(fixed.rate(), 2_000);
    }
}
