//! `floodgate audit`: do ledger, logs and rows agree?
//!
//! The rows are read from the database, and every registered log that is on this machine. A ledger in Redis is counted there; an
//! embedded one lives in the running process and is asked through its admin listener. Without a running process there is none to
//! compare: the rows alone are audited, and the audit is incomplete, as it is while a rebuild is under way. Money is audited from the rows
//! alone (`money`).

mod money;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use hyper::Method;
use order_worker::{
    Accounts, Database, LONG_PENDING_MS, LongPending, Rejected, SaleAudit, account_for, audit, totals_differ,
};
use serde::{Deserialize, Serialize};
use stock::config::StockBackend;
use stock::{OrderId, SaleId, Timestamp};

use super::logs::{self, Log};
use super::shared_ledger::{SharedBooks, SharedLedger};
use super::{Failure, Json, admin_client, output};
use crate::config::Config;
use crate::{engines, log, stdout};

/// How to audit, and what is known already.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[command(flatten)]
    json: Json,
    /// Audit money alone: what became of every captured payment, by currency; exit 1 if a minor unit does not add up
    ///
    /// Without it money is audited beside the sales, and shown unless with --json.
    #[arg(long)]
    money: bool,
    /// Compare payments and refunds with a provider's statement, too: a CSV with the columns of docs/payments.md
    ///
    /// Named are payments that floodgate never heard of, and those that it has and the provider has not; refunds
    /// likewise; and amounts that differ.
    #[arg(long, value_name = "FILE")]
    statement: Option<PathBuf>,
    /// Orders that were rejected before this time are known, such as 2026-11-11T20:00:00+08:00: they are not named again
    #[arg(long, value_name = "TIME")]
    rejected_since: Option<Timestamp>,
}

/// The ledger's side of one sale, as the admin listener says it or as it was counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Books {
    pub(super) total: u64,
    pub(super) remaining: i64,
    pub(super) pending: u64,
    pub(super) confirmed: u64,
    pub(super) sold: u64,
    pub(super) backlog: u64,
    pub(super) at_rest: bool,
    pub(super) epoch: u64,
    pub(super) paused_by: Option<String>,
    /// What the process itself found.
    #[serde(default, skip_serializing)]
    pub(super) broken: Vec<String>,
}

/// What can be said of one sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Everything adds up.
    Good,
    /// Something does not.
    Broken,
    /// Promises could be where nobody looked: the ledger is closed for a rebuild, or orders are pending and a log was out of reach.
    Incomplete,
    /// The rows add up; the ledger was not asked. Incomplete as well, but for a sale that is settled, which has left the ledger.
    RowsOnly,
}

#[derive(Serialize)]
struct Line {
    verdict: Verdict,
    #[serde(flatten)]
    rows: SaleAudit,
    running: Option<Books>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_ledger: Option<SharedBooks>,
    /// Where those are that have been pending for long; none if nothing has.
    long_pending: Option<Accounts>,
    /// Why nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rejected_orders: Vec<order_worker::database::RejectedOrder>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
}

impl Line {
    fn new(
        rows: SaleAudit,
        running: Option<Books>,
        shared_ledger: Option<SharedBooks>,
        logs: &[Log],
    ) -> Self {
        Self {
            verdict: Verdict::Good,
            rows,
            running,
            shared_ledger,
            long_pending: None,
            incomplete: None,
            rejected_orders: Vec::new(),
            logs: logs.to_vec(),
        }
    }

