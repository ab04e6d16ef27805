//! `GET /api/v1/orders?sale=`: a user's own orders of a sale, wherever they stand, so that a second device finds what the first one
//! bought. The ledger is asked before the rows: an order that leaves it meanwhile has a row by then.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::Serialize;
use stock::ledger::MINE_MAX;
use stock::{LedgerError, OrderId, SaleId, UserId};

use super::orders::{NotShown, OrderDocument};
use super::sales::sale_of;
use super::{Api, Ask, Reply, json as json_reply};
use crate::Gateway;
use crate::http::problem::Problem;
use crate::ports::in_time;

#[derive(Serialize)]
struct Orders {
    orders: Vec<OrderDocument>,
}

impl Api {
    pub(super) async fn orders(&self, ask: &Ask<'_>, query: Option<&str>) -> Reply {
        let sale = match sale_of(query) {
            Ok(Some(sale)) => sale,
            Ok(None) => return Problem::BadRequest.because("say of which sale: ?sale=ID"),
            Err(refusal) => return refusal,
        };
        let user = match self.user(ask) {
            Ok(user) => user,
            Err(refusal) => return refusal,
        };
        if self.gateway.looks.check_user(&user).is_err() {
            return Problem::SlowDown.response();
        }
        let Ok(sale) = sale.parse::<SaleId>() else { return Problem::UnknownSale.response() };
        let is_offered = self.gateway.catalog.offer().sale(sale.as_str()).is_some();
        match self.gateway.orders_of(sale, user).await {
            // One that is over for good is no longer offered, and whoever bought there still finds it.
            Ok(orders) if orders.is_empty() && !is_offered => Problem::UnknownSale.response(),
            Ok(orders) => json_reply(StatusCode::OK, &Orders { orders }),
            Err(not_shown) => not_shown.reply(),
        }
    }
}

impl Gateway {
    /// The newest first, at most [`MINE_MAX`] of those that have a row and as many queued ones.
    async fn orders_of(&self, sale_id: SaleId, user: UserId) -> Result<Vec<OrderDocument>, NotShown> {
        let mut found: BTreeMap<OrderId, OrderDocument> = BTreeMap::new();

        // 1. The ledger: pending means queued.
        let sale = self.catalog.offer().sale(sale_id.as_str()).cloned();
        if let Some(sale) = &sale {
            match self.stock.mine(&sale.id, &user).await {
                Ok(mine) => {
                    for (owner, reservation) in mine.into_iter().filter_map(|mine| mine.pending) {
                        if !self.may_show(sale, owner, &reservation) {
                            return Err(NotShown::Unknown);
                        }
                        found.insert(reservation.order_id, self.queued(sale, reservation).await?);
                    }
                }
                // Settled meanwhile: the rows have all there is.
                Err(LedgerError::UnknownSale(_)) => {}
                Err(_) => return Err(NotShown::Unknown),
            }
        }

        // 2. The rows, which know more of what is in both.
        let rows = in_time(self.orders.orders_of(sale_id, user, MINE_MAX)).await;
        let rows = rows.map_err(|_| NotShown::Unknown)?;
        found.extend(rows.into_iter().map(|row| (row.order_id, row.into())));
        Ok(found.into_values().rev().collect())
    }
}
