//! A reservation: the units taken for one order id, and its form as a message of the topic `floodgate-orders`.

use serde::{Deserialize, Serialize};

use crate::{OrderId, SaleId, UserId};

/// Everything that is known of an order at the moment when its units are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The order that it becomes.
    pub order_id: OrderId,
    /// Of which sale.
    pub sale: SaleId,
    /// For whom.
    pub user: UserId,
    /// Units taken; at least 1.
    pub quantity: u32,
    /// The buyer's own, opaque, at most 1 KiB of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<str>>,
    /// Ledger time of the taking, milliseconds since the Unix epoch.
    pub reserved_at_ms: u64,
    /// The sale's version under which they were taken: the order is judged by that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale_version: Option<u64>,
}

/// The version of the message that [`Reservation::encode`] writes.
pub const MESSAGE_VERSION: u32 = 1;

/// Why a message is not a reservation.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A newer process wrote it: stop reading this log, do not skip.
    #[error(
        "message version {0} is unknown to this process (it knows {MESSAGE_VERSION}): upgrade it before it reads this log"
    )]
    UnknownVersion(u32),
    /// Not our message at all.
    #[error("not an order message: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct MessageOut<'a> {
    v: u32,
    #[serde(flatten)]
    order: &'a Reservation,
}

#[derive(Deserialize)]
struct MessageVersion {
    v: u32,
}

impl Reservation {
    /// The message of the topic `floodgate-orders` (`stock/schema/order.v1.json`).
    ///
    /// # Errors
    /// Never in practice: every field has a JSON form; the error is passed on so that nothing here can panic.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&MessageOut { v: MESSAGE_VERSION, order: self })
    }

    /// Reads what [`Self::encode`] of this or the previous version wrote. Unknown fields are ignored.
    ///
    /// # Errors
    /// [`DecodeError`]: an unknown version must stop the reader; a malformed message is a dead letter.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let MessageVersion { v } = serde_json::from_slice(message)?;
        if v != MESSAGE_VERSION {
            return Err(DecodeError::UnknownVersion(v));
        }
        Ok(serde_json::from_slice(message)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn reservation(metadata: Option<&str>) -> Reservation {
        let sale: SaleId = "demo".parse().unwrap();
        Reservation {
            order_id: OrderId::new(1_700_000_000_000, &sale, 42),
            sale,
            user: "安娜".parse().unwrap(),
            quantity: 2,
            metadata: metadata.map(Into::into),
            reserved_at_ms: 1_700_000_000_001,
            sale_version: Some(3),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for reservation in [reservation(None), reservation(Some("{\"colour\": \"blau\"}\u{0}"))] {
            assert_eq!(Reservation::decode(&reservation.encode().unwrap()).unwrap(), reservation);
        }
    }

    #[test]
    fn the_message_has_the_shape_of_its_schema() {
        let schema: Value = serde_json::from_str(include_str!("../schema/order.v1.json")).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let required: Vec<&str> =
            schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        for (metadata, fields) in [(None, required.len() + 1), (Some("gift"), required.len() + 2)] {
            let message = reservation(metadata).encode().unwrap();
            let message: Value = serde_json::from_slice(&message).unwrap();
            let message = message.as_object().unwrap();
            assert_eq!(message.len(), fields, "{message:?}");
            assert!(required.iter().all(|name| message.contains_key(*name)), "{message:?}");
            for (name, value) in message {
                let property = &properties[name];
                match property["type"].as_str() {
                    Some("string") => assert!(value.is_string(), "{name}"),
                    Some("integer") => assert!(value.as_u64() >= property["minimum"].as_u64(), "{name}"),
                    None => assert_eq!(value, &property["const"], "{name}"),
                    other => panic!("{name}: a type that this test does not know, {other:?}"),
                }
            }
        }
        assert_eq!(properties["v"]["const"], MESSAGE_VERSION);
    }

    #[test]
    fn an_unknown_version_is_told_from_rubbish() {
        let newer = br#"{"v": 2, "order": {"new": "shape"}}"#;
        assert!(matches!(Reservation::decode(newer), Err(DecodeError::UnknownVersion(2))));
        for rubbish in [&b""[..], b"{}", b"\xff", br#"{"v": 1}"#, br#"{"v": "1"}"#] {
            assert!(matches!(Reservation::decode(rubbish), Err(DecodeError::Malformed(_))));
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut message: Value = serde_json::from_slice(&reservation(None).encode().unwrap()).unwrap();
        message["coupon"] = Value::from("later version");
        let message = serde_json::to_vec(&message).unwrap();
        assert_eq!(Reservation::decode(&message).unwrap(), reservation(None));
    }
}