    /// `pending`: what the ledger has held for long.
    async fn look_closer(
        &mut self,
        database: &Database,
        logs: &[Log],
        rejected_since: Timestamp,
        pending: Vec<LongPending>,
    ) -> Result<(), Failure> {
        if self.rows.rejected > 0 {
            let rejected = Rejected::since(database, &self.rows.sale, rejected_since).await?;
            self.rows.broken.extend(rejected.fault());
            self.rejected_orders = rejected.named;
        }
        if !pending.is_empty() {
            let orders: Vec<_> = logs.iter().filter_map(|log| log.orders.clone()).collect();
            let accounts = account_for(database, &orders, pending).await?;
            self.rows.broken.extend(accounts.faults());
            let out_of_reach = logs::out_of_reach(logs);
            match accounts.gap() {
                Some(gap) if out_of_reach.is_empty() => self.rows.broken.push(gap),
                Some(gap) => {
                    self.incomplete = Some(format!(
                        "{gap}; these logs were out of reach: {}. Run this where they are",
                        out_of_reach.join("; ")
                    ));
                }
                None if accounts.not_asked > 0 => {
                    self.incomplete = Some(format!(
                        "{} more orders have been pending for long and are in no log within reach; not all of them were looked for",
                        accounts.not_asked
                    ));
                }
                None => {}
            }
            self.long_pending = Some(accounts);
        }
        if !self.rows.broken.is_empty() {
            self.verdict = Verdict::Broken;
        } else if self.incomplete.is_some() && self.verdict == Verdict::Good {
            self.verdict = Verdict::Incomplete;
        }
        Ok(())
    }
}

pub(super) async fn books(config: &Config, sale: &SaleId) -> Result<Books, Failure> {
    let answer = admin_client::call(config, Method::GET, &format!("/admin/v1/sales/{sale}"), None).await?;
    Ok(serde_json::from_value(answer)?)
}

pub(super) async fn run(arguments: Audit, config: &Config) -> Result<(), Failure> {
    let database = engines::open_database_to_read(config).await?;
    let books = money::audit(&database, arguments.statement.as_deref()).await?;
    if arguments.money {
        money::print(arguments.json, &books)?;
        return money::fault(&books).map_or(Ok(()), |fault| Err(Failure::Failed(fault)));
    }
    let since = arguments.rejected_since.unwrap_or(Timestamp(0));
    let (lines, gap) = match config.stock.backend {
        StockBackend::Embedded => embedded(config, &database, since).await?,
        StockBackend::Redis => shared(config, &database, since).await?,
    };
    output::list(
        arguments.json,
        &lines,
        ["SALE", "TOTAL", "SOLD", "HELD", "REMAINING", "PENDING", "CONFIRMED", "AT REST", "BROKEN"],
        |line| {
            let of =
                |figure: fn(&Books) -> String| line.running.as_ref().map_or_else(|| "?".to_owned(), figure);
            [
                line.rows.sale.to_string(),
                line.rows.total.map_or_else(|| "no row".to_owned(), |total| total.to_string()),
                line.rows.sold.to_string(),
                line.rows.units_held.to_string(),
                of(|books| books.remaining.to_string()),
                of(|books| books.pending.to_string()),
                of(|books| books.confirmed.to_string()),
                of(|books| books.at_rest.to_string()),
                line.rows.broken.join("; "),
            ]
        },
    )?;
    if !arguments.json.json && books.payments > 0 {
        stdout::line("")?;
        money::print(arguments.json, &books)?;
    }
    if let Some(gap) = gap {
        log::say(gap);
    }
    verdict(&lines, money::fault(&books))
}

/// The exit code, in words.
fn verdict(lines: &[Line], money: Option<String>) -> Result<(), Failure> {
    let mut faults: Vec<String> = money.into_iter().collect();
    let broken = lines.iter().filter(|line| !line.rows.broken.is_empty()).count();
    if broken > 0 {
        faults.push(format!("{broken} of {} sales do not add up", lines.len()));
    }
    for line in lines {
        if let Some(why) = &line.incomplete {
            faults.push(format!("the audit of {} is incomplete: {why}", line.rows.sale));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Failure::Failed(faults.join("\nfloodgate: "))) }
}

