//! The recovery: units that the ledger holds for this instance, or for one that is taken for dead, get their record into this
//! instance's log, if that may lack them. What the log holds is known exactly and never appended again.
//!
//! It looks at every sale when it comes on offer (a crash may have come between ledger and log), once more when a batch of
//! an earlier life of the process can no longer execute; and at each order whose end is not known, as soon as it cannot be taken any
//! more. Whether that is so the ledger's clock says, which may step: so some time later, by this process's own clock, it looks again.
//! At the reservations of the dead it looks every now and then. Two instances that append the same one do no harm; forgetting
//! one would leak its units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stock::{OrderId, SaleId};
use tokio::sync::{Notify, watch};

use super::{BATCH_DEADLINE_MS, PurchaseParts};

mod doubts;
mod look;

use doubts::Doubts;
use look::{Pace, Unfinished};

/// First and longest pause after a recovery that failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest sleep towards a moment of ledger time before the ledger's clock is looked at again.
const WAIT_STEP: Duration = Duration::from_millis(500);
/// How often what should be over is looked at again, and the reservations of the dead: twice, and a record comes within 60 s.
const AGAIN_INTERVAL: Duration = Duration::from_secs(15);
/// Pause after a look at the reservations of the dead that failed.
const ORPHANS_BACK_OFF: Duration = Duration::from_secs(1);
/// How often a whole sale is looked at again: a call of an earlier life of this process may be under way, which only the ledger has
/// heard of.
const WHOLE_AGAIN: u32 = 2;

/// Which sales are to be looked at, and not before which ledger time.
#[derive(Default)]
pub struct Recovery {
    wanted: Mutex<BTreeMap<SaleId, Wanted>>,
    doubts: Doubts,
    /// Sales that are looked at whole again, and how often.
    again: Mutex<BTreeMap<SaleId, u32>>,
    wake: Notify,
    /// The sales that were on offer at the start are wanted: until then nobody knows what a crash left. Set once, behind the
    /// requests that it speaks of.
    begun: AtomicBool,
}

#[derive(Clone, Copy)]
struct Wanted {
    first_ms: u64,
    /// A request that came later must be met by a look of its own.
    last_ms: u64,
    /// Requests so far: one that came during a look is not met by it.
    requests: u64,
    /// All that the ledger holds for us, not only what is doubted.
    whole: bool,
}

impl Recovery {
    /// It is not known whether the ledger took these, or whether the log holds them: look once ledger time has reached
    /// `not_before_ms`, after which no call that is under way should take them.
    pub(super) fn doubt(&self, sale: &SaleId, ids: &[OrderId], not_before_ms: u64) {
        if self.doubts.add(sale, ids) {
            self.want(sale, not_before_ms, false);
        } else {
            self.want_whole(sale, not_before_ms);
        }
    }

    /// Whether it is not known if the log holds this order, should the ledger hold it.
    pub(crate) fn doubts(&self, sale: &SaleId, order_id: OrderId) -> bool {
        self.doubts.has(sale, order_id)
    }

    fn want_whole(&self, sale: &SaleId, not_before_ms: u64) {
        self.again.lock().insert(sale.clone(), WHOLE_AGAIN);
        self.want(sale, not_before_ms, true);
    }

    fn want(&self, sale: &SaleId, not_before_ms: u64, whole: bool) {
        let mut wanted = self.wanted.lock();
        wanted
            .entry(sale.clone())
            .and_modify(|w| {
                w.first_ms = w.first_ms.min(not_before_ms);
                w.last_ms = w.last_ms.max(not_before_ms);
                w.requests += 1;
                w.whole |= whole;
            })
            .or_insert(Wanted { first_ms: not_before_ms, last_ms: not_before_ms, requests: 1, whole });
        drop(wanted);
        self.wake.notify_one();
    }

    /// Whether nothing is left to recover.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.begun.load(Ordering::Acquire) && self.wanted.lock().is_empty()
    }

    fn soonest(&self) -> Option<(SaleId, Wanted)> {
        self.wanted.lock().iter().min_by_key(|(_, w)| w.first_ms).map(|(sale, w)| (sale.clone(), *w))
    }

    /// What was wanted up to `looked_at_ms` is done; what was wanted later, or meanwhile, stays.
    fn done(&self, sale: &SaleId, looked: Wanted, looked_at_ms: u64) {
        let mut wanted = self.wanted.lock();
        let Some(w) = wanted.get_mut(sale) else { return };
        if w.requests != looked.requests {
            return;
        }
        if w.last_ms <= looked_at_ms {
            wanted.remove(sale);
        } else {
            w.first_ms = w.last_ms;
        }
    }

    /// A whole sale was looked at again.
    fn looked_again(&self, sale: &SaleId) {
        let mut again = self.again.lock();
        if let Some(left) = again.get_mut(sale) {
            *left -= 1;
            if *left == 0 {
                again.remove(sale);
            }
        }
    }
}

/// The recovery's loop; ends when `closing` says true. Owned by whoever owns the process.
pub async fn run(parts: Arc<PurchaseParts>, mut closing: watch::Receiver<bool>) {
    tokio::select! {
        biased;
        _ = closing.wait_for(|closing| *closing) => {}
        () = work(&parts) => {}
    }
}

