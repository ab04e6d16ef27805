//! The purchase path under seeds: a ledger of two servers that refuse, lose, delay and repeat, with clocks minutes apart that step
//! each for itself; steps that fail; crashes between any two of them with whatever the disk had not synced. At rest what was promised is in the log, and the ledger holds nothing else.
//!
//! `FLOODGATE_SEED=n` replays one seed, `FLOODGATE_SEEDS=n` runs that many.
#![cfg(feature = "simulation")]

mod support;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join_all, pending};
use gateway::catalog::CatalogSale;
use gateway::pass::Pass;
use gateway::purchase::{Attempt, PurchaseAnswer, Purchases};
use gateway::{Gateway, GatewayParts};
use prometheus_client::registry::Registry;
use queue::failpoint::{self, Crash};
use queue::{DiskOptions, Driver, Faults, GroupWatch, Queue, SimulatedDisk, Storage, Topic};
use stock::ledger::{FaultPlan, SimulatedLedger, SimulatedServer};
use stock::{
    EmbeddedFlag, Flag, Ledger, OrderId, OrderStatus, Owner, Reservation, SaleDefinition, SaleId,
    SaleVersion, Stock,
};
use support::{MapBooks, Options, SALE, sale};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

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
    now: stock::Now,
    /// Holds the sale.
    server: SimulatedServer,
    /// Holds the leases.
    other_server: SimulatedServer,
    /// How far the clock of each of the two is ahead of the one that is slowest.
    ahead_ms: [Arc<AtomicU64>; 2],
    disk: SimulatedDisk,
    definition: SaleDefinition,
    /// Passes by user.
    passes: BTreeMap<u64, (String, OrderId)>,
    /// Every 202 ever sent.
    promised: BTreeSet<OrderId>,
    random: gateway::Random,
}

