//! The order-life port: what happens to an order once it has a row.

use std::str::FromStr;

use serde::Serialize;
use serde_json::json;
use stock::{OrderId, OrderStatus, SaleId, Timestamp, UnknownOrderStatus, UserId};

use super::transitions::has_lapsed;
use super::{CloseCause, Database, DatabaseError, SaleRow, adapter};
use crate::journal::{Action, Author, Change};

/// The status in a row: any but `queued`, which is no row yet.
pub(super) struct RowStatus(pub(super) OrderStatus);

/// A row says what no row may.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowStatusError {
    #[error("an order's row: {0}")]
    Unknown(#[from] UnknownOrderStatus),
    #[error("an order's row says {:?}, which is what has no row yet", OrderStatus::Queued.as_str())]
    Queued,
}

impl FromStr for RowStatus {
    type Err = RowStatusError;

    fn from_str(word: &str) -> Result<Self, RowStatusError> {
        match word.parse()? {
            OrderStatus::Queued => Err(RowStatusError::Queued),
            status => Ok(Self(status)),
        }
    }
}

/// A row of `floodgate_orders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrderRow {
    /// Names it everywhere.
    pub order_id: OrderId,
    /// Of which sale.
    pub sale_id: SaleId,
    /// Whose.
    pub user_id: UserId,
    /// Units asked for.
    pub quantity: u32,
    /// Units of the sale that it holds now.
    pub units_held: u32,
    /// price × quantity, minor units.
    pub amount: u64,
    /// ISO 4217.
    pub currency: String,
    /// Where it stands.
    pub status: OrderStatus,
    /// Why it is closed (see [`CloseCause`]) or rejected (see [`super::RejectReason`]).
    pub reason: Option<String>,
    /// The buyer's own.
    pub metadata: Option<Box<str>>,
    /// When the row was written.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// By when it must be paid; none for a rejected one.
    pub pay_by: Option<Timestamp>,
    /// 1 at first, one more with every change.
    pub version: u64,
    /// Of a practice run.
    pub rehearsal: bool,
    /// When a payment was kept.
    pub paid_at: Option<Timestamp>,
    /// What has gone back of that payment, minor units.
    pub refunded_amount: u64,
    /// The sale's, under which it was promised: price, currency, limit and pay time are that version's.
    pub sale_version: Option<u64>,
}

/// What became of a cancellation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one answer of a transaction: a box would cost more than it saves"
)]
pub enum CancelOutcome {
    /// It is closed and its units are back. The same answer when it had been cancelled before: nothing changes then.
    Cancelled(OrderRow),
    /// It is past cancelling (paid, rejected, closed for another reason …).
    WrongState(OrderStatus),
    /// No such order, or another user's.
    NotFound,
}

/// On whose word an order is closed.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    /// Its buyer's: another user's order is as good as none.
    User(&'a UserId),
    /// An operator's.
    Operator(&'a Author),
}

/// The same, for a transaction that outlives its caller.
#[derive(Debug, Clone)]
pub(super) enum Canceller {
    User(UserId),
    Operator(Author),
    /// An operator's, in nobody's place.
    Closer(Author),
}

impl Canceller {
    /// Whether this order is none of theirs.
    pub(super) fn is_stranger_to(&self, row: &OrderRow) -> bool {
        matches!(self, Self::User(user) if *user != row.user_id)
    }

    /// As what the order is closed.
    pub(super) fn cause(&self) -> CloseCause {
        match self {
            Self::User(_) | Self::Operator(_) => CloseCause::Cancelled,
            Self::Closer(_) => CloseCause::Operator,
        }
    }

    /// Whether the order is closed as they want it: a repeat.
    pub(super) fn has_closed(&self, row: &OrderRow) -> bool {
        row.status == OrderStatus::Closed && row.reason.as_deref() == Some(self.cause().as_str())
    }

    /// What the journal says of it, and for whom: nothing of the buyer, and nothing on a buyer's word.
    pub(super) fn journal(&self, before: &OrderRow, after: &OrderRow) -> Option<(&Author, Change)> {
        let (author, action) = match self {
            Self::User(_) => return None,
            Self::Operator(author) => (author, Action::OrderCancel),
            Self::Closer(author) => (author, Action::OrderClose),
        };
        let state = |row: &OrderRow| json!({ "status": row.status, "reason": row.reason, "units_held": row.units_held, "version": row.version });
        let subject = before.order_id.to_string();
        Some((author, Change { action, subject, before: Some(state(before)), after: Some(state(after)) }))
    }
}

impl From<By<'_>> for Canceller {
    fn from(by: By<'_>) -> Self {
        match by {
            By::User(user) => Self::User(user.clone()),
            By::Operator(author) => Self::Operator(author.clone()),
        }
    }
}

/// An order whose deadline may be over. Its sale never changes, so the caller can name the row that is locked first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Which order.
    pub order_id: OrderId,
    /// Of which sale.
    pub sale: SaleId,
}

/// What became of an order that was to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseOutcome {
    /// It was unpaid, its time was over, and its units are back.
    Closed,
    /// It is unpaid, but its time is not over for so many milliseconds: by the database's clock, which decides.
    Early(u64),
    /// It is not unpaid any more: it was left alone.
    Past(OrderStatus),
    /// It has no row.
    Absent,
}

