//! `floodgate ledger …`: the stock ledger's books, who takes part, and its rebuild.

use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use order_worker::membership::operator;
use order_worker::{Author, RebuildError};
use serde::Serialize;
use serde_json::json;
use stock::config::StockBackend;
use stock::{DeploymentId, Owner, SaleId};
use tokio::time::{Instant, sleep};

use super::audit::{Books, books};
use super::shared_ledger::SharedLedger;
use super::{Failure, Json, admin_client, logs, output};
use crate::config::Config;
use crate::{engines, log, stdout};

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Show the books of every sale that the ledger knows
    ///
    /// In Redis they are counted entry by entry, by another client than the one that sells; no process need run.
    Show(#[command(flatten)] Json),
    /// List the registered instances: all logs, whether they may hold promises, how far each is merged, and who has a lease
    Instances(#[command(flatten)] Json),
    /// Rebuild a shared ledger from database and logs: no unit is sold meanwhile
    ///
    /// An embedded ledger is rebuilt at each start: there only --without is of use, while no process runs.
    ///
    /// Running processes rebuild by themselves when Redis has lost its memory; this is for a ledger that you do not trust. Each
    /// gateway merges its own log; a dead one's is merged by a neighbour on its machine. A log that is out of reach for good
    /// blocks the rebuild until it is left out.
    Rebuild {
        /// Leave out the log of this instance, as `ledger instances` lists it: its undrained promises are lost, and their units
        /// sold again; says how many are known. Refused while the instance lives. It stays listed as left out, so that the log is known
        /// should it come back. A worker's log, which holds no promises, is taken off the registry: nothing is rebuilt
        #[arg(long, value_name = "LOG", value_parser = log_id)]
        without: Option<Owner>,
    },
    /// Take over the sales that another orders database holds in a shared ledger, after it was lost or made anew
    ///
    /// A Redis (with its stock.key_prefix) belongs to one orders database: sales that another one holds there are refused. This makes
    /// those of this database's sales its own, forgets what the other one promised on them, and lets running processes rebuild
    /// them from this database and its logs; it works without one, too. A database that was put back or moved to another server
    /// needs none of this: it is the same one. Refused while an instance of the other one lives.
    Adopt,
}

/// How long a lease may last that nobody renews: longer than any does.
const LEASE_MAX: Duration = Duration::from_secs(7);
const LEASE_LOOK: Duration = Duration::from_millis(250);

fn log_id(text: &str) -> Result<Owner, String> {
    text.parse().map_err(|_| {
        "a log is named by up to 16 hexadecimal digits, as `ledger instances` lists it".to_owned()
    })
}

pub(super) async fn run(command: LedgerCommand, config: &Config) -> Result<(), Failure> {
    match command {
        LedgerCommand::Show(json) if config.stock.backend == StockBackend::Embedded => {
            show_running(config, json).await
        }
        LedgerCommand::Show(json) => show_shared(config, json).await,
        LedgerCommand::Instances(json) => instances(config, json).await,
        LedgerCommand::Rebuild { without } => rebuild(config, without).await,
        LedgerCommand::Adopt => adopt(config).await,
    }
}

async fn show_running(config: &Config, json: Json) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct SaleBooks {
        sale: SaleId,
        #[serde(flatten)]
        books: Books,
    }
    let mut shown = Vec::new();
    let rows = engines::open_database_to_read(config).await?.sales().await?;
    for row in rows.into_iter().filter(|row| !row.settled) {
        let books = books(config, &row.definition.id).await?;
        shown.push(SaleBooks { sale: row.definition.id, books });
    }
    output::list(
        json,
        &shown,
        ["SALE", "EPOCH", "TOTAL", "REMAINING", "PENDING", "CONFIRMED", "BACKLOG", "SOLD OUT", "PAUSED BY"],
        |line| {
            [
                line.sale.to_string(),
                line.books.epoch.to_string(),
                line.books.total.to_string(),
                line.books.remaining.to_string(),
                line.books.pending.to_string(),
                line.books.confirmed.to_string(),
                line.books.backlog.to_string(),
                yes(line.books.remaining <= 0),
                line.books.paused_by.clone().unwrap_or_default(),
            ]
        },
    )
}

async fn show_shared(config: &Config, json: Json) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct SaleBooks {
        sale: SaleId,
        #[serde(flatten)]
        books: super::shared_ledger::SharedBooks,
    }
    let database = engines::open_database_to_read(config).await?;
    let ledger = SharedLedger::connect(config, database.known_deployment().await?).await?;
    let mut shown = Vec::new();
    for row in database.sales().await? {
        if let Some(books) = ledger.sale(&row.definition.id).await? {
            shown.push(SaleBooks { sale: row.definition.id, books });
        }
    }
    output::list(
        json,
        &shown,
        [
            "SALE",
            "EPOCH",
            "TOTAL",
            "REMAINING",
            "PENDING",
            "CONFIRMED",
            "RELEASED ORDERS",
            "SOLD OUT",
            "OPEN",
            "PAUSED",
            "FINDINGS",
        ],
        |line| {
            let books = &line.books;
            [
                line.sale.to_string(),
                books.epoch.to_string(),
                books.total.to_string(),
                books.remaining.to_string(),
                books.pending.to_string(),
                books.confirmed.to_string(),
                books.released_orders.to_string(),
                yes(books.sold_out),
                yes(books.open),
                yes(books.paused),
                books.findings.join("; "),
            ]
        },
    )
}

