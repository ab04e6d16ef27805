//! The recovery: units that the ledger holds for this instance, or for one that is taken for dead, get their record into this
//! instance's log, if that may lack them. What the log holds is known exactly and never appended again.
//!
//! It looks at every sale when it comes on offer (a crash may have come between ledger and log), once more when a batch of
//! an earlier life of the process can no longer execute; and at each order whose end is not known, as soon as it cannot be taken
//! any more. Whether that is so the clock of the sale's server says, which may step: so some time later, by this process's own
//! clock, it looks again. At the reservations of the dead it looks every now and then. Two instances that append the same one do
//! no harm; forgetting one would leak its units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stock::{OrderId, SaleId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{BATCH_DEADLINE_MS, PurchaseParts};

mod doubts;
mod look;

use doubts::Doubts;
use look::{Pace, Unfinished};

/// First and longest pause after a recovery that failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest sleep towards a moment of a server's time before its clock is looked at again.
const WAIT_STEP: Duration = Duration::from_millis(500);
/// How often what should be over is looked at again, and the reservations of the dead: twice, and a record comes within 60 s.
const AGAIN_INTERVAL: Duration = Duration::from_secs(15);
/// Pause after a look at the reservations of the dead that failed.
const ORPHANS_BACK_OFF: Duration = Duration::from_secs(1);
/// How often a whole sale is looked at again: a call of an earlier life of this process may be under way, which only the ledger has
/// heard of.
const WHOLE_AGAIN: u32 = 2;

/// Which sales are to be looked at, and not before which time of the server that holds each. Where a sale has moved since that was
/// asked for, the wait is wrong by what the two clocks differ: then it is over early or late, and the look itself is harmless.
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
    /// After a look that failed: how long the next one is put off, and until when. Other sales, which may live on another
    /// server, do not wait for it.
    pause: Duration,
    paused_until: Option<Instant>,
}

impl Recovery {
    /// It is not known whether the ledger took these, or whether the log holds them: look once the clock of the sale's server
    /// has reached `not_before_ms`, after which no call that is under way should take them.
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
            .or_insert(Wanted {
                first_ms: not_before_ms,
                last_ms: not_before_ms,
                requests: 1,
                whole,
                pause: BACK_OFF.0,
                paused_until: None,
            });
        drop(wanted);
        self.wake.notify_one();
    }

    /// Whether nothing is left to recover.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.begun.load(Ordering::Acquire) && self.wanted.lock().is_empty()
    }

    /// The sale that is due first, each by its own clock, and how long that is from now.
    fn soonest(&self, now_ms: impl Fn(&SaleId) -> u64) -> Option<(SaleId, Wanted, Duration)> {
        let wait = |sale: &SaleId, w: &Wanted| {
            let paused = w
                .paused_until
                .map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            paused.max(Duration::from_millis(w.first_ms.saturating_sub(now_ms(sale))))
        };
        let wanted = self.wanted.lock();
        let waits = wanted.iter().map(|(sale, w)| (wait(sale, w), sale, w));
        waits.min_by_key(|(wait, ..)| *wait).map(|(wait, sale, w)| (sale.clone(), *w, wait))
    }

    /// What was wanted up to `looked_at_ms` is done; what was wanted later, or meanwhile, stays.
    fn done(&self, sale: &SaleId, looked: Wanted, looked_at_ms: u64) {
        let mut wanted = self.wanted.lock();
        let Some(w) = wanted.get_mut(sale) else { return };
        (w.pause, w.paused_until) = (BACK_OFF.0, None);
        if w.requests != looked.requests {
            return;
        }
        if w.last_ms <= looked_at_ms {
            wanted.remove(sale);
        } else {
            w.first_ms = w.last_ms;
        }
    }

    /// The look failed: the next one comes after a pause, a longer one each time.
    fn failed(&self, sale: &SaleId) {
        if let Some(w) = self.wanted.lock().get_mut(sale) {
            w.paused_until = Some(Instant::now() + w.pause);
            w.pause = (w.pause * 2).min(BACK_OFF.1);
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
    loop {
        offers.mark_unchanged();
        if look_at_new_sales(parts, &mut seen).await {
            parts.recovery.begun.store(true, Ordering::Release);
        }
        let now_ms = |sale: &SaleId| parts.clocks.now_ms(parts.stock.server_of(sale));
        let (sale, wanted) = match parts.recovery.soonest(now_ms) {
            Some((sale, wanted, Duration::ZERO)) => (sale, wanted),
            later => {
                // In steps, since the ledger's clocks may move meanwhile.
                let step = later.map_or(WAIT_STEP, |(.., wait)| wait.min(WAIT_STEP));
                tokio::select! {
                    biased;
                    () = parts.recovery.wake.notified() => {}
                    _ = offers.changed() => {}
                    () = tokio::time::sleep(step) => {}
                }
                continue;
            }
        };
        match recover_if_due(parts, &sale, wanted).await {
            Ok(Some(looked_at_ms)) => parts.recovery.done(&sale, wanted, looked_at_ms),
            // Not yet by the server's own clock, which is known better now.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%sale, %error, "the owner's recovery is not finished; trying again");
                parts.recovery.failed(&sale);
            }
        }
    }
}

/// Whether every sale on offer is seen now: one whose server does not tell its time is not, since "later" would be a guess.
async fn look_at_new_sales(parts: &PurchaseParts, seen: &mut BTreeSet<SaleId>) -> bool {
    let offer = parts.catalog.offer_whole();
    seen.retain(|sale| offer.sale(sale.as_str()).is_some());
    let mut silent = BTreeSet::new();
    for sale in offer.sales().iter().filter(|sale| !seen.contains(&sale.id)).collect::<Vec<_>>() {
        let server = sale.clock.server();
        if silent.contains(&server) {
            continue;
        }
        if !parts.clocks.knows(server) && parts.clocks.refresh(&parts.stock, server).await.is_err() {
            silent.insert(server);
            continue;
        }
        // Now for what a crash left; later for a call of an earlier life that may still be executed until its deadline.
        parts.recovery.want_whole(&sale.id, 0);
        parts.recovery.want_whole(&sale.id, sale.now_ms() + BATCH_DEADLINE_MS + 1);
        seen.insert(sale.id.clone());
    }
    silent.is_empty()
}

/// Recovers `sale` if it is due, and says at which time of its server it looked.
async fn recover_if_due(
    parts: &PurchaseParts,
    sale: &SaleId,
    wanted: Wanted,
) -> Result<Option<u64>, Unfinished> {
    // The server's own clock decides, since it is the one that the deadline is checked by.
    let told_ms = parts.clocks.refresh(&parts.stock, parts.stock.server_of(sale)).await?;
    if told_ms < wanted.first_ms {
        return Ok(None);
    }
    if wanted.whole {
        look::at_all(parts, sale, parts.owner, Pace::Full).await?;
    }
    look::at_doubts(parts, sale, false).await?;
    Ok(Some(told_ms))
}

/// Looks again at what should be over, by this process's own clock: where a server's stepped back, calls run that came too late,
/// and what waits for a time of that server waits for as long as the step was.
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
