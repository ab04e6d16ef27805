//! The log never multiplies itself: recovery appends what the log may lack and nothing else, however much waits for the drain, and
//! finds what came late although the ledger's clock said that nothing would.
#![cfg(feature = "simulation")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use gateway::admission::pass::Pass;
use gateway::catalog::CatalogSale;
use gateway::purchase::PurchaseAnswer;
use queue::{Faults, SimulatedDisk, StartAt, Storage};
use stock::ledger::{BATCH_MAX, FaultPlan, Settlement, SimulatedLedger, SimulatedServer};
use stock::{
    EmbeddedFlag, Flag, Ledger, OrderId, Owner, Reservation, SaleDefinition, SaleId, SaleVersion, Stock,
    Timestamp,
};
use support::life::{Ground, Life, attempt};
use support::{DRAIN_GROUP, SALE, sale};
use tokio::time::{Instant, sleep};

const BASE_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 86_400_000;
/// More than an index of 2^18 appends would hold, as a planted bug has it.
const MANY: usize = 270_000;
/// The contract: no id stays pending longer without a record.
const RECORD_MAX: Duration = Duration::from_secs(60);

fn in_virtual_time<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story)
}

fn sale_id() -> SaleId {
    SALE.parse().expect("a sale")
}

/// What outlives a process, and how far the ledger's clock has been stepped.
struct World {
    ground: Ground,
    disk: SimulatedDisk,
    server: SimulatedServer,
    step_ms: Arc<AtomicI64>,
    version: SaleVersion,
}

impl World {
    /// A sale of a million units, installed and closed.
    async fn new(seed: u64) -> Self {
        let start = Instant::now();
        let now: stock::Now =
            Arc::new(move || BASE_MS + u64::try_from(start.elapsed().as_millis()).expect("a short run"));
        let step_ms = Arc::new(AtomicI64::new(0));
        let ledger_now: stock::Now = {
            let (now, step_ms) = (now.clone(), step_ms.clone());
            Arc::new(move || now().saturating_add_signed(step_ms.load(Ordering::Relaxed)))
        };
        let server = SimulatedServer::new(seed, ledger_now, FaultPlan::default());
        let definition = SaleDefinition {
            total: 1_000_000,
            per_user_limit: 1,
            starts_at: Timestamp(BASE_MS - DAY_MS),
            ends_at: Timestamp(BASE_MS + DAY_MS),
            ..sale(SALE)
        };
        let version = SaleVersion {
            sale: definition.id.clone(),
            version: 1,
            total: definition.total,
            starts_at_ms: definition.starts_at.0,
            ends_at_ms: definition.ends_at.0,
            per_user_limit: 1,
            passes_per_unit: 0,
            paused: false,
            terms_version: 1,
        };
        outside(&server).install(&version, 1).await.expect("installed");
        let sale = CatalogSale {
            total: definition.total,
            definition,
            version: 1,
            terms_version: 1,
            paused_by: None,
            epoch: 1,
        };
        let (disk, counter) = (SimulatedDisk::new(seed, Faults::default()), AtomicU64::new(seed << 32));
        let ground = Ground {
            now,
            storage: Storage::Simulated(disk.clone()),
            directory: "/queue".into(),
            segment_bytes: 1 << 20,
            ledger: Ledger::Simulated(server.connect()),
            sale,
            random: Arc::new(move || counter.fetch_add(1, Ordering::Relaxed)),
        };
        Self { ground, disk, server, step_ms, version }
    }

    fn start(&self) -> Life {
        Life::start(&self.ground)
    }

    /// The sale as at first, in a memory that has forgotten it.
    async fn restore_empty(&self) {
        outside(&self.server).install(&self.version, 1).await.expect("installed");
        self.open().await;
    }

    async fn open(&self) {
        outside(&self.server).open(&sale_id(), 1).await.expect("opened");
    }

    /// The ledger holds them as pending for `owner`.
    async fn restore(&self, owner: Owner, reservations: &[Reservation]) {
        let stock = outside(&self.server);
        for part in reservations.chunks(BATCH_MAX) {
            stock.restore(&sale_id(), 1, owner, part).await.expect("restored");
        }
    }

    /// The ledger's clock steps back: deadlines that had passed lie ahead again.
    fn step_back(&self, by_ms: i64) {
        self.step_ms.fetch_sub(by_ms, Ordering::Relaxed);
    }
}

