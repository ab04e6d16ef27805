//! The outbox port: releases that the ledger has not answered for yet.

use stock::ledger::Settlement;
use stock::{OrderId, SaleId};

use super::{Database, DatabaseError, adapter};

impl Database {
    /// A page of outstanding releases by order id, those behind `after`, without those of the sales in `except`; fewer than `limit`
    /// means that it was the last. No crash takes back what is handed out.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn releases(
        &self,
        after: Option<OrderId>,
        except: &[SaleId],
        limit: usize,
    ) -> Result<Vec<(SaleId, Settlement)>, DatabaseError> {
        adapter!(self, database => database.releases(after, except.to_vec(), limit).await)
    }

    /// Deletes releases. Only after the ledger has answered for them.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn releases_done(&self, orders: &[OrderId]) -> Result<(), DatabaseError> {
        adapter!(self, database => database.releases_done(orders.to_vec()).await)
    }

    /// Waits until this process has written a release since the last call; those that others write are found by looking.
    pub async fn release_written(&self) {
        adapter!(self, database => database.release_written().await);
    }
}
