//! The identifiers that travel through every crate. They are checked once, here, and trusted afterwards.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// An order id is 26 characters of Crockford's base 32.
    #[error("an order id is 26 characters 0-9 and A-Z without I, L, O and U")]
    Order,
    /// A sale id is 1 to 64 characters.
    #[error("a sale id is 1 to 64 characters a-z, A-Z, 0-9, '-', '_' and '.', not starting with '.'")]
    Sale,
    /// A user id is 1 to 128 bytes.
    #[error("a user id is 1 to 128 bytes of UTF-8 without control characters")]
    User,
    /// A deployment is 32 hexadecimal digits.
    #[error("a deployment is 32 hexadecimal digits")]
    Deployment,
    /// An instance is up to 16 hexadecimal digits.
    #[error("an instance is 1 to 16 hexadecimal digits")]
    Instance,
}

/// The one order that a pass can become: 48 bits of milliseconds, 16 bits that narrow down the sale, 64 random bits.
///
/// Written as 26 characters of Crockford's base 32 (upper case), so that text order is time order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId(pub u128);

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl OrderId {
    /// Builds an id from its issue time, its sale and 64 random bits.
    #[must_use]
    pub fn new(now_ms: u64, sale: &SaleId, random: u64) -> Self {
        let time = u128::from(now_ms & 0xFFFF_FFFF_FFFF);
        Self(time << 80 | u128::from(sale.tag()) << 64 | u128::from(random))
    }

    /// The 16 bits that tell which sales can own this id: see [`SaleId::tag`].
    #[must_use]
    pub fn sale_tag(self) -> u16 {
        (self.0 >> 64) as u16
    }

    /// When the id was made, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn issued_at_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 26];
        for (place, byte) in text.iter_mut().rev().enumerate() {
            *byte = CROCKFORD[(self.0 >> (place * 5)) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OrderId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // 26 characters hold 130 bits: the first one must not exceed 7, else two texts would name one id.
        if text.len() != 26 || text.as_bytes()[0] > b'7' {
            return Err(IdError::Order);
        }
        let mut value = 0u128;
        for byte in text.bytes() {
            let digit = CROCKFORD.iter().position(|&c| c == byte).ok_or(IdError::Order)?;
            value = value << 5 | digit as u128;
        }
        Ok(Self(value))
    }
}

impl Serialize for OrderId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OrderId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The process that answers for a reservation: the id of its log directory, which outlives restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner(pub u64);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Owner {
    type Err = IdError;

    /// As [`fmt::Display`] writes it; zeros in front may be left out.
    fn from_str(text: &str) -> Result<Self, IdError> {
        // The standard parser would take a sign.
        if text.len() > 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(IdError::Instance);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| IdError::Instance)
    }
}

/// One orders database and all that works on it: 128 random bits that live in that database. What the ledger holds of a sale names
/// the deployment that it belongs to. A copy of the database has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeploymentId(pub u128);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for DeploymentId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(IdError::Deployment);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| IdError::Deployment)
    }
}

/// Names a sale. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaleId(Arc<str>);

impl SaleId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// 16 bits of the id's SHA-256, carried by its order ids. Two sales may share a tag: it narrows, it does not name.
    #[must_use]
    pub fn tag(&self) -> u16 {
        let digest = Sha256::digest(self.0.as_bytes());
        u16::from_be_bytes([digest[0], digest[1]])
    }
}

impl FromStr for SaleId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.bytes().all(good) {
            return Err(IdError::Sale);
        }
        Ok(Self(text.into()))
    }
}

/// Names a buyer, as the operator's own login names them. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            return Err(IdError::User);
        }
        Ok(Self(text.into()))
    }
}

macro_rules! text_id {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_id!(SaleId, UserId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_ids_round_trip_and_sort_as_text() {
        let sale: SaleId = "demo".parse().unwrap();
        let ids = [0, 1, 1_700_000_000_000, 0xFFFF_FFFF_FFFF].map(|ms| OrderId::new(ms, &sale, u64::MAX));
        for pair in ids.windows(2) {
            assert!(pair[0].to_string() < pair[1].to_string());
        }
        for id in ids {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.sale_tag(), sale.tag());
        }
        assert_eq!(ids[2].issued_at_ms(), 1_700_000_000_000);
    }

    #[test]
    fn an_instance_is_read_as_it_is_written() {
        for id in [0, 0x7f, u64::MAX] {
            assert_eq!(Owner(id).to_string().parse(), Ok(Owner(id)));
        }
        assert_eq!("7F".parse(), Ok(Owner(0x7f)));
        for wrong in ["", "+7f", "-1", "0x7f", "7g", " 7", "00000000000000007", "１"] {
            assert_eq!(wrong.parse::<Owner>(), Err(IdError::Instance), "{wrong}");
        }
    }

    #[test]
    fn a_deployment_is_read_as_it_is_written() {
        for id in [0, 0x7f, u128::MAX] {
            assert_eq!(DeploymentId(id).to_string().parse(), Ok(DeploymentId(id)));
        }
        for wrong in ["", "7f", "+0000000000000000000000000000007f", "0000000000000000000000000000007g"] {
            assert_eq!(wrong.parse::<DeploymentId>(), Err(IdError::Deployment), "{wrong}");
        }
    }

    #[test]
    fn one_id_has_one_text() {
        let id = OrderId(u128::MAX).to_string();
        assert_eq!(id, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        for wrong in [
            "",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "7zzzzzzzzzzzzzzzzzzzzzzzzz",
            "7ZZZ",
            "7ZZZZZZZZZZZZZZZZZZZZZZZZU",
        ] {
            assert_eq!(wrong.parse::<OrderId>(), Err(IdError::Order), "{wrong}");
        }
    }

    #[test]
    fn sale_and_user_ids_are_checked() {
        for good in ["a", "2026-11.11_x", &"s".repeat(64)] {
            assert!(good.parse::<SaleId>().is_ok(), "{good}");
        }
        for bad in ["", ".hidden", "a b", "a/b", "é", "a\0", &"s".repeat(65)] {
            assert_eq!(bad.parse::<SaleId>(), Err(IdError::Sale), "{bad}");
        }
        for good in ["安娜", "a b", &"u".repeat(128)] {
            assert!(good.parse::<UserId>().is_ok(), "{good}");
        }
        for bad in ["", "a\0", "a\n", "\u{85}", &"u".repeat(129)] {
            assert_eq!(bad.parse::<UserId>(), Err(IdError::User), "{bad:?}");
        }
    }
}
