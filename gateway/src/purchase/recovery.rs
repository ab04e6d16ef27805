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

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use stock::ledger::LedgerServer;
use stock::{OrderId, Owner, SaleId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{BATCH_DEADLINE_MS, PurchaseParts};

mod doubts;
mod look;
mod rounds;

use doubts::Doubts;
use look::{Pace, Unfinished};
use rounds::{Pauses, Plan};

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
    /// The sales on offer that were wanted once.
    met: Mutex<BTreeSet<SaleId>>,
    wake: Notify,
    /// The sales that were on offer at the start are wanted: until then nobody knows what a crash left. Set once, behind the
    /// requests that it speaks of.
    begun: AtomicBool,
}

/// A deadline is at most a second ahead: one that lies further ahead is of a clock that was put back since.
const OVER_AT_LATEST: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
struct Wanted {
    first_ms: u64,
    /// A request that came later must be met by a look of its own.
    last_ms: u64,
    /// When the last one came.
    asked_at: Instant,
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
                w.asked_at = Instant::now();
                w.requests += 1;
                w.whole |= whole;
            })
            .or_insert(Wanted {
                first_ms: not_before_ms,
                last_ms: not_before_ms,
                asked_at: Instant::now(),
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

    /// The same of one sale: what other servers of the ledger do does not matter to it.
    pub(crate) fn is_idle_for(&self, sale: &SaleId) -> bool {
        self.met.lock().contains(sale) && !self.wanted.lock().contains_key(sale)
    }

    /// Whether abandoned calls may still run: their orders would get their record from this process.
    #[must_use]
    pub fn has_doubts(&self) -> bool {
        !self.doubts.sales().is_empty()
    }

    /// The sale that is due first, of those that `may_look` says, each by its own clock, and how long that is from now.
    fn soonest(
        &self,
        may_look: impl Fn(&SaleId) -> bool,
        now_ms: impl Fn(&SaleId) -> u64,
    ) -> Option<(SaleId, Wanted, Duration)> {
        let wait = |sale: &SaleId, w: &Wanted| {
            let paused = w
                .paused_until
                .map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            let due = Duration::from_millis(w.first_ms.saturating_sub(now_ms(sale)));
            paused.max(due.min(OVER_AT_LATEST.saturating_sub(w.asked_at.elapsed())))
        };
        let wanted = self.wanted.lock();
        let waits = wanted.iter().filter(|(sale, _)| may_look(sale));
        let waits = waits.map(|(sale, w)| (wait(sale, w), sale, w));
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
        if w.last_ms <= looked_at_ms || w.asked_at.elapsed() >= OVER_AT_LATEST {
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
    // Nobody has looked while this did not run.
    parts.recovery.met.lock().clear();
    let mut pause = BACK_OFF.0;
    // Never without: what the log holds would be appended again, and behind damage nobody would drain it.
    while let Err(error) = parts.progress.load().await {
        tracing::warn!(%error, "the log of orders could not be read for the owner's recovery; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF.1);
    }
    tokio::join!(
        meet_new_sales(parts),
        recover_for_ever(parts),
        look_again(parts),
        look_after_orphans(parts)
    );
}

async fn recover_for_ever(parts: &PurchaseParts) {
    let recovery = &parts.recovery;
    let server_of = |sale: &SaleId| parts.stock.server_of(sale);
    let now_ms = |sale: &SaleId| parts.clocks.now_ms(server_of(sale));
    // One look at a time for each of the ledger's servers: a dead one holds up no sale of another.
    let mut looks = FuturesUnordered::new();
    let mut busy: BTreeSet<LedgerServer> = BTreeSet::new();
    loop {
        // In steps, since the ledger's clocks may move meanwhile.
        let step = loop {
            match recovery.soonest(|sale| !busy.contains(&server_of(sale)), now_ms) {
                Some((sale, wanted, Duration::ZERO)) => {
                    let server = server_of(&sale);
                    busy.insert(server);
                    looks.push(async move {
                        let looked = recover_if_due(parts, &sale, wanted).await;
                        (server, sale, wanted, looked)
                    });
                }
                later => break later.map_or(WAIT_STEP, |(.., wait)| wait.min(WAIT_STEP)),
            }
        };
        tokio::select! {
            biased;
            Some((server, sale, wanted, looked)) = looks.next() => {
                busy.remove(&server);
                match looked {
                    Ok(Some(looked_at_ms)) => recovery.done(&sale, wanted, looked_at_ms),
                    // Not yet by the server's own clock, which is known better now.
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%sale, %error, "the owner's recovery is not finished; trying again");
                        recovery.failed(&sale);
                    }
                }
            }
            () = recovery.wake.notified() => {}
            () = tokio::time::sleep(step) => {}
        }
    }
}

/// Has every sale that comes on offer looked at.
async fn meet_new_sales(parts: &PurchaseParts) {
    let mut offers = parts.catalog.subscribe();
    loop {
        offers.mark_unchanged();
        let silent = meet(parts);
        if silent.is_empty() {
            parts.recovery.begun.store(true, Ordering::Release);
            if offers.changed().await.is_err() {
                // The catalog outlives its parts.
                return;
            }
            continue;
        }
        join_all(silent.into_iter().map(|server| parts.clocks.refresh(&parts.stock, server))).await;
        if !meet(parts).is_empty() {
            tokio::time::sleep(WAIT_STEP).await;
        }
    }
}

/// Wants every sale on offer that was not met yet. One whose server has not told its time is not, since "later" would be a guess; answers
/// with those servers.
fn meet(parts: &PurchaseParts) -> BTreeSet<LedgerServer> {
    let offer = parts.catalog.offer_whole();
    let mut met = parts.recovery.met.lock();
    met.retain(|sale| offer.sale(sale.as_str()).is_some());
    let mut silent = BTreeSet::new();
    for sale in offer.sales().iter().filter(|sale| !met.contains(&sale.id)).collect::<Vec<_>>() {
        let server = sale.clock.server();
        if !parts.clocks.knows(server) {
            silent.insert(server);
            continue;
        }
        // Now for what a crash left; later for a call of an earlier life that may still be executed until its deadline.
        parts.recovery.want_whole(&sale.id, 0);
        parts.recovery.want_whole(&sale.id, sale.now_ms() + BATCH_DEADLINE_MS + 1);
        met.insert(sale.id.clone());
    }
    silent
}

/// Recovers `sale` if it is due, and says at which time of its server it looked.
async fn recover_if_due(
    parts: &PurchaseParts,
    sale: &SaleId,
    wanted: Wanted,
) -> Result<Option<u64>, Unfinished> {
    // The server's own clock decides, since it is the one that the deadline is checked by.
    let told_ms = parts.clocks.refresh(&parts.stock, parts.stock.server_of(sale)).await?;
    if told_ms < wanted.first_ms && wanted.asked_at.elapsed() < OVER_AT_LATEST {
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
    let recovery = &parts.recovery;
    let plan = || {
        let mut sales: BTreeSet<SaleId> = recovery.doubts.sales().into_iter().collect();
        sales.extend(recovery.again.lock().keys().cloned());
        Plan { sales: sales.into_iter().collect(), at_once: false }
    };
    let look = |sale: SaleId| async move {
        let later = |error: &Unfinished| {
            tracing::warn!(%sale, %error, "what is not known for certain is looked for again later");
        };
        look::at_doubts(parts, &sale, true).await.inspect_err(later)?;
        if recovery.again.lock().contains_key(&sale) {
            look::at_all(parts, &sale, parts.owner, Pace::Half).await.inspect_err(later)?;
            recovery.looked_again(&sale);
        }
        Ok(())
    };
    rounds::run(&parts.stock, &Pauses { good: AGAIN_INTERVAL, failed: AGAIN_INTERVAL }, plan, look).await;
}

/// Appends what the ledger holds for instances that are taken for dead, as long as they are.
async fn look_after_orphans(parts: &PurchaseParts) {
    let mut orphans = parts.epoch_gate.orphans();
    // Also at the first.
    orphans.mark_changed();
    let owners = &parts.epoch_gate.orphans();
    let plan = || {
        let at_once = orphans.has_changed().unwrap_or(false);
        let is_needed = !orphans.borrow_and_update().is_empty();
        let offer = parts.catalog.offer_whole();
        let sales = offer.sales().iter().filter(|_| is_needed).map(|sale| sale.id.clone());
        Plan { sales: sales.collect(), at_once }
    };
    let look = |sale: SaleId| async move {
        let dead: Vec<Owner> =
            owners.borrow().iter().copied().filter(|owner| *owner != parts.owner).collect();
        for owner in dead {
            look::at_all(parts, &sale, owner, Pace::Full).await.inspect_err(|error| {
                tracing::warn!(%sale, %owner, %error, "a dead instance's reservations are looked at again later");
            })?;
        }
        Ok(())
    };
    rounds::run(&parts.stock, &Pauses { good: AGAIN_INTERVAL, failed: ORPHANS_BACK_OFF }, plan, look).await;
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

    #[test]
    fn a_sale_is_recovered_whatever_another_sales_server_does() {
        let (recovery, sale): (_, SaleId) = (Recovery::default(), "demo".parse().expect("a sale"));
        recovery.want_whole(&"on-a-silent-server".parse().expect("a sale"), 0);
        assert!(!recovery.is_idle_for(&sale), "nobody has met it yet");
        recovery.want_whole(&sale, 0);
        recovery.met.lock().insert(sale.clone());
        assert!(!recovery.is_idle_for(&sale), "it is still to be looked at");
        recovery.wanted.lock().remove(&sale);
        assert!(recovery.is_idle_for(&sale) && !recovery.is_idle());
    }
}
