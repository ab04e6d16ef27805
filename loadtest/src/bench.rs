//! `bench`: what the server costs and gives, measured from outside: CPU and memory from `/proc`, the rest from the answers.
//!
//! The crowd of a spike proves; this measures. The refusing and the full-speed run are closed loops that keep a number of
//! connections busy; latency comes from a run of its own at a fixed rate, from the intended moment of each press.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::join_all;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::api::{Operator, Pass, Press, Refusal, Shop};
use crate::arguments::BenchOptions;
use crate::database::Auditor;
use crate::process::Process;
use crate::report::Latency;
use crate::server::{SaleToOpen, Server, Setting, program};
use crate::spike::write;
use crate::stand::rest;
use crate::terminal;
use crate::token::Signer;
use crate::{Failure, clock};

const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const WARM_UP: u64 = 20_000;
const STEADY_S: u32 = 10;

#[derive(Debug, Serialize)]
struct Refusing {
    requests: u64,
    /// Of them, those that heard anything but `sold-out`.
    other_answers: u64,
    seconds: f64,
    per_second: f64,
    server_cpu_us_each: f64,
    resident_bytes_before: u64,
    resident_bytes_after: u64,
}

#[derive(Debug, Serialize)]
struct Accepting {
    orders: u64,
    other_answers: u64,
    passes_per_second: f64,
    seconds: f64,
    per_second: f64,
    server_cpu_us_each: f64,
    /// From the first press until everything stands in the database and the ledger is settled.
    end_to_end_s: f64,
    end_to_end_per_second: f64,
    latency_ms: Latency,
}

#[derive(Debug, Serialize)]
struct Steady {
    rate: u32,
    orders: u64,
    other_answers: u64,
    latency_ms: Latency,
}

#[derive(Debug, Serialize)]
struct Figures {
    scenario: &'static str,
    connections: u32,
    accepting: Accepting,
    steady: Steady,
    refusing: Refusing,
}

/// Measures and prints. True when every answer was the expected one.
pub(crate) async fn run(options: &BenchOptions) -> Result<bool, Failure> {
    if let Some(path) = &options.json {
        write(path, "")?;
    }
    let program = program(options.own.server.as_deref()).await?;
    let setting = Setting {
        per_user_rps: 0,
        orders_per_second_max: options.own.orders_per_second_max.unwrap_or(1_000_000),
        sale: None,
    };
    let mut server = Server::start(program, &setting, options.own.keep.as_deref()).await?;
    let bench = Bench {
        shop: server.shop(options.connections as usize)?,
        operator: server.operator()?,
        auditor: Auditor::new(&server.database_url()).map_err(Failure::World)?,
        signer: server.signer(),
        process: server.process().ok_or_else(|| Failure::World("the server is not running".into()))?,
        connections: options.connections,
        until: Duration::from_secs(options.seconds_max),
    };
    let figures = Figures {
        scenario: "bench",
        connections: options.connections,
        accepting: bench.accepting(options.orders).await?,
        steady: bench.steady(options.rate).await?,
        refusing: bench.refusing(options.refusals).await?,
    };
    drop(bench);
    server.terminate().await?;
    terminal::print(figures.table());
    if let Some(path) = &options.json {
        let json =
            serde_json::to_string_pretty(&figures).map_err(|error| Failure::world("the figures", error))?;
        write(path, &json)?;
    }
    let Figures { accepting, steady, refusing, .. } = &figures;
    Ok(accepting.other_answers + steady.other_answers + refusing.other_answers == 0)
}

struct Bench<'a> {
    shop: Shop,
    operator: Operator,
    auditor: Auditor,
    signer: Signer,
    process: &'a Process,
    connections: u32,
    until: Duration,
}

/// What a loop over the connections has heard.
struct Heard {
    accepted: u64,
    sold_out: u64,
    other: u64,
    latency_us: Histogram<u64>,
    first_other: Option<String>,
}

impl Heard {
    fn new() -> Self {
        // Fixed valid arguments.
        let latency_us = Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are valid");
        Self { accepted: 0, sold_out: 0, other: 0, latency_us, first_other: None }
    }

    fn hear(&mut self, intended: Instant, press: &Press) {
        match press {
            Press::Accepted { .. } => self.accepted += 1,
            Press::Refused(Refusal::SoldOut, _) => self.sold_out += 1,
            other => {
                self.other += 1;
                self.first_other.get_or_insert_with(|| format!("{other:?}"));
            }
        }
        self.latency_us.saturating_record((intended.elapsed().as_micros() as u64).max(1));
    }

    /// Answers that were not the expected ones are shown once.
    fn others(&self, expected: u64) -> u64 {
        if let Some(first) = &self.first_other {
            terminal::say(format_args!("bench: {} unexpected answers, the first: {first}", self.other));
        }
        self.accepted + self.sold_out + self.other - expected
    }
}

