//! The demo sale: a fresh one at each start, so that a newcomer always sees a countdown.

use std::collections::BTreeMap;

use order_worker::{Author, Database, DatabaseError};
use stock::{IdError, RefundPolicy, SaleDefinition, Timestamp};

const OPENS_AFTER_MS: u64 = 20_000;
const LASTS_MS: u64 = 3_600_000;
const LABEL: &str = "demo";

/// Ends the demo sales of earlier starts (their orders still resolve) and gives the definition of a new one.
pub(crate) async fn fresh_sale(
    database: &Database,
    now_ms: u64,
    author: &Author,
) -> Result<SaleDefinition, DatabaseError> {
    let author = author.clone().because("each start has a demo sale of its own");
    for row in database.sales().await? {
        if row.definition.labels.contains_key(LABEL) && row.ends_at.0 > now_ms {
            database.end_now(&row.definition.id, &author).await?;
        }
    }
    Ok(definition(now_ms).unwrap_or_else(|e| unreachable!("digits and letters are a sale id: {e}")))
}

fn definition(now_ms: u64) -> Result<SaleDefinition, IdError> {
    Ok(SaleDefinition {
        id: format!("demo-{now_ms}").parse()?,
        item_id: "aurora-headphones".into(),
        title: "Aurora 降噪耳机 · Aurora headphones".into(),
        description: "One hundred pairs at thirty per cent. 一百副，三折，先到先得。".into(),
        currency: "CNY".into(),
        price: 206_640,
        list_price: 688_800,
        total: 100,
        per_user_limit: 1,
        passes_per_unit: 0,
        pay_within_s: 900,
        starts_at: Timestamp(now_ms + OPENS_AFTER_MS),
        ends_at: Timestamp(now_ms + OPENS_AFTER_MS + LASTS_MS),
        rehearsal: false,
        refund: RefundPolicy::Buyer,
        unit_returns_on_refund: true,
        labels: BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_starts_have_two_valid_sales() {
        let first = definition(1_700_000_000_000).expect("an id");
        let second = definition(1_700_000_000_001).expect("an id");
        assert_ne!(first.id, second.id);
        first.validate().expect("valid");
        assert_eq!(first.starts_at, Timestamp(1_700_000_020_000));
    }
}
