//! The ledger that processes share, read on its own: by another client library than the one that sells, entry by entry.

use std::future::Future;

use order_worker::LongPending;
use serde::Serialize;
use stock::{DeploymentId, SaleId};

use super::Failure;
use crate::config::Config;

/// One sale as the shared ledger holds it, counted.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SharedBooks {
    pub(super) epoch: u64,
    /// The orders database that it belongs to; none where no tagged version installed it.
    pub(super) deployment: Option<String>,
    /// That is another one than ours: its figures say nothing of our rows.
    pub(super) foreign: bool,
    /// Of the sale's row, as last pushed.
    pub(super) version: u64,
    pub(super) total: i64,
    pub(super) remaining: i64,
    pub(super) pending: i64,
    pub(super) confirmed: i64,
    /// Orders whose units went back.
    pub(super) released_orders: u64,
    pub(super) sold_out: bool,
    pub(super) open: bool,
    pub(super) paused: bool,
    /// Whether it moved while it, and what it is compared with, was read.
    pub(super) moving: bool,
    /// Whether all adds up; none when the sale moved under the count.
    pub(super) conserved: Option<bool>,
    /// What does not.
    pub(super) findings: Vec<String>,
}

#[cfg(feature = "redis")]
pub(super) struct SharedLedger {
    audit: stock::ledger::redis::RedisAudit,
    /// Ours; none before the first start on this database.
    deployment: Option<DeploymentId>,
}

#[cfg(feature = "redis")]
impl SharedLedger {
    pub(super) async fn connect(config: &Config, deployment: Option<DeploymentId>) -> Result<Self, Failure> {
        Ok(Self { audit: stock::ledger::redis::RedisAudit::connect(&config.stock).await?, deployment })
    }

    /// None if it has no such sale.
    pub(super) async fn sale(&self, sale: &SaleId) -> Result<Option<SharedBooks>, Failure> {
        Ok(self.audit.sale(sale).await?.map(|audit| SharedBooks::of(audit, self.deployment)))
    }

    /// The same, and `rows`, which are read after the count: where the sale has moved by then, the two need not fit.
    pub(super) async fn sale_beside<T>(
        &self,
        sale: &SaleId,
        rows: impl Future<Output = Result<T, Failure>>,
    ) -> Result<(Option<SharedBooks>, T), Failure> {
        let counted = self.audit.sale(sale).await?;
        let rows = rows.await?;
        let Some(mut counted) = counted else { return Ok((None, rows)) };
        counted.moving = self.audit.has_moved(sale, &counted).await?;
        Ok((Some(SharedBooks::of(counted, self.deployment)), rows))
    }

    /// What has been pending for long.
    pub(super) async fn long_pending(&self, sale: &SaleId) -> Result<Vec<LongPending>, Failure> {
        let pending = self.audit.pending_for(sale, order_worker::LONG_PENDING_MS).await?;
        let long = pending.into_iter();
        Ok(long.map(|held| LongPending { order_id: held.order_id, quantity: held.quantity }).collect())
    }
}

#[cfg(feature = "redis")]
impl SharedBooks {
    fn of(audit: stock::ledger::redis::SaleAudit, ours: Option<DeploymentId>) -> Self {
        let mut findings = audit.findings.clone();
        let ours = ours.map(|ours| ours.to_string());
        let foreign = audit.deployment.is_none() || audit.deployment != ours;
        if foreign {
            let other = audit.deployment.as_deref().unwrap_or("none");
            findings.push(format!(
                "in the ledger it belongs to another orders database (deployment {other}): see `floodgate ledger adopt --help`"
            ));
        }
        if audit.error_units() != 0 {
            findings.push(format!(
                "the ledger's remaining + pending + confirmed is {} units off its total {}",
                audit.error_units(),
                audit.total
            ));
        }
        Self {
            epoch: audit.epoch,
            deployment: audit.deployment.clone(),
            foreign,
            version: audit.version,
            total: audit.total,
            remaining: audit.remaining,
            pending: audit.pending,
            confirmed: audit.confirmed,
            released_orders: audit.counted.released_orders,
            sold_out: audit.remaining <= 0,
            open: audit.open,
            paused: audit.paused,
            moving: audit.moving,
            conserved: if findings.is_empty() { audit.conserved() } else { Some(false) },
            findings,
        }
    }
}

/// Without an adapter nothing is shared: a value of this cannot be made.
#[cfg(not(feature = "redis"))]
pub(super) enum SharedLedger {}

#[cfg(not(feature = "redis"))]
impl SharedLedger {
    pub(super) async fn connect(_: &Config, _: Option<DeploymentId>) -> Result<Self, Failure> {
        Err(Failure::Usage("a shared ledger needs the cargo feature `redis`".into()))
    }

    pub(super) async fn sale(&self, _: &SaleId) -> Result<Option<SharedBooks>, Failure> {
        match *self {}
    }

    pub(super) async fn sale_beside<T>(
        &self,
        _: &SaleId,
        _: impl Future<Output = Result<T, Failure>>,
    ) -> Result<(Option<SharedBooks>, T), Failure> {
        match *self {}
    }

    pub(super) async fn long_pending(&self, _: &SaleId) -> Result<Vec<LongPending>, Failure> {
        match *self {}
    }
}
