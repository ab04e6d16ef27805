//! Tokens as an operator's login would make them.

use super::{JWT_SECRET, now_ms};

/// A token as an operator's login would make it.
pub fn token(user: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hmac::{Hmac, Mac};
    let part = |v: serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let header = part(serde_json::json!({"alg": "HS256", "typ": "JWT"}));
    let claims = part(serde_json::json!({"sub": user, "exp": now_ms() / 1_000 + 3_600}));
    let mut mac = <Hmac<sha2::Sha256> as Mac>::new_from_slice(JWT_SECRET.as_bytes()).expect("any length");
    mac.update(format!("{header}.{claims}").as_bytes());
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

pub fn bearer(user: &str) -> String {
    format!("Bearer {}", token(user))
}
