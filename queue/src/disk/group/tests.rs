//! A group that is cut off in the middle of a look, which only another thread can do: between any two steps of it.

use prometheus_client::registry::Registry;

use super::*;
use crate::disk::upkeep;
use crate::disk::{DiskOptions, DiskQueue, DiskTopic, Driver};
use crate::port::{BehindMax, NewRecord};
use crate::storage::Storage;
use crate::storage::simulated::{Faults, SimulatedDisk};

const DAYS_30_MS: u64 = 30 * 24 * 3_600 * 1_000;
const NOW_MS: u64 = 1_000_000;
/// About an eighth of a segment.
const BYTES: usize = 7_000;

/// A disk that works.
pub(crate) struct World {
    disk: SimulatedDisk,
    delayed: bool,
}

impl Default for World {
    fn default() -> Self {
        Self { disk: SimulatedDisk::new(1, Faults::default()), delayed: false }
    }
}

impl World {
    /// One process that owns the log.
    pub(crate) fn live(&self, work: impl AsyncFnOnce(DiskTopic)) {
        let mut options = DiskOptions::new("/queue", Arc::new(|| NOW_MS));
        options.storage = Storage::Simulated(self.disk.clone());
        options.driver = Driver::Driven;
        options.segment_bytes = 64 * 1024;
        options.ring_bytes = 64 * 1024;
        if self.delayed {
            options.delayed("orders");
        }
        let queue = DiskQueue::open(options, &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            tokio::select! { biased; () = work(topic) => {}, () = queue.run() => {} }
        });
    }
}

pub(crate) async fn append(
    topic: &DiskTopic,
    bytes: usize,
    deadlines: impl IntoIterator<Item = Option<u64>>,
) {
    for deliver_at_ms in deadlines {
        let permit = loop {
            match topic.try_permit(bytes) {
                Ok(permit) => break permit,
                Err(refused) => assert!(refused.is_retryable(), "{refused}"),
            }
            tokio::task::yield_now().await;
        };
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms, payload: &vec![7; bytes] };
        topic.append(permit, record).await.unwrap();
    }
}

/// Cuts `late` off from all but so many records or a few less, and lets go what it is cut off from.
fn cut_off(topic: &DiskTopic, late: &mut DiskGroup, records: u64) {
    late.limit_behind(Some(BehindMax { records: Some(records), age: None })).unwrap();
    let oldest = topic.shared.files.oldest();
    upkeep::round(&topic.shared);
    assert!(topic.shared.files.oldest() > oldest, "nothing went");
}

fn is_cut<T: std::fmt::Debug>(outcome: &Result<T, QueueError>) -> bool {
    matches!(outcome, Err(QueueError::Cut { .. }))
}

#[test]
fn what_the_cursor_came_to_is_told_and_not_skipped() {
    World::default().live(async |topic| {
        let mut late = topic.group("late", StartAt::Oldest).unwrap();
        append(&topic, BYTES, [None; 40]).await;
        assert_eq!(late.look(3).unwrap().0.len(), 3);
        late.meet_cut().unwrap();
        cut_off(&topic, &mut late, 1);
        let looked = late.look(100).map(|(messages, _)| messages.len());
        assert!(is_cut(&looked), "{looked:?}");
        assert_eq!(late.pull(100, Duration::ZERO).await.unwrap().len(), 1, "the rest of it");
    });
}

#[test]
fn what_has_become_due_is_told_and_is_no_damage() {
    World::default().live(async |topic| {
        let mut late = topic.group("late", StartAt::Oldest).unwrap();
        append(&topic, BYTES, [None; 40]).await;
        let messages = late.look(3).unwrap().0;
        late.nack_all(&[(messages[0].position, Duration::ZERO)]).unwrap();
        cut_off(&topic, &mut late, 1);
        let looked = late.look(1).map(|(messages, _)| messages.len());
        assert!(is_cut(&looked), "{looked:?}");
        assert_eq!(late.pull(100, Duration::ZERO).await.unwrap().len(), 1, "the rest of it");
    });
}

#[test]
fn what_is_to_be_rewritten_is_told_and_is_no_damage() {
    let world = World { delayed: true, ..World::default() };
    world.live(async |topic| {
        let mut late = topic.group("late", StartAt::Oldest).unwrap();
        append(&topic, BYTES, [Some(NOW_MS + DAYS_30_MS)]).await;
        // Everything but the first is finished, and the cursor has passed it all: the next look would begin to copy.
        append(&topic, BYTES, [None; 40]).await;
        while let Some(last) = late.look(1).unwrap().0.last() {
            if last.position.0 == topic.shared.durable() {
                break;
            }
        }
        let all: Vec<Position> = late.delivered.iter().map(|sequence| Position(*sequence)).collect();
        late.ack_all(&all).unwrap();
        // Segments enough stay to be rewritten.
        cut_off(&topic, &mut late, 20);
        let looked = late.look(1).map(|(messages, _)| messages.len());
        assert!(is_cut(&looked), "{looked:?}");
        assert!(late.pull(1, Duration::ZERO).await.unwrap().is_empty());
    });
}

/// What the cursor found to stand for nothing may stand for itself again behind a reset.
#[test]
fn a_reset_forgets_what_was_to_be_dropped() {
    World::default().live(async |topic| {
        let mut late = topic.group("late", StartAt::Oldest).unwrap();
        append(&topic, 10, [None; 3]).await;
        late.look(3).unwrap();
        late.dropped.push(Change::Finished { first: 2, last: 2 });
        late.reset(None).unwrap();
        assert_eq!(late.look(4).unwrap().0.len(), 3);
        assert_eq!(topic.lag("late").unwrap().records, 3);
    });
}

/// A look that meets an error behind some messages hands them out: they count as delivered, and a commit would finish them.
#[test]
fn what_was_found_before_an_error_is_handed_out() {
    let world = World::default();
    world.live(async |topic| {
        let mut group = topic.group("workers", StartAt::Oldest).unwrap();
        append(&topic, BYTES, [None; 40]).await;
        world.disk.set_faults(Faults { read_error: 2_000, ..Faults::default() });
        let (mut seen, mut errors) = (Vec::new(), 0);
        for _ in 0..200 {
            match group.pull(100, Duration::ZERO).await {
                Ok(messages) => seen.extend(messages.iter().map(|message| message.position.0)),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    errors += 1;
                }
            }
        }
        assert!(errors > 0);
        assert_eq!(seen, (1..=40).collect::<Vec<_>>());
    });
}
