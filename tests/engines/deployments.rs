//! Two orders databases that name the same place in one Redis.

use testbed::{Deployment, DeploymentOptions, Instance};

use crate::place::{
    Alone, ENGINES, engines_toml, figures, pass, press, sale_toml, wait_for, wait_for_status,
};

fn prepare(toml: &str) -> Deployment {
    let options = DeploymentOptions {
        program: env!("CARGO_BIN_EXE_floodgate").into(),
        gateways: 1,
        workers: 1,
        toml: toml.to_owned(),
    };
    let deployment = Deployment::prepare(&options).expect("a configuration");
    deployment.must(&["migrate", "--apply"]).expect("tables");
    deployment
}

fn sells(deployment: &Deployment, gateway: &Instance, user: &str, remaining: i64) {
    let (_, pass, order) = pass(gateway, "shop", user);
    assert_eq!(press(gateway, "shop", &pass).status, 202);
    wait_for_status(gateway, &order, &pass, "unpaid");
    let rest = |figures: &serde_json::Value| figures["at_rest"] == true && figures["remaining"] == remaining;
    wait_for("rest", || figures(deployment, gateway, "shop"), rest);
}

#[test]
fn a_place_in_redis_belongs_to_one_orders_database() {
    let (name, engines) = engines_toml();
    let toml = engines + &sale_toml("shop", 10);
    // The same configuration, but for the database.
    let other = format!("{name}x");
    let url = ENGINES.maria.url(&other).expect("a database");
    let anew = toml.lines().map(|line| match line.starts_with("database_url") {
        true => format!("database_url = \"{url}\"\n"),
        false => format!("{line}\n"),
    });
    let (ours, theirs) = (prepare(&toml), prepare(&anew.collect::<String>()));
    let (a, b) = (&ours.gateways()[0], &theirs.gateways()[0]);

    let first = Alone::start(&ours, a);
    sells(&ours, a, "ann", 9);
    let epoch = figures(&ours, a, "shop")["epoch"].clone();
    for _ in 0..2 {
        let said = Alone::fails(&theirs, b);
        for word in ["shop", "another orders database", "stock.key_prefix", "floodgate ledger adopt"] {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    }
    sells(&ours, a, "bea", 8);
    assert_eq!(figures(&ours, a, "shop")["epoch"], epoch, "nothing was begun against it");
    ours.must(&["audit"]).expect("all adds up");
    let audited = theirs.floodgate(&["audit"]).expect("it runs");
    let said = String::from_utf8_lossy(&audited.stdout).into_owned();
    assert!(!audited.status.success() && said.contains("another orders database"), "{said}");

    // Taking over is somebody's decision, and not before the other one is dead.
    let refused = theirs.must(&["ledger", "adopt"]).expect_err("it lives").to_string();
    assert!(refused.contains("is alive on this ledger"), "{refused}");
    first.stop();
    let adopted = theirs.must(&["ledger", "adopt"]).expect("it is dead");
    assert!(adopted.contains("shop"), "{adopted}");
    let _second = Alone::start(&theirs, b);
    sells(&theirs, b, "cid", 9);
    let said = Alone::fails(&ours, a);
    assert!(said.contains("another orders database"), "{said}");
}

/// A worker whose orders database is not the log's own takes nothing from it and says so; the right one then finds all of it.
#[test]
fn a_worker_of_another_orders_database_takes_nothing_from_a_log() {
    let (_, engines) = engines_toml();
    let (other, others) = engines_toml();
    let (ours, theirs) =
        (prepare(&(engines + &sale_toml("shop", 10))), prepare(&(others + &sale_toml("shop", 10))));
    let gateway = &ours.gateways()[0];
    gateway.start().expect("a gateway");
    let (_, pass, order) = pass(gateway, "shop", "ann");
    assert_eq!(press(gateway, "shop", &pass).status, 202);

    let log = |deployment: &Deployment| {
        deployment.gateways()[0].log_directory().map(std::path::Path::to_owned).expect("a log")
    };
    let theirs_log = log(&theirs);
    std::fs::create_dir_all(theirs_log.parent().expect("a directory")).expect("writable");
    std::os::unix::fs::symlink(log(&ours), &theirs_log).expect("a link");
    let wrong = &theirs.workers()[0];
    wrong.spawn().expect("it starts");
    let refused = |readiness: &String| readiness.contains("belongs to deployment");
    wait_for("a refusal", || wrong.readiness(), refused);
    assert!(!wrong.is_ready());
    let rows = ENGINES.maria.sql(&other, "SELECT count(*) FROM floodgate_orders").expect("a figure");
    assert_eq!(rows.trim(), "0", "nothing of it is in the other database");

    ours.workers()[0].start().expect("a worker");
    wait_for_status(gateway, &order, &pass, "unpaid");
    assert!(!wrong.is_ready());
}
