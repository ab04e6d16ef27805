//! Which ledger the sales live in, by the database's word. A process that is connected to another one touches no sale there: what it
//! installed, settled or read would be in a memory that nobody else sees.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::ledger::{LedgerIdentity, LedgerSight};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// `None`: nothing is recorded, and any ledger serves.
    ledger: Mutex<Option<LedgerIdentity>>,
    /// Others see the recorded ledger, and this process another one. Written by the membership, read by what reports
    /// readiness; it guards nothing else, so relaxed.
    elsewhere: AtomicBool,
}

impl Recorded {
    pub(crate) fn set(&self, ledger: Option<LedgerIdentity>) {
        *self.ledger.lock() = ledger;
    }

    /// Whether what is seen is not what is recorded.
    pub(crate) fn differs_from(&self, seen: &LedgerSight) -> bool {
        self.ledger.lock().as_ref().is_some_and(|recorded| *recorded != seen.ledger)
    }

    pub(crate) fn set_elsewhere(&self, elsewhere: bool) {
        self.elsewhere.store(elsewhere, Ordering::Relaxed);
    }

    pub(crate) fn is_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed)
    }
}
