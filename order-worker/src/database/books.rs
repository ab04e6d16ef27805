//! Sums over all rows of a sale, computed from the orders themselves: for the audit, not for the purchase path.

use serde::Serialize;
use stock::{OrderId, SaleId, Timestamp};

use super::{Database, DatabaseError, adapter};

/// One sale's sums, all of one consistent view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleBooks {
    /// Which sale.
    pub sale: SaleId,
    /// Units on offer; `None` when orders name a sale that has no row.
    pub total: Option<u32>,
    /// Of the sale's row.
    pub version: Option<u64>,
    /// As the sale's row counts.
    pub sold: u64,
    /// As the orders sum up.
    pub units_held: u64,
    /// Rows, rejected ones included.
    pub orders: u64,
    /// Rows that were rejected.
    pub rejected: u64,
    /// Users who hold more than the sale's limit.
    pub users_over_limit: u64,
    /// Outstanding releases.
    pub releases: u64,
}

/// An order that was promised and that the database would not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectedOrder {
    /// Which.
    pub order_id: OrderId,
    /// Why: a [`super::RejectReason`].
    pub reason: Option<String>,
    /// When its row was written.
    pub created_at: Timestamp,
}

impl Database {
    /// Every sale that has a row or an order, by id.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn sales_named(&self) -> Result<Vec<SaleId>, DatabaseError> {
        adapter!(self, database => database.sales_named().await)
    }

    /// How many of a sale's orders were rejected at or after `since`, and the first of them by id, at most `limit`.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn rejected_orders(
        &self,
        sale: &SaleId,
        since: Timestamp,
        limit: usize,
    ) -> Result<(u64, Vec<RejectedOrder>), DatabaseError> {
        adapter!(self, database => database.rejected_orders(sale.clone(), since, limit).await)
    }

    /// The sums of one sale, or of every sale that has a row or an order, by id. Reads every order of the sale.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn books(&self, sale: Option<&SaleId>) -> Result<Vec<SaleBooks>, DatabaseError> {
        adapter!(self, database => database.books(sale.cloned()).await)
    }

    /// How many releases the ledger has not answered for.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn releases_outstanding(&self) -> Result<u64, DatabaseError> {
        adapter!(self, database => database.releases_outstanding().await)
    }
}