/// A client of the ledger outside of every process.
fn outside(server: &SimulatedServer) -> Stock {
    let flag = Flag::Embedded(EmbeddedFlag::new(1));
    Stock::new(
        Ledger::Simulated(server.connect()),
        flag,
        &mut prometheus_client::registry::Registry::default(),
    )
}

/// Ids in an order that is not the log's: passes are drawn at another time than they are used.
fn reservations(count: usize) -> Vec<Reservation> {
    let sale = sale_id();
    let one = |n: u64| Reservation {
        order_id: OrderId::new(BASE_MS - n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 60_000, &sale, n),
        sale: sale.clone(),
        user: format!("user-{n}").parse().expect("a user"),
        quantity: 1,
        metadata: None,
        reserved_at_ms: BASE_MS - DAY_MS,
        sale_version: None,
    };
    (0..count as u64).map(one).collect()
}

#[test]
fn a_start_appends_nothing_that_the_log_holds() {
    in_virtual_time(async {
        let world = World::new(1).await;
        let (all, lacking) = (reservations(MANY + 100), 100);
        let life = world.start();
        life.run_queue(async {
            life.begin_drain().await;
            life.write(&all[lacking..]).await;
        })
        .await;
        world.restore(life.owner, &all).await;
        world.open().await;
        drop(life);
        for start in 1..=3 {
            let life = world.start();
            life.run(async {
                life.await_recovered().await;
                // Whatever is looked at once more was looked at by then.
                sleep(Duration::from_secs(100)).await;
                assert_eq!(life.undrained().await, all.len() as u64, "records after start {start}");
            })
            .await;
        }
    });
}

/// The drain is past them, and the ledger does not know: a dead letter, which nobody may ever see to, and a row whose confirm was lost.
#[test]
fn what_the_drain_is_past_is_not_appended_again() {
    in_virtual_time(async {
        let world = World::new(4).await;
        let all = reservations(2);
        let life = world.start();
        life.run_queue(async {
            life.write(&all).await;
            let mut group = life.topic.group(DRAIN_GROUP, StartAt::Oldest).await.expect("a group");
            let messages = group.pull(2, Duration::from_secs(1)).await.expect("messages");
            group.dead_letter(&messages[0], "refused").await.expect("a letter");
            group.commit(messages[1].position).await.expect("committed");
        })
        .await;
        world.restore(life.owner, &all).await;
        world.open().await;
        drop(life);
        for _ in 0..2 {
            let life = world.start();
            life.run(async {
                life.await_recovered().await;
                sleep(Duration::from_secs(100)).await;
                assert_eq!(life.undrained().await, 0);
            })
            .await;
            // The reconciler finds the row before the log forgets the record.
            let Reservation { order_id, user, quantity, .. } = all[1].clone();
            let settled = [Settlement { order_id, user, quantity }];
            outside(&world.server).confirm(&sale_id(), &settled).await.expect("confirmed");
        }
    });
}

/// What nobody will write is promised to nobody, whether this process has read of it yet or not.
#[test]
fn a_press_again_is_promised_nothing_once_its_order_is_a_dead_letter() {
    in_virtual_time(async {
        let world = World::new(5).await;
        world.open().await;
        let life = world.start();
        let (pass, order_id) = pass(&life);
        life.run(async {
            life.begin_drain().await;
            life.await_recovered().await;
            let first = life.purchases.purchase(attempt(&pass)).await;
            assert!(matches!(first, PurchaseAnswer::Accepted { repeated: false, .. }), "{first:?}");
            let again = life.purchases.purchase(attempt(&pass)).await;
            assert!(matches!(again, PurchaseAnswer::Accepted { repeated: true, .. }), "{again:?}");
            let mut group = life.topic.group(DRAIN_GROUP, StartAt::Oldest).await.expect("a group");
            let message = group.pull(1, Duration::from_secs(1)).await.expect("messages").remove(0);
            group.dead_letter(&message, "refused").await.expect("a letter");
            group.commit(message.position).await.expect("committed");
            sleep(Duration::from_secs(1)).await;
            // The row is asked for, and there is none.
            let again = life.purchases.purchase(attempt(&pass)).await;
            assert_eq!(again, PurchaseAnswer::Settled { order_id, status: None });
        })
        .await;
        drop(life);
        let life = world.start();
        life.run(async {
            life.await_recovered().await;
            let again = life.purchases.purchase(attempt(&pass)).await;
            assert_eq!(again, PurchaseAnswer::Uncertain { order_id });
        })
        .await;
    });
}

