//! Which pending orders the database is asked about, when, and how many: the reconciler's part of the protection of the database.
//! Asks nobody: it is shown pages of pending ids, and hears what was found.
//!
//! What should be a row by now is asked about. An order is promised by its owner's log, so it is that log's drain that knows how
//! far rows go:
//!
//! | the owner's log | asked about |
//! | --- | --- |
//! | is drained here, records wait | what was reserved some time before the last one that became a row |
//! | is drained here, nothing waits | what was reserved some time ago |
//! | is not drained here (another process does, or nobody) | a few of what was reserved some time ago: rows among them double the few, none doubles the time until the next |
//!
//! An id of a log drained here that was found absent is an exception (its owner never appended it, or does so late; a dead letter):
//! it is remembered, and asked about again after growing waits. Waits are counted in passes, of which there is one a second: no clock can jump.

use std::collections::BTreeMap;
use std::sync::Arc;

use stock::ledger::{BATCH_MAX, Settlement};
use stock::{OrderId, Owner, Reservation, SaleId};

use crate::database::shares::WHOLE_PPM;
use crate::drain::pace::{Pace, Reach};

/// Ids that all reconcilers on one database together ask it for in a second, at most: each as many as is its share of the drain's
/// limit …
pub const LOOK_UPS_PER_SECOND_MAX: usize = 2_048;
/// … but this many at least, those of processes that drain nothing too.
pub const LOOK_UPS_PER_SECOND_MIN: usize = 256;
/// Ids that were found absent and are remembered. Any more are found again as the pages go round.
pub const ABSENT_MAX: usize = 16_384;
/// Longest wait until an absent id, or a log that is not drained here, is asked about again.
const WAIT_PASSES_MAX: u64 = 16;
/// An id younger than this is on its usual way, and so far a log may be out of the order of its reservations.
const GRACE_MS: u64 = 3_000;
/// Ids of a log that is not drained here, at first.
const STRANGERS_FEW: usize = 64;
/// A log of which nothing was pending for so long is forgotten.
const STRANGER_KEPT_PASSES: u64 = 64;

/// See the module.
pub(super) struct LookUps {
    pace: Arc<Pace>,
    pass: u64,
    /// Of this pass's budget.
    left: usize,
    absent: BTreeMap<SaleId, BTreeMap<OrderId, Absent>>,
    absent_count: usize,
    strangers: BTreeMap<Owner, Stranger>,
}

/// A wait that grows.
#[derive(Debug, Clone, Copy)]
struct Wait {
    passes: u64,
    until_pass: u64,
}

#[derive(Debug)]
struct Absent {
    settlement: Settlement,
    wait: Wait,
}

/// The owner of a log that is not drained here.
#[derive(Debug)]
struct Stranger {
    few: usize,
    wait: Wait,
    seen_in_pass: u64,
}

/// A page of the ledger's pending ids of one sale, by id.
pub(super) struct Page<'p> {
    pub(super) sale: &'p SaleId,
    /// It begins behind this one.
    pub(super) after: Option<OrderId>,
    pub(super) pending: &'p [(Owner, Reservation)],
    /// Nothing is pending behind it.
    pub(super) is_last: bool,
    /// The ledger's time.
    pub(super) now_ms: u64,
}

/// What to ask about of a page.
pub(super) struct Chosen {
    pub(super) asked: Vec<(Owner, Settlement)>,
    /// The budget is used up: the next page begins behind this one.
    pub(super) cut_at: Option<OrderId>,
}

impl Wait {
    fn first(pass: u64) -> Self {
        Self { passes: 1, until_pass: pass + 1 }
    }

    fn longer(self, pass: u64) -> Self {
        let passes = (self.passes * 2).min(WAIT_PASSES_MAX);
        Self { passes, until_pass: pass + passes }
    }
}

impl LookUps {
    /// `pace` knows what is drained here and how far.
    pub(super) fn new(pace: Arc<Pace>) -> Self {
        Self { pace, pass: 0, left: 0, absent: BTreeMap::new(), absent_count: 0, strangers: BTreeMap::new() }
    }

    /// A second has passed. What is remembered of other sales than these is forgotten.
    pub(super) fn begin_pass(&mut self, is_sale: impl Fn(&SaleId) -> bool) {
        self.pass += 1;
        let share = LOOK_UPS_PER_SECOND_MAX as u64 * u64::from(self.pace.share_ppm()) / u64::from(WHOLE_PPM);
        self.left = usize::try_from(share).unwrap_or(usize::MAX).max(LOOK_UPS_PER_SECOND_MIN);
        self.absent.retain(|sale, _| is_sale(sale));
        self.absent_count = self.absent.values().map(BTreeMap::len).sum();
        let pass = self.pass;
        self.strangers.retain(|_, stranger| stranger.seen_in_pass + STRANGER_KEPT_PASSES >= pass);
    }

    /// How many passes have begun.
    pub(super) fn pass(&self) -> u64 {
        self.pass
    }

    /// Whether more may be asked about in this pass.
    pub(super) fn has_budget(&self) -> bool {
        self.left > 0
    }

    /// Ids remembered as absent.
    pub(super) fn absent(&self) -> usize {
        self.absent_count
    }

