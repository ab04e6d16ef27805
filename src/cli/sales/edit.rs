//! `floodgate sales edit`: through the admin listener where one answers, which tells when the change is in force; on the database
//! alone where none does, for a start that stops at a configuration that says something else.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};
use stock::{SaleDefinition, SaleEdit, SaleId, Timestamp};
use tokio::time::{Instant, sleep};

use super::super::{Failure, Json, admin_client, output};
use super::unknown;
use crate::config::Config;
use crate::{clock, engines, sale_words, stdout};

/// Between two looks whether a change is in force.
const LOOK: Duration = Duration::from_millis(500);
/// Longest wait for that.
const IN_FORCE_MAX: Duration = Duration::from_secs(60);
/// The journal's name for who works on the database alone.
const OPERATOR: &str = "command line";

#[derive(Debug, Args)]
pub(crate) struct EditArguments {
    /// The sale's id
    sale: SaleId,
    /// The operator's own name of the item
    #[arg(long, value_name = "TEXT")]
    item_id: Option<String>,
    /// Shown to buyers
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Shown to buyers
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// ISO 4217
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// Minor units, for one unit; orders that were promised before keep the price under which they were
    #[arg(long, value_name = "N")]
    price: Option<u64>,
    /// Minor units; what it costs elsewhere; 0 hides it
    #[arg(long, value_name = "N")]
    list_price: Option<u64>,
    /// Units one user may hold
    #[arg(long, value_name = "N")]
    per_user_limit: Option<u32>,
    /// At most this many live passes per remaining unit; 0: no gate
    #[arg(long, value_name = "N")]
    passes_per_unit: Option<u32>,
    /// An order unpaid for this long is closed
    #[arg(long, value_name = "SECONDS")]
    pay_within_s: Option<u32>,
    /// When it begins (RFC 3339): until 10 s before the start
    #[arg(long, value_name = "TIME")]
    starts_at: Option<Timestamp>,
    /// When it ends (RFC 3339): later at any time, earlier not in the last 10 s before the start
    #[arg(long, value_name = "TIME")]
    ends_at: Option<Timestamp>,
    /// A label, NAME=VALUE, once for each: all labels, in the place of those that there are
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// No labels
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// What for: stands in the journal
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl EditArguments {
    fn edit(&self) -> SaleEdit {
        let labels: BTreeMap<String, String> = self.labels.iter().cloned().collect();
        SaleEdit {
            item_id: self.item_id.clone(),
            title: self.title.clone(),
            description: self.description.clone(),
            currency: self.currency.clone(),
            price: self.price,
            list_price: self.list_price,
            per_user_limit: self.per_user_limit,
            passes_per_unit: self.passes_per_unit,
            pay_within_s: self.pay_within_s,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            labels: (self.no_labels || !labels.is_empty()).then_some(labels),
        }
    }
}

pub(super) async fn run(arguments: EditArguments, config: &Config) -> Result<(), Failure> {
    let edit = arguments.edit();
    if edit == SaleEdit::default() {
        return Err(Failure::Usage(
            "say what is to be another: --title, --price, --ends-at …; see `floodgate sales edit --help`"
                .into(),
        ));
    }
    let EditArguments { sale, reason, .. } = arguments;
    let edited = if admin_client::is_answered(config).await {
        through_the_listener(config, &sale, &edit, reason).await?
    } else {
        on_the_database(config, &sale, &edit, reason).await?
    };
    if let Some(lines) = sale_words::lines_for_file(&config.sale, &edited) {
        stdout::line(format_args!(
            "the next start stops unless [[sale]] {sale} of the configuration says so, too:\n{lines}"
        ))?;
    }
    Ok(())
}

async fn through_the_listener(
    config: &Config,
    sale: &SaleId,
    edit: &SaleEdit,
    reason: Option<String>,
) -> Result<SaleDefinition, Failure> {
    let mut body = serde_json::to_value(edit)?;
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    let path = format!("/admin/v1/sales/{sale}/edit");
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        // The same again changes nothing, and says how far it has come.
        let answer = admin_client::call(config, Method::POST, &path, Some(&body)).await?;
        if answer["standing"] == "in-force" {
            output::one(Json { json: false }, &answer)?;
            return definition(&answer);
        }
        if !is_told {
            stdout::line(format_args!(
                "pending: the sale is changed, and the stock ledger has not answered yet"
            ))?;
            is_told = true;
        }
        if begun.elapsed() >= IN_FORCE_MAX {
            return Err(Failure::Failed(format!(
                "still pending after {} s: the change is made, and is in force once the stock ledger answers; the same command \
                 again tells; see /readyz",
                IN_FORCE_MAX.as_secs()
            )));
        }
        sleep(LOOK).await;
    }
}

/// The definition among what the listener says of a sale.
fn definition(answer: &Value) -> Result<SaleDefinition, Failure> {
    let mut shown = answer.clone();
    if let Value::Object(fields) = &mut shown {
        for beside in
            ["total_now", "sold", "paused_by", "withdrawn_at", "version", "terms_version", "standing"]
        {
            fields.remove(beside);
        }
    }
    Ok(serde_json::from_value(shown)?)
}

async fn on_the_database(
    config: &Config,
    sale: &SaleId,
    edit: &SaleEdit,
    reason: Option<String>,
) -> Result<SaleDefinition, Failure> {
    // An embedded database is another process's while that runs, whichever address it listens at.
    let _claim = engines::claim_database(config)?;
    drop(engines::open_database_to_read(config).await?);
    let database = engines::open_database(config, clock::system()).await?;
    let author = config.journal_key()?.operator(OPERATOR);
    let author = reason.map_or_else(|| author.clone(), |reason| author.clone().because(&reason));
    if database.sale(sale).await?.is_none() {
        return Err(unknown(sale));
    }
    let row = database.edit_sale(sale, edit, &author).await?;
    database.close().await;
    let standing = "pending: nothing answers at the admin listener; in force at the next start, or where processes run elsewhere, \
                    once one of them has pushed it (within seconds)";
    output::one(Json { json: false }, &json!({ "id": sale, "version": row.version, "standing": standing }))?;
    Ok(row.definition)
}
