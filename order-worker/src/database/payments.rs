//! The payments port: what providers say of money that came in (what goes back: [`super::refunds`]). Only what was verified gets here: this trusts its caller
//! for the signature, the merchant and the app, and judges the rest (order, amount, currency, state) by the rows alone.

use serde::Serialize;
use stock::{OrderId, OrderStatus, Timestamp};

use super::refunds::RefundRow;
use super::{Database, DatabaseError, adapter};

/// Longest name of a provider, in bytes.
const PROVIDER_BYTES_MAX: usize = 32;
/// Longest payment id, reference of the shop and refund id of a provider, in bytes.
pub(super) const REFERENCE_BYTES_MAX: usize = 128;
/// Longest currency, in bytes: a wrong one is kept as it was given.
const CURRENCY_BYTES_MAX: usize = 16;

/// Money that a provider says it has captured. Its identity is (provider, payment id): everything else may be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// `standard-webhooks`, `wechat-pay`, `alipay`: visible ASCII, at most 32 bytes.
    pub provider: String,
    /// The provider's own transaction: at most 128 bytes, never empty.
    pub payment_id: String,
    /// The order that the reference names; none where it names none.
    pub order_id: Option<OrderId>,
    /// The shop's reference as the provider gave it back, `ORDER` or `ORDER-N`: at most 128 bytes.
    pub trade_ref: String,
    /// Minor units: what the buyer owed and the provider counts, discounts of the provider's own included.
    pub amount: u64,
    /// As given, in visible ASCII: at most 16 bytes. A wrong one is refunded, not refused.
    pub currency: String,
    /// By the provider's clock. Decides nothing.
    pub paid_at: Option<Timestamp>,
}

impl Capture {
    /// Whether its row can be written at all.
    pub(super) fn check(&self) -> Result<(), DatabaseError> {
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = |text: &str, bytes_max: usize| !text.is_empty() && text.len() <= bytes_max;
        let is_writable = fits(&self.provider, PROVIDER_BYTES_MAX)
            && is_visible(&self.provider)
            && fits(&self.payment_id, REFERENCE_BYTES_MAX)
            && self.trade_ref.len() <= REFERENCE_BYTES_MAX
            && fits(&self.currency, CURRENCY_BYTES_MAX)
            && is_visible(&self.currency)
            && i64::try_from(self.amount).is_ok();
        if is_writable {
            return Ok(());
        }
        Err(DatabaseError::Invalid(format!(
            "payment {:?} of {:?} cannot be kept: ids have 1 to {REFERENCE_BYTES_MAX} bytes, currencies 1 to {CURRENCY_BYTES_MAX}, \
             amounts at most {} minor units",
            self.payment_id,
            self.provider,
            i64::MAX
        )))
    }
}

/// Where captured money stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Disposition {
    /// It paid its order.
    Kept,
    /// It goes back whole: a refund was written in the same transaction.
    Refund(RefundReason),
    /// Its order has no row yet. Joined when the row comes, refunded when it has waited for too long.
    Unmatched,
}

impl Disposition {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Refund(_) => "refund",
            Self::Unmatched => "unmatched",
        }
    }

    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Refund(reason) => Some(reason.as_str()),
            Self::Kept | Self::Unmatched => None,
        }
    }

    /// From a row's two columns.
    pub(super) fn of_row(word: &str, reason: Option<&str>) -> Result<Self, DatabaseError> {
        let reason = reason.and_then(RefundReason::of_word);
        match (word, reason) {
            ("kept", None) => Ok(Self::Kept),
            ("refund", Some(reason)) => Ok(Self::Refund(reason)),
            ("unmatched", None) => Ok(Self::Unmatched),
            _ => Err(DatabaseError::Broken(format!(
                "a payment's row says {word:?} for a reason that it cannot have: this version knows kept, refund and unmatched"
            ))),
        }
    }
}

/// Why captured money goes back at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefundReason {
    /// Its order was closed, rejected or refunded before it came.
    Late,
    /// Another payment had paid its order.
    Second,
    /// Not what the order costs.
    WrongAmount,
    /// Not the order's currency.
    WrongCurrency,
    /// Its sale was withdrawn.
    Withdrawn,
    /// Its order is of a practice run, in which no money moves.
    Rehearsal,
    /// No order came for it in time.
    NoOrder,
}

