//! One sale's books: the ledger's contract as a state machine in memory. It knows no lock, no clock and no other sale.
//!
//! Never drops an id: the whole sale is forgotten at once, so memory is bounded by the ids of unsettled sales.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    BATCH_MAX, DEADLINE_AHEAD_MS_MAX, GrantOutcome, GrantRequest, IdState, LedgerError, MINE_MAX, Mine,
    ReserveBatch, ReserveOutcome, ReserveRequest, Settlement, Snapshot,
};
use crate::{FlagState, FlagVersion, OrderId, Owner, Reservation, SaleVersion, UserId};

/// What is remembered of an id that has left absent.
#[derive(Debug, Clone)]
enum Entry {
    /// Its reservation is in `Books::pending`.
    Pending,
    Confirmed {
        user: UserId,
        quantity: u32,
    },
    Released,
}

/// Everything that the ledger knows of one sale.
#[derive(Debug, Clone)]
pub(super) struct Books {
    sale: SaleVersion,
    epoch: u64,
    open: bool,
    flag_counter: u64,
    remaining: i64,
    units_pending: u64,
    units_confirmed: u64,
    entries: HashMap<OrderId, Entry>,
    pending: BTreeMap<OrderId, (Owner, Reservation)>,
    /// Nobody stands here with 0 units.
    by_user: HashMap<UserId, Holding>,
    passes: Passes,
}

/// What one user holds, pending or confirmed.
#[derive(Debug, Clone, Default)]
struct Holding {
    units: u64,
    /// The newest that hold them, oldest first.
    ids: Vec<OrderId>,
}

/// How an id's units change hands: what is held for its user more (or less) than before.
struct Step {
    units: i64,
    comes: Option<OrderId>,
    goes: Option<OrderId>,
}

impl Step {
    fn takes(order_id: OrderId, quantity: u32) -> Self {
        Self { units: i64::from(quantity), comes: Some(order_id), goes: None }
    }

    fn gives_back(order_id: OrderId, quantity: u32) -> Self {
        Self { units: -i64::from(quantity), comes: None, goes: Some(order_id) }
    }

    fn keeps(before: u32, after: u32) -> Self {
        Self { units: i64::from(after) - i64::from(before), comes: None, goes: None }
    }
}

impl Books {
    /// An empty, closed state.
    pub(super) fn closed(sale: SaleVersion, epoch: u64) -> Self {
        Self {
            remaining: i64::from(sale.total),
            sale,
            epoch,
            open: false,
            flag_counter: 0,
            units_pending: 0,
            units_confirmed: 0,
            entries: HashMap::new(),
            pending: BTreeMap::new(),
            by_user: HashMap::new(),
            passes: Passes::default(),
        }
    }

    /// Replaces everything by an empty closed state if `epoch` is newer.
    pub(super) fn install(&mut self, sale: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        if epoch < self.epoch {
            return Err(LedgerError::WrongEpoch { current: self.epoch });
        }
        if epoch > self.epoch {
            let newer = if self.sale.version > sale.version { &self.sale } else { sale };
            *self = Self::closed(newer.clone(), epoch);
        }
        Ok(())
    }

    pub(super) fn restore(
        &mut self,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        check_call(reservations.iter().map(|r| r.quantity))?;
        self.check_epoch(epoch)?;
        if self.open {
            return Err(LedgerError::Open);
        }
        self.step(|books| {
            for reservation in reservations {
                if !books.entries.contains_key(&reservation.order_id) {
                    books.take_pending(owner, reservation.clone());
                }
            }
        });
        Ok(())
    }

    pub(super) fn open(&mut self, epoch: u64) -> Result<FlagState, LedgerError> {
        self.check_epoch(epoch)?;
        self.open = true;
        Ok(self.flag())
    }

    pub(super) fn push_sale(&mut self, sale: &SaleVersion) -> FlagState {
        if sale.version > self.sale.version {
            self.step(|books| {
                books.remaining += i64::from(sale.total) - i64::from(books.sale.total);
                books.sale = sale.clone();
            });
        }
        self.flag()
    }

