//! A worker's own log: registered without promises, said to be in trouble when it is, opened anew, and never in anybody's way.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use order_worker::{
    EVENTS_TOPIC, GetLog, MemberRow, ORDERS_TOPIC, TIMEOUTS_TOPIC, WorkerLog, WorkerLogMetrics,
    WorkerLogParts,
};
use prometheus_client::registry::Registry;
use queue::{
    AppendError, DiskOptions, Driver, Faults, LogAddress, NewRecord, Queue, SimulatedDisk, StartAt, Storage,
    TopicState,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use world::World;

const DIRECTORY: &str = "/worker-queue";
/// Longer than any of these takes in virtual time.
const PATIENCE: Duration = Duration::from_secs(60);
const BAD_SYNC: Faults = Faults {
    sync_error: 10_000,
    read_error: 0,
    write_error: 0,
    no_space: 0,
    short_write: 0,
    lying_sync: 0,
    capacity_bytes: 0,
};
const NO_SPACE: Faults = Faults { no_space: 10_000, sync_error: 0, ..BAD_SYNC };

fn options(disk: &SimulatedDisk, world: &World) -> DiskOptions {
    let mut options = DiskOptions::new(DIRECTORY, world.now());
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options.segment_bytes = 64 << 10;
    options.ring_bytes = 64 << 10;
    options
}

/// A worker's log at work.
struct Running {
    log: Arc<WorkerLog>,
    row: MemberRow,
    registry: Registry,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(disk: &SimulatedDisk, world: &World) -> Self {
        let (open, attach) = (options(disk, world), options(disk, world));
        let open: GetLog =
            Arc::new(move || Box::pin(ready(Queue::open_disk(open.clone(), &mut Registry::default()))));
        let attach: GetLog = Arc::new(move || Box::pin(ready(Queue::attach_disk(attach.clone()))));
        let mut registry = Registry::default();
        let metrics = WorkerLogMetrics::new(&mut registry);
        let row = MemberRow::default();
        let parts = WorkerLogParts {
            log: LogAddress::Disk(DIRECTORY.into()),
            open,
            attach,
            database: world.database.clone(),
            row: row.clone(),
            metrics,
        };
        let log = Arc::new(WorkerLog::new(parts));
        let stop = watch::Sender::new(false);
        let (running, stopping) = (log.clone(), stop.subscribe());
        let task = tokio::spawn(async move { running.run(stopping).await });
        Self { log, row, registry, stop, task }
    }

    /// Waits until it says that it takes records, or that it does not for this reason.
    async fn comes_to(&self, trouble: Option<&str>) {
        let is_so = async {
            loop {
                let shown = self.log.report().trouble;
                match (trouble, &shown) {
                    (None, None) => return,
                    (Some(word), Some(shown)) if shown.contains(word) => return,
                    _ => sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let came = timeout(PATIENCE, is_so).await;
        assert!(came.is_ok(), "{trouble:?}, but {:?}", self.log.report());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = format!("floodgate_worker_log_unusable {}", u8::from(trouble.is_some()));
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }

    async fn append(&self, topic: &str) -> Result<(), AppendError> {
        let topic = self.log.topic(topic).expect("an open log");
        let permit = loop {
            match topic.try_permit(8) {
                Ok(permit) => break permit,
                Err(refused) => assert!(refused.is_retryable(), "{refused}"),
            }
            sleep(Duration::from_millis(10)).await;
        };
        let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload: b"payload!" };
        topic.append(permit, record).await.map(drop)
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.task).await.expect("an end").unwrap();
    }
}

/// (id, holds promises) of everybody registered.
async fn registered(world: &World) -> Vec<(u64, bool)> {
    let rows = world.database.instances().await.unwrap();
    rows.into_iter().map(|row| (row.owner.0, row.holds_promises)).collect()
}

#[tokio::test(start_paused = true)]
async fn it_is_registered_without_promises_and_leaves_when_nothing_waits_in_it() {
    let (world, disk) = (World::new(), SimulatedDisk::new(1, Faults::default()));
    let running = Running::start(&disk, &world);
    running.comes_to(None).await;
    let [(id, holds_promises)] = registered(&world).await[..] else { panic!("one row") };
    assert!(!holds_promises);

    // An operator took it off the registry: it registers again.
    world.database.deregister_instance(id).await.unwrap();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(registered(&world).await, [(id, false)]);
    running.stop().await;
    assert!(registered(&world).await.is_empty(), "an empty log leaves the registry");

    // One that holds a record, read by nobody or not finished, stays; finished, it leaves.
    let running = Running::start(&disk, &world);
    running.comes_to(None).await;
    running.append(EVENTS_TOPIC).await.unwrap();
    running.stop().await;
    assert_eq!(registered(&world).await, [(id, false)], "nobody has read the record");
    let running = Running::start(&disk, &world);
    running.comes_to(None).await;
    let mut group = running.log.topic(EVENTS_TOPIC).unwrap().group("points", StartAt::Oldest).await.unwrap();
    let messages = group.pull(10, Duration::ZERO).await.unwrap();
    group.commit(messages[0].position).await.unwrap();
    drop(group);
    running.stop().await;
    assert!(registered(&world).await.is_empty(), "what it held is finished");
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_opened_says_so_and_is_tried_again() {
    let (world, disk) = (World::new(), SimulatedDisk::new(2, NO_SPACE));
    let running = Running::start(&disk, &world);
    running.comes_to(Some("queue.worker_directory")).await;
    assert!(running.log.topic(TIMEOUTS_TOPIC).is_none());
    assert!(registered(&world).await.is_empty());
    disk.set_faults(Faults::default());
    running.comes_to(None).await;
    running.append(TIMEOUTS_TOPIC).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_another_worker_has_is_taken_over_when_that_one_ends() {
    let (world, disk) = (World::new(), SimulatedDisk::new(3, Faults::default()));
    let first = Running::start(&disk, &world);
    first.comes_to(None).await;
    let second = Running::start(&disk, &world);
    second.comes_to(Some("give each worker of this machine a queue.worker_directory of its own")).await;
    assert!(second.log.topic(TIMEOUTS_TOPIC).is_none());
    first.append(TIMEOUTS_TOPIC).await.unwrap();
    first.stop().await;
    second.comes_to(None).await;
    assert_eq!(registered(&world).await.len(), 1, "one log, one row");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_has_it_opened_anew_and_loses_nothing_that_was_acknowledged() {
    let (world, disk) = (World::new(), SimulatedDisk::new(4, Faults::default()));
    let running = Running::start(&disk, &world);
    running.comes_to(None).await;
    let id = registered(&world).await[0].0;
    for _ in 0..5 {
        running.append(TIMEOUTS_TOPIC).await.unwrap();
    }
    disk.set_faults(BAD_SYNC);
    assert_eq!(running.append(TIMEOUTS_TOPIC).await, Err(AppendError::Uncertain));
    running.comes_to(Some("")).await;
    assert!(
        running.log.topic(TIMEOUTS_TOPIC).is_none(),
        "nothing is appended to a log that cannot tell what it holds"
    );
    disk.set_faults(Faults::default());
    running.comes_to(None).await;
    let kept = running.log.topic(TIMEOUTS_TOPIC).unwrap().read(None, 10).await.unwrap();
    assert!((5..=6).contains(&kept.len()), "{} records of 5, and maybe the uncertain one", kept.len());
    running.append(TIMEOUTS_TOPIC).await.unwrap();
    assert_eq!(registered(&world).await, [(id, false)], "the same log");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_said_and_passes() {
    let (world, disk) = (World::new(), SimulatedDisk::new(5, Faults::default()));
    let running = Running::start(&disk, &world);
    running.comes_to(None).await;
    // What is there may be written over; nothing may grow. Its group holds every record back.
    let topic = running.log.topic(EVENTS_TOPIC).unwrap();
    drop(topic.group("points", StartAt::Oldest).await.unwrap());
    disk.set_faults(Faults { capacity_bytes: 1, ..Faults::default() });
    let payload = [7; 4 << 10];
    let mut appended = 0;
    while topic.state() != TopicState::Full {
        let Ok(permit) = topic.try_permit(payload.len()) else { break };
        let record = NewRecord { key: b"", tag: "", deliver_at_ms: None, payload: &payload };
        topic.append(permit, record).await.unwrap();
        appended += 1;
        assert!(appended < 10_000, "the disk is never full");
    }
    running.comes_to(Some("no room")).await;
    assert_eq!(registered(&world).await.len(), 1);
    disk.set_faults(Faults::default());
    // A driven queue looks for room when it is asked for some.
    let asking = async {
        while running.log.report().trouble.is_some() {
            drop(topic.try_permit(2 * payload.len()));
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("room again");
    running.comes_to(None).await;
    running.append(EVENTS_TOPIC).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_was_lost_and_replaced_gets_a_new_log() {
    let (world, disk) = (World::new(), SimulatedDisk::new(6, Faults::default()));
    let current = Arc::new(parking_lot::Mutex::new(disk));
    let (at, now) = (current.clone(), world.now());
    let get = move |own: bool| -> GetLog {
        let (at, now) = (at.clone(), now.clone());
        Arc::new(move || {
            let mut options = DiskOptions::new(DIRECTORY, now.clone());
            options.storage = Storage::Simulated(at.lock().clone());
            options.driver = Driver::Driven;
            options.segment_bytes = 64 << 10;
            Box::pin(ready(if own {
                Queue::open_disk(options, &mut Registry::default())
            } else {
                Queue::attach_disk(options)
            }))
        })
    };
    let mut registry = Registry::default();
    let row = MemberRow::default();
    let parts = WorkerLogParts {
        log: LogAddress::Disk(DIRECTORY.into()),
        open: get(true),
        attach: get(false),
        database: world.database.clone(),
        row: row.clone(),
        metrics: WorkerLogMetrics::new(&mut registry),
    };
    let log = Arc::new(WorkerLog::new(parts));
    let stop = watch::Sender::new(false);
    let (running, stopping) = (log.clone(), stop.subscribe());
    let task = tokio::spawn(async move { running.run(stopping).await });
    let running = Running { log, row, registry, stop, task };
    running.comes_to(None).await;
    let first = registered(&world).await[0].0;
    assert_eq!(running.row.get().map(|owner| owner.0), Some(first), "the others know the process by it");
    *current.lock() = SimulatedDisk::new(7, Faults::default());
    running.comes_to(Some("no longer in its directory")).await;
    assert_eq!(running.row.get(), None);
    running.comes_to(None).await;
    running.append(TIMEOUTS_TOPIC).await.unwrap();
    let rows = registered(&world).await;
    assert_eq!(rows.len(), 2, "the lost one is remembered until the operator forgets it: {rows:?}");
    assert!(rows.contains(&(first, false)));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_database_out_of_reach_keeps_records_out_until_it_is_registered() {
    let (world, disk) = (World::new(), SimulatedDisk::new(8, Faults::default()));
    world
        .connection
        .with(|c| c.execute_batch("ALTER TABLE floodgate_instances RENAME TO elsewhere").unwrap());
    let running = Running::start(&disk, &world);
    running.comes_to(Some("cannot be registered")).await;
    assert!(running.log.topic(TIMEOUTS_TOPIC).is_none());
    world
        .connection
        .with(|c| c.execute_batch("ALTER TABLE elsewhere RENAME TO floodgate_instances").unwrap());
    running.comes_to(None).await;
    running.append(TIMEOUTS_TOPIC).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateways_log_is_not_registered_as_one_without_promises() {
    let (world, disk) = (World::new(), SimulatedDisk::new(9, Faults::default()));
    let queue = Queue::open_disk(options(&disk, &world), &mut Registry::default()).unwrap();
    drop(queue.topic(ORDERS_TOPIC).await.unwrap());
    drop(queue);
    let running = Running::start(&disk, &world);
    running.comes_to(Some("it is a gateway's log, which holds promises")).await;
    assert_eq!(world.database.instances().await.unwrap(), []);
    running.stop().await;
}
