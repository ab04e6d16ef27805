//! Cut-off and retention where a write or a sync fails in between, or another process holds the group: what went is always told, and
//! goes only by what is durable.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::failpoint::set_hook;
use queue::{
    BehindMax, DiskOptions, Driver, Faults, Group, LogAddress, NewRecord, Permit, Queue, QueueError,
    SimulatedDisk, StartAt, Storage, Topic,
};

const SEGMENT_BYTES: u64 = 64 * 1024;
/// About an eighth of a segment.
const BYTES: usize = 7_000;
const BOUND: u64 = 16;

fn options(directory: impl AsRef<Path>) -> DiskOptions {
    let mut options = DiskOptions::new(directory.as_ref(), Arc::new(|| 1_000));
    options.driver = Driver::Driven;
    options.segment_bytes = SEGMENT_BYTES;
    options.ring_bytes = 64 * 1024;
    options
}

fn simulated(disk: &SimulatedDisk) -> DiskOptions {
    let mut options = options("/queue");
    options.storage = Storage::Simulated(disk.clone());
    options
}

/// One life of the process that owns the log, up to the end of its work.
fn life(options: DiskOptions, registry: &mut Registry, work: impl AsyncFnOnce(&Queue, Topic)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let queue = Queue::open_disk(options, registry).unwrap();
    runtime.block_on(async {
        let topic = queue.topic("orders").await.unwrap();
        tokio::select! { biased; () = work(&queue, topic) => {}, () = queue.run() => {} }
    });
}

async fn append(topic: &Topic, records: usize) {
    for _ in 0..records {
        let permit: Permit = loop {
            match topic.try_permit(BYTES) {
                Ok(permit) => break permit,
                Err(refused) => assert!(refused.is_retryable(), "{refused}"),
            }
            tokio::task::yield_now().await;
        };
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &[7; BYTES] };
        topic.append(permit, record).await.unwrap();
    }
}

async fn commit_all(topic: &Topic, group: &mut Group) {
    group.commit(topic.end().unwrap()).await.unwrap();
}

/// A round of upkeep without an append: a topic that is opened rings for it.
async fn upkeep(queue: &Queue, times: usize) {
    for _ in 0..times {
        let next = queue.topics().await.unwrap().len();
        queue.topic(&format!("other-{next}")).await.unwrap();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

async fn oldest(topic: &Topic) -> u64 {
    topic.read(None, 1).await.unwrap()[0].position.to_string().parse().unwrap()
}

/// Has each pass of that place fail while the answer is set; its other half counts them.
fn fail(place: &'static str) -> (Rc<Cell<bool>>, Rc<Cell<u32>>) {
    let (fails, passed) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(0)));
    let (is_on, count) = (Rc::clone(&fails), Rc::clone(&passed));
    set_hook(Some(Box::new(move |name| {
        if name == place {
            count.set(count.get() + 1);
        }
        name == place && is_on.get()
    })));
    (fails, passed)
}

fn counted(registry: &Registry) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find(|line| line.starts_with("floodgate_queue_cut_off_records_total{"));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
}

async fn told(late: &mut Group) -> u64 {
    match late.pull(1, Duration::ZERO).await {
        Err(QueueError::Cut { records, .. }) => records,
        answer => panic!("not told: {answer:?}"),
    }
}

async fn bounded(topic: &Topic) -> Group {
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(BOUND), age: None })).await.unwrap();
    late
}

/// The cut's file is written, and the error comes behind that.
#[test]
fn a_cut_whose_error_came_late_is_told_and_counted() {
    let disk = SimulatedDisk::new(1, Faults::default());
    let mut registry = Registry::default();
    let mut records = 0;
    life(simulated(&disk), &mut registry, async |queue, topic| {
        let mut late = bounded(&topic).await;
        let (fails, passed) = fail("queue.cut");
        append(&topic, 40).await;
        // Its file says so by now, and no later cut is to come.
        upkeep(queue, 1).await;
        assert!(passed.get() > 0, "nobody was cut");
        assert_eq!(oldest(&topic).await, 1, "nothing goes by a cut that may not be durable");
        fails.set(false);
        upkeep(queue, 2).await;
        assert!(topic.lag("late").await.unwrap().records <= BOUND);
        records = told(&mut late).await;
        assert!(records >= 40 - BOUND);
    });
    set_hook(None);
    assert_eq!(counted(&registry), records, "all that it will not see");
}

