//! Logs of other instances on this machine: where a log is, in words that another process can follow, and taking it by its lock.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use queue::{LogAddress, Queue, QueueConfig};

use super::OpenLog;
use crate::database::Instance;
use crate::topics::TIMEOUTS_TOPIC;

/// Where a log is, as the registry says it: `machine:/absolute/path` for a directory.
#[must_use]
pub fn place_of(log: &LogAddress) -> String {
    match log.absolute() {
        log @ LogAddress::Disk(_) => format!("{}:{log}", machine()),
    }
}

/// The log at a place of the registry, as its own machine names it; `None` where the place names no log.
#[must_use]
pub fn log_at(place: &str) -> Option<LogAddress> {
    machine_and_log(place).map(|(_, log)| log)
}

fn machine_and_log(place: &str) -> Option<(&str, LogAddress)> {
    let (machine, address) = place.split_once(':')?;
    Some((machine, address.parse().ok()?))
}

fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// Takes logs whose place is on this machine, to keep in them what `config` has each process keep. `now` is the clock of logs.
#[must_use]
pub fn logs_on_this_machine(config: &QueueConfig, now: queue::Now) -> OpenLog {
    let config = config.clone();
    Arc::new(move |instance| Box::pin(take(instance, config.clone(), now.clone())))
}

async fn take(instance: Instance, config: QueueConfig, now: queue::Now) -> Option<Queue> {
    let (on, log) = machine_and_log(&instance.place)?;
    if on != machine() {
        return None;
    }
    // Looked at before it is opened: opening would make an absent directory, and another log may be there by now.
    let there = Queue::attach(&log, now.clone()).await.ok()?;
    if there.instance() != instance.owner.0 {
        return None;
    }
    drop(there);
    let LogAddress::Disk(directory) = log;
    match Queue::open_disk(config.disk_options(&directory, now, TIMEOUTS_TOPIC), &mut Registry::default()) {
        Ok(queue) if queue.instance() == instance.owner.0 => Some(queue),
        // Its process lives, or has just come back: it merges its log itself.
        Ok(_) | Err(_) => None,
    }
}
