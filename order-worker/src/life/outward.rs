//! Calls on the shop's own service: one signed JSON body over HTTP, bounded in time and size. Judges no answer.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::payments::config::ServiceUrl;
use super::payments::standard_webhooks::StandardWebhooks;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Where an address names no port.
const PORT_DEFAULT: u16 = 80;

/// One address of the shop's.
pub struct Service {
    host: String,
    port: u16,
    authority: String,
    path: String,
    login: Option<String>,
    /// Signs each call as the callback is signed, so that the service knows whose it is.
    webhooks: StandardWebhooks,
}

/// What the service said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Service {
    /// At this address.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(url: &ServiceUrl, webhooks: StandardWebhooks) -> Result<Self, String> {
        let wrong = || format!("{url} is no address of a service: write http://HOST:PORT/PATH");
        let uri: Uri = url.reveal().parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let login = authority.as_str().rsplit_once('@').map(|(login, _)| STANDARD.encode(login));
        let (host, port) = (authority.host().to_owned(), authority.port_u16().unwrap_or(PORT_DEFAULT));
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { authority: format!("{host}:{port}"), host, port, path, login, webhooks })
    }

    /// Posts `body` under `id`, which is the same at every try, within `within`.
    ///
    /// # Errors
    /// Why there is no answer, for a person.
    pub(super) async fn post(
        &self,
        id: &str,
        now_ms: u64,
        body: &Value,
        within: Duration,
    ) -> Result<Answer, String> {
        match timeout(within, self.exchange(id, now_ms, body.to_string())).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{} did not answer within {} s", self.authority, within.as_secs())),
        }
    }

    async fn exchange(&self, id: &str, now_ms: u64, body: String) -> Result<Answer, String> {
        let broke = |error: &dyn std::fmt::Display| format!("{}: {error}", self.authority);
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.port)).await.map_err(|error| broke(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broke(&error))?;
        let mut request = Request::post(&self.path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .header("idempotency-key", id);
        if let Some(login) = &self.login {
            request = request.header("authorization", format!("Basic {login}"));
        }
        for (name, value) in self.webhooks.sign(id, now_ms / 1_000, body.as_bytes()) {
            // Without a secret there is no signature.
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| broke(&error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| broke(&error))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok(Answer { status, body: body.map_err(|error| broke(&error))?.to_bytes().to_vec() })
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            Err(error) = connection => Err(broke(&error)),
        }
    }
}
