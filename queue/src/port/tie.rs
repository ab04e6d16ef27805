//! To whom a log belongs, as the log itself says it. Knows no deployment and no registry, only what is compared with them.

use std::fmt;

/// One opening of a log by its owner. A log and the registry that lists it both hold the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Rises by one with each opening.
    pub generation: u64,
    /// Drawn at the opening: tells two copies of a log apart that were opened equally often.
    pub nonce: u64,
}

/// The one deployment that a log belongs to, and the log's last opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tie {
    /// The deployment's id.
    pub deployment: u128,
    /// The last opening that was written to the log.
    pub opening: Opening,
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.generation, self.nonce)
    }
}
