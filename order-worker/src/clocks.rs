//! Whether the clocks of database, ledger and process agree: where they do not, nothing final may follow from any of them. Sets no clock.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use stock::{Now, Stock};
use tokio::time::{Instant, timeout};

use crate::database::Database;

/// Further apart than this, they cannot all be right.
const APART_MS_MAX: i64 = 5_000;
/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(1);
/// Longest wait for the ledger's clock. One that cannot be asked differs from none.
const LEDGER_MAX: Duration = Duration::from_secs(1);

/// Asks them at most once a second.
pub(crate) struct Clocks {
    database: Database,
    stock: Arc<Stock>,
    now: Now,
    apart: Gauge,
    /// What does not happen while they do not agree.
    rests: &'static str,
    last: Mutex<Option<(Instant, bool)>>,
}

/// How far another clock is ahead of ours, at least and at most: it was read between two looks at ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ahead {
    least_ms: i64,
    most_ms: i64,
}

impl Ahead {
    fn of(theirs_ms: u64, before_ms: u64, after_ms: u64) -> Self {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        // A clock of ours that was put back meanwhile.
        let (before_ms, after_ms) = (before_ms.min(after_ms), before_ms.max(after_ms));
        let ahead_of = |ours_ms: u64| signed(theirs_ms).saturating_sub(signed(ours_ms));
        Self { least_ms: ahead_of(after_ms), most_ms: ahead_of(before_ms) }
    }

    /// Whether the two are certainly too far from each other.
    fn is_apart_from(self, other: Self) -> bool {
        self.least_ms.saturating_sub(other.most_ms) > APART_MS_MAX
            || other.least_ms.saturating_sub(self.most_ms) > APART_MS_MAX
    }
}

/// Of our own clock.
const OURS: Ahead = Ahead { least_ms: 0, most_ms: 0 };

fn agree(database: Ahead, ledger: Option<Ahead>) -> bool {
    let ledger_agrees =
        ledger.is_none_or(|ledger| !ledger.is_apart_from(OURS) && !ledger.is_apart_from(database));
    ledger_agrees && !database.is_apart_from(OURS)
}

impl Clocks {
    pub(crate) fn new(
        database: Database,
        stock: Arc<Stock>,
        now: Now,
        apart: Gauge,
        rests: &'static str,
    ) -> Self {
        Self { database, stock, now, apart, rests, last: Mutex::new(None) }
    }

    /// Whether something final may follow from the time now. Not while the database cannot be asked.
    pub(crate) async fn agree(&self) -> bool {
        if let Some((at, agree)) = *self.last.lock()
            && at.elapsed() < HOLDS
        {
            return agree;
        }
        let agree = self.ask().await;
        let before = self.last.lock().replace((Instant::now(), agree));
        if before.is_none_or(|(_, before)| before != agree) {
            self.apart.set(i64::from(!agree));
            if !agree {
                tracing::error!(
                    "the clocks of database, ledger and this process are more than 5 s apart, or the database does not answer: {} \
                     until they agree; see to the time servers of these machines",
                    self.rests
                );
            }
        }
        agree
    }

    async fn ask(&self) -> bool {
        let before_ms = (self.now)();
        let Ok(theirs) = self.database.now().await else { return false };
        let database = Ahead::of(theirs.0, before_ms, (self.now)());
        let before_ms = (self.now)();
        let ledger = timeout(LEDGER_MAX, self.stock.now_ms(self.stock.leases_server())).await;
        let ledger =
            ledger.ok().and_then(Result::ok).map(|theirs_ms| Ahead::of(theirs_ms, before_ms, (self.now)()));
        agree(database, ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_of_three_decide_and_a_slow_answer_accuses_nobody() {
        let at = |ms: u64| Ahead::of(1_000_000 + ms, 1_000_000, 1_000_000);
        let behind = Ahead::of(1_000_000, 1_005_001, 1_005_001);
        assert!(agree(at(0), None) && agree(at(5_000), Some(at(0))));
        assert!(!agree(at(5_001), None) && !agree(behind, None));
        assert!(!agree(at(0), Some(at(5_001))) && !agree(at(0), Some(behind)));
        let three_behind = Ahead::of(997_000, 1_000_000, 1_000_000);
        assert!(!agree(at(3_000), Some(three_behind)), "those two are 6 s apart");
        let slow = Ahead::of(1_009_000, 1_000_000, 1_010_000);
        assert!(agree(slow, Some(at(0))), "it may have been read at any moment between");
    }
}
