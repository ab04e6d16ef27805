//! Several producers' threads against one committer's on a simulated disk: what Miri can run of the lock-free parts, which loom
//! looks at interleaving by interleaving. `cargo +nightly miri test -p queue --test threads`.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::Arc;

use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, Faults, NewRecord, Queue, SimulatedDisk, Storage, Topic};

const PRODUCERS: u8 = 3;
const RECORDS: u64 = if cfg!(miri) { 40 } else { 3_000 };

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Appends one record after the other, each of its own length, and checks the order of their positions.
async fn produce(topic: &Topic, producer: u8) {
    let mut last = None;
    for number in 0..RECORDS {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(8 + (number as usize * 7 + usize::from(producer)) % 90, producer);
        let permit = loop {
            match topic.try_permit(payload.len()) {
                Ok(permit) => break permit,
                Err(refused) => assert!(refused.is_retryable(), "{refused}"),
            }
            std::thread::yield_now();
        };
        let record = NewRecord { key: &[producer], tag: "t", deliver_at_ms: None, payload: &payload };
        let append = topic.append(permit, record);
        if number % 3 == 0 {
            let position = append.await.unwrap();
            assert!(last < Some(position), "positions rise");
            last = Some(position);
        }
    }
}

#[test]
fn producers_on_threads_lose_nothing_and_keep_their_order() {
    let disk = SimulatedDisk::new(1, Faults::default());
    let mut options = DiskOptions::new("/queue", Arc::new(|| 1_000));
    options.storage = Storage::Simulated(disk);
    options.driver = Driver::Driven;
    options.segment_bytes = 64 * 1024;
    options.ring_bytes = 32 * 1024;
    let queue = Queue::open_disk(options, &mut Registry::default()).unwrap();
    let topic = queue.topic("orders").now_or_never().unwrap().unwrap();
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| runtime().block_on(queue.run()));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let topic = topic.clone();
                scope.spawn(move || runtime().block_on(produce(&topic, producer)))
            })
            .collect();
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        runtime().block_on(queue.shutdown());
        driver.join().unwrap();
    });
    let messages = runtime().block_on(topic.read(None, usize::MAX)).unwrap();
    let mut next = [0; PRODUCERS as usize];
    for message in messages {
        let producer = message.key[0];
        let number = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
        assert_eq!(number, next[usize::from(producer)], "in its producer's order");
        assert!(message.payload[8..].iter().all(|byte| *byte == producer), "garbage");
        next[usize::from(producer)] += 1;
    }
    assert_eq!(next, [RECORDS; PRODUCERS as usize]);
}
