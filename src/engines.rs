//! Chooses adapters: what the configuration names becomes a ledger, a flag, a queue and a database.
//!
//! A backend that is not compiled in never gets here: the configuration refuses it.

use order_worker::database::{SchemaState, StockClaim};
use order_worker::{Database, DatabaseError, Executor, OrdersBackend, TIMEOUTS_TOPIC};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Queue, QueueConfig, QueueError};
use stock::config::{SoldOutBackend, StockBackend};
use stock::{DeploymentId, EmbeddedFlag, EmbeddedLedger, Flag, Ledger, Now, Stock};

use crate::clock;
use crate::config::Config;
use crate::entropy::random;

/// An engine that the configuration names, and that does not serve us. Never shows a password.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub(crate) struct EngineError {
    /// The configuration key that leads to it.
    key: &'static str,
    problem: String,
}

fn absent(key: &'static str) -> EngineError {
    EngineError { key, problem: "this backend is not compiled into this binary".into() }
}

/// The orders database. The embedded one is made and brought up to date; a schema in production is changed by `floodgate
/// migrate` alone.
pub(crate) async fn open_database(config: &Config, now: Now) -> Result<Database, DatabaseError> {
    let url = config.orders.database_url.reveal();
    match config.orders.backend {
        OrdersBackend::Sqlite => Database::open_sqlite(url, Executor::Thread, now),
        #[cfg(feature = "mysql")]
        OrdersBackend::Mysql => Database::open_mysql(url).await.map_err(|error| placed(config, error)),
        _ => Err(DatabaseError::Broken(absent("orders.backend").to_string())),
    }
}

/// Whether other machines may use the same orders database.
pub(crate) fn is_shared(config: &Config) -> bool {
    config.orders.backend != OrdersBackend::Sqlite
}

/// Whether the ledger outlives this process, and other processes may use it.
pub(crate) fn ledger_outlives(config: &Config) -> bool {
    config.stock.backend != StockBackend::Embedded
}

/// The right to sell from an embedded orders database: one process at a time. Shared ones are guarded by their registry.
pub(crate) fn claim_database(config: &Config) -> Result<Option<StockClaim>, DatabaseError> {
    match config.orders.backend {
        OrdersBackend::Sqlite => StockClaim::of_sqlite(config.orders.database_url.reveal()).map(Some),
        OrdersBackend::Mysql | OrdersBackend::External => Ok(None),
    }
}

/// How the tables of the orders database stand to this program; changes nothing.
pub(crate) async fn check_database(config: &Config) -> Result<SchemaState, DatabaseError> {
    let url = config.orders.database_url.reveal();
    match config.orders.backend {
        OrdersBackend::Sqlite => Database::check_sqlite(url),
        #[cfg(feature = "mysql")]
        OrdersBackend::Mysql => Database::check_mysql(url).await.map_err(|error| placed(config, error)),
        _ => Err(DatabaseError::Broken(absent("orders.backend").to_string())),
    }
}

/// Brings the tables of the orders database up to date; answers with the versions applied.
pub(crate) async fn migrate_database(config: &Config) -> Result<Vec<u32>, DatabaseError> {
    let url = config.orders.database_url.reveal();
    match config.orders.backend {
        OrdersBackend::Sqlite => Database::migrate_sqlite(url),
        #[cfg(feature = "mysql")]
        OrdersBackend::Mysql => Database::migrate_mysql(url).await.map_err(|error| placed(config, error)),
        _ => Err(DatabaseError::Broken(absent("orders.backend").to_string())),
    }
}

/// Says where a server is that does not serve us, and which key leads to it. Never with the password.
#[cfg(feature = "mysql")]
fn placed(config: &Config, error: DatabaseError) -> DatabaseError {
    let place = |text: String| format!("{text} (orders.database_url = \"{}\")", config.orders.database_url);
    match error {
        DatabaseError::Unavailable(text) => DatabaseError::Unavailable(place(text)),
        DatabaseError::Broken(text) => DatabaseError::Broken(place(text)),
        error => error,
    }
}

/// The whole schema as SQL.
pub(crate) fn schema_sql(config: &Config) -> String {
    match config.orders.backend {
        #[cfg(feature = "mysql")]
        OrdersBackend::Mysql => order_worker::database::mysql_schema_sql(),
        _ => order_worker::schema_sql(),
    }
}

