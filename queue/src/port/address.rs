//! Where a log is, whichever engine keeps it: what a configuration, a registry of instances and a report name it by.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What stands between an engine's name and the place that it understands.
const ENGINE_END: &str = "://";
const DISK: &str = "disk";

/// The address of one log. Its text is a plain path for a directory on this machine, and `ENGINE://PLACE` otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum LogAddress {
    /// A directory on this machine.
    Disk(PathBuf),
}

impl LogAddress {
    /// The same log, named in a way that does not depend on the working directory.
    #[must_use]
    pub fn absolute(&self) -> Self {
        match self {
            Self::Disk(path) => Self::Disk(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        }
    }
}

impl From<&Path> for LogAddress {
    fn from(path: &Path) -> Self {
        Self::Disk(path.to_path_buf())
    }
}

impl fmt::Display for LogAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A path that would be taken for an engine's address says what it is.
            Self::Disk(path) if path.to_string_lossy().contains(ENGINE_END) => {
                write!(formatter, "{DISK}{ENGINE_END}{}", path.display())
            }
            Self::Disk(path) => path.display().fmt(formatter),
        }
    }
}

impl From<LogAddress> for String {
    fn from(address: LogAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for LogAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl FromStr for LogAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let path = match text.split_once(ENGINE_END) {
            Some((DISK, path)) => path,
            Some(_) => return Err(InvalidAddress(text.to_owned())),
            None => text,
        };
        if path.is_empty() {
            Err(InvalidAddress(text.to_owned()))
        } else {
            Ok(Self::Disk(PathBuf::from(path)))
        }
    }
}

/// A text that names no log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no log: give the path of a log's directory")]
pub struct InvalidAddress(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_reads_back_from_its_text() {
        for path in ["data/queue", "/var/lib/floodgate", "/odd/disk:/x", "odd://path", "disk://odd", "队列"]
        {
            let address = LogAddress::Disk(PathBuf::from(path));
            assert_eq!(address.to_string().parse(), Ok(address.clone()), "{address}");
        }
        assert_eq!("disk:///a/b".parse(), Ok(LogAddress::Disk(PathBuf::from("/a/b"))));
        for wrong in ["", "disk://", "carrier-pigeon://coop"] {
            assert_eq!(wrong.parse::<LogAddress>(), Err(InvalidAddress(wrong.to_owned())));
        }
    }
}
