//! `GET /api/v1/sales`, `/api/v1/sales/{sale}` and `/api/v1/time`.

use hyper::StatusCode;
use serde::Serialize;
use stock::Timestamp;

use super::{Api, Ask, Reply, cacheable, json};
use crate::http::problem::Problem;

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

    /// The clock of the sale that is named, or the one of what belongs to no sale.
    pub(super) fn time(&self, query: Option<&str>) -> Reply {
        let now_ms = match sale_of(query) {
            Ok(None) => self.gateway.now_ms(),
            Ok(Some(sale)) => match self.gateway.catalog.offer().sale(sale) {
                Some(sale) => sale.now_ms(),
                None => return Problem::UnknownSale.response(),
            },
            Err(refusal) => return refusal,
        };
        json(StatusCode::OK, &Time { now: Timestamp(now_ms) })
    }
}

/// The `sale` of a query. Ids need no escaping.
pub(super) fn sale_of(query: Option<&str>) -> Result<Option<&str>, Reply> {
    let members = query.unwrap_or_default().split('&');
    let mut sales = members.filter_map(|member| member.strip_prefix("sale="));
    match (sales.next(), sales.next()) {
        (sale, None) => Ok(sale),
        (_, Some(_)) => Err(Problem::BadRequest.because("sale is there more than once")),
    }
}
