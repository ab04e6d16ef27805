//! `POST /api/v1/demo/login` and `…/payments`: a user of this machine may be any buyer, and pays with money that does not exist. Off
//! unless configured.

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, SET_COOKIE};
use serde::{Deserialize, Serialize};
use serde_json::json as value;
use stock::{OrderId, OrderStatus, Timestamp, UserId};

use super::orders::wrong_state;
use super::{Api, Ask, Reply, json};
use crate::http::client::is_local;
use crate::http::problem::Problem;
use crate::ports::PaymentProvider;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    user: UserId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payment {
    order_id: OrderId,
}

#[derive(Serialize)]
struct Token<'a> {
    token: &'a str,
}

impl Api {
    pub(super) async fn demo_login(&self, ask: &Ask<'_>, body: Incoming) -> Reply {
        if !self.gateway.auth.demo() {
            return Problem::NotFound.response();
        }
        if !is_local(ask.peer, ask.version, ask.headers) {
            return Problem::Forbidden.response();
        }
        if let Err(refusal) = ask.refuse_cross_site() {
            return refusal;
        }
        let login: Login = match self.json(ask, body).await {
            Ok(login) => login,
            Err(refusal) => return refusal,
        };
        let Ok(token) = self.gateway.auth.demo_token(&login.user, self.gateway.now_ms()) else {
            return Problem::Internal.response();
        };
        let mut response = json(StatusCode::OK, &Token { token: &token });
        if let Ok(cookie) = HeaderValue::from_str(&self.gateway.auth.demo_cookie(&token)) {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    }

    /// Pays an order of the user, as the shop's own service would: by a callback that is signed, checked and answered like any other.
    pub(super) async fn demo_payment(&self, ask: &Ask<'_>, body: Incoming) -> Reply {
        let gateway = &self.gateway;
        if !gateway.auth.demo() {
            return Problem::NotFound.response();
        }
        if !is_local(ask.peer, ask.version, ask.headers) {
            return Problem::Forbidden.response();
        }
        if let Err(refusal) = ask.refuse_cross_site() {
            return refusal;
        }
        let Payment { order_id } = match self.json(ask, body).await {
            Ok(payment) => payment,
            Err(refusal) => return refusal,
        };
        let user = match self.user(ask) {
            Ok(user) => user,
            Err(refusal) => return refusal,
        };
        let order = match gateway.look_up(order_id, &user).await {
            Ok(order) if matches!(order.status, OrderStatus::Unpaid | OrderStatus::Paid) => order,
            Ok(order) => return wrong_state(order.status),
            Err(not_shown) => return not_shown.reply(),
        };
        let now = Timestamp(gateway.now_ms());
        // The id is the order's own: who presses twice has paid once.
        let payment_id = format!("demo-{order_id}");
        let call = value!({
            "type": "payment.succeeded",
            "payment_id": payment_id,
            "order_id": order_id,
            "amount": order.amount,
            "currency": order.currency,
            "paid_at": now,
        })
        .to_string();
        let Some(signed) = gateway.payments.sign_callback(&payment_id, now, call.as_bytes()) else {
            return Problem::NotFound.because("payment.providers does not name standard-webhooks");
        };
        let mut headers = HeaderMap::with_capacity(signed.len());
        for (name, text) in signed {
            let Ok(text) = HeaderValue::from_str(&text) else { return Problem::Internal.response() };
            headers.insert(name, text);
        }
        self.payment_of(PaymentProvider::StandardWebhooks, &headers, call.as_bytes()).await
    }
}
