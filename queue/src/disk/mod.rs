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

use std::collections::BTreeMap;
use std::sync::Mutex;
#[derive(Debug, Default)]
struct Log { records: Vec<Message>, groups: BTreeMap<String, (u64, bool)>, dead: Vec<Message> }
static DISKS: Mutex<BTreeMap<PathBuf, Arc<Mutex<Log>>>> = Mutex::new(BTreeMap::new());
#[derive(Debug, Clone)]
pub struct DiskQueue { dir: PathBuf }
impl DiskQueue {
    pub(crate) fn open(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        Ok(Self { dir: options.directory })
    }
    pub(crate) fn attach(options: DiskOptions, registry: &mut Registry) -> Result<Self, QueueError> {
        unimplemented!()
    }
    pub(crate) fn instance(&self) -> u64 { 7 }
    pub(crate) fn topic(&self, name: &str) -> Result<DiskTopic, QueueError> {
        let log = DISKS.lock().unwrap().entry(self.dir.join(name)).or_default().clone();
        Ok(DiskTopic { log, notify: Arc::default() })
    }
    pub(crate) fn topics(&self) -> Result<Vec<String>, QueueError> { unimplemented!() }
    pub(crate) fn run(&self) -> impl Future<Output = ()> + Send + use<> { async {} }
    pub(crate) async fn shutdown(&self) {}
}
#[derive(Debug, Clone)]
pub struct DiskTopic { log: Arc<Mutex<Log>>, notify: Arc<()> }
impl DiskTopic {
    pub(crate) fn name(&self) -> &str { "x" }
    pub(crate) fn try_permit(&self, payload_bytes: usize) -> Result<DiskPermit, Refused> { Ok(DiskPermit {}) }
    pub(crate) fn append(&self, permit: DiskPermit, record: NewRecord<'_>) -> DiskAppend {
        let mut log = self.log.lock().unwrap();
        let position = Position(log.records.len() as u64 + 1);
        log.records.push(Message { position, key: record.key.to_vec(), tag: record.tag.into(), payload: record.payload.to_vec(), appended_at_ms: 0, deliver_at_ms: None, attempt: 1 });
        DiskAppend { position }
    }
    pub(crate) fn state(&self) -> TopicState { TopicState::Writable }
    pub(crate) fn end(&self) -> Option<Position> { unimplemented!() }
    pub(crate) fn group(&self, name: &str) -> Result<DiskGroup, QueueError> {
        let mut log = self.log.lock().unwrap();
        let g = log.groups.entry(name.into()).or_default();
        if g.1 { return Err(QueueError::GroupHeld { topic: "t".into(), group: name.into() }); }
        g.1 = true;
        let cursor = g.0;
        drop(log);
        Ok(DiskGroup { log: self.log.clone(), cursor, name: name.into() })
    }
    pub(crate) fn groups(&self) -> Result<Vec<String>, QueueError> { unimplemented!() }
    pub(crate) fn drop_group(&self, name: &str) -> Result<(), QueueError> { unimplemented!() }
    pub(crate) fn committed(&self, group: &str) -> Result<Option<Position>, QueueError> {
        match self.log.lock().unwrap().groups.get(group) {
            None => Err(QueueError::UnknownGroup { topic: "t".into(), group: group.into() }),
            Some(g) => Ok((g.0 > 0).then_some(Position(g.0))),
        }
    }
    pub(crate) fn lag(&self, group: &str) -> Result<Lag, QueueError> {
        let log = self.log.lock().unwrap();
        match log.groups.get(group) {
            None => Err(QueueError::UnknownGroup { topic: "t".into(), group: group.into() }),
            Some(g) => Ok(Lag { records: log.records.len() as u64 - g.0, age_ms: 0 }),
        }
    }
    pub(crate) fn read(&self, after: Option<Position>, max: usize) -> Result<Vec<Message>, QueueError> {
        let log = self.log.lock().unwrap();
        Ok(log.records.iter().skip(after.map_or(0, |p| p.0) as usize).take(max).cloned().collect())
    }
    pub(crate) fn position_before(&self, unix_ms: u64) -> Result<Option<Position>, QueueError> { unimplemented!() }
}
#[derive(Debug)]
pub struct DiskGroup { log: Arc<Mutex<Log>>, cursor: u64, name: String }
impl Drop for DiskGroup {
    fn drop(&mut self) { self.log.lock().unwrap().groups.get_mut(&self.name).unwrap().1 = false; }
}
impl DiskGroup {
    pub(crate) async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, QueueError> {
        for _ in 0..(wait.as_millis() / 2) {
            {
                let log = self.log.lock().unwrap();
                let m: Vec<Message> = log.records.iter().skip(self.cursor as usize).take(max).cloned().collect();
                if let Some(l) = m.last() { self.cursor = l.position.0; return Ok(m); }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(vec![])
    }
    pub(crate) fn commit(&mut self, through: Position) -> Result<(), QueueError> {
        self.log.lock().unwrap().groups.get_mut(&self.name).unwrap().0 = through.0; Ok(())
    }
    pub(crate) fn rewind(&mut self) { self.cursor = self.log.lock().unwrap().groups[&self.name].0; }
    pub(crate) fn ack_all(&mut self, positions: &[Position]) -> Result<(), QueueError> { unimplemented!() }
    pub(crate) fn nack(&mut self, position: Position, delay: Duration) -> Result<(), QueueError> { unimplemented!() }
    pub(crate) fn dead_letter(&mut self, message: &Message, reason: &str) -> Result<(), QueueError> { self.log.lock().unwrap().dead.push(message.clone()); Ok(()) }
    pub(crate) fn reset(&mut self, through: Option<Position>) -> Result<(), QueueError> { unimplemented!() }
    pub(crate) fn committed(&self) -> Option<Position> { unimplemented!() }
    pub(crate) fn name(&self) -> &str { &self.name }
}
#[derive(Debug)]
pub struct DiskPermit {}
#[derive(Debug)]
pub struct DiskAppend { position: Position }
impl Future for DiskAppend {
    type Output = Result<Position, AppendError>;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> { Poll::Ready(Ok(self.position)) }
}
pub(crate) fn block_on(append: Append) -> Result<Position, AppendError> { unimplemented!() }
