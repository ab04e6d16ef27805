//! Every payment with its refunds and its order, page by page: for the audit of money, not for a payment's own path.

use stock::OrderId;

use super::refunds::RefundRow;
use super::{Database, DatabaseError, OrderRow, PaymentRow, adapter};

/// One payment and what belongs to it, all of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoneyRow {
    /// What came in.
    pub payment: PaymentRow,
    /// What of it goes back, or has gone.
    pub refunds: Vec<RefundRow>,
    /// The order that it names, if that has a row.
    pub order: Option<OrderRow>,
}

/// Orders whose payments are not one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PaidOtherwise {
    /// Paid or once paid, and no payment was kept for them.
    pub without_payment: Vec<OrderId>,
    /// More than one payment was kept for them.
    pub more_than_once: Vec<OrderId>,
}

impl Database {
    /// The providers that have a payment, by name.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn payment_providers(&self) -> Result<Vec<String>, DatabaseError> {
        adapter!(self, database => database.payment_providers().await)
    }

    /// A page of a provider's payments by id, those behind `after`; fewer than `limit` means that it was the last.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn money(
        &self,
        provider: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<MoneyRow>, DatabaseError> {
        adapter!(self, database => database.money(provider.to_owned(), after.to_owned(), limit).await)
    }

    /// The first `limit` of each kind.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn paid_otherwise(&self, limit: usize) -> Result<PaidOtherwise, DatabaseError> {
        adapter!(self, database => database.paid_otherwise(limit).await)
    }
}
