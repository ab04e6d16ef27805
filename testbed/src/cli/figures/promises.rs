//! What becomes of promises when a worker names another database, when the database is put back under a newer ledger, and when an
//! instance is left out while Redis is away.

use std::thread::sleep;
use std::time::Duration;

use testbed::{Deployment, DeploymentOptions, Error, Redis, RedisOptions};

use super::say;
use super::shop::{Buyer, Engines, Shop, json, promise, sale};

const PROMISED: u32 = 30;
/// Longer than any drain, rebuild or audit of these few orders takes.
const SETTLED: Duration = Duration::from_secs(10);

pub(super) fn measure(engines: &Engines) -> Result<(), Error> {
    another_database(engines)?;
    older_database(engines)?;
    without_redis(engines)
}

/// A worker whose `database_url` is of another shop is told of the log.
fn another_database(engines: &Engines) -> Result<(), Error> {
    let (name, toml) = engines.place()?;
    let (other, _) = engines.place()?;
    let shop = |toml: String| {
        let more = sale("shop", 2 * PROMISED, -60, 7_200, "");
        let program = engines.program.clone();
        Deployment::prepare(&DeploymentOptions { program, gateways: 1, workers: 1, toml: toml + &more })
    };
    let right = shop(toml.clone())?;
    let stray = shop(toml.replace(&engines.maria.url(&name)?, &engines.maria.url(&other)?))?;
    right.must(&["migrate", "--apply"])?;
    stray.must(&["migrate", "--apply"])?;
    right.gateways()[0].start()?;
    promise(&right.gateways()[0], "shop", PROMISED)?;
    let log = right.gateways()[0].log_directory().unwrap_or_else(|| unreachable!("a gateway has a log"));
    let worker = &stray.workers()[0];
    worker.set_environment("FLOODGATE_QUEUE__SOURCES", &format!("[{:?}]", log.display().to_string()));
    worker.spawn()?;
    sleep(SETTLED);
    say("a worker of another database says", worker.readiness());
    worker.kill()?;
    say("rows that it wrote into its own", rows(engines, &other)?);
    right.workers()[0].start()?;
    sleep(SETTLED);
    say(&format!("rows of the {PROMISED} promised orders afterwards"), rows(engines, &name)?);
    say("the gateway says", right.gateways()[0].readiness());
    say_audit(&right)
}

/// The database of a moment before a restock is put back; the ledger knows of the restock.
fn older_database(engines: &Engines) -> Result<(), Error> {
    let shop = Shop::prepare(engines, &sale("shop", 10, -60, 7_200, ""))?;
    let (gateway, worker) = (shop.gateway(), shop.worker());
    gateway.start()?;
    worker.start()?;
    let backup = format!("{}_backup", shop.name);
    engines.maria.url(&backup)?;
    let tables = engines.maria.sql(&shop.name, "SHOW TABLES")?;
    let copy = |from: &str, to: &str| {
        let copied = tables.lines().map(|table| {
            format!(
                "CREATE TABLE IF NOT EXISTS {to}.{table} LIKE {from}.{table}; DELETE FROM {to}.{table}; \
                 INSERT INTO {to}.{table} SELECT * FROM {from}.{table};"
            )
        });
        engines.maria.sql(&shop.name, &format!("SET foreign_key_checks = 0; {}", copied.collect::<String>()))
    };
    copy(&shop.name, &backup)?;
    shop.deployment.must(&["sales", "restock", "shop", "10", "--restock-id", "more"])?;
    shop.deployment.must(&["ledger", "rebuild"])?;
    sleep(SETTLED);
    gateway.kill()?;
    worker.kill()?;
    copy(&backup, &shop.name)?;
    gateway.start()?;
    worker.start()?;
    sleep(SETTLED);
    let mut promised = 0;
    for number in 0..16 {
        promised += u32::from(Buyer::log_in(gateway, number)?.buy("shop").is_ok_and(|order| order.is_some()));
    }
    sleep(SETTLED);
    let rejected = "SELECT COUNT(*) FROM floodgate_orders WHERE status = 'rejected'";
    say("total 10 put back under a ledger of 20: promised of 16 presses", promised);
    say("of these rejected afterwards", shop.number(engines, rejected)?);
    say_audit(&shop.deployment)
}

/// The operator leaves a living instance out while no ledger can say that it lives.
fn without_redis(engines: &Engines) -> Result<(), Error> {
    let (name, _) = engines.place()?;
    let redis = Redis::start(RedisOptions::default())?;
    let toml = engines.toml(&name, &redis.url())? + &sale("shop", 2 * PROMISED, -60, 7_200, "");
    let program = engines.program.clone();
    let shop = Deployment::prepare(&DeploymentOptions { program, gateways: 1, workers: 1, toml })?;
    shop.must(&["migrate", "--apply"])?;
    let gateway = &shop.gateways()[0];
    gateway.start()?;
    promise(gateway, "shop", PROMISED)?;
    let registry = json(&shop.must(&["ledger", "instances", "--json"])?)?;
    let log =
        registry[0]["instance"].as_str().ok_or_else(|| Error::new(format!("no instance in {registry}")))?;
    redis.kill()?;
    let output = shop.floodgate(&["ledger", "rebuild", "--without", log])?;
    let words = [output.stdout, output.stderr].concat();
    say(
        "`ledger rebuild --without` a living instance, Redis away",
        format!("{}: {}", output.status, String::from_utf8_lossy(&words).trim()),
    );
    Ok(())
}

fn rows(engines: &Engines, database: &str) -> Result<String, Error> {
    let counted = "SELECT CONCAT(status, ' ', COUNT(*)) FROM floodgate_orders GROUP BY status";
    let counted = engines.maria.sql(database, counted)?;
    Ok(if counted.trim().is_empty() { "none".into() } else { counted.trim().replace('\n', ", ") })
}

fn say_audit(shop: &Deployment) -> Result<(), Error> {
    let output = shop.floodgate(&["audit"])?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).trim().replace('\n', "\n    ");
    say("audit", format!("{}\n    {words}", output.status));
    Ok(())
}
