//! What can go wrong with a server, in words that say what to do. It never decides anything.

use std::path::Path;
use std::{fmt, fs, io};

/// Lines of a server's log that an error quotes.
const LOG_LINES_MAX: usize = 25;

/// Why a server could not be started, reached or ended. Its `Debug` is its `Display`: tests print the former.
pub struct Error(String);

impl Error {
    /// In these words.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self(format!("{doing}: {error}"))
    }

    pub(crate) fn missing(program: &str, package: &str) -> Self {
        Self(format!(
            "{program} is not installed: `./test` installs it, or `apt-get install {package}` (Debian) does"
        ))
    }

    /// With the end of what the server printed.
    pub(crate) fn with_log(text: impl fmt::Display, log: &Path) -> Self {
        let printed = fs::read(log).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed);
        let lines: Vec<&str> = printed.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n  | ");
        Self(format!("{text}; its last words:\n  | {tail}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
