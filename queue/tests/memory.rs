//! What waits costs at most 64 bytes of memory a record, whatever was finished between, and however it came to wait.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, NewRecord, Position, Queue, StartAt, Topic};

struct Counting;

/// Bytes that are allocated at the moment, by all threads.
static ALLOCATED: AtomicI64 = AtomicI64::new(0);

// SAFETY: hands everything on to the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WAITING: u64 = 100_000;
const START_MS: u64 = 1_700_000_000_000;
const DAYS_30_MS: u64 = 30 * 24 * 3_600 * 1_000;
const BYTES_A_RECORD_MAX: i64 = 64;

fn open(directory: &Path) -> Queue {
    let mut options = DiskOptions::new(directory, Arc::new(|| START_MS));
    options.ring_bytes = 1 << 20;
    // On one thread, so that upkeep, which reads the files of a group that nobody holds, is not at it while bytes are counted.
    options.driver = Driver::Driven;
    options.segment_bytes = 4 << 20;
    Queue::open_disk(options, &mut Registry::default()).unwrap()
}

/// One that waits, and two that are finished around it.
async fn append(topic: &Topic) {
    let mut random = 1_u64;
    for _ in 0..WAITING / 100 {
        let mut under_way = Vec::new();
        for number in 0..300 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let deliver_at_ms = (number % 3 == 1).then_some(START_MS + 60_000 + (random >> 20) % DAYS_30_MS);
            let permit = loop {
                match topic.try_permit(8) {
                    Ok(permit) => break permit,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            };
            let record = NewRecord { key: b"k", tag: "t", deliver_at_ms, payload: &random.to_le_bytes() };
            under_way.push(topic.append(permit, record));
        }
        for append in under_way {
            append.await.unwrap();
        }
    }
}

#[test]
fn a_waiting_record_costs_64_bytes_at_most() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let queue = open(directory.path());
        tokio::spawn(queue.run());
        let topic = queue.topic("timeouts").await.unwrap();
        append(&topic).await;
        let mut group = topic.group("closer", StartAt::Oldest).await.unwrap();
        let before = ALLOCATED.load(Ordering::Relaxed);
        let mut refused = Vec::new();
        let mut pulled = 0;
        while pulled < 2 * WAITING {
            let messages = group.pull(10_000, Duration::ZERO).await.unwrap();
            pulled += messages.len() as u64;
            let (again, finished): (Vec<Position>, Vec<Position>) =
                messages.iter().map(|message| message.position).partition(|_| refused.len() < 10_000);
            refused.extend(again.iter().map(|position| (*position, Duration::from_secs(3_600))));
            group.ack_all(&finished).await.unwrap();
        }
        let of = |what: &str, records: u64| {
            let bytes = (ALLOCATED.load(Ordering::Relaxed) - before) as f64 / records as f64;
            println!("{bytes:.1} bytes a record, {what}");
            assert!(bytes <= BYTES_A_RECORD_MAX as f64, "{bytes} bytes a record, {what}");
            assert!(bytes > 30.0, "{bytes} bytes a record are fewer than can be: {what}");
        };
        let refused_records = refused.len() as u64;
        group.nack_all(&std::mem::take(&mut refused)).await.unwrap();
        of("as they came", WAITING + refused_records);
        // Three of four go before their time, so that what is left lies thin.
        let log = topic.read(None, usize::MAX).await.unwrap();
        let waiting = log.iter().filter(|message| message.deliver_at_ms.is_some());
        let gone: Vec<Position> = waiting
            .map(|message| message.position)
            .enumerate()
            .filter(|(at, _)| at % 4 > 0)
            .map(|(_, position)| position)
            .collect();
        drop(log);
        for some in gone.chunks(1_000) {
            group.ack_all(some).await.unwrap();
        }
        drop(gone);
        of("with three of four gone", WAITING / 4 + refused_records);
        drop(group);
        let group = topic.group("closer", StartAt::Oldest).await.unwrap();
        of("taken over", WAITING / 4 + refused_records);
        drop(group);
        queue.shutdown().await;
    });
}