async fn work(parts: &PurchaseParts) {
    let mut pause = BACK_OFF.0;
    // Never without: what the log holds would be appended again, and behind damage nobody would drain it.
    while let Err(error) = parts.progress.load().await {
        tracing::warn!(%error, "the log of orders could not be read for the owner's recovery; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF.1);
    }
    tokio::join!(recover_for_ever(parts), look_again(parts), look_after_orphans(parts));
}

async fn recover_for_ever(parts: &PurchaseParts) {
    let mut offers = parts.catalog.subscribe();
    let mut seen = BTreeSet::new();
    let mut pause = BACK_OFF.0;
    loop {
        offers.mark_unchanged();
        look_at_new_sales(parts, &mut seen);
        parts.recovery.begun.store(true, Ordering::Release);
        let Some((sale, wanted)) = parts.recovery.soonest() else {
            tokio::select! {
                biased;
                () = parts.recovery.wake.notified() => {}
                _ = offers.changed() => {}
            }
            continue;
        };
        match recover_when_due(parts, &sale, wanted).await {
            Ok(Some(looked_at_ms)) => {
                parts.recovery.done(&sale, wanted, looked_at_ms);
                pause = BACK_OFF.0;
            }
            // Not yet: something sooner may have been asked for meanwhile.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%sale, %error, "the owner's recovery is not finished; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
}

fn look_at_new_sales(parts: &PurchaseParts, seen: &mut BTreeSet<SaleId>) {
    let offer = parts.catalog.offer();
    let on_offer: BTreeSet<SaleId> = offer.sales().iter().map(|sale| sale.id.clone()).collect();
    let now_ms = parts.clock.now_ms();
    for sale in on_offer.difference(seen) {
        // Now for what a crash left; later for a call of an earlier life that may still be executed until its deadline.
        parts.recovery.want_whole(sale, 0);
        parts.recovery.want_whole(sale, now_ms + BATCH_DEADLINE_MS + 1);
    }
    *seen = on_offer;
}

/// Recovers `sale` if it is due and says at which ledger time it looked; otherwise sleeps a step towards it.
async fn recover_when_due(
    parts: &PurchaseParts,
    sale: &SaleId,
    wanted: Wanted,
) -> Result<Option<u64>, Unfinished> {
    // The ledger's own clock decides, since it is the one that the deadline is checked by.
    let ledger_ms = parts.stock.now_ms().await?;
    if let wait_ms @ 1.. = wanted.first_ms.saturating_sub(ledger_ms) {
        let step = WAIT_STEP.min(Duration::from_millis(wait_ms));
        tokio::select! {
            biased;
            () = parts.recovery.wake.notified() => {}
            () = tokio::time::sleep(step) => {}
        }
        return Ok(None);
    }
    if wanted.whole {
        look::at_all(parts, sale, parts.owner, Pace::Full).await?;
    }
    look::at_doubts(parts, sale, false).await?;
    Ok(Some(ledger_ms))
}

/// Looks again at what should be over, by this process's own clock: where the ledger's stepped back, calls run that came too late,
/// and what waits for a ledger time waits for as long as the step was.
async fn look_again(parts: &PurchaseParts) {
    loop {
        tokio::time::sleep(AGAIN_INTERVAL).await;
        let recovery = &parts.recovery;
        for sale in recovery.doubts.sales() {
            if let Err(error) = look::at_doubts(parts, &sale, true).await {
                tracing::warn!(%sale, %error, "orders whose end is not known are looked for again later");
            }
        }
        let whole: Vec<SaleId> = recovery.again.lock().keys().cloned().collect();
        for sale in whole {
            match look::at_all(parts, &sale, parts.owner, Pace::Half).await {
                Ok(()) => recovery.looked_again(&sale),
                Err(error) => {
                    tracing::warn!(%sale, %error, "what an earlier life may have left is looked for again later");
                }
            }
        }
    }
}

/// Appends what the ledger holds for instances that are taken for dead, as long as they are.
async fn look_after_orphans(parts: &PurchaseParts) {
    let mut orphans = parts.seat.orphans();
    loop {
        let owners = orphans.borrow_and_update().clone();
        if owners.is_empty() {
            if orphans.changed().await.is_err() {
                // The seat outlives its parts.
                return;
            }
            continue;
        }
        let mut pause = AGAIN_INTERVAL;
        for sale in parts.catalog.offer_whole().sales() {
            for owner in owners.iter().filter(|owner| **owner != parts.owner) {
                if let Err(error) = look::at_all(parts, &sale.id, *owner, Pace::Full).await {
                    tracing::warn!(sale = %sale.id, %owner, %error, "a dead instance's reservations are looked at again later");
                    pause = ORPHANS_BACK_OFF;
                }
            }
        }
        tokio::select! {
            biased;
            _ = orphans.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_recovered_before_the_first_look() {
        let recovery = Recovery::default();
        assert!(!recovery.is_idle(), "a crash may have left reservations that nobody has asked for yet");
        recovery.begun.store(true, Ordering::Release);
        assert!(recovery.is_idle());
    }
}
