//! A group's files at places that only one order of crashes leads to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use queue::failpoint::{Crash, set_hook};
use queue::{
    BehindMax, Faults, Group, Message, NewRecord, Position, QueueError, SimulatedDisk, StartAt, Topic,
};

use crate::{open, silence_crashes};

/// So many that a checkpoint of them, and a batch of changes of all, are more than one sector.
const RECORDS: usize = 200;

/// A process that holds the group, does `work`, and crashes at the first failpoint of that name after it began to take the group, if
/// one is named. Tells which failpoints it passed.
fn life_of_a_group(
    disk: &SimulatedDisk,
    crash_at: Option<&'static str>,
    work: impl AsyncFnOnce(Topic, Group),
) -> Result<BTreeSet<&'static str>, QueueError> {
    let passed = Rc::new(RefCell::new(BTreeSet::new()));
    let armed = Rc::new(Cell::new(false));
    let (seen, is_armed) = (Rc::clone(&passed), Rc::clone(&armed));
    set_hook(Some(Box::new(move |name| {
        seen.borrow_mut().insert(name);
        if is_armed.get() && Some(name) == crash_at {
            std::panic::panic_any(Crash(name));
        }
        false
    })));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.unwrap().block_on(async {
            let queue = open(disk, &Arc::new(AtomicU64::new(1_000)))?;
            let topic = queue.topic("orders").await?;
            let script = async {
                // The topic's opening passes the same failpoints.
                armed.set(true);
                let group = topic.group("workers", StartAt::Oldest).await?;
                work(topic.clone(), group).await;
                Ok::<(), QueueError>(())
            };
            tokio::select! {
                biased;
                () = queue.run() => Ok(()),
                result = script => result,
            }
        })
    }));
    set_hook(None);
    match outcome {
        Ok(result) => result.map(|()| passed.take()),
        Err(panic) if panic.is::<Crash>() => Ok(passed.take()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A disk whose log has so many records that nobody has pulled.
fn disk(seed: u64, records: usize) -> SimulatedDisk {
    let disk = SimulatedDisk::new(seed, Faults::default());
    life_of_a_group(&disk, None, async |topic, _| append(&topic, records).await).unwrap();
    disk
}

async fn append(topic: &Topic, records: usize) {
    for _ in 0..records {
        let permit = loop {
            match topic.try_permit(8) {
                Ok(permit) => break permit,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &[7; 8] };
        topic.append(permit, record).await.unwrap();
    }
}

async fn pull(group: &mut Group, records: usize) -> Vec<Message> {
    group.pull(records + 1, Duration::ZERO).await.unwrap()
}

/// One process dies between the write of a checkpoint and its sync, the next one loses power while it makes its first change: the
/// newer checkpoint was in the page cache alone, and the older file is all that is left.
#[test]
fn a_checkpoint_in_the_page_cache_alone_does_not_cost_the_other() {
    silence_crashes();
    for seed in 0..64 {
        let disk = disk(seed, RECORDS);
        disk.kill();
        let passed = life_of_a_group(&disk, Some("queue.checkpoint-sync"), async |_, mut group| {
            for message in pull(&mut group, RECORDS).await {
                group.nack(message.position, Duration::ZERO).await.unwrap();
            }
        });
        assert!(passed.unwrap().contains("queue.checkpoint-sync"), "a journal has room for fewer changes");
        disk.kill();
        life_of_a_group(&disk, Some("queue.offset-sync"), async |_, mut group| {
            let messages = pull(&mut group, RECORDS).await;
            group.nack(messages[0].position, Duration::ZERO).await.unwrap();
            unreachable!("the process has crashed");
        })
        .unwrap();
        disk.crash();
        life_of_a_group(&disk, None, async |_, mut group| {
            let messages = pull(&mut group, RECORDS).await;
            assert_eq!(messages.len(), RECORDS, "seed {seed}");
        })
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// A checkpoint fails in its sync, but is whole on the platter, and the old journal still has room: what comes back after a crash
/// must not be older than what was acknowledged after the failure.
#[test]
fn a_checkpoint_that_failed_does_not_come_back_over_later_changes() {
    /// So many changes do not fit the one block that is left of the journal.
    const MANY: usize = 500;
    /// A journal's blocks but one.
    const FEW: usize = 15;
    silence_crashes();
    for seed in 0..96 {
        let disk = disk(seed, MANY);
        life_of_a_group(&disk, None, async |_, mut group| {
            let mut positions: Vec<Position> =
                pull(&mut group, MANY).await.iter().map(|message| message.position).collect();
            for position in positions.drain(..FEW) {
                group.ack(position).await.unwrap();
            }
            let refused: Vec<(Position, Duration)> = (1..)
                .zip(&positions[1..])
                .map(|(number, position)| {
                    (*position, Duration::from_secs(number * 0x9e37_79b9 % 4_000_000_007))
                })
                .collect();
            disk.set_faults(Faults { sync_error: 10_000, ..Faults::default() });
            group.nack_all(&refused).await.unwrap_err();
            disk.set_faults(Faults::default());
            group.ack(positions[0]).await.unwrap();
        })
        .unwrap();
        disk.crash();
        life_of_a_group(&disk, None, async |_, mut group| {
            let left = pull(&mut group, MANY).await.len();
            assert_eq!(left, MANY - FEW - 1, "seed {seed}");
        })
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// Power is lost between the write of many changes and their sync: all of them have happened, or none.
#[test]
fn a_torn_batch_of_the_journal_is_dropped_whole() {
    silence_crashes();
    let (mut torn, mut whole) = (0, 0);
    for seed in 0..64 {
        let disk = disk(seed, RECORDS);
        disk.kill();
        let passed = life_of_a_group(&disk, None, async |_, mut group| {
            // As the cursor has passed them, and no journal knows of it.
            let refused: Vec<(Position, Duration)> = (1..)
                .zip(pull(&mut group, RECORDS).await)
                .map(|(number, message)| (message.position, Duration::from_millis(number * 37 % 500)))
                .collect();
            set_hook(Some(Box::new(|name| {
                if name == "queue.offset-sync" {
                    std::panic::panic_any(Crash(name));
                }
                false
            })));
            group.nack_all(&refused).await.unwrap();
        });
        passed.unwrap();
        disk.crash();
        let passed = life_of_a_group(&disk, None, async |_, mut group| {
            let messages = pull(&mut group, RECORDS).await;
            let attempts: BTreeSet<u32> = messages.iter().map(|message| message.attempt).collect();
            match messages.len() {
                RECORDS => assert_eq!(attempts, [1].into(), "seed {seed}"),
                // That whose delay is over.
                0 => whole += 1,
                some => panic!("seed {seed}: {some} of {RECORDS}"),
            }
        });
        torn += u32::from(passed.unwrap().contains("queue.journal-torn"));
    }
    assert!(torn > 5 && whole > 5, "{torn} torn, {whole} whole, of 64");
}

/// A group is dropped, and the process dies before the last of its files is gone: the next one of its name has nothing of it.
#[test]
fn a_group_begins_without_the_bound_and_the_cut_of_one_that_was_dropped() {
    silence_crashes();
    let disk = disk(1, 20);
    let passed = life_of_a_group(&disk, Some("queue.drop-group"), async |topic, _workers| {
        let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
        late.limit_behind(Some(BehindMax { records: Some(5), age: None })).await.unwrap();
        while topic.committed("late").await.unwrap().is_none() {
            append(&topic, 1).await;
        }
        drop(late);
        topic.drop_group("late").await.unwrap();
        unreachable!("the process has crashed");
    });
    assert!(passed.unwrap().contains("queue.cut"));
    disk.crash();
    life_of_a_group(&disk, None, async |topic, _workers| {
        assert!(!topic.groups().await.unwrap().contains(&"late".to_owned()));
        let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
        let records = topic.lag("late").await.unwrap().records as usize;
        assert!(records > 20);
        append(&topic, 200).await;
        assert_eq!(pull(&mut late, 10_000).await.len(), records + 200, "without a word of a cut");
    })
    .unwrap();
}
