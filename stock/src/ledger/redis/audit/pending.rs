//! What has been pending for long in Redis, read from the raw orders. As little code shared with what it audits as the count.

use std::collections::BTreeMap;

use fred::interfaces::ClientLike;

use super::{AuditError, RedisAudit, command};
use crate::{OrderId, Owner, SaleId};

/// An order that has been pending for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPending {
    /// Which.
    pub order_id: OrderId,
    /// Whose log was to take it.
    pub owner: Owner,
    /// Units.
    pub quantity: u32,
    /// Since when, by the clock of the sale's server.
    pub reserved_at_ms: u64,
}

impl RedisAudit {
    /// The orders of a sale that have been pending for `age_ms` at least, by id. A time that lies as far ahead counts as well: the
    /// server's clock was put back.
    ///
    /// # Errors
    /// [`AuditError`]: nothing can be said.
    pub async fn pending_for(&self, sale: &SaleId, age_ms: u64) -> Result<Vec<LongPending>, AuditError> {
        let (seconds, micros): (u64, u64) = self.client.custom(command("TIME"), Vec::<String>::new()).await?;
        let now_ms = seconds * 1_000 + micros / 1_000;
        // A scan may hand an entry out twice.
        let mut found = BTreeMap::new();
        self.pages("HSCAN", &self.key(sale, "orders"), |id, value| {
            if let Some(pending) = long_pending(id, value)
                && now_ms.abs_diff(pending.reserved_at_ms) >= age_ms
            {
                found.insert(pending.order_id, pending);
            }
        })
        .await?;
        Ok(found.into_values().collect())
    }
}

/// Of `p`, the owner's 8 bytes, `RESERVED_AT_MS:SALE_VERSION:QUANTITY:USER`, perhaps NUL and metadata.
fn long_pending(id: &[u8], value: &[u8]) -> Option<LongPending> {
    let (owner, text) = value.strip_prefix(b"p")?.split_first_chunk::<8>()?;
    let line = std::str::from_utf8(text.split(|byte| *byte == 0).next()?).ok()?;
    let mut parts = line.splitn(4, ':');
    Some(LongPending {
        order_id: OrderId(u128::from_be_bytes(id.try_into().ok()?)),
        owner: Owner(u64::from_be_bytes(*owner)),
        reserved_at_ms: parts.next()?.parse().ok()?,
        quantity: parts.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_pending_is_read() {
        let id = 7u128.to_be_bytes();
        let found = long_pending(&id, b"p\0\0\0\0\0\0\0\x091700:5:2:a:b\0x:y").unwrap();
        let expected =
            LongPending { order_id: OrderId(7), owner: Owner(9), quantity: 2, reserved_at_ms: 1_700 };
        assert_eq!(found, expected);
        for other in [&b"c2:a"[..], b"r", b"p", b"p\0\0\0\0\0\0\0\x091700", b""] {
            assert_eq!(long_pending(&id, other), None);
        }
    }
}
