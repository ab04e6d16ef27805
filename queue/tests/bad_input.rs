//! Directories and disks that are not as they should be: a clear error or back-pressure, nothing lost.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use queue::{
    AppendError, DiskOptions, Driver, Faults, NewRecord, Queue, QueueError, Refused, SimulatedDisk, StartAt,
    Storage, TopicState, Trace,
};

fn open(directory: &Path) -> Result<Queue, QueueError> {
    let mut options = DiskOptions::new(directory, Arc::new(|| 1_000));
    options.segment_bytes = 64 * 1024;
    options.driver = Driver::Driven;
    Queue::open_disk(options, &mut Registry::default())
}

fn patch(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_foreign_directory_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("letters.txt"), "dear").unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, QueueError::Foreign { .. }) && !error.is_retryable(), "{error}");
    assert!(
        error.to_string().contains("letters.txt") && error.to_string().contains("queue.directory"),
        "{error}"
    );
    assert_eq!(std::fs::read(directory.path().join("letters.txt")).unwrap(), b"dear");

    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("floodgate-queue"), [7; 64]).unwrap();
    assert!(matches!(open(other.path()), Err(QueueError::Foreign { .. })));
}

#[test]
fn another_version_is_named() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).unwrap());
    patch(&directory.path().join("floodgate-queue"), |bytes| {
        bytes[8] = 9;
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, QueueError::OtherVersion { found: 9, supported: 1, .. }), "{error}");
}

#[test]
fn a_damaged_identity_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).unwrap());
    patch(&directory.path().join("floodgate-queue"), |bytes| bytes[20] ^= 1);
    assert!(matches!(open(directory.path()), Err(QueueError::Corrupt { .. })));
}

#[test]
fn a_batch_of_another_version_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    queue.topic("orders").now_or_never().unwrap().unwrap();
    drop(queue);
    patch(&directory.path().join("orders/log/0000000000000001.seg"), |bytes| {
        bytes[8] = 2;
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(&bytes[..96]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, QueueError::OtherVersion { found: 2, .. }), "{error}");
}

/// What an earlier build left: no journal, and nothing of ours to repair.
#[tokio::test]
async fn offsets_of_another_version_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    drop(queue.topic("orders").await.unwrap().group("workers", StartAt::Oldest).await.unwrap());
    drop(queue);
    for slot in ["offset.0", "offset.1"] {
        patch(&directory.path().join("orders/groups/workers").join(slot), |bytes| bytes[8] = 1);
    }
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, QueueError::OtherVersion { found: 1, supported: 2, .. }), "{error}");
    assert!(error.to_string().contains("offset.") && error.to_string().contains("use the binary"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.join("queue"), "/proc/queue".into()] {
        let error = open(&path).unwrap_err();
        assert!(matches!(error, QueueError::Io { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn damaged_offsets_are_damage_and_one_sound_slot_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    let topic = queue.topic("orders").now_or_never().unwrap().unwrap();
    drop(topic.group("workers", StartAt::Oldest).now_or_never().unwrap().unwrap());
    drop((topic, queue));
    let slots =
        ["offset.0", "offset.1"].map(|slot| directory.path().join("orders/groups/workers").join(slot));
    patch(&slots[0], |bytes| bytes[33] ^= 4);
    drop(open(directory.path()).unwrap());
    for slot in &slots {
        patch(slot, |bytes| bytes[33] ^= 4);
    }
    assert!(matches!(open(directory.path()), Err(QueueError::Corrupt { .. })));
}

fn simulated(disk: &SimulatedDisk) -> DiskOptions {
    let mut options = DiskOptions::new("/queue", Arc::new(|| 1_000));
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options.segment_bytes = 128 * 1024;
    options.ring_bytes = 1 << 20;
    options
}

/// However small the disk: a permit that was given is honoured, even when every record goes into a batch of its own.
#[test]
fn a_full_disk_refuses_permits_and_honours_those_given() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    for capacity_bytes in (470_000..1_500_000).step_by(90_000) {
        let disk = SimulatedDisk::new(1, Faults { capacity_bytes, ..Faults::default() });
        runtime.block_on(async {
            let queue = Queue::open_disk(simulated(&disk), &mut Registry::default()).unwrap();
            let topic = queue.topic("orders").await.unwrap();
            let script = async {
                let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
                let mut appended = 0;
                for round in 0..5 {
                    let mut permits = Vec::new();
                    let refused = loop {
                        match topic.try_permit(300) {
                            Ok(permit) => permits.push(permit),
                            Err(refused) => break refused,
                        }
                        if permits.len() % 8 == 0 {
                            tokio::task::yield_now().await;
                        }
                    };
                    assert_eq!(refused, Refused::DiskFull);
                    assert!(
                        !permits.is_empty(),
                        "room came back in round {round}, capacity {capacity_bytes}"
                    );
                    for permit in permits {
                        let record =
                            NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &[9; 300] };
                        topic.append(permit, record).await.unwrap();
                        appended += 1;
                    }
                    assert_eq!(topic.end().unwrap().to_string(), appended.to_string());
                    group.commit(topic.end().unwrap()).await.unwrap();
                    for _ in 0..50 {
                        tokio::task::yield_now().await;
                    }
                }
            };
            tokio::select! { biased; () = script => {}, () = queue.run() => {} }
        });
    }
}

/// A disk that was full before the start takes nothing, and what is on it can still be drained.
#[test]
fn a_full_disk_does_not_prevent_the_start() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let disk = SimulatedDisk::new(1, Faults::default());
    runtime.block_on(async {
        for full in [false, true] {
            let used: u64 = disk.files().iter().map(|(_, length)| length).sum();
            // Room for offsets with journals of a block, not for a segment; what was prepared before is taken away below.
            let capacity_bytes = if full { used + 17_000 } else { 0 };
            disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
            let queue = Queue::open_disk(simulated(&disk), &mut Registry::default()).unwrap();
            let topic = queue.topic("orders").await.unwrap();
            let script = async {
                let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: b"x" };
                if full {
                    assert_eq!(topic.try_permit(1).unwrap_err(), Refused::DiskFull);
                    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
                    assert_eq!(group.pull(10, Duration::ZERO).await.unwrap().len(), 1);
                } else {
                    topic.append(topic.try_permit(1).unwrap(), record).await.unwrap();
                }
            };
            tokio::select! { biased; () = script => {}, () = queue.run() => {} }
            drop(queue);
            disk.kill();
            for (path, _) in disk.files() {
                if path.extension().is_some_and(|end| end == "seg")
                    && !disk.contents(&path).starts_with(b"FLGBATCH")
                {
                    disk.lose(&path);
                }
            }
        }
    });
}

/// The committer's thread is gone: nobody waits for it for ever.
#[test]
fn a_committer_that_panics_leaves_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = DiskOptions::new(directory.path(), Arc::new(|| 1_000));
    options.segment_bytes = 64 * 1024;
    options.trace = Some(Trace(Arc::new(|batch| assert!(batch.records < 1, "a panic on purpose"))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: b"x" };
        topic.append(topic.try_permit(1).unwrap(), record).await.unwrap();
        // The first batch's waiters were woken before the panic; what comes after it is never written.
        while let Ok(permit) = topic.try_permit(1) {
            assert_eq!(topic.append(permit, record).await, Err(AppendError::Uncertain));
        }
        assert_eq!(topic.state(), TopicState::Poisoned);
        queue.shutdown().await;
    });
}
