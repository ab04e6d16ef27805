//! The configured sales, published at the start: absent ones are added, changed ones stop the start. And the journal in which they,
//! and what operators change, are written.

use order_worker::{Author, Database, DatabaseError, JournalKey, database::Published};
use stock::{SaleDefinition, SaleId};

use super::StartError;
use crate::config::{Config, ConfigError};
use crate::{demo, sale_words};

/// The key of the operators' journal. A journal that is chained under another secret stops no sale: it refuses what operators
/// change here, and it is said now.
pub(super) async fn journal(config: &Config, database: &Database) -> Result<JournalKey, StartError> {
    let key = config.journal_key()?;
    match database.tie_journal(&key).await {
        Err(DatabaseError::Broken(why)) => {
            tracing::error!(why, "this process refuses every change that an operator makes through it");
        }
        tied => tied?,
    }
    Ok(key)
}

/// Publishes what the configuration lists, or a fresh demo sale from `demo_from_ms` on if it lists none and the demo is on.
/// Answers with the demo sale's id. Without a time there is no demo sale: it ends earlier ones, also another gateway's.
pub(super) async fn configured_sales(
    config: &Config,
    database: &Database,
    author: &Author,
    demo_from_ms: Option<u64>,
) -> Result<Option<SaleId>, StartError> {
    for sale in &config.sale {
        publish(database, sale, author).await?;
    }
    let Some(now_ms) = demo_from_ms.filter(|_| config.wants_demo_sale()) else { return Ok(None) };
    let sale = demo::fresh_sale(database, now_ms, author).await?;
    publish(database, &sale, author).await?;
    Ok(Some(sale.id))
}

async fn publish(database: &Database, sale: &SaleDefinition, author: &Author) -> Result<(), StartError> {
    match database.publish(sale, author).await? {
        Published::New | Published::Unchanged => Ok(()),
        Published::Differs(difference) => {
            let published = database.sale(&sale.id).await?;
            let way_out = published.map(|row| sale_words::way_out(&row.definition, sale));
            Err(StartError::Config(ConfigError(format!(
                "[[sale]] {} differs from what is published (published → configured):\n{difference}\n{}",
                sale.id,
                way_out.unwrap_or_default()
            ))))
        }
    }
}
