//! The intake port: promised orders become rows, a batch a transaction, first fit in log order.

use std::fmt;
use std::sync::Arc;

use stock::{OrderId, OrderStatus, Reservation, SaleId, Timestamp, UserId};

use super::{Database, DatabaseError, adapter};

/// What became of one promised order. Its row exists and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Which order.
    pub order_id: OrderId,
    /// As its row says.
    pub sale: SaleId,
    /// As its row says.
    pub user: UserId,
    /// As its row says.
    pub quantity: u32,
    /// Units that its row holds.
    pub units_held: u32,
    /// Where its row stands.
    pub status: OrderStatus,
    /// As its row says: by when it must be paid.
    pub pay_by: Option<Timestamp>,
    /// What this call did for it.
    pub outcome: Outcome,
}

/// What one intake call did for one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It fitted: a row `unpaid` that holds its units; or `closed`, where its sale is withdrawn.
    Inserted,
    /// It had a row already, which was left alone.
    Duplicate,
    /// It did not fit: a row `rejected` that holds none, and a release for the ledger.
    Rejected(RejectReason),
}

impl Settled {
    /// Whether this call has written a release.
    pub(super) fn is_released(&self) -> bool {
        self.outcome != Outcome::Duplicate && self.units_held == 0
    }

    /// As it is once the withdrawal of its sale has closed it.
    pub(super) fn withdrawn(self) -> Self {
        Self { units_held: 0, status: OrderStatus::Closed, ..self }
    }
}

/// ISO 4217's code for "no currency": of orders whose sale the database has not.
pub(super) const NO_CURRENCY: &str = "XXX";

/// Why the database would not take a promised order. Written to the row as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// Fewer units are left than it wants.
    NotEnough,
    /// Its user would hold more than the limit.
    LimitReached,
    /// The database refused the row as it was; written without the buyer's metadata.
    Unwritable,
}

impl RejectReason {
    /// As the row's `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEnough => "not-enough",
            Self::LimitReached => "limit-reached",
            Self::Unwritable => "unwritable",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Database {
    /// Settles a batch in one transaction, in the order given, and answers for each order in that order.
    ///
    /// Neither window nor pause is asked: the promise was made. An order that fits a sale that is withdrawn with its
    /// orders is closed in the same transaction: its row has two versions, and holds nothing.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`] when an order without a row is of a sale that the database has not: nothing was
    /// written. A sale's row is there before its first promise and never goes, so this is an older database than the
    /// log's, or a damaged one, and a rejected row would be of a promise that can be kept. [`DatabaseError::Record`]
    /// when one of them can never be written: nothing was, and the caller searches for it.
    pub async fn settle(&self, batch: impl Into<Arc<[Reservation]>>) -> Result<Vec<Settled>, DatabaseError> {
        adapter!(self, database => database.settle(batch.into()).await)
    }

    /// Writes one order as rejected, with its release, without what could make the row unwritable. A row that exists is
    /// left alone (`Duplicate`).
    ///
    /// # Errors
    /// [`DatabaseError::Record`] when not even this can be written.
    pub async fn reject(
        &self,
        reservation: &Reservation,
        reason: RejectReason,
    ) -> Result<Settled, DatabaseError> {
        adapter!(self, database => database.reject(reservation.clone(), reason).await)
    }
}
