//! Every truncation point and every bit flip of a log's last batches, reopened twice with appends between.
//!
//! What later bytes prove acknowledged must be called damaged, with its place; what nothing proves may be dropped whole.
//! Headers bit by bit, bodies one bit in 13; `FLOODGATE_LONG=1`
//! flips every bit and cuts at every byte.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, Faults, NewRecord, Queue, QueueError, SimulatedDisk, StartAt, Storage};

const BLOCK: u64 = 4096;

fn options(disk: &SimulatedDisk) -> DiskOptions {
    let mut options = DiskOptions::new("/queue", Arc::new(|| 1_000));
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options.segment_bytes = 64 * 1024;
    options.ring_bytes = 32 * 1024;
    options.random = Arc::new(|| 42);
    options
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Opens, reads everything, appends `more`, and ends cleanly or not.
fn life(disk: &SimulatedDisk, more: &[Vec<u8>], clean: bool) -> Result<Vec<Vec<u8>>, QueueError> {
    runtime().block_on(async {
        let queue = Queue::open_disk(options(disk), &mut Registry::default())?;
        let topic = queue.topic("orders").await?;
        let read = topic.read(None, usize::MAX).await?;
        let append = async {
            for payload in more {
                let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload };
                topic.append(topic.try_permit(payload.len()).unwrap(), record).await.unwrap();
            }
            if clean {
                queue.shutdown().await;
            }
        };
        tokio::select! { biased; () = append => {}, () = queue.run() => {} }
        Ok(read.into_iter().map(|message| message.payload).collect())
    })
}

/// A log of single-record batches, the last two longer than a block; its payloads; and its only segment with batches.
fn log(clean: bool) -> (SimulatedDisk, Vec<Vec<u8>>, PathBuf) {
    let disk = SimulatedDisk::new(3, Faults::default());
    let payloads: Vec<Vec<u8>> = [40, 3000, 10, 5000, 4300]
        .iter()
        .enumerate()
        .map(|(at, length)| vec![at as u8 + 1; *length])
        .collect();
    assert!(life(&disk, &payloads, clean).unwrap().is_empty());
    disk.kill();
    let segment = disk.files().into_iter().find(|(path, _)| path.extension().is_some_and(|end| end == "seg"));
    (disk, payloads, segment.unwrap().0)
}

/// Where each batch begins and ends, the marker batches included.
fn batches(disk: &SimulatedDisk, segment: &Path) -> Vec<(u64, u64)> {
    let bytes = disk.contents(segment);
    let mut found = Vec::new();
    let mut at = 0;
    while bytes[at as usize..].starts_with(b"FLGBATCH") {
        let length = u32::from_le_bytes(bytes[at as usize + 76..at as usize + 80].try_into().unwrap());
        let end = (at + 96 + u64::from(length)).next_multiple_of(BLOCK);
        found.push((at, end));
        at = end;
    }
    found
}

/// Whether a damage was survived as it must be: `dropped` is how many of the last records may be missing, all or none.
fn check(damaged: &SimulatedDisk, payloads: &[Vec<u8>], dropped: usize, what: &str) {
    let kept = &payloads[..payloads.len() - dropped];
    let mut more = vec![vec![101; 70]];
    let read = life(damaged, &more, false).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(read == payloads || read == kept, "{what}: {} records read", read.len());
    let mut expected = [read, more.clone()].concat();
    damaged.kill();
    more[0][0] = 102;
    assert_eq!(life(damaged, &more, true).unwrap(), expected, "{what}: the first reopen");
    expected.extend(more);
    assert_eq!(life(damaged, &[], false).unwrap(), expected, "{what}: the second reopen");
}

fn check_corrupt(damaged: &SimulatedDisk, segment: &Path, batch: u64, what: &str) {
    match life(damaged, &[], false) {
        Err(QueueError::Corrupt { file, offset, .. }) => {
            assert_eq!((file.as_path(), offset), (segment, batch), "{what}: the place");
        }
        other => panic!("{what}: damage not noticed: {other:?}"),
    }
}

