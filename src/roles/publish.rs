//! The configured sales, published at the start: absent ones are added, changed ones stop the start.

use order_worker::{Database, database::Published};
use stock::{SaleDefinition, SaleId};

use super::StartError;
use crate::config::{Config, ConfigError};
use crate::demo;

/// Publishes what the configuration lists, or a fresh demo sale from `demo_from_ms` on if it lists none and the demo is on.
/// Answers with the demo sale's id. Without a time there is no demo sale: it ends earlier ones, also another gateway's.
pub(super) async fn configured_sales(
    config: &Config,
    database: &Database,
    demo_from_ms: Option<u64>,
) -> Result<Option<SaleId>, StartError> {
    for sale in &config.sale {
        publish(database, sale).await?;
    }
    let Some(now_ms) = demo_from_ms.filter(|_| config.wants_demo_sale()) else { return Ok(None) };
    let sale = demo::fresh_sale(database, now_ms).await?;
    publish(database, &sale).await?;
    Ok(Some(sale.id))
}

async fn publish(database: &Database, sale: &SaleDefinition) -> Result<(), StartError> {
    match database.publish(sale).await? {
        Published::New | Published::Unchanged => Ok(()),
        Published::Differs(difference) => Err(StartError::Config(ConfigError(format!(
            "[[sale]] {} differs from what was first published (published → configured):\n{difference}\n\
             put the published values back, give the changed sale a new id, or use `floodgate sales restock|pause`",
            sale.id
        )))),
    }
}
