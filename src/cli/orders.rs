//! `floodgate orders …`: reading works on the database alone; changes go through the admin listener.

use clap::Subcommand;
use hyper::Method;
use stock::{OrderId, SaleId, currency_digits};

use super::{Failure, Json, admin_client, output};
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
    /// Cancel an unpaid order: its units go back on sale
    Cancel {
        /// The order's id
        order: OrderId,
    },
    /// Close an order whose time to pay is over: of a later version
    Close {
        /// The order's id
        order: OrderId,
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
        OrdersCommand::Cancel { order } => {
            let path = format!("/admin/v1/orders/{order}/cancel");
            let answer = admin_client::call(config, Method::POST, &path, None).await?;
            output::one(Json { json: false }, &answer)
        }
        OrdersCommand::Close { order } => Err(Failure::Usage(format!(
            "`orders close` comes with a later version, as payments do: `floodgate orders cancel {order}` closes an unpaid order now"
        ))),
    }
}

/// `2066.40 CNY`; minor units where the currency has no rule.
fn money(minor: u64, currency: &str) -> String {
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