    /// Absent ids whose wait is over, for half of the budget at most, in calls of a size that the database is asked with.
    pub(super) fn again(&mut self) -> Vec<(SaleId, Vec<Settlement>)> {
        let most = self.left.div_ceil(2);
        let pass = self.pass;
        let due = self.absent.iter().flat_map(|(sale, absent)| {
            let due = absent.values().filter(move |absent| absent.wait.until_pass <= pass);
            due.map(move |absent| (sale, &absent.settlement))
        });
        let mut calls: Vec<(SaleId, Vec<Settlement>)> = Vec::new();
        let mut count = 0;
        for (sale, settlement) in due.take(most) {
            count += 1;
            match calls.last_mut() {
                Some((of, call)) if of == sale && call.len() < BATCH_MAX => call.push(settlement.clone()),
                _ => calls.push((sale.clone(), vec![settlement.clone()])),
            }
        }
        self.left -= count;
        calls
    }

    /// Chooses what to ask about, while there is budget. Absent ids that are not pending any more are forgotten.
    pub(super) fn choose(&mut self, page: &Page<'_>) -> Chosen {
        let mut chosen = Chosen { asked: Vec::new(), cut_at: None };
        let mut taken: BTreeMap<Owner, usize> = BTreeMap::new();
        let mut last = page.after;
        for (owner, reservation) in page.pending {
            if self.is_due(page, *owner, reservation, &mut taken) {
                if self.left == 0 {
                    chosen.cut_at = last;
                    break;
                }
                self.left -= 1;
                let Reservation { order_id, user, quantity, .. } = reservation.clone();
                chosen.asked.push((*owner, Settlement { order_id, user, quantity }));
            }
            last = Some(reservation.order_id);
        }
        let looked_at_all = page.is_last && chosen.cut_at.is_none();
        self.forget_what_is_not_on(page, last.filter(|_| !looked_at_all));
        chosen
    }

    fn is_due(
        &mut self,
        page: &Page<'_>,
        owner: Owner,
        reservation: &Reservation,
        taken: &mut BTreeMap<Owner, usize>,
    ) -> bool {
        let Reservation { order_id, reserved_at_ms, .. } = *reservation;
        if self.absent.get(page.sale).is_some_and(|absent| absent.contains_key(&order_id)) {
            return false;
        }
        // Either way: the ledger's clock may have been put back since.
        let is_old = page.now_ms.abs_diff(reserved_at_ms) >= GRACE_MS;
        match self.pace.reach(owner) {
            Some(Reach::Everything) => is_old,
            Some(Reach::Through { reserved_at_ms: through_ms }) => reserved_at_ms + GRACE_MS <= through_ms,
            None => {
                let pass = self.pass;
                let unknown = || Stranger {
                    few: STRANGERS_FEW,
                    wait: Wait::first(pass.saturating_sub(1)),
                    seen_in_pass: pass,
                };
                let stranger = self.strangers.entry(owner).or_insert_with(unknown);
                stranger.seen_in_pass = pass;
                let taken = taken.entry(owner).or_default();
                let is_asked = is_old && stranger.wait.until_pass <= pass && *taken < stranger.few;
                *taken += usize::from(is_asked);
                is_asked
            }
        }
    }

    /// `through`: the last id that was looked at; none: there is nothing behind the page.
    fn forget_what_is_not_on(&mut self, page: &Page<'_>, through: Option<OrderId>) {
        let Some(absent) = self.absent.get_mut(page.sale) else { return };
        let is_covered = |id: OrderId| {
            page.after.is_none_or(|after| id > after) && through.is_none_or(|through| id <= through)
        };
        let is_pending =
            |id: OrderId| page.pending.binary_search_by_key(&id, |(_, held)| held.order_id).is_ok();
        let before = absent.len();
        absent.retain(|id, _| !is_covered(*id) || is_pending(*id));
        self.absent_count -= before - absent.len();
    }

    /// Nothing of this sale is pending.
    pub(super) fn nothing_is_pending(&mut self, sale: &SaleId) {
        self.absent_count -= self.absent.remove(sale).map_or(0, |absent| absent.len());
    }

    /// The database has answered for what [`Self::choose`] chose.
    pub(super) fn answered(&mut self, sale: &SaleId, asked: Vec<((Owner, Settlement), bool)>) {
        let mut found_rows: BTreeMap<Owner, bool> = BTreeMap::new();
        for ((owner, settlement), is_row) in asked {
            if self.strangers.contains_key(&owner) && self.pace.reach(owner).is_none() {
                *found_rows.entry(owner).or_default() |= is_row;
            } else if !is_row && self.absent_count < ABSENT_MAX {
                let of_sale = self.absent.entry(sale.clone()).or_default();
                let absent = Absent { settlement, wait: Wait::first(self.pass) };
                self.absent_count +=
                    usize::from(of_sale.insert(absent.settlement.order_id, absent).is_none());
            }
        }
        for (owner, found_rows) in found_rows {
            let Some(stranger) = self.strangers.get_mut(&owner) else { continue };
            if found_rows {
                stranger.few = (stranger.few * 2).min(BATCH_MAX);
                stranger.wait = Wait::first(self.pass.saturating_sub(1));
            } else {
                stranger.few = STRANGERS_FEW;
                stranger.wait = stranger.wait.longer(self.pass);
            }
        }
    }

    /// The database has answered for what was asked [`Self::again`].
    pub(super) fn answered_again(&mut self, sale: &SaleId, asked: impl Iterator<Item = (OrderId, bool)>) {
        let Some(absent) = self.absent.get_mut(sale) else { return };
        for (id, is_row) in asked {
            if is_row {
                self.absent_count -= usize::from(absent.remove(&id).is_some());
            } else if let Some(absent) = absent.get_mut(&id) {
                absent.wait = absent.wait.longer(self.pass);
            }
        }
    }
}

#[cfg(test)]
mod tests;
