//! How the tables stand to this program. Each adapter counts its own versions; what a difference of versions means is the same.

/// What brings tables up to date.
pub(super) const MIGRATE: &str = "run `floodgate migrate --apply`";

/// How the tables stand to this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// None of ours is there, or not all of the first version's.
    Missing,
    /// Older than this program needs.
    Outdated {
        /// Their version.
        found: u32,
        /// The one that this program writes.
        wanted: u32,
    },
    /// As this program writes them.
    Current,
    /// One version newer, which by our promise this program can still work with.
    NewerByOne,
    /// Too new for this program.
    TooNew {
        /// Their version.
        found: u32,
        /// The one that this program writes.
        wanted: u32,
    },
}

impl SchemaState {
    /// Whether this program may work on them.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Current | Self::NewerByOne)
    }

    pub(super) fn of(found: Option<u32>, wanted: u32) -> Self {
        match found {
            None => Self::Missing,
            Some(found) if found < wanted => Self::Outdated { found, wanted },
            Some(found) if found == wanted => Self::Current,
            Some(found) if found == wanted + 1 => Self::NewerByOne,
            Some(found) => Self::TooNew { found, wanted },
        }
    }
}

impl std::fmt::Display for SchemaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => write!(f, "missing; {MIGRATE}"),
            Self::Outdated { found, wanted } => {
                write!(f, "version {found}; wanted is {wanted}; {MIGRATE}")
            }
            Self::Current => write!(f, "up to date"),
            Self::NewerByOne => write!(f, "one version newer, usable by this program"),
            Self::TooNew { found, wanted } => {
                write!(
                    f,
                    "version {found}, too new for this program, which writes {wanted}: use the newer program"
                )
            }
        }
    }
}
