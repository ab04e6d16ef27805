//! What runs when nothing happens: processor time, in the production set-up and embedded, with one ended sale and with many.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use testbed::{Client, Directory, Error, Port, Process, ProcessOptions};

use super::shop::{Buyer, Engines, Shop, sale};
use super::{Figures, say};

/// Until ended sales are settled.
const SETTLED_MAX: Duration = Duration::from_secs(900);
/// What a start leaves to do is done by then.
const QUIET: Duration = Duration::from_secs(40);
/// Publishing and buying take so long at most, for each unpaid sale, with a minute beside.
const SALES_PER_SECOND_MIN: u32 = 40;
/// An ended sale is asked about for so long.
const SETTLE_AFTER: Duration = Duration::from_secs(70);

pub(super) fn measure(engines: &Engines, options: &Figures) -> Result<(), Error> {
    for sales in [1, options.sales] {
        let shop = Shop::prepare(engines, &ended(sales))?;
        shop.gateway().start()?;
        shop.worker().start()?;
        let until = Instant::now() + SETTLED_MAX;
        while shop.number(engines, "SELECT COUNT(*) FROM floodgate_sales WHERE settled = 0")? > 1 {
            if Instant::now() > until {
                return Err(Error::new("the ended sales do not settle"));
            }
            sleep(Duration::from_secs(1));
        }
        sleep(QUIET);
        show(engines, &shop, &format!("{sales} ended sales, settled"), options.seconds);
    }
    if options.unpaid_sales > 0 {
        unpaid(engines, options)?;
    }
    for sales in [1, options.sales] {
        embedded(engines, sales, options.seconds)?;
    }
    Ok(())
}

/// Sales of the past, and one that will be.
fn ended(sales: u32) -> String {
    let past: String = (0..sales).map(|n| sale(&format!("past-{n:05}"), 10, -7_200, -3_600, "")).collect();
    past + &sale("coming", 10, 3_600, 7_200, "")
}

fn unpaid(engines: &Engines, options: &Figures) -> Result<(), Error> {
    let sales = options.unpaid_sales;
    let ends_after = Duration::from_secs(60 + u64::from(sales / SALES_PER_SECOND_MIN));
    let begun = Instant::now();
    let open: String =
        (0..sales).map(|n| sale(&format!("open-{n:05}"), 10, -60, ends_after.as_secs() as i64, "")).collect();
    let shop = Shop::prepare(engines, &format!("[limits]\nper_user_rps = 0\n{open}"))?;
    shop.gateway().start()?;
    shop.worker().start()?;
    let mut buyer = Buyer::log_in(shop.gateway(), 1)?;
    for n in 0..sales {
        while buyer.buy(&format!("open-{n:05}"))?.is_none() {
            sleep(Duration::from_millis(20));
        }
    }
    sleep((ends_after + SETTLE_AFTER).saturating_sub(begun.elapsed()));
    let unsettled = shop.number(engines, "SELECT COUNT(*) FROM floodgate_sales WHERE settled = 0")?;
    sleep(QUIET);
    show(engines, &shop, &format!("{unsettled} ended sales, each with an unpaid order"), options.seconds);
    Ok(())
}

fn show(engines: &Engines, shop: &Shop, what: &str, seconds: u64) {
    let processes: [(&str, &Process); 4] = [
        ("gateway", shop.gateway()),
        ("worker", shop.worker()),
        ("Redis", &engines.redis),
        ("MariaDB", &engines.maria),
    ];
    let before: Vec<Duration> = processes.iter().map(|(_, process)| process.cpu()).collect();
    sleep(Duration::from_secs(seconds));
    let percent = |(now, before): (Duration, Duration)| (now - before).as_secs_f64() * 100.0 / seconds as f64;
    let shown: Vec<String> = processes
        .iter()
        .zip(before)
        .map(|((name, process), before)| format!("{name} {:.2} %", percent((process.cpu(), before))))
        .collect();
    say(&format!("idle, of one core: {what}"), shown.join(", "));
}

/// The all-in-one with SQLite and a ledger in its memory.
fn embedded(engines: &Engines, sales: u32, seconds: u64) -> Result<(), Error> {
    let (directory, buyers, admin) = (Directory::new("embedded")?, Port::claim()?, Port::claim()?);
    let toml = format!(
        "[gateway]\nlisten = \"127.0.0.1:{}\"\n[admin]\nlisten = \"127.0.0.1:{}\"\n[gate]\nchallenge = \"off\"\n{}",
        buyers.number(),
        admin.number(),
        ended(sales)
    );
    let file = directory.path().join("floodgate.toml");
    fs::write(&file, &toml).map_err(|error| Error::new(format!("{}: {error}", file.display())))?;
    let number = admin.number();
    let ready = move || {
        let asked = Client::new(number, Duration::from_secs(3)).request("GET", "/readyz", &[], "");
        asked.is_ok_and(|answer| answer.status == 200)
    };
    let options = ProcessOptions {
        name: "floodgate".into(),
        program: engines.program.clone(),
        arguments: vec!["--config".into(), file.into()],
        environment: Default::default(),
        log: directory.path().join("output"),
        directory: directory.path().to_owned(),
    };
    let alone = Process::new(options, ready);
    alone.start()?;
    sleep(QUIET);
    let before = alone.cpu();
    sleep(Duration::from_secs(seconds));
    let percent = (alone.cpu() - before).as_secs_f64() * 100.0 / seconds as f64;
    say(&format!("idle, of one core: all in one, embedded, {sales} ended sales"), format!("{percent:.2} %"));
    alone.stop()
}
