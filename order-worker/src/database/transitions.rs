//! The life of an order, written as transitions: what each may begin with and what it leaves. Decides alone; the adapters read a row
//! under its lock, ask here, and write all of the answer (row, units, release, event) in that same transaction.
//!
//! A row begins `unpaid` or `rejected`: that is intake's. `closed`, `refunded` and `rejected` are final: nothing here gives units to
//! any row, and those give them back once, for `units_held` is 0 from then on.

use serde::Serialize;
use serde_json::{Value, json};
use stock::{OrderStatus, Timestamp};

use super::payments::{Capture, Disposition, RefundReason};
use super::refunds::RefundRow;
use super::{DatabaseError, OrderRow};

/// Why an order is closed, in its row and in its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCause {
    /// Its buyer, or an operator in the buyer's place, has cancelled it.
    Cancelled,
    /// It was not paid in time.
    Lapsed,
    /// An operator has closed it.
    Operator,
    /// Its sale was withdrawn with its orders.
    Withdrawn,
}

impl CloseCause {
    /// As the row's `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Lapsed => "lapsed",
            Self::Operator => "operator",
            Self::Withdrawn => RefundReason::Withdrawn.as_str(),
        }
    }
}

/// What subscribers hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventType {
    Paid,
    Closed,
    Refunding,
    Refunded,
    PaymentRefunded,
}

impl EventType {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "order.paid",
            Self::Closed => "order.closed",
            Self::Refunding => "order.refunding",
            Self::Refunded => "order.refunded",
            Self::PaymentRefunded => "payment.refunded",
        }
    }
}

/// The units that an order held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Units {
    /// It holds what it held.
    Stay,
    /// They are back in the sale, and the ledger has to hear of it.
    Back,
    /// They are back in a sale that is settled: no ledger holds it any more.
    BackUnheard,
}

impl Units {
    /// As far as the sale's row says.
    pub(super) fn back(is_settled: bool) -> Self {
        if is_settled { Self::BackUnheard } else { Self::Back }
    }
}

/// One step of an order's life, to be written whole.
#[derive(Debug, Clone)]
pub(super) struct Transition {
    pub(super) before: OrderRow,
    pub(super) after: OrderRow,
    pub(super) units: Units,
    event: EventType,
    cause: Option<&'static str>,
    with: Option<(&'static str, Value)>,
}

/// The row of `floodgate_events` that belongs to a step.
pub(super) struct Event {
    pub(super) event_type: &'static str,
    pub(super) payload: String,
}

#[derive(Serialize)]
struct Payload<'a> {
    v: u32,
    id: String,
    #[serde(rename = "type")]
    event_type: &'static str,
    version: u64,
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    order: &'a OrderRow,
    #[serde(flatten)]
    with: std::collections::BTreeMap<&'static str, &'a Value>,
}

impl Transition {
    /// Units that go back to the sale.
    pub(super) fn units_back(&self) -> u32 {
        self.before.units_held - self.after.units_held
    }

    /// What subscribers hear; nothing of a practice run.
    pub(super) fn event(&self) -> Result<Option<Event>, DatabaseError> {
        if self.after.rehearsal {
            return Ok(None);
        }
        let payload = Payload {
            v: 1,
            id: format!("{}-{}", self.after.order_id, self.after.version),
            event_type: self.event.as_str(),
            version: self.after.version,
            at: self.after.updated_at,
            cause: self.cause,
            order: &self.after,
            with: self.with.iter().map(|(name, value)| (*name, value)).collect(),
        };
        let payload = serde_json::to_string(&payload)
            .map_err(|error| DatabaseError::Broken(format!("an event of an order has no JSON: {error}")))?;
        Ok(Some(Event { event_type: self.event.as_str(), payload }))
    }
}

fn step(before: &OrderRow, now: Timestamp, event: EventType) -> Transition {
    let after = OrderRow { version: before.version + 1, updated_at: now, ..before.clone() };
    Transition { before: before.clone(), after, units: Units::Stay, event, cause: None, with: None }
}