/// The group goes back, and the cut's file is gone or not: what retention lets go by it, an open would miss.
#[test]
fn a_reset_whose_error_came_late_keeps_what_it_went_back_to() {
    let disk = SimulatedDisk::new(1, Faults::default());
    life(simulated(&disk), &mut Registry::default(), async |queue, topic| {
        let mut late = bounded(&topic).await;
        // It keeps what `late` is cut off from, so that there is something to go back to.
        let mut keeps = topic.group("keeps", StartAt::Oldest).await.unwrap();
        append(&topic, 40).await;
        upkeep(queue, 1).await;
        late.limit_behind(None).await.unwrap();
        let (fails, passed) = fail("queue.limits-sync");
        assert!(matches!(late.reset(None).await, Err(QueueError::Io { .. })));
        assert_eq!(passed.get(), 1);
        fails.set(false);
        commit_all(&topic, &mut keeps).await;
        upkeep(queue, 4).await;
        assert_eq!(oldest(&topic).await, 1, "the group went back to it");
    });
    set_hook(None);
    disk.crash();
    life(simulated(&disk), &mut Registry::default(), async |_, topic| {
        let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
        assert_eq!(late.pull(100, Duration::ZERO).await.unwrap().len(), 40);
    });
}

/// A cut that was read from the page cache is made durable before anything goes by it.
#[test]
fn nothing_goes_by_a_cut_that_is_not_durable() {
    let disk = SimulatedDisk::new(1, Faults::default());
    life(simulated(&disk), &mut Registry::default(), async |queue, topic| {
        let mut late = bounded(&topic).await;
        let (fails, passed) = fail("queue.limits-sync");
        append(&topic, 40).await;
        upkeep(queue, 4).await;
        assert!(topic.lag("late").await.unwrap().records <= BOUND, "it is cut off");
        assert!(passed.get() > 0);
        assert_eq!(oldest(&topic).await, 1);
        fails.set(false);
        upkeep(queue, 2).await;
        assert!(oldest(&topic).await > 1, "and goes then");
        told(&mut late).await;
    });
    set_hook(None);
}

/// An owner in this process, and a handle on its log as another process has one.
fn beside(work: impl AsyncFnOnce(&Path, &Queue, Topic, Topic)) {
    let directory = tempfile::tempdir().unwrap();
    life(options(directory.path()), &mut Registry::default(), async |queue, topic| {
        let attached = Queue::attach(&LogAddress::from(directory.path()), Arc::new(|| 1_000)).await.unwrap();
        let attached = attached.topic("orders").await.unwrap();
        work(directory.path(), queue, topic, attached).await;
    });
    set_hook(None);
}

/// The owner's last look said that the group was past everything; it has gone back since, and its files cannot be read now.
#[test]
fn nothing_goes_while_the_files_of_a_group_cannot_be_read() {
    beside(async |directory, queue, topic, attached| {
        let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
        let mut late = attached.group("late", StartAt::Oldest).await.unwrap();
        append(&topic, 24).await;
        commit_all(&attached, &mut late).await;
        upkeep(queue, 1).await;
        assert_eq!(oldest(&topic).await, 1, "the other one needs it");
        late.reset(None).await.unwrap();
        let unreadable = directory.join("orders/groups/late/behind-max");
        std::fs::create_dir(&unreadable).unwrap();
        append(&topic, 12).await;
        commit_all(&topic, &mut workers).await;
        upkeep(queue, 4).await;
        assert_eq!(oldest(&topic).await, 1, "the group needs it");
        std::fs::remove_dir(&unreadable).unwrap();
        assert_eq!(late.pull(100, Duration::ZERO).await.unwrap().len(), 36);
        commit_all(&attached, &mut late).await;
        upkeep(queue, 4).await;
        assert!(oldest(&topic).await > 1, "and goes then");
    });
}

/// What another process has written and not synced may be lost with the machine, and the segment must not be gone then.
#[test]
fn nothing_goes_by_what_another_process_has_not_synced() {
    beside(async |_, queue, topic, attached| {
        let mut late = attached.group("late", StartAt::Oldest).await.unwrap();
        append(&topic, 30).await;
        let (fails, passed) = fail("queue.retire-sync");
        commit_all(&attached, &mut late).await;
        upkeep(queue, 4).await;
        assert!(passed.get() > 0, "nobody made sure");
        assert_eq!(oldest(&topic).await, 1);
        fails.set(false);
        upkeep(queue, 4).await;
        assert!(oldest(&topic).await > 1, "and goes then");
    });
}

/// What it has finished behind its cut is no backlog, whichever process counts it.
#[test]
fn a_lag_is_the_same_in_every_process() {
    beside(async |_, queue, topic, attached| {
        let mut late = bounded(&attached).await;
        append(&topic, 6).await;
        upkeep(queue, 1).await;
        append(&topic, 34).await;
        late.ack(topic.end().unwrap()).await.unwrap();
        upkeep(queue, 2).await;
        let lag = topic.lag("late").await.unwrap().records;
        assert!(lag < BOUND, "{lag}");
        assert_eq!(attached.lag("late").await.unwrap().records, lag);
    });
}
