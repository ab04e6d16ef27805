//! The refunds port: money that goes back. Each refund has one id at every try; those of a payment never exceed it,
//! which its row's lock guards.

mod asking;

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use stock::{OrderId, Timestamp};

pub(super) use asking::{Asker, Decision, asked, decide, steps};
pub use asking::{Part, RefundAsked, RefundBy};

use super::payments::{Capture, Disposition, PaymentRow, REFERENCE_BYTES_MAX, RefundReason};
use super::{Database, DatabaseError, adapter};
use crate::journal::{Action, Author, Change};

/// Longest words of a provider that are kept, in characters.
const ERROR_CHARS_MAX: usize = 255;

// ## Requested => (Sent =>) (Succeeded | Stuck), Stuck => (Requested | Succeeded)
/// How far a refund is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RefundState {
    /// The shop's service has not taken it yet; tried again and again.
    Requested,
    /// The shop's service has taken it; the provider has not said how it ended.
    Sent,
    /// The money is back. Final.
    Succeeded,
    /// A final no, which a person has to look at. Waits to be tried again by hand, or for the provider's word.
    Stuck,
}

impl RefundState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Requested, Self::Sent, Self::Succeeded, Self::Stuck];

    /// As the row's `state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Sent => "sent",
            Self::Succeeded => "succeeded",
            Self::Stuck => "stuck",
        }
    }
}

impl fmt::Display for RefundState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no state of a refund.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no state of a refund: those are requested, sent, succeeded and stuck")]
pub struct UnknownRefundState(pub String);

impl FromStr for RefundState {
    type Err = UnknownRefundState;

    fn from_str(word: &str) -> Result<Self, UnknownRefundState> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == word);
        found.ok_or_else(|| UnknownRefundState(word.to_owned()))
    }
}

/// A refund that its row would be written with.
struct NewRefund<'a> {
    payment: &'a PaymentRow,
    id: String,
    amount: u64,
    whole: bool,
    reason: Option<&'a str>,
    requested_by: &'a str,
}

impl NewRefund<'_> {
    /// The row, due at once.
    fn row(self, now: Timestamp) -> RefundRow {
        let PaymentRow { provider, payment_id, order_id, .. } = self.payment;
        // Money that is none moves nowhere: nobody is asked.
        let is_nothing = self.amount == 0;
        RefundRow {
            refund_id: self.id,
            provider: provider.clone(),
            payment_id: payment_id.clone(),
            order_id: *order_id,
            amount: self.amount,
            whole: self.whole,
            reason: self.reason.map(str::to_owned),
            requested_by: self.requested_by.to_owned(),
            state: if is_nothing { RefundState::Succeeded } else { RefundState::Requested },
            attempts: 0,
            next_try_at: (!is_nothing).then_some(now),
            provider_refund_id: None,
            last_error: None,
            created_at: now,
            updated_at: now,
        }
    }
}

