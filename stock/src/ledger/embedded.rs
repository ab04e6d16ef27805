//! The ledger in this process's memory. It dies with the process and is rebuilt at start from database and queue.
//!
//! Calls on one sale take that sale's lock for the length of one batch and never wait for anything else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::books::Books;
use super::{
    GrantOutcome, GrantRequest, IdState, LedgerError, Mine, ReserveAnswer, ReserveBatch, Settlement, Snapshot,
};
use crate::{FlagState, Now, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId};

/// See the module. Clones share the same books.
#[derive(Clone)]
pub struct EmbeddedLedger {
    now: Now,
    sales: Arc<RwLock<BTreeMap<SaleId, Arc<Mutex<Books>>>>>,
    /// Until when each instance counts as alive.
    leases: Arc<Mutex<BTreeMap<Owner, u64>>>,
}

impl fmt::Debug for EmbeddedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedLedger").field("sales", &self.sales.read().keys()).finish()
    }
}

impl EmbeddedLedger {
    /// An empty ledger; `now` is ledger time.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self { now, sales: Arc::default(), leases: Arc::default() }
    }

    pub(super) fn now_ms(&self) -> Result<u64, LedgerError> {
        Ok((self.now)())
    }

    pub(super) fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        self.with(&batch.sale, |books| {
            // Read under the lock, so that a later batch never sees an earlier time.
            let now_ms = (self.now)();
            let outcomes = books.reserve(batch, now_ms)?;
            Ok(ReserveAnswer { outcomes, flag: books.flag(), now_ms })
        })
    }

    pub(super) fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        self.with(sale, |books| Ok((books.grant(epoch, request, (self.now)())?, books.flag())))
    }

    pub(super) fn confirm(&self, sale: &SaleId, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        self.with(sale, |books| books.confirm(settled))
    }

    pub(super) fn release(&self, sale: &SaleId, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        self.with(sale, |books| books.release(settled))
    }

    pub(super) fn states(&self, sale: &SaleId, ids: &[OrderId]) -> Result<Vec<IdState>, LedgerError> {
        self.with(sale, |books| books.states(ids))
    }

    pub(super) fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        self.with(sale, |books| books.pending(owner, after, limit))
    }

    pub(super) fn mine(&self, sale: &SaleId, user: &UserId) -> Result<Vec<Mine>, LedgerError> {
        self.with(sale, |books| books.mine(user))
    }

    pub(super) fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        self.with(sale, |books| Ok(books.snapshot()))
    }

    pub(super) fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        self.with(&version.sale, |books| Ok(books.push_sale(version)))
    }

    pub(super) fn install(&self, version: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        let mut sales = self.sales.write();
        let installed = sales
            .entry(version.sale.clone())
            .or_insert_with(|| Arc::new(Mutex::new(Books::closed(version.clone(), epoch))));
        installed.lock().install(version, epoch)
    }

    pub(super) fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        self.with(sale, |books| books.restore(epoch, owner, reservations))
    }

    pub(super) fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        self.with(sale, |books| books.open(epoch))
    }

    pub(super) fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        self.sales.write().remove(sale);
        Ok(())
    }

    /// No other deployment gets here.
    pub(super) fn adopt(&self, _: &SaleId) -> Result<Option<u64>, LedgerError> {
        Ok(None)
    }

    pub(super) fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        let mut leases = self.leases.lock();
        let now_ms = (self.now)();
        leases.retain(|_, until_ms| *until_ms > now_ms);
        leases.insert(owner, now_ms.saturating_add(ttl_ms));
        Ok(now_ms)
    }

    pub(super) fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        self.leases.lock().remove(&owner);
        Ok(())
    }

    pub(super) fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        let leases = self.leases.lock();
        let now_ms = (self.now)();
        let alive = leases.iter().filter(|(_, until_ms)| **until_ms > now_ms);
        Ok((now_ms, alive.map(|(owner, until_ms)| (*owner, *until_ms)).collect()))
    }

    /// Books of their own with the same content, as a replica has them.
    #[cfg(feature = "simulation")]
    pub(super) fn copy(&self) -> Self {
        let sales = self.sales.read();
        let copied = sales.iter().map(|(sale, books)| {
            let books = books.lock().clone();
            (sale.clone(), Arc::new(Mutex::new(books)))
        });
        Self {
            now: self.now.clone(),
            sales: Arc::new(RwLock::new(copied.collect())),
            leases: Arc::new(Mutex::new(self.leases.lock().clone())),
        }
    }

    /// Every id that has left absent.
    #[cfg(feature = "simulation")]
    pub(super) fn known(&self, sale: &SaleId) -> std::collections::BTreeSet<OrderId> {
        let books = self.sales.read().get(sale).cloned();
        books.map(|books| books.lock().known().collect()).unwrap_or_default()
    }

    /// Forgets everything, as a server does that restarts without its memory.
    #[cfg(feature = "simulation")]
    pub(super) fn wipe(&self) {
        self.sales.write().clear();
        self.leases.lock().clear();
    }

    fn with<T>(
        &self,
        sale: &SaleId,
        call: impl FnOnce(&mut Books) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let books = self.sales.read().get(sale).cloned();
        let books = books.ok_or_else(|| LedgerError::UnknownSale(sale.clone()))?;
        call(&mut books.lock())
    }
}
