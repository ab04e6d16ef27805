//! `GET /api/v1/orders/{order}`, `POST …/cancel` and `…/refund`: the ledger is asked first, so that a queued order's
//! status never costs a database read; the row otherwise.

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stock::ledger::IdState;
use stock::{
    LedgerError, OrderId, OrderStatus, Owner, Reservation, SaleId, Timestamp, UserId, currency_digits,
};

use super::purchases::Waiting;
use super::{Api, Ask, Reply, json as json_reply};
use crate::Gateway;
use crate::catalog::Sale;
use crate::http::problem::Problem;
use crate::ports::{Cancelled, OrderView, PortError, RefundView, Refunded, in_time};

/// A reservation of this instance that is older has reached the log, or its append's failure has reached recovery.
const KEPT_AFTER_MS: u64 = 10_000;

/// The body of `GET /api/v1/orders/{order}` and of each event.
#[derive(Clone, Serialize)]
pub(crate) struct OrderDocument {
    pub(super) order_id: OrderId,
    sale: SaleId,
    quantity: u32,
    pub(super) amount: u64,
    pub(super) currency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency_digits: Option<u8>,
    pub(super) status: OrderStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pay_by: Option<Timestamp>,
    #[serde(flatten)]
    queued: Option<Waiting>,
}

impl From<OrderView> for OrderDocument {
    fn from(order: OrderView) -> Self {
        Self {
            order_id: order.order_id,
            sale: order.sale,
            quantity: order.quantity,
            amount: order.amount,
            currency_digits: currency_digits(&order.currency),
            currency: order.currency,
            pay_by: order.pay_by.filter(|_| order.status == OrderStatus::Unpaid),
            status: order.status,
            queued: None,
        }
    }
}

/// Why an order is not shown.
pub(super) enum NotShown {
    /// There is none of this user, for certain.
    None,
    /// At the moment nobody can tell.
    Unknown,
}

