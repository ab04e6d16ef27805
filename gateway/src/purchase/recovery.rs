//! The recovery: units that the ledger holds for this instance, or for one that is taken for dead, get their record into this
//! instance's log.
//!
//! It looks at every sale when it comes on offer (a crash may have come between ledger and log), once more when a batch of
//! an earlier life of the process can no longer execute, and after every batch whose end is not known; for the dead every now
//! and then. Appending what some log holds already is harmless, whoever comes back and appends it as well; forgetting one
//! would leak its units. It never appends what a new life of the ledger may not know: see `Page`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use queue::Refused;
use queue::failpoint::hit;
use stock::ledger::BATCH_MAX;
use stock::{LedgerError, OrderId, Owner, Reservation, SaleId, UnderWay};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{BATCH_DEADLINE_MS, PurchaseParts, batch};

/// First and longest pause after a recovery that failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest sleep towards a moment of a server's time before its clock is looked at again.
const WAIT_STEP: Duration = Duration::from_millis(500);
/// How often the reservations of the dead are looked at.
const ORPHANS_INTERVAL: Duration = Duration::from_secs(1);

/// Which sales are to be looked at, and not before which time of the server that holds each. Where a sale has moved since that was
/// asked for, the wait is wrong by what the two clocks differ: then it is over early or late, and the look itself is harmless.
#[derive(Default)]
pub struct Recovery {
    wanted: Mutex<BTreeMap<SaleId, Wanted>>,
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
    /// After a look that failed: how long the next one is put off, and until when. Other sales, which may live on another
    /// server, do not wait for it.
    pause: Duration,
    paused_until: Option<Instant>,
}

/// Why a sale's recovery has to be tried again.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Queue(#[from] Refused),
    #[error("an append's end is not known")]
    Append,
    #[error("the ledger is being rebuilt")]
    Rebuilding,
}

impl Recovery {
    /// Look at `sale` once the clock of its server has reached `not_before_ms`.
    pub fn request(&self, sale: &SaleId, not_before_ms: u64) {
        let mut wanted = self.wanted.lock();
        wanted
            .entry(sale.clone())
            .and_modify(|w| {
                w.first_ms = w.first_ms.min(not_before_ms);
                w.last_ms = w.last_ms.max(not_before_ms);
                w.requests += 1;
            })
            .or_insert(Wanted {
                first_ms: not_before_ms,
                last_ms: not_before_ms,
                requests: 1,
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
}

/// The recovery's loop; ends when `closing` says true. Owned by whoever owns the process.
pub async fn run(parts: Arc<PurchaseParts>, mut closing: watch::Receiver<bool>) {
    tokio::select! {
        biased;
        _ = closing.wait_for(|closing| *closing) => {}
        _ = async { tokio::join!(recover_for_ever(&parts), look_after_orphans(&parts)) } => {}
    }
}

async fn recover_for_ever(parts: &PurchaseParts) {
    let mut pause = BACK_OFF.0;
    while let Err(error) = parts.progress.load().await {
        tracing::warn!(%error, "the log of orders could not be read for the owner's recovery; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF.1);
        if !error.is_retryable() {
            // Then every pending reservation is appended again: duplicates are harmless.
            break;
        }
    }

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
        parts.recovery.request(&sale.id, 0);
        parts.recovery.request(&sale.id, sale.now_ms() + BATCH_DEADLINE_MS + 1);
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
    recover(parts, sale, parts.owner).await?;
    Ok(Some(told_ms))
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
        for sale in parts.catalog.offer_whole().sales() {
            for owner in owners.iter().filter(|owner| **owner != parts.owner) {
                if let Err(error) = recover(parts, &sale.id, *owner).await {
                    tracing::warn!(sale = %sale.id, %owner, %error, "a dead instance's reservations are looked at again later");
                }
            }
        }
        tokio::time::sleep(ORPHANS_INTERVAL).await;
    }
}

/// Appends every reservation that the ledger holds for `owner` and this log is not known to hold.
async fn recover(parts: &PurchaseParts, sale: &SaleId, owner: Owner) -> Result<(), Unfinished> {
    let mut after = None;
    loop {
        let Some(page) = Page::read(parts, sale, owner, after).await? else { return Ok(()) };
        after = page.next;
        let appended = page.append(parts).await?;
        let failpoint = if owner == parts.owner { "gateway.recovered" } else { "gateway.adopted" };
        // A crash here leaves the records in the log, and the next look appends some of them again.
        if appended > 0 && hit(failpoint) {
            return Err(Unfinished::Append);
        }
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Reservations, and the right to append them: the barrier was entered with an epoch before it was seen that the ledger lives
/// in that one. What it holds then is known to that life, and a newer one waits for the appends.
struct Page {
    under_way: UnderWay,
    reservations: Vec<Reservation>,
    /// Where the next page begins; `None` after the last.
    next: Option<OrderId>,
}

impl Page {
    /// `None`: the ledger does not know the sale, or another deployment has it there: it holds nothing of ours.
    async fn read(
        parts: &PurchaseParts,
        sale: &SaleId,
        owner: Owner,
        after: Option<OrderId>,
    ) -> Result<Option<Self>, Unfinished> {
        let epoch = parts.seat.offered();
        let under_way = parts.seat.enter(epoch).ok_or(Unfinished::Rebuilding)?;
        match parts.stock.snapshot(sale).await {
            Ok(snapshot) if snapshot.epoch == epoch => {}
            Ok(_) => return Err(Unfinished::Rebuilding),
            Err(LedgerError::UnknownSale(_) | LedgerError::Foreign { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let page = parts.stock.pending(sale, Some(owner), after, BATCH_MAX).await?;
        let is_full = page.len() == BATCH_MAX;
        let reservations: Vec<_> = page.into_iter().map(|(_, reservation)| reservation).collect();
        let next = reservations.last().filter(|_| is_full).map(|last| last.order_id);
        Ok(Some(Self { under_way, reservations, next }))
    }

    /// How many it appended.
    async fn append(self, parts: &PurchaseParts) -> Result<usize, Unfinished> {
        let Self { under_way, reservations, .. } = self;
        let mut under_way = Some(under_way);
        let mut appends = Vec::new();
        let mut refused = None;
        for reservation in &reservations {
            let order_id = reservation.order_id;
            if parts.progress.is_on_its_way(order_id) {
                continue;
            }
            let payload_bytes = super::payload_bytes_max(
                reservation.sale.as_str(),
                reservation.user.as_str(),
                reservation.metadata.as_deref(),
            );
            let append = parts.topic.try_permit(payload_bytes).map_err(Unfinished::from).and_then(|permit| {
                batch::append(parts, permit, payload_bytes, reservation).ok_or(Unfinished::Append)
            });
            match append {
                Ok(append) => appends.push((order_id, append)),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let appended = appends.len();
        // To the last one, whatever becomes of the first: none may be left as if on its way.
        for (order_id, append) in appends {
            match append.durable(&mut under_way).await {
                Some(position) => {
                    parts.progress.remember(order_id, position);
                    parts.metrics.recovered.inc();
                }
                None => {
                    parts.progress.give_up(order_id);
                    refused = Some(Unfinished::Append);
                }
            }
        }
        refused.map_or(Ok(appended), Err)
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
