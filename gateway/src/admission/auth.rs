//! Who asks: a user named by an HS256 token, or by a header of a trusted proxy. And the demo login.
//!
//! Only HS256 is ever accepted, whatever a token's header says; `exp` is required; times are the ledger's.

use std::fmt;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, TokenData, Validation};
use serde_json::{Map, Value};
use stock::UserId;

use crate::config::{AuthConfig, AuthMode, ConfigError};

mod hs256;

/// The cookie that holds the token; out of reach of the page's scripts.
pub const COOKIE_NAME: &str = "floodgate_user";
/// How long a token of the demo login lasts, seconds.
const DEMO_TOKEN_TTL_S: u64 = 86_400;
/// How far the clocks of issuer and ledger may differ, seconds.
const LEEWAY_S: f64 = 5.0;
/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 4_096;

/// Why a request names no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Nothing that could name one.
    #[error("no user: send a token as Authorization: Bearer or in the cookie floodgate_user")]
    Missing,
    /// No proxy has said who it is.
    #[error("no user: a trusted proxy names it, in the header of auth.user_header")]
    Unnamed,
    /// Something, but not acceptable.
    #[error("the user's token is not acceptable: {0}")]
    Invalid(&'static str),
}

/// Finds a request's user.
pub struct Authenticator {
    mode: AuthMode,
    user_claim: String,
    user_header: HeaderName,
    verify: DecodingKey,
    sign: EncodingKey,
    validation: Validation,
    issuer: Option<String>,
    audience: Option<String>,
    demo: bool,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Takes the checked configuration.
    ///
    /// # Errors
    /// See [`AuthConfig::validate`].
    pub fn new(config: &AuthConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        hs256::install();
        let secret = config.key()?.unwrap_or_default();
        let mut validation = Validation::new(Algorithm::HS256);
        let mut required = Vec::new();
        // Times are checked below, against the ledger's clock; a missing one is told apart from one that is no number.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = config.audience.is_some();
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &config.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let user_header = HeaderName::from_bytes(config.user_header.as_bytes()).map_err(|_| ConfigError {
            key: "auth.user_header",
            problem: "the name of a header, such as \"floodgate-user\"".into(),
        })?;
        Ok(Self {
            mode: config.mode,
            user_claim: config.user_claim.clone(),
            user_header,
            verify: DecodingKey::from_secret(&secret),
            sign: EncodingKey::from_secret(&secret),
            validation,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            demo: config.demo,
        })
    }

    /// Whether the demo login answers at all.
    #[must_use]
    pub fn demo(&self) -> bool {
        self.demo
    }

