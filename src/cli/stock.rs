//! `floodgate stock …`: the scripts that a shared ledger runs.

use ::stock::config::StockBackend;
use clap::Subcommand;

use super::{Failure, Json};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(crate) enum StockCommand {
    /// Load every script into Redis, compare its checksum, and run it where it changes nothing; exit 1 if one does not do what it
    /// should
    ///
    /// Not needed for running: a gateway loads what Redis has not. It tells before a sale that Redis takes them all.
    DeployScripts(#[command(flatten)] Json),
}

pub(super) async fn run(command: StockCommand, config: &Config) -> Result<(), Failure> {
    let StockCommand::DeployScripts(json) = command;
    if config.stock.backend == StockBackend::Embedded {
        return Err(Failure::Usage(
            "stock.backend is \"embedded\", which runs no scripts: set stock.backend = \"redis\" and stock.redis_urls".into(),
        ));
    }
    deploy(config, json).await
}

#[cfg(feature = "redis")]
async fn deploy(config: &Config, json: Json) -> Result<(), Failure> {
    let deployed = ::stock::ledger::redis::deploy_scripts(&config.stock).await?;
    if !json.json {
        crate::stdout::line(format_args!("loaded into Redis at {} and tried:", deployed.server))?;
    }
    super::output::list(json, &deployed.scripts, ["SCRIPT", "SHA-1"], |script| {
        [script.name.to_owned(), script.sha.clone()]
    })
}

#[cfg(not(feature = "redis"))]
async fn deploy(_: &Config, _: Json) -> Result<(), Failure> {
    unreachable!("Config::load refuses a backend that is not compiled in")
}
