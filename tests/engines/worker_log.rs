//! A worker's own log on real processes: whatever happens to it, the worker starts and drains, and no rebuild waits.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use testbed::{Client, Deployment, DeploymentOptions, Instance};

use crate::place::{
    deploy, drained_by, engines_toml, figures, pass, press, sale_toml, wait_for, wait_for_status,
};

/// What a worker says of its own log: (ready, trouble, what its notes say).
fn own_log(worker: &Instance) -> (bool, Value, String) {
    let ready: Value = serde_json::from_str(&worker.readiness()).unwrap_or_default();
    (ready["ready"] == true, ready["log"]["trouble"].clone(), ready["notes"].to_string())
}

fn takes_records((ready, trouble, _): &(bool, Value, String)) -> bool {
    *ready && trouble.is_null()
}

fn metric(worker: &Instance) -> String {
    let metrics =
        Client::new(worker.admin_port(), Duration::from_secs(20)).request("GET", "/metrics", &[], "");
    let metrics = metrics.map(|answer| answer.body).unwrap_or_default();
    let found = metrics.lines().find(|line| line.starts_with("floodgate_worker_log_unusable "));
    found.unwrap_or_default().to_owned()
}

/// Buys one unit and sees it become a row.
fn buy(gateway: &Instance, user: &str) {
    let (_, pass, order) = pass(gateway, "shop", user);
    let bought = press(gateway, "shop", &pass);
    assert_eq!(bought.status, 202, "{bought:?}");
    wait_for_status(gateway, &order, &pass, "unpaid");
}

fn instances(deployment: &Deployment) -> Vec<Value> {
    let listed = deployment.must(&["ledger", "instances", "--json"]).expect("the registry");
    serde_json::from_str(&listed).expect("JSON")
}

#[test]
fn of_two_workers_with_one_directory_the_second_says_so_and_drains() {
    let (_, engines) = engines_toml();
    let options = DeploymentOptions {
        program: env!("CARGO_BIN_EXE_floodgate").into(),
        gateways: 2,
        workers: 2,
        toml: engines + &sale_toml("shop", 10),
    };
    let deployment = Deployment::prepare(&options).expect("a configuration");
    deployment.must(&["migrate", "--apply"]).expect("tables");
    let [first, second] = deployment.workers() else { panic!("two workers") };
    let shared = deployment.config_file().with_file_name("shared").display().to_string();
    for worker in [first, second] {
        worker.set_environment("FLOODGATE_QUEUE__WORKER_DIRECTORY", &shared);
    }
    let [a, b] = deployment.gateways() else { panic!("two gateways") };
    for process in [a, b, first] {
        process.start().expect("it starts");
    }
    wait_for("a log", || own_log(first), takes_records);
    second.start().expect("a taken directory is no reason not to start");
    let said = |(ready, trouble, notes): &(bool, Value, String)| {
        let trouble = trouble.as_str().unwrap_or_default();
        *ready && trouble.contains("queue.worker_directory of its own") && notes.contains(trouble)
    };
    wait_for("a word on the taken directory", || own_log(second), said);
    assert_eq!(
        (metric(first).as_str(), metric(second).as_str()),
        ("floodgate_worker_log_unusable 0", "floodgate_worker_log_unusable 1")
    );
    buy(a, "ann");

    // The first one dies: the second drains everything, and in time has the log as well.
    first.kill().expect("killed");
    let all = || drained_by(second).len();
    wait_for("every drain", all, |drains| *drains == 2);
    buy(b, "bea");
    wait_for("the log taken over", || own_log(second), takes_records);
    let workers = instances(&deployment);
    let workers: Vec<_> = workers.iter().filter(|row| row["holds_promises"] == false).collect();
    assert_eq!(workers.len(), 1, "one log, one row: {workers:?}");
    deployment.stop().expect("a clean end");
    // A worker's log stays as long as deadlines of unpaid orders wait in it.
    let left = instances(&deployment);
    assert!(left.iter().all(|row| row["holds_promises"] == false && row["backlog"] != 0), "{left:?}");
}

