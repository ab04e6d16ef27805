//! The bytes on the disk: logs that earlier versions wrote still read, and no bytes make decoding panic.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use proptest::prelude::*;
use queue::{DiskOptions, Driver, NewRecord, Queue, QueueError, StartAt, operator};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn options(directory: &Path) -> DiskOptions {
    let mut options = DiskOptions::new(directory, Arc::new(|| 1_700_000_000_000));
    options.segment_bytes = 64 * 1024;
    options.driver = Driver::Driven;
    options.random = Arc::new(|| 0x0123_4567_89ab_cdef);
    options
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn payload(number: u64) -> Vec<u8> {
    vec![number as u8; 1 + (number * number) as usize]
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Writes the fixture of the current version: `FLOODGATE_WRITE_FIXTURE=1`, once a version.
#[test]
fn write_the_fixture() {
    if std::env::var_os("FLOODGATE_WRITE_FIXTURE").is_none() {
        return;
    }
    let directory = fixtures().join("v1");
    std::fs::remove_dir_all(&directory).ok();
    runtime().block_on(async {
        let queue = Queue::open_disk(options(&directory), &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let script = async {
            for number in 1..=20 {
                let payload = payload(number);
                let key = format!("order-{number}");
                let deliver_at_ms = (number % 5 == 0).then_some(1_600_000_000_000 + number);
                let record =
                    NewRecord { key: key.as_bytes(), tag: "order", deliver_at_ms, payload: &payload };
                topic.append(topic.try_permit(payload.len()).unwrap(), record).await.unwrap();
            }
            let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
            let messages = group.pull(20, Duration::ZERO).await.unwrap();
            group.commit(messages[4].position).await.unwrap();
            group.ack(messages[7].position).await.unwrap();
            group.nack(messages[9].position, Duration::ZERO).await.unwrap();
            group.dead_letter(&messages[11], "spoilt").await.unwrap();
            drop(group);
            queue.shutdown().await;
        };
        tokio::join!(queue.run(), script);
    });
}

#[test]
fn every_version_still_reads() {
    let mut versions = 0;
    for version in std::fs::read_dir(fixtures()).unwrap() {
        versions += 1;
        let scratch = tempfile::tempdir().unwrap();
        copy(&version.unwrap().path(), scratch.path());
        let verified = operator::verify(scratch.path()).unwrap();
        assert_eq!((verified.len(), &verified[0].damage, verified[0].records), (1, &None, Some((1, 20))));
        runtime().block_on(async {
            let queue = Queue::open_disk(options(scratch.path()), &mut Registry::default()).unwrap();
            assert_eq!(queue.instance(), 0x0123_4567_89ab_cdef);
            let topic = queue.topic("orders").await.unwrap();
            let messages = topic.read(None, 100).await.unwrap();
            assert_eq!(messages.len(), 20);
            for (number, message) in (1..).zip(&messages) {
                assert_eq!(message.payload, payload(number));
                assert_eq!(message.key, format!("order-{number}").as_bytes());
                assert_eq!((message.tag.as_str(), message.appended_at_ms), ("order", 1_700_000_000_000));
                assert_eq!(message.deliver_at_ms, (number % 5 == 0).then_some(1_600_000_000_000 + number));
            }
            let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
            assert_eq!(group.committed(), Some(messages[4].position));
            let left = group.pull(100, Duration::ZERO).await.unwrap();
            assert_eq!(left.len(), 13);
            assert!(
                left.iter()
                    .all(|message| (message.attempt == 2) == (message.position == messages[9].position))
            );
            let letters = operator::dead_letters(&topic, "workers", None, 10).await.unwrap();
            assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "spoilt"));
            assert_eq!(letters[0].message, messages[11]);
        });
    }
    assert_eq!(versions, 1, "one fixture a version");
}

#[test]
fn verify_names_the_flipped_byte() {
    let scratch = tempfile::tempdir().unwrap();
    copy(&fixtures().join("v1"), scratch.path());
    let segment = scratch.path().join("orders/log/0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 120] ^= 0x10;
    std::fs::write(&segment, bytes).unwrap();
    let damage = operator::verify(scratch.path()).unwrap().remove(0).damage.unwrap();
    assert_eq!((damage.file, damage.offset), (segment, 4096));
    println!("{}", damage.found);
}

#[test]
fn verify_names_the_flipped_byte_of_a_groups_journal() {
    let scratch = tempfile::tempdir().unwrap();
    copy(&fixtures().join("v1"), scratch.path());
    let journal = scratch.path().join("orders/groups/workers/offset.1");
    let mut bytes = std::fs::read(&journal).unwrap();
    assert_eq!(bytes[4096..4104], *b"FLGDELTA");
    bytes[4096 + 50] ^= 0x10;
    std::fs::write(&journal, bytes).unwrap();
    let damage = operator::verify(scratch.path()).unwrap().remove(0).damage.unwrap();
    assert_eq!((damage.file, damage.offset), (journal, 4096), "{}", damage.found);
}

/// What a start refuses verify calls damage, in the same words, and nothing else.
#[test]
fn verify_and_a_start_judge_alike() {
    let scratch = tempfile::tempdir().unwrap();
    let log = scratch.path().join("log");
    runtime().block_on(async {
        let queue = Queue::open_disk(options(&log), &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").await.unwrap();
        let script = async {
            for number in 1..=3 {
                let payload = payload(number);
                let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &payload };
                topic.append(topic.try_permit(payload.len()).unwrap(), record).await.unwrap();
            }
        };
        // It ends as a kill ends it: nothing is settled.
        tokio::select! { biased; () = script => {}, () = queue.run() => {} }
    });
    let segment = "orders/log/0000000000000001.seg";
    let bytes = std::fs::read(log.join(segment)).unwrap();
    let batches: Vec<usize> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"FLGBATCH")).collect();
    assert!(batches.len() > 3, "{batches:?}");
    let mut damaged = 0;
    for batch in &batches {
        let copied = scratch.path().join(format!("zeroed-{batch}"));
        copy(&log, &copied);
        let mut zeroed = bytes.clone();
        zeroed[*batch..batch + 4096].fill(0);
        std::fs::write(copied.join(segment), zeroed).unwrap();
        let verified = operator::verify(&copied).unwrap().remove(0).damage;
        let opened = runtime().block_on(async {
            let queue = Queue::open_disk(options(&copied), &mut Registry::default())?;
            tokio::select! { topic = queue.topic("orders") => topic.map(drop), () = queue.run() => Ok(()) }
        });
        match (verified, opened) {
            (None, Ok(())) => {}
            (Some(verified), Err(QueueError::Corrupt { file, offset, found })) => {
                assert_eq!((verified.file, verified.offset, verified.found), (file, offset, found));
                damaged += 1;
            }
            unlike => panic!("batch {batch}: {unlike:?}"),
        }
    }
    // The last one, too: nothing behind it proves it, but the owner has told others of it.
    assert_eq!(damaged, batches.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        queue::decode_anything(&bytes);
    }
}
