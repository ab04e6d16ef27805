//! How the tables stand to this program. Each adapter counts its own versions; what a difference of versions means is the same.

use super::DatabaseError;

/// What brings tables up to date.
pub(super) const MIGRATE: &str = "run `floodgate migrate --apply`";

/// Every tagged version has this table; builds that recorded a version before it was there were never tagged.
pub(super) const MARK: &str = "floodgate_journal";

/// What the tables say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// The version recorded.
    pub(super) version: u32,
    /// Whether [`MARK`] is there.
    pub(super) is_marked: bool,
}

/// How the tables stand to this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// None of ours is there, or not all of the first version's.
    Missing,
    /// Made by a build that was never released: no version takes them over.
    Untagged,
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

    pub(super) fn of(found: Option<Found>, wanted: u32) -> Self {
        let Some(Found { version: found, is_marked }) = found else { return Self::Missing };
        match found {
            _ if !is_marked => Self::Untagged,
            _ if found < wanted => Self::Outdated { found, wanted },
            _ if found == wanted => Self::Current,
            _ if found == wanted + 1 => Self::NewerByOne,
            _ => Self::TooNew { found, wanted },
        }
    }

    /// Whether a migration may work on them.
    pub(super) fn may_migrate(self) -> Result<(), DatabaseError> {
        match self {
            Self::Untagged | Self::TooNew { .. } => Err(DatabaseError::Schema(self.to_string())),
            Self::Missing | Self::Outdated { .. } | Self::Current | Self::NewerByOne => Ok(()),
        }
    }
}

impl std::fmt::Display for SchemaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => write!(f, "missing; {MIGRATE}"),
            Self::Untagged => f.write_str(
                "those of a build that was never released, which no version takes over: name a new database in \
                 orders.database_url, with a new queue.directory beside it, or move the floodgate_ tables away and run \
                 `floodgate migrate --apply`",
            ),
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
