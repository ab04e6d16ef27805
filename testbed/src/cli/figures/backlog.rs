//! What a backlog is after two starts, what it costs the database, what a worker drains that dies again and again, and what is sold while
//! the database is away.

use std::thread::sleep;
use std::time::{Duration, Instant};

use testbed::{Client, Error};

use super::shop::{Buyer, Engines, Shop, metric, promise, sale};
use super::{Figures, say};

/// What may be appended after a start was appended by then.
const RECOVERY: Duration = Duration::from_secs(40);
/// A life of the worker in its crash loop, and how many.
const LIFE: Duration = Duration::from_millis(500);
const LIVES: u32 = 20;
const PRESSES: u32 = 5;

pub(super) fn measure(engines: &Engines, options: &Figures) -> Result<(), Error> {
    let total = options.orders.saturating_mul(2);
    let sold = sale("shop", total, -60, 7_200, "");
    let shop = Shop::prepare(engines, &format!("[limits]\nper_user_rps = 0\n{sold}"))?;
    let (gateway, worker) = (shop.gateway(), shop.worker());
    gateway.start()?;
    let took = promise(gateway, "shop", options.orders)?;
    say("orders promised, nobody drains", format!("{} in {:.0} s", shop.backlog()?, took.as_secs_f64()));
    for start in 1..=2 {
        gateway.kill()?;
        gateway.start()?;
        sleep(RECOVERY);
        say(&format!("records in the log after kill -9 and start {start}"), shop.backlog()?);
    }

    worker.set_environment("FLOODGATE_DRAIN__ORDERS_PER_SECOND_MAX", "1");
    worker.start()?;
    let looked_up = || metric(worker, "floodgate_reconciled_orders_total");
    let before = looked_up()?;
    sleep(Duration::from_secs(options.seconds));
    let per_second = (looked_up()? - before) as f64 / options.seconds as f64;
    say(
        &format!("look-ups a second at a backlog of {}, drained at 1/s", shop.backlog()?),
        format!("{per_second:.1}"),
    );
    worker.stop()?;

    worker.set_environment("FLOODGATE_DRAIN__ORDERS_PER_SECOND_MAX", "2000");
    let rows = || shop.number(engines, "SELECT COUNT(*) FROM floodgate_orders");
    let before = rows()?;
    for _ in 0..LIVES {
        worker.spawn()?;
        sleep(LIFE);
        worker.kill()?;
    }
    let seconds = LIFE.as_secs_f64() * f64::from(LIVES);
    say(&format!("rows in {seconds:.0} s by a worker killed every {LIFE:?}"), rows()? - before);

    let mut buyer = Buyer::log_in(gateway, 1)?;
    engines.maria.kill()?;
    let mut promised = 0;
    for _ in 0..PRESSES {
        promised += u32::from(buyer.buy("shop")?.is_some());
    }
    say("purchases promised while the database is away", format!("{promised} of {PRESSES}"));
    let ready = Client::new(gateway.admin_port(), Duration::from_secs(5)).request("GET", "/readyz", &[], "");
    let ready = ready.map_err(|error| Error::new(format!("/readyz: {error}")))?;
    say("/readyz meanwhile", format!("{} {}", ready.status, ready.body));
    engines.maria.start()?;
    let back = Instant::now();
    gateway.wait_until_ready()?;
    say("ready again after the database's return", format!("{:.1} s", back.elapsed().as_secs_f64()));
    Ok(())
}