impl NotShown {
    pub(super) fn reply(&self) -> Reply {
        match self {
            Self::None => Problem::NotFound.response(),
            Self::Unknown => {
                Problem::Busy.because("whether there is such an order is not known at the moment")
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Api {
    pub(super) async fn order(&self, ask: &Ask<'_>, order: &str) -> Reply {
        let (order_id, user) = match self.order_and_user(ask, order) {
            Ok(named) => named,
            Err(refusal) => return refusal,
        };
        if self.gateway.looks.check_user(&user).is_err() {
            return Problem::SlowDown.response();
        }
        match self.gateway.look_up(order_id, &user).await {
            Ok(document) => json_reply(StatusCode::OK, &document),
            Err(not_shown) => not_shown.reply(),
        }
    }

    /// Which order, and for whom: by token, or by the pass that names this order, even if it has expired.
    pub(super) fn order_and_user(&self, ask: &Ask<'_>, order: &str) -> Result<(OrderId, UserId), Reply> {
        let pass = ask.pass()?;
        let Ok(order_id) = order.parse::<OrderId>() else { return Err(Problem::NotFound.response()) };
        let by_pass = pass.and_then(|text| self.gateway.passes.verify(text).ok());
        match by_pass {
            Some(pass) if pass.order_id == order_id => Ok((order_id, pass.user)),
            _ => Ok((order_id, self.user(ask)?)),
        }
    }

    pub(super) async fn cancel(&self, ask: &Ask<'_>, order: &str, body: Incoming) -> Reply {
        let (order_id, user) = match self.order_to_change(ask, order, body).await {
            Ok(named) => named,
            Err(refusal) => return refusal,
        };
        let result = in_time(self.gateway.orders.cancel(order_id, user)).await;
        // Also where it is not known what became of it: they look.
        self.gateway.streams.changed(order_id);
        cancelled(result)
    }

    pub(super) async fn refund(&self, ask: &Ask<'_>, order: &str, body: Incoming) -> Reply {
        let (order_id, user) = match self.order_to_change(ask, order, body).await {
            Ok(named) => named,
            Err(refusal) => return refusal,
        };
        let result = in_time(self.gateway.orders.refund(order_id, user)).await;
        // Also where it is not known what became of it: they look.
        self.gateway.streams.changed(order_id);
        refunded(result, |order, _| {
            let status =
                if order.status == OrderStatus::Refunded { StatusCode::OK } else { StatusCode::ACCEPTED };
            json_reply(status, &OrderDocument::from(order))
        })
    }

    /// Which order its user wants changed: one that has a row.
    async fn order_to_change(
        &self,
        ask: &Ask<'_>,
        order: &str,
        body: Incoming,
    ) -> Result<(OrderId, UserId), Reply> {
        self.json::<Nothing>(ask, body).await?;
        ask.refuse_cross_site()?;
        let user = self.user(ask)?;
        let Ok(order_id) = order.parse::<OrderId>() else { return Err(Problem::NotFound.response()) };
        match self.gateway.look_up(order_id, &user).await {
            Ok(document) if document.status == OrderStatus::Queued => Err(wrong_state(document.status)),
            Ok(_) => Ok((order_id, user)),
            Err(not_shown) => Err(not_shown.reply()),
        }
    }
}

/// What a buyer or the operator hears of a wish to cancel.
pub(crate) fn cancelled(result: Result<Cancelled, PortError>) -> Reply {
    match result {
        Ok(Cancelled::Done(order)) => json_reply(StatusCode::OK, &OrderDocument::from(order)),
        Ok(Cancelled::WrongState(status)) => wrong_state(status),
        Ok(Cancelled::NotFound) => Problem::NotFound.response(),
        Err(PortError::Invalid(problem)) => Problem::BadRequest.because(&problem),
        // Cancelling again is harmless.
        Err(PortError::Unavailable(_) | PortError::UnknownSale(_) | PortError::Differs(_)) => {
            Problem::Busy.because("the order may or may not have been cancelled: ask again")
        }
    }
}

/// What a buyer or the operator hears of a wish for money; `show` where it was written.
pub(crate) fn refunded(
    result: Result<Refunded, PortError>,
    show: impl FnOnce(OrderView, RefundView) -> Reply,
) -> Reply {
    match result {
        Ok(Refunded::Asked { order, refund }) => show(*order, *refund),
        Ok(Refunded::WrongState(status)) => wrong_state(status),
        Ok(Refunded::NotOffered) => {
            Problem::WrongState.because("money of this sale goes back on the shop's word alone: ask the shop")
        }
        Ok(Refunded::TooMuch(left)) => {
            Problem::BadRequest.because(&format!("{left} minor units are left of the payment"))
        }
        Ok(Refunded::NotFound) => Problem::NotFound.response(),
        Err(PortError::Invalid(problem)) => Problem::BadRequest.because(&problem),
        // Asking again is harmless.
        Err(PortError::Unavailable(_) | PortError::UnknownSale(_) | PortError::Differs(_)) => {
            Problem::Busy.because("the refund may or may not have been asked for: ask again")
        }
    }
}

pub(super) fn wrong_state(status: OrderStatus) -> Reply {
    Problem::WrongState.with([("order_status", json!(status))])
}

impl Gateway {
    /// Where an order stands, as its user may see it, without HTTP. `None`: this user has no such order, for certain.
    ///
    /// # Errors
    /// [`PortError::Unavailable`]: at the moment nobody can tell.
    pub async fn order_status(
        &self,
        order_id: OrderId,
        user: &UserId,
    ) -> Result<Option<OrderStatus>, PortError> {
        match self.look_up(order_id, user).await {
            Ok(document) => Ok(Some(document.status)),
            Err(NotShown::None) => Ok(None),
            Err(NotShown::Unknown) => Err(PortError::Unavailable("nobody can tell at the moment".into())),
        }
    }

    /// Whether this instance's log holds a reservation of its own. Until it does, a crash may still take the order
    /// back: to show it would be a promise. An old one that is not remembered has long been appended and drained, or
    /// recovery would be at work.
    fn has_kept(&self, sale: &Sale, reservation: &Reservation) -> bool {
        let order_id = reservation.order_id;
        self.progress.holds(order_id)
            || self.parts.recovery.is_idle_for(&sale.id)
                && !self.parts.recovery.doubts(&sale.id, order_id)
                && reservation.reserved_at_ms + KEPT_AFTER_MS <= sale.now_ms()
    }

    /// Whether a pending order may be shown: to show one that a crash may take back would be a promise.
    pub(super) fn may_show(&self, sale: &Sale, owner: Owner, reservation: &Reservation) -> bool {
        owner != self.parts.owner || self.has_kept(sale, reservation)
    }

    /// A pending order as its user may see it: at the price under which it was taken, which is asked for only after an edit.
    pub(super) async fn queued(
        &self,
        sale: &Sale,
        reservation: Reservation,
    ) -> Result<OrderDocument, NotShown> {
        let older = reservation.sale_version.filter(|version| *version < sale.terms_version);
        let older = match older {
            Some(version) => in_time(self.orders.offered(sale.id.clone(), version)).await,
            None => Ok(None),
        };
        let older = older.map_err(|_| NotShown::Unknown)?;
        let definition = older.as_ref().unwrap_or(&sale.definition);
        Ok(OrderDocument {
            order_id: reservation.order_id,
            sale: reservation.sale,
            quantity: reservation.quantity,
            amount: definition.price.saturating_mul(u64::from(reservation.quantity)),
            currency: definition.currency.clone(),
            currency_digits: currency_digits(&definition.currency),
            status: OrderStatus::Queued,
            pay_by: None,
            queued: Some(self.progress.estimate(reservation.order_id).into()),
        })
    }

    /// The order as its user may see it.
    pub(super) async fn look_up(&self, order_id: OrderId, user: &UserId) -> Result<OrderDocument, NotShown> {
        // 0. What nothing more happens to is remembered for a while.
        if let Some((of, document)) = self.finals.get(order_id) {
            return if of == *user { Ok(document) } else { Err(NotShown::None) };
        }

        let offer = self.catalog.offer_whole();
        let sales = || offer.sales().iter().filter(|sale| sale.tag == order_id.sale_tag());
        let mut ledger_silent = false;

        // 1. The ledger: pending means queued. Another user's order is as good as none.
        let before = order_id.0.checked_sub(1).map(OrderId);
        for sale in sales() {
            match self.stock.pending(&sale.id, None, before, 1).await {
                Ok(page) => {
                    let found = page.into_iter().find(|(_, r)| r.order_id == order_id);
                    let Some((owner, reservation)) = found else { continue };
                    if reservation.user != *user {
                        return Err(NotShown::None);
                    }
                    if !self.may_show(sale, owner, &reservation) {
                        return Err(NotShown::Unknown);
                    }
                    return self.queued(sale, reservation).await;
                }
                Err(LedgerError::UnknownSale(_)) => {}
                Err(_) => ledger_silent = true,
            }
        }

        // 2. The row.
        match in_time(self.orders.order(order_id)).await {
            Ok(Some(order)) if order.user == *user => {
                let document = OrderDocument::from(order);
                if document.status.is_final() {
                    self.finals.remember(order_id, user.clone(), document.clone());
                }
                return Ok(document);
            }
            Ok(Some(_)) => return Err(NotShown::None),
            Ok(None) => {}
            Err(_) => return Err(NotShown::Unknown),
        }

        // 3. Neither has it: that is an answer only if every ledger that could know it is open and says absent.
        for sale in sales() {
            match self.stock.states(&sale.id, &[order_id]).await {
                Ok(states) if states == [IdState::Absent] => {}
                // Taken in this very moment, or in the database by now; or a ledger that has lost its memory.
                Ok(_) | Err(_) => ledger_silent = true,
            }
        }
        Err(if ledger_silent { NotShown::Unknown } else { NotShown::None })
    }
}
