//! Gateways and workers that share their engines.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use testbed::Deployment;

use crate::place::{
    Alone, call, deploy, drained_by, engines_toml, figures, json, pass, press, sale_toml, wait_for,
    wait_for_status,
};

fn at_rest(deployment: &Deployment, sale: &str, remaining: i64) {
    for gateway in deployment.gateways() {
        wait_for(
            "rest",
            || figures(deployment, gateway, sale),
            |figures| figures["at_rest"] == true && figures["remaining"] == remaining,
        );
    }
}

#[test]
fn two_gateways_and_two_workers_are_one_shop() {
    let deployment = deploy(2, 2, "shop", 3);
    let [a, b] = deployment.gateways() else { panic!("two gateways") };

    // A pass of one gateway counts at the other, and names the same order at both.
    let (bearer, ann, order) = pass(a, "shop", "ann");
    let bought = press(b, "shop", &ann);
    assert_eq!((bought.status, bought.body.contains(&order)), (202, true), "{bought:?}");
    let again = press(a, "shop", &ann);
    assert_eq!((again.status, again.body.contains(&order)), (202, true), "{again:?}");
    for gateway in [a, b] {
        wait_for_status(gateway, &order, &ann, "unpaid");
    }
    at_rest(&deployment, "shop", 2);

    // Units that came back can be bought at the other one.
    let cancel =
        || call(a, "POST", &format!("/api/v1/orders/{order}/cancel"), &[("Authorization", &bearer)], "{}");
    wait_for("cancel", cancel, |answer| answer.status == 200);
    at_rest(&deployment, "shop", 3);
    let used = press(b, "shop", &ann);
    assert_eq!((used.status, used.body.contains("pass-used")), (409, true), "{used:?}");

    // The last unit sells both out; a restock lifts the flag at both.
    for (gateway, user) in [(a, "bea"), (b, "cid"), (a, "dan")] {
        let (_, pass, order) = pass(gateway, "shop", user);
        assert_eq!(press(gateway, "shop", &pass).status, 202);
        wait_for_status(b, &order, &pass, "unpaid");
    }
    let login = call(b, "POST", "/api/v1/demo/login", &[], "{\"user\":\"eve\"}");
    let eve = format!("Bearer {}", json(&login)["token"].as_str().expect("a token"));
    let ask = |gateway| call(gateway, "POST", "/api/v1/sales/shop/passes", &[("Authorization", &eve)], "{}");
    for gateway in [a, b] {
        wait_for(
            "sold out",
            || ask(gateway),
            |answer| answer.status == 410 && answer.body.contains("sold-out"),
        );
    }
    let restock = || deployment.must(&["sales", "restock", "shop", "1", "--restock-id", "more"]);
    wait_for("restock", restock, Result::is_ok).expect("restocked");
    for gateway in [a, b] {
        wait_for("a lifted flag", || ask(gateway), |answer| answer.status == 201);
    }
    let pass_of_eve = json(&ask(b))["pass"].as_str().expect("a pass").to_owned();
    assert_eq!(press(b, "shop", &pass_of_eve).status, 202);
    at_rest(&deployment, "shop", 0);

    for (command, word) in [
        (&["sales", "list"][..], "shop"),
        (&["sales", "show", "shop", "--json"], "\"at_rest\": true"),
        (&["orders", "list", "shop"], "unpaid"),
        (&["orders", "show", &order], "closed"),
        (&["audit"], "shop"),
        (&["audit", "--json"], "\"conserved\": true"),
        (&["ledger", "show"], "shop"),
        (&["ledger", "instances"], "gateway-1"),
        (&["stock", "deploy-scripts"], "reserve"),
        (&["queue", "lag"], "floodgate-orders"),
        (&["migrate", "--check"], "up to date"),
    ] {
        let said = deployment.must(command).expect("a good exit");
        assert!(said.contains(word), "{command:?}: {word:?} is not in {said}");
    }
    deployment.stop().expect("a clean end");
    let left = deployment.must(&["ledger", "instances", "--json"]).expect("the registry");
    // The workers' logs stay as long as deadlines of unpaid orders wait in them.
    let left: Vec<Value> = serde_json::from_str(&left).expect("rows");
    assert!(left.iter().all(|row| row["holds_promises"] == false && row["backlog"] != 0), "{left:?}");
}

