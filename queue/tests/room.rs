//! Room: as many permits as were asked for, a disk with room for little, segments that go while a group begins.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::{
    DiskOptions, Driver, Faults, NewRecord, Permit, Queue, Refused, SimulatedDisk, StartAt, Storage, Topic,
    TopicState,
};

fn simulated(disk: &SimulatedDisk) -> DiskOptions {
    let mut options = DiskOptions::new("/queue", Arc::new(|| 1_000));
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

async fn upkeep() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Every permit that there is.
fn permits(topic: &Topic, bytes: usize) -> (Vec<Permit>, Refused) {
    let mut held = Vec::new();
    loop {
        match topic.try_permit(bytes) {
            Ok(permit) => held.push(permit),
            Err(refused) => return (held, refused),
        }
    }
}

async fn append_all(topic: &Topic, permits: Vec<Permit>, bytes: usize) {
    for permit in permits {
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &vec![9; bytes] };
        topic.append(permit, record).await.unwrap();
    }
}

#[test]
fn as_many_permits_as_asked_for_fit_at_any_time() {
    const PERMITS: usize = 3_000;
    const BYTES: usize = 1_408;
    let disk = SimulatedDisk::new(1, Faults::default());
    let mut options = simulated(&disk);
    options.segment_bytes = 1 << 20;
    options.ring_bytes = 1 << 20;
    options.in_flight_max = PERMITS;
    options.in_flight_bytes = BYTES;
    runtime().block_on(async {
        let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let script = async {
            let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
            for round in 0..4 {
                upkeep().await;
                let (mut held, refused) = permits(&topic, BYTES);
                assert!(held.len() >= PERMITS, "{} permits in round {round}, then {refused}", held.len());
                held.truncate(700);
                append_all(&topic, held, BYTES).await;
                group.commit(topic.end().unwrap()).await.unwrap();
            }
        };
        tokio::select! { biased; () = script => {}, () = queue.run() => {} }
    });
}

/// Segments of a delayed topic are shorter: so many more of them are kept ready.
#[test]
fn a_delayed_topic_has_the_room_that_was_asked_for() {
    const PERMITS: usize = 4_000;
    const BYTES: usize = 1_408;
    let disk = SimulatedDisk::new(1, Faults::default());
    let mut options = simulated(&disk);
    options.delayed("orders");
    options.in_flight_max = PERMITS;
    options.in_flight_bytes = BYTES;
    runtime().block_on(async {
        let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let script = async {
            let mut group = topic.group("closer", StartAt::Oldest).await.unwrap();
            for round in 0..3 {
                upkeep().await;
                let (mut held, refused) = permits(&topic, BYTES);
                assert!(held.len() >= PERMITS, "{} permits in round {round}, then {refused}", held.len());
                held.truncate(1_500);
                append_all(&topic, held, BYTES).await;
                group.commit(topic.end().unwrap()).await.unwrap();
            }
        };
        tokio::select! { biased; () = script => {}, () = queue.run() => {} }
    });
    let log = disk.files().into_iter().filter(|(path, _)| path.starts_with("/queue/orders/log"));
    assert_eq!(log.map(|(_, bytes)| bytes).max(), Some(4 << 20));
}

/// The segment that is being written cannot be reused before there is another one to go on in.
#[test]
fn a_disk_for_one_segment_takes_records_again_once_they_are_drained() {
    let capacity_bytes = (1 << 20) + 540_000;
    let disk = SimulatedDisk::new(1, Faults { capacity_bytes, ..Faults::default() });
    let mut options = simulated(&disk);
    options.segment_bytes = 1 << 20;
    runtime().block_on(async {
        let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let script = async {
            let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
            let mut appended = 0;
            for round in 0..30 {
                upkeep().await;
                let (held, refused) = permits(&topic, 300);
                assert_eq!(refused, Refused::DiskFull);
                assert!(!held.is_empty(), "none in round {round}");
                appended += held.len();
                append_all(&topic, held, 300).await;
                group.commit(topic.end().unwrap()).await.unwrap();
            }
            upkeep().await;
            assert_eq!(topic.state(), TopicState::Writable);
            // Far more than the disk holds: each is charged a block.
            assert!(appended > 1_000, "{appended}");
        };
        tokio::select! { biased; () = script => {}, () = queue.run() => {} }
    });
}