/// One life of the process.
struct Life {
    gateway: Arc<Gateway>,
    purchases: Purchases,
    queue: Queue,
    topic: Topic,
    stock: Arc<Stock>,
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
        };
        let stock = Stock::new(
            Ledger::Simulated(server.connect()),
            Flag::Embedded(EmbeddedFlag::new(1)),
            &mut Registry::default(),
        );
        stock.install(&version, 1).await.expect("installed");
        stock.open(&version.sale, 1).await.expect("opened");
        let counter = AtomicU64::new(seed << 32);
        Self {
            draw,
            now,
            server,
            other_server,
            ahead_ms,
            disk: SimulatedDisk::new(seed, Faults::default()),
            definition,
            passes: BTreeMap::new(),
            promised: BTreeSet::new(),
            random: Arc::new(move || counter.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn start(&self) -> Life {
        let mut registry = Registry::default();
        let mut disk = DiskOptions::new("/queue", self.now.clone());
        disk.storage = Storage::Simulated(self.disk.clone());
        disk.driver = Driver::Driven;
        disk.random = self.random.clone();
        disk.segment_bytes = 1 << 20;
        disk.ring_bytes = 1 << 18;
        let queue = Queue::open_disk(disk, &mut registry).expect("a queue");
        let topic = queue.topic("floodgate-orders").now_or_never().expect("no wait").expect("a topic");
        let flag = Flag::Embedded(EmbeddedFlag::new((self.random)()));
        let servers = [self.other_server.clone(), self.server.clone()];
        let ledger = Ledger::Simulated(SimulatedLedger::of_several(&servers, Arc::new(|_| 1)));
        let stock = Arc::new(Stock::new(ledger, flag, &mut registry));
        let options = Options::default();
        let books = Arc::new(MapBooks::new(stock.clone()));
        let parts = GatewayParts {
            gateway: options.gateway,
            admin: gateway::config::AdminConfig::default(),
            auth: options.auth,
            gate: options.gate,
            limits: options.limits,
            stock: stock.clone(),
            topic: topic.clone(),
            owner: Owner(queue.instance()),
            seat: seat_at(1),
            drained: Arc::new(GroupWatch::new(topic.clone(), support::DRAIN_GROUP)),
            drain_rate_hint: None,
            orders: books.clone(),
            operator: books,
            now: self.now.clone(),
            random: self.random.clone(),
        };
        let gateway = Arc::new(Gateway::new(parts, &mut registry).expect("a good configuration"));
        gateway.catalog().replace(vec![CatalogSale {
            definition: self.definition.clone(),
            version: 1,
            total: UNITS,
            paused_by: None,
            epoch: 1,
        }]);
        Life { purchases: gateway.purchases(), gateway, queue, topic, stock }
    }

    /// One life with faults; true if it ended in a crash. Buyers press, press again, and remember what they were told.
    async fn live(&mut self) -> bool {
        self.server.set_plan(FaultPlan { refused: 40, answer_lost: 80, late: 80, repeated: 60, slow: 60 });
        let draw = self.draw.clone();
        let crash_after = draw.below(400);
        let mut steps = 0;
        failpoint::set_hook(Some(Box::new(move |name| {
            steps += 1;
            if steps == crash_after {
                resume_unwind(Box::new(Crash(name)));
            }
            name.starts_with("gateway.") && draw.below(40) == 0
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
        let promised = std::cell::RefCell::new(BTreeSet::new());
        let buyers = join_all(passes.iter().map(|(_, (pass, order_id))| {
            let (draw, life, promised) = (self.draw.clone(), &life, &promised);
            async move {
                // Some press once and give up: nobody else will find their order.
                for _ in 0..1 + draw.below(3) {
                    sleep(Duration::from_millis(draw.below(3_000))).await;
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
            life.settle(server).await;
            let unwritten: Vec<_> = life.held().await.difference(&life.logged().await).copied().collect();
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

    /// A last life without faults, until nothing is left to do; then everything must add up.
    async fn rest(&mut self) {
        self.server.set_plan(FaultPlan::default());
        let life = self.start();
        let sale: SaleId = SALE.parse().expect("a sale");
        let checks = async {
            life.settle(&self.server).await;
            let (logged, held) = (life.logged().await, life.held().await);
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
            assert_eq!(life.logged().await.len(), UNITS as usize);
        };
        life.run(checks).await;
    }
}

impl Life {
    /// The whole process on this one thread, until `work` is done.
    async fn run(&self, work: impl Future<Output = ()>) {
        let (_alive, never) = watch::channel(false);
        tokio::select! {
            biased;
            () = work => {}
            () = self.purchases.run(never.clone()) => {}
            () = self.gateway.background(never) => {}
            () = async { self.queue.run().await; pending().await } => {}
        }
    }

    /// Waits until nothing is on its way any more and the owner has recovered what was.
    async fn settle(&self, server: &SimulatedServer) {
        // Past the deadline of every batch that could still be executed.
        sleep(Duration::from_secs(5)).await;
        server.settle();
        let idle = async {
            while !self.gateway.recovered() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), idle).await.expect("recovery comes to its end");
    }

    async fn held(&self) -> BTreeSet<OrderId> {
        let sale = SALE.parse().expect("a sale");
        let held = self.stock.pending(&sale, None, None, 512).await.expect("pending");
        held.iter().map(|(_, reservation)| reservation.order_id).collect()
    }

    async fn logged(&self) -> BTreeSet<OrderId> {
        let messages = self.topic.read(None, 100_000).await.expect("messages");
        messages.iter().map(|m| Reservation::decode(&m.payload).expect("a reservation").order_id).collect()
    }
}

fn attempt(pass: &str) -> Attempt<'_> {
    Attempt { sale: SALE, pass: Some(pass), quantity: 1, metadata: None, address: None }
}

fn new_pass(gateway: &Gateway, user: u64) -> (String, OrderId) {
    let sale: SaleId = SALE.parse().expect("a sale");
    let order_id = OrderId::new(BASE_MS, &sale, user);
    let user = format!("user-{user}").parse().expect("a user");
    let expires_at_ms = BASE_MS + 120 * MINUTE_MS;
    (gateway.passes().issue(&Pass { sale, user, order_id, expires_at_ms }), order_id)
}

/// A seat whose log is merged into the ledger of `epoch`.
fn seat_at(epoch: u64) -> Arc<stock::Seat> {
    let seat = stock::Seat::new();
    seat.raise(epoch);
    seat.offer(epoch);
    Arc::new(seat)
}
