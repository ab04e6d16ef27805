//! How long a pass that nobody uses counts. Without an end of its own, those who answer a question early and never come would
//! block an open, unsold sale for the whole life of their passes.

use crate::OrderId;

/// Buyers who come to the opening have pressed by then.
const COUNTS_FROM_MS: u64 = 3_000;
/// Then passes stop counting one after the other, evenly: others come in their place, and not all in one moment.
const COUNTS_THROUGH_MS: u64 = 10_000;

/// Until when a pass counts at the gate, which could be used since `usable_ms`: the later of its issue and the opening. Different for
/// each pass and never beyond its end.
#[must_use]
pub fn counts_until_ms(order_id: OrderId, usable_ms: u64, expires_at_ms: u64) -> u64 {
    // The id's low bits are random.
    let spread = (order_id.0 % u128::from(COUNTS_THROUGH_MS - COUNTS_FROM_MS)) as u64;
    (usable_ms + COUNTS_FROM_MS + spread).min(expires_at_ms)
}
