//! What a role says when an engine is not there, or is not as it must be: what to do, and never a password.

use std::process::{Command, Output, Stdio};

use crate::place::{ENGINES, engines_toml};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Where nobody listens.
const NOBODY: &str = "127.0.0.1:1";

/// Runs a role, or a command, that has to end by itself.
fn run(role: &str, toml: &str) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listeners = "[gateway]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    let secrets = format!(
        "[auth]\nhs256_secret = \"{SECRET}\"\n[gate]\npass_secrets = [{{ id = \"k1\", secret = \"{SECRET}\" }}]\n"
    );
    let sources = if toml.contains("[queue]") { "" } else { "[queue]\nsources = [\"data/queue\"]\n" };
    std::fs::write(directory.path().join("floodgate.toml"), format!("{listeners}{secrets}{sources}{toml}"))
        .expect("writable");
    Command::new("timeout")
        .args(["--kill-after=1", "60"])
        .arg(env!("CARGO_BIN_EXE_floodgate"))
        .args(["--config", "floodgate.toml"])
        .args(role.split(' '))
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

fn refuses(role: &str, toml: &str, exit: i32, words: &[&str]) {
    let output = run(role, toml);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{role}: {said}");
    for word in words {
        assert!(said.contains(word), "{role}: {word:?} is not in {said:?}");
    }
    for secret in ["sesame", SECRET, "floodgate:floodgate@"] {
        assert!(!said.contains(secret), "{role}: a secret shows: {said}");
    }
}

#[test]
fn a_database_without_tables_names_the_command_and_stays_as_it_is() {
    let (name, toml) = engines_toml();
    for role in ["gateway", "worker"] {
        refuses(role, &toml, 1, &["floodgate migrate --apply"]);
    }
    assert_eq!(ENGINES.maria.sql(&name, "SHOW TABLES").expect("SQL").trim(), "");
}

#[test]
fn engines_out_of_reach_are_named_with_their_keys() {
    let (_, toml) = engines_toml();
    let redis = ENGINES.redis.url();
    let without_redis = toml.replace(&redis, &format!("redis://:sesame@{NOBODY}"));
    let place = format!("127.0.0.1:{}", ENGINES.maria.port());
    let without_database = toml.replace(&place, NOBODY);
    let wrong_password = toml.replace("floodgate:floodgate@", "floodgate:sesame@");
    for role in ["gateway", "worker"] {
        refuses(role, &without_database, 1, &["orders.database_url", NOBODY]);
        refuses(role, &wrong_password, 1, &["orders.database_url", "Access denied"]);
    }
    let (name, _) = engines_toml();
    let url = ENGINES.maria.url(&name).expect("a database");
    let own = without_redis.lines().map(|line| {
        if line.starts_with("database_url") { format!("database_url = \"{url}\"") } else { line.to_owned() }
    });
    let own = own.collect::<Vec<_>>().join("\n");
    assert!(run("migrate", &own).status.code() == Some(2), "migrate wants one of its three");
    refuses("worker", &own, 1, &["floodgate migrate --apply"]);
    // The registry is in the database: who is waited for can be looked up while Redis is down.
    assert_eq!(run("migrate --apply", &own).status.code(), Some(0));
    let instances = run("ledger instances", &own);
    let said = String::from_utf8_lossy(&instances.stderr);
    assert!(instances.status.success() && said.contains(NOBODY) && !said.contains("sesame"), "{said}");
}

#[test]
fn a_worker_is_told_what_it_drains() {
    let (_, toml) = engines_toml();
    let words = ["queue.sources", "floodgate worker", "sources = [\"", "queue.directory of each gateway"];
    refuses("worker", &format!("{toml}[queue]\n"), 2, &words);
    let own = "[queue]\nsources = [\"a\", \"data/worker-queue\"]\n";
    refuses("worker", &format!("{toml}{own}"), 2, &["queue.worker_directory", "queue.sources"]);
}

#[test]
fn roles_of_their_own_do_not_take_embedded_engines() {
    let (_, toml) = engines_toml();
    for role in ["gateway", "worker"] {
        refuses(role, "", 2, &["stock.backend = \"redis\"", "sell it twice"]);
        let embedded_orders = toml.replace("backend = \"mysql\"", "backend = \"sqlite\"");
        let embedded_orders: String = embedded_orders
            .lines()
            .filter(|line| !line.starts_with("database_url"))
            .map(|line| format!("{line}\n"))
            .collect();
        refuses(role, &embedded_orders, 2, &["orders.backend = \"mysql\""]);
    }
}
