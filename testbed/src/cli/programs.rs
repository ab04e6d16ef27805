//! The programs that the set-up runs: those that were named, or a release build with every adapter. It never guesses what a
//! program that it finds somewhere was built with; cargo knows, and is quick where nothing has changed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use testbed::Error;

/// `floodgate` and `loadtest`.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) floodgate: PathBuf,
    pub(super) loadtest: PathBuf,
}

/// `floodgate` alone.
pub(super) fn floodgate(name: Option<&Path>) -> Result<PathBuf, Error> {
    name.map_or_else(|| Programs::build().map(|built| built.floodgate), named)
}

impl Programs {
    /// Builds what is not named, with cargo's progress on standard error.
    pub(super) fn find(floodgate: Option<&Path>, loadtest: Option<&Path>) -> Result<Self, Error> {
        if let (Some(floodgate), Some(loadtest)) = (floodgate, loadtest) {
            return Ok(Self { floodgate: named(floodgate)?, loadtest: named(loadtest)? });
        }
        let built = Self::build()?;
        Ok(Self {
            floodgate: floodgate.map_or(Ok(built.floodgate), named)?,
            loadtest: loadtest.map_or(Ok(built.loadtest), named)?,
        })
    }

    fn build() -> Result<Self, Error> {
        // Both at once, whoever asks: built alone, each would have other features of the crates below, and those built twice.
        let arguments =
            "build --release --workspace --features production --bin floodgate --bin loadtest".split(' ');
        eprintln!("building floodgate and loadtest (release, with all adapters; minutes the first time) …");
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(arguments)
            .args(["--message-format", "json-render-diagnostics"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| Error::new(format!("cargo: {error}")))?;
        if !output.status.success() {
            return Err(Error::new("cargo build failed: see above"));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        Ok(Self {
            floodgate: executable(&messages, "floodgate")?,
            loadtest: executable(&messages, "loadtest")?,
        })
    }
}

fn named(program: &Path) -> Result<PathBuf, Error> {
    // The processes run in directories of their own.
    std::path::absolute(program)
        .ok()
        .filter(|program| program.is_file())
        .ok_or_else(|| Error::new(format!("{}: no such program", program.display())))
}

/// cargo prints one JSON message a line; a program's names an executable.
fn executable(messages: &str, name: &str) -> Result<PathBuf, Error> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Error::new(format!("cargo named no program {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_among_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"loadtest\"},\"executable\":\"/t/loadtest\"}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"floodgate\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"floodgate\"},\"executable\":\"/t/floodgate\"}\n",
            "not json\n{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(executable(messages, "floodgate").ok(), Some("/t/floodgate".into()));
        assert_eq!(executable(messages, "loadtest").ok(), Some("/t/loadtest".into()));
        assert!(executable(messages, "testbed").is_err());
    }
}
