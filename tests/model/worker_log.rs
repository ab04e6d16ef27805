//! The worker's own log of a machine, on a disk that fails more than the others, in some worlds for good: whatever becomes of it,
//! the drain goes on and no rebuild waits.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use order_worker::{
    Database, GetLog, MemberRow, TIMEOUTS_TOPIC, WorkerLog, WorkerLogMetrics, WorkerLogParts,
};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, Faults, LogAddress, NewRecord, Queue, StartAt, Storage, Topic};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::census::{WORKER_LOG_FULL, WORKER_LOG_LOST};
use crate::random::Random;
use crate::world::World;

/// Small, so that segments are used up.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Who reads what is appended.
const GROUP: &str = "closing";
/// Longest wait for an append; a disk that fails answers sooner.
const APPEND_MAX: Duration = Duration::from_secs(1);

/// What goes wrong on a disk of workers' logs while there are faults.
pub(crate) fn draw_faults(random: &Random) -> Faults {
    let share = || *random.pick(&[0, 0, 50, 500]) as u32;
    Faults {
        write_error: share(),
        no_space: share(),
        sync_error: share(),
        // Nothing may grow: full as soon as what was made ahead is used.
        capacity_bytes: u64::from(random.chance(300)),
        ..Faults::default()
    }
}

/// A machine's, as the binary wires it.
pub(crate) fn own_log(world: &World, instance: usize, database: &Database) -> Arc<WorkerLog> {
    let directory = format!("/worker-{instance}");
    let mut options = DiskOptions::new(&directory, world.now.clone());
    options.storage = Storage::Simulated(world.worker_disk(instance));
    options.driver = Driver::Driven;
    options.random = world.random.source();
    options.segment_bytes = SEGMENT_BYTES;
    options.ring_bytes = SEGMENT_BYTES as usize;
    let beside = options.clone();
    let open: GetLog =
        Arc::new(move || Box::pin(ready(Queue::open_disk(options.clone(), &mut Registry::default()))));
    let attach: GetLog = Arc::new(move || Box::pin(ready(Queue::attach_disk(beside.clone()))));
    Arc::new(WorkerLog::new(WorkerLogParts {
        log: LogAddress::Disk(directory.into()),
        open,
        attach,
        database: database.clone(),
        row: MemberRow::default(),
        metrics: WorkerLogMetrics::new(&mut Registry::default()),
    }))
}

/// Appends to the log as coming parts of a worker will, and reads some of it, until `closing`.
pub(crate) async fn work(world: &World, log: &WorkerLog, mut closing: watch::Receiver<bool>) {
    let random = world.random.fork();
    loop {
        let pause = Duration::from_millis(random.between(100, 1_500));
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            () = sleep(pause) => {}
        }
        if let Some(trouble) = log.report().trouble {
            if trouble.contains("no room") {
                world.census.saw(WORKER_LOG_FULL);
            } else if trouble.contains("a write to its disk failed") {
                world.census.saw(WORKER_LOG_LOST);
            }
        }
        if let Some(topic) = log.topic(TIMEOUTS_TOPIC) {
            append(&topic, random.between(1, 4_000) as usize).await;
            if random.chance(200) {
                read(&topic).await;
            }
        }
    }
}

async fn append(topic: &Topic, bytes: usize) {
    let payload = vec![7; bytes];
    let Ok(permit) = topic.try_permit(payload.len()) else { return };
    let record = NewRecord { key: b"", tag: "timeout", deliver_at_ms: None, payload: &payload };
    // What became of it is the log's own affair here.
    let _ = timeout(APPEND_MAX, topic.append(permit, record)).await;
}

async fn read(topic: &Topic) {
    let Ok(mut group) = topic.group(GROUP, StartAt::Oldest).await else { return };
    if let Ok(messages) = group.pull(100, Duration::ZERO).await
        && let Some(last) = messages.last()
    {
        let _ = group.commit(last.position).await;
    }
}
