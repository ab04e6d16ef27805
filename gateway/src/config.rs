//! The sections `[gateway]`, `[admin]`, `[auth]`, `[gate]` and `[limits]`: shapes, defaults, and what is refused at start.
//!
//! Files are read elsewhere: whoever loads the configuration puts the contents of every `…_file` in its place.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, Serializer};

mod network;

pub use network::Network;

/// A text that never shows in logs, in `--print-config` or in errors.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for a key schedule or a comparison.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// A configuration that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// Such as `gate.pass_secrets`.
    pub key: &'static str,
    /// What is wrong and what to write instead.
    pub problem: String,
}

fn wrong(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError { key, problem: problem.into() }
}

/// `[gateway]`: the public listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where buyers connect; behind nginx usually.
    pub listen: SocketAddr,
    /// Peers whose `X-Forwarded-For` (and, in trusted-header mode, user header) is believed.
    pub trusted_proxies: Vec<Network>,
    /// Runtimes, each on a thread of its own; 0 = one a core.
    pub threads: usize,
    /// Longest that a shutdown waits for what was reserved, seconds.
    pub shutdown_max_s: u64,
    /// Longest from a request's first byte to the end of its head, milliseconds.
    pub header_read_max_ms: u64,
    /// Longest for the whole body, milliseconds.
    pub body_read_max_ms: u64,
    /// Longest that a connection may be idle, or stall while it is written to, milliseconds.
    pub idle_max_ms: u64,
    /// Largest request head, bytes. nginx as it comes passes on up to 33 KiB: 1, and 4 times 8.
    pub header_bytes_max: usize,
    /// Largest request body, bytes.
    pub body_bytes_max: usize,
    /// Event streams open at once; each may last ten minutes.
    pub event_streams_max: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            trusted_proxies: vec![
                Network { address: IpAddr::from(Ipv4Addr::LOCALHOST), prefix: 32 },
                Network { address: IpAddr::from(Ipv6Addr::LOCALHOST), prefix: 128 },
            ],
            threads: 0,
            shutdown_max_s: 20,
            header_read_max_ms: 10_000,
            body_read_max_ms: 10_000,
            idle_max_ms: 75_000,
            header_bytes_max: 36_864,
            body_bytes_max: 8_192,
            event_streams_max: 10_000,
        }
    }
}

impl GatewayConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.threads > 1_024 {
            return Err(wrong("gateway.threads", "at most 1024; 0 means one a core"));
        }
        if self.shutdown_max_s > 3_600 {
            return Err(wrong("gateway.shutdown_max_s", "at most 3600 seconds, an hour"));
        }
        if self.event_streams_max > 1_000_000 {
            return Err(wrong("gateway.event_streams_max", "at most 1000000"));
        }
        for (key, value) in [
            ("gateway.header_read_max_ms", self.header_read_max_ms),
            ("gateway.body_read_max_ms", self.body_read_max_ms),
            ("gateway.idle_max_ms", self.idle_max_ms),
        ] {
            if !(10..=3_600_000).contains(&value) {
                return Err(wrong(key, "between 10 and 3600000 milliseconds"));
            }
        }
        if !(1_024..=65_536).contains(&self.header_bytes_max) {
            return Err(wrong("gateway.header_bytes_max", "between 1024 and 65536 bytes"));
        }
        if !(2_048..=1_048_576).contains(&self.body_bytes_max) {
            return Err(wrong("gateway.body_bytes_max", "between 2048 and 1048576 bytes"));
        }
        Ok(())
    }
}

/// `[admin]`: the listener of the operator, of probes and of the edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Never to be reachable by buyers.
    pub listen: SocketAddr,
    /// The operator's token. Without one the operator's calls answer 401.
    pub token: Option<Secret>,
    /// Holds the token; made at first start, mode 0600.
    pub token_file: Option<PathBuf>,
    /// The key under which the operators' journal is chained; at least 32 bytes. Made at first start, and not of this crate's concern.
    pub journal_secret: Option<Secret>,
    /// Holds that key.
    pub journal_secret_file: Option<PathBuf>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            token: None,
            token_file: Some(PathBuf::from("data/admin.token")),
            journal_secret: None,
            journal_secret_file: None,
        }
    }
}

impl AdminConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.token.as_ref().is_some_and(|token| token.expose().trim().is_empty()) {
            return Err(wrong(
                "admin.token",
                "is empty: write a token, or leave the key out for admin.token_file",
            ));
        }
        if self.token_file.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(wrong(
                "admin.token_file",
                "is empty: write a file's name, such as \"data/admin.token\"",
            ));
        }
        if self.journal_secret.as_ref().is_some_and(|secret| secret.expose().len() < SECRET_BYTES_MIN) {
            return Err(wrong(
                "admin.journal_secret",
                format!("needs at least {SECRET_BYTES_MIN} bytes: `openssl rand -hex 32` gives them"),
            ));
        }
        Ok(())
    }
}

