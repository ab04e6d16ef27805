//! Delayed messages in numbers: what waits holds neither segments nor backlog, an acknowledgement costs the same beside few and many,
//! and what is rewritten keeps its times.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::failpoint::set_hook;
use queue::{
    DiskOptions, Driver, Faults, Group, Message, NewRecord, Position, Queue, Refused, SimulatedDisk, StartAt,
    Storage, Topic,
};

const DAYS_30_MS: u64 = 30 * 24 * 3_600 * 1_000;
const START_MS: u64 = 1_700_000_000_000;
const SEGMENT: u64 = 256 * 1024;

struct World {
    disk: SimulatedDisk,
    clock: Arc<AtomicU64>,
    delayed: bool,
    backlog_max: u64,
    registry: Registry,
}

impl World {
    fn new(delayed: bool) -> Self {
        let disk = SimulatedDisk::new(1, Faults::default());
        let clock = Arc::new(AtomicU64::new(START_MS));
        Self { disk, clock, delayed, backlog_max: 1_000_000, registry: Registry::default() }
    }

    fn now_ms(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn open(&mut self) -> Queue {
        let clock = Arc::clone(&self.clock);
        let mut options = DiskOptions::new("/queue", Arc::new(move || clock.load(Ordering::Relaxed)));
        options.storage = Storage::Simulated(self.disk.clone());
        options.driver = Driver::Driven;
        options.segment_bytes = SEGMENT;
        options.ring_bytes = 256 * 1024;
        options.backlog_max = self.backlog_max;
        if self.delayed {
            options.delayed("timeouts");
            // Of no account there.
            options.keep_drained = Duration::from_secs(86_400);
        }
        self.registry = Registry::default();
        Queue::open_disk(options, &mut self.registry).unwrap()
    }

    /// One process's life.
    fn life(&mut self, work: impl AsyncFnOnce(&Self, Topic, Group)) {
        let queue = self.open();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let topic = queue.topic("timeouts").await.unwrap();
            let group = topic.group("closer", StartAt::Oldest).await.unwrap();
            tokio::select! { biased; () = queue.run() => {}, () = work(self, topic, group) => {} }
            tokio::join!(queue.shutdown(), queue.run());
        });
        self.disk.kill();
    }

    fn log_bytes(&self) -> u64 {
        let files = self.disk.files().into_iter();
        let log = files.filter(|(path, _)| path.starts_with("/queue/timeouts/log"));
        let used = log.filter(|(path, _)| self.disk.contents(path).starts_with(b"FLGBATCH"));
        used.map(|(_, bytes)| bytes).sum()
    }

    fn counter(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let begin = format!("floodgate_queue_{name}_total{{");
        let line = text.lines().find(|line| line.starts_with(&begin));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
    }
}

/// Appends records of `bytes`, each with its deadline, so that they are durable together.
async fn append(topic: &Topic, bytes: usize, deadlines: impl IntoIterator<Item = Option<u64>>) {
    let mut under_way = Vec::new();
    for deliver_at_ms in deadlines {
        let permit = loop {
            match topic.try_permit(bytes) {
                Ok(permit) => break permit,
                Err(refused) => {
                    assert!(refused.is_retryable() && refused != Refused::BacklogFull, "{refused}")
                }
            }
            tokio::task::yield_now().await;
        };
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms, payload: &vec![7; bytes] };
        under_way.push(topic.append(permit, record));
    }
    for append in under_way {
        append.await.unwrap();
    }
}

async fn pull(group: &mut Group) -> Vec<Message> {
    let messages = group.pull(10_000, Duration::from_millis(1)).await.unwrap();
    // What was begun by it gets to the disk.
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    messages
}

async fn pull_and_finish(group: &mut Group) -> Vec<Message> {
    let messages = pull(group).await;
    let positions: Vec<Position> = messages.iter().map(|message| message.position).collect();
    group.ack_all(&positions).await.unwrap();
    messages
}

