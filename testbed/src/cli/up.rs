//! `testbed up`: the production set-up until Ctrl-C, for a person to look at, to buy from, and to kill parts of. It watches its
//! processes and says what became of them; it decides nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use testbed::{Error, Port, Process};

use super::production::{Challenge, Options, Production};
use super::programs;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Long enough to see what its absence does.
const RESTART_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Up {
    /// Gateways, each with a log of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    gateways: u8,
    /// Workers, which drain all logs; those beyond one a log stand by.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    workers: u8,
    /// Port of nginx, the buyers' address.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Units of the sale.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    units: u32,
    /// What is asked before the button: nothing, as the load tester needs it, or a picture.
    #[arg(long, value_enum, default_value_t = Challenge::Image)]
    challenge: Challenge,
    /// `drain.orders_per_second_max`, of all workers together.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    orders_per_second_max: u32,
    /// Starts a process that has ended again, a second later, on its data; without it the process stays away.
    #[arg(long)]
    restart: bool,
    /// A floodgate program, built with `--features production`, instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
}

pub(super) fn run(options: &Up) -> Result<(), Error> {
    // Taken first: it is the one port that may be another's.
    let front =
        Port::take(options.port).map_err(|error| Error::new(format!("{error}; name another with --port")))?;
    let floodgate = programs::floodgate(options.server.as_deref())?;
    let production = Production::start(Options {
        floodgate: floodgate.clone(),
        gateways: options.gateways,
        workers: options.workers,
        front,
        challenge: options.challenge,
        orders_per_second_max: options.orders_per_second_max,
        units: options.units,
        opens_after_s: 20,
    })?;
    introduce(&production, &floodgate, options)?;
    watch(&production, options.restart)?;
    eprintln!("\nending …");
    production.stop()
}

fn introduce(production: &Production, floodgate: &Path, options: &Up) -> Result<(), Error> {
    let Production { nginx, deployment, maria, zookeeper, redis, .. } = production;
    println!(
        "buyers      {}/   (nginx, before {} gateways)   process {}",
        nginx.url(),
        options.gateways,
        nginx.pid()
    );
    for (index, gateway) in deployment.gateways().iter().enumerate() {
        println!(
            "gateway {}   http://127.0.0.1:{}/   operator http://127.0.0.1:{}/console   process {}",
            index + 1,
            gateway.buyers_port(),
            gateway.admin_port(),
            gateway.pid()
        );
    }
    for (index, worker) in deployment.workers().iter().enumerate() {
        println!(
            "worker {}    http://127.0.0.1:{}/metrics   process {}",
            index + 1,
            worker.admin_port(),
            worker.pid()
        );
    }
    println!("redis       {}   process {}", redis.url(), redis.pid());
    println!("zookeeper   {}   process {}", zookeeper.connect_string(), zookeeper.pid());
    println!("mariadb     {}   process {}", maria.url("floodgate")?, maria.pid());
    println!("token       {}", deployment.admin_token_file().display());
    println!("\nlook at it:");
    let command = format!("{} --config {}", floodgate.display(), deployment.config_file().display());
    println!("  . {}", deployment.environment_file()?.display());
    for look in ["audit", "sales list", "ledger show", "queue lag"] {
        println!("  {command} {look}");
    }
    if options.challenge == Challenge::Off {
        println!("press its buttons:");
        let beside = Some(floodgate.with_file_name("loadtest")).filter(|program| program.is_file());
        let loadtest = beside.map_or_else(
            || "cargo run --release -p loadtest --features mysql --".to_owned(),
            |program| program.display().to_string(),
        );
        println!("  {loadtest} spike {}", production.as_target().join(" "));
    }
    println!("\nCtrl-C ends everything and removes its data.");
    Ok(())
}

/// Until Ctrl-C or SIGTERM.
fn watch(production: &Production, restart: bool) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(format!("no runtime: {error}")))?;
    let mut watched: Vec<Watched<'_>> = production
        .processes()
        .into_iter()
        .map(|(name, process)| Watched { name, process, ended: None })
        .collect();
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| Error::new(format!("no signal handler: {error}")));
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            for process in &mut watched {
                if let Some(news) = process.look(restart)? {
                    println!("{news}");
                }
            }
        }
    })
}

struct Watched<'a> {
    name: String,
    process: &'a Process,
    ended: Option<Instant>,
}

impl Watched<'_> {
    /// What is to be told, if anything has changed.
    fn look(&mut self, restart: bool) -> Result<Option<String>, Error> {
        let Self { name, process, .. } = self;
        match (self.ended, process.exited()?) {
            (None, Some(how)) => {
                self.ended = Some(Instant::now());
                let then = if restart { "it is started again in a second" } else { "the others run on" };
                Ok(Some(format!("{name} (process {}) has ended: {how}; {then}", process.pid())))
            }
            (Some(ended), _) if restart && ended.elapsed() >= RESTART_AFTER => {
                process.spawn()?;
                self.ended = None;
                Ok(Some(format!("{name} runs again: process {}", process.pid())))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;
    use testbed::{Directory, ProcessOptions};

    use super::*;

    fn news(watched: &mut Watched<'_>, restart: bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(news) = watched.look(restart).unwrap() {
                return news;
            }
            assert!(Instant::now() < deadline, "nothing has changed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_ends_is_told_of_once_and_comes_back_if_wanted() {
        let directory = Directory::new("up").unwrap();
        let options = ProcessOptions {
            name: "a sleeper".into(),
            program: "sleep".into(),
            arguments: vec!["600".into()],
            environment: Default::default(),
            log: directory.path().join("log"),
            directory: directory.path().to_owned(),
        };
        let process = Process::new(options, || true);
        process.start().unwrap();
        let first = process.pid();
        let mut watched = Watched { name: "sleeper".into(), process: &process, ended: None };
        assert_eq!(watched.look(true).unwrap(), None);

        process.signal(Signal::KILL).unwrap();
        let ended = news(&mut watched, false);
        assert!(ended.starts_with(&format!("sleeper (process {first}) has ended: signal: 9")), "{ended}");
        assert_eq!(watched.look(false).unwrap(), None);
        assert!(!process.is_running());

        assert_eq!(news(&mut watched, true), format!("sleeper runs again: process {}", process.pid()));
        assert!(process.is_running() && process.pid() != first);
        assert_eq!(watched.look(true).unwrap(), None);
    }
}
