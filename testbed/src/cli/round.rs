//! One strike: set up, audit, let the crowd in, strike once orders are accepted, bring back, audit, wait for the verdict, audit.
//! It counts and measures; whether that is good is judged in one place, at the end of it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::Value;
use testbed::{Client, Directory, Error, Instance, Port, Process, ProcessOptions};

use super::buyer::Buyers;
use super::production::{Challenge, Options, Production};
use super::programs::Programs;

/// What was killed is started again so long after it is gone.
const AWAY: Duration = Duration::from_millis(500);
/// Units of the buyers' own sale.
const BUYERS_UNITS: u32 = 1_000;
const ORDERS_PER_SECOND_MAX: u32 = 2_000;
/// Short, so that the strike comes while few are sold.
const WATCH_EVERY: Duration = Duration::from_millis(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const OPERATOR_WITHIN: Duration = Duration::from_secs(3);
/// From the crowd's arrival to its first order, and from there to its verdict; passes take 4 s per 10,000 users.
const PATIENCE: Duration = Duration::from_secs(300);

/// How large the crowd is and how it arrives.
#[derive(Debug, Args)]
pub(super) struct CrowdSize {
    /// People in the crowd.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub(super) users: u32,
    /// Units on offer.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) units: u32,
    /// Buttons are pressed within this time after the opening, in milliseconds.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    spread_ms: u64,
}

/// What happens to the sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Strike {
    /// Nothing: the spike alone.
    None,
    /// kill -9 of the gateway that has accepted most.
    Gateway,
    /// kill -9 of one worker.
    Worker,
    /// kill -9; it has a file that is synced every second.
    Redis,
    /// kill -9.
    Zookeeper,
    /// kill -9.
    Mariadb,
    /// kill -9 of all its processes: nobody reaches the gateways.
    Nginx,
    /// FLUSHALL: Redis runs and has forgotten everything.
    Flushall,
    /// Each of these in turn.
    All,
}

impl Strike {
    pub(super) fn each(self) -> Vec<Self> {
        let all = || Self::value_variants().iter().copied().filter(|strike| *strike != Self::All);
        if self == Self::All { all().collect() } else { vec![self] }
    }

    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What is killed; of the gateways the one that has `accepted` most.
    fn victim<'a>(self, production: &'a Production, accepted: &[u64]) -> Option<&'a Process> {
        let most =
            accepted.iter().enumerate().max_by_key(|(_, accepted)| **accepted).map_or(0, |(most, _)| most);
        match self {
            Self::None | Self::Flushall | Self::All => None,
            Self::Gateway => production.deployment.gateways().get(most).map(|gateway| &**gateway),
            Self::Worker => production.deployment.workers().first().map(|worker| &**worker),
            Self::Redis => Some(&production.redis),
            Self::Zookeeper => Some(&production.zookeeper),
            Self::Mariadb => Some(&production.maria),
            Self::Nginx => Some(&production.nginx),
        }
    }
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) strike: Strike,
    /// Orders that the gateways had accepted when it struck.
    pub(super) struck_at: u64,
    /// loadtest's report.
    pub(super) report: Value,
    /// Exit codes: before, once units are sold again, after.
    pub(super) audits: Vec<Option<i32>>,
    pub(super) sells_again: Option<Duration>,
    pub(super) at_rest: Option<Duration>,
    /// In words; empty if everything held.
    pub(super) broken: Vec<String>,
}

