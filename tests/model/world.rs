//! What outlives every process: disks, the orders database, maybe the ledger's servers, the clocks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use order_worker::Database;
use order_worker::database::SharedConnection;
use parking_lot::Mutex;
use queue::{Faults, SimulatedDisk};
use stock::ledger::{FaultPlan, SimulatedLedger, SimulatedServer};
use stock::{Ledger, Now, Owner, RefundPolicy, SaleDefinition, SaleId, Timestamp};
use tokio::time::{Instant, sleep};

use crate::census::{CLOCK_STEPPED, Census};
use crate::machine::Machine;
use crate::money::Till;
use crate::random::Random;
use crate::trace::Trace;
use crate::worker_log::draw_faults;

/// Virtual time 0 as wall clock.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// How far a clock of the ledger's servers may be behind every other one.
const BEHIND_MAX_MS: u64 = 300_000;

/// Whose rows the database may refuse.
const CURSED: &str = "buyer-0";

/// Where the ledger lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In the process: dies with it and is rebuilt at the start.
    Embedded,
    /// On a server that outlives the process and whose answers get lost.
    Outliving,
}

/// The machines' disks; one may be replaced by an empty one.
pub(crate) type Disks = Arc<Mutex<Vec<SimulatedDisk>>>;

/// See the module.
pub(crate) struct World {
    pub(crate) mode: Mode,
    pub(crate) random: Random,
    pub(crate) now: Now,
    /// One for each machine.
    pub(crate) disks: Disks,
    /// One for each machine's worker's own log.
    worker_disks: RefCell<Vec<SimulatedDisk>>,
    /// Whether those disks fail to the end, peace or not.
    worker_disks_fail_for_good: bool,
    pub(crate) database: SharedConnection,
    /// Another deployment's, over which a process may be started by mistake.
    pub(crate) elsewhere: SharedConnection,
    /// Whether that happens.
    mistaken: Cell<bool>,
    /// The ledger's server with the sale that is bought from.
    pub(crate) server: SimulatedServer,
    /// The one with the leases and all other sales: the same, or another with a clock and a memory of its own.
    pub(crate) leases_server: SimulatedServer,
    /// One that no configuration should name.
    other_server: SimulatedServer,
    /// Machines whose configuration names it all the same.
    astray: RefCell<BTreeSet<usize>>,
    /// How far the clocks of the two are ahead of every other one, in this order. They never step back: what waits for a time of a
    /// sale's server would wait for as long as the step was.
    ahead_ms: Option<[Arc<AtomicU64>; 2]>,
    pub(crate) sale: SaleDefinition,
    /// Whether buyers pay, and what they do not pay in time is closed.
    pub(crate) pays: bool,
    /// What providers were answered.
    pub(crate) till: Till,
    pub(crate) trace: Trace,
    /// Whether the ledger's server may lose its memory.
    pub(crate) forgetful: Cell<bool>,
    /// Whether the database refuses whatever [`CURSED`] orders: promises that become dead letters.
    pub(crate) cursed: Cell<bool>,
    /// Orders that each drain may write a second.
    pub(crate) drained_per_second: u32,
    /// The log that each machine's disk holds, once a process has seen it.
    logs: RefCell<Vec<Option<Owner>>>,
    /// Machines that have lost one.
    lost: RefCell<BTreeSet<usize>>,
    /// Whether a process can take the log of a machine that is down.
    pub(crate) neighbours_in_reach: bool,
    /// Longest that the machines' disks take for what they are asked.
    disk_ms_max: u64,
    /// In 1,000 installs so many are late while there are faults.
    late_installs: u32,
    /// Machines that are gone for good.
    pub(crate) gone: Cell<usize>,
    pub(crate) census: Census,
}