    pub(super) fn reserve(
        &mut self,
        batch: &ReserveBatch,
        now_ms: u64,
    ) -> Result<Vec<ReserveOutcome>, LedgerError> {
        check_call(batch.requests.iter().map(|r| r.quantity))?;
        self.check_open()?;
        self.check_epoch(batch.epoch)?;
        if now_ms > batch.deadline_ms || batch.deadline_ms - now_ms > DEADLINE_AHEAD_MS_MAX {
            return Err(LedgerError::DeadlinePassed);
        }
        Ok(self.step(|books| batch.requests.iter().map(|r| books.reserve_one(batch, r, now_ms)).collect()))
    }

    fn reserve_one(&mut self, batch: &ReserveBatch, request: &ReserveRequest, now_ms: u64) -> ReserveOutcome {
        match self.entries.get(&request.order_id) {
            Some(Entry::Pending) => {
                let (_, reservation) = &self.pending[&request.order_id];
                return ReserveOutcome::Pending { first: false, reservation: reservation.clone() };
            }
            Some(Entry::Confirmed { .. }) => return ReserveOutcome::Confirmed,
            Some(Entry::Released) => return ReserveOutcome::PassUsed,
            None => {}
        }
        if batch.terms_version != self.sale.terms_version {
            return ReserveOutcome::TermsDiffer;
        }
        if self.sale.paused {
            return ReserveOutcome::Paused;
        }
        if now_ms < self.sale.starts_at_ms {
            return ReserveOutcome::NotStarted;
        }
        if now_ms >= self.sale.ends_at_ms {
            return ReserveOutcome::Ended;
        }
        let held = self.by_user.get(&request.user);
        let units = held.map_or(0, |held| held.units);
        if units + u64::from(request.quantity) > u64::from(self.sale.per_user_limit) {
            return ReserveOutcome::LimitReached {
                order_ids: held.map_or_else(Vec::new, |held| held.ids.clone()),
            };
        }
        if self.remaining <= 0 {
            return ReserveOutcome::SoldOut;
        }
        if self.remaining < i64::from(request.quantity) {
            // Below a u32 quantity, hence a u32 itself.
            return ReserveOutcome::NotEnough { remaining: self.remaining as u32 };
        }
        let reservation = Reservation {
            order_id: request.order_id,
            sale: self.sale.sale.clone(),
            user: request.user.clone(),
            quantity: request.quantity,
            metadata: request.metadata.clone(),
            reserved_at_ms: now_ms,
            sale_version: Some(self.sale.version),
        };
        self.take_pending(batch.owner, reservation.clone());
        ReserveOutcome::Pending { first: true, reservation }
    }

    // ## Absent => Pending
    fn take_pending(&mut self, owner: Owner, reservation: Reservation) {
        self.passes.used(reservation.order_id);
        self.change(&reservation.user, Step::takes(reservation.order_id, reservation.quantity));
        self.units_pending += u64::from(reservation.quantity);
        self.entries.insert(reservation.order_id, Entry::Pending);
        self.pending.insert(reservation.order_id, (owner, reservation));
    }

    // ## (Absent | Pending) => Confirmed
    pub(super) fn confirm(&mut self, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        check_call(settled.iter().map(|s| s.quantity))?;
        self.step(|books| {
            for settlement in settled {
                let Settlement { order_id, user, quantity } = settlement.clone();
                let mut step = Step::takes(order_id, quantity);
                match books.entries.get(&order_id) {
                    Some(Entry::Confirmed { .. } | Entry::Released) => continue,
                    Some(Entry::Pending) => {
                        // Every entry that says pending has its reservation: both are written in the same steps.
                        if let Some(held) = books.leave_pending(order_id) {
                            if held.user == user {
                                step = Step::keeps(held.quantity, quantity);
                            } else {
                                books.change(&held.user, Step::gives_back(order_id, held.quantity));
                            }
                        }
                    }
                    None => books.passes.used(order_id),
                }
                books.change(&user, step);
                books.units_confirmed += u64::from(quantity);
                books.entries.insert(order_id, Entry::Confirmed { user, quantity });
            }
        });
        Ok(self.flag())
    }

