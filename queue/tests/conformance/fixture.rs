//! One adapter under test: opens, reopens, and owns its clock.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::{
    DiskOptions, Driver, Faults, NewRecord, Position, Queue, QueueError, SimulatedDisk, Storage, Topic,
};

/// Longest wait for anything, in turns of a millisecond or more.
const PATIENCE_MS: u64 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    RealThread,
    RealDriven,
    Simulated,
}

pub(crate) struct Fixture {
    pub(crate) kind: Kind,
    directory: tempfile::TempDir,
    disk: SimulatedDisk,
    /// Unix ms. Moves only when a test moves it, or with tokio's clock through [`Fixture::sleep`].
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) segment_bytes: u64,
    pub(crate) ring_bytes: usize,
    pub(crate) backlog_max: u64,
    pub(crate) keep_drained: Duration,
    pub(crate) keep_drained_bytes_max: u64,
}

impl Fixture {
    pub(crate) fn run<F: Future<Output = ()>>(kind: Kind, test: impl FnOnce(Self) -> F) {
        let fixture = Self {
            kind,
            directory: tempfile::tempdir().unwrap(),
            disk: SimulatedDisk::new(1, Faults::default()),
            clock: Arc::new(AtomicU64::new(1_000_000)),
            segment_bytes: 256 * 1024,
            ring_bytes: 256 * 1024,
            backlog_max: 1_000_000,
            keep_drained: Duration::ZERO,
            keep_drained_bytes_max: u64::MAX,
        };
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all();
        if kind == Kind::Simulated {
            builder.start_paused(true);
        }
        builder.build().unwrap().block_on(test(fixture));
    }

    pub(crate) fn options(&self) -> DiskOptions {
        let clock = Arc::clone(&self.clock);
        let path = match self.kind {
            Kind::Simulated => PathBuf::from("/queue"),
            _ => self.directory.path().join("queue"),
        };
        let mut options = DiskOptions::new(path, Arc::new(move || clock.load(Ordering::Relaxed)));
        options.segment_bytes = self.segment_bytes;
        options.ring_bytes = self.ring_bytes;
        options.backlog_max = self.backlog_max;
        options.keep_drained = self.keep_drained;
        options.keep_drained_bytes_max = self.keep_drained_bytes_max;
        if self.kind == Kind::Simulated {
            options.storage = Storage::Simulated(self.disk.clone());
        }
        if self.kind != Kind::RealThread {
            options.driver = Driver::Driven;
        }
        options
    }

    pub(crate) fn try_open(&self) -> Result<Queue, QueueError> {
        Queue::open_disk(self.options(), &mut Registry::default())
    }

    pub(crate) fn open(&self) -> Queue {
        let queue = self.try_open().unwrap();
        if self.kind != Kind::RealThread {
            tokio::spawn(queue.run());
        }
        queue
    }

    pub(crate) fn advance(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    /// Lets both clocks go on until `done`.
    pub(crate) async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        for _ in 0..PATIENCE_MS {
            if done().await {
                return;
            }
            self.sleep(1).await;
        }
        panic!("never: {what}");
    }

    /// Lets both clocks go on until `group` has finished all of `topic`.
    pub(crate) async fn nothing_left(&self, topic: &Topic, group: &str) {
        self.until("nothing is left", async || topic.lag(group).await.unwrap().records == 0).await;
    }

    /// Lets time pass for the queue's clock and for tokio's.
    pub(crate) async fn sleep(&self, ms: u64) {
        for _ in 0..ms {
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.advance(1);
        }
    }
}

pub(crate) fn record(payload: &[u8]) -> NewRecord<'_> {
    NewRecord { key: b"key", tag: "tag", deliver_at_ms: None, payload }
}

pub(crate) async fn append(topic: &Topic, payload: &str) -> Position {
    append_at(topic, payload, None).await
}

pub(crate) async fn append_at(topic: &Topic, payload: &str, deliver_at_ms: Option<u64>) -> Position {
    let permit = permit(topic, payload.len()).await;
    let record = NewRecord { deliver_at_ms, ..record(payload.as_bytes()) };
    topic.append(permit, record).await.unwrap()
}

/// A permit, waiting while there is none for the moment.
pub(crate) async fn permit(topic: &Topic, bytes: usize) -> queue::Permit {
    for _ in 0..PATIENCE_MS {
        match topic.try_permit(bytes) {
            Ok(permit) => return permit,
            Err(refused) => assert!(refused.is_retryable(), "{refused}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never a permit: {:?}", topic.try_permit(bytes));
}

pub(crate) fn texts(messages: &[queue::Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8(message.payload.clone()).unwrap()).collect()
}
