//! The shop's word around a closing: asked before it whether an order is paid after all, told after it. A service that is down holds up no
//! closing: no answer closes, and after one nobody is asked for a while.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use stock::{OrderStatus, Timestamp};
use tokio::time::Instant;

use super::outward::{Answer, Service};
use super::payments::Provider;
use crate::database::{Capture, CloseCause, Database, DatabaseError, Due, Standing};

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Calls at once.
const CALLS_MAX: usize = 32;
/// How long a service that gave no answer is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// Both addresses, each if it is configured.
#[derive(Default)]
pub struct Shop {
    check: Option<Service>,
    close: Option<Service>,
    /// When the check last had no answer.
    silent_at: Mutex<Option<Instant>>,
}

/// A check's answer where the order is paid: as a callback would say it.
#[derive(Debug, Deserialize)]
struct Said {
    state: String,
    payment_id: String,
    amount: u64,
    currency: String,
    #[serde(default)]
    paid_at: Option<Timestamp>,
}

impl Shop {
    /// Asks `check` before each closing, and tells `close` after it.
    #[must_use]
    pub fn new(check: Option<Service>, close: Option<Service>) -> Self {
        Self { check, close, silent_at: Mutex::new(None) }
    }

    /// Writes the payments that the shop knows of for those of `due` that are unpaid. A crash between a capture and the closing leaves a paid
    /// order, which no closing touches.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn ask(&self, database: &Database, due: &[Due]) -> Result<(), DatabaseError> {
        let Some(check) = &self.check else { return Ok(()) };
        if self.silent_at.lock().is_some_and(|at| at.elapsed() < LEFT_ALONE) {
            return Ok(());
        }
        let orders: Vec<_> = due.iter().map(|due| due.order_id).collect();
        let standings = database.statuses(&orders).await?;
        let is_unpaid = |(due, standing): (&Due, Option<Standing>)| {
            standing.filter(|standing| standing.status == OrderStatus::Unpaid).map(|_| due.clone())
        };
        let unpaid: Vec<Due> = due.iter().zip(standings).filter_map(is_unpaid).collect();
        let now = database.now().await?;
        let mut asking =
            stream::iter(unpaid).map(|due| self.paid(check, due, now)).buffer_unordered(CALLS_MAX);
        while let Some(paid) = asking.next().await {
            let Some(capture) = paid else { continue };
            match database.capture(&capture).await {
                Ok(_) => {}
                Err(error @ DatabaseError::Invalid(_)) => {
                    tracing::warn!(payment = capture.payment_id, %error, "the shop knows of a payment that cannot be kept");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn paid(&self, check: &Service, due: Due, now: Timestamp) -> Option<Capture> {
        // Another one has had no answer meanwhile.
        if self.silent_at.lock().is_some_and(|at| at.elapsed() < LEFT_ALONE) {
            return None;
        }
        let order = due.order_id.to_string();
        let body = json!({ "type": "order.check", "order_id": order, "sale": due.sale });
        let answer = match check.post(&order, now.0, &body, ANSWER_MAX).await {
            Ok(answer) if answer.status < 500 => answer,
            Ok(answer) => return self.fell_silent(&format!("it answered {}", answer.status)),
            Err(error) => return self.fell_silent(&error),
        };
        let said: Said = serde_json::from_slice(&answer.body).ok()?;
        (answer.status < 300 && said.state == "paid").then(|| Capture {
            provider: Provider::StandardWebhooks.as_str().to_owned(),
            payment_id: said.payment_id,
            order_id: Some(due.order_id),
            trade_ref: order,
            amount: said.amount,
            currency: said.currency,
            paid_at: said.paid_at,
        })
    }

    fn fell_silent<T>(&self, why: &str) -> Option<T> {
        tracing::warn!(why, "payment.check_url gives no answer: orders are closed without it for a while");
        *self.silent_at.lock() = Some(Instant::now());
        None
    }

    /// Says once that these are closed. Who must hear it for certain subscribes to `order.closed`.
    pub(super) async fn tell(&self, closed: Vec<Due>, cause: CloseCause, now: Timestamp) {
        let Some(close) = &self.close else { return };
        let mut telling =
            stream::iter(closed).map(|due| told(close, due, cause, now)).buffer_unordered(CALLS_MAX);
        while let Some(told) = telling.next().await {
            if let Err(error) = told {
                tracing::warn!(error, "payment.close_url was not told of closed orders");
                return;
            }
        }
    }
}

async fn told(close: &Service, due: Due, cause: CloseCause, now: Timestamp) -> Result<Answer, String> {
    let body = json!({ "type": "order.closed", "order_id": due.order_id, "sale": due.sale, "cause": cause.as_str() });
    close.post(&format!("{}-closed", due.order_id), now.0, &body, ANSWER_MAX).await
}
