//! The logs that a process opens: its own, and in place of a neighbour that is down that one's.

use std::sync::Arc;

use order_worker::OpenLog;
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, Queue, SimulatedDisk, Storage};

use crate::world::World;

/// Small, so that segments are used up and recycled.
const SEGMENT_BYTES: u64 = 64 * 1024;
const RING_BYTES: usize = 64 * 1024;

/// What a log's directory is opened with.
pub(crate) type QueueParts = (usize, SimulatedDisk, stock::Now, queue::Random);

pub(crate) fn queue_parts(world: &World, instance: usize) -> QueueParts {
    (instance, world.disk(instance), world.now.clone(), world.random.source())
}

pub(crate) fn queue_options((instance, disk, now, random): &QueueParts) -> DiskOptions {
    let mut options = DiskOptions::new(format!("/instance-{instance}"), now.clone());
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options.random = random.clone();
    options.segment_bytes = SEGMENT_BYTES;
    options.ring_bytes = RING_BYTES;
    options.tied = true;
    options
}

/// How a process takes the log of a machine that is down, where it can reach it.
pub(crate) fn neighbours(world: &World, instance: usize) -> OpenLog {
    if !world.neighbours_in_reach {
        return Arc::new(|_| Box::pin(async { None }));
    }
    let (disks, now, random) = (world.disks.clone(), world.now.clone(), world.random.source());
    Arc::new(move |registered| {
        let take = || {
            let neighbour: usize = registered.place.parse().ok()?;
            if neighbour == instance {
                return None;
            }
            let disk = disks.lock()[neighbour].clone();
            let options = queue_options(&(neighbour, disk, now.clone(), random.clone()));
            let queue = Queue::open_disk(options, &mut Registry::default()).ok()?;
            (queue.instance() == registered.owner.0).then_some(queue)
        };
        Box::pin(std::future::ready(take()))
    })
}
