//! `POST /api/v1/demo/login`: whoever sits at this machine may be any user. Off unless configured.

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, SET_COOKIE};
use serde::{Deserialize, Serialize};
use stock::UserId;

use super::{Api, Ask, Reply, json};
use crate::client::is_local;
use crate::problem::Problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    user: UserId,
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
}
