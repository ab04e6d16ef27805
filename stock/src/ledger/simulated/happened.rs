//! What happened at the simulated server, seen from beside it: for a simulation that says what it has covered, and that judges
//! each opened sale by what was promised before. Decides nothing.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::{OrderId, SaleId};

/// Openings that are kept until somebody takes them.
pub(super) const OPENINGS_MAX: usize = 1_024;

/// How often what happened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Happened {
    /// The memory was lost while a reserve batch's answer was on its way.
    pub lost_in_mid_batch: u64,
    /// The memory was lost while a sale was installed and not yet open.
    pub lost_in_mid_rebuild: u64,
    /// A reserve batch took something after its sender had given it up.
    pub late_batches: u64,
    /// A reserve batch came too late, or into another life of the ledger, and was refused.
    pub late_batches_refused: u64,
    /// An install was carried out after its sender had given it up.
    pub late_installs: u64,
    /// An install came too late and was refused.
    pub late_installs_refused: u64,
}

/// A closed sale became an open one.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Which.
    pub sale: SaleId,
    /// In which life of the ledger.
    pub epoch: u64,
    /// When.
    pub at: Instant,
    /// Every id that it knew.
    pub known: BTreeSet<OrderId>,
}
