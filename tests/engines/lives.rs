//! The ledger's life as its operator sees it: a rebuild that waits for a log, and a second ledger that must not be.

use testbed::{Deployment, DeploymentOptions};

use crate::place::{
    Alone, ENGINES, deploy_with, engines_toml, pass, press, sale_toml, wait_for, wait_for_status,
};

#[test]
fn a_rebuild_that_waits_for_a_log_is_told_by_the_audit() {
    let (database, engines) = engines_toml();
    let deployment = deploy_with(1, 1, engines + &sale_toml("shop", 3));
    let gateway = &deployment.gateways()[0];
    let (_, pass_of_ann, order) = pass(gateway, "shop", "ann");
    assert_eq!(press(gateway, "shop", &pass_of_ann).status, 202);
    wait_for_status(gateway, &order, &pass_of_ann, "unpaid");
    let audited = || {
        let output = deployment.floodgate(&["audit"]).expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    wait_for("a quiet audit", audited, |(good, said)| *good && !said.contains("closed"));

    // A log that nobody can reach: the gateway of a machine that is gone.
    let gone = "00000000000000ff";
    let register = format!(
        "INSERT INTO floodgate_instances (instance_id, place, registered_at)
         VALUES ('{gone}', 'elsewhere:/log', '2026-01-01T00:00:00.000Z')"
    );
    ENGINES.maria.sql(&database, &register).expect("registered");
    wait_for("rebuild", || deployment.must(&["ledger", "rebuild"]), Result::is_ok).expect("begun");
    let (good, said) =
        wait_for("a rebuild", audited, |(_, said)| said.contains("closed: a rebuild is under way"));
    assert!(!good && said.contains("incomplete"), "what the log has promised is not known: {said}");
    let listed = || deployment.must(&["ledger", "instances", "--json"]).expect("the registry");
    wait_for("the log it waits for", listed, |listed| listed.contains(gone));

    let is_left_out = |listed: &String| {
        let listed: serde_json::Value = serde_json::from_str(listed).expect("a list");
        let row = listed.as_array().and_then(|rows| rows.iter().find(|row| row["instance"] == gone));
        row.is_some_and(|row| row["left_out"] == true && row["awaited"] == false)
    };
    let leave_out = || {
        // Answered late it is done all the same, and a repeat finds nothing to leave out.
        let _ = deployment.must(&["ledger", "rebuild", "--without", gone]);
        listed()
    };
    wait_for("a log that is left out", leave_out, is_left_out);
    wait_for("an open ledger", audited, |(good, said)| *good && !said.contains("closed"));
    let (_, pass_of_bea, _) = pass(gateway, "shop", "bea");
    assert_eq!(press(gateway, "shop", &pass_of_bea).status, 202);
}

/// Two all-in-ones on one database, each with a ledger in its memory, would promise every unit twice.
#[test]
fn a_second_ledger_in_memory_is_refused_until_the_first_one_leaves() {
    let (database, _) = engines_toml();
    let url = ENGINES.maria.url(&database).expect("a database");
    let toml = format!("[orders]\nbackend = \"mysql\"\ndatabase_url = \"{url}\"\n") + &sale_toml("shop", 3);
    let prepare = || {
        let options = DeploymentOptions {
            program: env!("CARGO_BIN_EXE_floodgate").into(),
            gateways: 1,
            workers: 1,
            toml: toml.clone(),
        };
        Deployment::prepare(&options).expect("a configuration")
    };
    let (one, two) = (prepare(), prepare());
    one.must(&["migrate", "--apply"]).expect("tables");
    let (a, b) = (&one.gateways()[0], &two.gateways()[0]);
    let first = Alone::start(&one, a);
    let refused = || {
        let said = Alone::fails(&two, b);
        for word in ["another floodgate is registered", "stock.backend = \"redis\"", "orders.database_url"] {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
        assert!(!said.contains("floodgate:floodgate@"), "a secret shows: {said}");
    };
    refused();
    let (_, pass_of_ann, order) = pass(a, "shop", "ann");
    assert_eq!(press(a, "shop", &pass_of_ann).status, 202, "the first one sells on");
    wait_for_status(a, &order, &pass_of_ann, "unpaid");

    // Killed, it may hold promises that are no rows yet.
    drop(first);
    refused();
    let first = Alone::start(&one, a);
    wait_for_status(a, &order, &pass_of_ann, "unpaid");
    first.stop();
    let _second = Alone::start(&two, b);
    let (_, pass_of_bea, _) = pass(b, "shop", "bea");
    assert_eq!(press(b, "shop", &pass_of_bea).status, 202);
}
