//! `POST /api/v1/payments/…`: what payment providers call. From HTTP to the port, and back to the words that each provider
//! understands: only the right ones stop its repeats. No user, no pass; never believes anything that the port has not verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use serde_json::json;

use super::{Api, Ask, Reply, json as json_reply};
use crate::http::body::Body;
use crate::http::connection::closing_after;
use crate::http::problem::Problem;
use crate::metrics::PaymentOutcome;
use crate::ports::{PaymentAnswer, PaymentProvider, PaymentRefusal, PortError, in_time};

/// Largest body of a provider's call, bytes: theirs have up to some thousand, with every coupon of a payment in it.
const PAYMENT_BODY_BYTES_MAX: usize = 32_768;
/// Calls between their body and their answer at once, in the whole process: beyond it they are told to come again.
const PAYMENTS_IN_FLIGHT_MAX: usize = 64;

/// What of payments the threads share.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<AtomicUsize>);

/// One call's place, given back when it is dropped.
struct Place(Arc<AtomicUsize>);

impl InFlight {
    fn enter(&self) -> Option<Place> {
        // Relaxed: the count guards no other memory.
        let taken = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.0.clone());
        (taken < PAYMENTS_IN_FLIGHT_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Serialize)]
struct Nothing {}

impl Api {
    /// A provider's call, named by the last part of the path.
    pub(super) async fn payment(&self, ask: &Ask<'_>, path: &str, body: Incoming) -> Reply {
        // 1. Whose calls are taken here.
        let named = PaymentProvider::ALL.iter().find(|provider| provider.path() == path);
        let Some(&provider) = named.filter(|provider| self.gateway.payments.takes(**provider)) else {
            return Problem::NotFound.response();
        };
        // 2. Its body.
        let bytes = match self.bytes_up_to(ask, body, PAYMENT_BODY_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(refusal) => {
                self.gateway.server_metrics.payment(provider, PaymentOutcome::BadRequest);
                return unread(provider, refusal);
            }
        };
        // 3. The rest.
        self.payment_of(provider, ask.headers, &bytes).await
    }

    /// The same, of a call that is read.
    pub(super) async fn payment_of(
        &self,
        provider: PaymentProvider,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Reply {
        let gateway = &self.gateway;
        let result = match gateway.payments_in_flight.enter() {
            Some(_place) => {
                let pairs: Vec<_> =
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
                in_time(gateway.payments.call(provider, &pairs, body)).await
            }
            None => Err(PortError::Unavailable("too many calls at once".into())),
        };
        gateway.server_metrics.payment(provider, outcome(&result));
        if let Ok(
            PaymentAnswer::Received { order_id: Some(order_id) }
            | PaymentAnswer::AmountMismatch { order_id: Some(order_id) },
        ) = &result
        {
            gateway.streams.changed(*order_id);
        }
        answer(provider, result)
    }
}

fn outcome(result: &Result<PaymentAnswer, PortError>) -> PaymentOutcome {
    match result {
        Ok(PaymentAnswer::Received { .. }) => PaymentOutcome::Received,
        Ok(PaymentAnswer::AmountMismatch { .. }) => PaymentOutcome::AmountMismatch,
        Ok(PaymentAnswer::Refused(PaymentRefusal::Unsigned(_))) => PaymentOutcome::Unsigned,
        Ok(PaymentAnswer::Refused(PaymentRefusal::Malformed(_))) => PaymentOutcome::BadRequest,
        Ok(PaymentAnswer::Refused(PaymentRefusal::NotOurs(_))) => PaymentOutcome::NotOurs,
        Ok(PaymentAnswer::Refused(PaymentRefusal::OurFault(_))) => PaymentOutcome::OurFault,
        Err(_) => PaymentOutcome::Busy,
    }
}

/// What the provider hears. Success is said only of what is durable, or changes nothing.
fn answer(provider: PaymentProvider, result: Result<PaymentAnswer, PortError>) -> Reply {
    use PaymentProvider::StandardWebhooks;
    let refusal = match result {
        // WeChat Pay and Alipay can do nothing about an amount: it goes back, and a repeat would say the same.
        Ok(PaymentAnswer::AmountMismatch { .. }) if provider == StandardWebhooks => {
            return Problem::AmountMismatch.response();
        }
        Ok(PaymentAnswer::Received { .. } | PaymentAnswer::AmountMismatch { .. }) => {
            return received(provider);
        }
        Ok(PaymentAnswer::Refused(refusal)) => refusal,
        Err(PortError::Invalid(problem)) => PaymentRefusal::Malformed(problem),
        Err(_) => return in_its_words(provider, Problem::Busy.response(), "busy: send it again"),
    };
    let (problem, why) = match refusal {
        PaymentRefusal::Unsigned(why) => (Problem::SignatureInvalid, why),
        PaymentRefusal::Malformed(why) => (Problem::BadRequest, why),
        PaymentRefusal::NotOurs(why) => (Problem::NotOurs, why),
        PaymentRefusal::OurFault(why) => (Problem::Internal, why),
    };
    in_its_words(provider, problem.because(&why), &why)
}

fn received(provider: PaymentProvider) -> Reply {
    match provider {
        PaymentProvider::StandardWebhooks => json_reply(StatusCode::OK, &Nothing {}),
        PaymentProvider::WechatPay => {
            json_reply(StatusCode::OK, &json!({ "code": "SUCCESS", "message": "OK" }))
        }
        PaymentProvider::Alipay => text(StatusCode::OK, "success"),
    }
}

/// A body that was not read: the connection ends with the answer, as it would for anybody.
fn unread(provider: PaymentProvider, refusal: Reply) -> Reply {
    match provider {
        PaymentProvider::StandardWebhooks => refusal,
        _ => closing_after(in_its_words(provider, refusal, "the body is too large or came too slowly")),
    }
}

/// A refusal as the provider understands it; ours hears a problem, as everybody does.
fn in_its_words(provider: PaymentProvider, refusal: Reply, why: &str) -> Reply {
    match provider {
        PaymentProvider::StandardWebhooks => refusal,
        PaymentProvider::WechatPay => {
            json_reply(refusal.status(), &json!({ "code": "FAIL", "message": why }))
        }
        PaymentProvider::Alipay => text(refusal.status(), "failure"),
    }
}

fn text(status: StatusCode, words: &'static str) -> Reply {
    let mut response = Reply::new(Body::whole(words));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
