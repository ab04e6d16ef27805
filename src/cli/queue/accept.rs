//! `queue accept`: a log that fits no registry is taken for this orders database, on an operator's word.

use clap::Args;
use order_worker::membership::operator::begin_rebuild;
use order_worker::membership::tie::{self, Misfit, TieError};
use queue::{Queue, QueueError};
use stock::Owner;

use super::super::Failure;
use crate::config::Config;
use crate::{clock, engines, stdout};

/// Which log is taken.
#[derive(Debug, Args)]
pub(crate) struct Accept {
    /// The log's id, as the start that was refused names it: the log in queue.directory must have it
    #[arg(value_parser = log_id)]
    log: Owner,
}

fn log_id(text: &str) -> Result<Owner, String> {
    text.parse().map_err(|_| {
        "a log is named by up to 16 hexadecimal digits, as the start that was refused names it".to_owned()
    })
}

impl Accept {
    pub(super) async fn run(self, config: &Config, queue: &Queue) -> Result<(), Failure> {
        let log = Owner(queue.instance());
        if log != self.log {
            return Err(Failure::Usage(format!(
                "the log in {} is {log}, not {}: name that one, or set queue.directory",
                config.queue.directory.display(),
                self.log
            )));
        }
        let database = engines::open_database_to_read(config).await?;
        let deployment = engines::deployment(&database).await?;
        let address = config.queue.own_log();
        let misfit = match tie::accept(queue, &address, &database, deployment, clock::system()).await {
            Err(TieError::Queue(QueueError::InUse { .. })) => {
                return Err(Failure::Failed("floodgate is running and owns the log: stop it first".into()));
            }
            Err(TieError::Queue(error)) => return Err(error.into()),
            Err(TieError::Database(error)) => return Err(error.into()),
            // The check's own is what is answered for.
            Err(error @ TieError::Misfit(_)) => return Err(Failure::Failed(error.to_string())),
            Ok(misfit) => misfit,
        };
        if misfit.is_some() && engines::ledger_outlives(config) {
            // It may remember what that database, or that log, does not. A crash before it leaves the life to `queue reset-offset`.
            begin_rebuild(&database, &config.journal_key()?.operator("command line")).await?;
        }
        let shown = &config.orders.database_url;
        let words = match misfit {
            None => format!("Log {log} fits {shown} as it is: nothing is changed."),
            Some(misfit) => format!("Log {log} is taken for {shown}. It {misfit}. {}", risk(&misfit)),
        };
        Ok(stdout::line(words)?)
    }
}

/// What it costs.
fn risk(misfit: &Misfit) -> &'static str {
    match misfit {
        Misfit::Untied => {
            "Whatever it holds is written there as orders, once its sales are published; orders of sales that are not hold up the drain."
        }
        Misfit::Elsewhere { .. } => {
            "What it holds is written to this database and no longer to the other one, whose ledger keeps the units of undrained orders. \
             Orders of sales that this database lacks hold up the drain until they are published."
        }
        Misfit::Copy { .. } => {
            "What was promised after this copy was made is not in it, and is lost: buyers who were answered 202 then have no order. Never \
             start the other copy again: two logs of one name would give units away twice."
        }
        Misfit::Ahead { .. } => {
            "What this database lacks is in the log, as far as it keeps drained records: `floodgate queue reset-offset floodgate-orders \
             order-worker --before TIME`, with a time before the backup was begun, has it written again. Start after that, or it is lost."
        }
    }
}
