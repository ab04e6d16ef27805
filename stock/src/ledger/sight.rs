//! Which ledger a process is connected to. It compares names and decides nothing.

use std::fmt;
use std::sync::Arc;

/// Names one life of one ledger's memory: another server, a restart and a promotion have another one. Printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerIdentity(Arc<str>);

impl LedgerIdentity {
    /// Takes what an adapter, or the database, has written.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LedgerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a process sees of a ledger that others can see too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerSight {
    /// Which one it is connected to.
    pub ledger: LedgerIdentity,
    /// Whether it may bear witness to it. Not of a server that no majority of the Sentinels names as the primary: there may be two.
    pub is_witness: bool,
}