    /// The user that the request speaks for. `through_proxy`: the peer is a trusted proxy.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn user(&self, headers: &HeaderMap, through_proxy: bool, now_ms: u64) -> Result<UserId, AuthError> {
        match self.mode {
            AuthMode::Jwt => self.token_user(token(headers)?, now_ms),
            AuthMode::TrustedHeader => self.header_user(headers, through_proxy),
        }
    }

    fn header_user(&self, headers: &HeaderMap, through_proxy: bool) -> Result<UserId, AuthError> {
        if !through_proxy {
            return Err(AuthError::Unnamed);
        }
        let mut values = headers.get_all(&self.user_header).iter();
        let value = values.next().ok_or(AuthError::Unnamed)?;
        if values.next().is_some() {
            return Err(AuthError::Invalid("the user header is there more than once"));
        }
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| AuthError::Invalid("not UTF-8"))?;
        text.parse().map_err(|_| AuthError::Invalid("not a user id"))
    }

    fn token_user(&self, token: &str, now_ms: u64) -> Result<UserId, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid("longer than the 4096 bytes that a token may have"));
        }
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &self.verify, &self.validation);
        let TokenData { header, claims, .. } = decoded.map_err(|error| match error.kind() {
            ErrorKind::MissingRequiredClaim(_) => AuthError::Invalid("it lacks a configured iss or aud"),
            _ => AuthError::Invalid("signature, algorithm, issuer, audience or form"),
        })?;
        // Who sets it demands that it be understood (RFC 7515, 4.1.11), and no extension is.
        if header.crit.is_some() {
            return Err(AuthError::Invalid("crit demands an extension that is not known here"));
        }
        let now_s = now_ms as f64 / 1_000.0;
        let expires = claims.get("exp").ok_or(AuthError::Invalid("it lacks exp"))?;
        let expires = expires.as_f64().ok_or(AuthError::Invalid(
            "exp is there, but not a number: seconds since 1970, without quotes",
        ))?;
        if now_s >= expires + LEEWAY_S {
            return Err(AuthError::Invalid("expired"));
        }
        if let Some(not_before) = claims.get("nbf") {
            let not_before = not_before.as_f64().ok_or(AuthError::Invalid("nbf is not a number"))?;
            if now_s + LEEWAY_S < not_before {
                return Err(AuthError::Invalid("not valid yet"));
            }
        }
        let user = match claims.get(&self.user_claim) {
            Some(Value::String(user)) => user.parse().ok(),
            // Whole numbers only: what 1e3 or 1.0 are in other hands differs.
            Some(Value::Number(number)) if number.is_u64() || number.is_i64() => {
                number.to_string().parse().ok()
            }
            _ => None,
        };
        user.ok_or(AuthError::Invalid("its user claim is not a user id"))
    }

    /// A token for `user`, as the demo login hands it out.
    ///
    /// # Errors
    /// Never with HS256; passed on so that nothing here can panic.
    pub fn demo_token(&self, user: &UserId, now_ms: u64) -> Result<String, jsonwebtoken::errors::Error> {
        let mut claims = Map::new();
        claims.insert(self.user_claim.clone(), user.as_str().into());
        claims.insert("exp".into(), (now_ms / 1_000 + DEMO_TOKEN_TTL_S).into());
        for (name, value) in [("iss", &self.issuer), ("aud", &self.audience)] {
            if let Some(value) = value {
                claims.insert(name.into(), value.as_str().into());
            }
        }
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign)
    }

    /// The `Set-Cookie` line that goes with [`Self::demo_token`].
    #[must_use]
    pub fn demo_cookie(&self, token: &str) -> String {
        format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={DEMO_TOKEN_TTL_S}")
    }
}

