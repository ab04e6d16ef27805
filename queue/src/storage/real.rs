//! The real disk: files opened the right way, flock, and the page that owner and consumers of a log share.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::{Access, BLOCK_BYTES, FileStamp, Lock, SyncMethod};

pub(super) fn create_directory_within(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created,
    }
}

pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(super) fn open(path: &Path, access: Access) -> io::Result<File> {
    let mut options = OpenOptions::new();
    match access {
        Access::Read => options.read(true),
        Access::Write => options.read(true).write(true).create(true).truncate(false),
        Access::Append(SyncMethod::DataSync) => options.read(true).write(true),
        Access::Append(SyncMethod::DirectWrite) => {
            options.read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        }
    };
    options.open(path)
}

pub(super) fn bytes_free(path: &Path) -> Option<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a string that ends with a zero byte, and the answer's place is of the type that is written there.
    let failed = unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0;
    if failed {
        return None;
    }
    // SAFETY: the call has succeeded and so filled the answer.
    let answer = unsafe { answer.assume_init() };
    Some(answer.f_bavail.saturating_mul(answer.f_frsize))
}

pub(super) fn stamp(path: &Path) -> io::Result<Option<FileStamp>> {
    match std::fs::metadata(path) {
        Ok(found) => {
            Ok(Some(FileStamp { modified: found.modified()?, bytes: found.len(), inode: found.ino() }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Only an answer that says otherwise counts: of anything else the next write tells.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
        (_, Err(error)) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        (Err(_), Ok(_)) => true,
    }
}

pub(super) fn lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock::Real { _file: file })),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The layout of the shared page.
#[repr(C)]
#[derive(Debug)]
struct Mark {
    /// [`MARK_MAGIC`] once the owner has filled the page.
    magic: AtomicU64,
    /// The log's id.
    log_id: AtomicU64,
    /// The newest durable sequence. The owner alone stores it, `Release`; consumers load `Acquire`.
    durable: AtomicU64,
    /// Counts the owner's acknowledgements; what a futex waits on.
    bell: AtomicU32,
    /// Waiting consumers in other processes; 0 spares the owner the system call. A killed consumer leaves it too high, which
    /// costs calls and nothing else; the owner's next open sets it to 0, and consumers look again every [`BELL_WAIT_MAX`].
    listeners: AtomicU32,
}

const MARK_MAGIC: u64 = u64::from_le_bytes(*b"FLGMARK1");
const _: () = assert!(size_of::<Mark>() == 32 && size_of::<Mark>() <= BLOCK_BYTES);

/// Longest wait on the bell in one go.
pub(crate) const BELL_WAIT_MAX: Duration = Duration::from_millis(100);

/// A page of a file that the log's owner and the consumers in other processes map: the durable watermark and a bell. It is
/// never synced: whatever survives of it is a watermark that was true once.
#[derive(Debug)]
pub(crate) struct SharedMark {
    /// The mapping of `BLOCK_BYTES`, alive until drop.
    page: *mut Mark,
    _file: File,
}

// SAFETY: the page is only accessed through the atomics in it, and the mapping lives as long as the value.
unsafe impl Send for SharedMark {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedMark {}

impl SharedMark {
    /// Maps the owner's page and writes the recovered watermark into it. Returns with it what the page said before, if it
    /// was this log's: everything through there was once acknowledged.
    pub(crate) fn own(path: &Path, log_id: u64) -> io::Result<(Self, Option<u64>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < BLOCK_BYTES as u64 {
            // Written, not extended: a hole in a mapping on a full disk would be a SIGBUS.
            file.write_all_at(&[0; BLOCK_BYTES], 0)?;
        }
        let mark = Self::map(file)?;
        let page = mark.page();
        let known =
            page.magic.load(Ordering::Acquire) == MARK_MAGIC && page.log_id.load(Ordering::Relaxed) == log_id;
        let before = known.then(|| page.durable.load(Ordering::Acquire));
        if !known {
            page.durable.store(0, Ordering::Relaxed);
            page.log_id.store(log_id, Ordering::Relaxed);
            page.magic.store(MARK_MAGIC, Ordering::Release);
        }
        page.listeners.store(0, Ordering::Relaxed);
        Ok((mark, before))
    }

    /// Maps an owner's page for reading and waiting; `None` until an owner has filled it.
    pub(crate) fn attach(path: &Path, log_id: u64) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < BLOCK_BYTES as u64 {
            return Ok(None);
        }
        let mark = Self::map(file)?;
        let known = mark.page().magic.load(Ordering::Acquire) == MARK_MAGIC
            && mark.page().log_id.load(Ordering::Relaxed) == log_id;
        Ok(known.then_some(mark))
    }

    pub(crate) fn durable(&self) -> u64 {
        self.page().durable.load(Ordering::Acquire)
    }

    /// Publishes a watermark and rings.
    pub(crate) fn publish(&self, durable: u64) {
        let page = self.page();
        page.durable.store(durable, Ordering::Release);
        // `SeqCst` here and in `wait`: either the owner sees the listener or the listener sees the new bell.
        page.bell.fetch_add(1, Ordering::SeqCst);
        if page.listeners.load(Ordering::SeqCst) > 0 {
            // SAFETY: a futex wake on an aligned, mapped word; it touches no memory of ours.
            unsafe {
                libc::syscall(libc::SYS_futex, page.bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
            }
        }
    }

    /// Blocks this thread until the watermark is beyond `seen`, or for `at_most`.
    pub(crate) fn wait(&self, seen: u64, at_most: Duration) {
        let page = self.page();
        page.listeners.fetch_add(1, Ordering::SeqCst);
        let bell = page.bell.load(Ordering::SeqCst);
        if page.durable.load(Ordering::Acquire) <= seen {
            let timeout = libc::timespec {
                tv_sec: at_most.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(at_most.subsec_nanos()),
            };
            // SAFETY: a futex wait on an aligned, mapped word with a timeout that lives through the call.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    page.bell.as_ptr(),
                    libc::FUTEX_WAIT,
                    bell,
                    std::ptr::from_ref(&timeout),
                );
            }
        }
        // The owner's next open may have set it to 0 meanwhile: never below.
        let _ = page.listeners.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
    }

    fn map(file: File) -> io::Result<Self> {
        // SAFETY: a new shared mapping of a file of at least that length, at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BLOCK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { page: page.cast::<Mark>(), _file: file })
    }

    fn page(&self) -> &Mark {
        // SAFETY: `page` is page-aligned, mapped until drop, large enough, and every bit pattern is a valid `Mark`;
        // other processes change it through the same atomics only.
        unsafe { &*self.page }
    }
}

impl Drop for SharedMark {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nobody can hold a reference into it any more.
        unsafe {
            libc::munmap(self.page.cast(), BLOCK_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in two processes, each with a mapping of its own. Nothing but the bell ends an hour's wait.
    #[test]
    fn whoever_waits_is_woken_not_left_to_look_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        let (owner, _) = SharedMark::own(&path, 7).unwrap();
        for durable in 1..=100 {
            let consumer = SharedMark::attach(&path, 7).unwrap().unwrap();
            let waiting = std::thread::spawn(move || {
                while consumer.durable() < durable {
                    consumer.wait(durable - 1, Duration::from_secs(3_600));
                }
            });
            // Half of them are rung for while they fall asleep, wherever that meets them.
            while durable % 2 == 0 && owner.page().listeners.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            owner.publish(durable);
            waiting.join().unwrap();
        }
    }
}
