//! What one sale's flag is known to be, read by every request.

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::sync::Arc;

use super::FlagState;

/// One sale's flag. Reads are lock-free and allocate nothing; writers take turns.
#[derive(Debug, Default)]
pub struct FlagCell {
    /// Written under `writing` alone, read by everybody.
    state: ArcSwapOption<FlagState>,
    writing: Mutex<()>,
}

impl FlagCell {
    /// The newest state heard of; `None` is *unknown*: ask the ledger.
    #[must_use]
    pub fn read(&self) -> Option<FlagState> {
        self.state.load().as_deref().copied()
    }

    /// Takes the state over if it is newer; tells whether it was.
    pub(super) fn apply(&self, state: FlagState) -> bool {
        let _turn = self.writing.lock();
        let newer = self.read().is_none_or(|held| state.version > held.version);
        if newer {
            self.state.store(Some(Arc::new(state)));
        }
        newer
    }

    /// Back to unknown; tells whether something was known.
    pub(super) fn clear(&self) -> bool {
        let _turn = self.writing.lock();
        self.state.swap(None).is_some()
    }
}
