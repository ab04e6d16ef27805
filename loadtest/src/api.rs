//! The calls that a buyer and an operator make, and what their answers mean. Knows the public interface, decides nothing.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::{Answer, Call, Client, Lost};

/// The word that a refusal's `type` ends in, as far as the interface names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    SoldOut,
    LimitReached,
    NotEnough,
    SlowDown,
    GateFull,
    Busy,
    Paused,
    NotStarted,
    Ended,
    PassUsed,
    PassInvalid,
    UnknownSale,
    WrongAnswer,
    ChallengeExpired,
    BadRequest,
    TooLarge,
    Unauthorized,
    /// A 4xx or 503 with a word that the interface does not name.
    Unnamed,
}

const REFUSALS: [(Refusal, &str); 18] = [
    (Refusal::SoldOut, "sold-out"),
    (Refusal::LimitReached, "limit-reached"),
    (Refusal::NotEnough, "not-enough"),
    (Refusal::SlowDown, "slow-down"),
    (Refusal::GateFull, "gate-full"),
    (Refusal::Busy, "busy"),
    (Refusal::Paused, "paused"),
    (Refusal::NotStarted, "not-started"),
    (Refusal::Ended, "ended"),
    (Refusal::PassUsed, "pass-used"),
    (Refusal::PassInvalid, "pass-invalid"),
    (Refusal::UnknownSale, "unknown-sale"),
    (Refusal::WrongAnswer, "wrong-answer"),
    (Refusal::ChallengeExpired, "challenge-expired"),
    (Refusal::BadRequest, "bad-request"),
    (Refusal::TooLarge, "too-large"),
    (Refusal::Unauthorized, "unauthorized"),
    (Refusal::Unnamed, "unnamed"),
];

impl Refusal {
    /// The word as it stands in the interface.
    pub(crate) fn word(self) -> &'static str {
        REFUSALS.iter().find(|(refusal, _)| *refusal == self).map_or("unnamed", |(_, word)| word)
    }

    /// A refusal of this moment: the same request may be granted later.
    pub(crate) fn passes_by(self) -> bool {
        matches!(self, Self::SlowDown | Self::GateFull | Self::Busy | Self::Paused | Self::NotStarted)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What became of one press of the button.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Press {
    /// 202: promised.
    Accepted { order_id: String, poll_after: Duration },
    /// A definite no to this attempt.
    Refused(Refusal, Option<u64>),
    /// 503 `uncertain`: neither yes nor no yet.
    Uncertain { order_id: Option<String>, retry_after_s: Option<u64> },
    /// An answer that the interface does not know: status and the start of its body.
    Strange(String),
    /// See [`Lost`].
    Lost(Lost),
}

/// What became of asking for a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The right to try, and the one order that it can become.
    Granted {
        pass: String,
        order_id: String,
    },
    Refused(Refusal, Option<u64>),
    Strange(String),
    Lost(Lost),
}

/// What `GET /orders/{id}` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    Found {
        status: String,
        poll_after: Duration,
    },
    /// 404: there is no such order for this user.
    Absent,
    /// Not now (503, 429), a strange answer, or none.
    Unknown(String),
}

/// The question asked before a pass is granted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Challenge {
    pub(crate) challenge: String,
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) puzzle: Option<Puzzle>,
}

/// A proof of work.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Puzzle {
    pub(crate) algorithm: String,
    pub(crate) prefix: String,
    pub(crate) bits: u32,
}

/// `GET /admin/v1/sales/{sale}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) total: i64,
    pub(crate) remaining: i64,
    pub(crate) pending: i64,
    pub(crate) confirmed: i64,
    pub(crate) sold: i64,
    pub(crate) backlog: u64,
    pub(crate) at_rest: bool,
    #[serde(default)]
    pub(crate) epoch: u64,
}

/// The part of a sale that a buyer may see and this crowd needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Sale {
    pub(crate) id: String,
    pub(crate) total: u32,
    #[serde(default = "one")]
    pub(crate) per_user_limit: u32,
    pub(crate) starts_at: String,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
