//! What the gateway wants of others: [`Orders`] for buyers' calls, [`Payments`] for those of payment providers,
//! [`Operator`] for the admin listener's. The root package fills them; no SQL shows here.
//!
//! Every implementation
//! - MUST carry out each call as one transaction, and MUST make repeats harmless (publish, pause, resume, restock,
//!   cancel, refund).
//!
//! Of [`Orders`], moreover
//! - MUST answer `cancel` and `refund` for another user's order as if there were none.
//!
//! Of [`Payments`], moreover
//! - MUST believe nothing without a good signature, and for a call without one MUST NOT read or write anything;
//! - MUST have made durable what a call says before it answers `Received` or `AmountMismatch`, and MUST answer each repeat alike;
//! - MUST bound what it asks of the database by a budget of its own.
//!
//! Of [`Operator`], moreover
//! - MUST push a changed sale to the ledger and into [`crate::catalog::Catalog`] before it answers, so that the operator who was
//!   answered sees it take effect; an edit whose push did not reach the ledger is answered as pending.
//!
//! No call on these ports is ever made for a refused purchase.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;
use stock::{OrderId, OrderStatus, Owner, SaleDefinition, SaleEdit, SaleId, Timestamp, UserId};
use tokio::time::timeout;

/// Why a call was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Out of reach or overloaded: later the same call may succeed.
    #[error("the orders are out of reach: {0}")]
    Unavailable(String),
    /// No such sale.
    #[error("there is no sale {0}")]
    UnknownSale(SaleId),
    /// A sale of this id was first published with another definition.
    #[error("the sale was first published differently: {0}")]
    Differs(String),
    /// The call itself is wrong.
    #[error("{0}")]
    Invalid(String),
}

impl PortError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// An order's row, as far as its buyer may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderView {
    /// Which order.
    pub order_id: OrderId,
    /// Of which sale.
    pub sale: SaleId,
    /// Whose.
    pub user: UserId,
    /// Units.
    pub quantity: u32,
    /// Minor units, for all of it.
    pub amount: u64,
    /// ISO 4217.
    pub currency: String,
    /// Never [`OrderStatus::Queued`]: what has a row is not queued.
    pub status: OrderStatus,
    /// While unpaid: until when.
    pub pay_by: Option<Timestamp>,
}

/// What became of a wish to cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It is closed; its units return by the outbox.
    Done(OrderView),
    /// It can no longer be cancelled.
    WrongState(OrderStatus),
    /// No such order of this user.
    NotFound,
}

/// Money that goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefundView {
    /// Names it, at every try.
    pub refund_id: String,
    /// Of which provider's payment.
    pub provider: String,
    /// Of which payment.
    pub payment_id: String,
    /// The payment's order; none where it names none.
    pub order_id: Option<OrderId>,
    /// Minor units.
    pub amount: u64,
    /// With it all of the payment is back.
    pub whole: bool,
    /// `requested`, `sent`, `succeeded` or `stuck`.
    pub state: &'static str,
    /// Why.
    pub reason: Option<String>,
    /// Who: `floodgate`, `buyer`, or an operator.
    pub requested_by: String,
    /// Calls on the shop's service so far.
    pub attempts: u32,
    /// Why the last one failed.
    pub last_error: Option<String>,
}

/// What became of a wish for money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refunded {
    /// It goes back, or is back; the same for a repeat.
    Asked {
        /// As it is now.
        order: Box<OrderView>,
        /// What was written.
        refund: Box<RefundView>,
    },
    /// It is not paid.
    WrongState(OrderStatus),
    /// Money of this sale goes back on an operator's word alone.
    NotOffered,
    /// More than is left of the payment, minor units.
    TooMuch(u64),
    /// No such order of this user.
    NotFound,
}