// ## Unpaid => Closed
/// Gives the units back. The error is where the order stands instead.
pub(super) fn close(
    row: &OrderRow,
    now: Timestamp,
    cause: CloseCause,
    is_settled: bool,
) -> Result<Transition, OrderStatus> {
    if row.status != OrderStatus::Unpaid {
        return Err(row.status);
    }
    let mut step = step(row, now, EventType::Closed);
    step.after.status = OrderStatus::Closed;
    step.after.reason = Some(cause.as_str().to_owned());
    step.after.units_held = 0;
    step.units = Units::back(is_settled);
    step.cause = Some(cause.as_str());
    Ok(step)
}

/// Whether an order that nobody has paid has lapsed: its deadline and the grace behind it are over by the database's clock.
pub(super) fn has_lapsed(row: &OrderRow, now: Timestamp, grace_ms: u64) -> bool {
    row.pay_by.is_some_and(|pay_by| pay_by.0.saturating_add(grace_ms) <= now.0)
}

// ## Unpaid => Paid
/// Holds the units for good.
pub(super) fn pay(row: &OrderRow, now: Timestamp, capture: &Capture) -> Result<Transition, OrderStatus> {
    if row.status != OrderStatus::Unpaid {
        return Err(row.status);
    }
    let mut step = step(row, now, EventType::Paid);
    step.after.status = OrderStatus::Paid;
    step.after.paid_at = Some(now);
    let payment = json!({
        "provider": capture.provider, "payment_id": capture.payment_id, "amount": capture.amount, "currency": capture.currency,
        "paid_at": capture.paid_at,
    });
    step.with = Some(("payment", payment));
    Ok(step)
}

/// What becomes of a capture whose order stands like this. Being late is what the row says, never what a clock said.
pub(super) fn judge(order: Option<&OrderRow>, capture: &Capture) -> Disposition {
    let Some(order) = order else {
        return Disposition::Unmatched;
    };
    if order.rehearsal {
        return Disposition::Refund(RefundReason::Rehearsal);
    }
    // What a rejected order costs is not always known.
    if order.status != OrderStatus::Rejected {
        if order.currency != capture.currency {
            return Disposition::Refund(RefundReason::WrongCurrency);
        }
        if order.amount != capture.amount {
            return Disposition::Refund(RefundReason::WrongAmount);
        }
    }
    match order.status {
        OrderStatus::Unpaid => Disposition::Kept,
        OrderStatus::Paid | OrderStatus::Refunding => Disposition::Refund(RefundReason::Second),
        OrderStatus::Closed if order.reason.as_deref() == Some(RefundReason::Withdrawn.as_str()) => {
            Disposition::Refund(RefundReason::Withdrawn)
        }
        OrderStatus::Closed | OrderStatus::Refunded | OrderStatus::Rejected => {
            Disposition::Refund(RefundReason::Late)
        }
        OrderStatus::Queued => unreachable!("what is queued has no row"),
    }
}

// ## Paid => Refunding
/// Its money is to go back whole; the units return if the sale says so.
pub(super) fn refund(row: &OrderRow, now: Timestamp, units: Units) -> Result<Transition, OrderStatus> {
    if row.status != OrderStatus::Paid {
        return Err(row.status);
    }
    let mut step = step(row, now, EventType::Refunding);
    step.after.status = OrderStatus::Refunding;
    if units != Units::Stay {
        step.after.units_held = 0;
    }
    step.units = units;
    Ok(step)
}

// ## Refunding => Refunded, and any => the same with less money
/// Money of the order's own payment (`is_own`), or of another that named it, is back. The order is `refunded` once all of its own is,
/// whichever part of it comes last.
pub(super) fn money_is_back(row: &OrderRow, now: Timestamp, refund: &RefundRow, is_own: bool) -> Transition {
    let is_last = is_own
        && row.status == OrderStatus::Refunding
        && row.refunded_amount.saturating_add(refund.amount) >= row.amount;
    let mut step = step(row, now, if is_last { EventType::Refunded } else { EventType::PaymentRefunded });
    if is_last {
        step.after.status = OrderStatus::Refunded;
    }
    if is_own {
        step.after.refunded_amount += refund.amount;
    } else {
        step.cause = refund.reason.as_deref().and_then(RefundReason::of_word).map(RefundReason::as_str);
    }
    let told = json!({
        "refund_id": refund.refund_id, "provider": refund.provider, "payment_id": refund.payment_id, "amount": refund.amount,
        "whole": refund.whole,
    });
    step.with = Some(("refund", told));
    step
}