async fn instances(config: &Config, json: Json) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Line {
        #[serde(flatten)]
        log: logs::Log,
        merged_epoch: u64,
        /// Whether a rebuild still waits for it.
        awaited: bool,
        lease_left_ms: Option<u64>,
    }
    let database = engines::open_database_to_read(config).await?;
    let stock = match config.stock.backend {
        // It is in the memory of the one instance.
        StockBackend::Embedded => None,
        StockBackend::Redis => {
            // One that has no id yet has tied no sale to itself.
            let deployment = database.known_deployment().await?.unwrap_or(DeploymentId(0));
            match engines::open_stock_aside(config, deployment).await {
                Ok(stock) => Some(stock),
                // The registry is the database's: whose log a rebuild will need is known all the same.
                Err(error) => {
                    log::say(format_args!("nobody's lease is known: {error}"));
                    None
                }
            }
        }
    };
    let status = operator::status(&database, stock.as_ref()).await?;
    let logs = logs::registered(&database).await?;
    let lines: Vec<Line> = logs
        .into_iter()
        .filter_map(|log| {
            let instance = status.instances.iter().find(|instance| instance.owner == log.instance)?;
            Some(Line {
                merged_epoch: instance.merged_epoch,
                awaited: status.waiting_for.contains(&instance.owner),
                lease_left_ms: instance.lease_left_ms,
                log,
            })
        })
        .collect();
    output::list(
        json,
        &lines,
        [
            "INSTANCE",
            "PLACE",
            "PROMISES",
            "BACKLOG",
            "MERGED EPOCH",
            "LEASE MS",
            "AWAITED",
            "LEFT OUT",
            "TROUBLE",
        ],
        |line| {
            let number =
                |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            [
                line.log.instance.clone(),
                line.log.place.clone(),
                yes(line.log.holds_promises),
                number(line.log.backlog),
                if line.log.holds_promises { line.merged_epoch.to_string() } else { "-".to_owned() },
                number(line.lease_left_ms),
                yes(line.awaited),
                yes(line.log.left_out),
                line.log.trouble.clone().unwrap_or_default(),
            ]
        },
    )
}

async fn rebuild(config: &Config, without: Option<Owner>) -> Result<(), Failure> {
    if config.stock.backend == StockBackend::Embedded {
        let Some(log) = without else {
            return Err(Failure::Usage(
                "the embedded ledger lives in the process and is rebuilt at each start: restart `floodgate`"
                    .into(),
            ));
        };
        return leave_out(config, log).await;
    }
    let without = without.map(|log| log.to_string());
    let begun = admin_client::call(
        config,
        Method::POST,
        "/admin/v1/ledger/rebuild",
        Some(&json!({ "without": without })),
    )
    .await?;
    output::one(Json { json: false }, &begun)
}

/// Of an embedded ledger, whose process refuses to start while a log is out of reach: done by nobody else meanwhile.
async fn leave_out(config: &Config, log: Owner) -> Result<(), Failure> {
    let database = engines::open_database_to_read(config).await?;
    let _claim = engines::claim_database(config)?;
    operator::forget_instance(&database, None, log, &author(config)?).await?;
    Ok(stdout::line(format_args!(
        "{log} is left out: what it promised and nobody drained is lost. Start `floodgate` again."
    ))?)
}

async fn adopt(config: &Config) -> Result<(), Failure> {
    if config.stock.backend == StockBackend::Embedded {
        return Err(Failure::Usage(
            "the embedded ledger lives in the process: nobody else has sales in it".into(),
        ));
    }
    let database = engines::open_database_to_read(config).await?;
    let stock = engines::open_stock_aside(config, engines::deployment(&database).await?).await?;
    let (until, author) = (Instant::now() + LEASE_MAX, author(config)?);
    let adopted = loop {
        match operator::adopt(&database, &stock, &author).await {
            // Stopped a moment ago, or killed: its lease ends by itself.
            Err(RebuildError::OtherAlive(_)) if Instant::now() < until => sleep(LEASE_LOOK).await,
            adopted => break adopted?,
        }
    };
    if adopted.sales.is_empty() {
        return Ok(stdout::line(
            "No sale of this orders database belongs to another one: nothing is changed.",
        )?);
    }
    let sales: Vec<String> = adopted.sales.iter().map(ToString::to_string).collect();
    Ok(stdout::line(format_args!(
        "Taken over: {}. Running processes rebuild them within seconds (epoch {} or later); start `floodgate` where none runs.",
        sales.join(", "),
        adopted.epoch
    ))?)
}

/// Who runs a command that changes the database itself, as the journal names them.
fn author(config: &Config) -> Result<Author, Failure> {
    Ok(config.journal_key()?.operator("command line"))
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}