/// A sale as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SaleView {
    /// As published and edited.
    #[serde(flatten)]
    pub definition: SaleDefinition,
    /// Units on offer now, restocks included.
    pub total_now: u32,
    /// Units sold.
    pub sold: u64,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// When it was withdrawn with its orders.
    pub withdrawn_at: Option<Timestamp>,
    /// Of the row; rises with every change.
    pub version: u64,
    /// The version since which price, currency, limit and pay time are as they are.
    pub terms_version: u64,
    /// Whether the ledger has answered for that version; none where it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}

/// How far a change has come that the database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The ledger has not answered yet: what is sold now may be sold by the version before.
    Pending,
    /// The ledger has answered: nothing is sold by the version before any more.
    InForce,
}

/// `GET /admin/v1/sales/{sale}`, units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// On offer.
    pub total: u64,
    /// In the ledger; below 0 when the database sold what the ledger had forgotten.
    pub remaining: i64,
    /// In the ledger.
    pub pending: u64,
    /// In the ledger.
    pub confirmed: u64,
    /// In the database.
    pub sold: u64,
    /// Undrained records of the instance's whole log.
    pub backlog: u64,
    /// No batch, rebuild or release outstanding, every log's lag 0, pending 0.
    pub at_rest: bool,
    /// The ledger's life.
    pub epoch: u64,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// What the sold-out flag says here; none is unknown.
    pub sold_out: Option<bool>,
    /// What does not add up, in words.
    pub broken: Vec<String>,
}

/// A rebuild of the ledger that has begun: nothing is sold until it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RebuildBegun {
    /// The ledger's new life.
    pub epoch: u64,
    /// Promises that the log that is left out is known to hold; none where nobody knows, or none is left out.
    pub orders_at_risk: Option<u64>,
    /// Their units.
    pub units_at_risk: Option<u64>,
}

/// What the operator wants of a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaleChange {
    /// Refuse everybody until resumed.
    Pause {
        /// Shown to other operators.
        by: String,
    },
    /// Lift a pause.
    Resume,
    /// Correct what was published.
    Edit {
        /// What is to be another.
        edit: Box<SaleEdit>,
        /// What for: stands in the journal.
        reason: Option<String>,
    },
    /// Raise the total; the same id twice raises it once.
    Restock {
        /// The operator's own, known only to the database.
        restock_id: String,
        /// At least 1.
        units: u32,
    },
    /// End it now, for good.
    Withdraw {
        /// Its unpaid orders are closed, too, and its paid ones refunded.
        orders: bool,
        /// What for.
        reason: Option<String>,
    },
}

/// What the operator wants of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderChange {
    /// Close it, unpaid, in its buyer's place.
    Cancel,
    /// Close it, unpaid, before its deadline.
    Close,
    /// Send money back: all of it, or a part.
    Refund(Option<RefundPart>),
}

/// A part of what was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundPart {
    /// The operator's own; the same twice sends it once.
    pub request_id: String,
    /// Minor units, at least 1.
    pub amount: u64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderChanged {
    /// Of a cancel or a close.
    Cancelled(Cancelled),
    /// Of a refund.
    Refunded(Refunded),
}

/// Longest wait for the orders on a buyer's behalf: without it a database that hangs would keep every connection that
/// asks.
const BUYER_WAIT_MAX: Duration = Duration::from_secs(3);

/// The call's answer, or [`PortError::Unavailable`] if it takes too long; the call may be carried out all the same.
///
/// # Errors
/// The call's.
pub(crate) async fn in_time<T>(call: PortFuture<'_, T>) -> Result<T, PortError> {
    match timeout(BUYER_WAIT_MAX, call).await {
        Ok(answer) => answer,
        Err(_) => Err(PortError::Unavailable("no answer in time".into())),
    }
}

/// The answer of a call on a port.
pub type PortFuture<'a, T> = BoxFuture<'a, Result<T, PortError>>;