/// Not drawn: after a database was restored the same refund asks for the same money under the same id. `of` tells the
/// refunds of a payment apart.
fn refund_id(payment: &PaymentRow, of: &str) -> String {
    let PaymentRow { provider, payment_id, .. } = payment;
    let digest = Sha256::digest(format!("{provider}\0{payment_id}\0{of}"));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// In whose name money goes back that nobody asked for.
const BY_FLOODGATE: &str = "floodgate";
/// In whose name it does on a buyer's word.
const BY_BUYER: &str = "buyer";

/// After this time the shop's service is asked again how a refund ended that it has taken: the provider's word may be
/// lost.
const SENT_AGAIN_MS: u64 = 600_000;

impl RefundRow {
    /// As it is after what was told of it; `None` where nothing changes.
    pub(super) fn after(&self, told: &RefundTold, now: Timestamp) -> Option<Self> {
        let is_over = match (self.state, &told.outcome) {
            (RefundState::Succeeded, _) => true,
            (RefundState::Stuck, outcome) => *outcome != RefundOutcome::Succeeded,
            (RefundState::Requested | RefundState::Sent, _) => false,
        };
        if is_over {
            return None;
        }
        let mut row = self.clone();
        row.attempts = row.attempts.saturating_add(1);
        row.last_error = told.outcome.error();
        if let Some(id) = &told.provider_refund_id {
            row.provider_refund_id =
                Some(id.chars().filter(|c| *c != '\0').take(REFERENCE_BYTES_MAX).collect());
        }
        let (state, next_try_at) = match told.outcome {
            RefundOutcome::Succeeded => (RefundState::Succeeded, None),
            RefundOutcome::Failed(_) => (RefundState::Stuck, None),
            RefundOutcome::Sent => (RefundState::Sent, Some(Timestamp(now.0.saturating_add(SENT_AGAIN_MS)))),
            RefundOutcome::Again { after_ms, .. } => {
                (self.state, Some(Timestamp(now.0.saturating_add(after_ms))))
            }
        };
        row.state = state;
        row.next_try_at = next_try_at;
        row.updated_at = now;
        Some(row)
    }
}

/// A row of `floodgate_refunds`. `refund_id` is the idempotency key of every try: letters and digits, 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefundRow {
    /// Names it everywhere, at every try.
    pub refund_id: String,
    /// Of which payment.
    pub provider: String,
    /// Of which payment.
    pub payment_id: String,
    /// The payment's order.
    pub order_id: Option<OrderId>,
    /// Minor units, in the payment's currency.
    pub amount: u64,
    /// With it all of the payment is back.
    pub whole: bool,
    /// Why: a [`RefundReason`], or a person's words.
    pub reason: Option<String>,
    /// Who: `floodgate`, `buyer`, or an operator.
    pub requested_by: String,
    /// How far it is.
    pub state: RefundState,
    /// Calls on the shop's service so far.
    pub attempts: u32,
    /// When it is tried again; none where nothing is to be tried.
    pub next_try_at: Option<Timestamp>,
    /// The provider's own name for it.
    pub provider_refund_id: Option<String>,
    /// Why the last try failed.
    pub last_error: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What a provider, or the shop's service, says of a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundTold {
    /// Ours, as it was sent out with every try.
    pub refund_id: String,
    /// How it ended.
    pub outcome: RefundOutcome,
    /// The provider's own name for it.
    pub provider_refund_id: Option<String>,
}

/// How a refund ended, or how a try of it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundOutcome {
    /// The money is back.
    Succeeded,
    /// It never will be without somebody's help, and why.
    Failed(String),
    /// Taken; the provider will say how it ended.
    Sent,
    /// Not taken, and why; tried again at the given time after now.
    Again {
        /// Why.
        error: String,
        /// Milliseconds from now, by the database's clock.
        after_ms: u64,
    },
}

impl RefundOutcome {
    /// The words that the row keeps.
    pub(super) fn error(&self) -> Option<String> {
        match self {
            Self::Failed(error) | Self::Again { error, .. } => {
                Some(error.chars().filter(|c| *c != '\0').take(ERROR_CHARS_MAX).collect())
            }
            Self::Succeeded | Self::Sent => None,
        }
    }
}

/// What became of a word about a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundHeard {
    /// The row says so now.
    Changed,
    /// It said so before, or something that is final.
    Unchanged,
    /// No refund of ours: one that the shop made by itself, at the provider.
    Unknown,
}

/// Refunds that are not over, as a watch over them needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRefunds {
    /// Their time to be tried has come, by the database's clock.
    pub due: u64,
    /// It came [`OVERDUE_MS`] ago or longer: nobody sends them.
    pub overdue: u64,
    /// See [`RefundState::Stuck`].
    pub stuck: u64,
}

/// A refund that is due for so long is sent by nobody.
pub const OVERDUE_MS: u64 = 60_000;

