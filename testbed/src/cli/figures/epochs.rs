//! Two gateways of one database, each with a Redis of its own: how many lives of the ledger they begin, and what is sold meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

use testbed::{Deployment, DeploymentOptions, Error, Redis, RedisOptions};

use super::shop::{Buyer, Engines, sale};
use super::{Figures, say};

const PRESS_EVERY: Duration = Duration::from_millis(500);

pub(super) fn measure(engines: &Engines, options: &Figures) -> Result<(), Error> {
    let (name, toml) = engines.place()?;
    let elsewhere = Redis::start(RedisOptions::default())?;
    let prepare = |toml: String| {
        let program = engines.program.clone();
        let more = sale("shop", 10_000, -60, 7_200, "");
        Deployment::prepare(&DeploymentOptions { program, gateways: 1, workers: 1, toml: toml + &more })
    };
    let (right, wrong) = (prepare(toml)?, prepare(engines.toml(&name, &elsewhere.url())?)?);
    right.must(&["migrate", "--apply"])?;
    let gateway = &right.gateways()[0];
    gateway.start()?;
    right.workers()[0].start()?;
    let epoch = || -> Result<u64, Error> {
        let epoch = engines.maria.sql(&name, "SELECT value FROM floodgate_meta WHERE name = 'epoch'")?;
        epoch.trim().parse().map_err(|_| Error::new(format!("the epoch is {epoch}")))
    };
    let before = epoch()?;
    // Whether it stays up is its own affair.
    wrong.gateways()[0].spawn()?;
    let mut buyer = Buyer::log_in(gateway, 1)?;
    let (mut pressed, mut promised, begun) = (0, 0, Instant::now());
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        pressed += 1;
        promised += u32::from(matches!(buyer.buy("shop"), Ok(Some(_))));
        sleep(PRESS_EVERY);
    }
    say(
        &format!("lives of the ledger begun in {} s by gateways on two Redis servers", options.seconds),
        epoch()? - before,
    );
    say("purchases promised meanwhile by the right one", format!("{promised} of {pressed}"));
    say("the wrong one says", wrong.gateways()[0].readiness());
    Ok(())
}