impl World {
    /// Draws a world; everything in it works until [`Self::set_faults`].
    pub(crate) fn draw(random: &Random) -> Self {
        let random = random.fork();
        let begun = Instant::now();
        let now: Now = Arc::new(move || EPOCH_MS + begun.elapsed().as_millis() as u64);
        let mode = if random.chance(350) { Mode::Embedded } else { Mode::Outliving };
        let forgetful = mode == Mode::Outliving && random.chance(500);
        let instances = if mode == Mode::Outliving { random.between(1, 3) } else { 1 };
        let disks: Vec<_> =
            (0..instances).map(|_| SimulatedDisk::new(random.next(), Faults::default())).collect();
        let worker_disks: Vec<_> =
            (0..instances).map(|_| SimulatedDisk::new(random.next(), Faults::default())).collect();
        let replica_lag_max = if forgetful { random.below(9) as usize } else { 0 };
        let way_max = Duration::from_millis(*random.pick(&[1, 1, 1, 20, 80]));
        let server_by = |now: Now| {
            let server =
                SimulatedServer::with_replica(random.next(), now, FaultPlan::default(), replica_lag_max);
            server.set_way_max(way_max);
            server
        };
        let ahead_ms = (mode == Mode::Outliving && random.chance(400)).then(|| {
            [(); 2].map(|()| Arc::new(AtomicU64::new(BEHIND_MAX_MS + *random.pick(&[0, 300_000, 600_000]))))
        });
        let skewed = |ahead_ms: &Arc<AtomicU64>| -> Now {
            let (now, ahead_ms) = (now.clone(), ahead_ms.clone());
            Arc::new(move || now() + ahead_ms.load(Ordering::Relaxed) - BEHIND_MAX_MS)
        };
        let (server, leases_server) = match &ahead_ms {
            Some([sales, leases]) => (server_by(skewed(sales)), server_by(skewed(leases))),
            None => {
                let server = server_by(now.clone());
                (server.clone(), server)
            }
        };
        let sale_skew_ms =
            ahead_ms.as_ref().map_or(BEHIND_MAX_MS, |[sales, _]| sales.load(Ordering::Relaxed));
        let mut sale = draw_sale(&random, EPOCH_MS + sale_skew_ms - BEHIND_MAX_MS);
        let pays = random.chance(400);
        if pays {
            sale.pay_within_s = *random.pick(&[1, 3, 8, 20]) as u32;
        }
        Self {
            mode,
            pays,
            till: Till::default(),
            now: now.clone(),
            disks: Arc::new(Mutex::new(disks)),
            worker_disks: RefCell::new(worker_disks),
            worker_disks_fail_for_good: random.chance(300),
            database: SharedConnection::open(":memory:").expect("a database in memory opens"),
            elsewhere: SharedConnection::open(":memory:").expect("a database in memory opens"),
            mistaken: Cell::default(),
            server,
            leases_server,
            other_server: SimulatedServer::new(random.next(), now, FaultPlan::default()),
            astray: RefCell::default(),
            ahead_ms,
            sale,
            disk_ms_max: *random.pick(&[0, 0, 0, 5, 50, 300, 1_000]),
            late_installs: if forgetful { *random.pick(&[0, 0, 100, 400]) as u32 } else { 0 },
            gone: Cell::default(),
            census: Census::default(),
            trace: Trace::new(),
            forgetful: Cell::new(forgetful),
            cursed: Cell::new(mode == Mode::Embedded && random.chance(250)),
            drained_per_second: *random.pick(&[2_000, 2_000, 2_000, 10, 4]) as u32,
            logs: RefCell::new(vec![None; instances as usize]),
            lost: RefCell::default(),
            neighbours_in_reach: random.chance(500),
            random,
        }
    }

    /// The database refuses one buyer's rows, if it is to, once its tables are there.
    pub(crate) fn curse(&self) {
        if self.cursed.get() {
            let refuse = format!(
                "CREATE TRIGGER IF NOT EXISTS cursed BEFORE INSERT ON floodgate_orders WHEN NEW.user_id = '{CURSED}'
                 BEGIN SELECT RAISE(ABORT, 'cursed'); END"
            );
            self.database.with(|connection| connection.execute_batch(&refuse)).expect("a trigger");
        }
    }

    /// The operator has seen to it.
    pub(crate) fn lift_curse(&self) {
        self.cursed.set(false);
        let lift = "DROP TRIGGER IF EXISTS cursed";
        self.database.with(|connection| connection.execute_batch(lift)).expect("no trigger");
    }

