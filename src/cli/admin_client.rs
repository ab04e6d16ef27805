//! Calls on the admin listener of the running system: every command that changes something goes this way.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::Failure;
use crate::config::Config;

const CALL_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Sends one call and gives back the JSON of its answer; an error answer becomes a [`Failure`] with its words.
pub(super) async fn call(
    config: &Config,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    tokio::time::timeout(CALL_MAX, exchange(config, method, path, body)).await.unwrap_or_else(|_| {
        Err(Failure::Failed(format!(
            "the admin listener at {} did not answer within {} s: is the process overloaded or frozen?",
            config.admin.listen,
            CALL_MAX.as_secs()
        )))
    })
}

/// Whether anybody listens there.
pub(super) async fn is_answered(config: &Config) -> bool {
    let connected = tokio::time::timeout(CALL_MAX, TcpStream::connect(config.admin.listen)).await;
    matches!(connected, Ok(Ok(_)))
}

async fn exchange(
    config: &Config,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    let token = token(config)?;
    let address = config.admin.listen;
    let stream = TcpStream::connect(address).await.map_err(|e| {
        Failure::Failed(format!(
            "nothing answers at the admin listener {address}: {e}; start `floodgate`, or set admin.listen"
        ))
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .header("authorization", format!("Bearer {}", token.trim()))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| Failure::Failed(format!("the admin listener's answer broke off: {e}")))?
            .to_bytes();
        let value: Value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        if status.is_success() {
            return Ok(value);
        }
        let member = |name| value.get(name).and_then(Value::as_str);
        let words = match member("type").and_then(|kind| kind.rsplit('/').next()) {
            // The listener speaks of its calls; here it is commands that help on.
            Some("unknown-sale") => "no such sale: `floodgate sales list` shows those that exist",
            Some("not-found") if path.contains("/orders/") => {
                "no such order, or it is still queued: `floodgate orders list SALE` shows those with a row"
            }
            Some("not-found") if path.contains("/refunds/") => {
                "no such refund: `floodgate refunds list` shows those that are not over"
            }
            Some("wrong-state") => match member("order_status") {
                Some("refunding" | "refunded") => {
                    "its money goes back, or is back: `floodgate payments show ORDER` tells how far it is"
                }
                Some("paid") => "it is paid: `floodgate orders refund ORDER` sends its money back",
                Some("unpaid") => "it is not paid: `floodgate orders cancel ORDER` closes it",
                Some("closed" | "rejected") => {
                    "it is closed or rejected, for good: `floodgate orders show ORDER` says why; money that came for it goes back by itself"
                }
                _ => "the order's status does not allow that: look at it with `floodgate orders show ORDER`",
            },
            _ => member("detail").or_else(|| member("title")).unwrap_or("no reason given"),
        };
        Err(Failure::Failed(format!("refused with {status}: {words}")))
    };
    tokio::select! {
        biased;
        outcome = answer => outcome,
        Err(e) = connection => Err(Failure::Failed(format!("the connection to the admin listener broke: {e}"))),
    }
}

fn token(config: &Config) -> Result<String, Failure> {
    match (&config.admin.token, &config.admin.token_file) {
        (Some(token), _) => Ok(token.expose().to_owned()),
        (None, Some(path)) => std::fs::read_to_string(path).map_err(|e| {
            Failure::Failed(format!(
                "cannot read the admin token {}: {e}; start `floodgate` (it makes the token), run this where it runs, or set admin.token_file",
                path.display()
            ))
        }),
        (None, None) => Err(Failure::Usage("set admin.token or admin.token_file".into())),
    }
}
