//! `floodgate sales …`: reading works on the database alone; changes go through the admin listener.

mod edit;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};
use stock::{SaleDefinition, SaleEdit, SaleId, Timestamp};

use super::{Failure, Json, Reason, admin_client, output};
use crate::config::Config;
use crate::{engines, sale_words, stdout};

#[derive(Debug, Subcommand)]
pub(crate) enum SalesCommand {
    /// Publish the [[sale]] tables of a TOML file; one that exists and is equal changes nothing, one that differs is
    /// refused
    Publish {
        /// A TOML file with one or more [[sale]]: a configuration file is one, its other sections are left alone. Keys
        /// and defaults as in docs/configuration.md
        file: PathBuf,
    },
    /// List all sales
    List(#[command(flatten)] Json),
    /// Show one sale: its row, and its books if the system runs
    Show {
        /// The sale's id
        sale: SaleId,
        #[command(flatten)]
        json: Json,
    },
    /// Add units to a sale
    Restock {
        /// The sale's id
        sale: SaleId,
        /// Units to add, at least 1
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        units: u32,
        /// Names this restock: the same id again changes nothing, so a repeated call is safe
        #[arg(long, value_name = "TEXT")]
        restock_id: String,
    },
    /// Refuse everybody until resumed; outlives restarts
    Pause {
        /// The sale's id
        sale: SaleId,
    },
    /// Correct a published sale, at any time: what buyers see, and what new orders cost; orders promised before keep their terms
    ///
    /// Says `pending` until the stock ledger has answered, then `in-force`. A page that showed other terms is told (`sale-changed`).
    Edit(Box<edit::EditArguments>),
    /// Let buyers in again
    Resume {
        /// The sale's id
        sale: SaleId,
    },
    /// End a sale now, for good; with --orders its unpaid orders are closed, and its paid ones refunded
    ///
    /// Without --orders what was promised stays: queued orders become rows, unpaid ones can be paid, paid ones stay
    /// paid. With it an order that is still queued gets its row and is closed at once, money that comes later goes
    /// back, and workers do the rest within seconds, at the drain's rate; a repeat changes nothing. Neither can be
    /// undone. Its answer is the sale's row.
    Withdraw {
        /// The sale's id
        sale: SaleId,
        /// Close its unpaid orders, and refund its paid ones whole
        #[arg(long)]
        orders: bool,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(command: SalesCommand, config: &Config) -> Result<(), Failure> {
    match command {
        SalesCommand::Publish { file } => publish(&file, config).await,
        SalesCommand::List(json) => list(json, config).await,
        SalesCommand::Show { sale, json } => show(&sale, json, config).await,
        SalesCommand::Restock { sale, units, restock_id } => {
            change(config, &sale, "restock", Some(json!({ "restock_id": restock_id, "units": units }))).await
        }
        SalesCommand::Pause { sale } => change(config, &sale, "pause", None).await,
        SalesCommand::Edit(arguments) => edit::run(*arguments, config).await,
        SalesCommand::Resume { sale } => change(config, &sale, "resume", None).await,
        SalesCommand::Withdraw { sale, orders, reason, json } => {
            let body = json!({ "orders": orders, "reason": reason.reason });
            let path = format!("/admin/v1/sales/{sale}/withdraw");
            output::one(json, &admin_client::call(config, Method::POST, &path, Some(&body)).await?)
        }
    }
}

async fn publish(file: &Path, config: &Config) -> Result<(), Failure> {
    let sales = Config::sales_of(file)?;
    if sales.is_empty() {
        return Err(Failure::Usage(format!("{} has no [[sale]]", file.display())));
    }
    for sale in sales {
        sale.validate()
            .map_err(|e| Failure::Usage(format!("{}: [[sale]] {}: {e}", file.display(), sale.id)))?;
        let body = serde_json::to_value(&sale)?;
        match admin_client::call(config, Method::PUT, "/admin/v1/sales", Some(&body)).await {
            Ok(_) => stdout::line(format_args!("published {}", sale.id))?,
            Err(Failure::Failed(reason)) => {
                return Err(Failure::Failed(format!("{reason}{}", way_out(&sale, config).await)));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// What else there is to do where the sale is published already and says something else.
async fn way_out(sale: &SaleDefinition, config: &Config) -> String {
    let Ok(database) = engines::open_database_to_read(config).await else { return String::new() };
    match database.sale(&sale.id).await {
        Ok(Some(row)) if SaleEdit::between(&row.definition, sale) != SaleEdit::default() => {
            format!("\n{}", sale_words::way_out(&row.definition, sale))
        }
        Ok(_) | Err(_) => String::new(),
    }
}

#[derive(Serialize)]
struct SaleLine {
    sale_id: SaleId,
    title: String,
    total: u32,
    sold: u32,
    starts_at: Timestamp,
    ends_at: Timestamp,
    paused_by: Option<String>,
}

async fn list(json: Json, config: &Config) -> Result<(), Failure> {
    let database = engines::open_database_to_read(config).await?;
    let lines: Vec<SaleLine> = database
        .sales()
        .await?
        .into_iter()
        .map(|row| SaleLine {
            sale_id: row.definition.id,
            title: row.definition.title,
            total: row.total,
            sold: row.sold,
            starts_at: row.definition.starts_at,
            ends_at: row.ends_at,
            paused_by: row.paused_by,
        })
        .collect();
    output::list(json, &lines, ["SALE", "TOTAL", "SOLD", "STARTS", "ENDS", "PAUSED BY", "TITLE"], |line| {
        [
            line.sale_id.to_string(),
            line.total.to_string(),
            line.sold.to_string(),
            line.starts_at.to_string(),
            line.ends_at.to_string(),
            line.paused_by.clone().unwrap_or_default(),
            line.title.clone(),
        ]
    })
}

/// What is said of a sale that is not there.
pub(super) fn unknown(sale: &SaleId) -> Failure {
    Failure::Failed(format!("no sale {:?}: `floodgate sales list` shows those that exist", sale.as_str()))
}

async fn show(sale: &SaleId, json: Json, config: &Config) -> Result<(), Failure> {
    let database = engines::open_database_to_read(config).await?;
    let row = database.sale(sale).await?.ok_or_else(|| unknown(sale))?;
    let mut shown = serde_json::to_value(&row.definition)?;
    if let Value::Object(fields) = &mut shown {
        fields.insert("total".into(), row.total.into());
        fields.insert("sold".into(), row.sold.into());
        fields.insert("ends_at".into(), serde_json::to_value(row.ends_at)?);
        fields.insert("paused_by".into(), serde_json::to_value(&row.paused_by)?);
        fields.insert("withdrawn_at".into(), serde_json::to_value(row.withdrawn_at)?);
        match admin_client::call(config, Method::GET, &format!("/admin/v1/sales/{sale}"), None).await {
            Ok(books) => fields.insert("books".into(), books),
            Err(Failure::Usage(reason) | Failure::Failed(reason)) => {
                fields.insert("books".into(), reason.into())
            }
        };
    }
    output::one(json, &shown)
}

async fn change(config: &Config, sale: &SaleId, what: &str, body: Option<Value>) -> Result<(), Failure> {
    let path = format!("/admin/v1/sales/{sale}/{what}");
    let books = admin_client::call(config, Method::POST, &path, body.as_ref()).await?;
    output::one(Json { json: false }, &books)
}