/// How a request names its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMode {
    /// A JWT signed with HS256.
    #[default]
    Jwt,
    /// A header set by a trusted proxy that has authenticated the user.
    TrustedHeader,
}

/// `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Where the user comes from.
    pub mode: AuthMode,
    /// The key of the tokens; at least 32 bytes.
    pub hs256_secret: Option<Secret>,
    /// Holds the key.
    pub hs256_secret_file: Option<PathBuf>,
    /// The key where it is no text: its bytes in base64, at least 32 of them. Instead of `hs256_secret`.
    pub hs256_secret_base64: Option<Secret>,
    /// Holds that.
    pub hs256_secret_base64_file: Option<PathBuf>,
    /// Reserved: this version cannot fetch keys.
    pub jwks_url: Option<String>,
    /// If set, a token's `iss` must be this.
    pub issuer: Option<String>,
    /// If set, a token's `aud` must contain this.
    pub audience: Option<String>,
    /// The claim that holds the user's id.
    pub user_claim: String,
    /// The header of trusted-header mode.
    pub user_header: String,
    /// `POST /api/v1/demo/login` hands out tokens to whoever asks from this machine.
    pub demo: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            mode: AuthMode::Jwt,
            hs256_secret: None,
            hs256_secret_file: None,
            hs256_secret_base64: None,
            hs256_secret_base64_file: None,
            jwks_url: None,
            issuer: None,
            audience: None,
            user_claim: "sub".into(),
            user_header: "floodgate-user".into(),
            demo: false,
        }
    }
}

/// Shortest secret that is accepted, bytes: HS256's own rule (RFC 7518, 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

impl AuthConfig {
    /// Whether a key of the tokens is configured, in either form.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.hs256_secret.is_some() || self.hs256_secret_base64.is_some()
    }

    /// The key's bytes.
    pub(crate) fn key(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        const BASE64: &str = "auth.hs256_secret_base64";
        let (name, key) = match (&self.hs256_secret, &self.hs256_secret_base64) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(wrong(BASE64, "and auth.hs256_secret are both there: keep one"));
            }
            (Some(secret), None) => ("auth.hs256_secret", secret.expose().as_bytes().to_vec()),
            (None, Some(text)) => {
                let text = text.expose().trim().trim_end_matches('=');
                let key = STANDARD_NO_PAD.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text));
                (
                    BASE64,
                    key.map_err(|_| wrong(BASE64, "is no base64: `openssl rand -base64 32` gives some"))?,
                )
            }
        };
        if key.len() < SECRET_BYTES_MIN {
            return Err(wrong(name, "at least 32 bytes"));
        }
        Ok(Some(key))
    }

    /// Refuses a demo login that other machines could reach.
    ///
    /// # Errors
    /// `auth.demo`.
    pub fn check_listener(&self, gateway: &GatewayConfig) -> Result<(), ConfigError> {
        let listen = gateway.listen;
        if self.demo && !listen.ip().is_loopback() {
            return Err(wrong(
                "auth.demo",
                format!(
                    "the demo login makes anybody any user, and gateway.listen = \"{listen}\" is not for this machine alone: \
                     listen on 127.0.0.1, or set auth.demo = false and let your own login sign the tokens"
                ),
            ));
        }
        Ok(())
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.jwks_url.is_some() {
            return Err(wrong(
                "auth.jwks_url",
                "this version checks HS256 tokens only: remove the key and set auth.hs256_secret or auth.hs256_secret_file",
            ));
        }
        if self.key()?.is_none() && self.mode == AuthMode::Jwt {
            return Err(wrong("auth.hs256_secret", "missing: set it or auth.hs256_secret_file"));
        }
        if self.mode == AuthMode::TrustedHeader && self.demo {
            return Err(wrong("auth.demo", "the demo login hands out tokens: it needs auth.mode = \"jwt\""));
        }
        for (key, value) in [("auth.issuer", &self.issuer), ("auth.audience", &self.audience)] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(wrong(
                    key,
                    "is empty: no login would fit; write what your tokens say, or leave the key out",
                ));
            }
        }
        if self.user_claim.is_empty() {
            return Err(wrong("auth.user_claim", "the name of a claim, such as \"sub\""));
        }
        if hyper::header::HeaderName::from_bytes(self.user_header.as_bytes()).is_err() {
            return Err(wrong("auth.user_header", "the name of a header, such as \"floodgate-user\""));
        }
        Ok(())
    }
}