/// Plays it to the end. An error says that there is no verdict, which is as bad as a bad one.
pub(super) fn play(strike: Strike, size: &CrowdSize, programs: &Programs) -> Result<Outcome, Error> {
    let production = Production::start(Options {
        floodgate: programs.floodgate.clone(),
        gateways: 2,
        workers: 2,
        front: Port::claim()?,
        challenge: Challenge::Off,
        orders_per_second_max: ORDERS_PER_SECOND_MAX,
        units: BUYERS_UNITS,
        opens_after_s: -60,
    })?;
    let mut broken = Vec::new();
    let mut audits = vec![audit(&production, "before", &mut broken)?];
    let buyers = Buyers::admit(&production)?;

    let crowd = Crowd::let_in(&production, size, programs)?;
    let mut gateways: Vec<Watch<'_>> = production.deployment.gateways().iter().map(Watch::new).collect();
    let accepted = crowd.until("has an order accepted", WATCH_EVERY, || {
        let accepted: Vec<u64> = gateways.iter_mut().map(Watch::accepted).collect();
        (accepted.iter().sum::<u64>() > 0).then_some(accepted)
    })?;
    let struck_at = accepted.iter().sum();
    let struck = Instant::now();
    let sells_again = hit(strike, &production, &accepted, struck, buyers)?;
    audits.push(audit(&production, "once units were sold again", &mut broken)?);

    let sale = gateways.iter().find_map(|gateway| gateway.sale.clone()).unwrap_or_default();
    let token = operator_token(&production)?;
    let mut at_rest = None;
    crowd.until("has its verdict", LOOK_EVERY, || {
        if at_rest.is_none() && gateways.iter_mut().all(|gateway| gateway.is_at_rest(&sale, &token)) {
            at_rest = Some(struck.elapsed());
            eprintln!("{}: at rest after {:.2} s", strike.name(), struck.elapsed().as_secs_f64());
        }
        (!crowd.process.is_running()).then_some(())
    })?;
    let report = crowd.report()?;
    audits.push(audit(&production, "after", &mut broken)?);

    if strike != Strike::None && struck_at >= u64::from(size.units) {
        broken.push("struck when everything was sold: raise --units or --spread-ms".into());
    }
    if sells_again.is_none() {
        broken.push("nobody was sold anything again".into());
    }
    broken.extend(report["broken"].as_array().into_iter().flatten().map(|what| what.to_string()));
    if report["verdict"] != "good" {
        broken.push(format!("loadtest's verdict is {}", report["verdict"]));
    }
    if !broken.is_empty() {
        eprintln!("{}\n{}", broken.join("\n"), last_words(&production, &crowd));
    }
    production.stop()?;
    Ok(Outcome { strike, struck_at, report, audits, sells_again, at_rest, broken })
}

/// Strikes, brings back, and gives how long after the strike units were sold again.
fn hit(
    strike: Strike,
    production: &Production,
    accepted: &[u64],
    struck: Instant,
    buyers: Buyers,
) -> Result<Option<Duration>, Error> {
    let name = strike.name();
    let victim = strike.victim(production, accepted);
    if strike == Strike::Flushall {
        production.redis.command(&["FLUSHALL"])?;
    }
    if let Some(victim) = victim {
        victim.kill()?;
    }
    eprintln!("{name}: struck at {} accepted orders", accepted.iter().sum::<u64>());
    thread::scope(|scope| {
        let pressing = scope.spawn(move || buyers.press(struck));
        if let Some(victim) = victim {
            thread::sleep(AWAY);
            victim.start()?;
            eprintln!("{name}: {victim:?} is back after {:.2} s", struck.elapsed().as_secs_f64());
        }
        let sold = pressing.join().map_err(|_| Error::new("the buyers beside the crowd panicked"))?;
        if let Some(after) = sold {
            eprintln!("{name}: units were sold again after {:.2} s", after.as_secs_f64());
        }
        Ok(sold)
    })
}

/// The exit code of `floodgate audit`; what it said goes to `broken` unless that is 0.
fn audit(production: &Production, when: &str, broken: &mut Vec<String>) -> Result<Option<i32>, Error> {
    let output = production.deployment.floodgate(&["audit"])?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        broken.push(format!("audit {when}: {}: {}", output.status, String::from_utf8_lossy(&said).trim()));
    }
    Ok(output.status.code())
}

fn operator_token(production: &Production) -> Result<String, Error> {
    let file = production.deployment.admin_token_file();
    let token =
        fs::read_to_string(&file).map_err(|error| Error::new(format!("{}: {error}", file.display())))?;
    Ok(format!("Bearer {}", token.trim()))
}

/// loadtest at work.
struct Crowd {
    process: Process,
    directory: Directory,
}

