//! Money out: asks the shop's own service to send refunds back, each under one id at every try, with longer and longer pauses for days.
//! Floodgate holds no merchant's certificate and calls no provider. Decides nothing of who gets money: the rows have it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::outward::{Answer, Service};
use crate::database::{Database, DatabaseError, OpenRefunds, RefundOutcome, RefundRow, RefundTold};
use crate::metrics::{Tried, WorkerMetrics};

/// Between two looks for refunds that are due.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two counts of those that wait.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Refunds in one look, and calls at once.
const PAGE: usize = 64;
const CALLS_MAX: usize = 8;
/// The first pause, which doubles …
const PAUSE_MS: u64 = 1_000;
/// … to an hour …
const PAUSE_MS_MAX: u64 = 3_600_000;
/// … for a week; then a person has to look.
const TRIED_MS_MAX: u64 = 7 * 86_400_000;

/// Sends refunds. Its owner drives [`Refunds::run`].
pub struct Refunds {
    database: Database,
    service: Arc<Service>,
    metrics: WorkerMetrics,
}

/// What the shop's service may say in the body of a 2xx. Without a word the refund is on its way.
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    provider_refund_id: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

impl Refunds {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(database: Database, service: Service, metrics: WorkerMetrics) -> Self {
        Self { database, service: Arc::new(service), metrics }
    }

    /// Sends until `shutdown` is true or its sender gone. A call under way then is repeated by the next process, under the same id.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        loop {
            let more = tokio::select! {
                biased;
                _ = shutdown.wait_for(|down| *down) => return,
                sent = self.pass() => match sent {
                    Ok(sent) => sent == PAGE,
                    Err(error) => {
                        tracing::warn!(%error, "refunds cannot be read or written down; they are tried again");
                        false
                    }
                },
            };
            if !more {
                tokio::select! {
                    biased;
                    _ = shutdown.wait_for(|down| *down) => return,
                    () = sleep(INTERVAL) => {}
                }
            }
        }
    }

    /// Sends what is due; answers with how many.
    ///
    /// # Errors
    /// The database's: what was sent and not written down is sent again, under the same id.
    pub async fn pass(&self) -> Result<usize, DatabaseError> {
        let due = self.database.refunds_due(PAGE).await?;
        let count = due.len();
        let mut sending =
            futures_util::stream::iter(due).map(|refund| self.send(refund)).buffer_unordered(CALLS_MAX);
        let mut failed = None;
        while let Some(sent) = sending.next().await {
            failed = sent.err().or(failed);
        }
        failed.map_or(Ok(count), Err)
    }

    async fn send(&self, refund: RefundRow) -> Result<(), DatabaseError> {
        let payment = self.database.payment(&refund.provider, &refund.payment_id).await?;
        let payment = payment.map(|(payment, _)| payment);
        let now = self.database.now().await?;
        let body = json!({
            "type": "refund.requested",
            "refund_id": refund.refund_id,
            "provider": refund.provider,
            "payment_id": refund.payment_id,
            "order_id": refund.order_id,
            "trade_ref": payment.as_ref().map(|payment| &payment.trade_ref),
            "amount": refund.amount,
            "currency": payment.as_ref().map(|payment| &payment.currency),
            "whole": refund.whole,
            "reason": refund.reason,
        });
        // A crash or a lost answer after this leaves a refund that is due as before: the service knows the id.
        let answer = self.service.post(&refund.refund_id, now.0, &body, ANSWER_MAX).await;
        let (outcome, provider_refund_id) = outcome_of(&refund, answer, now.0);
        let (word, is_stuck) = match &outcome {
            RefundOutcome::Succeeded => ("succeeded", false),
            RefundOutcome::Sent => ("sent", false),
            RefundOutcome::Again { .. } => ("again", false),
            RefundOutcome::Failed(_) => ("stuck", true),
        };
        if is_stuck {
            tracing::error!(refund = %refund.refund_id, ?outcome, "a refund is stuck: somebody has to look; `floodgate refunds list`");
        }
        let told = RefundTold { refund_id: refund.refund_id, outcome, provider_refund_id };
        self.database.refund_told(&told).await?;
        self.metrics.refund_tries.get_or_create(&Tried { outcome: word }).inc();
        Ok(())
    }
}

