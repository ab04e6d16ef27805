//! Which failpoints strike in a run: the process crashes there, or the step fails.
//!
//! A run aims at a few failpoints by name and count, so that rare ones are hit as often as busy ones, and strikes at random
//! beside that.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use queue::failpoint::{Crash, set_hook};
use tokio::time::Instant;

use crate::random::Random;

/// Every failpoint of the crates.
pub(crate) fn all_failpoints() -> Vec<&'static str> {
    [queue::FAILPOINTS, order_worker::FAILPOINTS, gateway::FAILPOINTS].concat()
}

/// How often one failpoint was passed and what struck there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) crashed: u64,
    pub(crate) failed: u64,
}

pub(crate) type Counts = BTreeMap<&'static str, Count>;

/// Strikes that only together lead to a rare place: `(failpoint, crash)`.
const COMBINATIONS: &[&[(&str, bool)]] = &[
    &[("drain.confirm", false), ("reconciler.looked_up", true)],
    &[("drain.confirm", false), ("drain.confirm", false), ("reconciler.looked_up", false)],
    &[("reconciler.settled", true), ("reconciler.marked_opened", true)],
    &[("queue.dead-letter", true), ("drain.settled", true)],
    &[("queue.dead-letter", false), ("queue.dead-letter", true)],
];

/// Steps that may fail for seconds on end.
const OUTAGES: &[&str] =
    &["database.begin", "database.commit", "drain.confirm", "relay.read", "gateway.appending"];

/// Where the ledger's server may lose its memory: a promise is on its way to the log, or a rebuild under way.
const FORGETTING: &[&str] = &[
    "gateway.reserved",
    "gateway.appended",
    "gateway.appended",
    "gateway.appended",
    "rebuild.installed",
    "rebuild.log",
    "rebuild.reported",
    "rebuild.marked",
];

/// A step that fails whenever it is tried in a span of virtual time.
struct Outage {
    name: &'static str,
    begins: Instant,
    ends: Instant,
}

struct Aim {
    name: &'static str,
    /// Passings left before it strikes.
    left: u64,
    crash: bool,
}

struct State {
    armed: bool,
    aims: Vec<Aim>,
    outage: Option<Outage>,
    /// What is called where the server forgets, and after how many passings of which failpoint.
    forget: Option<Rc<dyn Fn()>>,
    forget_at: Option<(&'static str, u64)>,
    counts: Counts,
    random: Random,
    /// Random strikes in a million passings.
    crash_ppm: u64,
    /// Random crashes in a million passings of a rebuild's steps.
    rebuild_crash_ppm: u64,
    fail_ppm: u64,
    crashes_left: u32,
}

/// The plan of one run, installed as this thread's hook while it lives.
#[derive(Clone)]
pub(crate) struct Strikes(Rc<RefCell<State>>);

impl Strikes {
    /// Draws a plan and installs it, disarmed.
    pub(crate) fn install(random: &Random) -> Self {
        let random = random.fork();
        let names = all_failpoints();
        let mut aims: Vec<Aim> = (0..random.below(5))
            .map(|_| {
                let name = *random.pick(&names);
                // Mostly the first few passings, sometimes far on.
                let left = if random.chance(700) { random.below(4) } else { random.below(60) };
                Aim { name, left, crash: random.chance(700) }
            })
            .collect();
        if random.chance(100) {
            let combination = random.pick(COMBINATIONS).iter();
            aims.extend(combination.map(|&(name, crash)| Aim { name, left: 0, crash }));
        }
        let outage = random.chance(300).then(|| {
            let begins = Instant::now() + Duration::from_millis(random.below(5_000));
            let ends = begins + Duration::from_millis(random.between(1_000, 9_000));
            let name: &&str = random.pick(OUTAGES);
            Outage { name, begins, ends }
        });
        let crash_ppm = *random.pick(&[0, 500, 3_000, 10_000]);
        let fail_ppm = *random.pick(&[0, 0, 1_000, 10_000]);
        let forget_at = random.chance(400).then(|| {
            let name: &&str = random.pick(FORGETTING);
            (*name, random.below(6))
        });
        let rebuild_crash_ppm = if random.chance(150) { 60_000 } else { crash_ppm };
        let state = State {
            armed: false,
            aims,
            outage,
            forget: None,
            forget_at,
            counts: Counts::new(),
            random,
            crash_ppm,
            rebuild_crash_ppm,
            fail_ppm,
            crashes_left: 10,
        };
        let strikes = Self(Rc::new(RefCell::new(state)));
        let hook = strikes.clone();
        set_hook(Some(Box::new(move |name| hook.pass(name))));
        strikes
    }

    /// Whether failpoints strike from now on.
    pub(crate) fn arm(&self, armed: bool) {
        self.0.borrow_mut().armed = armed;
    }

    /// What makes the ledger's server forget.
    pub(crate) fn forget_by(&self, forget: impl Fn() + 'static) {
        self.0.borrow_mut().forget = Some(Rc::new(forget));
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.borrow().counts.clone()
    }

    fn pass(&self, name: &'static str) -> bool {
        let forget = self.0.borrow_mut().forget_here(name);
        if let Some(forget) = forget {
            forget();
        }
        let Some(strike) = self.0.borrow_mut().draw(name) else { return false };
        if strike == Strike::Crash {
            // Past the panic hook, which would print it.
            std::panic::resume_unwind(Box::new(Crash(name)));
        }
        true
    }
}

#[derive(PartialEq)]
enum Strike {
    Crash,
    Fail,
}

impl State {
    fn forget_here(&mut self, name: &'static str) -> Option<Rc<dyn Fn()>> {
        if !self.armed || std::thread::panicking() {
            return None;
        }
        let (_, left) = self.forget_at.as_mut().filter(|(at, _)| *at == name)?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        self.forget_at = None;
        self.forget.clone()
    }

    fn draw(&mut self, name: &'static str) -> Option<Strike> {
        let count = self.counts.entry(name).or_default();
        count.passed += 1;
        // What is dropped by a crash may pass failpoints on its way out; a second panic there would abort.
        if !self.armed || std::thread::panicking() {
            return None;
        }
        let ppm = if name.starts_with("rebuild.") { self.rebuild_crash_ppm } else { self.crash_ppm };
        let mut crash = self.random.below(1_000_000) < ppm;
        let mut fail = self.random.below(1_000_000) < self.fail_ppm;
        let now = Instant::now();
        fail |= self
            .outage
            .as_ref()
            .is_some_and(|outage| outage.name == name && (outage.begins..outage.ends).contains(&now));
        if let Some(at) = self.aims.iter_mut().position(|aim| {
            let hit = aim.name == name && aim.left == 0;
            if aim.name == name {
                aim.left = aim.left.saturating_sub(1);
            }
            hit
        }) {
            let aim = self.aims.swap_remove(at);
            crash |= aim.crash;
            fail |= !aim.crash;
        }
        if crash && self.crashes_left > 0 {
            self.crashes_left -= 1;
            count.crashed += 1;
            return Some(Strike::Crash);
        }
        if fail {
            count.failed += 1;
            return Some(Strike::Fail);
        }
        None
    }
}
