//! `floodgate audit` and `floodgate ledger …`: do ledger, log and rows agree?
//!
//! The rows are read from the database; the embedded ledger lives in the running process and is asked through its admin
//! listener. Without a running process there is no ledger to compare: the rows alone are audited, and it is said so.

use clap::Subcommand;
use hyper::Method;
use order_worker::{SaleAudit, audit};
use serde::{Deserialize, Serialize};
use stock::SaleId;

use super::{Failure, Json, admin_client, output};
use crate::config::Config;
use crate::engines;

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Show the books of every sale that the ledger knows
    Show(#[command(flatten)] Json),
    /// Rebuild a shared ledger from database and logs: needs stock.backend = "redis", which comes with a later version
    Rebuild,
}

/// What the admin listener says of one sale.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Books {
    total: u64,
    remaining: i64,
    pending: u64,
    confirmed: u64,
    sold: u64,
    backlog: u64,
    at_rest: bool,
    epoch: u64,
    paused_by: Option<String>,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    rows: SaleAudit,
    running: Option<Books>,
}

async fn books(config: &Config, sale: &SaleId) -> Result<Books, Failure> {
    let answer = admin_client::call(config, Method::GET, &format!("/admin/v1/sales/{sale}"), None).await?;
    Ok(serde_json::from_value(answer)?)
}

pub(super) async fn run(config: &Config, json: Json) -> Result<(), Failure> {
    let database = engines::open_database_to_read(config).await?;
    let mut lines = Vec::new();
    let mut unreachable = None;
    for mut rows in audit(&database, None, None, None).await?.sales {
        let running = if unreachable.is_some() {
            None
        } else {
            match books(config, &rows.sale).await {
                Ok(books) => Some(books),
                Err(Failure::Failed(why) | Failure::Usage(why)) => {
                    unreachable = Some(why);
                    None
                }
            }
        };
        if let Some(books) = &running {
            rows.broken.extend(disagreements(books, &rows));
        }
        lines.push(Line { rows, running });
    }
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
    if let Some(why) = unreachable {
        eprintln!("floodgate: only the database was audited, not the ledger: {why}");
    }
    let broken = lines.iter().filter(|line| !line.rows.broken.is_empty()).count();
    if broken > 0 {
        return Err(Failure::Failed(format!("{broken} of {} sales do not add up", lines.len())));
    }
    Ok(())
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

pub(super) async fn ledger(command: LedgerCommand, config: &Config) -> Result<(), Failure> {
    let json = match command {
        LedgerCommand::Show(json) => json,
        LedgerCommand::Rebuild => {
            return Err(Failure::Usage(
                "the embedded ledger lives in the process and is rebuilt at each start: restart `floodgate`"
                    .into(),
            ));
        }
    };
    #[derive(Serialize)]
    struct SaleBooks {
        sale: SaleId,
        #[serde(flatten)]
        books: Books,
    }
    let mut shown = Vec::new();
    for row in
        engines::open_database_to_read(config).await?.sales().await?.into_iter().filter(|row| !row.settled)
    {
        let books = books(config, &row.definition.id).await?;
        shown.push(SaleBooks { sale: row.definition.id, books });
    }
    output::list(
        json,
        &shown,
        ["SALE", "EPOCH", "TOTAL", "REMAINING", "PENDING", "CONFIRMED", "BACKLOG", "PAUSED BY"],
        |line| {
            [
                line.sale.to_string(),
                line.books.epoch.to_string(),
                line.books.total.to_string(),
                line.books.remaining.to_string(),
                line.books.pending.to_string(),
                line.books.confirmed.to_string(),
                line.books.backlog.to_string(),
                line.books.paused_by.clone().unwrap_or_default(),
            ]
        },
    )
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
