//! Waiting between two tries: longer each time, bounded, without chance.

use std::time::Duration;

/// The pause after the first failure.
const FIRST: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(2);

/// Doubles from 20 ms to 2 s.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// How many failures there were.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}
