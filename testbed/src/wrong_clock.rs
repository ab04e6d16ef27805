//! The environment of a process whose wall clock is wrong, by libfaketime. Its monotonic clock stays as it is: what it is o'clock
//! differs, not how fast time passes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// What to set for one process.
pub type Environment = Vec<(&'static str, String)>;

/// So many seconds ahead, or behind if negative, from its start on.
pub fn ahead_by(seconds: i64) -> Result<Environment, Error> {
    let mut environment = common()?;
    environment.push(("FAKETIME", format!("{seconds:+}")));
    Ok(environment)
}

/// As many seconds ahead as `file` says at the moment: see [`set`].
pub fn as_in(file: &Path) -> Result<Environment, Error> {
    let mut environment = common()?;
    environment.push(("FAKETIME_TIMESTAMP_FILE", file.display().to_string()));
    environment.push(("FAKETIME_NO_CACHE", "1".into()));
    Ok(environment)
}

/// Puts the clock of a process that goes by `file`. In one step: a process that reads half of a line would have any time.
pub fn set(file: &Path, seconds: i64) -> Result<(), Error> {
    let whole = file.with_extension("whole");
    fs::write(&whole, format!("{seconds:+}\n")).map_err(|error| Error::io(whole.display(), &error))?;
    fs::rename(&whole, file).map_err(|error| Error::io(file.display(), &error))
}

fn common() -> Result<Environment, Error> {
    let library = library()?.display().to_string();
    Ok(vec![("LD_PRELOAD", library), ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into())])
}

fn library() -> Result<PathBuf, Error> {
    fs::read_dir("/usr/lib")
        .map_err(|error| Error::io("/usr/lib", &error))?
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
        .ok_or_else(|| Error::missing("libfaketimeMT.so.1", "libfaketime"))
}
