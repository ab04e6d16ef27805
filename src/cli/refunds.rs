//! `floodgate refunds …`: money that goes back. Reading works on the database alone; a change goes through the admin
//! listener.

use clap::Subcommand;
use hyper::Method;
use order_worker::database::{RefundRow, RefundState};
use serde_json::json;

use super::{Failure, Json, Reason, admin_client, output};
use crate::config::Config;
use crate::engines;

#[derive(Debug, Subcommand)]
pub(crate) enum RefundsCommand {
    /// List refunds that are not over, or those in one state, by id
    ///
    /// `requested` the shop's service (payment.refund_url) has not taken it yet, and is asked again and again; `sent`
    /// it has, and the provider has not said how it ended; `stuck` a final no, or none for a week: see LAST ERROR, then
    /// `floodgate refunds retry`; `succeeded` the money is back. Amounts are minor units.
    List {
        /// requested, sent, stuck or succeeded; without it stuck, requested and sent ones in turn
        #[arg(long, value_name = "STATE")]
        state: Option<RefundState>,
        /// Start behind this refund
        #[arg(long, value_name = "REFUND", requires = "state")]
        after: Option<String>,
        /// At most so many of a state, up to 10000
        #[arg(long, default_value_t = 100, value_name = "REFUNDS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        #[command(flatten)]
        json: Json,
    },
    /// Have a stuck refund tried again, under the id that it had: a provider that has sent the money sends it no second
    /// time
    Retry {
        /// The refund's id, as `floodgate refunds list --state stuck` shows it
        refund: String,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(command: RefundsCommand, config: &Config) -> Result<(), Failure> {
    match command {
        RefundsCommand::List { state, after, limit, json } => {
            let database = engines::open_database_to_read(config).await?;
            let states = match state {
                Some(state) => vec![state],
                None => vec![RefundState::Stuck, RefundState::Requested, RefundState::Sent],
            };
            let mut rows = Vec::new();
            for state in states {
                rows.extend(database.refunds(state, after.as_deref(), limit as usize).await?);
            }
            list(json, &rows)
        }
        RefundsCommand::Retry { refund, reason, json } => {
            if refund.is_empty() || !refund.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(Failure::Usage(format!(
                    "{refund:?} is no refund's id, which has letters and digits: `floodgate refunds list` shows them"
                )));
            }
            let path = format!("/admin/v1/refunds/{refund}/retry");
            let body = json!({ "reason": reason.reason });
            output::one(json, &admin_client::call(config, Method::POST, &path, Some(&body)).await?)
        }
    }
}

fn list(json: Json, rows: &[RefundRow]) -> Result<(), Failure> {
    output::list(
        json,
        rows,
        ["REFUND", "STATE", "AMOUNT", "ORDER", "PAYMENT", "WHY", "BY", "TRIES", "NEXT TRY", "LAST ERROR"],
        |row| {
            [
                row.refund_id.clone(),
                row.state.to_string(),
                row.amount.to_string(),
                row.order_id.map(|order| order.to_string()).unwrap_or_default(),
                format!("{} {}", row.provider, row.payment_id),
                row.reason.clone().unwrap_or_default(),
                row.requested_by.clone(),
                row.attempts.to_string(),
                row.next_try_at.map(|at| at.to_string()).unwrap_or_default(),
                row.last_error.clone().unwrap_or_default(),
            ]
        },
    )
}
