//! One process at a time may hand out a database's stock from a ledger in its own memory: two such ledgers would promise
//! every unit twice. A lock beside the file says which; the kernel lets go of it however the process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;

use super::{DatabaseError, executor};

/// The right to hand out this database's stock, until drop.
#[derive(Debug)]
pub struct StockClaim {
    _lock: File,
}

impl StockClaim {
    /// Claims the database at `url`; its directory and the lock's file are made if absent.
    ///
    /// # Errors
    /// [`DatabaseError::Broken`] if another process has claimed it, or the file cannot be made.
    pub fn of_sqlite(url: &str) -> Result<Self, DatabaseError> {
        let mut path = executor::path_of(url).into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        let broken = |error: std::io::Error| {
            DatabaseError::Broken(format!(
                "{} cannot be made ({error}): change its directory's rights or orders.database_url",
                path.display()
            ))
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(broken)?;
        }
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&path).map_err(broken)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DatabaseError::Broken(format!(
                "another floodgate sells from it (it holds {}), and two ledgers in memory would promise every unit twice: \
                 stop that process, or give this one a database of its own with orders.database_url",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(broken(error)),
        }
    }
}
