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