    // ## (Absent | Pending | Confirmed) => Released
    pub(super) fn release(&mut self, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        check_call(settled.iter().map(|s| s.quantity))?;
        self.step(|books| {
            for settlement in settled {
                match books.entries.insert(settlement.order_id, Entry::Released) {
                    Some(Entry::Released) => {}
                    Some(Entry::Pending) => {
                        if let Some(held) = books.leave_pending(settlement.order_id) {
                            books.change(&held.user, Step::gives_back(held.order_id, held.quantity));
                        }
                    }
                    Some(Entry::Confirmed { user, quantity }) => {
                        books.units_confirmed -= u64::from(quantity);
                        books.change(&user, Step::gives_back(settlement.order_id, quantity));
                    }
                    None => books.passes.used(settlement.order_id),
                }
            }
        });
        Ok(self.flag())
    }

    fn leave_pending(&mut self, order_id: OrderId) -> Option<Reservation> {
        let (_, reservation) = self.pending.remove(&order_id)?;
        self.units_pending -= u64::from(reservation.quantity);
        Some(reservation)
    }

    fn change(&mut self, user: &UserId, step: Step) {
        self.remaining -= step.units;
        let held = self.by_user.entry(user.clone()).or_default();
        held.units = held.units.saturating_add_signed(step.units);
        if held.units == 0 {
            self.by_user.remove(user);
            return;
        }
        if let Some(order_id) = step.goes {
            held.ids.retain(|id| *id != order_id);
        }
        if let Some(order_id) = step.comes {
            if held.ids.len() == MINE_MAX {
                held.ids.remove(0);
            }
            held.ids.push(order_id);
        }
    }

    pub(super) fn grant(
        &mut self,
        epoch: u64,
        request: &GrantRequest,
        now_ms: u64,
    ) -> Result<GrantOutcome, LedgerError> {
        self.check_open()?;
        self.check_epoch(epoch)?;
        self.passes.pass_time(now_ms);
        if let Some((order_id, expires_at_ms)) = self.passes.of(&request.user) {
            return Ok(GrantOutcome::Existing { order_id, expires_at_ms });
        }
        if self.remaining <= 0 {
            return Ok(GrantOutcome::SoldOut);
        }
        if self.sale.passes_per_unit == 0 || self.entries.contains_key(&request.order_id) {
            return Ok(GrantOutcome::Granted);
        }
        let live_max = u64::from(self.sale.passes_per_unit).saturating_mul(self.remaining as u64);
        if self.passes.live() >= live_max {
            return Ok(GrantOutcome::GateFull);
        }
        self.passes.add(request);
        Ok(GrantOutcome::Granted)
    }

    pub(super) fn states(&self, ids: &[OrderId]) -> Result<Vec<IdState>, LedgerError> {
        check_size(ids.len())?;
        self.check_open()?;
        Ok(ids
            .iter()
            .map(|id| match self.entries.get(id) {
                None => IdState::Absent,
                Some(Entry::Pending) => IdState::Pending,
                Some(Entry::Confirmed { .. }) => IdState::Confirmed,
                Some(Entry::Released) => IdState::Released,
            })
            .collect())
    }

    pub(super) fn mine(&self, user: &UserId) -> Result<Vec<Mine>, LedgerError> {
        self.check_open()?;
        let ids = self.by_user.get(user).map_or(&[][..], |held| &held.ids);
        Ok(ids.iter().map(|id| Mine { order_id: *id, pending: self.pending.get(id).cloned() }).collect())
    }

    /// Every id that has left absent, in no order.
    #[cfg(feature = "simulation")]
    pub(super) fn known(&self) -> impl Iterator<Item = OrderId> {
        self.entries.keys().copied()
    }

