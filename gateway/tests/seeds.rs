//! The purchase path under seeds: a ledger of two servers that refuse, lose, delay and repeat, with clocks minutes apart that step
//! each for itself; steps that fail; crashes between any two of them with whatever the disk had not synced. At rest what was promised is in the log, and the ledger holds nothing else.
//!
//! `FLOODGATE_SEED=n` replays one seed, `FLOODGATE_SEEDS=n` runs that many.
#![cfg(feature = "simulation")]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use gateway::Gateway;
use gateway::admission::pass::Pass;
use gateway::catalog::CatalogSale;
use gateway::purchase::PurchaseAnswer;
use prometheus_client::registry::Registry;
use queue::failpoint::{self, Crash};
use queue::{Faults, SimulatedDisk, Storage};
use stock::ledger::{FaultPlan, SimulatedLedger, SimulatedServer};
use stock::{EmbeddedFlag, Flag, Ledger, OrderId, OrderStatus, SaleDefinition, SaleId, SaleVersion, Stock};
use support::life::{Ground, Life, attempt};
use support::{SALE, sale};
use tokio::time::{Instant, sleep};

const USERS: u64 = 30;
const UNITS: u32 = 20;
const BASE_MS: u64 = 1_800_000_000_000;
const MINUTE_MS: u64 = 60_000;

#[test]
fn promises_survive_every_seed() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("FLOODGATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLOODGATE_SEEDS").unwrap_or(300),
    };
    let mut crashes = 0;
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::run(seed));
        crashes += run.unwrap_or_else(|panic| {
            eprintln!("replay with FLOODGATE_SEED={seed}");
            resume_unwind(panic)
        });
    }
    println!("{crashes} crashes");
}

