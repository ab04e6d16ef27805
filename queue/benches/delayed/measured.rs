//! What this process has used so far: CPU time, bytes sent to the disk, memory, files.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

struct Counting;

/// Bytes that are allocated at the moment, and the most since [`reset_peak`].
static ALLOCATED: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

// SAFETY: hands everything on to the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size() as i64, Ordering::Relaxed) + layout.size() as i64;
        if now > PEAK.load(Ordering::Relaxed) {
            PEAK.fetch_max(now, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

pub(crate) fn allocated() -> i64 {
    ALLOCATED.load(Ordering::Relaxed)
}

pub(crate) fn reset_peak() {
    PEAK.store(allocated(), Ordering::Relaxed);
}

pub(crate) fn peak() -> i64 {
    PEAK.load(Ordering::Relaxed)
}

/// CPU time of all threads of this process.
pub(crate) fn cpu() -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        nanos += stat.split_whitespace().next().map_or(0, |nanos| nanos.parse::<u64>().unwrap());
    }
    Duration::from_nanos(nanos)
}

/// Bytes that this process has written, as it asked for it: what the kernel counts as sent to the disk is whole folios of the page
/// cache, 64 times a block that it really sends.
pub(crate) fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.map_or(0, |bytes| bytes.parse().unwrap())
}

/// Bytes of all files below a directory.
pub(crate) fn file_bytes(directory: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let Ok(entry) = entry else { continue };
        let Ok(found) = entry.metadata() else { continue };
        bytes += if found.is_dir() { file_bytes(&entry.path()) } else { found.len() };
    }
    bytes
}
