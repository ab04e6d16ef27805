//! What the simulated server remembers, in which life of its memory, and what its replica lacks.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::super::{
    EmbeddedLedger, GrantOutcome, GrantRequest, IdState, LedgerError, ReserveAnswer, ReserveBatch,
    Settlement, Snapshot,
};
use super::happened::{OPENINGS_MAX, Opening};
use crate::{FlagState, Now, OrderId, Owner, Reservation, SaleId, SaleVersion};

/// What the server knows.
pub(super) struct Memory {
    books: EmbeddedLedger,
    /// Which life of the memory this is; a connection knows it.
    pub(super) life: u64,
    /// The life in which each sale's state was installed.
    installed_in: BTreeMap<SaleId, u64>,
    /// After so many more reserve batches it is flushed.
    pub(super) reserves_until_flush: Option<u64>,
    /// How many writes a replica may lack.
    lag_max: usize,
    /// The states before each of the last `lag_max` writes, oldest first.
    before: VecDeque<(EmbeddedLedger, BTreeMap<SaleId, u64>)>,
    /// How often [`Self::reserves_until_flush`] came true.
    pub(super) flushed_in_mid_batch: u64,
    pub(super) openings: Vec<Opening>,
}

/// What would travel to the server.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Now,
    Reserve(ReserveBatch),
    Grant(SaleId, u64, GrantRequest),
    Confirm(SaleId, Vec<Settlement>),
    Release(SaleId, Vec<Settlement>),
    States(SaleId, Vec<OrderId>),
    Pending(SaleId, Option<Owner>, Option<OrderId>, usize),
    Snapshot(SaleId),
    PushSale(SaleVersion),
    Install(SaleVersion, u64),
    Restore(SaleId, u64, Owner, Vec<Reservation>),
    Open(SaleId, u64),
    Forget(SaleId),
    RenewLease(Owner, u64),
    EndLease(Owner),
    Leases,
}

impl Call {
    /// The sale whose state has to be of this life. An install replaces it.
    fn sale(&self) -> Option<&SaleId> {
        match self {
            Self::Reserve(batch) => Some(&batch.sale),
            Self::PushSale(version) => Some(&version.sale),
            Self::Grant(sale, ..)
            | Self::Confirm(sale, _)
            | Self::Release(sale, _)
            | Self::States(sale, _)
            | Self::Pending(sale, ..)
            | Self::Snapshot(sale)
            | Self::Restore(sale, ..)
            | Self::Open(sale, _) => Some(sale),
            Self::Now
            | Self::Install(..)
            | Self::Forget(_)
            | Self::RenewLease(..)
            | Self::EndLease(_)
            | Self::Leases => None,
        }
    }

    fn writes(&self) -> bool {
        !matches!(self, Self::Now | Self::States(..) | Self::Pending(..) | Self::Snapshot(_) | Self::Leases)
    }
}

/// What would travel back.
#[derive(Debug)]
pub(super) enum Answer {
    Now(u64),
    Reserve(ReserveAnswer),
    Grant((GrantOutcome, FlagState)),
    Flag(FlagState),
    States(Vec<IdState>),
    Pending(Vec<(Owner, Reservation)>),
    Snapshot(Snapshot),
    Leases((u64, Vec<(Owner, u64)>)),
    Done(()),
}

impl Memory {
    pub(super) fn new(now: Now, lag_max: usize) -> Self {
        let books = EmbeddedLedger::new(now);
        Self {
            books,
            life: 1,
            installed_in: BTreeMap::new(),
            reserves_until_flush: None,
            lag_max,
            before: VecDeque::new(),
            flushed_in_mid_batch: 0,
            openings: Vec::new(),
        }
    }

