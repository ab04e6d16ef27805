//! Passes: signed proof that a user may try to buy, bound to the user, the sale and the one order that it can become.
//!
//! A pass is the base64url form of
//! `version | len key-id | len sale | len user | order id (16) | expires_at_ms (8) | HMAC-SHA-256 (32)`:
//! every field has a fixed length or a length in front, so that no two sets of fields give one text under the MAC. All of it
//! follows from the user, the sale, the order id and the end of its life: asking again for a live pass gives the same text.
//! Nothing here may log a pass or a key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use stock::{OrderId, SaleId, UserId};

use crate::config::{ConfigError, GateConfig};

type HmacSha256 = Hmac<Sha256>;

/// What [`PassKeys::issue`] writes; the version before it would be read too.
const PASS_VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
const FIXED_BYTES: usize = 16 + 8;
/// Version, three lengths, key id, sale, user, order id, end, MAC.
const PASS_BYTES_MAX: usize = 1 + 3 + 16 + 64 + 128 + FIXED_BYTES + MAC_BYTES;
/// Longest text that can be a pass.
pub const PASS_TEXT_MAX: usize = PASS_BYTES_MAX.div_ceil(3) * 4;

/// Why a text is not a pass of ours. Buyers hear one word for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// Not the form of a pass, or of a version or key that this process does not know.
    #[error("not a pass, or made with a key that is no longer accepted")]
    Malformed,
    /// The MAC does not fit: changed or made up.
    #[error("the pass has been changed")]
    Forged,
}

/// A pass whose MAC fits. It may have expired: see [`Pass::expired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// For which sale.
    pub sale: SaleId,
    /// For whom.
    pub user: UserId,
    /// The one order that it can become.
    pub order_id: OrderId,
    /// First instant (ledger time, ms) at which it no longer buys; it still shows its order.
    pub expires_at_ms: u64,
}

impl Pass {
    /// Whether it no longer buys.
    #[must_use]
    pub fn expired(&self, now_ms: u64) -> bool {
        now_ms >= self.expires_at_ms
    }
}

/// A key made from a configured secret for one purpose; what is signed with one purpose's key is void for another.
#[derive(Clone)]
pub struct DerivedKey {
    /// As configured.
    pub id: Box<str>,
    mac: HmacSha256,
}

impl DerivedKey {
    /// The key for `purpose` out of `secret`.
    #[must_use]
    pub fn derive(id: &str, secret: &[u8], purpose: &str) -> Self {
        let mut derivation = keyed(secret);
        derivation.update(purpose.as_bytes());
        Self { id: id.into(), mac: keyed(&derivation.finalize().into_bytes()) }
    }

    /// A MAC under this key with its key schedule done.
    #[must_use]
    pub fn mac(&self) -> HmacSha256 {
        self.mac.clone()
    }
}

fn keyed(secret: &[u8]) -> HmacSha256 {
    // HMAC takes keys of any length: longer ones are hashed first.
    <HmacSha256 as Mac>::new_from_slice(secret).unwrap_or_else(|_| unreachable!("HMAC takes any key length"))
}

/// Derives every configured secret for one purpose, in order: the first signs.
///
/// # Errors
/// A secret is missing.
pub fn derive_keys(gate: &GateConfig, purpose: &str) -> Result<Vec<DerivedKey>, ConfigError> {
    gate.validate()?;
    Ok(gate
        .pass_secrets
        .iter()
        .filter_map(|entry| entry.secret.as_ref().map(|s| (entry, s)))
        .map(|(entry, secret)| DerivedKey::derive(&entry.id, secret.expose().as_bytes(), purpose))
        .collect())
}

/// The purpose of the keys of passes.
pub const PASS_PURPOSE: &str = "floodgate pass v1";
/// The purpose of the keys of challenges.
pub const CHALLENGE_PURPOSE: &str = "floodgate challenge v1";

/// Makes and checks passes.
#[derive(Clone)]
pub struct PassKeys {
    keys: Vec<DerivedKey>,
}

impl PassKeys {
    /// Two keys at most; the first signs.
    ///
    /// # Errors
    /// See [`derive_keys`].
    pub fn new(gate: &GateConfig) -> Result<Self, ConfigError> {
        Ok(Self { keys: derive_keys(gate, PASS_PURPOSE)? })
    }

