//! Seeded faults against reference models: crashes at every failpoint, lost sectors, EIO, ENOSPC, short writes, lying syncs.
//!
//! A failing seed is printed; `FLOODGATE_SEED=n` replays it alone, `FLOODGATE_SEED=n..m` runs those, `FLOODGATE_LONG=1` many more.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod aside;
mod delayed;
mod groups;
mod promises;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;
use queue::failpoint::{Crash, set_hook};
use queue::{DiskOptions, Driver, Faults, Queue, QueueError, SimulatedDisk, Storage};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 32)) % bound
    }
}

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

fn silence_crashes() {
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Crash>() {
            eprintln!("{info}");
        }
    }));
}

/// What a seed is played with: a model of what must be true, and what a process does with the queue.
trait Story {
    /// Failpoints that a life passes at most before it crashes.
    const CRASH_WITHIN: u64;
    /// Lives beside the one without faults.
    const LIVES: u64;

    fn new(seed: u64, lies: bool) -> Self;

    /// One process, which may crash or fail anywhere; without faults if it is the `last` one.
    async fn live(
        &mut self,
        random: &mut Random,
        disk: &SimulatedDisk,
        clock: &Arc<AtomicU64>,
        last: bool,
    ) -> Result<(), QueueError>;
}

/// How often each failpoint was passed, and how often a crash came there.
type Census = Rc<RefCell<BTreeMap<&'static str, (u64, u64)>>>;

fn run_seed<S: Story>(seed: u64, census: &Census) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17));
    let disk_faults = faults(&mut random);
    let disk = SimulatedDisk::new(seed, Faults::default());
    let clock = Arc::new(AtomicU64::new(1_000));
    let lies = disk_faults.lying_sync > 0;
    let mut story = S::new(seed, lies);
    for life in 0..=S::LIVES {
        let last = life == S::LIVES;
        disk.set_faults(if last { Faults::default() } else { disk_faults.clone() });
        let mut crash_in = if last { u64::MAX } else { random.below(S::CRASH_WITHIN) };
        let crashes = random.below(4) > 0;
        let counts = Rc::clone(census);
        set_hook(Some(Box::new(move |name| {
            let mut counts = counts.borrow_mut();
            let count = counts.entry(name).or_default();
            count.0 += 1;
            crash_in = crash_in.saturating_sub(1);
            if crash_in == 0 && crashes {
                crash_in = u64::MAX;
                count.1 += 1;
                std::panic::panic_any(Crash(name));
            }
            false
        })));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            runtime.unwrap().block_on(story.live(&mut random, &disk, &clock, last))
        }));
        set_hook(None);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => match error {
                QueueError::Corrupt { .. } | QueueError::Foreign { .. } => {
                    assert!(lies, "{error}");
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

fn options(disk: &SimulatedDisk, clock: &Arc<AtomicU64>) -> DiskOptions {
    let now = Arc::clone(clock);
    let mut options = DiskOptions::new("/queue", Arc::new(move || now.load(Ordering::Relaxed)));
    options.storage = Storage::Simulated(disk.clone());
    options.driver = Driver::Driven;
    options.segment_bytes = 128 * 1024;
    options.ring_bytes = 64 * 1024;
    options.random = Arc::new(|| 42);
    options
}

fn open(disk: &SimulatedDisk, clock: &Arc<AtomicU64>) -> Result<Queue, QueueError> {
    Queue::open_disk(options(disk, clock), &mut Registry::default())
}

/// Plays seeds 0.. and those that once found a bug, or the ones that are asked for; tells what they came by.
fn play<S: Story>(test: &str, seeds: u64, long_seeds: u64, once_failed: &[u64]) -> Census {
    silence_crashes();
    let long = std::env::var_os("FLOODGATE_LONG").is_some();
    let seeds: Vec<u64> = match std::env::var("FLOODGATE_SEED") {
        Ok(seeds) => match seeds.split_once("..") {
            Some((first, end)) => (first.parse().unwrap()..end.parse().unwrap()).collect(),
            None => vec![seeds.parse().unwrap()],
        },
        Err(_) => once_failed.iter().copied().chain(0..if long { long_seeds } else { seeds }).collect(),
    };
    let count = seeds.len();
    let started = std::time::Instant::now();
    let census = Census::default();
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run_seed::<S>(seed, &census))) {
            eprintln!("{:?}", faults(&mut Random(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17))));
            eprintln!("replay with FLOODGATE_SEED={seed} cargo test -p queue --test faults {test}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{count} seeds in {:.1} s", started.elapsed().as_secs_f64());
    for (name, (passed, crashed)) in census.borrow().iter() {
        println!("{name:<24} {passed:>9} {crashed:>6}");
    }
    census
}

/// A green run is green about what it came by: each of these was passed, and a crash came there.
fn expect(census: &Census, names: &[&str]) {
    if std::env::var_os("FLOODGATE_SEED").is_some() {
        return;
    }
    let census = census.borrow();
    for name in names {
        let (passed, crashed) = census.get(name).copied().unwrap_or_default();
        assert!(passed > 20 && crashed > 0, "{name} was passed {passed} times, {crashed} crashes came there");
    }
}

#[test]
fn seeds_hold_against_the_model() {
    let census = play::<promises::Promises>("seeds_hold_against_the_model", 2_500, 200_000, &[22_502]);
    expect(&census, queue::FAILPOINTS);
    expect(&census, queue::CUT_FAILPOINTS);
}

#[test]
fn seeds_of_delayed_messages_hold_against_the_model() {
    let test = "seeds_of_delayed_messages_hold_against_the_model";
    let census = play::<delayed::Model>(test, 1_000, 100_000, &[60, 1_521]);
    expect(&census, queue::REWRITING_FAILPOINTS);
    expect(&census, &["queue.checkpoint-write", "queue.checkpoint-sync", "queue.retire"]);
}
