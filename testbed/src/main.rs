//! `testbed up`: the production set-up on one machine, until Ctrl-C. It only starts and ends; it decides nothing.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use testbed::{
    Deployment, DeploymentOptions, Error, MariaDb, Nginx, Port, Redis, RedisOptions, ZooKeeper, moment,
};

/// Starts the real servers that Floodgate stands on, with temporary data, on loopback ports.
///
/// Exit codes: 0 good, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "testbed", version)]
struct Arguments {
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// The production set-up on this machine: Redis, ZooKeeper, MariaDB, gateways, workers, and nginx in front
    ///
    /// Builds floodgate with all adapters unless --server names one, starts everything with a fresh sale that opens 20 s later,
    /// and prints where everything is, with the commands that look at it. Ctrl-C ends everything and removes all data. The
    /// servers come from Debian's packages, which `./test` installs and names in its --help.
    Up(Up),
}

#[derive(Debug, Args)]
struct Up {
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
    /// A floodgate program, built with `--features production`, instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Challenge {
    Image,
    Off,
}

fn main() -> ExitCode {
    let Arguments { command: Do::Up(options) } = Arguments::parse();
    match up(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn up(options: &Up) -> Result<(), Error> {
    // Taken first: it is the one port that may be another's.
    let front =
        Port::take(options.port).map_err(|error| Error::new(format!("{error}; name another with --port")))?;
    let program = match &options.server {
        Some(program) => std::path::absolute(program)
            .ok()
            .filter(|program| program.is_file())
            .ok_or_else(|| Error::new(format!("--server {}: no such file", program.display())))?,
        None => build()?,
    };
    eprintln!("starting Redis, ZooKeeper and MariaDB …");
    let redis = Redis::start(RedisOptions::default())?;
    let keeper = ZooKeeper::start()?;
    let maria = MariaDb::start()?;
    let database = maria.url("floodgate")?;
    eprintln!("starting {} gateways and {} workers …", options.gateways, options.workers);
    let deployment = Deployment::start(&DeploymentOptions {
        program: program.clone(),
        gateways: options.gateways.into(),
        workers: options.workers.into(),
        toml: configuration(options, &redis.url(), &keeper.connect_string(), &database),
    })?;
    let ports: Vec<u16> = deployment.gateways().iter().map(testbed::Instance::buyers_port).collect();
    let nginx = Nginx::start_at(front, |port| front_of(&ports, port))?;

    println!("buyers      {}/   (nginx, before {} gateways)", nginx.url(), options.gateways);
    for (index, gateway) in deployment.gateways().iter().enumerate() {
        println!(
            "gateway {}   http://127.0.0.1:{}/   operator http://127.0.0.1:{}/console",
            index + 1,
            gateway.buyers_port(),
            gateway.admin_port()
        );
    }
    for (index, worker) in deployment.workers().iter().enumerate() {
        println!("worker {}    http://127.0.0.1:{}/metrics", index + 1, worker.admin_port());
    }
    println!("redis       {}", redis.url());
    println!("zookeeper   {}", keeper.connect_string());
    println!("mariadb     {database}");
    println!("token       {}", deployment.admin_token_file().display());
    println!("\nlook at it:");
    let command = format!("{} --config {}", program.display(), deployment.config_file().display());
    println!("  . {}", deployment.environment_file()?.display());
    for look in ["audit", "sales list", "ledger show", "queue lag"] {
        println!("  {command} {look}");
    }
    if matches!(options.challenge, Challenge::Off) {
        let operator = |gateway: &testbed::Instance| format!("http://127.0.0.1:{}", gateway.admin_port());
        let operators: Vec<String> = deployment.gateways().iter().map(operator).collect();
        println!("press its buttons:");
        println!(
            "  cargo run --release -p loadtest --features mysql -- spike --target {} --admin-url {} --admin-token-file {} \
             --database-url {database} --jwt-secret-file {}",
            nginx.url(),
            operators.join(","),
            deployment.admin_token_file().display(),
            deployment.jwt_secret_file().display(),
        );
    }
    println!("\nCtrl-C ends everything and removes its data.");

    wait_for_the_end(&deployment)?;
    eprintln!("\nending …");
    drop(nginx);
    deployment.stop()
}

/// Ctrl-C or SIGTERM; an error if a part of the set-up ends by itself.
fn wait_for_the_end(deployment: &Deployment) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| Error::new(format!("no signal handler: {error}")));
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            for instance in deployment.instances() {
                instance.wait_until("runs", Duration::ZERO, || true)?;
            }
        }
    })
}

/// Builds floodgate with every adapter and gives the program.
fn build() -> Result<PathBuf, Error> {
    eprintln!("building floodgate (cargo build --release --features production --bin floodgate) …");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(cargo)
        .args(["build", "--release", "--features", "production", "--bin", "floodgate"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Error::new(format!("cargo: {error}")))?;
    if !output.status.success() {
        return Err(Error::new("cargo build failed: see above"));
    }
    // One JSON message a line; the program's is the one that names an executable.
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .rev()
        .find_map(|line| {
            line.split_once("\"executable\":\"").and_then(|(_, rest)| Some(rest.split_once('"')?.0.into()))
        })
        .ok_or_else(|| Error::new("cargo named no program: name one with --server"))
}

fn configuration(options: &Up, redis: &str, keeper: &str, database: &str) -> String {
    let challenge = match options.challenge {
        Challenge::Image => "image",
        Challenge::Off => "off",
    };
    let (opening, end) = (moment(20), moment(20 + 3_600));
    format!(
        r#"[auth]
demo = true

[gate]
challenge = "{challenge}"
opens_before_s = 600
pass_ttl_s = 600

[limits]
per_user_rps = 20

[stock]
backend = "redis"
redis_urls = ["{redis}"]

[sold_out]
backend = "zookeeper"
zookeeper = "{keeper}/floodgate"

[orders]
backend = "mysql"
database_url = "{database}"

[drain]
orders_per_second_max = {orders_per_second_max}

[[sale]]
id = "testbed"
title = "A sale of the testbed"
price = 206640
list_price = 688800
total = {units}
starts_at = "{opening}"
ends_at = "{end}"
rehearsal = true
"#,
        orders_per_second_max = options.orders_per_second_max,
        units = options.units,
    )
}

/// What nginx does in front: it spreads buyers over the gateways and says who they are.
fn front_of(gateways: &[u16], port: u16) -> String {
    let servers: String = gateways.iter().map(|port| format!("server 127.0.0.1:{port};\n")).collect();
    format!(
        "upstream gateways {{\n{servers}keepalive 128;\n}}\n\
         server {{\nlisten 127.0.0.1:{port};\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\n\
         proxy_set_header Host $http_host;\nproxy_buffering off;\n\
         proxy_connect_timeout 1s;\n\
         location / {{ proxy_pass http://gateways; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}\n\
         # The demo's login answers only what was not forwarded.\n\
         location = /api/v1/demo/login {{ proxy_pass http://gateways; }}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
