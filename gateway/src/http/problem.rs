//! Refusals and errors as RFC 9457 problems. Those without particulars are rendered once and copied: what a spike's crowd
//! hears costs no formatting.

use std::cell::Cell;
use std::sync::LazyLock;

use bytes::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::body::Body;

/// Different waits that are handed out in turn, so that a crowd does not come back in one moment.
const JITTER: usize = 8;

macro_rules! problems {
    ($($name:ident = $status:literal $word:literal $retry:expr, $title:literal, $detail:literal;)*) => {
        /// What went wrong; the word that the problem's `type` ends in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Problem {
            $(#[doc = concat!("`", $word, "`: ", $title, ".")] $name,)*
        }

        const KINDS: &[Kind] = &[$(
            Kind { status: $status, word: $word, retry_after_s: $retry, title: $title, detail: $detail },
        )*];
    };
}

struct Kind {
    status: u16,
    word: &'static str,
    /// Shortest and longest `Retry-After`, seconds.
    retry_after_s: Option<(u64, u64)>,
    title: &'static str,
    detail: &'static str,
}

problems! {
    BadRequest = 400 "bad-request" None, "The request makes no sense", "See the interface's description of this call.";
    Unauthorized = 401 "unauthorized" None, "No acceptable user token", "Send a token as Authorization: Bearer, or in the cookie floodgate_user.";
    PassInvalid = 401 "pass-invalid" None, "The pass is not acceptable", "Ask for a new pass of this sale and send it as Floodgate-Pass.";
    SignatureInvalid = 401 "signature-invalid" None, "No good signature", "Sign the body as Standard Webhooks says, with payment.callback_secret.";
    Forbidden = 403 "forbidden" None, "Not allowed from here", "The demo answers requests from this machine only.";
    NotOurs = 403 "not-ours" None, "Of another merchant or app", "See section [payment] of the configuration.";
    NotStarted = 403 "not-started" None, "The sale has not begun", "Come back after Retry-After seconds.";
    Ended = 403 "ended" None, "The sale is over", "No more orders are taken.";
    WrongAnswer = 403 "wrong-answer" None, "The answer is not right", "Answer again, or ask for a new question.";
    NotFound = 404 "not-found" None, "There is nothing here", "Neither a page nor a call of this name, or no such order of yours.";
    UnknownSale = 404 "unknown-sale" None, "There is no such sale", "See GET /api/v1/sales.";
    MethodNotAllowed = 405 "method-not-allowed" None, "Not with this method", "See the header Allow.";
    TooSlow = 408 "too-slow" None, "The request's body came too slowly", "Send it again at once.";
    AmountMismatch = 409 "amount-mismatch" None, "Not what the order costs", "The payment is kept in the books and goes back.";
    PassUsed = 409 "pass-used" None, "This pass's order is over", "Ask for a new pass.";
    LimitReached = 409 "limit-reached" None, "That would be more than one buyer may hold", "This user holds as many units as the sale's per_user_limit allows. Another user, or this one after cancelling, may buy.";
    SaleChanged = 409 "sale-changed" None, "The sale is not what you were shown", "Price, currency, limit or pay time were changed. Look at the sale again; nothing was taken, and the pass is still good.";
    NotEnough = 409 "not-enough" None, "Fewer are left than asked for", "Ask for at most as many as remain.";
    WrongState = 409 "wrong-state" None, "The order's status does not allow that", "Look at the order's status.";
    SaleDiffers = 409 "sale-differs" None, "A sale of this id was first published differently", "Publish under a new id, or with the same definition.";
    SoldOut = 410 "sold-out" None, "Sold out", "No unit is left at this moment. Whoever got no answer before asks GET /api/v1/orders/{order}.";
    ChallengeExpired = 410 "challenge-expired" None, "The question can no longer be answered", "Ask for a new one.";
    TooLarge = 413 "too-large" None, "The request is too large", "Metadata may have 1 KiB, a body gateway.body_bytes_max bytes.";
    UriTooLong = 414 "uri-too-long" None, "The address is too long", "No page and no call has an address of that length.";
    SlowDown = 429 "slow-down" Some((1, 3)), "Too many requests", "Wait Retry-After seconds.";
    GateFull = 429 "gate-full" Some((2, 9)), "As many passes are out as the stock allows", "Passes come free when others do not use theirs.";
    HeadTooLarge = 431 "head-too-large" None, "The request's head is too large", "See gateway.header_bytes_max.";
    Internal = 500 "internal" None, "Something is wrong on our side", "The operator's log says more.";
    Paused = 503 "paused" Some((5, 12)), "The sale is paused", "Come back after Retry-After seconds.";
    Busy = 503 "busy" Some((1, 4)), "Busy", "Nothing was taken. Come back after Retry-After seconds.";
    Uncertain = 503 "uncertain" Some((2, 5)), "It is not known yet", "Ask GET /api/v1/orders/{order}, or press again with the same pass, after Retry-After seconds.";
}