/// Counts the refunds that wait until `shutdown` is true or its sender gone, and says so where nobody sends them. `has_service`: here
/// they would be sent.
pub async fn watch_refunds(
    database: Database,
    metrics: WorkerMetrics,
    has_service: bool,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut was_stuck = false;
    loop {
        match database.open_refunds().await {
            Ok(open) => {
                metrics.refunds_wait(open);
                let is_stuck = metrics.are_refunds_stuck();
                if is_stuck && !was_stuck {
                    let OpenRefunds { overdue, stuck, .. } = open;
                    let hint = if has_service {
                        ""
                    } else {
                        "; payment.refund_url is not set, so nothing is sent from here"
                    };
                    tracing::error!(
                        overdue,
                        stuck,
                        "money is not sent back: see `floodgate refunds list`{hint}"
                    );
                }
                was_stuck = is_stuck;
            }
            Err(error) => tracing::debug!(%error, "refunds that wait cannot be counted"),
        }
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => return,
            () = sleep(WATCH_INTERVAL) => {}
        }
    }
}

/// What an answer means. Only a clear no is final: anything else is asked again.
fn outcome_of(
    refund: &RefundRow,
    answer: Result<Answer, String>,
    now_ms: u64,
) -> (RefundOutcome, Option<String>) {
    let again = |error: String| {
        if now_ms.saturating_sub(refund.created_at.0) > TRIED_MS_MAX {
            return (RefundOutcome::Failed(format!("no good answer for a week; the last: {error}")), None);
        }
        let after_ms = (PAUSE_MS << refund.attempts.min(16)).min(PAUSE_MS_MAX);
        (RefundOutcome::Again { error, after_ms }, None)
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return again(error),
    };
    let said: Said = serde_json::from_slice(&answer.body).unwrap_or_default();
    let words = || said.reason.clone().unwrap_or_else(|| format!("the service answered {}", answer.status));
    match answer.status {
        200..=299 => {
            let outcome = match said.state.as_deref() {
                Some("succeeded") => RefundOutcome::Succeeded,
                Some("failed") => RefundOutcome::Failed(words()),
                _ => RefundOutcome::Sent,
            };
            (outcome, said.provider_refund_id)
        }
        // Too slow, in conflict with itself, too early, too many: later.
        408 | 409 | 425 | 429 => again(words()),
        400..=499 => (RefundOutcome::Failed(words()), None),
        _ => again(words()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use stock::Timestamp;

    use super::*;
    use crate::database::RefundState;

    const DAY_MS: u64 = 86_400_000;

    fn refund(attempts: u32) -> RefundRow {
        RefundRow {
            refund_id: "r".into(),
            provider: "sandbox".into(),
            payment_id: "t".into(),
            order_id: None,
            amount: 1,
            whole: true,
            reason: None,
            requested_by: "floodgate".into(),
            state: RefundState::Requested,
            attempts,
            next_try_at: None,
            provider_refund_id: None,
            last_error: None,
            created_at: Timestamp(DAY_MS),
            updated_at: Timestamp(DAY_MS),
        }
    }

    fn outcome(status: u16, body: &str) -> RefundOutcome {
        outcome_of(&refund(0), Ok(Answer { status, body: body.into() }), DAY_MS).0
    }

    #[test]
    fn only_a_clear_no_is_final() {
        assert_eq!(
            outcome(200, r#"{"state":"succeeded","provider_refund_id":"p"}"#),
            RefundOutcome::Succeeded
        );
        assert_eq!(
            outcome(200, r#"{"state":"failed","reason":"closed account"}"#),
            RefundOutcome::Failed("closed account".into())
        );
        for body in ["", "<html>", "{}", r#"{"state":"processing"}"#] {
            assert_eq!(outcome(202, body), RefundOutcome::Sent);
        }
        for status in [301, 408, 409, 425, 429, 500, 503, 599] {
            assert!(matches!(outcome(status, "{}"), RefundOutcome::Again { .. }), "{status}");
        }
        for status in [400, 401, 404, 422] {
            assert!(matches!(outcome(status, "{}"), RefundOutcome::Failed(_)), "{status}");
        }
    }

    #[test]
    fn pauses_grow_to_an_hour_and_end_after_a_week() {
        let pause = |attempts, now_ms| match outcome_of(&refund(attempts), Err("down".into()), now_ms).0 {
            RefundOutcome::Again { after_ms, .. } => Some(after_ms),
            _ => None,
        };
        let pauses: Vec<_> =
            [0, 1, 5, 11, 12, u32::MAX].map(|attempts| pause(attempts, DAY_MS).unwrap()).into();
        assert_eq!(pauses, [1_000, 2_000, 32_000, 2_048_000, PAUSE_MS_MAX, PAUSE_MS_MAX]);
        assert!(pause(40, 8 * DAY_MS).is_some() && pause(40, 8 * DAY_MS + 1).is_none());
    }
}
