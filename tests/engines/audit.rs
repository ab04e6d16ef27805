//! The audit of a shared ledger: what was promised and is nowhere, and what was promised and rejected.

use serde_json::Value;

use crate::place::{ENGINES, deploy_with, engines_toml, pass, press, sale_toml, wait_for, wait_for_status};

/// An order and an instance whose bytes are text, as Redis holds them.
const LOST: &str = "floodgate-leaks!";
const OWNER: &str = "a-worker";

#[test]
fn an_order_that_is_nowhere_and_one_that_was_rejected_fail_the_audit() {
    let (name, engines) = engines_toml();
    let deployment = deploy_with(1, 1, engines + &sale_toml("shop", 10));
    let gateway = &deployment.gateways()[0];
    let (_, pass_of_ann, order) = pass(gateway, "shop", "ann");
    assert_eq!(press(gateway, "shop", &pass_of_ann).status, 202);
    wait_for_status(gateway, &order, &pass_of_ann, "unpaid");
    let audit = |more: &[&str]| {
        let output = deployment.floodgate(&[&["audit"], more].concat()).expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    wait_for("a good audit", || audit(&[]), |(code, ..)| *code == Some(0));

    // A unit that a gateway took long ago, of whose order no log and no row knows.
    let key = |kind: &str| format!("{{{name}:shop}}:{kind}");
    let member = format!("{LOST}{OWNER}");
    for command in [
        &["HSET", &key("orders"), LOST, &format!("p{OWNER}1700000000000:1:1:bob")][..],
        &["HSET", &key("mine"), "bob", &format!("1:{LOST}")],
        &["ZADD", &key("pending"), "0", &member],
        &["HINCRBY", &key("books"), "pending", "1"],
        &["HINCRBY", &key("books"), "remaining", "-1"],
    ] {
        ENGINES.redis.command(command).expect("written");
    }
    let lost = stock::OrderId(u128::from_be_bytes(*LOST.as_bytes().first_chunk().expect("16 bytes")));
    let (code, table, said) = audit(&[]);
    assert_eq!(code, Some(1), "{table}{said}");
    assert!(table.contains(&format!("in no log within reach and no row: {lost}")), "{table}");
    assert!(said.contains("1 of 1 sales do not add up"), "{said}");

    // Where a log is out of reach it may be there.
    let sql = |statement: &str| ENGINES.maria.sql(&name, statement).expect("SQL");
    sql("INSERT INTO floodgate_instances (instance_id, place, registered_at)
         VALUES ('00000000000000ff', 'elsewhere:/log', '2026-01-01T00:00:00.000Z')");
    let (code, json, said) = audit(&["--json"]);
    assert_eq!(code, Some(1), "{json}{said}");
    assert!(said.contains("incomplete") && said.contains("elsewhere:/log"), "{said}");
    let line = &serde_json::from_str::<Value>(&json).expect("JSON")[0];
    assert_eq!(line["verdict"], "incomplete", "{line}");
    assert_eq!(line["long_pending"]["nowhere"]["named"][0]["order_id"], lost.to_string(), "{line}");
    sql("DELETE FROM floodgate_instances WHERE instance_id = '00000000000000ff'");

    // A worker wrote it into this database as one that is not to be had.
    sql(&format!(
        "INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason, created_at,
                                       updated_at, version)
         VALUES ('{lost}', 'shop', 'bob', 1, 0, 0, 'XXX', 'rejected', 'unknown-sale', '2026-01-02T00:00:00.000Z',
                 '2026-01-02T00:00:00.000Z', 1)"
    ));
    let (code, table, _) = audit(&[]);
    assert_eq!(code, Some(1), "{table}");
    assert!(table.contains(&format!("promised and rejected: {lost} (unknown-sale)")), "{table}");
    // Known by now, and its unit is given back.
    let known = ["--rejected-since", "2026-01-03T00:00:00Z"];
    wait_for("a good audit", || audit(&known), |(code, ..)| *code == Some(0));
}