/// Every sale's rows beside what the running process says, and what could not be audited.
async fn embedded(
    config: &Config,
    database: &Database,
    since: Timestamp,
) -> Result<(Vec<Line>, Option<String>), Failure> {
    let logs = logs::registered(database).await?;
    let mut lines = Vec::new();
    let mut unreachable = None;
    let settled: BTreeSet<SaleId> = database
        .sales()
        .await?
        .into_iter()
        .filter_map(|row| row.settled.then_some(row.definition.id))
        .collect();
    for rows in audit(database, None, None, None).await?.sales {
        let mut asked = None;
        if unreachable.is_none() && rows.total.is_some() {
            match ask(config, &rows.sale).await {
                Ok(answer) => asked = Some(answer),
                Err(Failure::Failed(why) | Failure::Usage(why)) => {
                    unreachable = Some(format!("only the database was audited, not the ledger: {why}"));
                }
            }
        }
        let (running, pending) = asked.map_or((None, Vec::new()), |(books, pending)| (Some(books), pending));
        let mut line = Line::new(rows, running, None, &[]);
        match &line.running {
            Some(books) => {
                let found = disagreements(books, &line.rows).into_iter().chain(books.broken.iter().cloned());
                let found: Vec<String> = found.filter(|found| !line.rows.broken.contains(found)).collect();
                line.rows.broken.extend(found);
            }
            None => {
                line.verdict = Verdict::RowsOnly;
                if line.rows.total.is_some() && !settled.contains(&line.rows.sale) {
                    line.incomplete = Some(
                        "the process that holds the ledger does not answer, so nobody can tell what it has promised beside the rows; \
                         start `floodgate`, then run this again"
                            .into(),
                    );
                }
            }
        }
        line.look_closer(database, &logs, since, pending).await?;
        lines.push(line);
    }
    Ok((lines, unreachable))
}

/// The books of one sale, and what has been pending there for long.
async fn ask(config: &Config, sale: &SaleId) -> Result<(Books, Vec<LongPending>), Failure> {
    let books = books(config, sale).await?;
    let pending = if books.pending > 0 { long_pending(config, sale).await? } else { Vec::new() };
    Ok((books, pending))
}

async fn long_pending(config: &Config, sale: &SaleId) -> Result<Vec<LongPending>, Failure> {
    #[derive(Deserialize)]
    struct Page {
        now: Timestamp,
        pending: Vec<Pending>,
        next: Option<OrderId>,
    }
    #[derive(Deserialize)]
    struct Pending {
        order_id: OrderId,
        quantity: u32,
        reserved_at: Timestamp,
    }
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/admin/v1/sales/{sale}/pending{after}");
        let page: Page = serde_json::from_value(admin_client::call(config, Method::GET, &path, None).await?)?;
        // A time that lies as far ahead is as old: the clock was put back.
        let long =
            page.pending.iter().filter(|held| page.now.0.abs_diff(held.reserved_at.0) >= LONG_PENDING_MS);
        found.extend(long.map(|held| LongPending { order_id: held.order_id, quantity: held.quantity }));
        match page.next {
            Some(next) => after = format!("?after={next}"),
            None => return Ok(found),
        }
    }
}