/// A stream of numbers from one seed.
#[derive(Clone)]
struct Draw(Rc<Cell<u64>>);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(Rc::new(Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)))
    }

    fn below(&self, bound: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// What outlives a process: server, disk, and what buyers remember.
struct World {
    draw: Draw,
    /// Holds the sale.
    server: SimulatedServer,
    /// How far the clock of each of the two is ahead of the one that is slowest.
    ahead_ms: [Arc<AtomicU64>; 2],
    disk: SimulatedDisk,
    ground: Ground,
    /// Passes by user.
    passes: BTreeMap<u64, (String, OrderId)>,
    /// Every 202 ever sent.
    promised: BTreeSet<OrderId>,
    /// How often each order was pressed for.
    presses: RefCell<BTreeMap<OrderId, usize>>,
    /// Records whose end was not believed: each is written again.
    unheard: Rc<Cell<usize>>,
}

impl World {
    /// Three lives and a rest; returns how often the process crashed.
    fn run(seed: u64) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let mut world = Self::new(seed).await;
            let mut crashes = 0;
            for _ in 0..3 {
                crashes += u64::from(world.live().await);
            }
            world.rest().await;
            world.restart().await;
            crashes
        })
    }

    async fn new(seed: u64) -> Self {
        let draw = Draw::new(seed);
        let start = Instant::now();
        let now: stock::Now =
            Arc::new(move || BASE_MS + u64::try_from(start.elapsed().as_millis()).expect("a short run"));
        let ahead_ms = [(); 2].map(|()| Arc::new(AtomicU64::new(draw.below(11) * MINUTE_MS)));
        let [server, other_server] = ahead_ms.clone().map(|ahead_ms| {
            let now = now.clone();
            let now = Arc::new(move || now() + ahead_ms.load(Ordering::Relaxed));
            SimulatedServer::new(seed, now, FaultPlan::default())
        });
        let begin_ms = BASE_MS + ahead_ms[0].load(Ordering::Relaxed);
        let definition = SaleDefinition {
            total: UNITS,
            per_user_limit: 1,
            starts_at: stock::Timestamp(begin_ms),
            ends_at: stock::Timestamp(begin_ms + 60 * MINUTE_MS),
            ..sale(SALE)
        };
        let version = SaleVersion {
            sale: definition.id.clone(),
            version: 1,
            total: UNITS,
            starts_at_ms: definition.starts_at.0,
            ends_at_ms: definition.ends_at.0,
            per_user_limit: 1,
            passes_per_unit: 0,
            paused: false,
            terms_version: 1,
        };
        let stock = Stock::new(
            Ledger::Simulated(server.connect()),
            Flag::Embedded(EmbeddedFlag::new(1)),
            &mut Registry::default(),
        );
        stock.install(&version, 1).await.expect("installed");
        stock.open(&version.sale, 1).await.expect("opened");
        let counter = AtomicU64::new(seed << 32);
        let sale =
            CatalogSale { total: UNITS, definition, version: 1, terms_version: 1, paused_by: None, epoch: 1 };
        let random: queue::Random = Arc::new(move || counter.fetch_add(1, Ordering::Relaxed));
        let disk = SimulatedDisk::new(seed, Faults::default());
        // The first one holds the leases.
        let ledger = SimulatedLedger::of_several(&[other_server, server.clone()], Arc::new(|_| 1));
        Self {
            draw,
            ground: Ground {
                now,
                storage: Storage::Simulated(disk.clone()),
                directory: "/queue".into(),
                segment_bytes: 1 << 20,
                ledger: Ledger::Simulated(ledger),
                sale,
                random,
            },
            server,
            ahead_ms,
            disk,
            passes: BTreeMap::new(),
            promised: BTreeSet::new(),
            presses: RefCell::default(),
            unheard: Rc::default(),
        }
    }

    fn start(&self) -> Life {
        Life::start(&self.ground)
    }

    /// One life with faults; true if it ended in a crash. Buyers press, press again, and remember what they were told.
    async fn live(&mut self) -> bool {
        self.server.set_plan(FaultPlan { refused: 40, answer_lost: 80, late: 80, repeated: 60, slow: 60 });
        let draw = self.draw.clone();
        let crash_after = draw.below(400);
        let (mut steps, unheard) = (0, self.unheard.clone());
        failpoint::set_hook(Some(Box::new(move |name| {
            steps += 1;
            if steps == crash_after {
                resume_unwind(Box::new(Crash(name)));
            }
            let fails = name.starts_with("gateway.") && draw.below(40) == 0;
            unheard.set(unheard.get() + usize::from(fails && name == "gateway.appended"));
            fails
        })));
        let Ok(life) = std::panic::catch_unwind(AssertUnwindSafe(|| self.start())) else {
            failpoint::set_hook(None);
            self.disk.crash();
            return true;
        };
        for user in 0..USERS {
            self.passes.entry(user).or_insert_with(|| new_pass(&life.gateway, user));
        }
        let passes = self.passes.clone();
        let promised = RefCell::new(BTreeSet::new());
        let buyers = join_all(passes.iter().map(|(_, (pass, order_id))| {
            let (draw, life, promised, presses) = (self.draw.clone(), &life, &promised, &self.presses);
            async move {
                // Some press once and give up: nobody else will find their order.
                for _ in 0..1 + draw.below(3) {
                    sleep(Duration::from_millis(draw.below(3_000))).await;
                    *presses.borrow_mut().entry(*order_id).or_default() += 1;
                    let answer = life.purchases.purchase(attempt(pass)).await;
                    if let PurchaseAnswer::Accepted { order_id: told, .. } = answer {
                        assert_eq!(told, *order_id);
                        assert!(life.logged().await.contains(&told), "a 202 before the log held it durably");
                        promised.borrow_mut().insert(told);
                    }
                }
            }
        }));
        let server = &self.server;
        // The sale's clock goes ahead by minutes, the other one anywhere; the process's own stays.
        let (draw, [of_sale, other]) = (self.draw.clone(), &self.ahead_ms);
        let steps = async {
            sleep(Duration::from_millis(draw.below(6_000))).await;
            of_sale.fetch_add(draw.below(3) * MINUTE_MS, Ordering::Relaxed);
            sleep(Duration::from_millis(draw.below(3_000))).await;
            other.store(draw.below(11) * MINUTE_MS, Ordering::Relaxed);
        };
        let work = async {
            tokio::join!(buyers, steps);
            // No more faults: in this very life everything that was uncertain must find its way into the log.
            failpoint::set_hook(None);
            server.set_plan(FaultPlan::default());
            settle(&life, server).await;
            let logged: BTreeSet<_> = life.logged().await.into_iter().collect();
            let unwritten: Vec<_> = life.held().await.into_iter().filter(|id| !logged.contains(id)).collect();
            assert!(unwritten.is_empty(), "taken, but never written: {unwritten:?}");
        };
        let process = life.run(work);
        let crashed = AssertUnwindSafe(process).catch_unwind().await;
        failpoint::set_hook(None);
        self.promised.append(&mut promised.borrow_mut());
        drop(life);
        self.disk.crash();
        match crashed {
            Ok(()) => false,
            Err(panic) if panic.is::<Crash>() => true,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// An order has one record, and one more for each time that it was not known whether the log holds it: it was pressed for once more,
    /// or an append's end was not believed.
    async fn check_growth(&self, life: &Life) {
        let mut records: BTreeMap<OrderId, usize> = BTreeMap::new();
        for order_id in life.logged().await {
            *records.entry(order_id).or_default() += 1;
        }
        let presses = self.presses.borrow();
        for (order_id, records) in records {
            let records_max = presses.get(&order_id).map_or(1, |presses| *presses) + self.unheard.get();
            assert!(records <= records_max, "{order_id} has {records} records, {records_max} at most");
        }
    }

    /// Further lives without faults and without buyers: what the log holds they leave alone.
    async fn restart(&self) {
        let mut before = None;
        for _ in 0..3 {
            let life = self.start();
            let logged = life.run(async {
                // Whatever is looked at again was looked at by then.
                sleep(Duration::from_secs(60)).await;
                life.logged().await
            });
            let logged = logged.await.len();
            assert_eq!(*before.get_or_insert(logged), logged, "records after a start in peace");
        }
    }

    /// A last life without faults, until nothing is left to do; then everything must add up.
    async fn rest(&mut self) {
        self.server.set_plan(FaultPlan::default());
        let life = self.start();
        let sale: SaleId = SALE.parse().expect("a sale");
        let checks = async {
            settle(&life, &self.server).await;
            self.check_growth(&life).await;
            let logged: BTreeSet<_> = life.logged().await.into_iter().collect();
            let held: BTreeSet<_> = life.held().await.into_iter().collect();
            let lost: Vec<_> = self.promised.difference(&logged).collect();
            assert!(lost.is_empty(), "promised, but not in the log: {lost:?}");
            assert_eq!(held, logged, "what the ledger holds and what the log holds");
            let books = life.stock.snapshot(&sale).await.expect("a snapshot");
            assert_eq!(i64::from(books.total), books.remaining + (books.pending + books.confirmed) as i64);
            assert!(books.remaining >= 0);

            // Everybody presses once more: the same answer for whoever has one, and not a unit is left over.
            for (user, (pass, order_id)) in &self.passes {
                let user = format!("user-{user}").parse().expect("a user");
                let status = life.gateway.order_status(*order_id, &user).await.expect("an answer");
                assert_eq!(status, held.contains(order_id).then_some(OrderStatus::Queued));
                match life.purchases.purchase(attempt(pass)).await {
                    PurchaseAnswer::Accepted { order_id: told, .. } => assert_eq!(told, *order_id),
                    // The flag may refuse a repeat; the order itself says otherwise.
                    PurchaseAnswer::SoldOut => {}
                    other => panic!("{other:?}"),
                }
            }
            let books = life.stock.snapshot(&sale).await.expect("a snapshot");
            assert_eq!((books.remaining, books.pending), (0, u64::from(UNITS)), "sold to the last unit");
            let logged: BTreeSet<_> = life.logged().await.into_iter().collect();
            assert_eq!(logged.len(), UNITS as usize);
        };
        life.run(checks).await;
    }
}

/// Waits until nothing is on its way any more and the owner has recovered what was.
async fn settle(life: &Life, server: &SimulatedServer) {
    // Past the deadline of every batch that could still be executed.
    sleep(Duration::from_secs(5)).await;
    server.settle();
    life.await_recovered().await;
}

fn new_pass(gateway: &Gateway, user: u64) -> (String, OrderId) {
    let sale: SaleId = SALE.parse().expect("a sale");
    let order_id = OrderId::new(BASE_MS, &sale, user);
    let user = format!("user-{user}").parse().expect("a user");
    let expires_at_ms = BASE_MS + 120 * MINUTE_MS;
    (gateway.passes().issue(&Pass { sale, user, order_id, expires_at_ms }), order_id)
}
