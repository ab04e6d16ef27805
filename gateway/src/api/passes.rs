//! Before the button: the question and the pass. Refused in the order of a purchase, so that nobody is asked a question for
//! a sale that cannot be won.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use stock::ledger::{GrantOutcome, GrantRequest, counts_until_ms};
use stock::{OrderId, Timestamp, UserId};

use super::{Api, Ask, Reply, json, png};
use crate::admission::challenge::{CheckError, Puzzle};
use crate::admission::pass::Pass;
use crate::catalog::Sale;
use crate::http::problem::Problem;

/// What may be wished for a question.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    kind: Option<WishedKind>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WishedKind {
    /// For buyers who cannot see a picture.
    ProofOfWork,
}

#[derive(Serialize)]
struct Asked<'a> {
    challenge: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    puzzle: Option<&'a Puzzle>,
    expires_at: Timestamp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    challenge: Option<String>,
    answer: Option<Said>,
}

/// A proof of work is a number, and may be sent as one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "send a text or a whole number")]
enum Said {
    Text(String),
    Number(u64),
}

#[derive(Serialize)]
struct Granted<'a> {
    pass: &'a str,
    order_id: OrderId,
    expires_at: Timestamp,
}

/// Whoever may be asked a question or be given a pass.
struct Admitted {
    sale: Arc<Sale>,
    user: UserId,
    /// By the sale's clock.
    now_ms: u64,
}

impl Api {
    pub(super) async fn challenge(&self, ask: &Ask<'_>, sale: &str, body: Incoming) -> Reply {
        let question: Question = match self.json(ask, body).await {
            Ok(question) => question,
            Err(refusal) => return refusal,
        };
        let Admitted { sale, user, now_ms } = match self.admit(ask, sale) {
            Ok(admitted) => admitted,
            Err(refusal) => return refusal,
        };
        let Some(challenges) = &self.gateway.challenges else {
            return Problem::BadRequest.because("this gateway asks no questions: ask for a pass at once");
        };
        if sale.gate_full(now_ms) {
            return Problem::GateFull.response();
        }
        let issued = match question.kind {
            None => challenges.issue(&sale.id, &user, now_ms),
            Some(WishedKind::ProofOfWork) => challenges.issue_alternative(&sale.id, &user, now_ms),
        };
        json(
            StatusCode::CREATED,
            &Asked {
                challenge: &issued.challenge,
                kind: issued.kind.as_str(),
                image_url: issued.image_url.as_deref(),
                puzzle: issued.puzzle.as_ref(),
                expires_at: Timestamp(issued.expires_at_ms),
            },
        )
    }

    pub(super) async fn pass(&self, ask: &Ask<'_>, sale: &str, body: Incoming) -> Reply {
        let Answer { challenge, answer } = match self.json(ask, body).await {
            Ok(answer) => answer,
            Err(refusal) => return refusal,
        };
        let Admitted { sale, user, now_ms } = match self.admit(ask, sale) {
            Ok(admitted) => admitted,
            Err(refusal) => return refusal,
        };
        let answer = answer.map(|said| match said {
            Said::Text(text) => text,
            Said::Number(number) => number.to_string(),
        });
        match (&self.gateway.challenges, &challenge, &answer) {
            (None, None, None) => {}
            (None, ..) => return Problem::BadRequest.because("this gateway asks no questions: send {}"),
            (Some(challenges), Some(challenge), Some(answer)) => {
                match challenges.check(challenge, answer, &sale.id, &user, now_ms) {
                    Ok(()) => {}
                    Err(CheckError::WrongAnswer) => return Problem::WrongAnswer.response(),
                    Err(CheckError::Expired) => return Problem::ChallengeExpired.response(),
                    Err(error @ CheckError::Malformed) => {
                        return Problem::BadRequest.because(&error.to_string());
                    }
                }
            }
            (Some(_), ..) => return Problem::BadRequest.because("send {challenge, answer}"),
        }
        let fresh = Pass {
            order_id: OrderId::new(now_ms, &sale.id, (self.gateway.random)()),
            // Its time counts from the opening, should that be later.
            expires_at_ms: now_ms.max(sale.starts_at_ms) + self.gateway.pass_ttl_ms,
            sale: sale.id.clone(),
            user,
        };
        match self.grant(&sale, fresh, now_ms).await {
            Ok(pass) => json(
                StatusCode::CREATED,
                &Granted {
                    pass: &self.gateway.passes.issue(&pass),
                    order_id: pass.order_id,
                    expires_at: Timestamp(pass.expires_at_ms),
                },
            ),
            Err(refusal) => refusal,
        }
    }

    /// The gate's consent, if the sale has a gate; otherwise nobody is asked.
    async fn grant(&self, sale: &Sale, fresh: Pass, now_ms: u64) -> Result<Pass, Reply> {
        if sale.definition.passes_per_unit == 0 {
            return Ok(fresh);
        }
        let request = GrantRequest {
            user: fresh.user.clone(),
            order_id: fresh.order_id,
            expires_at_ms: fresh.expires_at_ms,
            counts_until_ms: counts_until_ms(
                fresh.order_id,
                now_ms.max(sale.starts_at_ms),
                fresh.expires_at_ms,
            ),
        };
        match self.gateway.stock.grant(&sale.id, sale.epoch, &request).await {
            Ok((GrantOutcome::Granted, _)) => Ok(fresh),
            Ok((GrantOutcome::Existing { order_id, expires_at_ms }, _)) => {
                Ok(Pass { order_id, expires_at_ms, ..fresh })
            }
            Ok((GrantOutcome::GateFull, _)) => {
                sale.remember_gate_full(now_ms);
                Err(Problem::GateFull.response())
            }
            Ok((GrantOutcome::SoldOut, _)) => Err(Problem::SoldOut.response()),
            // Whether it was counted or not: asking again returns the live pass.
            Err(_) => Err(Problem::Busy.response()),
        }
    }

    /// The refusals of a purchase that do not need a pass, in their order.
    fn admit(&self, ask: &Ask<'_>, sale: &str) -> Result<Admitted, Reply> {
        ask.refuse_cross_site()?;
        let gateway = &self.gateway;
        let Some(sale) = gateway.catalog.offer().sale(sale).cloned() else {
            return Err(Problem::UnknownSale.response());
        };
        if sale.sold_out() {
            return Err(Problem::SoldOut.response());
        }
        if sale.paused {
            return Err(Problem::Paused.response());
        }
        let now_ms = sale.now_ms();
        let opens_ms = sale.starts_at_ms.saturating_sub(gateway.opens_before_ms);
        if now_ms < opens_ms {
            return Err(Problem::NotStarted.after_ms(opens_ms - now_ms));
        }
        if now_ms >= sale.ends_at_ms {
            return Err(Problem::Ended.response());
        }
        let user = self.user(ask)?;
        let by_address = gateway.limits_by_address.then(|| self.client(ask).address);
        let address = by_address.map_or(Ok(()), |address| gateway.limits.check_address(address));
        if address.and_then(|()| gateway.limits.check_user(&user)).is_err() {
            return Err(Problem::SlowDown.response());
        }
        Ok(Admitted { sale, user, now_ms })
    }

    /// A question's picture: whoever has its token may see it.
    pub(super) fn picture(&self, name: &str) -> Reply {
        let image = self.gateway.challenges.as_ref().and_then(|challenges| challenges.image(name));
        image.map_or_else(|| Problem::NotFound.response(), png)
    }
}