#[test]
fn a_record_of_30_days_holds_no_segment_of_others_and_keeps_its_times() {
    let mut world = World::new(true);
    let mut first = None;
    for _ in 0..4 {
        world.life(async |world, topic, mut group| {
            if first.is_none() {
                append(&topic, 200, [Some(START_MS + DAYS_30_MS)]).await;
                first = topic.read(None, 1).await.unwrap().pop();
            }
            for _ in 0..60 {
                append(&topic, 200, (0..300).map(|_| None)).await;
                assert_eq!(pull_and_finish(&mut group).await.len(), 300);
            }
            for _ in 0..5 {
                assert_eq!(pull(&mut group).await.len(), 0);
            }
            assert!(world.log_bytes() <= 3 * SEGMENT, "{} bytes are kept", world.log_bytes());
            assert_eq!(topic.lag("closer").await.unwrap().records, 1);
        });
    }
    let first = first.unwrap();
    world.clock.store(START_MS + DAYS_30_MS, Ordering::Relaxed);
    world.life(async |_, _, mut group| {
        let messages = pull_and_finish(&mut group).await;
        assert_eq!(messages.len(), 1);
        assert!(messages[0].position > first.position, "it was rewritten");
        assert_eq!(messages[0], Message { position: messages[0].position, ..first });
    });
    let rewritten = world.counter("rewritten_records");
    assert_eq!(rewritten, 0, "nothing waits");
}

/// The same on a topic of promises: not a record moves.
#[test]
fn promises_are_never_rewritten() {
    let mut world = World::new(false);
    world.life(async |world, topic, mut group| {
        append(&topic, 200, [Some(START_MS + DAYS_30_MS)]).await;
        for _ in 0..30 {
            append(&topic, 200, (0..300).map(|_| None)).await;
            pull_and_finish(&mut group).await;
        }
        assert!(world.log_bytes() > 6 * SEGMENT, "it holds everything behind it");
        world.clock.store(START_MS + DAYS_30_MS, Ordering::Relaxed);
        let messages = pull_and_finish(&mut group).await;
        assert_eq!((messages.len(), messages[0].position.to_string().as_str()), (1, "1"));
    });
    assert_eq!(world.counter("rewritten_records"), 0);
}

/// A record for each order, nine of ten finished soon, the rest with deadlines up to 30 days: the disk stays within three times
/// what is unfinished, and less is copied than appended.
#[test]
fn disk_and_copies_are_bounded_by_what_is_unfinished() {
    let mut world = World::new(true);
    let mut random = 1_u64;
    let mut ratios = Vec::new();
    world.life(async |world, topic, mut group| {
        for round in 0..400 {
            let deadlines: Vec<Option<u64>> = (0..500)
                .map(|number| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let wait_ms = 1 + (random >> 33) % if number % 10 == 0 { 300_000 } else { 2_000 };
                    Some(world.now_ms() + wait_ms)
                })
                .collect();
            append(&topic, 200, deadlines).await;
            for _ in 0..4 {
                world.clock.fetch_add(250, Ordering::Relaxed);
                pull_and_finish(&mut group).await;
            }
            if round > 100 {
                let unfinished_bytes = topic.lag("closer").await.unwrap().records * 240;
                // The one that is written, the next to go, and four that are kept ready, which may have been used before.
                let rest = 6 * SEGMENT;
                ratios.push(world.log_bytes().saturating_sub(rest) as f64 / unfinished_bytes as f64);
            }
        }
    });
    let (rewritten, records) = (world.counter("rewritten_records"), world.counter("records"));
    let appended = records - rewritten;
    assert_eq!(appended, 200_000);
    assert!(rewritten > 10_000 && rewritten < appended, "{rewritten} copies of {appended}");
    let most = ratios.iter().copied().fold(0.0, f64::max);
    assert!(most <= 3.0, "{most}");
    println!(
        "{rewritten} copies of {appended} records; at most {most:.2} of what is unfinished, and six segments"
    );
}

/// With nothing new and nothing finished, nothing is copied in circles.
#[test]
fn a_log_at_rest_is_left_alone() {
    let mut world = World::new(true);
    world.life(async |world, topic, mut group| {
        for _ in 0..400 {
            // Each alone in its batch, and so in a block: the log is ten times what waits.
            append(&topic, 200, [Some(START_MS + DAYS_30_MS)]).await;
        }
        let copied = async |group: &mut Group, pulls: usize| {
            for _ in 0..pulls {
                assert_eq!(pull(group).await.len(), 0);
            }
            world.counter("rewritten_records")
        };
        let before = copied(&mut group, 500).await;
        assert!(before >= 300, "{before} were worth it");
        assert_eq!(copied(&mut group, 200).await, before, "and no more");
    });
}

