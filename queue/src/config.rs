//! The `[queue]` section of the configuration. Knows shapes and defaults; choosing the adapter is the root's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disk::DiskOptions;
use crate::injected::Now;
use crate::port::LogAddress;

/// `[queue]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// `disk` or `rocketmq`.
    pub backend: QueueBackend,
    /// Where a gateway's own log lives, and that of a process that is both gateway and worker.
    pub directory: PathBuf,
    /// Where a worker's own log lives, if it is a process of its own.
    pub worker_directory: PathBuf,
    /// The gateways' logs on this machine that a worker drains.
    pub sources: Vec<LogAddress>,
    /// Records that a group may have unfinished, those that wait included, before permits are refused.
    pub backlog_max: u64,
    /// How long records stay after all groups have finished them, in seconds: what a restored database lacks is read from them again.
    pub keep_drained_s: u64,
    /// Bytes that stay for it at most, of each topic; then the oldest go earlier.
    pub keep_drained_bytes_max: u64,
    /// RocketMQ's name servers, `host:port;host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rocketmq_namesrv: Option<String>,
    /// Before every topic's name.
    pub topic_prefix: String,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            backend: QueueBackend::Disk,
            directory: PathBuf::from("data/queue"),
            worker_directory: PathBuf::from("data/worker-queue"),
            sources: Vec::new(),
            backlog_max: 10_000_000,
            keep_drained_s: 86_400,
            keep_drained_bytes_max: 1 << 30,
            rocketmq_namesrv: None,
            topic_prefix: String::from("floodgate-"),
        }
    }
}

impl QueueConfig {
    /// How a log of this deployment is opened at `directory`, whichever process does it; the records of the topic `delayed` wait.
    #[must_use]
    pub fn disk_options(&self, directory: &Path, now: Now, delayed: &str) -> DiskOptions {
        let mut options = DiskOptions::new(directory, now);
        options.delayed(delayed);
        options.backlog_max = self.backlog_max;
        options.keep_drained = Duration::from_secs(self.keep_drained_s);
        options.keep_drained_bytes_max = self.keep_drained_bytes_max;
        options
    }

    /// Where this instance's own log is.
    #[must_use]
    pub fn own_log(&self) -> LogAddress {
        LogAddress::Disk(self.directory.clone())
    }

    /// Where a worker's own log is.
    #[must_use]
    pub fn workers_log(&self) -> LogAddress {
        LogAddress::Disk(self.worker_directory.clone())
    }
}

/// `queue.backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueBackend {
    /// The log on the local disk.
    Disk,
    /// Apache RocketMQ.
    Rocketmq,
}