struct Problem<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(default)]
    order_id: Option<String>,
}

#[derive(Deserialize)]
struct OrderAnswer {
    order_id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    poll_after_ms: Option<u64>,
}

impl OrderAnswer {
    /// Polls are spaced: neither faster than 5 a second nor slower than one in 5 s.
    fn poll_after(&self) -> Duration {
        Duration::from_millis(self.poll_after_ms.unwrap_or(500).clamp(200, 5_000))
    }
}

#[derive(Deserialize)]
struct PassAnswer {
    pass: String,
    order_id: String,
}

/// The buyers' side of a target: one gateway, or several between which the calls alternate, as behind a balancer. So a pass of
/// one is used at another, and asked about at a third.
pub(crate) struct Shop {
    clients: Vec<Client>,
    calls: AtomicUsize,
}

impl Shop {
    /// `clients` has at least one.
    pub(crate) fn new(clients: Vec<Client>) -> Self {
        Self { clients, calls: AtomicUsize::new(0) }
    }

    /// Whose turn it is.
    fn client(&self) -> &Client {
        &self.clients[self.calls.fetch_add(1, Ordering::Relaxed) % self.clients.len()]
    }

    /// `POST /api/v1/sales/{sale}/challenges`: the question, or the refusal's text.
    pub(crate) async fn challenge(&self, sale: &str, token: &str, from: Ipv4Addr) -> Result<Challenge, Pass> {
        let path = format!("/api/v1/sales/{sale}/challenges");
        let call = Call { forwarded_for: Some(from), ..post(&path, Some(token), None, "{}") };
        match self.client().send(&call).await {
            Ok(answer) if answer.status == 201 => {
                serde_json::from_slice(&answer.body).map_err(|_| Pass::Strange(excerpt(&answer)))
            }
            Ok(answer) => Err(match refusal(&answer) {
                Some(refusal) => Pass::Refused(refusal, answer.retry_after_s),
                None => Pass::Strange(excerpt(&answer)),
            }),
            Err(lost) => Err(Pass::Lost(lost)),
        }
    }

    /// `POST /api/v1/sales/{sale}/passes` with `body` (`{}`, or challenge and answer).
    pub(crate) async fn pass(&self, sale: &str, token: &str, from: Ipv4Addr, body: &str) -> Pass {
        let path = format!("/api/v1/sales/{sale}/passes");
        let call = Call { forwarded_for: Some(from), ..post(&path, Some(token), None, body) };
        match self.client().send(&call).await {
            Ok(answer) if answer.status == 201 => match serde_json::from_slice::<PassAnswer>(&answer.body) {
                Ok(PassAnswer { pass, order_id }) => Pass::Granted { pass, order_id },
                Err(_) => Pass::Strange(excerpt(&answer)),
            },
            Ok(answer) => match refusal(&answer) {
                Some(refusal) => Pass::Refused(refusal, answer.retry_after_s),
                None => Pass::Strange(excerpt(&answer)),
            },
            Err(lost) => Pass::Lost(lost),
        }
    }

    /// `POST /api/v1/sales/{sale}/orders`: the button.
    pub(crate) async fn press(&self, path: &str, pass: &str, from: Ipv4Addr, body: &str) -> Press {
        let call = Call { forwarded_for: Some(from), ..post(path, None, Some(pass), body) };
        match self.client().send(&call).await {
            Ok(answer) => press_outcome(&answer),
            Err(lost) => Press::Lost(lost),
        }
    }

    /// The button, pressed by somebody whose network goes away in the middle.
    pub(crate) async fn press_and_hang_up(
        &self,
        path: &str,
        pass: &str,
        from: Ipv4Addr,
        whole: bool,
    ) -> Result<(), Lost> {
        let call = Call { forwarded_for: Some(from), ..post(path, None, Some(pass), "{}") };
        self.client().hang_up(&call, whole).await
    }