impl CloseOutcome {
    /// Of an unpaid order that has not lapsed. One without a deadline never does.
    pub(super) fn early(row: &OrderRow, now: Timestamp, grace_ms: u64) -> Self {
        let lapses = row.pay_by.map_or(u64::MAX, |pay_by| pay_by.0.saturating_add(grace_ms));
        Self::Early(lapses.saturating_sub(now.0))
    }
}

/// Why orders are closed a batch at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closes {
    /// Nobody has paid them, and their deadline is so long over.
    Lapsed { grace_ms: u64 },
    /// Their sale is withdrawn with its orders.
    Withdrawn,
}

impl Closes {
    pub(super) fn cause(self) -> CloseCause {
        match self {
            Self::Lapsed { .. } => CloseCause::Lapsed,
            Self::Withdrawn => CloseCause::Withdrawn,
        }
    }

    /// What is said of an unpaid order that is not to be closed (yet).
    pub(super) fn spares(self, row: &OrderRow, now: Timestamp) -> Option<CloseOutcome> {
        match self {
            Self::Lapsed { grace_ms } if !has_lapsed(row, now, grace_ms) => {
                Some(CloseOutcome::early(row, now, grace_ms))
            }
            Self::Lapsed { .. } | Self::Withdrawn => None,
        }
    }

    /// Whether orders of this sale may be closed for it.
    pub(super) fn check(self, sale: &SaleRow) -> Result<(), DatabaseError> {
        if self == Self::Withdrawn && sale.withdrawn_at.is_none() {
            let sale = &sale.definition.id;
            return Err(DatabaseError::Invalid(format!("sale {sale} is not withdrawn with its orders")));
        }
        Ok(())
    }
}

/// What the ledger must be told of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Where it stands.
    pub status: OrderStatus,
    /// Units that it holds.
    pub units_held: u32,
}

impl Database {
    /// One order.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn order(&self, order: OrderId) -> Result<Option<OrderRow>, DatabaseError> {
        adapter!(self, database => database.order(order).await)
    }

    /// A page of a sale's orders by id, those behind `after`; fewer than `limit` means that it was the last.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn orders(
        &self,
        sale: &SaleId,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<OrderRow>, DatabaseError> {
        adapter!(self, database => database.orders(sale.clone(), after, limit).await)
    }

    /// A user's orders of a sale, by id, the newest first, at most `limit`.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn orders_of_user(
        &self,
        sale: &SaleId,
        user: &UserId,
        limit: usize,
    ) -> Result<Vec<OrderRow>, DatabaseError> {
        adapter!(self, database => database.orders_of_user(sale.clone(), user.clone(), limit).await)
    }

    // ## Unpaid => Closed (reason `cancelled`)
    /// Closes an unpaid order and gives its units back, exactly once, by compare-and-set under the sale's row. An operator's word
    /// stands in the journal.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn cancel(&self, order: OrderId, by: By<'_>) -> Result<CancelOutcome, DatabaseError> {
        adapter!(self, database => database.cancel(order, by.into()).await)
    }

    // ## Unpaid => Closed (reason `operator`)
    /// Closes an unpaid order before its deadline on an operator's word; otherwise as [`Self::cancel`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn close_order(&self, order: OrderId, author: &Author) -> Result<CancelOutcome, DatabaseError> {
        adapter!(self, database => database.cancel(order, Canceller::Closer(author.clone())).await)
    }

    // ## Unpaid => Closed (reason `lapsed`)
    /// Closes those of `due` that are unpaid and whose deadline is `grace_ms` ago by the database's clock, all in one transaction under
    /// their sales' rows: units, releases and events with them. Answers for each in the order given.
    ///
    /// # Errors
    /// See [`DatabaseError`]: then none of them was closed.
    pub async fn close_due(&self, due: &[Due], grace_ms: u64) -> Result<Vec<CloseOutcome>, DatabaseError> {
        adapter!(self, database => database.close_all(due.to_vec(), Closes::Lapsed { grace_ms }).await)
    }

    // ## Unpaid => Closed (reason `withdrawn`)
    /// The same for orders of withdrawn sales, whatever their deadlines.
    ///
    /// # Errors
    /// [`DatabaseError::Invalid`] where a sale is not withdrawn with its orders; then none was closed.
    pub async fn close_withdrawn(&self, orders: &[Due]) -> Result<Vec<CloseOutcome>, DatabaseError> {
        adapter!(self, database => database.close_all(orders.to_vec(), Closes::Withdrawn).await)
    }

    /// Up to `limit` unpaid orders whose deadline is `grace_ms` ago by the database's clock, the longest over first, by the index alone.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn lapsed(&self, grace_ms: u64, limit: usize) -> Result<Vec<Due>, DatabaseError> {
        adapter!(self, database => database.lapsed(grace_ms, limit).await)
    }

    /// Where each of the orders stands, in the order given; `None` without a row.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn statuses(&self, orders: &[OrderId]) -> Result<Vec<Option<Standing>>, DatabaseError> {
        adapter!(self, database => database.statuses(orders.to_vec()).await)
    }
}
