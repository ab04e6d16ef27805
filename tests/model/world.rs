//! What outlives every process: disks, the orders database, maybe the ledger's server, the clock.

use std::cell::Cell;
use std::sync::Arc;

use order_worker::database::SharedConnection;
use queue::{Faults, SimulatedDisk};
use stock::ledger::{FaultPlan, SimulatedServer};
use stock::{Now, SaleDefinition, Timestamp};
use tokio::time::Instant;

use crate::random::Random;
use crate::trace::Trace;

/// Virtual time 0 as wall clock.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Where the ledger lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In the process: dies with it and is rebuilt at the start.
    Embedded,
    /// On a server that outlives the process and whose answers get lost.
    Outliving,
}

/// See the module.
pub(crate) struct World {
    pub(crate) mode: Mode,
    pub(crate) random: Random,
    pub(crate) now: Now,
    /// One for each instance.
    pub(crate) disks: Vec<SimulatedDisk>,
    pub(crate) database: SharedConnection,
    pub(crate) server: SimulatedServer,
    pub(crate) sale: SaleDefinition,
    pub(crate) trace: Trace,
    /// Whether the ledger's server may lose its memory between two processes.
    pub(crate) forgetful: Cell<bool>,
    /// Whether a process can take the log of a machine that is down.
    pub(crate) neighbours_in_reach: bool,
}

impl World {
    /// Draws a world; everything in it works until [`Self::set_faults`].
    pub(crate) fn draw(random: &Random) -> Self {
        let random = random.fork();
        let begun = Instant::now();
        let now: Now = Arc::new(move || EPOCH_MS + begun.elapsed().as_millis() as u64);
        let mode = if random.chance(500) { Mode::Embedded } else { Mode::Outliving };
        let forgetful = random.chance(300);
        // Several instances share a ledger that remembers; rebuilding one under several instances is not there yet.
        let instances = if mode == Mode::Outliving && !forgetful { random.between(1, 2) } else { 1 };
        let disks = (0..instances).map(|_| SimulatedDisk::new(random.next(), Faults::default())).collect();
        let sale = draw_sale(&random);
        Self {
            mode,
            now: now.clone(),
            disks,
            database: SharedConnection::open(":memory:").expect("a database in memory opens"),
            server: SimulatedServer::new(random.next(), now, FaultPlan::default()),
            sale,
            trace: Trace::new(),
            forgetful: Cell::new(forgetful),
            neighbours_in_reach: random.chance(500),
            random,
        }
    }

    /// Disks begin to fail now and then, and the ledger's server to lose, delay and refuse; or all that stops.
    pub(crate) fn set_faults(&self, faulty: bool) {
        let random = &self.random;
        let disks_fail = faulty && random.chance(300);
        for disk in &self.disks {
            let share = || *random.pick(&[0, 5, 50]) as u32;
            disk.set_faults(if disks_fail {
                Faults {
                    write_error: share(),
                    no_space: share(),
                    short_write: share(),
                    sync_error: share(),
                    ..Faults::default()
                }
            } else {
                Faults::default()
            });
        }
        let answers_get_lost = faulty && self.mode == Mode::Outliving && random.chance(800);
        let share = || *random.pick(&[0, 5, 20, 60]) as u32;
        self.server.set_plan(if answers_get_lost {
            FaultPlan {
                refused: share(),
                answer_lost: share(),
                late: share(),
                repeated: share(),
                slow: share() * 5,
            }
        } else {
            FaultPlan::default()
        });
    }

    /// Sometimes the ledger's server restarts without its memory while no process runs.
    pub(crate) fn maybe_forget(&self) {
        if self.mode == Mode::Outliving && self.forgetful.get() && self.random.chance(300) {
            self.trace.say(format_args!("the ledger's server forgets everything"));
            self.server.wipe();
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        (self.now)()
    }
}

fn draw_sale(random: &Random) -> SaleDefinition {
    SaleDefinition {
        id: "flash".parse().expect("a sale id"),
        item_id: String::new(),
        title: String::new(),
        description: String::new(),
        currency: "CNY".into(),
        price: 100,
        list_price: 0,
        total: random.between(1, 10) as u32,
        per_user_limit: random.between(1, 3) as u32,
        passes_per_unit: *random.pick(&[0, 0, 2, 10]) as u32,
        pay_within_s: 86_400,
        starts_at: Timestamp(EPOCH_MS + random.below(2_000)),
        ends_at: Timestamp(EPOCH_MS + 86_400_000),
        rehearsal: false,
        labels: Default::default(),
    }
}
