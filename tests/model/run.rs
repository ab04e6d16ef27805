//! One run: a world, its machines, buyers and operator under faults; then peace, a crowd that buys everything, and the checks.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use order_worker::membership::operator;
use stock::Owner;
use tokio::time::sleep;

use crate::buyers::Buyer;
use crate::census::{ELSEWHERE, Event, MOVED, REST_WITHOUT_WORKER_LOG, WITHOUT_LOG};
use crate::checks;
use crate::claims::Claims;
use crate::machine::{Fate, Machine};
use crate::operator::{Operator, promised_letters};
use crate::process::{PASS_TTL_MS, journal};
use crate::random::Random;
use crate::strikes::{Counts, Strikes};
use crate::world::World;

/// What one run came to, if every invariant held.
pub(crate) struct Report {
    pub(crate) trace_hash: u64,
    pub(crate) events: u64,
    pub(crate) counts: Counts,
    /// Processes that ended.
    pub(crate) ends: u64,
    pub(crate) ledger_faults: u64,
    pub(crate) seen: BTreeSet<Event>,
}

/// Runs one seed. Panics where an invariant does not hold.
pub(crate) fn run(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(run_in_virtual_time(seed))
}

async fn run_in_virtual_time(seed: u64) -> Report {
    let random = Random::new(seed);
    let strikes = Strikes::install(&random);
    let world = Rc::new(World::draw(&random));
    strikes.forget_by({
        let world = world.clone();
        move || world.forget_at_once()
    });
    world.trace.say(format_args!("seed {seed}: {:?}, {:?}", world.mode, world.sale));
    let machines: Rc<Vec<Machine>> =
        Rc::new((0..world.machines()).map(|instance| Machine::new(instance, world.clone())).collect());
    let claims = Rc::new(Claims::default());

    let story = tell(&random, &strikes, &world, &machines, &claims);
    let running = async {
        let mut running: FuturesUnordered<_> = machines.iter().map(Machine::run).collect();
        running.next().await
    };
    tokio::select! {
        biased;
        _ = running => unreachable!("machines run for ever"),
        () = story => {}
    }
    let counts = strikes.counts();
    Report {
        trace_hash: world.trace.hash(),
        events: world.trace.events(),
        seen: world.census.close(&counts, &world.server.happened()),
        counts,
        ends: machines.iter().map(|machine| *machine.crashes.borrow()).sum(),
        ledger_faults: world.ledger_faults(),
    }
}

async fn tell(
    random: &Random,
    strikes: &Strikes,
    world: &Rc<World>,
    machines: &Rc<Vec<Machine>>,
    claims: &Rc<Claims>,
) {
    let buyer = |name: String| Buyer {
        user: name.parse().expect("a user id"),
        sale: world.sale.id.clone(),
        world: world.clone(),
        machines: machines.clone(),
        claims: claims.clone(),
        random: random.fork(),
    };
    let operator = Operator { world: world.clone(), machines: machines.clone(), random: random.fork() };

    // 1. Faults.
    strikes.arm(true);
    world.set_faults(true);
    let crowd: Vec<Buyer> = (0..random.between(2, 20)).map(|n| buyer(format!("buyer-{n}"))).collect();
    let rounds = random.between(1, 5);
    let mut visits: FuturesUnordered<_> = crowd.iter().map(|buyer| buyer.visit(rounds)).collect();
    let blows = async {
        for _ in 0..random.below(4) {
            sleep(Duration::from_millis(random.below(10_000))).await;
            strike(random, world, random.pick(machines), machines, claims);
        }
    };
    let forgetting = async {
        for _ in 0..random.below(3) {
            sleep(Duration::from_millis(random.below(12_000))).await;
            world.forget();
            // Once more, while it is rebuilt or soon after.
            if random.chance(300) {
                sleep(Duration::from_millis(random.below(*random.pick(&[50, 1_000, 4_000])))).await;
                world.forget();
            }
        }
    };
    let stepping = async {
        for _ in 0..random.below(3) {
            sleep(Duration::from_millis(random.below(12_000))).await;
            world.step_a_clock();
        }
    };
    let tasks = random.below(4);
    let visiting = async { while visits.next().await.is_some() {} };
    tokio::join!(visiting, operator.work(tasks), blows, forgetting, stepping);

    // What was lost is looked for seconds later; what is over is settled a minute later: faults go on meanwhile.
    let aftermath_ms = *random.pick(&[0, 0, 4_000, 8_000, 70_000]);
    sleep(Duration::from_millis(random.below(aftermath_ms + 1))).await;

    // 2. Peace.
    strikes.arm(false);
    world.set_faults(false);
    let could_forget = world.forgetful.replace(false);
    let is_elsewhere = |machine: &Machine| machine.inside().is_some_and(|inside| inside.stock.is_elsewhere());
    if machines.iter().any(is_elsewhere) {
        world.census.saw(ELSEWHERE);
    }
    if world.has_moved() {
        world.census.saw(MOVED);
    }
    for machine in world.end_straying() {
        machines[machine].kill();
    }
    world.server.flush_after(None);
    world.trace.say(format_args!("peace"));
    checks::check_openings(world, claims);
    for machine in machines.iter() {
        machine.start();
    }
    if could_forget {
        give_up_lost_logs(world, machines).await;
    } else if world.is_waiting_for_lost_log(machines).await {
        // Nothing was forgotten, but an install's end was never known.
        for machine in machines.iter().filter(|machine| world.is_out_of_reach(machine)) {
            claims.log_lost(machine.instance);
        }
        give_up_lost_logs(world, machines).await;
    }
    operator.resume(&world.sale.id).await;
    put_letters_back(world, machines).await;
    checks::wait_for_rest(world, machines).await;
    check_all(world, machines, claims, false).await;

    // 3. A crowd that buys everything.
    // This crowd pays nothing: in a world that closes unpaid orders its units would come back.
    let sold_out = random.chance(500) && !world.pays;
    if sold_out {
        if world.sale.passes_per_unit > 0 {
            // Passes that nobody used keep others out until they expire.
            sleep(Duration::from_millis(PASS_TTL_MS + 2_000)).await;
        }
        let crowd: Vec<Buyer> = (0..40).map(|n| buyer(format!("late-{n}"))).collect();
        let mut visits: FuturesUnordered<_> = crowd.iter().map(Buyer::buy_out).collect();
        while visits.next().await.is_some() {}
        checks::wait_for_rest(world, machines).await;
        check_all(world, machines, claims, true).await;
    }

    // 4. All of it must be found again by another life.
    for machine in machines.iter() {
        machine.kill();
    }
    sleep(Duration::from_millis(1)).await;
    checks::wait_for_rest(world, machines).await;
    check_all(world, machines, claims, sold_out).await;
}