/// The bearer's token, otherwise the cookie's.
fn token(headers: &HeaderMap) -> Result<&str, AuthError> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    if let Some(line) = lines.next() {
        if lines.next().is_some() {
            return Err(AuthError::Invalid("Authorization is there more than once"));
        }
        let line = line.to_str().map_err(|_| AuthError::Invalid("Authorization is not text"))?;
        return match line.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
            _ => Err(AuthError::Invalid("Authorization is not a bearer token")),
        };
    }
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE_NAME)
        .map(|(_, value)| value)
        .ok_or(AuthError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hmac::{Hmac, Mac};
    use serde_json::json;

    const SECRET: &str = "an-hs256-secret-of-at-least-32-bytes";
    const NOW_MS: u64 = 1_800_000_000_000;
    const NOW_S: u64 = NOW_MS / 1_000;

    fn config() -> AuthConfig {
        AuthConfig { hs256_secret: Some(Secret::new(SECRET)), demo: true, ..AuthConfig::default() }
    }

    /// A token made by hand, so that the checks do not lean on the code under test.
    fn signed(header: &Value, claims: &Value, secret: &str) -> String {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let mut mac = <Hmac<sha2::Sha256> as Mac>::new_from_slice(secret.as_bytes()).expect("any length");
        mac.update(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    fn ask(config: &AuthConfig, token: &str) -> Result<String, AuthError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().expect("a value"));
        let auth = Authenticator::new(config).expect("good configuration");
        auth.user(&headers, false, NOW_MS).map(|u| u.to_string())
    }

    fn claims(claims: Value) -> Result<String, AuthError> {
        ask(&config(), &signed(&json!({"alg": "HS256", "typ": "JWT"}), &claims, SECRET))
    }

    #[test]
    fn a_good_token_names_its_user() {
        assert_eq!(claims(json!({"sub": "alice", "exp": NOW_S + 60})), Ok("alice".into()));
        assert_eq!(
            claims(json!({"sub": "用户", "exp": NOW_S as f64 + 0.5, "nbf": NOW_S, "aud": "x"})),
            Ok("用户".into())
        );
        assert_eq!(claims(json!({"sub": 4711, "exp": NOW_S + 60})), Ok("4711".into()));
        let mut by_claim = config();
        by_claim.user_claim = "uid".into();
        let token = signed(&json!({"alg": "HS256"}), &json!({"uid": "bob", "exp": NOW_S + 1}), SECRET);
        assert_eq!(ask(&by_claim, &token), Ok("bob".into()));
    }

    #[test]
    fn times_users_and_forms_are_checked() {
        let refused = [
            json!({"sub": "a"}),
            json!({"sub": "a", "exp": NOW_S - 10}),
            json!({"sub": "a", "exp": "tomorrow"}),
            json!({"sub": "a", "exp": -1}),
            json!({"sub": "a", "exp": NOW_S + 60, "nbf": NOW_S + 30}),
            json!({"sub": "a", "exp": NOW_S + 60, "nbf": "x"}),
            json!({"sub": 7.5, "exp": NOW_S + 60}),
            json!({"sub": true, "exp": NOW_S + 60}),
            json!({"sub": "", "exp": NOW_S + 60}),
            json!({"sub": "a\u{0}b", "exp": NOW_S + 60}),
            json!({"sub": "x".repeat(129), "exp": NOW_S + 60}),
            json!({"exp": NOW_S + 60}),
            json!([1, 2]),
        ];
        for wrong in refused {
            assert!(matches!(claims(wrong.clone()), Err(AuthError::Invalid(_))), "{wrong}");
        }
    }

    #[test]
    fn a_time_that_is_text_is_told_apart_from_none() {
        let said = |wrong: Value| claims(wrong).expect_err("refused").to_string();
        assert!(said(json!({"sub": "a"})).contains("lacks exp"));
        assert!(said(json!({"sub": "a", "exp": "1800000060"})).contains("not a number"));
        assert!(said(json!({"sub": "a", "exp": null})).contains("not a number"));
        let long = claims(json!({"sub": "a", "exp": NOW_S + 60, "more": "x".repeat(5_000)}));
        assert!(long.expect_err("refused").to_string().contains("4096 bytes"));
    }

    #[test]
    fn a_key_of_bytes_is_given_in_base64() {
        let key: Vec<u8> = (0..32).map(|n| 255 - n * 7).collect();
        let encoded = base64::engine::general_purpose::STANDARD.encode(&key);
        let claims = json!({"sub": "a", "exp": NOW_S + 60});
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", part(&json!({"alg": "HS256"})), part(&claims));
        let mut mac = <Hmac<sha2::Sha256> as Mac>::new_from_slice(&key).expect("any length");
        mac.update(message.as_bytes());
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()));
        let of = |text: &str| AuthConfig {
            hs256_secret: None,
            hs256_secret_base64: Some(Secret::new(text)),
            ..config()
        };
        for text in [&*encoded, encoded.trim_end_matches('='), &URL_SAFE_NO_PAD.encode(&key)] {
            assert_eq!(ask(&of(text), &token), Ok("a".into()), "{text}");
        }
        for wrong in ["not base64!", "c2hvcnQ="] {
            let error = of(wrong).validate().expect_err("refused");
            assert_eq!(error.key, "auth.hs256_secret_base64", "{wrong}");
        }
        let both = AuthConfig { hs256_secret_base64: Some(Secret::new(encoded)), ..config() };
        assert_eq!(both.validate().expect_err("refused").key, "auth.hs256_secret_base64");
    }

    #[test]
    fn other_algorithms_and_keys_are_refused() {
        let good = json!({"sub": "a", "exp": NOW_S + 60});
        for alg in ["none", "None", "HS384", "HS512", "RS256", "ES256", "PS256", "EdDSA", "hs256"] {
            assert!(ask(&config(), &signed(&json!({"alg": alg}), &good, SECRET)).is_err(), "{alg}");
        }
        assert!(
            ask(&config(), &signed(&json!({"alg": "HS256"}), &good, "another secret of 32 bytes or more"))
                .is_err()
        );
        for extension in [json!(["b64"]), json!([]), json!("b64")] {
            let header = json!({"alg": "HS256", "crit": extension, "b64": false});
            assert!(ask(&config(), &signed(&header, &good, SECRET)).is_err(), "{extension}");
        }
        let token = signed(&json!({"alg": "HS256"}), &good, SECRET);
        let unsigned = token.rsplit_once('.').expect("dots").0;
        for broken in
            ["", ".", "..", "a.b.c", unsigned, &format!("{unsigned}."), &format!("{token}x"), &token[1..]]
        {
            assert!(ask(&config(), broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn issuer_and_audience_are_required_once_configured() {
        let strict = AuthConfig { issuer: Some("shop".into()), audience: Some("sale".into()), ..config() };
        let token = |claims: Value| signed(&json!({"alg": "HS256"}), &claims, SECRET);
        let exp = NOW_S + 60;
        assert!(ask(&strict, &token(json!({"sub": "a", "exp": exp, "iss": "shop", "aud": "sale"}))).is_ok());
        assert!(
            ask(&strict, &token(json!({"sub": "a", "exp": exp, "iss": "shop", "aud": ["x", "sale"]})))
                .is_ok()
        );
        for wrong in [
            json!({"sub": "a", "exp": exp}),
            json!({"sub": "a", "exp": exp, "iss": "shop"}),
            json!({"sub": "a", "exp": exp, "aud": "sale"}),
            json!({"sub": "a", "exp": exp, "iss": "other", "aud": "sale"}),
            json!({"sub": "a", "exp": exp, "iss": "shop", "aud": "other"}),
        ] {
            assert!(ask(&strict, &token(wrong.clone())).is_err(), "{wrong}");
        }
        let auth = Authenticator::new(&strict).expect("good configuration");
        let demo = auth.demo_token(&"eve".parse().expect("a user"), NOW_MS).expect("a token");
        assert_eq!(ask(&strict, &demo), Ok("eve".into()));
    }

    #[test]
    fn the_bearer_goes_before_the_cookie() {
        let auth = Authenticator::new(&config()).expect("good configuration");
        let alice = auth.demo_token(&"alice".parse().expect("a user"), NOW_MS).expect("a token");
        let mut headers = HeaderMap::new();
        assert_eq!(auth.user(&headers, false, NOW_MS), Err(AuthError::Missing));
        headers.insert(COOKIE, format!("a=b; {COOKIE_NAME}={alice}; c=d").parse().expect("a value"));
        assert_eq!(auth.user(&headers, false, NOW_MS).map(|u| u.to_string()), Ok("alice".into()));
        headers.insert(AUTHORIZATION, "Basic eDp5".parse().expect("a value"));
        assert!(auth.user(&headers, false, NOW_MS).is_err());
    }

    #[test]
    fn the_trusted_header_counts_from_a_trusted_proxy_only() {
        let trusted =
            AuthConfig { mode: AuthMode::TrustedHeader, hs256_secret: None, demo: false, ..config() };
        let auth = Authenticator::new(&trusted).expect("good configuration");
        let mut headers = HeaderMap::new();
        headers.insert("floodgate-user", "carol".parse().expect("a value"));
        assert_eq!(auth.user(&headers, true, NOW_MS).map(|u| u.to_string()), Ok("carol".into()));
        assert_eq!(auth.user(&headers, false, NOW_MS), Err(AuthError::Unnamed));
        headers.append("floodgate-user", "mallory".parse().expect("a value"));
        assert!(auth.user(&headers, true, NOW_MS).is_err());
    }
}