    /// `GET /api/v1/orders/{order}` with the pass that names it.
    pub(crate) async fn status(&self, order: &str, pass: &str, from: Ipv4Addr) -> Status {
        let path = format!("/api/v1/orders/{order}");
        let call = Call {
            method: "GET",
            path: &path,
            pass: Some(pass),
            forwarded_for: Some(from),
            ..Call::default()
        };
        match self.client().send(&call).await {
            Ok(answer) if answer.status == 200 => match serde_json::from_slice::<OrderAnswer>(&answer.body) {
                Ok(found) => Status::Found { poll_after: found.poll_after(), status: found.status },
                Err(_) => Status::Unknown(excerpt(&answer)),
            },
            Ok(answer) if answer.status == 404 => Status::Absent,
            Ok(answer) => Status::Unknown(excerpt(&answer)),
            Err(lost) => Status::Unknown(lost.to_string()),
        }
    }

    /// `GET /api/v1/sales/{sale}`.
    pub(crate) async fn sale(&self, sale: &str) -> Result<Sale, String> {
        get(self.client(), &format!("/api/v1/sales/{sale}"), None).await
    }

    /// `GET /api/v1/time`, as RFC 3339.
    pub(crate) async fn time(&self) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Time {
            now: String,
        }
        get::<Time>(self.client(), "/api/v1/time", None).await.map(|time| time.now)
    }
}

/// One admin listener and its token.
pub(crate) struct Listener {
    pub(crate) client: Client,
    pub(crate) token: Option<String>,
}

/// The operator's side of a target: the admin listener of each gateway. Changes go through the first.
pub(crate) struct Operator {
    listeners: Vec<Listener>,
}

impl Operator {
    /// `listeners` has at least one.
    pub(crate) fn new(listeners: Vec<Listener>) -> Self {
        Self { listeners }
    }

    /// Whether `/readyz` says yes at all of them.
    pub(crate) async fn ready(&self) -> bool {
        let call = Call { method: "GET", path: "/readyz", ..Call::default() };
        for listener in &self.listeners {
            if !matches!(listener.client.send(&call).await, Ok(answer) if answer.status == 200) {
                return false;
            }
        }
        true
    }

    /// `GET /admin/v1/sales/{sale}`: the ledger's side is one, the backlogs of the gateways' logs add up, and the target is at
    /// rest when all of them are.
    pub(crate) async fn figures(&self, sale: &str) -> Result<Figures, String> {
        let path = format!("/admin/v1/sales/{sale}");
        let mut whole: Option<Figures> = None;
        for Listener { client, token } in &self.listeners {
            let figures: Figures = get(client, &path, token.as_deref()).await?;
            whole = Some(match whole {
                None => figures,
                Some(before) => Figures {
                    backlog: before.backlog + figures.backlog,
                    at_rest: before.at_rest && figures.at_rest,
                    ..figures
                },
            });
        }
        whole.ok_or_else(|| "no admin listener was named".to_owned())
    }

    fn first(&self) -> &Listener {
        &self.listeners[0]
    }

    /// `PUT /admin/v1/sales`.
    pub(crate) async fn publish(&self, definition: &serde_json::Value) -> Result<(), String> {
        let body = definition.to_string();
        let token = self.first().token.as_deref();
        let call = Call { method: "PUT", ..post("/admin/v1/sales", token, None, &body) };
        self.expect_done(&call).await
    }

    /// `POST /admin/v1/sales/{sale}/restock`; the same id twice raises the total once.
    pub(crate) async fn restock(&self, sale: &str, restock_id: &str, units: u32) -> Result<(), String> {
        let path = format!("/admin/v1/sales/{sale}/restock");
        let body = serde_json::json!({ "restock_id": restock_id, "units": units }).to_string();
        self.expect_done(&post(&path, self.first().token.as_deref(), None, &body)).await
    }

    async fn expect_done(&self, call: &Call<'_>) -> Result<(), String> {
        match self.first().client.send(call).await {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
            Ok(answer) => Err(format!("{} {}: {}", call.method, call.path, excerpt(&answer))),
            Err(lost) => Err(format!("{} {}: {lost}", call.method, call.path)),
        }
    }
}

