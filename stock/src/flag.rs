//! The sold-out flag's port: a versioned hint that ends requests before they reach the ledger.
//!
//! Every adapter
//! - MUST apply a state only if its version is newer than the one it holds (compare epoch, then counter);
//! - MUST answer *unknown* for a sale it has heard nothing of, and for every sale while it is out of touch;
//! - MUST make a published state visible to `read` on every thread of the process before `publish` returns;
//! - MUST never block, allocate or lock in [`FlagCell::read`].
//!
//! Stale "open" is harmless. A stale "sold out" heals: whoever holds one asks the ledger every 2 s.

use serde::{Deserialize, Serialize};

/// Orders two states of one sale's flag: a newer ledger life wins, then the ledger's own counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FlagVersion {
    /// The life of the ledger's memory that spoke.
    pub epoch: u64,
    /// Bumped by the ledger in the step that makes `remaining` ≤ 0 or > 0.
    pub counter: u64,
}

/// What the ledger says of one sale's stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagState {
    /// No unit is left.
    pub sold_out: bool,
    /// Newer wins.
    pub version: FlagVersion,
}