impl Bench<'_> {
    async fn publish(&self, sale: &str, units: u32) -> Result<String, Failure> {
        let sale = SaleToOpen { id: sale.to_owned(), units, starts_at_ms: clock::unix_now_ms() };
        self.operator.publish(&sale.definition()).await.map_err(Failure::World)?;
        Ok(format!("/api/v1/sales/{}/orders", sale.id))
    }

    /// A pass for each of `count` users, through all connections.
    async fn passes(&self, sale: &str, count: u32) -> Result<Vec<String>, Failure> {
        let passes = RefCell::new(Vec::with_capacity(count as usize));
        let next = RefCell::new(0..count);
        let failed = RefCell::new(None);
        self.on_all_connections(async || {
            while let Some(user) = take(&next) {
                let token = self.signer.token(&format!("{sale}-{user}"), clock::unix_now_ms() / 1_000, 3_600);
                match self.shop.pass(sale, &token, FROM, "{}").await {
                    Pass::Granted { pass, .. } => passes.borrow_mut().push(pass),
                    other => {
                        failed.replace(Some(other));
                        return;
                    }
                }
            }
        })
        .await;
        match failed.into_inner() {
            Some(other) => Err(Failure::World(format!("no pass for {sale}: {other:?}"))),
            None => Ok(passes.into_inner()),
        }
    }

    /// Runs as many copies of `work` as there are connections, until all have ended or the time is up.
    async fn on_all_connections(&self, work: impl AsyncFn()) {
        let all = join_all((0..self.connections).map(|_| work()));
        // Whoever is cut off here has been counted as far as it came.
        let _ = tokio::time::timeout(self.until, all).await;
    }

    fn cpu_s(&self) -> Result<f64, Failure> {
        self.process.cpu_s().ok_or_else(|| Failure::World("the server has ended".into()))
    }

    fn resident_bytes(&self) -> Result<u64, Failure> {
        self.process.resident_bytes().ok_or_else(|| Failure::World("the server has ended".into()))
    }

    async fn accepting(&self, orders: u32) -> Result<Accepting, Failure> {
        let path = self.publish("fast", orders).await?;
        let started = Instant::now();
        let passes = self.passes("fast", orders).await?;
        let passes_per_second = passes.len() as f64 / started.elapsed().as_secs_f64();
        let (heard, next) = (RefCell::new(Heard::new()), RefCell::new(passes.iter()));
        let (cpu, started) = (self.cpu_s()?, Instant::now());
        self.on_all_connections(async || {
            while let Some(pass) = take(&next) {
                let intended = Instant::now();
                let press = self.shop.press(&path, pass, FROM, "{}").await;
                heard.borrow_mut().hear(intended, &press);
            }
        })
        .await;
        let seconds = started.elapsed().as_secs_f64();
        rest(Some(&self.operator), &self.auditor, "fast").await?;
        let end_to_end_s = started.elapsed().as_secs_f64();
        let heard = heard.into_inner();
        let each = heard.accepted.max(1) as f64;
        Ok(Accepting {
            orders: heard.accepted,
            other_answers: heard.others(heard.accepted),
            passes_per_second,
            seconds,
            per_second: heard.accepted as f64 / seconds,
            server_cpu_us_each: (self.cpu_s()? - cpu) * 1e6 / each,
            end_to_end_s,
            end_to_end_per_second: heard.accepted as f64 / end_to_end_s,
            latency_ms: Latency::of(&heard.latency_us),
        })
    }

    async fn steady(&self, rate: u32) -> Result<Steady, Failure> {
        let orders = rate * STEADY_S;
        let path = self.publish("steady", orders).await?;
        let passes = self.passes("steady", orders).await?;
        let heard = RefCell::new(Heard::new());
        let next = RefCell::new(passes.iter().enumerate());
        let begin = Instant::now() + Duration::from_millis(100);
        self.on_all_connections(async || {
            while let Some((index, pass)) = take(&next) {
                let intended = begin + Duration::from_secs(1) * index as u32 / rate;
                sleep_until(intended).await;
                let press = self.shop.press(&path, pass, FROM, "{}").await;
                heard.borrow_mut().hear(intended, &press);
            }
        })
        .await;
        let heard = heard.into_inner();
        Ok(Steady {
            rate,
            orders: heard.accepted,
            other_answers: heard.others(heard.accepted),
            latency_ms: Latency::of(&heard.latency_us),
        })
    }

    async fn refusing(&self, refusals: u64) -> Result<Refusing, Failure> {
        let path = self.publish("gone", 1).await?;
        let passes = self.passes("gone", 2).await?;
        let [first, second] = passes.as_slice() else {
            return Err(Failure::World("no two passes for the sale that is to sell out".into()));
        };
        let sold = self.shop.press(&path, first, FROM, "{}").await;
        if !matches!(sold, Press::Accepted { .. }) {
            return Err(Failure::World(format!("the only unit was not sold: {sold:?}")));
        }
        self.refuse(&path, second, WARM_UP).await;
        let resident_bytes_before = self.resident_bytes()?;
        let (cpu, started) = (self.cpu_s()?, Instant::now());
        let heard = self.refuse(&path, second, refusals).await;
        let seconds = started.elapsed().as_secs_f64();
        let requests = heard.accepted + heard.sold_out + heard.other;
        Ok(Refusing {
            requests,
            other_answers: heard.others(heard.sold_out),
            seconds,
            per_second: requests as f64 / seconds,
            server_cpu_us_each: (self.cpu_s()? - cpu) * 1e6 / requests.max(1) as f64,
            resident_bytes_before,
            resident_bytes_after: self.resident_bytes()?,
        })
    }

    async fn refuse(&self, path: &str, pass: &str, count: u64) -> Heard {
        let (heard, next) = (RefCell::new(Heard::new()), RefCell::new(0..count));
        self.on_all_connections(async || {
            while take(&next).is_some() {
                let intended = Instant::now();
                let press = self.shop.press(path, pass, FROM, "{}").await;
                heard.borrow_mut().hear(intended, &press);
            }
        })
        .await;
        heard.into_inner()
    }
}

