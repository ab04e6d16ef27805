//! The users' tokens (HS256 JWT, RFC 7519) and answers to proof-of-work questions: what a buyer's browser would bring.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Signs users' tokens with the target's secret.
pub(crate) struct Signer {
    keyed: Hmac<Sha256>,
    issuer: Option<String>,
    audience: Option<String>,
}

impl Signer {
    /// The secret is the text of the target's `auth.hs256_secret`, without a closing line break.
    pub(crate) fn new(secret: &str, issuer: Option<String>, audience: Option<String>) -> Self {
        let secret = secret.trim_end_matches(['\r', '\n']);
        // An HMAC key may have any length, so this cannot fail.
        let keyed = Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of every length");
        Self { keyed, issuer, audience }
    }

    /// A token that names `user` and holds for `valid_s` seconds from `now_s` (Unix seconds).
    pub(crate) fn token(&self, user: &str, now_s: u64, valid_s: u64) -> String {
        let mut claims = serde_json::json!({ "sub": user, "iat": now_s, "exp": now_s + valid_s });
        if let Some(issuer) = &self.issuer {
            claims["iss"] = issuer.as_str().into();
        }
        if let Some(audience) = &self.audience {
            claims["aud"] = audience.as_str().into();
        }
        let mut token = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let mut mac = self.keyed.clone();
        mac.update(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(mac.finalize().into_bytes(), &mut token);
        token
    }
}

/// Looks for the decimal n whose SHA-256(prefix ":" n) starts with `bits` zero bits, trying at most `tries_max`.
pub(crate) fn solve(prefix: &str, bits: u32, tries_max: u64) -> Option<u64> {
    let mut start = Sha256::new();
    start.update(prefix.as_bytes());
    start.update(b":");
    (0..tries_max).find(|n| {
        let mut hash = start.clone();
        hash.update(n.to_string().as_bytes());
        leading_zero_bits(&hash.finalize()) >= bits
    })
}

fn leading_zero_bits(bytes: &[u8]) -> u32 {
    let mut zeros = 0;
    for byte in bytes {
        zeros += byte.leading_zeros();
        if *byte != 0 {
            break;
        }
    }
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_signature_that_another_implementation_gives() {
        // Checked with: printf 'HEADER.CLAIMS' | openssl dgst -sha256 -hmac 'secret' -binary | basenc --base64url
        let token = Signer::new("secret\n", None, None).token("u-1", 1_000, 60);
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts[0], "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9");
        let claims: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).expect("base64")).expect("json");
        assert_eq!(claims, serde_json::json!({"sub": "u-1", "iat": 1000, "exp": 1060}));
        assert_eq!(parts[2], "_oX-TEMoruQcZvXk0vxUCgHAgys_K8ZcIBxQCoz6vKY");
    }

    #[test]
    fn issuer_and_audience_are_claimed_when_given() {
        let token = Signer::new("s", Some("me".into()), Some("you".into())).token("u", 1, 1);
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("claims")).expect("base64");
        let claims: serde_json::Value = serde_json::from_slice(&claims).expect("json");
        assert_eq!((&claims["iss"], &claims["aud"]), (&"me".into(), &"you".into()));
    }

    #[test]
    fn a_solved_puzzle_has_its_zero_bits() {
        let n = solve("abc", 10, 1 << 20).expect("2^20 tries suffice for 10 bits");
        let hash = Sha256::digest(format!("abc:{n}"));
        assert!(hash[0] == 0 && hash[1] >> 6 == 0, "{hash:x?}");
        assert_eq!(solve("abc", 250, 10), None, "the bound on tries holds");
    }

    #[test]
    fn zero_bits_are_counted_over_byte_borders() {
        assert_eq!(leading_zero_bits(&[0, 0, 0x1f]), 19);
        assert_eq!(leading_zero_bits(&[0x80]), 0);
    }
}