fn post<'a>(path: &'a str, bearer: Option<&'a str>, pass: Option<&'a str>, body: &'a str) -> Call<'a> {
    Call { method: "POST", path, bearer, pass, forwarded_for: None, body: Some(body) }
}

async fn get<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
    bearer: Option<&str>,
) -> Result<T, String> {
    let call = Call { method: "GET", path, bearer, ..Call::default() };
    let answer = client.send(&call).await.map_err(|lost| format!("GET {path}: {lost}"))?;
    if answer.status != 200 {
        return Err(format!("GET {path}: {}", excerpt(&answer)));
    }
    serde_json::from_slice(&answer.body).map_err(|error| format!("GET {path}: {error}: {}", excerpt(&answer)))
}

fn problem(answer: &Answer) -> Option<Problem<'_>> {
    serde_json::from_slice(&answer.body).ok()
}

fn word_of<'a>(problem: &'a Problem<'_>) -> &'a str {
    problem.kind.rsplit(['/', ':', '#']).next().unwrap_or("")
}

/// The refusal that an answer is; `None` for everything that is none (2xx, `uncertain`, 5xx but 503).
fn refusal(answer: &Answer) -> Option<Refusal> {
    if !(400..500).contains(&answer.status) && answer.status != 503 {
        return None;
    }
    let problem = problem(answer)?;
    let word = word_of(&problem);
    if word == "uncertain" {
        return None;
    }
    Some(REFUSALS.iter().find(|(_, known)| *known == word).map_or(Refusal::Unnamed, |(refusal, _)| *refusal))
}

fn press_outcome(answer: &Answer) -> Press {
    if answer.status == 202 {
        return match serde_json::from_slice::<OrderAnswer>(&answer.body) {
            Ok(order) => Press::Accepted { poll_after: order.poll_after(), order_id: order.order_id },
            Err(_) => Press::Strange(excerpt(answer)),
        };
    }
    if let Some(refusal) = refusal(answer) {
        return Press::Refused(refusal, answer.retry_after_s);
    }
    match problem(answer) {
        Some(problem) if answer.status == 503 && word_of(&problem) == "uncertain" => {
            Press::Uncertain { order_id: problem.order_id, retry_after_s: answer.retry_after_s }
        }
        _ => Press::Strange(excerpt(answer)),
    }
}

fn excerpt(answer: &Answer) -> String {
    let body: String = String::from_utf8_lossy(&answer.body).chars().take(160).collect();
    format!("{} {body}", answer.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, retry_after_s: Some(3), body: body.as_bytes().to_vec() }
    }

    #[test]
    fn every_word_of_the_interface_is_told_apart() {
        for (refusal, word) in REFUSALS {
            let body = format!(r#"{{"type":"https://example.org/problems/{word}","title":"x"}}"#);
            assert_eq!(press_outcome(&answer(409, &body)), Press::Refused(refusal, Some(3)), "{word}");
        }
    }

    #[test]
    fn uncertain_is_neither_yes_nor_no() {
        let body = r#"{"type":"urn:floodgate:uncertain","order_id":"X"}"#;
        let expected = Press::Uncertain { order_id: Some("X".into()), retry_after_s: Some(3) };
        assert_eq!(press_outcome(&answer(503, body)), expected);
    }

    #[test]
    fn a_server_error_and_a_refusal_without_a_problem_are_strange() {
        assert!(matches!(press_outcome(&answer(500, r#"{"type":"x/busy"}"#)), Press::Strange(_)));
        assert!(matches!(press_outcome(&answer(410, "<html>")), Press::Strange(_)));
        assert!(
            matches!(press_outcome(&answer(202, "{}")), Press::Strange(_)),
            "a promise must name its order"
        );
    }

    #[test]
    fn a_promise_names_its_order_and_polls_are_spaced() {
        let accepted = press_outcome(&answer(202, r#"{"order_id":"O","status":"queued","poll_after_ms":1}"#));
        assert_eq!(
            accepted,
            Press::Accepted { order_id: "O".into(), poll_after: Duration::from_millis(200) }
        );
    }
}
