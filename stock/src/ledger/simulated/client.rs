//! A process's client of the simulated server: each method of the port becomes one call. Adds nothing to it.

use super::super::{
    GrantOutcome, GrantRequest, IdState, LedgerError, ReserveAnswer, ReserveBatch, Settlement, Snapshot,
};
use super::SimulatedServer;
use super::memory::{Answer, Call};
use crate::{DeploymentId, FlagState, OrderId, Owner, Reservation, SaleId, SaleVersion};

/// One process's client. See [`SimulatedServer`].
#[derive(Debug, Clone)]
pub struct SimulatedLedger {
    server: SimulatedServer,
    deployment: DeploymentId,
}

/// Sends a call and unpacks its kind of answer.
macro_rules! ask {
    ($self:ident, $call:expr => $answer:path) => {
        match $self.server.call($call, $self.deployment).await? {
            $answer(answer) => Ok(answer),
            other => unreachable!("each call has one kind of answer, not {other:?}"),
        }
    };
}

impl SimulatedLedger {
    pub(super) fn new(server: SimulatedServer, deployment: DeploymentId) -> Self {
        Self { server, deployment }
    }

    pub(in super::super) async fn now_ms(&self) -> Result<u64, LedgerError> {
        ask!(self, Call::Now => Answer::Now)
    }

    pub(in super::super) async fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        ask!(self, Call::Reserve(batch.clone()) => Answer::Reserve)
    }

    pub(in super::super) async fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        ask!(self, Call::Grant(sale.clone(), epoch, request.clone()) => Answer::Grant)
    }

    pub(in super::super) async fn confirm(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        ask!(self, Call::Confirm(sale.clone(), settled.to_vec()) => Answer::Flag)
    }

    pub(in super::super) async fn release(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        ask!(self, Call::Release(sale.clone(), settled.to_vec()) => Answer::Flag)
    }

    pub(in super::super) async fn states(
        &self,
        sale: &SaleId,
        ids: &[OrderId],
    ) -> Result<Vec<IdState>, LedgerError> {
        ask!(self, Call::States(sale.clone(), ids.to_vec()) => Answer::States)
    }

    pub(in super::super) async fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        ask!(self, Call::Pending(sale.clone(), owner, after, limit) => Answer::Pending)
    }

    pub(in super::super) async fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        ask!(self, Call::Snapshot(sale.clone()) => Answer::Snapshot)
    }

    pub(in super::super) async fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        ask!(self, Call::PushSale(version.clone()) => Answer::Flag)
    }

    pub(in super::super) async fn install(
        &self,
        version: &SaleVersion,
        epoch: u64,
    ) -> Result<(), LedgerError> {
        ask!(self, Call::Install(version.clone(), epoch) => Answer::Done)
    }

    pub(in super::super) async fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        ask!(self, Call::Restore(sale.clone(), epoch, owner, reservations.to_vec()) => Answer::Done)
    }

    pub(in super::super) async fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        ask!(self, Call::Open(sale.clone(), epoch) => Answer::Flag)
    }

    pub(in super::super) async fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        ask!(self, Call::Forget(sale.clone()) => Answer::Done)
    }

    pub(in super::super) async fn adopt(&self, sale: &SaleId) -> Result<Option<u64>, LedgerError> {
        ask!(self, Call::Adopt(sale.clone()) => Answer::Adopted)
    }

    pub(in super::super) async fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        ask!(self, Call::RenewLease(owner, ttl_ms) => Answer::Now)
    }

    pub(in super::super) async fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        ask!(self, Call::EndLease(owner) => Answer::Done)
    }

    pub(in super::super) async fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        ask!(self, Call::Leases => Answer::Leases)
    }
}