/// The next piece of work, without holding the cell over an await.
fn take<T>(next: &RefCell<impl Iterator<Item = T>>) -> Option<T> {
    next.borrow_mut().next()
}

impl Figures {
    fn table(&self) -> String {
        let Self { accepting, steady, refusing, connections, .. } = self;
        let latency = |Latency { p50, p90, p99, p999, max }: &Latency| {
            format!("p50 {p50:.2} ms · p90 {p90:.2} · p99 {p99:.2} · p99.9 {p999:.2} · max {max:.2}")
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut table = String::new();
        // Writing into a String cannot fail.
        let _ = writeln!(
            table,
            "  refusing    {:.0}/s, {:.2} µs of server CPU each ({} requests over {connections} connections in {:.1} s)\n  \
             memory      {:.1} MiB before, {:.1} MiB after",
            refusing.per_second,
            refusing.server_cpu_us_each,
            refusing.requests,
            refusing.seconds,
            mib(refusing.resident_bytes_before),
            mib(refusing.resident_bytes_after),
        );
        let _ = writeln!(
            table,
            "  accepting   {:.0}/s to the durable answer, {:.0}/s to the row, {:.1} µs of server CPU each ({} orders), passes {:.0}/s\n  \
             \x20           {}",
            accepting.per_second,
            accepting.end_to_end_per_second,
            accepting.server_cpu_us_each,
            accepting.orders,
            accepting.passes_per_second,
            latency(&accepting.latency_ms),
        );
        let _ = write!(
            table,
            "  press → 202 at {}/s: {} ({} orders)",
            steady.rate,
            latency(&steady.latency_ms),
            steady.orders
        );
        table
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Scenario};
    use crate::fake::{self, Fault};

    async fn bench(fault: Fault) -> Result<(bool, serde_json::Value), Failure> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let json = directory.path().join("bench.json");
        let line = format!(
            "loadtest bench --refusals 2000 --orders 300 --rate 20 --seconds-max 3 --connections 8 --server {} --json {}",
            fake::program(directory.path(), fault).display(),
            json.display()
        );
        let good = match Arguments::parse_from(line.split(' ')).scenario {
            Scenario::Bench(options) => run(&options).await?,
            other => panic!("{other:?}"),
        };
        let figures = std::fs::read_to_string(&json).expect("figures");
        Ok((good, serde_json::from_str(&figures).expect("json")))
    }

    #[tokio::test]
    async fn every_figure_is_measured() {
        let (good, figures) = bench(Fault::Nothing).await.expect("measured");
        assert!(good, "{figures:#}");
        // How many of them in three seconds is the machine's business; of what takes ten, not all: the bound on time holds.
        for (part, counted, most) in
            [("refusing", "requests", 2_000), ("accepting", "orders", 300), ("steady", "orders", 20 * 10 - 1)]
        {
            let count = figures[part][counted].as_u64().expect("a count");
            assert!((1..=most).contains(&count), "{part}: {figures:#}");
        }
        for field in ["per_second", "resident_bytes_before", "resident_bytes_after"] {
            assert!(figures["refusing"][field].as_f64().expect("a figure") > 0.0, "{field}");
        }
        assert!(figures["accepting"]["latency_ms"]["p50"].as_f64().expect("a figure") > 0.0);
        assert!(figures["accepting"]["end_to_end_s"].as_f64() >= figures["accepting"]["seconds"].as_f64());
    }

    #[tokio::test]
    async fn a_server_that_refuses_the_only_unit_is_not_measured() {
        let failed = bench(Fault::StopsEarly).await;
        assert!(matches!(failed, Err(Failure::World(ref text)) if text.contains("only unit")), "{failed:?}");
    }

    #[test]
    fn answers_that_were_not_expected_are_counted() {
        let mut heard = Heard::new();
        let accepted = Press::Accepted { order_id: "O".into(), poll_after: Duration::ZERO };
        for press in
            [accepted, Press::Refused(Refusal::SoldOut, None), Press::Refused(Refusal::SlowDown, None)]
        {
            heard.hear(Instant::now(), &press);
        }
        assert_eq!((heard.others(heard.accepted), heard.others(heard.sold_out)), (2, 2));
        assert_eq!(heard.latency_us.len(), 3);
    }
}
