//! Ledger and flag together: the only thing that the other crates call.
//!
//! Every flag state that a ledger's answer brings along is published if it is newer than the one known here. A flag that
//! others do not hear never fails the call that brought it: it is a hint, and who does not know asks the ledger.

use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::ledger::foreign::Foreign;
use crate::ledger::recorded::Recorded;
use crate::ledger::{
    GrantOutcome, GrantRequest, IdState, Ledger, LedgerServer, Mine, ReserveAnswer, ReserveBatch, Settlement,
    Snapshot,
};
use crate::metrics::{LedgerCall, StockMetrics};
use crate::{
    Flag, FlagState, LedgerError, LedgerIdentity, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId,
};

/// See the module. The methods are those of [`Ledger`], with its contract.
#[derive(Debug)]
pub struct Stock {
    ledger: Ledger,
    flag: Flag,
    metrics: StockMetrics,
    doubt: Notify,
    foreign: Foreign,
    recorded: Recorded,
}

/// # Errors
/// Every method: [`LedgerError`], as the ledger gave it.
impl Stock {
    /// Joins the two and registers this crate's metrics.
    #[must_use]
    pub fn new(ledger: Ledger, flag: Flag, registry: &mut Registry) -> Self {
        flag.register(registry);
        let metrics = StockMetrics::register(registry);
        Self {
            ledger,
            flag,
            metrics,
            doubt: Notify::new(),
            foreign: Foreign::default(),
            recorded: Recorded::default(),
        }
    }

    /// The ledger itself, for callers that must not publish.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The sold-out flag.
    #[must_use]
    pub fn flag(&self) -> &Flag {
        &self.flag
    }

    /// The database records that the sales live in this ledger; `None`: it records none. While the process is connected to another
    /// one, every call on a sale is answered [`LedgerError::Amnesia`] and sent to nobody: the sale was not opened in that memory.
    pub fn sales_live_in(&self, recorded: Option<LedgerIdentity>) {
        self.recorded.set(recorded);
    }

    /// Others see the ledger that the sales live in, and this process another one; or no longer.
    pub fn set_elsewhere(&self, elsewhere: bool) {
        self.recorded.set_elsewhere(elsewhere);
    }

