//! "Now" of the gateway: the ledger's time, carried on by this process's monotonic clock.
//!
//! A machine whose wall clock is wrong must not open a sale early: between two answers of the ledger only elapsed time counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stock::Stock;
use tokio::time::Instant;

/// How often the ledger is asked for its time.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Ledger time. Reading it costs one clock call and one atomic load.
#[derive(Debug)]
pub struct LedgerClock {
    /// Ledger time at `anchor`, ms. Written by [`Self::learn`] alone, read by everybody; the one word is the whole state, so
    /// relaxed ordering serves.
    at_anchor_ms: AtomicU64,
    anchor: Instant,
}

impl LedgerClock {
    /// Starts from a first guess, until the ledger has been asked.
    #[must_use]
    pub fn new(guess_ms: u64) -> Self {
        Self { at_anchor_ms: AtomicU64::new(guess_ms), anchor: Instant::now() }
    }

    /// Ledger time in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.at_anchor_ms.load(Ordering::Relaxed) + ms(self.anchor.elapsed())
    }

    /// Takes over what the ledger said: its clock stood at `ledger_ms` halfway between `asked` and now.
    pub fn learn(&self, asked: Instant, ledger_ms: u64) {
        let way_back = asked.elapsed() / 2;
        let since_anchor = ms(self.anchor.elapsed().saturating_sub(way_back));
        self.at_anchor_ms.store(ledger_ms.saturating_sub(since_anchor), Ordering::Relaxed);
    }

    /// Asks the ledger once. A ledger out of reach leaves the clock as it is.
    pub async fn refresh(&self, stock: &Stock) -> Result<(), stock::LedgerError> {
        let asked = Instant::now();
        let ledger_ms = stock.now_ms().await?;
        self.learn(asked, ledger_ms);
        Ok(())
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_between_two_answers_of_the_ledger() {
        let clock = LedgerClock::new(5_000);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.now_ms(), 5_250);
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        clock.learn(asked, 9_000);
        assert_eq!(clock.now_ms(), 9_050, "the answer was 50 ms on its way");
        tokio::time::advance(Duration::from_millis(1_000)).await;
        assert_eq!(clock.now_ms(), 10_050);
    }
}
