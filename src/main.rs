//! The one binary: reads the configuration, chooses adapters, wires, runs, shuts down. Nothing else.
#![forbid(unsafe_code)]
// A macro that prints panics where its reader has gone: see `stdout`.
#![deny(clippy::print_stdout)]

mod cli;
mod clock;
mod config;
mod demo;
mod engines;
mod entropy;
mod gateway_ports;
mod roles;
mod stdout;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::config::{Config, Role};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match Config::load(cli.config.as_deref(), std::env::vars()) {
        Ok(config) => config,
        Err(e) => return complain(&e, 2),
    };
    if cli.print_config {
        return match config.print() {
            Ok(text) => match stdout::print(text) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => complain(&e, 1),
            },
            Err(e) => complain(&e, 2),
        };
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return complain(&e, 1),
    };
    let role = match cli.command {
        None => Role::AllInOne,
        Some(Command::Gateway) => Role::Gateway,
        Some(Command::Worker) => Role::Worker,
        Some(Command::Once(command)) => return runtime.block_on(cli::run(command, &config)),
    };
    if let Err(message) = log_to_stderr() {
        eprintln!("floodgate: {message}");
        return ExitCode::from(2);
    }
    match runtime.block_on(roles::run(role, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => complain(&e, e.exit_code()),
    }
}

fn complain(error: &dyn std::error::Error, exit_code: u8) -> ExitCode {
    eprintln!("floodgate: {error}");
    ExitCode::from(exit_code)
}

/// One line an event, no more than `FLOODGATE_LOG` (error, warn, info, debug, trace; info by default) lets through.
fn log_to_stderr() -> Result<(), String> {
    let level = match std::env::var("FLOODGATE_LOG") {
        Ok(level) if !level.is_empty() => level
            .parse()
            .map_err(|_| format!("FLOODGATE_LOG: {level:?} is none of error, warn, info, debug, trace"))?,
        _ => tracing::Level::INFO,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    Ok(())
}