#[test]
fn an_audit_of_a_shop_that_sells_does_not_cry_wolf() {
    let deployment = deploy(1, 1, "shop", 10_000);
    let [a] = deployment.gateways() else { panic!("one gateway") };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Slowly: between two purchases nothing is on its way, and an audit that begins then meets the next one.
            for n in 0..9_999 {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (_, pass, _) = pass(a, "shop", &format!("user-{n}"));
                // A machine that is busy may refuse one.
                let _ = press(a, "shop", &pass);
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        let audits: Vec<_> = (0..15).map(|_| deployment.floodgate(&["audit"])).collect();
        is_over.store(true, Ordering::Relaxed);
        for audit in audits {
            let audit = audit.expect("the binary starts");
            let said = String::from_utf8_lossy(&audit.stdout);
            assert!(!String::from_utf8_lossy(&audit.stderr).contains("do not add up"), "{said}");
        }
    });
}

#[test]
fn the_dead_are_replaced() {
    let deployment = deploy(2, 2, "shop", 100);
    let [a, b] = deployment.gateways() else { panic!("two gateways") };
    let log_of_a = a.log_directory().expect("a log").display().to_string();
    let drainer = || deployment.workers().iter().position(|worker| drained_by(worker).contains(&log_of_a));
    let buy = |gateway, user: &str| {
        let (_, pass, order) = pass(gateway, "shop", user);
        let bought = press(gateway, "shop", &pass);
        assert_eq!(bought.status, 202, "{bought:?}");
        (pass, order)
    };

    // A worker is killed: the other takes over its log.
    let first = wait_for("a drain", drainer, Option::is_some).expect("one of them");
    deployment.workers()[first].kill().expect("killed");
    let (pass_of_ann, order_of_ann) = buy(a, "ann");
    wait_for_status(a, &order_of_ann, &pass_of_ann, "unpaid");
    wait_for("a drain by the other one", drainer, |drainer| *drainer == Some(1 - first));
    deployment.workers()[first].start().expect("back, standing by");
    assert!(!drained_by(&deployment.workers()[first]).contains(&log_of_a), "one process drains a log");

    // A gateway is killed: the other sells on; what was promised is drained without it.
    let (pass_of_bea, order_of_bea) = buy(a, "bea");
    a.kill().expect("killed");
    wait_for_status(b, &order_of_bea, &pass_of_bea, "unpaid");
    buy(b, "cid");
    a.start().expect("back on the same log");
    wait_for_status(a, &order_of_bea, &pass_of_bea, "unpaid");
    buy(a, "dan");
    at_rest(&deployment, "shop", 96);
    deployment.must(&["audit"]).expect("all adds up");
}

#[test]
fn everything_in_one_process_over_real_engines() {
    let (_, engines) = engines_toml();
    let toml = engines + &sale_toml("shop", 2);
    let options = testbed::DeploymentOptions {
        program: env!("CARGO_BIN_EXE_floodgate").into(),
        gateways: 1,
        workers: 1,
        toml,
    };
    // Nothing of it runs: its configuration and its first gateway's listeners serve the all-in-one.
    let deployment = Deployment::prepare(&options).expect("a configuration");
    deployment.must(&["migrate", "--apply"]).expect("tables");
    let a = &deployment.gateways()[0];
    let alone = Alone::start(&deployment, a);
    let (_, pass_of_ann, order) = pass(a, "shop", "ann");
    assert_eq!(press(a, "shop", &pass_of_ann).status, 202);
    wait_for_status(a, &order, &pass_of_ann, "unpaid");
    drop(alone);
    let _alone = Alone::start(&deployment, a);
    wait_for_status(a, &order, &pass_of_ann, "unpaid");
    at_rest(&deployment, "shop", 1);
}
