//! A crowd from outside: open-loop arrivals against a target, then an audit of what it was promised.
//!
//! A black box: it knows the public interface (HTTP, two tables) and nothing of the other crates. A target may be several
//! gateways over one database.
#![forbid(unsafe_code)]
// A macro that prints panics where its reader has gone or its disk is full: see `terminal`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod arguments;
mod audit;
mod bench;
mod claim;
mod clock;
mod crash;
mod crowd;
mod database;
#[cfg(test)]
mod fake;
mod html;
mod http;
mod player;
mod process;
mod progress;
mod random;
mod report;
mod server;
mod spike;
mod stand;
mod tally;
mod terminal;
mod token;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Scenario};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why a scenario could not be played to its verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The call was wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The world was: exit code 1.
    #[error("{0}")]
    World(String),
}

impl Failure {
    pub(crate) fn world(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::World(format!("{what}: {error}"))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread for the whole crowd: the other core belongs to the server.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::say(format_args!("loadtest: {error}"));
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = play(&arguments) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Failure::World("interrupted; the server of this run is stopped".into())),
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            terminal::say(format_args!("loadtest: {failure}"));
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// True when everything that must hold held.
async fn play(arguments: &Arguments) -> Result<bool, Failure> {
    match &arguments.scenario {
        Scenario::Spike(options) => spike::run(options).await,
        Scenario::Crash(options) => crash::run(options).await,
        Scenario::Bench(options) => bench::run(options).await,
    }
}
