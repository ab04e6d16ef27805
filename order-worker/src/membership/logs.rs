//! Logs of other instances on this machine: where a log is, in words that another process can follow, and taking it by its lock.

use std::path::Path;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use queue::{DiskOptions, Queue};

use super::OpenLog;
use crate::database::Instance;

/// Where a log directory is: `machine:/absolute/path`.
#[must_use]
pub fn place_of(directory: &Path) -> String {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
    format!("{}:{}", machine(), absolute.display())
}

fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// Takes logs whose place is on this machine. `now` is the clock of logs.
#[must_use]
pub fn logs_on_this_machine(now: queue::Now) -> OpenLog {
    Arc::new(move |instance| take(instance, &now))
}

fn take(instance: &Instance, now: &queue::Now) -> Option<Queue> {
    let (on, path) = instance.place.split_once(':')?;
    if on != machine() {
        return None;
    }
    let options = || DiskOptions::new(path, now.clone());
    // Looked at before it is opened: opening would make an absent directory, and another log may be there by now.
    let there = Queue::attach_disk(options(), &mut Registry::default()).ok()?;
    if there.instance() != instance.owner.0 {
        return None;
    }
    drop(there);
    match Queue::open_disk(options(), &mut Registry::default()) {
        Ok(queue) if queue.instance() == instance.owner.0 => Some(queue),
        // Its process lives, or has just come back: it merges its log itself.
        Ok(_) | Err(_) => None,
    }
}