impl RefundReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Late,
        Self::Second,
        Self::WrongAmount,
        Self::WrongCurrency,
        Self::Withdrawn,
        Self::Rehearsal,
        Self::NoOrder,
    ];

    /// As the rows' `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Second => "second",
            Self::WrongAmount => "wrong-amount",
            Self::WrongCurrency => "wrong-currency",
            Self::Withdrawn => "withdrawn",
            Self::Rehearsal => "rehearsal",
            Self::NoOrder => "no-order",
        }
    }

    /// Whether a callback of ours answers 409 `amount-mismatch`, at each repeat alike.
    #[must_use]
    pub const fn is_mismatch(self) -> bool {
        matches!(self, Self::WrongAmount | Self::WrongCurrency)
    }

    pub(super) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

/// The answer to one capture. Its row is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// What became of the payment: for a repeat what its row says now.
    pub disposition: Disposition,
    /// Its row was there before.
    pub is_repeat: bool,
    /// The row that was there names another order, amount or currency. It was left alone: somebody should look.
    pub differs: bool,
}

/// A row of `floodgate_payments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PaymentRow {
    /// See [`Capture`].
    pub provider: String,
    /// See [`Capture`].
    pub payment_id: String,
    /// See [`Capture`].
    pub order_id: Option<OrderId>,
    /// See [`Capture`].
    pub trade_ref: String,
    /// See [`Capture`].
    pub amount: u64,
    /// See [`Capture`].
    pub currency: String,
    /// See [`Capture`].
    pub paid_at: Option<Timestamp>,
    /// When its row was written.
    pub received_at: Timestamp,
    /// What became of it.
    pub disposition: Disposition,
}

/// The books contradict themselves: the status was looked at under a lock.
pub(super) fn not_unpaid(status: OrderStatus) -> DatabaseError {
    DatabaseError::Broken(format!("a payment was kept for an order that is {status}"))
}

impl Capture {
    /// The row that it becomes.
    pub(super) fn row(&self, now: Timestamp, disposition: Disposition) -> PaymentRow {
        PaymentRow {
            provider: self.provider.clone(),
            payment_id: self.payment_id.clone(),
            order_id: self.order_id,
            trade_ref: self.trade_ref.clone(),
            amount: self.amount,
            currency: self.currency.clone(),
            paid_at: self.paid_at,
            received_at: now,
            disposition,
        }
    }
}

impl PaymentRow {
    /// What it was written from.
    pub(super) fn capture(&self) -> Capture {
        Capture {
            provider: self.provider.clone(),
            payment_id: self.payment_id.clone(),
            order_id: self.order_id,
            trade_ref: self.trade_ref.clone(),
            amount: self.amount,
            currency: self.currency.clone(),
            paid_at: self.paid_at,
        }
    }

    /// Whether a repeat says something else.
    pub(super) fn differs_from(&self, capture: &Capture) -> bool {
        (self.order_id, self.amount, self.currency.as_str())
            != (capture.order_id, capture.amount, capture.currency.as_str())
    }
}

impl Database {
    /// Writes a capture and judges it, in one transaction: **kept** (its order was `unpaid` and is `paid`), **refund** (it must go back;
    /// one refund of the whole amount is `requested` in the same transaction), or **unmatched** (its order has no row). The row is
    /// durable when this answers, whatever it answers; a repeat changes nothing and gets what the row says.
    ///
    /// # Errors
    /// [`DatabaseError::Invalid`] where the row cannot be written at all (see [`Capture`]).
    pub async fn capture(&self, capture: &Capture) -> Result<Captured, DatabaseError> {
        capture.check()?;
        adapter!(self, database => database.capture(capture.clone()).await)
    }

    /// Judges again up to `limit` unmatched payments whose order has a row by now; answers with how many there were.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn join_unmatched(&self, limit: usize) -> Result<usize, DatabaseError> {
        adapter!(self, database => database.join_unmatched(limit).await)
    }

    /// Refunds up to `limit` payments that have been unmatched for `waited_ms` by the database's clock; answers with how many there were.
    /// One whose order has come is joined instead.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn refund_unmatched(&self, waited_ms: u64, limit: usize) -> Result<usize, DatabaseError> {
        adapter!(self, database => database.refund_unmatched(waited_ms, limit).await)
    }

    /// One payment and its refunds.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn payment(
        &self,
        provider: &str,
        payment_id: &str,
    ) -> Result<Option<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        adapter!(self, database => database.payment(provider.to_owned(), payment_id.to_owned()).await)
    }

    /// All payments that name an order, with their refunds.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn payments_of(
        &self,
        order: OrderId,
    ) -> Result<Vec<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        adapter!(self, database => database.payments_of(order).await)
    }

    /// The database's clock: what deadlines go by, and what a callback's time stamp is compared with.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn now(&self) -> Result<Timestamp, DatabaseError> {
        adapter!(self, database => database.clock().await)
    }
}