/// The question before a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChallengeKind {
    /// Read letters off an image.
    #[default]
    Image,
    /// Find a number whose hash starts with zeros.
    ProofOfWork,
    /// None: a pass for whoever asks.
    Off,
}

/// One of the keys that passes and challenges are made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassSecret {
    /// Travels in the pass; at most 16 bytes.
    pub id: String,
    /// At least 32 bytes.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// Holds the secret.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
}

/// `[gate]`: questions and passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// What is asked.
    pub challenge: ChallengeKind,
    /// Zero bits of a proof of work; each one doubles the buyer's work.
    pub pow_bits: u8,
    /// How long before the opening questions are asked and passes given, seconds.
    pub opens_before_s: u64,
    /// A pass's life from the later of its issue and the opening, seconds.
    pub pass_ttl_s: u64,
    /// The first signs, all are accepted. To rotate: put the new one first, remove the old one after `pass_ttl_s`.
    pub pass_secrets: Vec<PassSecret>,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            challenge: ChallengeKind::Image,
            pow_bits: 18,
            opens_before_s: 0,
            pass_ttl_s: 120,
            pass_secrets: Vec::new(),
        }
    }
}

impl GateConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=32).contains(&self.pow_bits) {
            return Err(wrong("gate.pow_bits", "between 1 and 32"));
        }
        if !(1..=86_400).contains(&self.pass_ttl_s) {
            return Err(wrong("gate.pass_ttl_s", "between 1 and 86400 seconds"));
        }
        if self.opens_before_s > 7 * 86_400 {
            return Err(wrong("gate.opens_before_s", "at most 604800 seconds, a week"));
        }
        const KEY: &str = "gate.pass_secrets";
        if self.pass_secrets.is_empty() || self.pass_secrets.len() > 2 {
            return Err(wrong(KEY, "one entry { id, secret }, or two while a key is rotated"));
        }
        for entry in &self.pass_secrets {
            if entry.id.is_empty() || entry.id.len() > 16 {
                return Err(wrong(KEY, "an id has 1 to 16 bytes"));
            }
            if entry.secret.as_ref().is_none_or(|s| s.expose().len() < SECRET_BYTES_MIN) {
                return Err(wrong(
                    KEY,
                    format!("the secret of {:?} is missing or shorter than 32 bytes", entry.id),
                ));
            }
        }
        if self.pass_secrets.len() == 2 && self.pass_secrets[0].id == self.pass_secrets[1].id {
            return Err(wrong(KEY, "two entries have the same id"));
        }
        Ok(())
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Questions, passes and purchases of one user a second; 0 = off.
    pub per_user_rps: u32,
    /// The same of one address (an IPv6 /64 is one); 0 = off, since thousands share an address behind NAT.
    pub per_address_rps: u32,
    /// Connections, and purchases between permit and answer, of the whole process.
    pub in_flight_max: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { per_user_rps: 5, per_address_rps: 0, in_flight_max: 20_000 }
    }
}

impl LimitsConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=10_000_000).contains(&self.in_flight_max) {
            return Err(wrong("limits.in_flight_max", "between 1 and 10000000"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).expect("json"), "\"***\"");
    }

    #[test]
    fn a_demo_login_is_for_a_listener_of_this_machine() {
        let auth = AuthConfig { demo: true, ..AuthConfig::default() };
        for (listen, good) in
            [("127.0.0.1:8080", true), ("[::1]:8080", true), ("0.0.0.0:8080", false), ("[::]:8080", false)]
        {
            let gateway =
                GatewayConfig { listen: listen.parse().expect("an address"), ..GatewayConfig::default() };
            assert_eq!(auth.check_listener(&gateway).is_ok(), good, "{listen}");
            AuthConfig::default().check_listener(&gateway).expect("no demo, no rule");
        }
    }

    #[test]
    fn wrong_values_name_their_key() {
        let auth = AuthConfig { jwks_url: Some("https://example.org".into()), ..AuthConfig::default() };
        assert_eq!(auth.validate().map_err(|e| e.key), Err("auth.jwks_url"));
        assert_eq!(AuthConfig::default().validate().map_err(|e| e.key), Err("auth.hs256_secret"));
        assert_eq!(GateConfig::default().validate().map_err(|e| e.key), Err("gate.pass_secrets"));
        let none = LimitsConfig { in_flight_max: 0, ..LimitsConfig::default() };
        assert_eq!(none.validate().map_err(|e| e.key), Err("limits.in_flight_max"));
    }
}