/// Something happens to a machine.
fn strike(random: &Random, world: &World, machine: &Machine, machines: &[Machine], claims: &Claims) {
    // One is always left to come back.
    let others_last = machines.iter().any(|other| other.instance != machine.instance && !other.is_gone());
    if machine.is_gone() {
        return;
    }
    match random.below(11) {
        0..=2 => machine.kill(),
        3..=4 => machine.stop(),
        5..=6 => {
            let duration = Duration::from_millis(*random.pick(&[300, 2_000, 7_000, 13_000]));
            world.trace.say(format_args!("machine {} freezes for {duration:?}", machine.instance));
            machine.freeze(duration);
        }
        7 => machine.kill_for(Fate::Down),
        10 => {
            world.stray(machine.instance);
            machine.kill();
        }
        8 if others_last && world.log_stays_in_reach() => {
            world.trace.say(format_args!("machine {} is gone for good", machine.instance));
            machine.kill_for(Fate::Gone);
        }
        9 if others_last => {
            if world.forgetful.get() {
                claims.log_lost(machine.instance);
            }
            machine.kill_for(Fate::EmptyDisk);
        }
        _ => machine.kill(),
    }
}

/// Logs whose disks are gone block a rebuild: the operator goes on without them.
async fn give_up_lost_logs(world: &World, machines: &[Machine]) {
    for _ in 0..600 {
        sleep(Duration::from_millis(100)).await;
        let is_up = |machine: &Machine| machine.is_gone() || world.log_of(machine.instance).is_some();
        if !machines.iter().all(is_up) {
            continue;
        }
        let database = world.open_database();
        let instances = database.instances().await.expect("the registry");
        let in_reach = |owner: Owner| {
            let holds_it = |machine: &&Machine| world.log_of(machine.instance) == Some(owner);
            let holder = machines.iter().find(holds_it);
            holder.is_some_and(|machine| !machine.is_gone() || world.neighbours_in_reach)
        };
        // Workers' logs are never waited for: if one were, nobody here would help.
        let promising = instances.into_iter().filter(order_worker::database::Instance::takes_part);
        let lost = promising.map(|instance| instance.owner).filter(|owner| !in_reach(*owner));
        let lost: Vec<Owner> = lost.collect();
        if lost.is_empty() {
            return;
        }
        world.census.saw(WITHOUT_LOG);
        for owner in lost {
            let forgotten =
                operator::forget_instance(&database, None, owner, &journal().operator("admin")).await;
            world.trace.say(format_args!("the operator goes on without {owner}: {forgotten:?}"));
        }
    }
    panic!("the operator could not go on without the lost logs");
}

/// What the database refused is put back into its log once it no longer does.
async fn put_letters_back(world: &World, machines: &[Machine]) {
    if !world.cursed.get() {
        return;
    }
    // What a fault has held up between the two refusals that make a dead letter becomes one.
    sleep(Duration::from_secs(5)).await;
    world.lift_curse();
    for machine in machines.iter().filter(|machine| !machine.is_gone()) {
        let inside = loop {
            match machine.inside() {
                Some(inside) => break inside,
                None => sleep(Duration::from_millis(100)).await,
            }
        };
        for letter in promised_letters(&inside.topic).await.expect("the letters") {
            let replayed = queue::operator::replay_dead_letter(&inside.topic, &letter).await;
            world.trace.say(format_args!("a dead letter is put back: {replayed:?}"));
        }
    }
}

async fn check_all(world: &World, machines: &[Machine], claims: &Claims, sold_out: bool) {
    checks::check_openings(world, claims);
    for machine in machines {
        if machine.is_gone() {
            continue;
        }
        let inside = machine.inside().expect("at rest every process runs");
        checks::check(world, &inside, claims, sold_out).await;
        if inside.worker_log.report().trouble.is_some() {
            world.census.saw(REST_WITHOUT_WORKER_LOG);
        }
    }
    world.trace.say(format_args!("checked"));
}
