//! Where bytes go: the real disk, or an injected one that loses, fails and lies under a seed. Knows files, never records.

mod aligned;
mod real;
#[cfg(feature = "simulation")]
pub(crate) mod simulated;

use std::io;
use std::path::Path;

pub(crate) use aligned::{AlignedBuffer, BLOCK_BYTES};
pub(crate) use real::{BELL_WAIT_MAX, SharedMark};

/// Which storage a queue stands on.
#[derive(Debug, Clone)]
pub enum Storage {
    /// Files.
    Real,
    /// Memory that outlives the simulated process, with faults.
    #[cfg(feature = "simulation")]
    Simulated(simulated::SimulatedDisk),
}

/// How writes become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncMethod {
    /// A write, then `fdatasync`.
    DataSync,
    /// `O_DIRECT` and `O_DSYNC`: the write itself.
    DirectWrite,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It exists and is only read.
    Read,
    /// Created if absent; read and written through the page cache.
    Write,
    /// It exists; whole blocks are written, durable by this method.
    Append(SyncMethod),
}

/// An open file.
#[derive(Debug)]
pub(crate) enum File {
    Real(std::fs::File),
    #[cfg(feature = "simulation")]
    Simulated(simulated::SimulatedFile),
}

/// An exclusive lock, free when dropped or when the process ends.
#[derive(Debug)]
pub(crate) enum Lock {
    Real {
        _file: std::fs::File,
    },
    #[cfg(feature = "simulation")]
    Simulated {
        _lock: simulated::SimulatedLock,
    },
}

macro_rules! on_storage {
    ($storage:expr, $real:expr, |$disk:ident| $simulated:expr) => {
        match $storage {
            Storage::Real => $real,
            #[cfg(feature = "simulation")]
            Storage::Simulated($disk) => $simulated,
        }
    };
}

/// When a file was last written, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub(crate) modified: std::time::SystemTime,
    bytes: u64,
    inode: u64,
}

impl Storage {
    pub(crate) fn create_directory(&self, path: &Path) -> io::Result<()> {
        on_storage!(self, std::fs::create_dir_all(path), |disk| disk.create_directory(path))
    }

    /// Creates a directory in one that is there: below a log that was moved away or removed nothing may come to be.
    pub(crate) fn create_directory_within(&self, path: &Path) -> io::Result<()> {
        on_storage!(self, real::create_directory_within(path), |disk| disk.create_directory_within(path))
    }

    /// The names below a directory, sorted.
    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        on_storage!(self, real::list(path), |disk| disk.list(path))
    }

    /// Below a plain file there is nothing: that is an answer, not an error.
    pub(crate) fn exists(&self, path: &Path) -> io::Result<bool> {
        let real = || match path.try_exists() {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
            answer => answer,
        };
        on_storage!(self, real(), |disk| disk.exists(path))
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        on_storage!(self, std::fs::rename(from, to), |disk| disk.rename(from, to))
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        on_storage!(self, std::fs::remove_file(path), |disk| disk.remove(path))
    }

    pub(crate) fn remove_directory(&self, path: &Path) -> io::Result<()> {
        on_storage!(self, std::fs::remove_dir_all(path), |disk| disk.remove_directory(path))
    }

    /// Makes creations, renames and removals in a directory durable.
    pub(crate) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        on_storage!(self, std::fs::File::open(path)?.sync_all(), |disk| disk.sync_directory())
    }

    pub(crate) fn open(&self, path: &Path, access: Access) -> io::Result<File> {
        on_storage!(self, real::open(path, access).map(File::Real), |disk| disk
            .open(path, access)
            .map(File::Simulated))
    }

    /// Takes the lock file's lock; `None` while another holds it.
    pub(crate) fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        on_storage!(self, real::lock(path), |disk| disk.lock(path))
    }

    /// Reads a whole small file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, Access::Read)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
        let filled = file.read_at_most(&mut bytes, 0)?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// What tells a file that was written since from one that was not; none if it is not there.
    pub(crate) fn stamp(&self, path: &Path) -> io::Result<Option<FileStamp>> {
        on_storage!(self, real::stamp(path), |_disk| Ok(None))
    }

    /// Creates or replaces a small file so that a crash leaves the old or the new one whole.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let draft = path.with_extension("draft");
        if self.exists(&draft)? {
            self.remove(&draft)?;
        }
        let file = self.open(&draft, Access::Write)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        self.rename(&draft, path)?;
        path.parent().map_or(Ok(()), |parent| self.sync_directory(parent))
    }

    /// Bytes that the disk below a directory still takes from us; `None` where only trying tells.
    pub(crate) fn bytes_free(&self, path: &Path) -> Option<u64> {
        on_storage!(self, real::bytes_free(path), |_disk| None)
    }

    pub(crate) fn is_real(&self) -> bool {
        matches!(self, Self::Real)
    }
}

impl File {
    pub(crate) fn length(&self) -> io::Result<u64> {
        match self {
            Self::Real(file) => file.metadata().map(|metadata| metadata.len()),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.length(),
        }
    }

    /// Whether `path` still leads to this very file, as far as one can tell.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        match self {
            Self::Real(file) => real::is_at(file, path),
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => true,
        }
    }

    /// Makes everything written before it durable. After an error nobody knows what is; it must not be tried again.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_data(),
            #[cfg(feature = "simulation")]
            Self::Simulated(file) => file.sync(),
        }
    }

    /// Reads until the buffer is full or the file ends; returns the bytes read.
    pub(crate) fn read_at_most(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            let read = match self {
                Self::Real(file) => std::os::unix::fs::FileExt::read_at(file, &mut buffer[filled..], at),
                #[cfg(feature = "simulation")]
                Self::Simulated(file) => file.read_at(&mut buffer[filled..], at),
            };
            match read {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Writes all of it, going on after short writes.
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            let at = offset + written as u64;
            let wrote = match self {
                Self::Real(file) => std::os::unix::fs::FileExt::write_at(file, &bytes[written..], at),
                #[cfg(feature = "simulation")]
                Self::Simulated(file) => file.write_at(&bytes[written..], at),
            };
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
