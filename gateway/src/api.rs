//! The public interface's calls: which path and method goes where. What is no call of the API is a page, or nothing.

#![allow(
    clippy::result_large_err,
    reason = "a refusal is the usual answer; boxing it would cost it an allocation"
)]

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stock::UserId;
use tokio::sync::watch;

use crate::admission::auth::AuthError;
use crate::catalog::Document;
use crate::http::body::{self, Body, BodyError};
use crate::http::client::{Client, Holder};
use crate::http::connection::{Peer, Vitals, closing_after};
use crate::http::mistake;
use crate::http::problem::{Problem, method_not_allowed};
use crate::purchase::Purchases;
use crate::{Gateway, pages};

mod demo;
mod events;
mod mine;
pub(crate) mod orders;
mod passes;
pub(crate) mod payments;
mod purchases;
mod sales;

/// What a handler gives.
pub(crate) type Reply = Response<Body>;

/// The public side of one thread.
pub(crate) struct Api {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) purchases: Arc<Purchases>,
    /// Says true when streams have to end.
    pub(crate) closing: watch::Receiver<bool>,
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Sales,
    Sale(&'a str),
    Time,
    Challenges(&'a str),
    Passes(&'a str),
    Purchase(&'a str),
    Picture(&'a str),
    Orders,
    Order(&'a str),
    OrderEvents(&'a str),
    OrderCancel(&'a str),
    OrderRefund(&'a str),
    Payment(&'a str),
    DemoLogin,
    DemoPayment,
    Nothing,
    Page,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Self {
        let Some(call) = path.strip_prefix("/api/") else { return Self::Page };
        let mut parts = call.split('/');
        let parts = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
        match parts {
            [Some("v1"), Some("sales"), None, ..] => Self::Sales,
            [Some("v1"), Some("sales"), Some(sale), None, _] => Self::Sale(sale),
            [Some("v1"), Some("sales"), Some(sale), Some("challenges"), None] => Self::Challenges(sale),
            [Some("v1"), Some("sales"), Some(sale), Some("passes"), None] => Self::Passes(sale),
            [Some("v1"), Some("sales"), Some(sale), Some("orders"), None] => Self::Purchase(sale),
            [Some("v1"), Some("challenges"), Some(picture), None, _] => Self::Picture(picture),
            [Some("v1"), Some("orders"), None, ..] => Self::Orders,
            [Some("v1"), Some("orders"), Some(order), None, _] => Self::Order(order),
            [Some("v1"), Some("orders"), Some(order), Some("events"), None] => Self::OrderEvents(order),
            [Some("v1"), Some("orders"), Some(order), Some("cancel"), None] => Self::OrderCancel(order),
            [Some("v1"), Some("orders"), Some(order), Some("refund"), None] => Self::OrderRefund(order),
            [Some("v1"), Some("time"), None, ..] => Self::Time,
            [Some("v1"), Some("payments"), Some(provider), None, _] => Self::Payment(provider),
            [Some("v1"), Some("demo"), Some("login"), None, _] => Self::DemoLogin,
            [Some("v1"), Some("demo"), Some("payments"), None, _] => Self::DemoPayment,
            _ => Self::Nothing,
        }
    }
}

impl Api {
    /// Answers one request. The futures of a spike's crowd are not boxed. All others are, for they would lie in the one future
    /// that every request moves about as a whole.
    pub(crate) async fn handle(&self, Peer { address, vitals }: Peer, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let ask = Ask { peer: address, vitals: &vitals, version: head.version, headers: &head.headers };
        let read = matches!(head.method, Method::GET | Method::HEAD);
        let post = head.method == Method::POST;
        match Route::of(head.uri.path()) {
            Route::Purchase(sale) if post => self.purchase(&ask, sale, body).await,
            Route::Order(order) if read => Box::pin(self.order(&ask, order)).await,
            Route::Orders if read => Box::pin(self.orders(&ask, head.uri.query())).await,
            Route::Sales if read => self.sales(&ask),
            Route::Sale(sale) if read => self.sale(&ask, sale),
            Route::Time if read => self.time(head.uri.query()),
            Route::Challenges(sale) if post => Box::pin(self.challenge(&ask, sale, body)).await,
            Route::Passes(sale) if post => Box::pin(self.pass(&ask, sale, body)).await,
            Route::Picture(picture) if read => self.picture(picture),
            Route::OrderEvents(order) if head.method == Method::GET => {
                Box::pin(self.events(&ask, order)).await
            }
            Route::OrderCancel(order) if post => Box::pin(self.cancel(&ask, order, body)).await,
            Route::OrderRefund(order) if post => Box::pin(self.refund(&ask, order, body)).await,
            Route::Payment(provider) if post => Box::pin(self.payment(&ask, provider, body)).await,
            Route::DemoLogin if post => Box::pin(self.demo_login(&ask, body)).await,
            Route::DemoPayment if post => Box::pin(self.demo_payment(&ask, body)).await,
            Route::Page if read => page(head.uri.path(), &head.headers),
            Route::Nothing => Problem::NotFound.response(),
            Route::Purchase(_)
            | Route::Challenges(_)
            | Route::Passes(_)
            | Route::OrderCancel(_)
            | Route::OrderRefund(_)
            | Route::Payment(_)
            | Route::DemoLogin
            | Route::DemoPayment => method_not_allowed("POST"),
            Route::OrderEvents(_) => method_not_allowed("GET"),
            Route::Orders
            | Route::Order(_)
            | Route::Sales
            | Route::Sale(_)
            | Route::Time
            | Route::Picture(_)
            | Route::Page => method_not_allowed("GET, HEAD"),
        }
    }

    fn client(&self, ask: &Ask<'_>) -> Client {
        self.gateway.clients.identify(ask.peer, ask.headers)
    }

    /// For whom the request holds its connection.
    fn holder(&self, ask: &Ask<'_>) -> Holder {
        self.gateway.clients.holder_of(self.client(ask))
    }

    /// The request's user, or the 401.
    fn user(&self, ask: &Ask<'_>) -> Result<UserId, Reply> {
        let through_proxy = self.client(ask).through_proxy;
        let now_ms = self.gateway.now_ms();
        self.gateway.auth.user(ask.headers, through_proxy, now_ms).map_err(unauthorized)
    }

    /// The request's body as `T`: unknown and repeated keys and wrong types are refused; nothing at all counts as `{}`.
    async fn json<T: DeserializeOwned>(&self, ask: &Ask<'_>, body: Incoming) -> Result<T, Reply> {
        parse(&self.bytes(ask, body).await?)
    }

    async fn bytes(&self, ask: &Ask<'_>, body: Incoming) -> Result<Bytes, Reply> {
        self.bytes_up_to(ask, body, self.gateway.config.body_bytes_max).await
    }

    async fn bytes_up_to(&self, ask: &Ask<'_>, body: Incoming, bytes_max: usize) -> Result<Bytes, Reply> {
        let time_max = std::time::Duration::from_millis(self.gateway.config.body_read_max_ms);
        let awaiting = || ask.vitals.awaits_body(self.holder(ask));
        body::read(body, bytes_max, time_max, awaiting).await.map_err(|error| match error {
            BodyError::TooLarge => closing_after(Problem::TooLarge.response()),
            BodyError::TooSlow => closing_after(Problem::TooSlow.response()),
            BodyError::Broken => closing_after(Problem::BadRequest.because("the body could not be read")),
        })
    }
}

/// What handlers see of a request beside its body.
pub(crate) struct Ask<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) vitals: &'a Arc<Vitals>,
    pub(crate) version: Version,
    pub(crate) headers: &'a HeaderMap,
}

impl Ask<'_> {
    /// The pass that was sent, if any. Two of them make no sense.
    fn pass(&self) -> Result<Option<&str>, Reply> {
        let mut passes = self.headers.get_all("floodgate-pass").iter();
        let pass = passes.next();
        if passes.next().is_some() {
            return Err(Problem::BadRequest.because("Floodgate-Pass is there more than once"));
        }
        // What is not even text is a pass that does not verify.
        Ok(pass.map(|pass| pass.to_str().unwrap_or_default()))
    }

    /// A user known by cookie alone must have sent JSON: another site's form cannot.
    fn refuse_cross_site(&self) -> Result<(), Reply> {
        if self.headers.contains_key(hyper::header::AUTHORIZATION) {
            return Ok(());
        }
        let is_json = |value: &HeaderValue| {
            value.to_str().is_ok_and(|v| {
                v.split(';').next().is_some_and(|v| v.trim().eq_ignore_ascii_case("application/json"))
            })
        };
        if self.headers.get(CONTENT_TYPE).is_some_and(is_json) {
            return Ok(());
        }
        Err(Problem::BadRequest.because("send Content-Type: application/json"))
    }
}

/// `bytes` as one JSON object; nothing at all counts as `{}`.
pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Reply> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // serde would take an array of the members for the object.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::BadRequest.because("send a JSON object"));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::BadRequest.because(&mistake::worded(bytes, &error)))
}

fn unauthorized(error: AuthError) -> Reply {
    match error {
        AuthError::Missing => Problem::Unauthorized.response(),
        AuthError::Unnamed | AuthError::Invalid(_) => Problem::Unauthorized.because(&error.to_string()),
    }
}

fn page(path: &str, headers: &HeaderMap) -> Reply {
    match pages::respond(path, headers) {
        Some(page) => page.map(Body::whole),
        None => Problem::NotFound.response(),
    }
}

/// JSON that nobody may keep.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    let Ok(body) = serde_json::to_vec(value) else { return Problem::Internal.response() };
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// JSON that caches may keep for a moment, or 304 if the asker has it.
fn cacheable(document: &Document, headers: &HeaderMap) -> Reply {
    let held = headers.get_all(IF_NONE_MATCH).iter().any(|held| has(held, &document.etag));
    let mut response = Response::new(if held { Body::empty() } else { Body::whole(document.body.clone()) });
    if held {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response.headers_mut().insert(ETAG, document.etag.clone());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=1"));
    response
}

fn has(held: &HeaderValue, etag: &HeaderValue) -> bool {
    let Ok(held) = held.to_str() else { return false };
    held.split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.trim_start_matches("W/").as_bytes() == etag.as_bytes())
}

/// A picture that nobody may keep.
fn png(bytes: Bytes) -> Reply {
    let mut response = Response::new(Body::whole(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("image/png"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_the_table_says() {
        let cases = [
            ("/api/v1/sales", Route::Sales),
            ("/api/v1/sales/demo", Route::Sale("demo")),
            ("/api/v1/sales/demo/challenges", Route::Challenges("demo")),
            ("/api/v1/sales/demo/passes", Route::Passes("demo")),
            ("/api/v1/sales/demo/orders", Route::Purchase("demo")),
            ("/api/v1/sales//orders", Route::Purchase("")),
            ("/api/v1/orders", Route::Orders),
            ("/api/v1/orders/X", Route::Order("X")),
            ("/api/v1/orders/X/events", Route::OrderEvents("X")),
            ("/api/v1/orders/X/cancel", Route::OrderCancel("X")),
            ("/api/v1/orders/X/refund", Route::OrderRefund("X")),
            ("/api/v1/time", Route::Time),
            ("/api/v1/demo/login", Route::DemoLogin),
            ("/api/v1/demo/payments", Route::DemoPayment),
            ("/api/v1/payments/callback", Route::Payment("callback")),
            ("/api/v1/payments/callback/x", Route::Nothing),
            ("/api/v1/payments", Route::Nothing),
            ("/api/v1/challenges/abc.png", Route::Picture("abc.png")),
            ("/api/v1/sales/demo/orders/x", Route::Nothing),
            ("/api/v1/sales/demo/nothing", Route::Nothing),
            ("/api/v1/time/x", Route::Nothing),
            ("/api/v1", Route::Nothing),
            ("/api/v2/sales", Route::Nothing),
            ("/api/", Route::Nothing),
            ("/", Route::Page),
            ("/sales/demo", Route::Page),
        ];
        for (path, route) in cases {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }
}
