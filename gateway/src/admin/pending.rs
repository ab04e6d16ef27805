//! `GET /admin/v1/sales/{sale}/pending?after=ORDER`: what the ledger holds as pending, a page at a time. For an audit from outside of a
//! ledger that nobody else can read.

#![allow(
    clippy::result_large_err,
    reason = "a refusal is the usual answer; boxing it would cost it an allocation"
)]

use hyper::StatusCode;
use serde::Serialize;
use stock::ledger::BATCH_MAX;
use stock::{LedgerError, OrderId, Owner, Reservation, SaleId, Timestamp};

use super::unknown_sale;
use crate::Gateway;
use crate::api::{Reply, json as json_reply};
use crate::http::problem::Problem;

/// A page by order id; fewer than [`BATCH_MAX`] orders mean that it was the last.
#[derive(Serialize)]
struct Page {
    /// By the clock of the sale's server.
    now: Timestamp,
    pending: Vec<Pending>,
    /// What the next page's `after` is; none behind the last one.
    next: Option<OrderId>,
}

#[derive(Serialize)]
struct Pending {
    order_id: OrderId,
    /// Whose log was to take it, hexadecimal.
    instance: String,
    quantity: u32,
    reserved_at: Timestamp,
}

impl From<(Owner, Reservation)> for Pending {
    fn from((owner, reservation): (Owner, Reservation)) -> Self {
        let Reservation { order_id, quantity, reserved_at_ms, .. } = reservation;
        Self { order_id, instance: owner.to_string(), quantity, reserved_at: Timestamp(reserved_at_ms) }
    }
}

pub(super) async fn page(gateway: &Gateway, sale: &SaleId, query: Option<&str>) -> Reply {
    match read(gateway, sale, query).await {
        Ok(page) => json_reply(StatusCode::OK, &page),
        Err(refusal) => refusal,
    }
}

async fn read(gateway: &Gateway, sale: &SaleId, query: Option<&str>) -> Result<Page, Reply> {
    let after = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("after=")));
    let after = after.map(str::parse::<OrderId>).transpose();
    let after = after.map_err(|_| Problem::BadRequest.because("after is an order id"))?;
    let refused = |error| match error {
        LedgerError::UnknownSale(_) => unknown_sale(),
        error => Problem::Busy.because(&error.to_string()),
    };
    let now_ms = gateway.stock.now_ms_of(sale).await.map_err(refused)?;
    let page = gateway.stock.pending(sale, None, after, BATCH_MAX).await.map_err(refused)?;
    let is_last = page.len() < BATCH_MAX;
    let next = page.last().map(|(_, last)| last.order_id).filter(|_| !is_last);
    Ok(Page { now: Timestamp(now_ms), pending: page.into_iter().map(Pending::from).collect(), next })
}
