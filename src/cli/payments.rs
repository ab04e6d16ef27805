//! `floodgate payments …`: money that came in, read from the database alone.

use clap::Subcommand;
use order_worker::Database;
use order_worker::database::{Disposition, PaymentRow, RefundRow};
use order_worker::life::payments::Provider;
use serde::Serialize;
use stock::OrderId;

use super::orders::money;
use super::{Failure, Json, output};
use crate::config::Config;
use crate::engines;

#[derive(Debug, Subcommand)]
pub(crate) enum PaymentsCommand {
    /// Show what was paid for an order, or one payment: what became of it, and its refunds
    ///
    /// `kept` has paid its order, `refund` goes back whole and says why (late, second, wrong-amount, wrong-currency,
    /// withdrawn, rehearsal, no-order), `unmatched` waits for its order's row. Amounts are minor units in JSON.
    Show {
        /// An order's id, or a payment's as its provider names it
        id: String,
        #[command(flatten)]
        json: Json,
    },
}

/// One payment as it is shown.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    payment: PaymentRow,
    refunds: Vec<RefundRow>,
}

pub(super) async fn run(command: PaymentsCommand, config: &Config) -> Result<(), Failure> {
    let PaymentsCommand::Show { id, json } = command;
    let database = engines::open_database_to_read(config).await?;
    let found = match id.parse::<OrderId>() {
        Ok(order) => database.payments_of(order).await?,
        Err(_) => by_payment(&database, &id).await?,
    };
    if found.is_empty() {
        return Err(Failure::Failed(format!(
            "no payment for {id:?}: it is neither an order that a payment names nor a payment's id; a provider's notification that was \
             lost shows in `floodgate audit --statement FILE`"
        )));
    }
    let shown: Vec<Shown> = found.into_iter().map(|(payment, refunds)| Shown { payment, refunds }).collect();
    output::list(
        json,
        &shown,
        ["PROVIDER", "PAYMENT", "ORDER", "AMOUNT", "RECEIVED", "BECAME", "REFUNDS"],
        |Shown { payment, refunds }| {
            [
                payment.provider.clone(),
                payment.payment_id.clone(),
                payment
                    .order_id
                    .map_or_else(|| format!("none ({})", payment.trade_ref), |order| order.to_string()),
                money(payment.amount, &payment.currency),
                payment.received_at.to_string(),
                became(payment.disposition),
                refunds.iter().map(|refund| told(refund, &payment.currency)).collect::<Vec<_>>().join("; "),
            ]
        },
    )
}

/// Of whichever provider: one of them may use another's id.
async fn by_payment(database: &Database, id: &str) -> Result<Vec<(PaymentRow, Vec<RefundRow>)>, Failure> {
    let mut found = Vec::new();
    for provider in Provider::ALL {
        found.extend(database.payment(provider.as_str(), id).await?);
    }
    Ok(found)
}

fn became(disposition: Disposition) -> String {
    match disposition {
        Disposition::Kept => "kept".into(),
        Disposition::Refund(reason) => format!("refund ({})", reason.as_str()),
        Disposition::Unmatched => "unmatched".into(),
    }
}

fn told(refund: &RefundRow, currency: &str) -> String {
    let why = refund.last_error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
    format!("{} {} {}{why}", refund.refund_id, money(refund.amount, currency), refund.state)
}
