//! Standard output. Never panics: not when who reads has seen enough (`| head`), and not on a full disk.

use std::fmt::Display;
use std::io::{Error, ErrorKind, Result, Write};
use std::process::exit;

/// Prints `text` as it is.
///
/// # Errors
/// It could not be written. A reader that has gone ends the process instead, without a word and with exit code 1: whatever the
/// command would have found out, nobody was told.
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(1),
        Err(error) => Err(Error::new(error.kind(), format!("standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Prints `text` and ends the line.
///
/// # Errors
/// As [`print`].
pub(crate) fn line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Says `text` for a server, which runs on whether somebody reads it or not.
pub(crate) fn greet(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