#[test]
fn what_waits_counts_as_records_in_the_backlog_not_as_distance() {
    for delayed in [false, true] {
        let mut world = World::new(delayed);
        world.backlog_max = 4_500;
        world.life(async |_, topic, mut group| {
            append(&topic, 100, (0..1_500).map(|_| Some(START_MS + DAYS_30_MS))).await;
            for _ in 0..10 {
                append(&topic, 100, (0..1_000).map(|_| None)).await;
                assert_eq!(pull_and_finish(&mut group).await.len(), 1_000);
            }
            append(&topic, 100, (0..3_000).map(|_| None)).await;
            assert_eq!(topic.try_permit(100).unwrap_err(), Refused::BacklogFull);
            assert_eq!(topic.lag("closer").await.unwrap().records, 4_500);
        });
    }
}

/// What a consumer has in its hands stays where it was handed out.
#[test]
fn what_was_pulled_is_not_rewritten_and_can_be_acknowledged() {
    let mut world = World::new(true);
    world.life(async |world, topic, mut group| {
        append(&topic, 200, (0..20).map(|_| None)).await;
        let pulled = pull(&mut group).await;
        append(&topic, 200, (0..20).map(|_| Some(START_MS + DAYS_30_MS))).await;
        for _ in 0..20 {
            append(&topic, 200, (0..300).map(|_| None)).await;
            pull_and_finish(&mut group).await;
        }
        assert_eq!(world.counter("rewritten_records"), 20, "what waits was");
        let finished: Vec<Position> = pulled[..10].iter().map(|message| message.position).collect();
        group.ack_all(&finished).await.unwrap();
        let refused: Vec<_> = pulled[10..].iter().map(|message| (message.position, Duration::ZERO)).collect();
        group.nack_all(&refused).await.unwrap();
        let again = pull(&mut group).await;
        assert_eq!(again.len(), 10);
        assert!(again.iter().all(|message| message.attempt == 2));
    });
}

/// With a second group nothing is rewritten: each would have to know of it.
#[test]
fn a_second_group_ends_rewriting() {
    let mut world = World::new(true);
    world.life(async |world, topic, mut group| {
        let _second = topic.group("second", StartAt::Oldest).await.unwrap();
        append(&topic, 200, [Some(START_MS + DAYS_30_MS)]).await;
        for _ in 0..20 {
            append(&topic, 200, (0..300).map(|_| None)).await;
            pull_and_finish(&mut group).await;
        }
        assert_eq!(world.counter("rewritten_records"), 0);
        drop(_second);
        topic.drop_group("second").await.unwrap();
        append(&topic, 200, [None]).await;
        pull_and_finish(&mut group).await;
        assert_eq!(world.counter("rewritten_records"), 1);
    });
}

/// What one acknowledgement writes: a block, and its share of a checkpoint, whether 100 records wait or 20,000.
#[test]
fn an_acknowledgement_writes_a_block_beside_few_and_beside_many() {
    let mut writes = Vec::new();
    for waiting in [100, 20_000] {
        let mut world = World::new(true);
        world.life(async |_, topic, mut group| {
            for _ in 0..waiting / 100 {
                append(&topic, 100, (0..100).map(|number| Some(START_MS + DAYS_30_MS + number * 999))).await;
                append(&topic, 100, (0..10).map(|_| None)).await;
            }
            append(&topic, 100, (0..1_000).map(|_| None)).await;
            let mut messages = Vec::new();
            while messages.len() < 1_000 {
                messages.extend(pull(&mut group).await);
            }
            let counts: Rc<RefCell<BTreeMap<&str, u64>>> = Rc::default();
            let hits = Rc::clone(&counts);
            set_hook(Some(Box::new(move |name| {
                *hits.borrow_mut().entry(name).or_default() += 1;
                false
            })));
            for message in messages.iter().rev().take(500) {
                group.ack(message.position).await.unwrap();
            }
            let refused: Vec<_> =
                messages.iter().take(500).map(|message| (message.position, Duration::ZERO)).collect();
            group.nack_all(&refused).await.unwrap();
            set_hook(None);
            let count = |name| counts.borrow().get(name).copied().unwrap_or(0);
            assert_eq!(count("queue.offset-sync"), 501, "one for each");
            writes.push(count("queue.checkpoint-write"));
        });
    }
    assert!(writes[0] <= 501 / 16 + 1, "{writes:?}");
    assert!(writes[1] < writes[0], "the longer, the less often: {writes:?}");
}
