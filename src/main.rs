//! The one binary: reads the configuration, chooses adapters, wires, runs, shuts down. Nothing else.
#![forbid(unsafe_code)]
// A macro that prints panics where its reader has gone or its disk is full: see `stdout` and `log`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod clock;
mod config;
mod demo;
mod engines;
mod entropy;
mod gateway_ports;
mod log;
mod queue_words;
mod roles;
mod sale_words;
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
    let log = match log::Log::start() {
        Ok(log) => log,
        Err(message) => {
            log::say(message);
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(roles::run(role, config)) {
        Ok(()) => {
            log.end(None);
            ExitCode::SUCCESS
        }
        Err(e) => {
            log.end(Some(&e.to_string()));
            ExitCode::from(e.exit_code())
        }
    }
}

fn complain(error: &dyn std::error::Error, exit_code: u8) -> ExitCode {
    log::say(error);
    ExitCode::from(exit_code)
}