    /// As last told by [`Self::set_elsewhere`].
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.recorded.is_elsewhere()
    }

    /// See [`Ledger::server_of`].
    #[must_use]
    pub fn server_of(&self, sale: &SaleId) -> LedgerServer {
        self.ledger.server_of(sale)
    }

    /// See [`Ledger::leases_server`].
    #[must_use]
    pub fn leases_server(&self) -> LedgerServer {
        self.ledger.leases_server()
    }

    /// See [`Ledger::now_ms`].
    pub async fn now_ms(&self, server: LedgerServer) -> Result<u64, LedgerError> {
        self.told(LedgerCall::Now, self.ledger.now_ms(server).await)
    }

    /// The time by which the ledger judges calls on `sale`.
    pub async fn now_ms_of(&self, sale: &SaleId) -> Result<u64, LedgerError> {
        self.now_ms(self.server_of(sale)).await
    }

    /// See [`Ledger::ready`].
    pub async fn ready(&self, server: LedgerServer) -> Result<(), LedgerError> {
        self.told(LedgerCall::Ready, self.ledger.ready(server).await)
    }

    /// See [`Ledger::reserve`].
    pub async fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        self.is_here(LedgerCall::Reserve)?;
        self.metrics.batch_size.observe(batch.requests.len() as f64);
        let answer = self.told(LedgerCall::Reserve, self.ledger.reserve(batch).await)?;
        self.publish(&batch.sale, answer.flag).await;
        Ok(answer)
    }

    /// See [`Ledger::grant`].
    pub async fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        self.is_here(LedgerCall::Grant)?;
        let answer = self.told(LedgerCall::Grant, self.ledger.grant(sale, epoch, request).await)?;
        self.publish(sale, answer.1).await;
        Ok(answer)
    }

    /// See [`Ledger::confirm`].
    pub async fn confirm(&self, sale: &SaleId, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        self.is_here(LedgerCall::Confirm)?;
        let flag = self.told(LedgerCall::Confirm, self.ledger.confirm(sale, settled).await)?;
        self.publish(sale, flag).await;
        Ok(flag)
    }

    /// See [`Ledger::release`].
    pub async fn release(&self, sale: &SaleId, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        self.is_here(LedgerCall::Release)?;
        let flag = self.told(LedgerCall::Release, self.ledger.release(sale, settled).await)?;
        self.publish(sale, flag).await;
        Ok(flag)
    }

    /// See [`Ledger::states`].
    pub async fn states(&self, sale: &SaleId, ids: &[OrderId]) -> Result<Vec<IdState>, LedgerError> {
        self.is_here(LedgerCall::States)?;
        self.told(LedgerCall::States, self.ledger.states(sale, ids).await)
    }

    /// See [`Ledger::pending`].
    pub async fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        self.is_here(LedgerCall::Pending)?;
        self.told(LedgerCall::Pending, self.ledger.pending(sale, owner, after, limit).await)
    }

    /// See [`Ledger::mine`].
    pub async fn mine(&self, sale: &SaleId, user: &UserId) -> Result<Vec<Mine>, LedgerError> {
        self.is_here(LedgerCall::Mine)?;
        self.told(LedgerCall::Mine, self.ledger.mine(sale, user).await)
    }

    /// See [`Ledger::snapshot`]. Refreshes the gauges of this sale.
    pub async fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        self.is_here(LedgerCall::Snapshot)?;
        let snapshot = self.told(LedgerCall::Snapshot, self.ledger.snapshot(sale).await);
        if matches!(snapshot, Ok(_) | Err(LedgerError::Amnesia)) {
            self.foreign.is_ours(sale);
            self.count_foreign();
        }
        let snapshot = snapshot?;
        self.metrics.show(sale, &snapshot);
        self.publish(sale, snapshot.flag).await;
        Ok(snapshot)
    }

    /// See [`Ledger::push_sale`].
    pub async fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        self.is_here(LedgerCall::PushSale)?;
        let flag = self.told(LedgerCall::PushSale, self.ledger.push_sale(version).await)?;
        self.publish(&version.sale, flag).await;
        Ok(flag)
    }

    /// Whether [`Self::install`] would be tried: to be asked before one commits oneself to it.
    ///
    /// # Errors
    /// [`LedgerError::Foreign`]; [`LedgerError::Amnesia`] where the sales live in another ledger.
    pub fn may_install(&self, sale: &SaleId) -> Result<(), LedgerError> {
        self.is_here(LedgerCall::Install)?;
        match self.foreign.lately(sale) {
            Some(by) => Err(LedgerError::Foreign { sale: sale.clone(), by }),
            None => Ok(()),
        }
    }

    /// See [`Ledger::install`]. Where another deployment held the sale a moment ago, a ledger that has forgotten it is left to that one.
    pub async fn install(&self, version: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        self.may_install(&version.sale)?;
        self.told(LedgerCall::Install, self.ledger.install(version, epoch).await)
    }

    /// See [`Ledger::restore`].
    pub async fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        self.is_here(LedgerCall::Restore)?;
        self.told(LedgerCall::Restore, self.ledger.restore(sale, epoch, owner, reservations).await)
    }

    /// See [`Ledger::open`].
    pub async fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        self.is_here(LedgerCall::Open)?;
        let flag = self.told(LedgerCall::Open, self.ledger.open(sale, epoch).await)?;
        self.publish(sale, flag).await;
        Ok(flag)
    }

    /// See [`Ledger::forget`]. The flag's cell goes back to unknown and the sale's gauges vanish.
    pub async fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        self.is_here(LedgerCall::Forget)?;
        self.told(LedgerCall::Forget, self.ledger.forget(sale).await)?;
        self.flag.forget(sale);
        self.foreign.is_ours(sale);
        self.count_foreign();
        self.metrics.hide(sale);
        Ok(())
    }

    /// See [`Ledger::adopt`].
    pub async fn adopt(&self, sale: &SaleId) -> Result<Option<u64>, LedgerError> {
        self.told(LedgerCall::Adopt, self.ledger.adopt(sale).await)
    }

    /// Sales of ours whose books in the ledger are another deployment's, as last heard: none of them can be sold here.
    #[must_use]
    pub fn foreign_sales(&self) -> Vec<SaleId> {
        self.foreign.sales()
    }

    /// See [`Ledger::renew_lease`].
    pub async fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        self.told(LedgerCall::RenewLease, self.ledger.renew_lease(owner, ttl_ms).await)
    }

    /// See [`Ledger::end_lease`].
    pub async fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        self.told(LedgerCall::EndLease, self.ledger.end_lease(owner).await)
    }

    /// See [`Ledger::leases`].
    pub async fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        self.told(LedgerCall::Leases, self.ledger.leases().await)
    }

    /// Waits until an answer cast doubt on what this process believes of the ledger's life: amnesia, another epoch, a sale
    /// absent or closed. One that came while nobody waited is not lost.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Whether the ledger that would be called is the one that the sales live in. One that is out of reach says so itself.
    fn is_here(&self, call: LedgerCall) -> Result<(), LedgerError> {
        match self.ledger.sight() {
            Ok(Some(seen)) if self.recorded.differs_from(&seen) => self.told(call, Err(LedgerError::Amnesia)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Counts a call's outcome, minds what it says of the ledger's life, and hands it on.
    fn told<T>(&self, call: LedgerCall, answer: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if let Err(
            LedgerError::Amnesia
            | LedgerError::WrongEpoch { .. }
            | LedgerError::UnknownSale(_)
            | LedgerError::Closed,
        ) = answer
        {
            self.doubt.notify_one();
        }
        if let Err(error @ LedgerError::Foreign { sale, by }) = &answer {
            // Once, however often it is asked.
            if self.foreign.heard(sale, by) {
                tracing::error!("{error}");
            }
            self.count_foreign();
        }
        self.metrics.count(call, answer)
    }

    fn count_foreign(&self) {
        self.metrics.foreign_sales.set(i64::try_from(self.foreign.sales().len()).unwrap_or(i64::MAX));
    }

    async fn publish(&self, sale: &SaleId, state: FlagState) {
        let known = self.flag.cell(sale).read();
        if known.is_some_and(|known| known.version >= state.version) {
            return;
        }
        if let Err(error) = self.flag.publish(sale, state).await {
            self.metrics.flag_publish_errors.inc();
            tracing::warn!(%sale, %error, "others do not hear the sold-out flag yet: they ask the ledger");
        }
    }
}
