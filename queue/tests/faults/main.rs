//! Seeded faults against a reference model: crashes at every failpoint, lost sectors, EIO, ENOSPC, short writes, lying syncs.
//!
//! A failing seed is printed; `FLOODGATE_SEED=n` replays it alone, `FLOODGATE_SEED=n..m` runs those, `FLOODGATE_LONG=1` many more.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod aside;
mod model;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aside::{Aside, finish_late};
use model::{Model, Random};
use prometheus_client::registry::Registry;
use queue::failpoint::{Crash, set_hook};
use queue::{
    AppendError, DiskOptions, Driver, Faults, Group, Message, NewRecord, Position, Queue, QueueError,
    SimulatedDisk, StartAt, Storage, Topic, operator,
};

const LIVES: u64 = 5;

/// Seeds beyond those of `./test` that once found a bug.
const ONCE_FAILED: [u64; 1] = [22_502];

fn faults(random: &mut Random) -> Faults {
    let mut faults = Faults::default();
    match random.below(8) {
        0 => faults.write_error = 40,
        1 => faults.sync_error = 60,
        2 => faults.no_space = 60,
        3 => faults.short_write = 3000,
        4 => faults.lying_sync = 1500,
        5 => faults.capacity_bytes = 500_000 + random.below(500_000),
        6 => {
            faults.write_error = 20;
            faults.sync_error = 20;
            faults.short_write = 500;
        }
        _ => {}
    }
    faults
}

fn run_seed(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17));
    let disk_faults = faults(&mut random);
    let disk = SimulatedDisk::new(seed, Faults::default());
    let clock = Arc::new(AtomicU64::new(1_000));
    let mut aside = Aside { random: Random(seed.wrapping_mul(0x2545_f491).wrapping_add(5)), acts: true };
    let mut model = Model {
        lies: disk_faults.lying_sync > 0,
        keep_drained_ms: [0, 0, 300, 3_000][aside.random.below(4) as usize],
        keep_drained_bytes_max: [0, 300_000, u64::MAX][aside.random.below(3) as usize],
        ..Model::default()
    };
    if ONCE_FAILED.contains(&seed) {
        // What failed was found without anything beside it.
        (aside.acts, model.keep_drained_ms) = (false, 0);
    }
    for life in 0..LIVES {
        let last = life == LIVES - 1;
        disk.set_faults(if last { Faults::default() } else { disk_faults.clone() });
        let mut crash_in = if last { u64::MAX } else { random.below(150) };
        let crashes = random.below(4) > 0;
        set_hook(Some(Box::new(move |name| {
            crash_in = crash_in.saturating_sub(1);
            if crash_in == 0 && crashes {
                crash_in = u64::MAX;
                std::panic::panic_any(Crash(name));
            }
            false
        })));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            runtime.unwrap().block_on(one_life(&mut random, &mut aside, &disk, &clock, &mut model, last))
        }));
        set_hook(None);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => match error {
                QueueError::Corrupt { .. } | QueueError::Foreign { .. } => {
                    assert!(model.lies, "{error}");
                    return;
                }
                error => assert!(!last, "the last life has no faults: {error}"),
            },
            Err(panic) if panic.is::<Crash>() => {}
            Err(panic) => std::panic::resume_unwind(panic),
        }
        match random.below(3) {
            0 => disk.kill(),
            _ => disk.crash(),
        }
    }
}

fn open(disk: &SimulatedDisk, clock: &Arc<AtomicU64>, model: &Model) -> Result<Queue, QueueError> {
    let now = Arc::clone(clock);
    let mut options = DiskOptions::new("/queue", Arc::new(move || now.load(Ordering::Relaxed)));
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options.segment_bytes = 128 * 1024;
    options.ring_bytes = 64 * 1024;
    options.random = Arc::new(|| 42);
    options.keep_drained = Duration::from_millis(model.keep_drained_ms);
    options.keep_drained_bytes_max = model.keep_drained_bytes_max;
    Queue::open_disk(options, &mut Registry::default())
}

async fn one_life(
    random: &mut Random,
    aside: &mut Aside,
    disk: &SimulatedDisk,
    clock: &Arc<AtomicU64>,
    model: &mut Model,
    last: bool,
) -> Result<(), QueueError> {
    let queue = open(disk, clock, model)?;
    let topic = queue.topic("orders").await?;
    let script = async {
        model.check_log(&topic.read(None, usize::MAX).await?);
        if last {
            finish(&queue, &topic, clock, model).await
        } else {
            act(random, aside, &topic, clock, model).await
        }
    };
    let result = tokio::select! {
        biased;
        () = queue.run() => Ok(()),
        result = script => result,
    };
    if random.below(4) == 0 && result.is_ok() {
        tokio::join!(queue.shutdown(), queue.run());
    }
    result
}

