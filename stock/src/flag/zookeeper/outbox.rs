//! What this process knows and the store does not yet: one intent a sale, the latest wins, kept until carried out.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use super::SALES_MAX;
use crate::{FlagState, SaleId};

/// What is to become of one sale's znode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// It holds this state, or a newer one.
    Write(FlagState),
    /// It is gone.
    Remove,
    /// Whatever it holds is gone, were it newer, and then it holds this state.
    Renew(FlagState),
}

/// See the module. Callers on the purchase path never wait here: the lock guards a map and nothing else.
#[derive(Debug)]
pub(super) struct Outbox {
    intents: Mutex<BTreeMap<SaleId, Intent>>,
    wake: Notify,
    waiting: Gauge,
}

impl Outbox {
    pub(super) fn new(waiting: Gauge) -> Self {
        Self { intents: Mutex::default(), wake: Notify::new(), waiting }
    }

    /// Tells whether there was room.
    pub(super) fn put(&self, sale: &SaleId, intent: Intent) -> bool {
        let mut intents = self.intents.lock();
        match (intents.get(sale).copied(), intent) {
            (Some(Intent::Write(held) | Intent::Renew(held)), Intent::Write(state))
                if held.version >= state.version => {}
            // What was to go is still there: a state of a life that never was would outlive what is true now.
            (Some(Intent::Remove | Intent::Renew(_)), Intent::Write(state)) => {
                intents.insert(sale.clone(), Intent::Renew(state));
            }
            (None, _) if intents.len() >= SALES_MAX => return false,
            _ => _ = intents.insert(sale.clone(), intent),
        }
        self.waiting.set(intents.len() as i64);
        drop(intents);
        self.wake.notify_one();
        true
    }

    /// Everything that waits.
    pub(super) fn all(&self) -> Vec<(SaleId, Intent)> {
        self.intents.lock().iter().map(|(sale, intent)| (sale.clone(), *intent)).collect()
    }

    /// Whether a state of this sale waits.
    pub(super) fn holds_state(&self, sale: &SaleId) -> bool {
        matches!(self.intents.lock().get(sale), Some(Intent::Write(_) | Intent::Renew(_)))
    }

    /// Forgets an intent that was carried out, unless another one has taken its place meanwhile.
    pub(super) fn done(&self, sale: &SaleId, intent: Intent) {
        let mut intents = self.intents.lock();
        if intents.get(sale) == Some(&intent) {
            intents.remove(sale);
        }
        self.waiting.set(intents.len() as i64);
    }

    /// Wakes after a [`Self::put`], also one before the call.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FlagVersion;

    fn write(counter: u64) -> Intent {
        Intent::Write(FlagState { sold_out: true, version: FlagVersion { epoch: 1, counter } })
    }

    #[test]
    fn the_latest_intent_of_a_sale_wins_and_is_kept_until_done() {
        let outbox = Outbox::new(Gauge::default());
        let sale: SaleId = "s".parse().unwrap();
        for counter in [1, 3, 2] {
            assert!(outbox.put(&sale, write(counter)));
        }
        assert_eq!(outbox.all(), [(sale.clone(), write(3))]);
        outbox.done(&sale, write(2));
        assert!(outbox.holds_state(&sale));
        assert!(outbox.put(&sale, Intent::Remove));
        assert!(!outbox.holds_state(&sale));
        for counter in [1, 3, 2] {
            assert!(outbox.put(&sale, write(counter)));
        }
        let Intent::Write(newest) = write(3) else { unreachable!() };
        assert_eq!(outbox.all(), [(sale.clone(), Intent::Renew(newest))], "what was to go goes first");
        assert!(outbox.holds_state(&sale));
        outbox.done(&sale, Intent::Renew(newest));
        assert_eq!((outbox.all(), outbox.waiting.get()), (vec![], 0));
    }

    #[test]
    fn it_is_bounded() {
        let outbox = Outbox::new(Gauge::default());
        let sale = |n: usize| format!("s{n}").parse::<SaleId>().unwrap();
        for n in 0..SALES_MAX {
            assert!(outbox.put(&sale(n), write(1)));
        }
        assert!(!outbox.put(&sale(SALES_MAX), write(1)));
        assert!(outbox.put(&sale(0), write(2)), "a sale that waits already needs no more room");
    }
}