#[test]
fn every_truncation_point_of_the_last_batches() {
    let (disk, payloads, segment) = log(false);
    let batches = batches(&disk, &segment);
    let (from, to) = (batches[batches.len() - 2].0, batches[batches.len() - 1].1);
    for cut in from..to {
        if cut % 31 != 0 && cut % 512 > 1 && std::env::var_os("FLOODGATE_LONG").is_none() {
            continue;
        }
        let damaged = disk.duplicate();
        damaged.zero_from(&segment, cut);
        // Nothing is left that proves what was cut off.
        let dropped = if cut < batches[batches.len() - 1].0 { 2 } else { 1 };
        let kept: &[Vec<u8>] = if dropped == 2 { &payloads[..4] } else { &payloads };
        check(&damaged, kept, 1, &format!("cut at {cut}"));
    }
}

#[test]
fn every_bit_flip_of_the_last_batches_after_a_kill() {
    flip_all(false);
}

#[test]
fn every_bit_flip_of_the_last_batches_after_a_clean_end() {
    flip_all(true);
}

fn flip_all(clean: bool) {
    let (disk, payloads, segment) = log(clean);
    let batches = batches(&disk, &segment);
    let step = if std::env::var_os("FLOODGATE_LONG").is_some() { 1 } else { 13 };
    let contents = disk.contents(&segment);
    // After a clean end the closing batch is the last one, and proves all records.
    for (at, (begin, end)) in batches.iter().enumerate().skip(batches.len() - 2) {
        let last = at + 1 == batches.len();
        let body =
            u32::from_le_bytes(contents[*begin as usize + 76..*begin as usize + 80].try_into().unwrap());
        let checked_end = begin + 96 + u64::from(body);
        let padding = (checked_end..*end).step_by(64).map(|byte| byte * 8 + byte % 8);
        let header = begin * 8..(begin + 96) * 8;
        let body = (header.end..checked_end * 8).step_by(step);
        for bit in header.chain(body).chain(padding) {
            let what = format!("bit {bit} flipped in batch {at} of {}, clean {clean}", batches.len());
            let damaged = disk.duplicate();
            damaged.flip_bit(&segment, bit);
            if last {
                check(&damaged, &payloads, usize::from(!clean), &what);
            } else if bit / 8 < checked_end {
                check_corrupt(&damaged, &segment, *begin, &what);
            } else {
                check(&damaged, &payloads, 0, &what);
            }
        }
    }
}

#[test]
fn a_lost_segment_in_the_middle_is_damage() {
    let disk = SimulatedDisk::new(3, Faults::default());
    for round in 0..4_u8 {
        life(&disk, &[vec![round + 1; 100]], true).unwrap();
    }
    let segments: Vec<PathBuf> = disk
        .files()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    for lost in &segments[1..segments.len() - 1] {
        let damaged = disk.duplicate();
        damaged.lose(lost);
        let outcome = life(&damaged, &[], false);
        assert!(matches!(outcome, Err(QueueError::Corrupt { .. })), "{}: {outcome:?}", lost.display());
    }
}

#[test]
fn a_group_beyond_the_end_is_damage() {
    let (disk, _, segment) = log(false);
    runtime().block_on(async {
        let queue = Queue::open_disk(options(&disk), &mut Registry::default()).unwrap();
        let mut group = queue.topic("orders").await.unwrap().group("workers", StartAt::Oldest).await.unwrap();
        let messages = group.pull(10, std::time::Duration::ZERO).await.unwrap();
        group.commit(messages[4].position).await.unwrap();
    });
    disk.kill();
    let second = disk
        .files()
        .into_iter()
        .map(|(path, _)| path)
        .find(|path| path.extension().is_some_and(|end| end == "seg") && *path != segment);
    disk.lose(&second.unwrap());
    let last = *batches(&disk, &segment).last().unwrap();
    disk.flip_bit(&segment, (last.0 + 200) * 8);
    check_corrupt(&disk, &segment, last.0, "finished but gone");
}

const CURRENT: &str = "/queue/orders/groups/workers/offset.1";

/// A log of so many records, and a group that has finished all but the last, each with a change of its own in its journal.
const FINISHED: usize = 4;