/// Every sale's rows beside the shared ledger and the logs, and what could not be audited.
async fn shared(
    config: &Config,
    database: &Database,
    since: Timestamp,
) -> Result<(Vec<Line>, Option<String>), Failure> {
    let ledger = SharedLedger::connect(config, database.known_deployment().await?).await?;
    let logs = logs::registered(database).await?;
    let out_of_reach = logs::out_of_reach(&logs);
    let (mut lines, mut closed) = (Vec::new(), Vec::new());
    for sale in database.sales_named().await? {
        let row = database.sale(&sale).await?;
        let is_due = row.as_ref().is_some_and(|row| row.was_opened() && !row.settled);
        // Ledger, rows, ledger: what moved while the rows were summed up is not at rest.
        let rows = async { Ok(audit(database, None, None, Some(&sale)).await?.sales.pop()) };
        let (counted, Some(mut rows)) = ledger.sale_beside(&sale, rows).await? else { continue };
        let backlog = logs::backlog(&logs);
        let ours = counted.as_ref().filter(|counted| !counted.foreign);
        let running = ours.map(|counted| Books {
            total: counted.total.unsigned_abs(),
            remaining: counted.remaining,
            pending: counted.pending.unsigned_abs(),
            confirmed: counted.confirmed.unsigned_abs(),
            sold: rows.sold,
            backlog: backlog.unwrap_or(0),
            at_rest: counted.open
                && counted.pending == 0
                && !counted.moving
                && rows.releases == 0
                && backlog == Some(0),
            epoch: counted.epoch,
            paused_by: row.as_ref().and_then(|row| row.paused_by.clone()),
            broken: Vec::new(),
        });
        if let Some(books) = &running {
            rows.broken.extend(disagreements(books, &rows));
        }
        let (mut pending, mut incomplete) = (Vec::new(), None);
        match &counted {
            Some(counted) => {
                rows.broken.extend(counted.findings.iter().cloned());
                if counted.open && !counted.foreign {
                    let ledger_has = (counted.version, counted.total.unsigned_abs());
                    rows.broken.extend(totals_differ((rows.version, rows.total), ledger_has));
                    if counted.pending > 0 {
                        pending = ledger.long_pending(&sale).await?;
                        if !out_of_reach.is_empty() {
                            incomplete = Some(format!(
                                "units are pending, and their orders could be in logs that were out of reach: {}. Run this where they are",
                                out_of_reach.join("; ")
                            ));
                        }
                    }
                } else if is_due && !counted.foreign {
                    closed.push(sale.to_string());
                    incomplete = Some(
                        "the ledger is closed for a rebuild, and until it is open again it knows part of the promises only; `ledger \
                         instances` says who is awaited"
                            .into(),
                    );
                }
            }
            None if is_due => {
                rows.broken.push("the ledger has forgotten this sale: a rebuild is due".into());
            }
            None => {}
        }
        let mut line = Line::new(rows, running, counted, &logs);
        line.incomplete = incomplete;
        line.look_closer(database, &logs, since, pending).await?;
        lines.push(line);
    }
    let mut gaps = Vec::new();
    if !closed.is_empty() {
        gaps.push(format!(
            "closed: a rebuild is under way, and until it is done the ledger knows part of the promises only (see `ledger \
             instances` for who is awaited): {}",
            closed.join(", ")
        ));
    }
    if !out_of_reach.is_empty() {
        gaps.push(format!(
            "these logs were not audited, so nobody can tell whether all is at rest: {}",
            out_of_reach.join("; ")
        ));
    }
    Ok((lines, (!gaps.is_empty()).then(|| gaps.join("\nfloodgate: "))))
}

/// What must hold between the ledger's books and the rows: conservation always, equality at rest.
fn disagreements(books: &Books, rows: &SaleAudit) -> Vec<String> {
    let mut broken = Vec::new();
    let accounted = i128::from(books.remaining) + i128::from(books.pending) + i128::from(books.confirmed);
    if i128::from(books.total) != accounted {
        broken.push(format!("the ledger accounts for {accounted} of {} units", books.total));
    }
    if books.at_rest && books.sold == rows.sold && books.confirmed != rows.units_held {
        broken.push(format!(
            "at rest, but {} units are confirmed and {} held",
            books.confirmed, rows.units_held
        ));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sold: u64, units_held: u64) -> SaleAudit {
        SaleAudit {
            sale: "s".parse().expect("an id"),
            total: Some(10),
            version: Some(1),
            sold,
            units_held,
            orders: 1,
            rejected: 0,
            users_over_limit: 0,
            releases: 0,
            ledger: None,
            at_rest: None,
            broken: Vec::new(),
        }
    }

    fn books(remaining: i64, confirmed: u64) -> Books {
        Books {
            total: 10,
            remaining,
            pending: 0,
            confirmed,
            sold: confirmed,
            backlog: 0,
            at_rest: true,
            epoch: 1,
            paused_by: None,
            broken: Vec::new(),
        }
    }

    #[test]
    fn a_leak_and_a_lost_confirmation_are_named() {
        assert!(disagreements(&books(7, 3), &rows(3, 3)).is_empty());
        assert!(disagreements(&books(6, 3), &rows(3, 3))[0].contains("accounts for 9 of 10"));
        assert!(disagreements(&books(7, 3), &rows(3, 2))[0].contains("3 units are confirmed and 2 held"));
    }
}