    /// Writes a pass with the first key.
    #[must_use]
    pub fn issue(&self, pass: &Pass) -> String {
        let key = &self.keys[0];
        let mut bytes = Vec::with_capacity(PASS_BYTES_MAX);
        bytes.push(PASS_VERSION);
        for field in [&*key.id, pass.sale.as_str(), pass.user.as_str()] {
            // Ids are at most 128 bytes, checked where they are made.
            bytes.push(field.len() as u8);
            bytes.extend_from_slice(field.as_bytes());
        }
        bytes.extend_from_slice(&pass.order_id.0.to_be_bytes());
        bytes.extend_from_slice(&pass.expires_at_ms.to_be_bytes());
        let mut mac = key.mac();
        mac.update(&bytes);
        bytes.extend_from_slice(&mac.finalize().into_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a pass without allocating, unless it is good. Does not look at the time.
    ///
    /// # Errors
    /// [`PassError`].
    pub fn verify(&self, text: &str) -> Result<Pass, PassError> {
        if text.len() > PASS_TEXT_MAX {
            return Err(PassError::Malformed);
        }
        let mut buffer = [0u8; PASS_TEXT_MAX];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut buffer).map_err(|_| PassError::Malformed)?;
        let (signed, mac) = buffer[..length].split_last_chunk::<MAC_BYTES>().ok_or(PassError::Malformed)?;
        let (&version, mut rest) = signed.split_first().ok_or(PassError::Malformed)?;
        if version != PASS_VERSION {
            return Err(PassError::Malformed);
        }
        let mut field = || {
            let (&length, tail) = rest.split_first().ok_or(PassError::Malformed)?;
            let (value, tail) = tail.split_at_checked(usize::from(length)).ok_or(PassError::Malformed)?;
            rest = tail;
            std::str::from_utf8(value).map_err(|_| PassError::Malformed)
        };
        let (key_id, sale, user) = (field()?, field()?, field()?);
        let (order_id, expires_at) = rest.split_first_chunk::<16>().ok_or(PassError::Malformed)?;
        let expires_at: &[u8; 8] = expires_at.try_into().map_err(|_| PassError::Malformed)?;

        let key = self.keys.iter().find(|key| &*key.id == key_id).ok_or(PassError::Malformed)?;
        let mut expected = key.mac();
        expected.update(signed);
        expected.verify_slice(mac).map_err(|_| PassError::Forged)?;

        Ok(Pass {
            sale: sale.parse().map_err(|_| PassError::Malformed)?,
            user: user.parse().map_err(|_| PassError::Malformed)?,
            order_id: OrderId(u128::from_be_bytes(*order_id)),
            expires_at_ms: u64::from_be_bytes(*expires_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PassSecret, Secret};

    fn keys(secrets: &[(&str, &str)]) -> PassKeys {
        let pass_secrets = secrets
            .iter()
            .map(|(id, secret)| PassSecret {
                id: (*id).into(),
                secret: Some(Secret::new(secret.repeat(32))),
                secret_file: None,
            })
            .collect();
        PassKeys::new(&GateConfig { pass_secrets, ..GateConfig::default() }).expect("good keys")
    }

    fn pass() -> Pass {
        let sale: SaleId = "demo-1".parse().expect("sale");
        let order_id = OrderId::new(1_700_000_000_000, &sale, 7);
        Pass { sale, user: "用户-1".parse().expect("user"), order_id, expires_at_ms: 1_700_000_120_000 }
    }

    #[test]
    fn a_pass_comes_back_whole() {
        let keys = keys(&[("k1", "a")]);
        let text = keys.issue(&pass());
        assert_eq!(keys.verify(&text), Ok(pass()));
        assert!(!pass().expired(1_700_000_119_999) && pass().expired(1_700_000_120_000));
        assert_eq!(text, keys.issue(&pass()), "the same pass has one text");
    }

    #[test]
    fn the_longest_pass_fits() {
        let long = Pass {
            sale: "s".repeat(64).parse().expect("sale"),
            user: "u".repeat(128).parse().expect("user"),
            ..pass()
        };
        let keys = keys(&[("sixteen-bytes-id", "a")]);
        assert_eq!(keys.verify(&keys.issue(&long)), Ok(long));
    }

    #[test]
    fn no_bit_may_flip_and_no_byte_be_missing() {
        let keys = keys(&[("k1", "a")]);
        let text = keys.issue(&pass());
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.verify(&URL_SAFE_NO_PAD.encode(changed)).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(keys.verify(&URL_SAFE_NO_PAD.encode(&bytes[..length])).is_err(), "length {length}");
        }
        for text in ["", "=", "%00", "\u{0}", "ü", &"A".repeat(PASS_TEXT_MAX + 1), &"A".repeat(PASS_TEXT_MAX)]
        {
            assert!(keys.verify(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_rotate() {
        let old = keys(&[("k1", "a")]);
        let both = keys(&[("k2", "b"), ("k1", "a")]);
        let new = keys(&[("k2", "b")]);
        assert!(both.verify(&old.issue(&pass())).is_ok());
        assert!(new.verify(&both.issue(&pass())).is_ok());
        assert_eq!(new.verify(&old.issue(&pass())), Err(PassError::Malformed));
        // The same id over another secret is somebody else's pass.
        assert_eq!(keys(&[("k1", "c")]).verify(&old.issue(&pass())), Err(PassError::Forged));
    }

    #[test]
    fn purposes_have_keys_of_their_own() {
        let one = DerivedKey::derive("k", &[7; 32], PASS_PURPOSE).mac().finalize().into_bytes();
        let other = DerivedKey::derive("k", &[7; 32], CHALLENGE_PURPOSE).mac().finalize().into_bytes();
        assert_ne!(one, other);
    }
}
