//! The seeded model test: production code from `purchase()` down, in one thread, under crashes at every failpoint, lost and
//! late answers, restarts, cancels, restocks and passes used again. At rest the invariants must hold.
//!
//! `FLOODGATE_SEEDS=n` sets how many seeds run, `FLOODGATE_SEED=n` replays one, `FLOODGATE_TRACE=1` prints what happens.

mod buyers;
mod census;
mod checks;
mod claims;
mod elsewhere;
mod logs;
mod machine;
mod money;
mod operator;
mod parts;
mod process;
mod random;
mod run;
mod slow;
mod strikes;
mod trace;
mod worker_log;
mod world;

// The binary's own: what joins gateway and order worker is under test, too.
#[path = "../../src/gateway_ports.rs"]
mod gateway_ports;

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::census::Event;
use crate::run::{Report, run};
use crate::strikes::{Counts, all_failpoints};

/// Seeds when nobody says otherwise.
const SEEDS_DEFAULT: u64 = 3_000;

#[test]
fn the_invariants_hold_at_rest_after_any_crash() {
    if let Some(seed) = from_environment("FLOODGATE_SEED") {
        let report = run(seed);
        println!("seed {seed}: {} events, trace {:016x}", report.events, report.trace_hash);
        return;
    }
    let seeds = from_environment("FLOODGATE_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let begun = Instant::now();
    let totals = run_all(seeds);
    print_summary(seeds, begun, &totals);
    if seeds >= SEEDS_DEFAULT {
        let never: Vec<_> =
            all_failpoints().into_iter().filter(|name| !totals.counts.contains_key(name)).collect();
        assert!(never.is_empty(), "failpoints that no seed ever reached: {never:?}");
        let unseen: Vec<_> =
            census::ALL.into_iter().filter(|event| !totals.seen.contains_key(event)).collect();
        assert!(unseen.is_empty(), "what no seed ever saw: {unseen:?}");
    }
}

#[test]
fn a_seed_run_twice_is_the_same_story() {
    for seed in 1..=20 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed} does not replay");
        assert_eq!(first.events, second.events);
    }
}

#[derive(Default)]
struct Totals {
    counts: Counts,
    events: u64,
    ends: u64,
    ledger_faults: u64,
    /// Seeds that saw each.
    seen: BTreeMap<Event, u64>,
}

/// Runs seeds 1 to `seeds`, one thread a core; the lowest that fails is reported.
fn run_all(seeds: u64) -> Totals {
    let next = AtomicU64::new(1);
    let failed = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        break;
                    }
                    match catch_unwind(|| run(seed)) {
                        Ok(report) => totals.lock().add(&report),
                        Err(_) => {
                            failed.store(true, Ordering::Relaxed);
                            failures.lock().push(seed);
                        }
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner();
    failures.sort_unstable();
    if let Some(seed) = failures.first() {
        panic!(
            "seed {seed} breaks an invariant; replay it with\n    \
             FLOODGATE_SEED={seed} FLOODGATE_TRACE=1 cargo test --features simulation --test model the_invariants -- --nocapture"
        );
    }
    totals.into_inner()
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.events += report.events;
        self.ends += report.ends;
        self.ledger_faults += report.ledger_faults;
        for &event in &report.seen {
            *self.seen.entry(event).or_default() += 1;
        }
        for (name, count) in &report.counts {
            let total = self.counts.entry(name).or_default();
            total.passed += count.passed;
            total.crashed += count.crashed;
            total.failed += count.failed;
        }
    }
}

/// Past the test harness's capture: what was run belongs into the log of a good run, too.
fn print_summary(seeds: u64, begun: Instant, totals: &Totals) {
    let seconds = begun.elapsed().as_secs_f64();
    let mut text = format!(
        "{seeds} seeds in {seconds:.1} s, {:.0} a minute; {} events, {} ends of a process, {} faults of the ledger's server\n\
         {:<28} {:>10} {:>8} {:>8}\n",
        seeds as f64 * 60.0 / seconds,
        totals.events,
        totals.ends,
        totals.ledger_faults,
        "failpoint",
        "passed",
        "crashed",
        "failed"
    );
    for name in all_failpoints() {
        let count = totals.counts.get(name).copied().unwrap_or_default();
        text += &format!("{name:<28} {:>10} {:>8} {:>8}\n", count.passed, count.crashed, count.failed);
    }
    text += &format!("{:<56} {:>6}\n", "what happened", "seeds");
    for event in census::ALL {
        text += &format!("{event:<56} {:>6}\n", totals.seen.get(event).copied().unwrap_or_default());
    }
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}
