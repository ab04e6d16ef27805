//! What the simulated server remembers, in which life of its memory, and what its replica lacks.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::super::{
    EmbeddedLedger, GrantOutcome, GrantRequest, IdState, LedgerError, Mine, ReserveAnswer, ReserveBatch,
    Settlement, Snapshot,
};
use super::Caller;
use super::happened::{OPENINGS_MAX, Opening};
use crate::{DeploymentId, FlagState, Now, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId};

/// What the server knows.
pub(super) struct Memory {
    books: EmbeddedLedger,
    /// Which life of the memory this is; a connection knows it.
    pub(super) life: u64,
    /// In which life each sale's state was installed, and by whom.
    installed: BTreeMap<SaleId, Installed>,
    /// After so many more reserve batches it is flushed.
    pub(super) reserves_until_flush: Option<u64>,
    /// How many writes a replica may lack.
    lag_max: usize,
    /// The states before each of the last `lag_max` writes, oldest first.
    before: VecDeque<(EmbeddedLedger, BTreeMap<SaleId, Installed>)>,
    /// How often [`Self::reserves_until_flush`] came true.
    pub(super) flushed_in_mid_batch: u64,
    pub(super) openings: Vec<Opening>,
}

/// Where a sale's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Installed {
    /// 0: taken over from another deployment, and of no life.
    life: u64,
    by: DeploymentId,
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
    Mine(SaleId, UserId),
    Snapshot(SaleId),
    PushSale(SaleVersion),
    Install(SaleVersion, u64),
    Restore(SaleId, u64, Owner, Vec<Reservation>),
    Open(SaleId, u64),
    Forget(SaleId),
    Adopt(SaleId),
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
            | Self::Mine(sale, _)
            | Self::Snapshot(sale)
            | Self::Restore(sale, ..)
            | Self::Open(sale, _) => Some(sale),
            Self::Now
            | Self::Install(..)
            | Self::Forget(_)
            | Self::Adopt(_)
            | Self::RenewLease(..)
            | Self::EndLease(_)
            | Self::Leases => None,
        }
    }

    /// The sale that must not be another deployment's.
    fn own_sale(&self) -> Option<&SaleId> {
        match self {
            Self::Install(version, _) => Some(&version.sale),
            Self::Forget(sale) => Some(sale),
            other => other.sale(),
        }
    }

    fn writes(&self) -> bool {
        !matches!(
            self,
            Self::Now
                | Self::States(..)
                | Self::Pending(..)
                | Self::Mine(..)
                | Self::Snapshot(_)
                | Self::Leases
        )
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
    Mine(Vec<Mine>),
    Snapshot(Snapshot),
    Leases((u64, Vec<(Owner, u64)>)),
    Adopted(Option<u64>),
    Done(()),
}

impl Memory {
    pub(super) fn new(now: Now, lag_max: usize) -> Self {
        let books = EmbeddedLedger::new(now);
        Self {
            books,
            life: 1,
            installed: BTreeMap::new(),
            reserves_until_flush: None,
            lag_max,
            before: VecDeque::new(),
            flushed_in_mid_batch: 0,
            openings: Vec::new(),
        }
    }

    pub(super) fn execute(&mut self, call: Call, caller: Caller) -> Result<Answer, LedgerError> {
        if caller.life != self.life {
            return Err(LedgerError::Uncertain("the connection was lost".into()));
        }
        if let Some(sale) = call.own_sale()
            && let Some(installed) = self.installed.get(sale)
            && installed.by != caller.deployment
        {
            return Err(LedgerError::Foreign { sale: sale.clone(), by: installed.by.to_string().into() });
        }
        let is_lost = |sale: &SaleId| self.installed.get(sale).is_some_and(|from| from.life != self.life);
        if call.sale().is_some_and(is_lost) {
            return Err(LedgerError::Amnesia);
        }
        if self.lag_max > 0 && call.writes() {
            self.before.push_back((self.books.copy(), self.installed.clone()));
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
            Call::Mine(sale, user) => Answer::Mine(books.mine(&sale, &user)?),
            Call::Snapshot(sale) => Answer::Snapshot(books.snapshot(&sale)?),
            Call::PushSale(version) => Answer::Flag(books.push_sale(&version)?),
            Call::Install(version, epoch) => Answer::Done(self.install(&version, epoch, caller)?),
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
                self.installed.remove(&sale);
                Answer::Done(books.forget(&sale)?)
            }
            Call::Adopt(sale) => Answer::Adopted(self.adopt(sale, caller.deployment)?),
            Call::RenewLease(owner, ttl_ms) => Answer::Now(books.renew_lease(owner, ttl_ms)?),
            Call::EndLease(owner) => Answer::Done(books.end_lease(owner)?),
            Call::Leases => Answer::Leases(books.leases()?),
        })
    }

    fn adopt(&mut self, sale: SaleId, by: DeploymentId) -> Result<Option<u64>, LedgerError> {
        if self.installed.get(&sale).is_none_or(|installed| installed.by == by) {
            return Ok(None);
        }
        let epoch = self.books.snapshot(&sale).map_or(0, |snapshot| snapshot.epoch);
        self.books.forget(&sale)?;
        self.installed.insert(sale, Installed { life: 0, by });
        Ok(Some(epoch))
    }

    fn install(&mut self, version: &SaleVersion, epoch: u64, caller: Caller) -> Result<(), LedgerError> {
        let held = self.books.snapshot(&version.sale).ok().map(|snapshot| snapshot.epoch);
        self.books.install(version, epoch)?;
        if held != Some(epoch) {
            let installed = Installed { life: self.life, by: caller.deployment };
            self.installed.insert(version.sale.clone(), installed);
        } else if !self.is_of_this_life(&version.sale) {
            return Err(LedgerError::Amnesia);
        }
        Ok(())
    }

    fn is_of_this_life(&self, sale: &SaleId) -> bool {
        self.installed.get(sale).is_some_and(|installed| installed.life == self.life)
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
        let mut sales = self.installed.keys();
        sales.any(|sale| self.is_of_this_life(sale) && !self.is_open(sale))
    }

    /// Everything is gone, whatever life it is.
    pub(super) fn flush(&mut self) {
        self.books.wipe();
        self.installed.clear();
        self.before.clear();
    }

    /// The replica takes over, in a life of its own.
    pub(super) fn fail_over(&mut self, lost: usize) {
        self.life += 1;
        let kept = self.before.len().saturating_sub(lost);
        let replica = self.before.drain(kept..).next();
        if let Some((books, installed)) = replica {
            self.books = books;
            self.installed = installed;
        }
        self.before.clear();
    }
}
