//! `GET /api/v1/sales`, `/api/v1/sales/{sale}` and `/api/v1/time`.

use hyper::StatusCode;
use serde::Serialize;
use stock::Timestamp;

use super::{Api, Ask, Reply, cacheable, json};
use crate::problem::Problem;

#[derive(Serialize)]
struct Time {
    now: Timestamp,
}

impl Api {
    /// All sales on offer, as they were rendered at the last change.
    pub(super) fn sales(&self, ask: &Ask<'_>) -> Reply {
        cacheable(&self.gateway.catalog.list(), ask.headers)
    }

    pub(super) fn sale(&self, ask: &Ask<'_>, sale: &str) -> Reply {
        match self.gateway.catalog.offer().sale(sale) {
            Some(sale) => cacheable(sale.document(), ask.headers),
            None => Problem::UnknownSale.response(),
        }
    }

    pub(super) fn time(&self) -> Reply {
        json(StatusCode::OK, &Time { now: Timestamp(self.gateway.clock.now_ms()) })
    }
}
