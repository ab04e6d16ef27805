//! The one binary: reads the configuration, chooses adapters, wires, runs, shuts down. Nothing else.
#![forbid(unsafe_code)]

mod all_in_one;
mod books;
mod cli;
mod clock;
mod config;
mod demo;
mod engines;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
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
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(e) => complain(&e, 2),
        };
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return complain(&e, 1),
    };
    match cli.command {
        Some(command) => runtime.block_on(cli::run(command, &config)),
        None => {
            if let Err(message) = log_to_stderr() {
                eprintln!("floodgate: {message}");
                return ExitCode::from(2);
            }
            if let Err(e) = config.check_role(Role::AllInOne) {
                return complain(&e, 2);
            }
            match runtime.block_on(all_in_one::run(config)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => complain(&e, e.exit_code()),
            }
        }
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
