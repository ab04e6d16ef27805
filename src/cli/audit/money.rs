//! The money's part of `floodgate audit`: read from the database alone, and from a provider's statement.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use order_worker::{Database, MoneyAudit, Statement, audit_money};

use super::super::orders::money;
use super::super::{Failure, Json, output};

pub(super) async fn audit(database: &Database, statement: Option<&Path>) -> Result<MoneyAudit, Failure> {
    let mut statement = match statement {
        Some(path) => {
            let file = File::open(path).map_err(|error| {
                Failure::Usage(format!("cannot read the statement {}: {error}", path.display()))
            })?;
            let read = Statement::read(BufReader::new(file));
            Some(read.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?)
        }
        None => None,
    };
    Ok(audit_money(database, statement.as_mut()).await?)
}

/// A line a currency.
pub(super) fn print(json: Json, audit: &MoneyAudit) -> Result<(), Failure> {
    if json.json {
        return output::one(json, audit);
    }
    output::list(
        json,
        &audit.currencies,
        ["CURRENCY", "CAPTURED", "KEPT", "REFUNDED", "REQUESTED", "SENT", "STUCK", "UNMATCHED"],
        |sums| {
            let shown = |minor: u128| match u64::try_from(minor) {
                Ok(minor) => money(minor, &sums.currency),
                Err(_) => format!("{minor} minor units of {}", sums.currency),
            };
            [
                sums.currency.clone(),
                shown(sums.captured),
                shown(sums.kept),
                shown(sums.refunded),
                shown(sums.requested),
                shown(sums.sent),
                shown(sums.stuck),
                shown(sums.unmatched),
            ]
        },
    )
}

/// What the command says of it at its end.
pub(super) fn fault(audit: &MoneyAudit) -> Option<String> {
    (!audit.broken.is_empty()).then(|| format!("money does not add up: {}", audit.broken.join("; ")))
}
