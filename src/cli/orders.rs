//! `floodgate orders …`: reading works on the database alone; changes go through the admin listener.

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};
use stock::{OrderId, SaleId, currency_digits};

use super::{Failure, Json, Reason, admin_client, output};
use crate::config::Config;
use crate::engines;

#[derive(Debug, Subcommand)]
pub(crate) enum OrdersCommand {
    /// Show one order's row
    Show {
        /// The order's id
        order: OrderId,
        #[command(flatten)]
        json: Json,
    },
    /// List a sale's orders, oldest first
    List {
        /// The sale's id
        sale: SaleId,
        /// Start behind this order
        #[arg(long, value_name = "ORDER")]
        after: Option<OrderId>,
        /// At most so many, up to 10000
        #[arg(long, default_value_t = 100, value_name = "ORDERS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        #[command(flatten)]
        json: Json,
    },
    /// Cancel an unpaid order in its buyer's place: its units go back on sale; a repeat changes nothing
    Cancel {
        /// The order's id
        order: OrderId,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        json: Json,
    },
    /// Close an unpaid order before its time to pay is over: its units go back on sale; a repeat changes nothing
    ///
    /// As `cancel`, but its row and its event say `operator` instead of `cancelled`. A payment that comes later goes
    /// back.
    Close {
        /// The order's id
        order: OrderId,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        json: Json,
    },
    /// Send a paid order's money back: all of it, or a part
    ///
    /// The whole: the order is `refunding`, and its units are on sale again unless the sale has unit_returns_on_refund
    /// = false; a repeat is the same refund. A part moves money only. The shop's service (payment.refund_url) is asked
    /// to send it; `floodgate payments show ORDER` tells how far it is.
    Refund {
        /// The order's id
        order: OrderId,
        /// A part: minor units, such as 1050 for 10.50 CNY
        #[arg(long, value_name = "MINOR_UNITS", requires = "request_id", value_parser = clap::value_parser!(u64).range(1..))]
        amount: Option<u64>,
        /// Names this refund in part: the same id again is the same refund, so a repeated call is safe
        #[arg(long, value_name = "TEXT", requires = "amount")]
        request_id: Option<String>,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(command: OrdersCommand, config: &Config) -> Result<(), Failure> {
    match command {
        OrdersCommand::Show { order, json } => {
            let database = engines::open_database_to_read(config).await?;
            let row = database.order(order).await?.ok_or_else(|| {
                Failure::Failed(format!("no row for order {order}: it may still be queued (`floodgate queue lag`), or it never was"))
            })?;
            output::one(json, &row)
        }
        OrdersCommand::List { sale, after, limit, json } => {
            let database = engines::open_database_to_read(config).await?;
            let rows = database.orders(&sale, after, limit as usize).await?;
            if rows.is_empty() && database.sale(&sale).await?.is_none() {
                return Err(super::sales::unknown(&sale));
            }
            output::list(
                json,
                &rows,
                ["ORDER", "USER", "UNITS", "HELD", "AMOUNT", "STATUS", "CREATED"],
                |row| {
                    [
                        row.order_id.to_string(),
                        row.user_id.to_string(),
                        row.quantity.to_string(),
                        row.units_held.to_string(),
                        money(row.amount, &row.currency),
                        row.status.to_string(),
                        row.created_at.to_string(),
                    ]
                },
            )
        }
        OrdersCommand::Cancel { order, reason, json } => {
            change(config, order, "cancel", &json!({ "reason": reason.reason }), json).await
        }
        OrdersCommand::Close { order, reason, json } => {
            change(config, order, "close", &json!({ "reason": reason.reason }), json).await
        }
        OrdersCommand::Refund { order, amount, request_id, reason, json } => {
            let body = json!({ "amount": amount, "request_id": request_id, "reason": reason.reason });
            change(config, order, "refund", &body, json).await
        }
    }
}

async fn change(
    config: &Config,
    order: OrderId,
    what: &str,
    body: &Value,
    json: Json,
) -> Result<(), Failure> {
    let path = format!("/admin/v1/orders/{order}/{what}");
    output::one(json, &admin_client::call(config, Method::POST, &path, Some(body)).await?)
}

/// `2066.40 CNY`; minor units where the currency has no rule.
pub(super) fn money(minor: u64, currency: &str) -> String {
    let Some(digits) = currency_digits(currency).filter(|digits| *digits > 0) else {
        return format!("{minor} {currency}");
    };
    let (unit, width) = (10_u64.pow(u32::from(digits)), usize::from(digits));
    format!("{}.{:0width$} {currency}", minor / unit, minor % unit)
}

#[cfg(test)]
mod tests {
    use super::money;

    #[test]
    fn money_has_the_digits_of_its_currency() {
        let shown =
            [money(206_640, "CNY"), money(5, "HUF"), money(100, "JPY"), money(1_005, "IQD"), money(0, "XXX")];
        assert_eq!(shown, ["2066.40 CNY", "0.05 HUF", "100 JPY", "1.005 IQD", "0 XXX"]);
    }
}