/// The orders database as it is: reading commands create nothing.
pub(crate) async fn open_database_to_read(config: &Config) -> Result<Database, DatabaseError> {
    let state = check_database(config).await?;
    let url = &config.orders.database_url;
    if state == SchemaState::Missing && !is_shared(config) {
        return Err(DatabaseError::Unavailable(format!(
            "nothing is in {url} yet: start `floodgate` once, run this where it runs, or set orders.database_url"
        )));
    }
    if !state.is_usable() {
        return Err(DatabaseError::Schema(format!("{url}: {state}")));
    }
    open_database(config, clock::system()).await
}

/// The longest order: its metadata, and its ids and fixed parts.
const ORDER_BYTES_MAX: usize = gateway::purchase::METADATA_BYTES_MAX + 384;

/// The queue's directory, locked for this process.
pub(crate) fn open_queue(config: &Config, now: Now, registry: &mut Registry) -> Result<Queue, QueueError> {
    Queue::open_disk(disk_options(config, now), registry)
}

/// The same for a command that puts a record back which the log has held before: whose the log is, is known.
pub(crate) fn open_queue_aside(config: &Config) -> Result<Queue, QueueError> {
    let mut options = disk_options(config, clock::system());
    options.tied = false;
    Queue::open_disk(options, &mut Registry::default())
}

/// A worker's own directory, locked for this process. Opened anew whenever it was lost, so that its metrics are the worker's.
pub(crate) fn open_worker_queue(config: &QueueConfig, now: Now) -> Result<Queue, QueueError> {
    Queue::open_disk(
        config.disk_options(&config.worker_directory, now, TIMEOUTS_TOPIC),
        &mut Registry::default(),
    )
}

/// The queue's directory beside the process that owns it: nothing can be appended.
pub(crate) async fn attach_queue(config: &Config) -> Result<Queue, QueueError> {
    Queue::attach(&config.queue.own_log(), clock::system()).await
}

fn disk_options(config: &Config, now: Now) -> DiskOptions {
    let mut options = config.queue.disk_options(&config.queue.directory, now, TIMEOUTS_TOPIC);
    // A purchase that the limit lets in finds room in the log, whatever its metadata.
    options.in_flight_max = config.limits.in_flight_max;
    options.in_flight_bytes = ORDER_BYTES_MAX;
    // It holds promises: none before it is known whose.
    options.tied = true;
    options
}

/// What ties a shared ledger to this database, made by the first process that uses it.
pub(crate) async fn deployment(database: &Database) -> Result<DeploymentId, DatabaseError> {
    let candidate = DeploymentId(u128::from(random()) << 64 | u128::from(random()));
    database.deployment(candidate).await
}

/// Ledger and flag. `life` is random: the edge feed's versions begin anew with each process.
pub(crate) async fn open_stock(
    config: &Config,
    deployment: DeploymentId,
    now: Now,
    life: u64,
    registry: &mut Registry,
) -> Result<Stock, EngineError> {
    let ledger = open_ledger(config, deployment, now).await?;
    let flag = match config.sold_out.backend {
        SoldOutBackend::Embedded => Flag::Embedded(EmbeddedFlag::new(life)),
        #[cfg(feature = "zookeeper")]
        SoldOutBackend::Zookeeper => {
            let connected = stock::ZooKeeperFlag::connect(&config.sold_out, life).await;
            Flag::ZooKeeper(
                connected
                    .map_err(|error| EngineError { key: "sold_out.zookeeper", problem: error.to_string() })?,
            )
        }
        #[cfg(not(feature = "zookeeper"))]
        SoldOutBackend::Zookeeper => return Err(absent("sold_out.backend")),
    };
    Ok(Stock::new(ledger, flag, registry))
}

/// The shared ledger for a command: without the flag, which is nobody's truth.
pub(crate) async fn open_stock_aside(
    config: &Config,
    deployment: DeploymentId,
) -> Result<Stock, EngineError> {
    let ledger = open_ledger(config, deployment, clock::system()).await?;
    Ok(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(0)), &mut Registry::default()))
}

async fn open_ledger(config: &Config, deployment: DeploymentId, now: Now) -> Result<Ledger, EngineError> {
    Ok(match config.stock.backend {
        StockBackend::Embedded => Ledger::Embedded(EmbeddedLedger::new(now)),
        #[cfg(feature = "redis")]
        StockBackend::Redis => Ledger::Redis(
            stock::RedisLedger::connect(&config.stock, deployment)
                .await
                .map_err(|error| EngineError { key: "stock.redis_urls", problem: error.to_string() })?,
        ),
        #[cfg(not(feature = "redis"))]
        StockBackend::Redis => {
            let _ = deployment;
            return Err(absent("stock.backend"));
        }
    })
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