    pub(super) fn pending(
        &self,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        check_size(limit)?;
        let above = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let of_owner = |held: &&(Owner, Reservation)| owner.is_none_or(|owner| held.0 == owner);
        let range = self.pending.range((above, std::ops::Bound::Unbounded));
        Ok(range.map(|(_, held)| held).filter(of_owner).take(limit).cloned().collect())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            epoch: self.epoch,
            version: self.sale.version,
            total: self.sale.total,
            remaining: self.remaining,
            pending: self.units_pending,
            confirmed: self.units_confirmed,
            open: self.open,
            paused: self.sale.paused,
            flag: self.flag(),
        }
    }

    pub(super) fn flag(&self) -> FlagState {
        FlagState {
            sold_out: self.remaining <= 0,
            version: FlagVersion { epoch: self.epoch, counter: self.flag_counter },
        }
    }

    /// Carries out one call's writes and bumps the flag's counter if they made `remaining` ≤ 0 or > 0.
    fn step<T>(&mut self, writes: impl FnOnce(&mut Self) -> T) -> T {
        let sold_out = self.remaining <= 0;
        let answer = writes(self);
        if (self.remaining <= 0) != sold_out {
            self.flag_counter += 1;
        }
        debug_assert_eq!(
            i64::from(self.sale.total),
            self.remaining + self.units_pending as i64 + self.units_confirmed as i64,
            "units leaked"
        );
        answer
    }

    fn check_epoch(&self, epoch: u64) -> Result<(), LedgerError> {
        if epoch == self.epoch { Ok(()) } else { Err(LedgerError::WrongEpoch { current: self.epoch }) }
    }

    fn check_open(&self) -> Result<(), LedgerError> {
        if self.open { Ok(()) } else { Err(LedgerError::Closed) }
    }
}

pub(super) fn check_size(count: usize) -> Result<(), LedgerError> {
    if count > BATCH_MAX {
        return Err(LedgerError::Invalid(format!("{count} ids in one call, at most {BATCH_MAX} are taken")));
    }
    Ok(())
}

pub(super) fn check_call(quantities: impl ExactSizeIterator<Item = u32>) -> Result<(), LedgerError> {
    check_size(quantities.len())?;
    for quantity in quantities {
        if quantity == 0 {
            return Err(LedgerError::Invalid("quantity 0".into()));
        }
    }
    Ok(())
}

/// The passes that are unused and, after [`Passes::pass_time`], unexpired. At most one a user.
#[derive(Debug, Clone, Default)]
struct Passes {
    by_user: HashMap<UserId, LivePass>,
    users: HashMap<OrderId, UserId>,
    by_expiry: BTreeSet<(u64, OrderId)>,
    /// Those that still count, by until when.
    counting: BTreeSet<(u64, OrderId)>,
}

#[derive(Debug, Clone, Copy)]
struct LivePass {
    order_id: OrderId,
    expires_at_ms: u64,
    counts_until_ms: u64,
}

impl Passes {
    fn live(&self) -> u64 {
        self.counting.len() as u64
    }

    fn of(&self, user: &UserId) -> Option<(OrderId, u64)> {
        self.by_user.get(user).map(|pass| (pass.order_id, pass.expires_at_ms))
    }

    fn add(&mut self, request: &GrantRequest) {
        let &GrantRequest { ref user, order_id, expires_at_ms, counts_until_ms } = request;
        self.by_user.insert(user.clone(), LivePass { order_id, expires_at_ms, counts_until_ms });
        self.users.insert(order_id, user.clone());
        self.by_expiry.insert((expires_at_ms, order_id));
        self.counting.insert((counts_until_ms, order_id));
    }

    fn used(&mut self, order_id: OrderId) {
        if let Some(pass) = self.users.remove(&order_id).and_then(|user| self.by_user.remove(&user)) {
            self.by_expiry.remove(&(pass.expires_at_ms, order_id));
            self.counting.remove(&(pass.counts_until_ms, order_id));
        }
    }

    fn pass_time(&mut self, now_ms: u64) {
        while self.counting.first().is_some_and(|(counts_until_ms, _)| *counts_until_ms <= now_ms) {
            self.counting.pop_first();
        }
        while let Some(&(expires_at_ms, order_id)) = self.by_expiry.first() {
            if expires_at_ms > now_ms {
                break;
            }
            self.used(order_id);
        }
    }
}