/// What buyers' calls want of orders. Object-safe, since the gateway must not know who fills it.
pub trait Orders: Send + Sync {
    /// The order's row.
    fn order(&self, order_id: OrderId) -> PortFuture<'_, Option<OrderView>>;
    /// What a sale offered from this version on.
    fn offered(&self, sale: SaleId, version: u64) -> PortFuture<'_, Option<SaleDefinition>>;
    /// This user's orders of the sale that have a row, the newest first, at most `limit`.
    fn orders_of(&self, sale: SaleId, user: UserId, limit: usize) -> PortFuture<'_, Vec<OrderView>>;
    /// Closes an unpaid order of this user.
    fn cancel(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Cancelled>;
    /// Asks for all of the money of a paid order of this user.
    fn refund(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Refunded>;
    /// Whether orders can be written and read at the moment. Cheap: asked every second.
    fn reachable(&self) -> PortFuture<'_, ()>;
}

/// Who tells of payments; a path of its own for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PaymentProvider {
    /// The shop's own service.
    StandardWebhooks,
    /// WeChat Pay v3.
    WechatPay,
    /// Alipay.
    Alipay,
}

impl PaymentProvider {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::StandardWebhooks, Self::WechatPay, Self::Alipay];

    /// The last part of its path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::StandardWebhooks => "callback",
            Self::WechatPay => "wechat-pay",
            Self::Alipay => "alipay",
        }
    }
}

/// What became of a provider's call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentAnswer {
    /// It is durable, was before, or changes nothing.
    Received {
        /// Whose buyer may see something new.
        order_id: Option<OrderId>,
    },
    /// Durable as well: the money goes back, since it is not what the order costs.
    AmountMismatch {
        /// Whose buyer may see something new.
        order_id: Option<OrderId>,
    },
    /// Nothing was written.
    Refused(PaymentRefusal),
}

/// Why a provider's call is refused, and in which words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentRefusal {
    /// No good signature, or one of another time.
    Unsigned(String),
    /// Signed, and not what the provider sends.
    Malformed(String),
    /// Signed, and of another merchant or app.
    NotOurs(String),
    /// Signed, and this deployment cannot read it: to be sent again.
    OurFault(String),
}

/// What payment providers' calls want.
pub trait Payments: Send + Sync {
    /// Whether calls of this provider are taken.
    fn takes(&self, provider: PaymentProvider) -> bool;
    /// One call: its headers, and its body as it came.
    fn call<'a>(
        &'a self,
        provider: PaymentProvider,
        headers: &'a [(&'a str, &'a [u8])],
        body: &'a [u8],
    ) -> PortFuture<'a, PaymentAnswer>;
    /// The headers of a callback that [`Self::call`] believes, for the demo's payments; `None` where callbacks are not
    /// taken.
    fn sign_callback(&self, id: &str, at: Timestamp, body: &[u8]) -> Option<[(&'static str, String); 3]>;
}

/// What the operator wants of sales, of orders and of the ledger's life.
pub trait Operator: Send + Sync {
    /// All sales, oldest first.
    fn sales(&self) -> PortFuture<'_, Vec<SaleView>>;
    /// Publishes a sale; the same definition again changes nothing.
    fn publish(&self, definition: SaleDefinition) -> PortFuture<'_, SaleView>;
    /// Changes a sale.
    fn change(&self, sale: SaleId, change: SaleChange) -> PortFuture<'_, SaleView>;
    /// One sale's figures; `None` if there is no such sale.
    fn figures(&self, sale: SaleId) -> PortFuture<'_, Option<Figures>>;
    /// Changes an order, of any user; `reason` stands in the journal.
    fn change_order(
        &self,
        order_id: OrderId,
        change: OrderChange,
        reason: Option<String>,
    ) -> PortFuture<'_, OrderChanged>;
    /// Has a stuck refund tried again; `None` if there is none of this id.
    fn retry_refund(&self, refund_id: String, reason: Option<String>) -> PortFuture<'_, Option<RefundView>>;
    /// Begins a rebuild of a ledger that outlives its processes, leaving out the log of an instance that is gone for
    /// good.
    fn rebuild(&self, without: Option<Owner>) -> PortFuture<'_, RebuildBegun>;
}