impl Crowd {
    fn let_in(production: &Production, size: &CrowdSize, programs: &Programs) -> Result<Self, Error> {
        let directory = Directory::new("loadtest")?;
        let mut arguments = vec!["spike".to_owned()];
        for (option, number) in [
            ("--users", u64::from(size.users)),
            ("--units", size.units.into()),
            ("--spread-ms", size.spread_ms),
            ("--drain-limit", ORDERS_PER_SECOND_MAX.into()),
        ] {
            arguments.extend([option.to_owned(), number.to_string()]);
        }
        arguments.extend(["--json".to_owned(), directory.path().join("report.json").display().to_string()]);
        arguments.extend(production.as_target());
        let options = ProcessOptions {
            name: "loadtest".into(),
            program: programs.loadtest.clone(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Default::default(),
            log: directory.path().join("output"),
            directory: directory.path().to_owned(),
        };
        // It serves nobody: it is ready once it runs.
        let process = Process::new(options, || true);
        process.start()?;
        Ok(Self { process, directory })
    }

    /// Looks until there is something; an error if the crowd goes home before, but for its verdict.
    fn until<T>(&self, what: &str, every: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Asked before: what it did last is seen by the look that follows.
            let gone = !self.process.is_running();
            if let Some(found) = look() {
                return Ok(found);
            }
            if gone || Instant::now() > deadline {
                let why = if gone { "it has ended" } else { "too slow" };
                return Err(Error::new(format!(
                    "no sign that the crowd {what}: {why}\n{}",
                    self.process.log()
                )));
            }
            thread::sleep(every);
        }
    }

    fn report(&self) -> Result<Value, Error> {
        let text = fs::read_to_string(self.directory.path().join("report.json")).unwrap_or_default();
        serde_json::from_str(&text)
            .map_err(|error| Error::new(format!("no report of loadtest ({error}):\n{}", self.process.log())))
    }
}

/// What one gateway says of the crowd's sale.
struct Watch<'a> {
    gateway: &'a Instance,
    client: Client,
    sale: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(gateway: &'a Instance) -> Self {
        Self { gateway, client: Client::new(gateway.admin_port(), OPERATOR_WITHIN), sale: None }
    }

    /// Orders accepted since it was started; none while it does not answer.
    fn accepted(&mut self) -> u64 {
        let Ok(metrics) = self.client.request("GET", "/metrics", &[], "") else { return 0 };
        let Some((sale, accepted)) = accepted(&metrics.body) else { return 0 };
        self.sale.get_or_insert_with(|| sale.to_owned());
        accepted
    }

    /// Nothing is left to sell, pending or in its log.
    fn is_at_rest(&mut self, sale: &str, token: &str) -> bool {
        let path = format!("/admin/v1/sales/{sale}");
        if !self.gateway.is_running() {
            return false;
        }
        let answer = self.client.request("GET", &path, &[("Authorization", token)], "");
        let figures = answer.ok().and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok());
        figures.is_some_and(|figures| {
            let none = |name: &str| figures[name] == 0;
            figures["at_rest"] == true && none("remaining") && none("pending") && none("backlog")
        })
    }
}

/// The crowd's sale and how many orders of it are accepted, from a gateway's metrics. loadtest calls its sales `spike-…`.
fn accepted(metrics: &str) -> Option<(&str, u64)> {
    metrics.lines().find_map(|line| {
        let (labels, count) = line.strip_prefix("floodgate_purchases_total{")?.split_once("} ")?;
        let sale = labels.split_once("sale=\"")?.1.split_once('"')?.0;
        let counts = sale.starts_with("spike-") && labels.contains("outcome=\"accepted\"");
        counts.then(|| count.trim().parse().ok().map(|count| (sale, count)))?
    })
}

/// For whoever has to find out why.
fn last_words(production: &Production, crowd: &Crowd) -> String {
    let mut text = crowd.process.log();
    for (name, process) in production.processes() {
        let log = process.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n  | ");
        text.push_str(&format!("\n{name}:\n  | {tail}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_orders_of_the_crowds_sale_are_found() {
        let metrics = "# TYPE floodgate_purchases counter\n\
                       floodgate_purchases_total{sale=\"testbed\",outcome=\"accepted\"} 7\n\
                       floodgate_purchases_total{sale=\"spike-1\",outcome=\"sold-out\"} 8\n\
                       floodgate_purchases_total{sale=\"spike-1\",outcome=\"accepted\"} 9\n";
        assert_eq!(accepted(metrics), Some(("spike-1", 9)));
        assert_eq!(accepted("floodgate_purchases_total{sale=\"spike-1\",outcome=\"sold-out\"} 8\n"), None);
    }

    #[test]
    fn all_is_every_strike_once() {
        let all = Strike::All.each();
        assert_eq!(all.len(), Strike::value_variants().len() - 1);
        assert!(!all.contains(&Strike::All));
        assert_eq!(Strike::Redis.each(), [Strike::Redis]);
    }
}
