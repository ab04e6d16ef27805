//! The process's one temporary directory, and the watchdog that empties the place once the process is gone.
//! It must never outlive what it guards for long, and never touch what this process did not start or make.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::Error;

/// Reads process groups from its standard input. The input ends when the last who could write to it has ended, in whatever
/// way: then it kills the groups that are left and removes the directory.
///
/// Servers name themselves before they `exec` (see `process.rs`), so there is no moment at which one runs unknown.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP QUIT
groups=
while read -r what group; do
  if [ "$what" = started ]; then
    groups="$groups $group"
  else
    left=
    for other in $groups; do [ "$other" = "$group" ] || left="$left $other"; done
    groups=$left
  fi
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
tries=0
until rm -rf -- "$1" 2>/dev/null || [ "$tries" -ge 100 ]; do tries=$((tries + 1)); sleep 0.1; done
"#;

struct Scratch {
    root: PathBuf,
    watchdog: Mutex<ChildStdin>,
    directories: AtomicU64,
}

// Never dropped, as statics are not: the watchdog removes the directory when the process ends.
static SCRATCH: LazyLock<Result<Scratch, String>> = LazyLock::new(|| {
    let root = tempfile::Builder::new()
        .prefix("floodgate-testbed-")
        .tempdir()
        .map_err(|error| format!("cannot make a temporary directory: {error}"))?
        .keep();
    let mut watchdog = Command::new("sh")
        .args(["-c", WATCHDOG, "floodgate-testbed-watchdog"])
        .arg(&root)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C and `kill -- -GROUP` are meant for the test, not for what cleans up after it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot start sh: {error}"))?;
    let input = watchdog.stdin.take().ok_or("sh has no input")?;
    Ok(Scratch { root, watchdog: Mutex::new(input), directories: AtomicU64::new(0) })
});

fn scratch() -> Result<&'static Scratch, Error> {
    SCRATCH.as_ref().map_err(|error| Error::new(error.clone()))
}

/// What a server writes its group to before it becomes the server.
pub(crate) fn watchdog_input() -> Result<Stdio, Error> {
    use std::os::fd::AsFd;
    let input = scratch()?.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
    let copy =
        input.as_fd().try_clone_to_owned().map_err(|error| Error::io("the watchdog's pipe", &error))?;
    Ok(Stdio::from(copy))
}

/// The group has ended and was waited for: its number may soon be another's.
pub(crate) fn group_ended(group: u32) {
    if let Ok(scratch) = scratch() {
        let mut input = scratch.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
        // One write, so that no other's line can come in between. A watchdog that is gone can do no harm either.
        let _ = input.write_all(format!("ended {group}\n").as_bytes());
    }
}

/// A new empty directory below the process's own; removed when dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// `name` is for the eyes of whoever looks in.
    pub fn new(name: &str) -> Result<Self, Error> {
        let scratch = scratch()?;
        let number = scratch.directories.fetch_add(1, Ordering::Relaxed);
        let path = scratch.root.join(format!("{name}-{number}"));
        fs::create_dir(&path).map_err(|error| Error::io(path.display(), &error))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(|error| Error::io(path.display(), &error))?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A failure is not worth a panic in a drop: the watchdog removes the whole root later.
        let _ = fs::remove_dir_all(&self.0);
    }
}
