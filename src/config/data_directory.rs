//! The directory beside the queue's, where secrets that nobody configured are made once and kept, mode 0600.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::ConfigError;

/// Where the process keeps what it made itself.
pub(super) struct DataDirectory(PathBuf);

impl DataDirectory {
    /// The parent of the queue's directory, created if absent.
    pub(super) fn beside(queue_directory: &Path) -> Result<Self, ConfigError> {
        let parent = match queue_directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        std::fs::create_dir_all(&parent).map_err(|e| {
            ConfigError(format!(
                "cannot create the directory {}: {e}; make it writable or set queue.directory elsewhere",
                parent.display()
            ))
        })?;
        Ok(Self(parent))
    }

    /// The secret kept under `name` here, made on the first call.
    pub(super) fn secret(&self, name: &str) -> Result<String, ConfigError> {
        secret_at(&self.0.join(name))
    }
}

/// Reads the secret at `path`; makes it (256 random bits, hexadecimal, mode 0600) if the file does not exist.
///
/// A crash half-way leaves only the temporary file: the secret appears whole, by a link that fails if another
/// process was first.
pub(super) fn secret_at(path: &Path) -> Result<String, ConfigError> {
    let fail = |what: &str, e: &std::io::Error| {
        ConfigError(format!(
            "cannot {what} the secret {}: {e}; give this user the right to it and to its directory",
            path.display()
        ))
    };
    match std::fs::read_to_string(path) {
        Ok(secret) if !secret.trim().is_empty() => return Ok(secret.trim().to_owned()),
        Ok(_) => {
            return Err(ConfigError(format!(
                "the secret file {} is empty: remove it or write a secret into it",
                path.display()
            )));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(fail("read", &e)),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| fail("create the directory of", &e))?;
    }
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(|e| ConfigError(format!("no randomness for a secret: {e}")))?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(|e| fail("write", &e))?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| fail("write", &e))?;
    let linked = std::fs::hard_link(&temporary, path);
    std::fs::remove_file(&temporary).map_err(|e| fail("write", &e))?;
    match linked {
        Ok(()) => Ok(secret),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => secret_at(path),
        Err(e) => Err(fail("write", &e)),
    }
}
