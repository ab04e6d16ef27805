//! The worker's own log of a machine, on a disk that fails more than the others, in some worlds for good: whatever becomes of it,
//! the drain goes on and no rebuild waits.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use order_worker::{
    Database, GetLog, MemberRow, TIMEOUTS_TOPIC, WorkerLog, WorkerLogMetrics, WorkerLogParts,
};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, Faults, LogAddress, Queue, Storage};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::census::{WORKER_LOG_FULL, WORKER_LOG_LOST};
use crate::random::Random;
use crate::world::World;

/// Small, so that segments are used up.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// How often somebody looks how it does.
const LOOK: Duration = Duration::from_millis(400);

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
    options.delayed(TIMEOUTS_TOPIC);
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

/// Sees what becomes of the log, until `closing`.
pub(crate) async fn watch_trouble(world: &World, log: &WorkerLog, mut closing: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            () = sleep(LOOK) => {}
        }
        if let Some(trouble) = log.report().trouble {
            if trouble.contains("no room") {
                world.census.saw(WORKER_LOG_FULL);
            } else if trouble.contains("a write to its disk failed") {
                world.census.saw(WORKER_LOG_LOST);
            }
        }
    }
}
