//! skeleton
#![allow(missing_docs, unused_variables)]
use crate::port::*;
use crate::{Now, Random, Storage};
use prometheus_client::registry::Registry;
use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// Who runs the committers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A thread per topic and one for upkeep, started at open.
    Thread,
    /// Nobody but [`crate::Queue::run`], polled by its owner.
    Driven,
}
/// How to open a disk queue.
#[derive(Clone)]
pub struct DiskOptions {
    pub directory: PathBuf,
    pub now: Now,
    pub random: Random,
    pub storage: Storage,
    pub driver: Driver,
    pub segment_bytes: u64,
    pub ring_bytes: usize,
    pub backlog_max: u64,
}
impl DiskOptions {
    /// Real storage, committers in threads, 32 MiB segments, 8 MiB rings, a backlog of ten million.
    pub fn new(directory: impl Into<PathBuf>, now: Now) -> Self {
        Self {
            directory: directory.into(),
            now,
            random: Arc::new(|| getrandom::u64().expect("kernel randomness")),
            storage: Storage::Real,
            driver: Driver::Thread,
            segment_bytes: 32 << 20,
            ring_bytes: 8 << 20,
            backlog_max: 10_000_000,
        }
    }
}
#[derive(Debug, Clone)]
pub struct DiskQueue {}
impl DiskQueue {
    pub(crate) fn open(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        unimplemented!()
    }
    pub(crate) fn attach(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        unimplemented!()
    }
    pub(crate) fn instance(&self) -> u64 {
        unimplemented!()
    }
    pub(crate) fn topic(&self, name: &str) -> Result<DiskTopic, QueueError> {
        unimplemented!()
    }
    pub(crate) fn topics(&self) -> Result<Vec<String>, QueueError> {
        unimplemented!()
    }
    pub(crate) fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        async {}
    }
    pub(crate) async fn shutdown(&self) {}
}
#[derive(Debug, Clone)]
pub struct DiskTopic {}
impl DiskTopic {
    pub(crate) fn name(&self) -> &str {
        unimplemented!()
    }
    pub(crate) fn try_permit(&self, payload_bytes: usize) -> Result<DiskPermit, Refused> {
        unimplemented!()
    }
    pub(crate) fn append(&self, permit: DiskPermit, record: NewRecord<'_>) -> DiskAppend {
        unimplemented!()
    }
    pub(crate) fn state(&self) -> TopicState {
        unimplemented!()
    }
    pub(crate) fn end(&self) -> Option<Position> {
        unimplemented!()
    }
    pub(crate) fn group(&self, name: &str) -> Result<DiskGroup, QueueError> {
        unimplemented!()
    }
    pub(crate) fn groups(&self) -> Result<Vec<String>, QueueError> {
        unimplemented!()
    }
    pub(crate) fn drop_group(&self, name: &str) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub(crate) fn committed(&self, group: &str) -> Result<Option<Position>, QueueError> {
        unimplemented!()
    }
    pub(crate) fn lag(&self, group: &str) -> Result<Lag, QueueError> {
        unimplemented!()
    }
    pub(crate) fn read(&self, after: Option<Position>, max: usize) -> Result<Vec<Message>, QueueError> {
        unimplemented!()
    }
    pub(crate) fn position_before(&self, unix_ms: u64) -> Result<Option<Position>, QueueError> {
        unimplemented!()
    }
}
#[derive(Debug)]
pub struct DiskGroup {}
impl DiskGroup {
    pub(crate) async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, QueueError> {
        unimplemented!()
    }
    pub(crate) fn commit(&mut self, through: Position) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub(crate) fn rewind(&mut self) {}
    pub(crate) fn ack_all(&mut self, positions: &[Position]) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub(crate) fn nack(&mut self, position: Position, delay: Duration) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub(crate) fn dead_letter(&mut self, message: &Message, reason: &str) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub(crate) fn reset(&mut self, through: Option<Position>) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub(crate) fn committed(&self) -> Option<Position> {
        unimplemented!()
    }
    pub(crate) fn name(&self) -> &str {
        unimplemented!()
    }
}
#[derive(Debug)]
pub struct DiskPermit {}
#[derive(Debug)]
pub struct DiskAppend {}
impl Future for DiskAppend {
    type Output = Result<Position, AppendError>;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}
pub(crate) fn block_on(append: Append) -> Result<Position, AppendError> {
    unimplemented!()
}