async fn act(
    random: &mut Random,
    aside: &mut Aside,
    topic: &Topic,
    clock: &AtomicU64,
    model: &mut Model,
) -> Result<(), QueueError> {
    let mut under_way = Vec::new();
    let mut group = topic.group("workers", StartAt::Oldest).await?;
    let mut pulled: Vec<Message> = Vec::new();
    let mut late = None;
    for _ in 0..random.below(60) {
        aside.act(topic, &mut late, clock, model).await?;
        clock.fetch_add(random.below(10), Ordering::Relaxed);
        model.latest_ms = model.latest_ms.max(clock.load(Ordering::Relaxed));
        match random.below(10) {
            0..=4 => {
                for _ in 0..=random.below(6) {
                    let (id, payload, deliver_at_ms) = model.payload(random, clock.load(Ordering::Relaxed));
                    let Ok(permit) = topic.try_permit(payload.len()) else {
                        model.attempted.remove(&id);
                        tokio::task::yield_now().await;
                        continue;
                    };
                    if random.below(10) == 0 {
                        drop(permit);
                        continue;
                    }
                    let record = NewRecord { key: b"k", tag: "t", deliver_at_ms, payload: &payload };
                    under_way.push((id, topic.append(permit, record)));
                }
            }
            5 => {
                for (id, append) in under_way.drain(..) {
                    match append.await {
                        Ok(position) => {
                            let before = model.promised.insert(position, id);
                            assert!(before.is_none_or(|before| before == id));
                        }
                        Err(error) => assert_eq!(error, AppendError::Uncertain),
                    }
                }
            }
            6 | 7 => {
                let messages = group.pull(1 + random.below(20) as usize, Duration::ZERO).await?;
                for message in &messages {
                    let id = model.check_message(message);
                    assert!(message.deliver_at_ms.is_none_or(|at| at <= model.latest_ms), "early");
                    assert!(
                        model.lies || !model.finished.contains(&message.position),
                        "finished {} again",
                        message.position
                    );
                    model.promised.insert(message.position, id);
                    model.delivered.insert(message.position);
                    model.dead.remove(&message.position);
                }
                pulled.extend(messages);
            }
            8 => {
                let count = random.below(pulled.len() as u64 + 1) as usize;
                let some: Vec<Position> = pulled.drain(..count).map(|message| message.position).collect();
                model.perhaps_finished.extend(&some);
                group.ack_all(&some).await?;
                model.finished.extend(some);
            }
            _ => {
                if let Some(message) = pulled.pop() {
                    if random.below(3) == 0 {
                        model.perhaps_finished.insert(message.position);
                        model.dead.insert(message.position);
                        group.dead_letter(&message, "tried").await?;
                        model.finished.insert(message.position);
                    } else {
                        group.nack(message.position, Duration::from_millis(random.below(40))).await?;
                    }
                }
            }
        }
        for _ in 0..random.below(4) {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// At rest, without faults: everything promised reaches the group, and the log still takes records.
async fn finish(
    queue: &Queue,
    topic: &Topic,
    clock: &AtomicU64,
    model: &mut Model,
) -> Result<(), QueueError> {
    let mut group = topic.group("workers", StartAt::Oldest).await?;
    clock.store(model.latest_ms + 30_000, Ordering::Relaxed);
    finish_late(topic, model).await?;
    loop {
        let messages = group.pull(100, Duration::ZERO).await?;
        let Some(last) = messages.iter().map(|message| message.position).max() else { break };
        for message in &messages {
            model.check_message(message);
            assert!(
                model.lies || !model.finished.contains(&message.position),
                "finished {} again",
                message.position
            );
            model.delivered.insert(message.position);
            model.dead.remove(&message.position);
        }
        assert!(last <= topic.end().unwrap());
        let positions: Vec<Position> = messages.iter().map(|message| message.position).collect();
        group.ack_all(&positions).await?;
    }
    for position in model.promised.keys() {
        let done = model.delivered.contains(position) || model.perhaps_finished.contains(position);
        assert!(done, "promised {position} never reached the group");
    }
    let letters: BTreeSet<Position> = operator::dead_letters(topic, "workers", None, usize::MAX)
        .await?
        .into_iter()
        .map(|letter| letter.message.position)
        .collect();
    for position in &model.dead {
        assert!(
            model.lies || letters.contains(position),
            "{position} is neither a letter nor delivered again"
        );
    }
    assert_eq!(topic.lag("workers").await?.records, 0);
    let permit = topic.try_permit(10).expect("an idle log has room");
    let record = NewRecord { key: b"", tag: "", deliver_at_ms: None, payload: &[1; 10] };
    topic.append(permit, record).await.expect("a disk without faults");
    drop(group);
    assert_eq!(queue.topics().await?, ["orders"]);
    Ok(())
}

/// A process that holds the group, does `work`, and crashes at the first failpoint of that name, if one is named.
fn life_of_a_group(
    disk: &SimulatedDisk,
    crash_at: Option<&'static str>,
    work: impl AsyncFnOnce(Topic, Group),
) -> Result<(), QueueError> {
    let crash = move |name: &'static str| {
        if Some(name) == crash_at {
            std::panic::panic_any(Crash(name));
        }
        false
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.unwrap().block_on(async {
            let queue = open(disk, &Arc::new(AtomicU64::new(1_000)), &Model::default())?;
            let topic = queue.topic("orders").await?;
            let script = async {
                // What comes before the group's own slots may pass the same failpoints.
                set_hook(Some(Box::new(crash)));
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
        Ok(result) => result,
        Err(panic) if panic.is::<Crash>() => Ok(()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// One process dies between the write of an offset and its sync, the next one loses power while it takes the group over: the
/// newer slot was in the page cache alone, and the older one is all that is left.
#[test]
fn a_slot_in_the_page_cache_alone_does_not_cost_the_other() {
    const RECORDS: usize = 60;
    silence_crashes();
    for seed in 0..64 {
        let disk = SimulatedDisk::new(seed, Faults::default());
        // So many retries that a slot is more than one sector.
        life_of_a_group(&disk, None, async |topic, mut group| {
            for _ in 0..RECORDS {
                let permit = topic.try_permit(8).unwrap();
                let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &[7; 8] };
                topic.append(permit, record).await.unwrap();
            }
            for message in group.pull(RECORDS, Duration::ZERO).await.unwrap() {
                group.nack(message.position, Duration::ZERO).await.unwrap();
            }
        })
        .unwrap();
        disk.kill();
        life_of_a_group(&disk, None, async |_, mut group| {
            let messages = group.pull(RECORDS, Duration::ZERO).await.unwrap();
            // Between this write and its sync.
            set_hook(Some(Box::new(|name| {
                if name == "queue.offset-sync" {
                    std::panic::panic_any(Crash(name));
                }
                false
            })));
            group.nack(messages.last().unwrap().position, Duration::from_secs(1)).await.unwrap();
            unreachable!("the process has crashed");
        })
        .unwrap();
        disk.kill();
        life_of_a_group(&disk, Some("queue.offset-sync"), async |_, _| {}).unwrap();
        disk.crash();
        life_of_a_group(&disk, None, async |_, mut group| {
            let messages = group.pull(RECORDS + 1, Duration::from_secs(2)).await.unwrap();
            assert!(messages.len() + 1 >= RECORDS, "seed {seed}: {} of {RECORDS}", messages.len());
        })
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

fn silence_crashes() {
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Crash>() {
            eprintln!("{info}");
        }
    }));
}

#[test]
fn seeds_hold_against_the_model() {
    silence_crashes();
    let long = std::env::var_os("FLOODGATE_LONG").is_some();
    let seeds: Vec<u64> = match std::env::var("FLOODGATE_SEED") {
        Ok(seeds) => match seeds.split_once("..") {
            Some((first, end)) => (first.parse().unwrap()..end.parse().unwrap()).collect(),
            None => vec![seeds.parse().unwrap()],
        },
        Err(_) => ONCE_FAILED.into_iter().chain(0..if long { 200_000 } else { 2_500 }).collect(),
    };
    let count = seeds.len();
    let started = std::time::Instant::now();
    for seed in seeds {
        if let Err(panic) = catch_unwind(|| run_seed(seed)) {
            eprintln!("{:?}", faults(&mut Random(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17))));
            eprintln!("replay with FLOODGATE_SEED={seed} cargo test -p queue --test faults");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{count} seeds in {:.1} s", started.elapsed().as_secs_f64());
}