/// What stays for a while though it is drained makes room for what comes, on a disk that holds a tenth of what is written.
#[test]
fn drained_records_that_stay_refuse_nobody_a_permit() {
    const PERMITS: usize = 500;
    const BYTES: usize = 1_408;
    let mut kept = Vec::new();
    for keep_drained in [Duration::ZERO, Duration::from_secs(86_400)] {
        let capacity_bytes = 12 << 20;
        let disk = SimulatedDisk::new(1, Faults { capacity_bytes, ..Faults::default() });
        let mut options = simulated(&disk);
        options.segment_bytes = 1 << 20;
        options.ring_bytes = 1 << 20;
        options.in_flight_max = PERMITS;
        options.in_flight_bytes = BYTES;
        options.keep_drained = keep_drained;
        options.keep_drained_bytes_max = u64::MAX;
        runtime().block_on(async {
            let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
            let topic = queue.topic("orders").await.unwrap();
            let script = async {
                let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
                for round in 0..200 {
                    upkeep().await;
                    assert_eq!(topic.state(), TopicState::Writable, "round {round}");
                    let (mut held, refused) = permits(&topic, BYTES);
                    assert!(held.len() >= PERMITS, "{} permits in round {round}, then {refused}", held.len());
                    held.truncate(PERMITS);
                    append_all(&topic, held, BYTES).await;
                    group.commit(topic.end().unwrap()).await.unwrap();
                }
                topic.read(None, usize::MAX).await.unwrap().len()
            };
            tokio::select! { biased; left = script => kept.push(left), () = queue.run() => {} }
        });
    }
    assert!(kept[1] > kept[0] + PERMITS, "as much as the disk has room for: {kept:?}");
}

fn segments(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory.join("orders/log"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Whoever begins a group, in whatever process, holds the lock `births`: the oldest segment must not go meanwhile, or the group
/// would begin before the log does.
#[test]
fn a_segment_waits_for_a_group_that_begins() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = DiskOptions::new(directory.path(), Arc::new(|| 1_000));
    options.segment_bytes = 64 * 1024;
    options.driver = Driver::Driven;
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
        let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let script = async {
            let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
            let births = std::fs::File::open(directory.path().join("orders/births")).unwrap();
            births.lock().unwrap();
            let oldest = segments(directory.path()).remove(0);
            for _ in 0..60 {
                let permit = loop {
                    match topic.try_permit(3_000) {
                        Ok(permit) => break permit,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                };
                append_all(&topic, vec![permit], 3_000).await;
                group.commit(topic.end().unwrap()).await.unwrap();
                upkeep().await;
            }
            assert_eq!(segments(directory.path()).remove(0), oldest, "it goes while a group may begin");
            births.unlock().unwrap();
            while segments(directory.path()).remove(0) == oldest {
                // The next round of upkeep is at the next record's.
                append_all(&topic, vec![topic.try_permit(1).unwrap()], 1).await;
                group.commit(topic.end().unwrap()).await.unwrap();
                upkeep().await;
            }
        };
        tokio::select! { biased; () = script => {}, () = queue.run() => {} }
    });
}

#[tokio::test]
async fn a_log_that_was_moved_away_takes_nothing_more_but_can_be_finished() {
    let directory = tempfile::tempdir().unwrap();
    let (place, elsewhere) = (directory.path().join("queue"), directory.path().join("elsewhere"));
    let queue =
        Queue::open_disk(DiskOptions::new(&place, Arc::new(|| 1_000)), &mut Registry::default()).unwrap();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    append_all(&topic, vec![topic.try_permit(9).unwrap()], 9).await;
    let until = async |refused: Option<Refused>| {
        let change = async {
            while topic.try_permit(9).err() != refused {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), change).await.expect("nobody noticed for a minute");
    };

    std::fs::rename(&place, &elsewhere).unwrap();
    until(Some(Refused::Gone)).await;
    assert_eq!(topic.state(), TopicState::Full);
    let messages = group.pull(10, Duration::ZERO).await.unwrap();
    assert_eq!(messages.len(), 1, "what was acknowledged is still delivered");
    group.commit(messages[0].position).await.unwrap();

    std::fs::rename(&elsewhere, &place).unwrap();
    until(None).await;
    assert_eq!(topic.state(), TopicState::Writable);
    queue.shutdown().await;
}

#[test]
fn a_disk_that_does_not_answer_shows() {
    let disk = SimulatedDisk::new(1, Faults::default());
    runtime().block_on(async {
        let queue = Queue::open_disk(simulated(&disk), &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &[9; 9] };
        let append = topic.append(topic.try_permit(9).unwrap(), record);
        let mut run = std::pin::pin!(queue.run());
        // Written, and not synced before somebody goes on.
        tokio::select! { biased; () = &mut run => {}, () = std::future::ready(()) => {} }
        assert_eq!(topic.state(), TopicState::Writable);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(topic.state(), TopicState::Stalled);
        tokio::select! { biased; () = &mut run => {}, position = append => drop(position.unwrap()) }
        assert_eq!(topic.state(), TopicState::Writable);
    });
}