/// The refund of a capture that cannot be kept: all of it, at once.
pub(super) fn of_capture(capture: &Capture, reason: RefundReason, now: Timestamp) -> RefundRow {
    let payment = &capture.row(now, Disposition::Refund(reason));
    let (id, whole, amount) = (refund_id(payment, "0"), true, capture.amount);
    let reason = Some(reason.as_str());
    NewRefund { payment, id, amount, whole, reason, requested_by: BY_FLOODGATE }.row(now)
}

/// A stuck refund as it is when it is tried again, and what the journal says of that; `None` where it is not stuck.
pub(super) fn retried(row: &RefundRow, now: Timestamp) -> Option<(RefundRow, Change)> {
    if row.state != RefundState::Stuck {
        return None;
    }
    let after =
        RefundRow { state: RefundState::Requested, next_try_at: Some(now), updated_at: now, ..row.clone() };
    let change = Change {
        action: Action::RefundRetry,
        subject: row.refund_id.clone(),
        before: Some(json!({ "state": row.state, "attempts": row.attempts, "last_error": row.last_error })),
        after: Some(json!({ "state": after.state })),
    };
    Some((after, change))
}

impl Database {
    /// Writes what is known of a refund. `Succeeded` is final and, of the payment that its order kept, makes a
    /// `refunding` order `refunded`; `Failed` makes it stuck, which a later `Succeeded` mends; `Sent` and `Again` count
    /// a try and change nothing that is over.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn refund_told(&self, told: &RefundTold) -> Result<RefundHeard, DatabaseError> {
        adapter!(self, database => database.refund_told(told.clone()).await)
    }

    /// Asks for money back, of the payment that the order kept: a part of it, or with `None` the whole. A whole refund
    /// is paid => refunding and gives the units back, if the sale says so; a part moves money only. What is asked for a
    /// second time, as a whole or under the same request id, is the same refund.
    ///
    /// # Errors
    /// [`DatabaseError::Invalid`] for a part of 0, or a request id that was used with another amount or has not 1 to
    /// 128 bytes.
    pub async fn refund(
        &self,
        order: OrderId,
        by: RefundBy<'_>,
        part: Option<&Part>,
    ) -> Result<RefundAsked, DatabaseError> {
        if part.is_some_and(|part| part.amount == 0) {
            return Err(DatabaseError::Invalid("a refund of nothing moves nothing: give an amount".into()));
        }
        if part.is_some_and(|part| !(1..=REFERENCE_BYTES_MAX).contains(&part.request_id.len())) {
            return Err(DatabaseError::Invalid(format!(
                "a refund's request id has 1 to {REFERENCE_BYTES_MAX} bytes"
            )));
        }
        adapter!(self, database => database.refund(order, by.into(), part.cloned()).await)
    }

    /// The whole refund of an order whose sale is withdrawn.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn refund_withdrawn(&self, order: OrderId) -> Result<RefundAsked, DatabaseError> {
        adapter!(self, database => database.refund(order, Asker::Withdrawal, None).await)
    }

    /// Up to `limit` refunds whose next try is due by the database's clock, the longest due first.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn refunds_due(&self, limit: usize) -> Result<Vec<RefundRow>, DatabaseError> {
        adapter!(self, database => database.refunds_due(limit).await)
    }

    /// How many refunds wait, and for what.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn open_refunds(&self) -> Result<OpenRefunds, DatabaseError> {
        adapter!(self, database => database.open_refunds().await)
    }

    /// A page of the refunds in one state by id, those behind `after`; fewer than `limit` means that it was the last.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn refunds(
        &self,
        state: RefundState,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RefundRow>, DatabaseError> {
        adapter!(self, database => database.refunds(state, after.unwrap_or_default().to_owned(), limit).await)
    }

    /// Has a stuck refund tried again, under its own id, on an operator's word; `None` if there is none, else its row.
    /// One that is not stuck is left alone.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn retry_refund(
        &self,
        refund_id: &str,
        author: &Author,
    ) -> Result<Option<RefundRow>, DatabaseError> {
        adapter!(self, database => database.retry_refund(refund_id.to_owned(), author.clone()).await)
    }
}
