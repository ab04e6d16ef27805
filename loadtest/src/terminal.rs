//! What the load tester says. Best effort: a reader that has gone and a disk that is full take lines, never a run; the verdict is
//! the exit code.

use std::fmt::Display;
use std::io::Write;

/// One line of a result, on standard output.
pub(crate) fn print(line: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// One line about the run, on standard error.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes over the terminal's last line, on standard error.
pub(crate) fn refresh(line: impl Display) {
    let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{line}");
}