fn group() -> SimulatedDisk {
    let disk = SimulatedDisk::new(3, Faults::default());
    life(&disk, &vec![vec![1; 10]; FINISHED + 1], true).unwrap();
    disk.kill();
    runtime().block_on(async {
        let queue = Queue::open_disk(options(&disk), &mut Registry::default()).unwrap();
        let mut group = queue.topic("orders").await.unwrap().group("workers", StartAt::Oldest).await.unwrap();
        let messages = group.pull(FINISHED, std::time::Duration::ZERO).await.unwrap();
        for message in messages {
            group.ack(message.position).await.unwrap();
        }
    });
    disk.kill();
    disk
}

/// How many records the group has finished.
fn finished(disk: &SimulatedDisk) -> Result<usize, QueueError> {
    let finished = runtime().block_on(async {
        let queue = Queue::open_disk(options(disk), &mut Registry::default())?;
        let mut group = queue.topic("orders").await?.group("workers", StartAt::Oldest).await?;
        let left = group.pull(100, std::time::Duration::ZERO).await?;
        // It takes further changes.
        group.ack(left[left.len() - 1].position).await?;
        Ok(FINISHED + 1 - left.len())
    });
    disk.kill();
    finished
}

fn check_group_corrupt(damaged: &SimulatedDisk, at: u64, what: &str) {
    match finished(damaged) {
        Err(QueueError::Corrupt { file, offset, .. }) => {
            assert_eq!((file.as_path(), offset), (Path::new(CURRENT), at), "{what}: the place");
        }
        other => panic!("{what}: damage not noticed: {other:?}"),
    }
}

/// A checkpoint, four batches of changes: what a later batch proves is damage, in the checkpoint too; the last batch may go whole.
#[test]
fn every_bit_flip_of_a_groups_checkpoint_and_journal() {
    let disk = group();
    let path = Path::new(CURRENT);
    let contents = disk.contents(path);
    let block = |number: u64| number * BLOCK;
    let step = if std::env::var_os("FLOODGATE_LONG").is_some() { 1 } else { 7 };
    assert_eq!(&contents[..8], b"FLGOFFST");
    for number in 1..=FINISHED as u64 {
        assert_eq!(&contents[block(number) as usize..][..8], b"FLGDELTA", "batch {number}");
    }
    assert_eq!(contents[block(FINISHED as u64 + 1) as usize..].iter().find(|byte| **byte != 0), None);
    assert_eq!(finished(&disk.duplicate()).unwrap(), FINISHED);
    for number in 0..=FINISHED as u64 {
        let length = u64::from(contents[block(number) as usize + 40]);
        for bit in (block(number) * 8..(block(number) + 48 + length) * 8).step_by(step) {
            let what = format!("bit {bit} flipped in block {number}");
            let damaged = disk.duplicate();
            damaged.flip_bit(path, bit);
            if number < FINISHED as u64 {
                check_group_corrupt(&damaged, block(number), &what);
            } else {
                assert_eq!(finished(&damaged).unwrap(), FINISHED - 1, "{what}");
                // Once reopened, and changed, it holds.
                assert_eq!(finished(&damaged).unwrap(), FINISHED, "{what}: the second opening");
            }
        }
    }
    // The older file's bits matter to nobody.
    let other = Path::new("/queue/orders/groups/workers/offset.0");
    for bit in (0..(48 + u64::from(contents[40])) * 8).step_by(step) {
        let damaged = disk.duplicate();
        damaged.flip_bit(other, bit);
        assert_eq!(finished(&damaged).unwrap(), FINISHED, "bit {bit} of the older file");
    }
}

/// What was cut off is not proven by anything: the changes before it count.
#[test]
fn every_truncation_point_of_a_groups_journal() {
    let disk = group();
    for cut in (BLOCK..(FINISHED as u64 + 1) * BLOCK).step_by(61) {
        let damaged = disk.duplicate();
        damaged.zero_from(Path::new(CURRENT), cut);
        let body = u64::from(disk.contents(Path::new(CURRENT))[(cut / BLOCK * BLOCK) as usize + 40]);
        let whole = cut / BLOCK - 1 + u64::from(cut % BLOCK >= 48 + body);
        assert_eq!(finished(&damaged).unwrap() as u64, whole, "cut at {cut}");
    }
}