struct Ready {
    status: StatusCode,
    /// The same but for Retry-After.
    headers: Vec<HeaderMap>,
    body: Bytes,
}

static READY: LazyLock<Vec<Ready>> = LazyLock::new(|| KINDS.iter().map(Ready::of).collect());

thread_local! {
    static TURN: Cell<usize> = const { Cell::new(0) };
}

impl Ready {
    fn of(kind: &Kind) -> Self {
        let headers = |turn: usize| {
            let mut headers = HeaderMap::with_capacity(4);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            match kind.word {
                "unauthorized" => {
                    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"floodgate\""));
                }
                "pass-invalid" => {
                    headers.insert(
                        WWW_AUTHENTICATE,
                        HeaderValue::from_static("Floodgate-Pass realm=\"floodgate\""),
                    );
                }
                _ => {}
            }
            if let Some((shortest, longest)) = kind.retry_after_s {
                let seconds = shortest + turn as u64 * (longest - shortest) / (JITTER as u64 - 1);
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            headers
        };
        Self {
            status: StatusCode::from_u16(kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: (0..JITTER).map(headers).collect(),
            body: Value::Object(kind.members()).to_string().into(),
        }
    }
}

impl Kind {
    fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("type".into(), format!("https://floodgate.invalid/problems/{}", self.word).into());
        members.insert("title".into(), self.title.into());
        members.insert("status".into(), self.status.into());
        members.insert("detail".into(), self.detail.into());
        members
    }
}

impl Problem {
    /// The answer, without particulars.
    #[must_use]
    pub(crate) fn response(self) -> Response<Body> {
        let ready = &READY[self as usize];
        let turn = TURN.with(|turn| turn.replace((turn.get() + 1) % JITTER));
        let mut response = Response::new(Body::whole(ready.body.clone()));
        *response.status_mut() = ready.status;
        *response.headers_mut() = ready.headers[turn].clone();
        response
    }

    /// The answer with members of its own beside the common ones, or instead of `detail`.
    #[must_use]
    pub(crate) fn with<const N: usize>(self, particulars: [(&str, Value); N]) -> Response<Body> {
        let mut members = KINDS[self as usize].members();
        members.extend(particulars.map(|(name, value)| (name.to_owned(), value)));
        let mut response = self.response();
        *response.body_mut() = Body::whole(Value::Object(members).to_string());
        response
    }

    /// The answer with a detail of its own.
    #[must_use]
    pub(crate) fn because(self, detail: &str) -> Response<Body> {
        self.with([("detail", json!(detail))])
    }

    /// The answer with exactly this wait, rounded up to whole seconds; never less than the kind's own shortest.
    #[must_use]
    pub(crate) fn after_ms(self, wait_ms: u64) -> Response<Body> {
        let mut response = self.response();
        let shortest = KINDS[self as usize].retry_after_s.map_or(1, |(shortest, _)| shortest);
        let seconds = wait_ms.div_ceil(1_000).max(shortest);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        response
    }
}

/// 405 with the methods that are allowed.
#[must_use]
pub(crate) fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = Problem::MethodNotAllowed.response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: Response<Body>) -> Value {
        let Body::Whole(Some(bytes)) = response.into_body() else { panic!("a whole body") };
        serde_json::from_slice(&bytes).expect("json")
    }

    #[test]
    fn a_problem_says_its_word_and_status() {
        for (at, kind) in KINDS.iter().enumerate() {
            let problem = body(Response::new(Body::whole(READY[at].body.clone())));
            assert!(problem["type"].as_str().expect("a type").ends_with(&format!("/{}", kind.word)));
            assert_eq!(problem["status"], kind.status);
        }
        assert_eq!(Problem::Uncertain.response().status(), 503);
    }

    #[test]
    fn waits_are_spread_but_the_opening_is_exact() {
        let mut waits: Vec<_> = (0..JITTER)
            .map(|_| Problem::Busy.response().headers()[RETRY_AFTER].to_str().expect("text").to_owned())
            .collect();
        waits.sort_unstable();
        waits.dedup();
        assert_eq!(waits, ["1", "2", "3", "4"]);
        assert_eq!(Problem::NotStarted.after_ms(19_001).headers()[RETRY_AFTER], "20");
        assert_eq!(Problem::NotStarted.after_ms(1).headers()[RETRY_AFTER], "1");
        assert!(Problem::SoldOut.response().headers().get(RETRY_AFTER).is_none());
    }

    #[test]
    fn particulars_stand_beside_the_common_members() {
        let problem = body(Problem::NotEnough.with([("remaining", json!(3))]));
        assert_eq!((problem["remaining"].clone(), problem["status"].clone()), (json!(3), json!(409)));
        assert_eq!(body(Problem::BadRequest.because("no"))["detail"], "no");
    }
}
