//! The command line: what can be typed, and which function each command is.

use std::path::PathBuf;
use std::process::ExitCode;

use ::queue::QueueError;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError};
use crate::log;
use crate::queue_words::queue_words;

mod admin_client;
mod audit;
mod ledger;
mod logs;
mod migrate;
mod orders;
mod output;
mod payments;
mod queue;
mod refunds;
mod sales;
mod shared_ledger;
mod stock;

/// Floodgate: turns a flash sale's spike into a short queue of certain orders.
///
/// Without a command everything runs in this process: gateway, ledger, queue, order worker and an SQLite database.
#[derive(Debug, Parser)]
#[command(
    name = "floodgate",
    version,
    after_help = "Exit codes: 0 good, 1 failed, 2 wrong usage or configuration.\n\
    Every key of the configuration can be overridden as FLOODGATE_SECTION__KEY, such as FLOODGATE_GATEWAY__LISTEN.\n\
    FLOODGATE_LOG = error, warn, info (default), debug or trace: what goes to standard error.\n\
    FLOODGATE_LOG_FORMAT = text (default) or json: one line an event, either way."
)]
pub(crate) struct Cli {
    /// The configuration, a TOML file; without it all defaults, and a demo sale 20 s after the start
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Print the effective configuration as TOML, secrets hidden, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run only a gateway, one of several: needs Redis, MySQL and secrets that all of them share
    ///
    /// It sells, and appends to its own log in queue.directory; workers on this machine drain it. Several gateways may
    /// run on one machine, each with its own queue.directory, gateway.listen and admin.listen.
    Gateway,
    /// Run only a worker, one of several: needs Redis and MySQL
    ///
    /// It drains the logs named by queue.sources, which must be on this machine; those that another worker drains it
    /// takes over when that one dies. What it appends goes to its own log in queue.worker_directory, one for each
    /// worker. Its admin listener has /healthz, /readyz and /metrics.
    Worker,
    #[command(flatten)]
    Once(Once),
}

/// Commands that are no servers.
#[derive(Debug, Subcommand)]
pub(crate) enum Once {
    /// Publish, list, show, restock, pause, resume or withdraw sales
    #[command(subcommand)]
    Sales(sales::SalesCommand),
    /// Show, list, cancel, close or refund orders
    #[command(subcommand)]
    Orders(orders::OrdersCommand),
    /// Show money that came in
    #[command(subcommand)]
    Payments(payments::PaymentsCommand),
    /// List money that goes back; have what is stuck tried again
    #[command(subcommand)]
    Refunds(refunds::RefundsCommand),
    /// Compare ledger, logs and database of the running system; exit 1 if a unit, an order or money does not add up, or
    /// nobody can tell
    ///
    /// Named are sums and totals that differ, promised orders that were rejected, and orders that have been pending for more than a
    /// minute and are in no log and no row. The audit is incomplete where promises could be that it does not see: in a log that is not on
    /// this machine, while units are pending (run it on the machines of those logs); in a ledger that is closed for a rebuild; in an
    /// embedded ledger whose process does not answer.
    Audit(audit::Audit),
    /// Show the stock ledger's books and who takes part, or rebuild it
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Deploy the scripts of a ledger in Redis
    #[command(subcommand)]
    Stock(stock::StockCommand),
    /// Show, check or apply the database's schema
    Migrate(migrate::Migrate),
    /// Look into the queue's log: topics, lag, records, damage, dead letters; and move what reads it
    #[command(subcommand)]
    Queue(queue::QueueCommand),
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Json {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a change is for.
#[derive(Debug, Clone, Args)]
pub(crate) struct Reason {
    /// Why, up to 255 characters: stands in the journal
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs a command to its end.
pub(crate) async fn run(command: Once, config: &Config) -> ExitCode {
    let outcome = match command {
        Once::Sales(command) => sales::run(command, config).await,
        Once::Orders(command) => orders::run(command, config).await,
        Once::Payments(command) => payments::run(command, config).await,
        Once::Refunds(command) => refunds::run(command, config).await,
        Once::Audit(arguments) => audit::run(arguments, config).await,
        Once::Ledger(command) => ledger::run(command, config).await,
        Once::Stock(command) => stock::run(command, config).await,
        Once::Migrate(migrate) => migrate.run(config).await,
        Once::Queue(command) => queue::run(command, config).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            log::say(message);
            ExitCode::from(2)
        }
        Err(Failure::Failed(message)) => {
            log::say(message);
            ExitCode::FAILURE
        }
    }
}

/// Why a command did not do what was asked: exit 2 or 1.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call itself is wrong.
    Usage(String),
    /// The call is right, the world is not.
    Failed(String),
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = &error as &dyn std::error::Error;
        match error.downcast_ref::<QueueError>() {
            Some(error) => Self::Failed(queue_words(error)),
            None if error.is::<ConfigError>() => Self::Usage(error.to_string()),
            None => Self::Failed(error.to_string()),
        }
    }
}
