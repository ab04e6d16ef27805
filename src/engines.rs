//! Chooses adapters: what the configuration names becomes a ledger, a flag, a queue and a database.

use order_worker::database::{SchemaState, StockClaim};
use order_worker::{Database, DatabaseError, Executor};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Queue, QueueError};
use stock::{EmbeddedFlag, EmbeddedLedger, Flag, Ledger, Now, Stock};

use crate::clock;
use crate::config::Config;

/// The orders database, made and brought up to date if it is the embedded one.
pub(crate) fn open_database(config: &Config, now: Now) -> Result<Database, DatabaseError> {
    Database::open_sqlite(config.orders.database_url.reveal(), Executor::Thread, now)
}

/// The right to sell from the orders database with a ledger in this process's memory.
pub(crate) fn claim_database(config: &Config) -> Result<StockClaim, DatabaseError> {
    StockClaim::of_sqlite(config.orders.database_url.reveal())
}

/// The orders database as it is: reading commands create nothing.
pub(crate) fn open_database_to_read(config: &Config) -> Result<Database, DatabaseError> {
    let state = Database::check_sqlite(config.orders.database_url.reveal())?;
    if state == SchemaState::Missing {
        return Err(DatabaseError::Unavailable(format!(
            "nothing is in {} yet: start `floodgate` once, run this where it runs, or set orders.database_url",
            config.orders.database_url
        )));
    }
    if !state.is_usable() {
        return Err(DatabaseError::Schema(format!("{}: {state}", config.orders.database_url)));
    }
    open_database(config, clock::system())
}

/// The queue's directory, locked for this process.
pub(crate) fn open_queue(config: &Config, now: Now, registry: &mut Registry) -> Result<Queue, QueueError> {
    Queue::open_disk(disk_options(config, now), registry)
}

/// The queue's directory beside the process that owns it: nothing can be appended.
pub(crate) fn attach_queue(config: &Config) -> Result<Queue, QueueError> {
    Queue::attach_disk(disk_options(config, clock::system()), &mut Registry::default())
}

fn disk_options(config: &Config, now: Now) -> DiskOptions {
    let mut options = DiskOptions::new(&config.queue.directory, now);
    options.backlog_max = config.queue.backlog_max;
    options
}

/// The ledger and the flag of this process. `life` is random: the flag's versions begin anew with each.
pub(crate) fn open_stock(now: Now, life: u64, registry: &mut Registry) -> Stock {
    Stock::new(Ledger::Embedded(EmbeddedLedger::new(now)), Flag::Embedded(EmbeddedFlag::new(life)), registry)
}

/// Every buyer is a socket: takes as many descriptors as the system lets this user have.
pub(crate) fn raise_open_files_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "the limit of open files could not be raised");
    }
}
