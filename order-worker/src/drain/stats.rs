//! How the drain is doing, for whoever estimates waiting times or answers for readiness.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Whether the queue is becoming rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainState {
    /// It is, or would be if it held anything.
    Running,
    /// Not at the moment (a database out of reach, tables missing …); the drain keeps trying.
    Stalled(String),
    /// Not any more: somebody has to act.
    Stopped(String),
}

/// Shared by the drain, which writes, and everybody else, who reads.
#[derive(Debug)]
pub struct DrainStats {
    /// Orders settled since the start. Written by the drain alone; a figure on its own, so relaxed.
    drained: AtomicU64,
    /// Orders a second × 1,000. Written by the drain alone; a figure on its own, so relaxed.
    rate_milli: AtomicU64,
    state: Mutex<DrainState>,
}

/// How much one batch weighs in the rate.
const WEIGHT: f64 = 0.2;

impl DrainStats {
    /// Until something was measured the rate is the limit.
    #[must_use]
    pub fn new(orders_per_second_max: u32) -> Self {
        Self {
            drained: AtomicU64::new(0),
            rate_milli: AtomicU64::new(u64::from(orders_per_second_max) * 1_000),
            state: Mutex::new(DrainState::Running),
        }
    }

    /// Orders settled since the start, duplicates included.
    #[must_use]
    pub fn drained(&self) -> u64 {
        self.drained.load(Ordering::Relaxed)
    }

    /// How fast a backlog goes down, orders a second; `None` while it does not.
    #[must_use]
    pub fn orders_per_second(&self) -> Option<f64> {
        let running = *self.state.lock() == DrainState::Running;
        running.then(|| self.rate_milli.load(Ordering::Relaxed) as f64 / 1_000.0)
    }

    /// Whether the queue is becoming rows.
    #[must_use]
    pub fn state(&self) -> DrainState {
        self.state.lock().clone()
    }

    pub(crate) fn set_state(&self, state: DrainState) {
        *self.state.lock() = state;
    }

    /// A batch is settled. `backlogged_for` is the time since the last one if more was waiting all the while.
    pub(crate) fn settled(&self, orders: u64, backlogged_for: Option<Duration>, rate_now: u32) {
        self.drained.fetch_add(orders, Ordering::Relaxed);
        let before = self.rate_milli.load(Ordering::Relaxed) as f64;
        let after = match backlogged_for {
            Some(took) if !took.is_zero() => {
                // Two batches may follow each other closely, but no backlog goes down faster than the pace for long.
                let sample = (orders as f64 / took.as_secs_f64()).min(f64::from(rate_now)) * 1_000.0;
                before + WEIGHT * (sample - before)
            }
            // Nothing was waiting: the next backlog will go as fast as the pace allows.
            _ => f64::from(rate_now) * 1_000.0,
        };
        self.rate_milli.store(after.max(1.0) as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_is_measured_and_hides_while_stalled() {
        let stats = DrainStats::new(2_000);
        assert_eq!(stats.orders_per_second(), Some(2_000.0));
        for _ in 0..40 {
            stats.settled(100, Some(Duration::from_millis(100)), 2_000);
        }
        assert!((stats.orders_per_second().unwrap_or(0.0) - 1_000.0).abs() < 5.0);
        assert_eq!(stats.drained(), 4_000);
        stats.set_state(DrainState::Stalled("down".into()));
        assert_eq!(stats.orders_per_second(), None);
        stats.set_state(DrainState::Running);
        stats.settled(1, None, 2_000);
        assert_eq!(stats.orders_per_second(), Some(2_000.0));
    }
}
