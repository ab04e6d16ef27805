//! The epoch gate of a gateway whose log owes nothing.

use std::sync::Arc;

/// A gate whose log is merged into the ledger of `epoch`.
pub(crate) fn epoch_gate_at(epoch: u64) -> Arc<stock::EpochGate> {
    let epoch_gate = stock::EpochGate::new();
    epoch_gate.raise(epoch);
    epoch_gate.offer(epoch);
    Arc::new(epoch_gate)
}
