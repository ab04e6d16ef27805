//! `floodgate audit`: do ledger, logs and rows agree?
//!
//! The rows are read from the database. A ledger in Redis is counted there, and every registered log that is on this machine is
//! looked into; an embedded ledger lives in the running process and is asked through its admin listener. Without a running
//! process there is none to compare: the rows alone are audited, and it is said so.

use hyper::Method;
use order_worker::{Database, SaleAudit, audit};
use serde::{Deserialize, Serialize};
use stock::SaleId;
use stock::config::StockBackend;

use super::logs::{self, Log};
use super::shared_ledger::{SharedBooks, SharedLedger};
use super::{Failure, Json, admin_client, output};
use crate::config::Config;
use crate::engines;

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
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    rows: SaleAudit,
    running: Option<Books>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_ledger: Option<SharedBooks>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
}

pub(super) async fn books(config: &Config, sale: &SaleId) -> Result<Books, Failure> {
    let answer = admin_client::call(config, Method::GET, &format!("/admin/v1/sales/{sale}"), None).await?;
    Ok(serde_json::from_value(answer)?)
}

pub(super) async fn run(config: &Config, json: Json) -> Result<(), Failure> {
    let database = engines::open_database_to_read(config).await?;
    let (lines, gap) = match config.stock.backend {
        StockBackend::Embedded => embedded(config, &database).await?,
        StockBackend::Redis => shared(config, &database).await?,
    };
    output::list(
        json,
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
    if let Some(gap) = gap {
        eprintln!("floodgate: {gap}");
    }
    let broken = lines.iter().filter(|line| !line.rows.broken.is_empty()).count();
    if broken > 0 {
        return Err(Failure::Failed(format!("{broken} of {} sales do not add up", lines.len())));
    }
    Ok(())
}

/// Every sale's rows beside what the running process says, and what could not be audited.
async fn embedded(config: &Config, database: &Database) -> Result<(Vec<Line>, Option<String>), Failure> {
    let mut lines = Vec::new();
    let mut unreachable = None;
    for mut rows in audit(database, None, None, None).await?.sales {
        let running = if unreachable.is_some() {
            None
        } else {
            match books(config, &rows.sale).await {
                Ok(books) => Some(books),
                Err(Failure::Failed(why) | Failure::Usage(why)) => {
                    unreachable = Some(format!("only the database was audited, not the ledger: {why}"));
                    None
                }
            }
        };
        if let Some(books) = &running {
            rows.broken.extend(disagreements(books, &rows));
        }
        lines.push(Line { rows, running, shared_ledger: None, logs: Vec::new() });
    }
    Ok((lines, unreachable))
}

/// Every sale's rows beside the shared ledger and the logs, and what could not be audited.
async fn shared(config: &Config, database: &Database) -> Result<(Vec<Line>, Option<String>), Failure> {
    let ledger = SharedLedger::connect(config, database.known_deployment().await?).await?;
    let logs = logs::registered(database).await?;
    let (mut lines, mut closed) = (Vec::new(), Vec::new());
    for row in database.sales().await? {
        // Ledger, rows, ledger: what moved while the rows were summed up is not at rest.
        let sale = &row.definition.id;
        let rows = async { Ok(audit(database, None, None, Some(sale)).await?.sales.pop()) };
        let (counted, Some(mut rows)) = ledger.sale_beside(sale, rows).await? else { continue };
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
            paused_by: row.paused_by.clone(),
        });
        if let Some(books) = &running {
            rows.broken.extend(disagreements(books, &rows));
        }
        match &counted {
            Some(counted) => {
                rows.broken.extend(counted.findings.iter().cloned());
                if !counted.open && !counted.foreign && row.was_opened() && !row.settled {
                    closed.push(row.definition.id.to_string());
                }
            }
            None if row.was_opened() && !row.settled => {
                rows.broken.push("the ledger has forgotten this sale: a rebuild is due".into());
            }
            None => {}
        }
        lines.push(Line { rows, running, shared_ledger: counted, logs: logs.clone() });
    }
    let promising = logs.iter().filter(|log| log.holds_promises && !log.left_out);
    let out_of_reach: Vec<_> =
        promising.filter_map(|log| Some(format!("{}: {}", log.place, log.trouble.as_ref()?))).collect();
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
        }
    }

    #[test]
    fn a_leak_and_a_lost_confirmation_are_named() {
        assert!(disagreements(&books(7, 3), &rows(3, 3)).is_empty());
        assert!(disagreements(&books(6, 3), &rows(3, 3))[0].contains("accounts for 9 of 10"));
        assert!(disagreements(&books(7, 3), &rows(3, 2))[0].contains("3 units are confirmed and 2 held"));
    }
}
