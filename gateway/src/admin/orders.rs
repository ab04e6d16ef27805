//! `POST /admin/v1/orders/{order}/cancel`, `…/close`, `…/refund` and `POST /admin/v1/refunds/{refund}/retry`: what an
//! operator does to one order, and to the money of one.

use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use stock::OrderId;
use tokio::time::timeout;

use super::{Admin, NAME_BYTES_MAX, ORDERS_MAX, answered, checked};
use crate::api::orders::{OrderDocument, cancelled, refunded};
use crate::api::{Reply, json as json_reply};
use crate::http::connection::Peer;
use crate::http::problem::{Problem, method_not_allowed};
use crate::ports::{OrderChange, OrderChanged, PortError, RefundPart};

/// Longest id of a refund, bytes.
const REFUND_ID_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refund {
    /// With an amount: names the wish.
    request_id: Option<String>,
    /// Minor units; without it all that is left.
    amount: Option<u64>,
    reason: Option<String>,
}

impl Refund {
    fn part(&mut self) -> Result<Option<RefundPart>, Reply> {
        match (self.request_id.take(), self.amount) {
            (None, None) => Ok(None),
            (Some(request_id), Some(amount)) if amount > 0 => {
                let is_name = (1..=NAME_BYTES_MAX).contains(&request_id.len());
                if !is_name || request_id.chars().any(char::is_control) {
                    let problem = "request_id has 1 to 64 bytes without control characters";
                    return Err(Problem::BadRequest.because(problem));
                }
                Ok(Some(RefundPart { request_id, amount }))
            }
            _ => Err(Problem::BadRequest.because(
                "a refund in part has an amount of at least 1 minor unit and a request_id, under which it can be repeated; a whole one \
                 has neither",
            )),
        }
    }
}

impl Admin {
    pub(super) async fn change_order(
        &self,
        method: &Method,
        order: &str,
        what: &str,
        body: (&Peer, Incoming),
    ) -> Reply {
        if *method != Method::POST {
            return method_not_allowed("POST");
        }
        let Ok(order_id) = order.parse::<OrderId>() else { return Problem::NotFound.response() };
        match self.wanted(what, body).await {
            Ok((change, reason)) => self.carry_out(order_id, change, reason).await,
            Err(refusal) => refusal,
        }
    }

    async fn wanted(
        &self,
        what: &str,
        body: (&Peer, Incoming),
    ) -> Result<(OrderChange, Option<String>), Reply> {
        if what == "refund" {
            let mut refund = self.read::<Refund>(body).await?;
            return Ok((OrderChange::Refund(refund.part()?), checked(refund.reason)?));
        }
        let change = if what == "close" { OrderChange::Close } else { OrderChange::Cancel };
        Ok((change, checked(self.read::<Why>(body).await?.reason)?))
    }

    async fn carry_out(&self, order_id: OrderId, change: OrderChange, reason: Option<String>) -> Reply {
        let is_refund = matches!(change, OrderChange::Refund(_));
        let result = timeout(ORDERS_MAX, self.gateway.operator.change_order(order_id, change, reason)).await;
        // Also where it is not known what became of it: they look.
        self.gateway.streams.changed(order_id);
        let result = result.unwrap_or_else(|_| Err(PortError::Unavailable("no answer in time".into())));
        match result {
            Ok(OrderChanged::Cancelled(answer)) => cancelled(Ok(answer)),
            Ok(OrderChanged::Refunded(answer)) => refunded(Ok(answer), |order, refund| {
                json_reply(StatusCode::OK, &json!({"order": OrderDocument::from(order), "refund": refund}))
            }),
            Err(error) if is_refund => refunded(Err(error), |_, _| Problem::Internal.response()),
            Err(error) => cancelled(Err(error)),
        }
    }

    pub(super) async fn retry_refund(&self, method: &Method, refund: &str, body: (&Peer, Incoming)) -> Reply {
        if *method != Method::POST {
            return method_not_allowed("POST");
        }
        let reason = match self.read::<Why>(body).await.and_then(|why| checked(why.reason)) {
            Ok(reason) => reason,
            Err(refusal) => return refusal,
        };
        if refund.len() > REFUND_ID_BYTES_MAX {
            return Problem::NotFound.response();
        }
        answered(self.gateway.operator.retry_refund(refund.to_owned(), reason), |found| match found {
            Some(refund) => json_reply(StatusCode::OK, &refund),
            None => Problem::NotFound.response(),
        })
        .await
    }
}
