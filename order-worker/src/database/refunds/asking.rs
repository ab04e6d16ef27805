//! Wishes for money: whose word counts, how much is left, and which steps it takes the order. Decides alone; the
//! adapters ask here under the locks of sale, order and payment, and write all of the answer.

use serde_json::json;
use stock::{OrderStatus, RefundPolicy, Timestamp};

use super::{BY_BUYER, BY_FLOODGATE, NewRefund, RefundRow, RefundState, refund_id};
use crate::database::payments::{PaymentRow, RefundReason};
use crate::database::transitions::{self, Transition, Units};
use crate::database::{DatabaseError, OrderRow, SaleRow};
use crate::journal::{Action, Author, Change};

/// On whose word money goes back.
#[derive(Debug, Clone)]
pub enum RefundBy<'a> {
    /// The buyer's: another user's order is as good as none.
    User(&'a stock::UserId),
    /// An operator's, in the journal.
    Operator(&'a Author),
}

/// What became of a wish for a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one answer of a transaction: a box would cost more than it saves"
)]
pub enum RefundAsked {
    /// It is written. A whole one has made the order `refunding`; the same answer for each repeat of a whole one.
    Written(RefundRow),
    /// The order is not paid, or its sale is not withdrawn where that is what for.
    WrongState(OrderStatus),
    /// More than is left of the payment, in minor units.
    TooMuch(u64),
    /// Of this sale money goes back on an operator's word alone.
    NotOffered,
    /// No such order, or another user's.
    NotFound,
}

/// A part of a payment that an operator asks back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Names this wish, 1 to 128 bytes: the same again is the same refund.
    pub request_id: String,
    /// Minor units, at least 1.
    pub amount: u64,
}

/// The same, for a transaction that outlives its caller.
#[derive(Debug, Clone)]
pub(in crate::database) enum Asker {
    User(stock::UserId),
    Operator(Author),
    /// Its sale is withdrawn.
    Withdrawal,
}

impl Asker {
    /// Whether this order is none of theirs.
    pub(in crate::database) fn is_stranger_to(&self, row: &OrderRow) -> bool {
        matches!(self, Self::User(user) if *user != row.user_id)
    }

    /// As the refund's `requested_by`.
    pub(in crate::database) fn name(&self) -> &str {
        match self {
            Self::User(_) => BY_BUYER,
            Self::Operator(author) => author.operator(),
            Self::Withdrawal => BY_FLOODGATE,
        }
    }

    /// As the refund's `reason`.
    pub(in crate::database) fn reason(&self) -> Option<&str> {
        match self {
            Self::User(_) => None,
            Self::Operator(author) => author.reason(),
            Self::Withdrawal => Some(RefundReason::Withdrawn.as_str()),
        }
    }
}

/// What the adapter has to do for a wish.
pub(in crate::database) enum Decision {
    /// This row.
    Write(RefundRow),
    /// Nothing is written.
    Answer(RefundAsked),
}

/// What a wish for a refund comes to, given the sale, the order, the payment that it kept, and that payment's refunds
/// so far. No part asks for all that is left.
pub(in crate::database) fn decide(
    (sale, order): (&SaleRow, &OrderRow),
    payment: &PaymentRow,
    earlier: &[RefundRow],
    (by, part): (&Asker, Option<&Part>),
    now: Timestamp,
) -> Result<Decision, DatabaseError> {
    let answer = |answer| Ok(Decision::Answer(answer));
    if matches!(by, Asker::User(_)) && sale.definition.refund == RefundPolicy::Operator {
        return answer(RefundAsked::NotOffered);
    }
    let left = payment.amount - earlier.iter().map(|refund| refund.amount).sum::<u64>();
    let id = match part {
        Some(part) => refund_id(payment, &format!("part\0{}", part.request_id)),
        // With the amount: the shop may have answered for an id that a restored database has forgotten.
        None => refund_id(payment, &format!("{}\0{left}", earlier.len())),
    };
    if let (Some(part), Some(same)) = (part, earlier.iter().find(|refund| refund.refund_id == id)) {
        if same.amount == part.amount {
            return answer(RefundAsked::Written(same.clone()));
        }
        return Err(DatabaseError::Invalid(format!(
            "refund request {} of order {} was recorded with {} minor units, not {}: use a new request id",
            part.request_id, order.order_id, same.amount, part.amount
        )));
    }
    let is_going = matches!(order.status, OrderStatus::Refunding | OrderStatus::Refunded);
    if let Some(whole) = earlier.iter().find(|refund| is_going && part.is_none() && refund.whole) {
        return answer(RefundAsked::Written(whole.clone()));
    }
    let is_wanted = !matches!(by, Asker::Withdrawal) || sale.withdrawn_at.is_some();
    if order.status != OrderStatus::Paid || !is_wanted {
        return answer(RefundAsked::WrongState(order.status));
    }
    let amount = part.map_or(left, |part| part.amount);
    if amount > left {
        return answer(RefundAsked::TooMuch(left));
    }
    let (reason, requested_by) = (by.reason(), by.name());
    let new = NewRefund { payment, id, amount, whole: amount == left, reason, requested_by };
    Ok(Decision::Write(new.row(now)))
}

// ## Paid => Refunding (=> Refunded)
/// The steps that a refund takes its order, one after the other: none where it is a part.
pub(in crate::database) fn steps(
    sale: &SaleRow,
    order: &OrderRow,
    refund: &RefundRow,
    now: Timestamp,
) -> Result<Vec<Transition>, OrderStatus> {
    if !refund.whole {
        return Ok(Vec::new());
    }
    let units = if sale.definition.unit_returns_on_refund { Units::back(sale.settled) } else { Units::Stay };
    let mut steps = vec![transitions::refund(order, now, units)?];
    if refund.state == RefundState::Succeeded {
        steps.push(transitions::money_is_back(&steps[0].after, now, refund, true));
    }
    Ok(steps)
}

/// What the journal says of a refund that an operator asks for: nothing of the buyer.
pub(in crate::database) fn asked(order: &OrderRow, refund: &RefundRow) -> Change {
    Change {
        action: Action::OrderRefund,
        subject: order.order_id.to_string(),
        before: Some(json!({ "status": order.status, "refunded_amount": order.refunded_amount })),
        after: Some(json!({ "refund_id": refund.refund_id, "amount": refund.amount, "whole": refund.whole })),
    }
}

impl From<RefundBy<'_>> for Asker {
    fn from(by: RefundBy<'_>) -> Self {
        match by {
            RefundBy::User(user) => Self::User(user.clone()),
            RefundBy::Operator(author) => Self::Operator(author.clone()),
        }
    }
}