#[test]
fn a_log_that_cannot_be_opened_stops_neither_start_nor_drain() {
    let (_, engines) = engines_toml();
    let options = DeploymentOptions {
        program: env!("CARGO_BIN_EXE_floodgate").into(),
        gateways: 1,
        workers: 1,
        toml: engines + &sale_toml("shop", 10),
    };
    let deployment = Deployment::prepare(&options).expect("a configuration");
    deployment.must(&["migrate", "--apply"]).expect("tables");
    let (gateway, worker) = (&deployment.gateways()[0], &deployment.workers()[0]);
    let directory = deployment.config_file().with_file_name("own");
    worker.set_environment("FLOODGATE_QUEUE__WORKER_DIRECTORY", &directory.display().to_string());
    // Something else's file in its place, then something else's directory.
    std::fs::write(&directory, "not a queue").expect("writable");
    gateway.start().expect("it starts");
    worker.start().expect("a log that cannot be opened is no reason not to start");
    let names_the_key = |(ready, trouble, _): &(bool, Value, String)| {
        *ready && trouble.as_str().is_some_and(|trouble| trouble.contains("queue.worker_directory"))
    };
    wait_for("a word on the file", || own_log(worker), names_the_key);
    buy(gateway, "ann");
    std::fs::remove_file(&directory).expect("removable");
    std::fs::create_dir(&directory).expect("a directory");
    std::fs::write(directory.join("letters.txt"), "not a queue").expect("writable");
    let names_the_file = |(ready, trouble, _): &(bool, Value, String)| {
        *ready && trouble.as_str().is_some_and(|trouble| trouble.contains("letters.txt"))
    };
    wait_for("a word on the directory", || own_log(worker), names_the_file);
    buy(gateway, "bea");
    std::fs::remove_file(directory.join("letters.txt")).expect("removable");
    wait_for("a log", || own_log(worker), takes_records);

    // Taken away under the running worker: it says so, and makes another.
    let identity = directory.join("floodgate-queue");
    std::fs::remove_dir_all(&directory).expect("removable");
    wait_for(
        "a new log",
        || (own_log(worker), identity.is_file()),
        |(said, there)| takes_records(said) && *there,
    );
    buy(gateway, "cid");
    let log = worker.log();
    let lines = log.lines().filter(|line| line.contains("this worker's own log takes nothing")).count();
    assert!((2..=6).contains(&lines), "one line a change, not one a try: {log}");
}

#[test]
fn a_dead_workers_log_out_of_reach_blocks_nothing() {
    let deployment = deploy(1, 2, "shop", 10);
    let [gateway] = deployment.gateways() else { panic!("one gateway") };
    let [dead, lives] = deployment.workers() else { panic!("two workers") };
    for worker in [dead, lives] {
        wait_for("a log", || own_log(worker), takes_records);
    }
    buy(gateway, "ann");
    let of_workers = || {
        let rows = instances(&deployment).into_iter().filter(|row| row["holds_promises"] == false);
        rows.collect::<Vec<Value>>()
    };
    assert_eq!(of_workers().len(), 2, "{:?}", of_workers());
    let home_of_dead = "worker-1";
    dead.kill().expect("killed");
    let directory = deployment.config_file().with_file_name(home_of_dead).join("queue");
    std::fs::remove_dir_all(&directory).expect("its disk is gone");

    // A rebuild goes through without it.
    let epoch = || figures(&deployment, gateway, "shop")["epoch"].as_u64().unwrap_or(0);
    let before = epoch();
    wait_for("rebuild", || deployment.must(&["ledger", "rebuild"]), Result::is_ok).expect("begun");
    wait_for("a new life", epoch, |epoch| *epoch > before);
    buy(gateway, "bea");
    wait_for("rest", || figures(&deployment, gateway, "shop"), |figures| figures["at_rest"] == true);
    let rows = of_workers();
    assert!(rows.iter().all(|row| row["awaited"] == false), "{rows:?}");
    let lost = rows.iter().find(|row| names(row, &directory)).expect("its row");
    assert!(lost["trouble"].as_str().is_some_and(|trouble| trouble.contains("out of reach")), "{lost}");
    let audit = deployment.floodgate(&["audit"]).expect("it runs");
    let said = String::from_utf8_lossy(&audit.stderr);
    assert!(
        audit.status.success() && !said.contains("not audited"),
        "a log without promises is no gap: {said}"
    );

    // The operator forgets it: no rebuild for that.
    let id = lost["instance"].as_str().expect("an id").to_owned();
    let before = epoch();
    let leave_out = || deployment.must(&["ledger", "rebuild", "--without", &id]);
    let said = wait_for("its end", leave_out, Result::is_ok).expect("done");
    assert!(said.contains('0'), "nothing is at risk: {said}");
    assert_eq!((epoch(), of_workers().len()), (before, 1));
    buy(gateway, "cid");
}

/// Whether a registry's row is of the log in this directory.
fn names(row: &Value, directory: &Path) -> bool {
    row["place"].as_str().is_some_and(|place| place.ends_with(&directory.display().to_string()))
}