    pub(super) fn execute(&mut self, call: Call, life: u64) -> Result<Answer, LedgerError> {
        if life != self.life {
            return Err(LedgerError::Uncertain("the connection was lost".into()));
        }
        let is_foreign = |sale: &SaleId| self.installed_in.get(sale).is_some_and(|life| *life != self.life);
        if call.sale().is_some_and(is_foreign) {
            return Err(LedgerError::Amnesia);
        }
        if self.lag_max > 0 && call.writes() {
            self.before.push_back((self.books.copy(), self.installed_in.clone()));
            if self.before.len() > self.lag_max {
                self.before.pop_front();
            }
        }
        let books = &self.books;
        Ok(match call {
            Call::Now => Answer::Now(books.now_ms()?),
            Call::Reserve(batch) => {
                let answer = books.reserve(&batch)?;
                self.reserves_until_flush = self.reserves_until_flush.map(|left| left.saturating_sub(1));
                if self.reserves_until_flush == Some(0) {
                    self.reserves_until_flush = None;
                    self.flushed_in_mid_batch += 1;
                    self.flush();
                }
                Answer::Reserve(answer)
            }
            Call::Grant(sale, epoch, request) => Answer::Grant(books.grant(&sale, epoch, &request)?),
            Call::Confirm(sale, settled) => Answer::Flag(books.confirm(&sale, &settled)?),
            Call::Release(sale, settled) => Answer::Flag(books.release(&sale, &settled)?),
            Call::States(sale, ids) => Answer::States(books.states(&sale, &ids)?),
            Call::Pending(sale, owner, after, limit) => {
                Answer::Pending(books.pending(&sale, owner, after, limit)?)
            }
            Call::Snapshot(sale) => Answer::Snapshot(books.snapshot(&sale)?),
            Call::PushSale(version) => Answer::Flag(books.push_sale(&version)?),
            Call::Install(version, epoch) => Answer::Done(self.install(&version, epoch)?),
            Call::Restore(sale, epoch, owner, reservations) => {
                Answer::Done(books.restore(&sale, epoch, owner, &reservations)?)
            }
            Call::Open(sale, epoch) => {
                let was_open = books.snapshot(&sale)?.open;
                let flag = books.open(&sale, epoch)?;
                if !was_open && self.openings.len() < OPENINGS_MAX {
                    let known = books.known(&sale);
                    self.openings.push(Opening { sale, epoch, at: Instant::now(), known });
                }
                Answer::Flag(flag)
            }
            Call::Forget(sale) => {
                self.installed_in.remove(&sale);
                Answer::Done(books.forget(&sale)?)
            }
            Call::RenewLease(owner, ttl_ms) => Answer::Now(books.renew_lease(owner, ttl_ms)?),
            Call::EndLease(owner) => Answer::Done(books.end_lease(owner)?),
            Call::Leases => Answer::Leases(books.leases()?),
        })
    }

    fn install(&mut self, version: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        let held = self.books.snapshot(&version.sale).ok().map(|snapshot| snapshot.epoch);
        self.books.install(version, epoch)?;
        if held != Some(epoch) {
            self.installed_in.insert(version.sale.clone(), self.life);
        } else if self.installed_in.get(&version.sale) != Some(&self.life) {
            return Err(LedgerError::Amnesia);
        }
        Ok(())
    }

    fn is_of_this_life(&self, sale: &SaleId) -> bool {
        self.installed_in.get(sale) == Some(&self.life)
    }

    pub(super) fn is_open(&self, sale: &SaleId) -> bool {
        self.is_of_this_life(sale) && self.books.snapshot(sale).is_ok_and(|snapshot| snapshot.open)
    }

    pub(super) fn state_of(&self, sale: &SaleId, order_id: OrderId) -> Option<IdState> {
        if !self.is_of_this_life(sale) {
            return None;
        }
        // A closed sale tells no states.
        self.books.states(sale, &[order_id]).ok()?.first().copied()
    }

    pub(super) fn is_leased(&self, owner: Owner) -> bool {
        self.books.leases().is_ok_and(|(_, leases)| leases.iter().any(|(leased, _)| *leased == owner))
    }

    /// Whether a sale of this life is installed and not open.
    pub(super) fn is_rebuilding(&self) -> bool {
        let mut sales = self.installed_in.keys();
        sales.any(|sale| self.is_of_this_life(sale) && !self.is_open(sale))
    }

    /// Everything is gone, whatever life it is.
    pub(super) fn flush(&mut self) {
        self.books.wipe();
        self.installed_in.clear();
        self.before.clear();
    }

    /// The replica takes over, in a life of its own.
    pub(super) fn fail_over(&mut self, lost: usize) {
        self.life += 1;
        let kept = self.before.len().saturating_sub(lost);
        let replica = self.before.drain(kept..).next();
        if let Some((books, installed_in)) = replica {
            self.books = books;
            self.installed_in = installed_in;
        }
        self.before.clear();
    }
}
