//! `testbed figures`: what a hostile look once found, as figures of this build. It plays and prints; it judges nothing, and an order
//! or a process that fails is an error.

mod backlog;
mod doors;
mod epochs;
mod idle;
mod promises;
mod shop;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use testbed::Error;

use self::shop::Engines;
use super::programs;

#[derive(Debug, Args)]
pub(super) struct Figures {
    /// Which ones, as a list with commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Figure>,
    /// Promised orders that nobody drains, of `backlog`.
    #[arg(long, default_value_t = 280_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    orders: u32,
    /// Sales that have ended and are settled, of `idle`.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sales: u32,
    /// Sales that have ended with an order that nobody pays, and so never settle, of `idle`; 0: none.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    unpaid_sales: u32,
    /// Connections of those who send one byte, of `doors`; so many are all that the gateway has.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(50..=20_000))]
    attackers: u32,
    /// How long a rate is measured, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// A floodgate with all adapters; without it, a release build is made.
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// A backlog over two starts after kill -9, look-ups beside it, rows of a worker in a crash loop, purchases without a database.
    Backlog,
    /// Honest requests and event streams beside connections that send one byte.
    Doors,
    /// What the list of sales costs.
    List,
    /// What one account gets of streams and looks.
    Account,
    /// What runs when nothing happens, with one sale in the past and with many.
    Idle,
    /// Lives of the ledger that two gateways begin, each of which has a Redis of its own.
    Epochs,
    /// What becomes of promises: a worker of another database, a database put back, an instance left out while Redis is away.
    Promises,
}

/// True: they were measured.
pub(super) fn run(options: &Figures) -> Result<bool, Error> {
    let program = programs::floodgate(options.server.as_deref())?;
    let load = std::fs::read_to_string("/proc/loadavg")
        .map_err(|error| Error::new(format!("/proc/loadavg: {error}")))?;
    println!("floodgate {}\nload average at the start {}", program.display(), load.trim());
    let engines = Engines::start(program)?;
    let all = Figure::value_variants();
    for figure in if options.only.is_empty() { all } else { &options.only } {
        match figure {
            Figure::Backlog => backlog::measure(&engines, options)?,
            Figure::Doors => doors::measure(&engines, options)?,
            Figure::List => doors::measure_list(&engines)?,
            Figure::Account => doors::measure_account(&engines)?,
            Figure::Idle => idle::measure(&engines, options)?,
            Figure::Epochs => epochs::measure(&engines, options)?,
            Figure::Promises => promises::measure(&engines)?,
        }
    }
    Ok(true)
}

/// One line of the answer.
fn say(what: &str, figure: impl std::fmt::Display) {
    println!("{what:<72} {figure}");
}