    /// Disks begin to fail now and then, and the ledger's server to lose, delay and refuse; or all that stops.
    pub(crate) fn set_faults(&self, faulty: bool) {
        let random = &self.random;
        self.mistaken.set(faulty && random.chance(200));
        let disks_fail = faulty && random.chance(300);
        for disk in self.disks.lock().iter() {
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
        for disk in self.worker_disks.borrow().iter() {
            if faulty {
                disk.set_faults(draw_faults(random));
            } else if !self.worker_disks_fail_for_good {
                disk.set_faults(Faults::default());
            }
        }
        let answers_get_lost = faulty && self.mode == Mode::Outliving && random.chance(800);
        let share = || *random.pick(&[0, 5, 20, 60]) as u32;
        for server in [&self.server, &self.leases_server] {
            server.set_late_installs(if faulty { self.late_installs } else { 0 });
            server.set_plan(if answers_get_lost {
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
    }

    /// One process's client of the ledger's servers.
    pub(crate) fn connect(&self, machine: usize) -> Ledger {
        if self.astray.borrow().contains(&machine) {
            return Ledger::Simulated(self.other_server.connect());
        }
        let Some(_) = self.ahead_ms else { return Ledger::Simulated(self.server.connect()) };
        let bought = self.sale.id.clone();
        let placing = Arc::new(move |sale: &SaleId| usize::from(*sale == bought));
        let servers = [self.leases_server.clone(), self.server.clone()];
        Ledger::Simulated(SimulatedLedger::of_several(&servers, placing))
    }

    /// The next process of this machine names a server that no other one names, or the right one again. Where the ledger has several
    /// clocks none strays: an other server's time would be one more.
    pub(crate) fn stray(&self, machine: usize) {
        if !self.forgetful.get() || self.ahead_ms.is_some() {
            return;
        }
        let mut astray = self.astray.borrow_mut();
        let names = if astray.remove(&machine) {
            "the ledger"
        } else {
            astray.insert(machine);
            "another ledger"
        };
        self.trace.say(format_args!("machine {machine} names {names}"));
    }

    /// Machines that do not name the ledger; all do from now on.
    pub(crate) fn end_straying(&self) -> BTreeSet<usize> {
        self.astray.take()
    }

    /// The server with the memory that the sales live in, by the database's word.
    pub(crate) fn living_server(&self) -> &SimulatedServer {
        let read = "SELECT value FROM floodgate_meta WHERE name = 'ledger'";
        let recorded: Option<String> = self.database.with(|c| c.query_row(read, [], |row| row.get(0))).ok();
        let other = Ledger::Simulated(self.other_server.connect()).sight().expect("it is never away");
        let is_other = other.is_some_and(|other| recorded.as_deref() == Some(other.ledger.as_str()));
        if is_other { &self.other_server } else { &self.server }
    }

    /// Whether the sales have moved to a server that no configuration should name.
    pub(crate) fn has_moved(&self) -> bool {
        !std::ptr::eq(self.living_server(), &self.server)
    }

    /// Faults that struck at the ledger's servers.
    pub(crate) fn ledger_faults(&self) -> u64 {
        let others = self.ahead_ms.as_ref().map_or(0, |_| self.leases_server.struck());
        self.server.struck() + others
    }

    /// What is under way to the ledger's servers and due arrives.
    pub(crate) fn settle_servers(&self) {
        self.server.settle();
        self.leases_server.settle();
    }

    /// The clock of one of the ledger's two servers steps, and nobody else's.
    pub(crate) fn step_a_clock(&self) {
        let Some([sales, leases]) = &self.ahead_ms else { return };
        let minutes = self.random.between(1, 5);
        self.census.saw(CLOCK_STEPPED);
        let (clock, which) =
            if self.random.chance(500) { (sales, "the sale") } else { (leases, "the leases") };
        self.trace.say(format_args!("the clock of the server of {which} steps {minutes} minutes ahead"));
        clock.fetch_add(minutes * 60_000, Ordering::Relaxed);
    }

    /// The ledger's server loses its memory in one of the ways there are.
    pub(crate) fn forget(&self) {
        if !self.forgetful.get() {
            return;
        }
        match self.random.below(4) {
            0 => {
                let reserves = self.random.between(1, 6);
                self.trace.say(format_args!("the ledger's server is flushed after {reserves} batches"));
                self.server.flush_after(Some(reserves));
            }
            _ => self.forget_at_once(),
        }
    }

    /// The same, without waiting for a batch.
    pub(crate) fn forget_at_once(&self) {
        if !self.forgetful.get() {
            return;
        }
        let is_sales = self.ahead_ms.is_none() || self.random.chance(600);
        let (server, which) =
            if is_sales { (&self.server, "the sale") } else { (&self.leases_server, "the leases") };
        match self.random.below(3) {
            0 => {
                self.trace.say(format_args!(
                    "the ledger's server of {which} restarts and has forgotten everything"
                ));
                server.wipe();
            }
            1 => {
                self.trace.say(format_args!("the ledger's server of {which} is flushed"));
                server.flush();
            }
            _ => {
                let lost = self.random.below(9) as usize;
                self.trace.say(format_args!(
                    "a replica of the ledger's server of {which} without the last {lost} writes is promoted"
                ));
                server.fail_over(lost);
            }
        }
    }

    /// Sometimes, when a process ends; more often in the middle of a rebuild.
    pub(crate) fn maybe_forget(&self, is_mid_rebuild: bool) {
        if self.random.chance(if is_mid_rebuild { 400 } else { 100 }) {
            self.forget();
        }
    }

    pub(crate) fn draw_disk_delay(&self) -> Duration {
        match self.disk_ms_max {
            0 => Duration::ZERO,
            max => Duration::from_millis(self.random.below(max + 1)),
        }
    }

    /// Whether the ledger's server lives in another epoch than the first and has the sale not open.
    pub(crate) fn is_rebuilding(&self) -> bool {
        self.mode == Mode::Outliving && !self.server.is_open(&self.sale.id) && self.epoch() > 1
    }

    /// Whether a rebuild does not come to its end, as one that waits for a log that is lost.
    pub(crate) async fn is_waiting_for_lost_log(&self, machines: &[Machine]) -> bool {
        for _ in 0..150 {
            let all_in_reach = !machines.iter().any(|machine| self.is_out_of_reach(machine));
            if self.mode == Mode::Embedded || all_in_reach || self.server.is_open(&self.sale.id) {
                return false;
            }
            sleep(Duration::from_millis(100)).await;
        }
        true
    }

    pub(crate) fn machines(&self) -> usize {
        self.disks.lock().len()
    }

    pub(crate) fn disk(&self, machine: usize) -> SimulatedDisk {
        self.disks.lock()[machine].clone()
    }

    pub(crate) fn worker_disk(&self, machine: usize) -> SimulatedDisk {
        self.worker_disks.borrow()[machine].clone()
    }

    /// Whether no rebuild will ever miss the log of a machine that is gone for good.
    pub(crate) fn log_stays_in_reach(&self) -> bool {
        !self.forgetful.get() || self.neighbours_in_reach
    }

    /// Whether one more may go for good, and somebody is left.
    pub(crate) fn can_lose_one(&self) -> bool {
        self.log_stays_in_reach() && self.gone.get() + 1 < self.machines()
    }

    /// Whether a log of this machine was lost, or is where nobody can take it.
    pub(crate) fn is_out_of_reach(&self, machine: &Machine) -> bool {
        self.lost.borrow().contains(&machine.instance) || machine.is_gone() && !self.neighbours_in_reach
    }

    /// A new disk, empty: the log that was on the old one is out of reach for good.
    pub(crate) fn replace_disk(&self, machine: usize) {
        self.disks.lock()[machine] = SimulatedDisk::new(self.random.next(), Faults::default());
        self.worker_disks.borrow_mut()[machine] = SimulatedDisk::new(self.random.next(), Faults::default());
        self.lose_log(machine);
    }

    /// The log that this machine held is out of reach from now on.
    pub(crate) fn lose_log(&self, machine: usize) {
        self.logs.borrow_mut()[machine] = None;
        self.lost.borrow_mut().insert(machine);
    }

    /// Whether the process that is being started is given the other deployment's database. A log that nobody has opened yet would be
    /// that one's for good.
    pub(crate) fn is_started_elsewhere(&self, machine: usize) -> bool {
        self.mistaken.get() && self.log_of(machine).is_some() && self.random.chance(300)
    }

    pub(crate) fn saw_log(&self, machine: usize, owner: Owner) {
        self.logs.borrow_mut()[machine] = Some(owner);
    }

    pub(crate) fn log_of(&self, machine: usize) -> Option<Owner> {
        self.logs.borrow()[machine]
    }

    /// The ledger's epoch, read past every failpoint; 0 before the first.
    pub(crate) fn epoch(&self) -> u64 {
        let read = "SELECT value FROM floodgate_meta WHERE name = 'epoch'";
        let epoch: Option<String> = self.database.with(|c| c.query_row(read, [], |row| row.get(0))).ok();
        epoch.map_or(0, |epoch| epoch.parse().expect("an epoch is a number"))
    }

    /// For whoever stands outside of every process.
    pub(crate) fn open_database(&self) -> Database {
        Database::over_connection(self.database.clone(), self.now.clone()).expect("the database opens")
    }

    /// Whether the ledger's clock is near enough to every other one for orders to be closed.
    pub(crate) fn clocks_agree(&self) -> bool {
        self.ahead_ms.as_ref().is_none_or(|[_, leases]| leases.load(Ordering::Relaxed) == BEHIND_MAX_MS)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        (self.now)()
    }
}

/// Opens within two seconds of `now_ms`, a time of its server.
fn draw_sale(random: &Random, now_ms: u64) -> SaleDefinition {
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
        starts_at: Timestamp(now_ms + random.below(2_000)),
        ends_at: Timestamp(now_ms + 86_400_000),
        rehearsal: false,
        refund: RefundPolicy::Buyer,
        unit_returns_on_refund: true,
        labels: Default::default(),
    }
}