/// Each reading of the letters goes through all of them, and these cannot be read.
#[test]
fn dead_letters_are_read_only_for_what_lacks_a_record() {
    in_virtual_time(async {
        let world = World::new(6).await;
        world.open().await;
        let life = world.start();
        let (pass, _) = pass(&life);
        life.run(async {
            life.await_recovered().await;
            let answer = life.purchases.purchase(attempt(&pass)).await;
            assert!(matches!(answer, PurchaseAnswer::Accepted { .. }), "{answer:?}");
            life.write(&reservations(1)).await;
            let mut group = life.topic.group(DRAIN_GROUP, StartAt::Oldest).await.expect("a group");
            let messages = group.pull(2, Duration::from_secs(1)).await.expect("messages");
            group.dead_letter(&messages[1], "refused").await.expect("a letter");
            let letters = |(path, _): &(PathBuf, u64)| path.to_string_lossy().contains("/dead/");
            let (letters, _) = world.disk.files().into_iter().find(letters).expect("a file of letters");
            world.disk.zero_from(&letters, 0);
            // Out of the offer, and on offer again: the sale is looked at whole.
            life.gateway.catalog().replace(Vec::new());
            sleep(Duration::from_secs(2)).await;
            life.gateway.catalog().replace(vec![world.ground.sale.clone()]);
            sleep(Duration::from_secs(2)).await;
            life.await_recovered().await;
        })
        .await;
    });
}

/// The sales of one server come on offer first, and it never answers.
#[test]
fn a_dead_server_of_the_ledger_holds_up_no_sale_of_another() {
    in_virtual_time(async {
        let mut world = World::new(7).await;
        let dead = SimulatedServer::new(7, world.ground.now.clone(), ALWAYS_LOST);
        let placing = |sale: &SaleId| usize::from(sale.as_str() != SALE);
        world.ground.ledger = Ledger::Simulated(SimulatedLedger::of_several(
            &[world.server.clone(), dead.clone()],
            Arc::new(placing),
        ));
        let (all, gone) = (reservations(20), Owner(77));
        world.restore(gone, &all[..10]).await;
        let life = world.start();
        world.restore(life.owner, &all[10..]).await;
        world.open().await;
        let mut offer: Vec<CatalogSale> = Vec::new();
        for n in 0..300 {
            let mut sale = world.ground.sale.clone();
            sale.definition.id = format!("a-{n:03}").parse().expect("a sale");
            offer.push(sale);
        }
        offer.push(world.ground.sale.clone());
        // It told its time once, and then no more.
        dead.set_plan(FaultPlan::default());
        life.gateway.look_at_health().await;
        life.gateway.catalog().replace(offer.clone());
        life.gateway.look_at_health().await;
        dead.set_plan(ALWAYS_LOST);
        life.epoch_gate.look_after(&[gone]);
        life.run(async {
            life.begin_drain().await;
            sleep(Duration::from_secs(20)).await;
            assert_eq!(life.undrained().await, 20, "those of the dead, and its own");
            // What comes later is found in time as well.
            let (pass, order_id) = pass(&life);
            world.server.set_plan(ALWAYS_LOST);
            let answer = life.purchases.purchase(attempt(&pass)).await;
            world.server.set_plan(FaultPlan::default());
            assert_eq!(answer, PurchaseAnswer::Uncertain { order_id });
            sleep(Duration::from_secs(10)).await;
            assert_eq!(life.undrained().await, 21);
        })
        .await;
    });
}

#[test]
fn a_process_that_gave_up_a_call_does_not_leave_for_good_as_long_as_it_may_run() {
    in_virtual_time(async {
        let world = World::new(8).await;
        world.open().await;
        let life = world.start();
        let (pass, order_id) = pass(&life);
        life.run(async {
            life.await_recovered().await;
            assert!(life.gateway.owes_nothing());
            // It never reached the ledger, but nobody here can know that.
            world.server.set_plan(ALWAYS_LATE);
            let answer = life.purchases.purchase(attempt(&pass)).await;
            assert_eq!(answer, PurchaseAnswer::Uncertain { order_id });
            world.server.wipe();
            world.server.set_plan(FaultPlan::default());
            world.restore_empty().await;
            life.await_recovered().await;
            assert!(!life.gateway.owes_nothing(), "a late call would get no record");
            sleep(Duration::from_secs(310)).await;
            assert!(life.gateway.owes_nothing());
        })
        .await;
    });
}

