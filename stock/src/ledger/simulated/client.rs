//! A process's client of the simulated servers: each method of the port becomes one call to the server that the sale lives on.
//! Adds nothing to it.

use std::fmt;
use std::sync::Arc;

use super::super::{
    GrantOutcome, GrantRequest, IdState, LedgerError, LedgerIdentity, LedgerServer, LedgerSight, Mine,
    ReserveAnswer, ReserveBatch, Settlement, Snapshot,
};
use super::SimulatedServer;
use super::memory::{Answer, Call};
use crate::{DeploymentId, FlagState, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId};

/// Says by sale which of several servers holds it; below their number.
pub type Placing = Arc<dyn Fn(&SaleId) -> usize + Send + Sync>;

/// One process's client. See [`SimulatedServer`].
#[derive(Clone)]
pub struct SimulatedLedger {
    /// The first one holds the leases.
    servers: Arc<[SimulatedServer]>,
    placing: Placing,
    deployment: DeploymentId,
}

impl fmt::Debug for SimulatedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedLedger").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// Sends a call to a server and unpacks its kind of answer.
macro_rules! ask {
    ($self:ident, $server:expr, $call:expr => $answer:path) => {
        match $server.call($call, $self.deployment).await? {
            $answer(answer) => Ok(answer),
            other => unreachable!("each call has one kind of answer, not {other:?}"),
        }
    };
}

impl SimulatedLedger {
    pub(super) fn new(server: SimulatedServer, deployment: DeploymentId) -> Self {
        Self { servers: Arc::new([server]), placing: Arc::new(|_| 0), deployment }
    }

    /// A ledger of several servers, each with a clock, a memory and faults of its own. The first one holds the leases.
    #[must_use]
    pub fn of_several(servers: &[SimulatedServer], placing: Placing) -> Self {
        assert!((1..=LedgerServer::COUNT_MAX).contains(&servers.len()), "{} servers", servers.len());
        Self { servers: servers.into(), placing, deployment: DeploymentId(1) }
    }

    pub(in super::super) fn server_of(&self, sale: &SaleId) -> LedgerServer {
        let number = u8::try_from((self.placing)(sale)).expect("a ledger has at most 256 servers");
        LedgerServer::numbered(number)
    }

    /// Of all servers together: a loss of any of them is a loss.
    pub(in super::super) fn sight(&self) -> Result<LedgerSight, LedgerError> {
        if self.servers.iter().any(SimulatedServer::is_away) {
            return Err(LedgerError::Unavailable("the connection was refused".into()));
        }
        let names: Vec<String> = self.servers.iter().map(SimulatedServer::name).collect();
        Ok(LedgerSight { ledger: LedgerIdentity::new(&names.join("+")), is_witness: true })
    }

    /// The server that holds `sale`.
    fn of(&self, sale: &SaleId) -> &SimulatedServer {
        &self.servers[usize::from(self.server_of(sale).number())]
    }

    fn leases_server(&self) -> &SimulatedServer {
        &self.servers[usize::from(LedgerServer::FIRST.number())]
    }

    pub(in super::super) async fn now_ms(&self, server: LedgerServer) -> Result<u64, LedgerError> {
        ask!(self, self.servers[usize::from(server.number())], Call::Now => Answer::Now)
    }

    pub(in super::super) async fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        ask!(self, self.of(&batch.sale), Call::Reserve(batch.clone()) => Answer::Reserve)
    }

    pub(in super::super) async fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        ask!(self, self.of(sale), Call::Grant(sale.clone(), epoch, request.clone()) => Answer::Grant)
    }

    pub(in super::super) async fn confirm(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        ask!(self, self.of(sale), Call::Confirm(sale.clone(), settled.to_vec()) => Answer::Flag)
    }

    pub(in super::super) async fn release(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        ask!(self, self.of(sale), Call::Release(sale.clone(), settled.to_vec()) => Answer::Flag)
    }

    pub(in super::super) async fn states(
        &self,
        sale: &SaleId,
        ids: &[OrderId],
    ) -> Result<Vec<IdState>, LedgerError> {
        ask!(self, self.of(sale), Call::States(sale.clone(), ids.to_vec()) => Answer::States)
    }

    pub(in super::super) async fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        ask!(self, self.of(sale), Call::Pending(sale.clone(), owner, after, limit) => Answer::Pending)
    }

    pub(in super::super) async fn mine(
        &self,
        sale: &SaleId,
        user: &UserId,
    ) -> Result<Vec<Mine>, LedgerError> {
        ask!(self, self.of(sale), Call::Mine(sale.clone(), user.clone()) => Answer::Mine)
    }

    pub(in super::super) async fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        ask!(self, self.of(sale), Call::Snapshot(sale.clone()) => Answer::Snapshot)
    }

    pub(in super::super) async fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        ask!(self, self.of(&version.sale), Call::PushSale(version.clone()) => Answer::Flag)
    }

    pub(in super::super) async fn install(
        &self,
        version: &SaleVersion,
        epoch: u64,
    ) -> Result<(), LedgerError> {
        ask!(self, self.of(&version.sale), Call::Install(version.clone(), epoch) => Answer::Done)
    }

    pub(in super::super) async fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        ask!(self, self.of(sale), Call::Restore(sale.clone(), epoch, owner, reservations.to_vec()) => Answer::Done)
    }

    pub(in super::super) async fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        ask!(self, self.of(sale), Call::Open(sale.clone(), epoch) => Answer::Flag)
    }

    pub(in super::super) async fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        ask!(self, self.of(sale), Call::Forget(sale.clone()) => Answer::Done)
    }

    pub(in super::super) async fn adopt(&self, sale: &SaleId) -> Result<Option<u64>, LedgerError> {
        ask!(self, self.of(sale), Call::Adopt(sale.clone()) => Answer::Adopted)
    }

    pub(in super::super) async fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        ask!(self, self.leases_server(), Call::RenewLease(owner, ttl_ms) => Answer::Now)
    }

    pub(in super::super) async fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        ask!(self, self.leases_server(), Call::EndLease(owner) => Answer::Done)
    }

    pub(in super::super) async fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        ask!(self, self.leases_server(), Call::Leases => Answer::Leases)
    }
}
