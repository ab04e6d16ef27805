//! `GET /api/v1/sales`, `/api/v1/sales/{sale}` and `/api/v1/time`.

use bytes::{BufMut, BytesMut};
use hyper::StatusCode;
use serde::Serialize;
use stock::Timestamp;

use super::{Api, Ask, Reply, cacheable, json};
use crate::catalog::Document;
use crate::problem::Problem;

#[derive(Serialize)]
struct Time {
    now: Timestamp,
}

impl Api {
    /// All sales on offer, from documents that were rendered when they came.
    pub(super) fn sales(&self, ask: &Ask<'_>) -> Reply {
        let offer = self.gateway.catalog.offer();
        let mut list = BytesMut::from(&b"{\"sales\":["[..]);
        for (at, sale) in offer.sales().iter().enumerate() {
            if at > 0 {
                list.put_u8(b',');
            }
            list.put_slice(&sale.document().body);
        }
        list.put_slice(b"]}");
        cacheable(&Document::new(list.freeze()), ask.headers)
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