#[test]
fn a_dead_instances_reservations_are_appended_once() {
    in_virtual_time(async {
        let world = World::new(2).await;
        let (all, dead) = (reservations(MANY), Owner(77));
        world.restore(dead, &all).await;
        world.open().await;
        for _ in 0..2 {
            let life = world.start();
            life.epoch_gate.look_after(&[dead]);
            life.run(async {
                life.begin_drain().await;
                for _ in 0..45 {
                    sleep(Duration::from_secs(1)).await;
                    assert!(life.undrained().await <= all.len() as u64, "some were appended twice");
                }
                assert_eq!(life.undrained().await, all.len() as u64);
            })
            .await;
        }
    });
}

// What follows is about one order, taken when nobody expected it any more.

fn pass(life: &Life) -> (String, OrderId) {
    let (sale, user) = (sale_id(), "late".parse().expect("a user"));
    let order_id = OrderId::new(BASE_MS, &sale, 7);
    let pass = Pass { sale, user, order_id, expires_at_ms: BASE_MS + DAY_MS };
    (life.gateway.passes().issue(&pass), order_id)
}

/// Presses while the ledger behaves by `plan`: the answer is lost.
async fn press(world: &World, life: &Life, plan: FaultPlan) {
    let (pass, order_id) = pass(life);
    world.server.set_plan(plan);
    let answer = life.purchases.purchase(attempt(&pass)).await;
    world.server.set_plan(FaultPlan::default());
    assert_eq!(answer, PurchaseAnswer::Uncertain { order_id });
}

/// Waits for so long after the order became pending as it may lack a record; whether it became pending at all.
async fn has_record_in_time(world: &World, life: &Life) -> bool {
    for _ in 0..40 {
        sleep(Duration::from_millis(250)).await;
        world.server.settle();
        if life.held().await.is_empty() {
            continue;
        }
        sleep(RECORD_MAX).await;
        assert_eq!(life.logged().await, life.held().await, "pending for 60 s, and in no log");
        return true;
    }
    false
}

const ALWAYS_LATE: FaultPlan = FaultPlan { refused: 0, answer_lost: 0, late: 1_000, repeated: 0, slow: 0 };
const ALWAYS_LOST: FaultPlan = FaultPlan { answer_lost: 1_000, late: 0, ..ALWAYS_LATE };

#[test]
fn a_batch_that_runs_after_its_owner_has_looked_gets_its_record() {
    let ran_late = (0..30).filter(|seed| {
        in_virtual_time(async {
            let world = World::new(*seed).await;
            world.open().await;
            let life = world.start();
            life.run(async {
                life.await_recovered().await;
                press(&world, &life, ALWAYS_LATE).await;
                life.await_recovered().await;
                if !life.held().await.is_empty() {
                    return false;
                }
                // Its deadline lies ahead again, by less than what the ledger takes for a clock that is wrong.
                world.step_back(20_000);
                has_record_in_time(&world, &life).await
            })
            .await
        })
    });
    assert!(ran_late.count() >= 5, "the batch hardly ever ran that late");
}

#[test]
fn a_step_back_of_the_ledgers_clock_puts_no_look_off() {
    in_virtual_time(async {
        let world = World::new(3).await;
        world.open().await;
        let life = world.start();
        life.run(async {
            life.await_recovered().await;
            press(&world, &life, ALWAYS_LOST).await;
            world.step_back(3_600_000);
            assert!(has_record_in_time(&world, &life).await, "the order was taken");
        })
        .await;
    });
}

#[test]
fn a_batch_of_an_earlier_life_that_runs_late_gets_its_record() {
    let ran_late = (0..30).filter(|seed| {
        in_virtual_time(async {
            let world = World::new(*seed).await;
            world.open().await;
            let life = world.start();
            life.run(async {
                life.await_recovered().await;
                press(&world, &life, ALWAYS_LATE).await;
            })
            .await;
            drop(life);
            world.disk.crash();
            let life = world.start();
            life.run(async {
                life.await_recovered().await;
                if !life.held().await.is_empty() {
                    return false;
                }
                world.step_back(20_000);
                has_record_in_time(&world, &life).await
            })
            .await
        })
    });
    assert!(ran_late.count() >= 5, "the batch hardly ever ran that late");
}
