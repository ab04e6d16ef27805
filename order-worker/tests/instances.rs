//! Who may be the one embedded ledger over a database that several machines share: a second one is refused, and leaves everything as it
//! was.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use order_worker::database::{Beat, LogBeat, Work};
use order_worker::membership::operator::{AtRisk, forget_instance};
use order_worker::{DRAIN_GROUP, Instance, InstanceError, InstanceParts, RebuildError};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, NewRecord, Queue, StartAt};
use stock::{DeploymentId, Owner};
use world::{World, author};

/// Opens the log in a directory as a process whose ledger is in its memory.
async fn open(world: &World, directory: &Path) -> Result<Instance, InstanceError> {
    let parts = InstanceParts {
        database: world.database.clone(),
        deployment: world.database.deployment(DeploymentId(1)).await.unwrap(),
        database_shown: "mysql://orders".into(),
        place: directory.display().to_string(),
        outliving: false,
        shared: true,
    };
    let mut options = DiskOptions::new(directory.join("queue"), world.now());
    options.segment_bytes = 256 << 10;
    options.tied = true;
    Instance::open(parts, None, || Queue::open_disk(options.clone(), &mut Registry::default())).await
}

/// (log, whether it is left out), in the order of their ids.
async fn registered(world: &World) -> Vec<(Owner, bool)> {
    let rows = world.database.instances().await.unwrap();
    rows.into_iter().map(|row| (row.owner, row.left_out)).collect()
}

fn is_refused(opened: Result<Instance, InstanceError>) -> bool {
    match opened {
        Err(InstanceError::SecondLedger { .. }) => true,
        Err(error) => panic!("{error}"),
        Ok(_) => false,
    }
}

#[tokio::test]
async fn a_refused_start_takes_nothing_back_of_what_an_operator_left_out() {
    let world = World::new();
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let first = open(&world, one.path()).await.unwrap();
    let log = first.owner;
    first.leave(false).await;
    forget_instance(&world.database, None, log, &author()).await.unwrap();
    let second = open(&world, two.path()).await.unwrap();

    let before = registered(&world).await;
    assert!(is_refused(open(&world, one.path()).await));
    assert_eq!(registered(&world).await, before, "a refused start changed the registry");
    // The one that sells is killed and comes back; nobody stands in its way.
    second.leave(false).await;
    let second = open(&world, two.path()).await.expect("its own next start");
    second.leave(false).await;
    assert!(is_refused(open(&world, one.path()).await));
}

#[tokio::test]
async fn of_two_that_start_at_once_the_refused_one_is_left_out_again() {
    let world = World::new();
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for is_known in [true, false] {
        let directory = if is_known { one.path() } else { two.path() };
        if is_known {
            let first = open(&world, directory).await.unwrap();
            let log = first.owner;
            first.leave(false).await;
            forget_instance(&world.database, None, log, &author()).await.unwrap();
        }
        let before = registered(&world).await;
        // Another one registers after the first look and before the second.
        let (connection, is_late) = (world.connection.clone(), Cell::new(true));
        queue::failpoint::set_hook(Some(Box::new(move |hit| {
            if hit == "tie.registered" && is_late.replace(false) {
                let register = "INSERT INTO floodgate_instances (instance_id, place, registered_at)
                                VALUES ('00000000000000ff', 'elsewhere', '2026-11-11T11:59:00.000Z')";
                connection.with(|connection| connection.execute(register, []).unwrap());
            }
            false
        })));
        let opened = open(&world, directory).await;
        queue::failpoint::set_hook(None);
        assert!(is_refused(opened));
        world.database.deregister_instance(0xff).await.unwrap();
        assert_eq!(registered(&world).await, before, "known: {is_known}");
    }
}

#[tokio::test]
async fn an_embedded_instance_that_runs_is_not_left_out() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let runs = open(&world, directory.path()).await.unwrap();
    // As its drain says every second.
    let logs = vec![LogBeat { log: runs.owner, holding_ppm: 0, takes_over: None }];
    let beat = Beat { work: Work::Drain, life: 1, ttl_ms: 5_000, logs };
    world.database.renew_shares(beat).await.unwrap();
    let refused = forget_instance(&world.database, None, runs.owner, &author()).await;
    assert!(matches!(refused, Err(RebuildError::Drains(log)) if log == runs.owner), "{refused:?}");
    assert_eq!(registered(&world).await, [(runs.owner, false)]);
    // It is killed.
    world.advance(5_000);
    let risk = forget_instance(&world.database, None, runs.owner, &author()).await.unwrap();
    assert_eq!(risk, AtRisk { orders: None, units: None });
    runs.leave(false).await;
}

#[tokio::test]
async fn a_log_whose_dead_letter_is_a_promise_without_a_row_stays_registered() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let sale = world.open("s", 10, 10).await;
    let promised = world.reserve(&sale, 1, "u", 1).await.unwrap();
    let instance = open(&world, directory.path()).await.unwrap();
    let log = instance.owner;
    for payload in [promised.encode().unwrap(), b"no order".to_vec()] {
        let permit = instance.orders.try_permit(payload.len()).unwrap();
        let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload: &payload };
        instance.orders.append(permit, record).await.unwrap();
    }
    let mut group = instance.orders.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap();
    let mut letters = 0;
    while letters < 2 {
        for message in group.pull(10, Duration::from_secs(1)).await.unwrap() {
            group.dead_letter(&message, "the database says no").await.unwrap();
            letters += 1;
        }
    }
    drop(group);
    instance.leave(true).await;
    assert_eq!(registered(&world).await, [(log, false)], "nobody would know of the promise");

    // It is written.
    world.database.settle(vec![promised]).await.unwrap();
    let instance = open(&world, directory.path()).await.unwrap();
    instance.leave(true).await;
    assert_eq!(registered(&world).await, [], "what is no order owes nothing");
}
