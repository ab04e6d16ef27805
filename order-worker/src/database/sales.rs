//! The sales port: what is on offer, versioned, so that anyone may push it to the ledger until both are equal.

use serde_json::{Value, json};
use stock::{SaleDefinition, SaleId, SaleVersion, Timestamp};

use super::{Database, DatabaseError, adapter};
use crate::journal::{Action, Author, Change};

/// A row of `floodgate_sales`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRow {
    /// As first published, but with the window as it is now. Its `total` is the first one; see [`Self::total`].
    pub definition: SaleDefinition,
    /// Rises with publish, restock, pause, resume and a changed end.
    pub version: u64,
    /// Units on offer now, restocks included.
    pub total: u32,
    /// Units held by rows.
    pub sold: u32,
    /// Who paused it; `None` while it runs. Only `resume` lifts it.
    pub paused_by: Option<String>,
    /// The latest epoch whose ledger was complete and about to open for it. None ever was: then no promise can exist.
    pub opened_epoch: Option<u64>,
    /// The latest epoch at which somebody took the right to install it in the ledger.
    pub installed_epoch: Option<u64>,
    /// Ended, nothing outstanding: the ledger may forget it.
    pub settled: bool,
    /// First instant at which no unit may be taken any more.
    pub ends_at: Timestamp,
}

impl SaleRow {
    /// Whether a ledger was ever open for it, or may have been.
    #[must_use]
    pub fn was_opened(&self) -> bool {
        self.opened_epoch.is_some()
    }

    /// The part that the ledger must know.
    #[must_use]
    pub fn ledger_version(&self) -> SaleVersion {
        SaleVersion {
            sale: self.definition.id.clone(),
            version: self.version,
            total: self.total,
            starts_at_ms: self.definition.starts_at.0,
            ends_at_ms: self.ends_at.0,
            per_user_limit: self.definition.per_user_limit,
            passes_per_unit: self.definition.passes_per_unit,
            paused: self.paused_by.is_some(),
        }
    }
}

/// What a sale offered from one of its versions on: a row of `floodgate_sale_versions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleVersionRow {
    /// Which version.
    pub version: u64,
    /// Whole, with total and window as they then were.
    pub definition: SaleDefinition,
    /// Who had paused it then.
    pub paused_by: Option<String>,
    /// Whose change made it.
    pub by_whom: String,
    /// When.
    pub at: Timestamp,
    /// What for.
    pub reason: Option<String>,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The sale was absent and now is there.
    New,
    /// It had been published with the same definition.
    Unchanged,
    /// It had been published differently; nothing was written. One line a differing field: `price: 100 → 200`.
    Differs(String),
}

impl Database {
    /// Publishes a sale if it is absent.
    ///
    /// # Errors
    /// [`DatabaseError::Invalid`] for a definition that [`SaleDefinition::validate`] refuses.
    pub async fn publish(
        &self,
        definition: &SaleDefinition,
        author: &Author,
    ) -> Result<Published, DatabaseError> {
        if let Err(fault) = definition.validate() {
            return Err(DatabaseError::Invalid(format!("sale {}: {fault}", definition.id)));
        }
        adapter!(self, database => database.publish(definition.clone(), author.clone()).await)
    }

    /// All sales, by id.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        adapter!(self, database => database.sales().await)
    }

    /// Those that are not settled, by id: what is done every second is done with these, and costs nothing for what is over.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn unsettled_sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        adapter!(self, database => database.unsettled_sales().await)
    }

    /// One sale.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn sale(&self, sale: &SaleId) -> Result<Option<SaleRow>, DatabaseError> {
        adapter!(self, database => database.sale(sale.clone()).await)
    }

    /// What the sale offered from this version on; `None` if it has no such version.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn sale_version(
        &self,
        sale: &SaleId,
        version: u64,
    ) -> Result<Option<SaleVersionRow>, DatabaseError> {
        adapter!(self, database => database.sale_version(sale.clone(), version).await)
    }

    /// Raises the total by `units`, once for each restock id of the sale; the same call again answers with the row as it is.
    ///
    /// # Errors
    /// [`DatabaseError::RestockDiffers`] when the id was used with other units, [`DatabaseError::UnknownSale`],
    /// [`DatabaseError::Invalid`] for 0 units, a total beyond `u32` or a settled sale.
    pub async fn restock(
        &self,
        sale: &SaleId,
        restock_id: &str,
        units: u32,
        author: &Author,
    ) -> Result<SaleRow, DatabaseError> {
        if units == 0 {
            return Err(DatabaseError::Invalid("a restock brings at least 1 unit".into()));
        }
        let (sale, restock_id, author) = (sale.clone(), restock_id.to_owned(), author.clone());
        adapter!(self, database => database.restock(sale, restock_id, units, author).await)
    }

    /// Pauses a sale; `by` is shown to other operators. A paused sale stays as it is, with the first name.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn pause(&self, sale: &SaleId, by: &str, author: &Author) -> Result<SaleRow, DatabaseError> {
        adapter!(self, database => database.pause(sale.clone(), by.to_owned(), author.clone()).await)
    }

    /// Lifts a pause, whoever made it. A running sale stays as it is.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn resume(&self, sale: &SaleId, author: &Author) -> Result<SaleRow, DatabaseError> {
        adapter!(self, database => database.resume(sale.clone(), author.clone()).await)
    }

    /// Ends a sale now, unless it has ended already. A sale that has not begun never will: its start moves along.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn end_now(&self, sale: &SaleId, author: &Author) -> Result<SaleRow, DatabaseError> {
        adapter!(self, database => database.end_now(sale.clone(), author.clone()).await)
    }

    /// Records that this epoch's ledger holds all that it must of this sale and is about to open: whoever finds it closed may
    /// open it, and an empty one is amnesia from now on, not a beginning. An older epoch changes nothing.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn mark_opened(&self, sale: &SaleId, epoch: u64) -> Result<(), DatabaseError> {
        adapter!(self, database => database.mark_opened(sale.clone(), epoch).await)
    }

    /// Takes the one right to install this sale in the ledger of `epoch`: of all calls for an epoch `true` goes to one at most,
    /// and its caller sends one install, which it never repeats. So a state of an epoch is the only one that ever was, and
    /// what was merged into it is there as long as it is. `false`: somebody took it, or may have, or at a newer epoch.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`]. After a lost answer the repetition says `false`.
    pub async fn claim_install(&self, sale: &SaleId, epoch: u64) -> Result<bool, DatabaseError> {
        adapter!(self, database => database.claim_install(sale.clone(), epoch).await)
    }

    /// Settles a sale that has ended, none of whose orders is unpaid or refunding, and which owes the ledger no release.
    /// `true` when it is settled afterwards. The caller answers for the ledger's pending ids and the logs being done.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn mark_settled(&self, sale: &SaleId) -> Result<bool, DatabaseError> {
        adapter!(self, database => database.mark_settled(sale.clone()).await)
    }
}

/// `by_whom` and `reason` of a version that no operator made: the ledger had a newer one than a database that was put back.
pub(super) const RAISED_BY: &str = "floodgate";
pub(super) const RAISED_FOR: &str = "the stock ledger was ahead of the database";

/// The total after a restock, or `None` where this very restock is recorded already.
pub(super) fn restocked_total(
    row: &SaleRow,
    restock_id: &str,
    recorded: Option<u32>,
    units: u32,
) -> Result<Option<u32>, DatabaseError> {
    let sale = &row.definition.id;
    match recorded {
        Some(recorded) if recorded == units => return Ok(None),
        Some(recorded) => {
            let (sale, restock_id) = (sale.clone(), restock_id.to_owned());
            return Err(DatabaseError::RestockDiffers { sale, restock_id, recorded, asked: units });
        }
        None if row.settled => {
            return Err(DatabaseError::Invalid(format!("sale {sale} is settled: publish a new one")));
        }
        None => {}
    }
    let total = row.total.checked_add(units).ok_or_else(|| {
        DatabaseError::Invalid(format!("sale {sale} would offer more than {} units", u32::MAX))
    })?;
    Ok(Some(total))
}

/// The row of a sale that has just been published.
pub(super) fn published(definition: SaleDefinition) -> SaleRow {
    SaleRow {
        version: 1,
        total: definition.total,
        sold: 0,
        paused_by: None,
        opened_epoch: None,
        installed_epoch: None,
        settled: false,
        ends_at: definition.ends_at,
        definition,
    }
}

/// `definition` of the row's version: whole, with total, window and pause as the row has them.
pub(super) fn offered(row: &SaleRow) -> Result<Value, DatabaseError> {
    let definition = SaleDefinition { total: row.total, ..row.definition.clone() };
    let mut offered = serde_json::to_value(definition).map_err(broken)?;
    if let Value::Object(fields) = &mut offered {
        fields.insert(PAUSED_BY.to_owned(), json!(row.paused_by));
    }
    Ok(offered)
}

/// The one field that a version has beside the definition's.
const PAUSED_BY: &str = "paused_by";

/// What [`offered`] wrote.
pub(super) fn read_offered(text: &str) -> Result<(SaleDefinition, Option<String>), serde_json::Error> {
    let mut offered: Value = serde_json::from_str(text)?;
    let paused_by = offered.as_object_mut().and_then(|fields| fields.remove(PAUSED_BY));
    Ok((serde_json::from_value(offered)?, serde_json::from_value(paused_by.unwrap_or_default())?))
}

/// What the journal says of a new version: of the first one all, of others what versions differ in, and what `with` adds.
pub(super) fn changed(
    action: Action,
    before: Option<&SaleRow>,
    after: &SaleRow,
    with: &[(&str, Value)],
) -> Result<Change, DatabaseError> {
    let state = |row: &SaleRow| {
        json!({
            "version": row.version, "total": row.total, "starts_at": row.definition.starts_at, "ends_at": row.ends_at,
            PAUSED_BY: row.paused_by,
        })
    };
    let mut now = if before.is_some() { state(after) } else { offered(after)? };
    if let Value::Object(fields) = &mut now {
        fields.extend(with.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    }
    let subject = after.definition.id.to_string();
    Ok(Change { action, subject, before: before.map(state), after: Some(now) })
}

pub(super) fn broken(error: serde_json::Error) -> DatabaseError {
    DatabaseError::Broken(format!("a sale's definition: {error}"))
}

/// The fields in which two definitions differ, one line each.
pub(super) fn difference(
    first: &SaleDefinition,
    now: &SaleDefinition,
) -> Result<Option<String>, serde_json::Error> {
    if first == now {
        return Ok(None);
    }
    let (first, now) = (serde_json::to_value(first)?, serde_json::to_value(now)?);
    let absent = serde_json::Value::Null;
    let mut names: Vec<&String> =
        [&first, &now].into_iter().filter_map(serde_json::Value::as_object).flat_map(|o| o.keys()).collect();
    names.sort();
    names.dedup();
    let lines = names.into_iter().filter_map(|name| {
        let (was, is) = (first.get(name).unwrap_or(&absent), now.get(name).unwrap_or(&absent));
        (was != is).then(|| format!("{name}: {was} → {is}"))
    });
    Ok(Some(lines.collect::<Vec<_>>().join("\n")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::*;

    fn definition() -> SaleDefinition {
        serde_json::from_str(
            r#"{"id":"s","price":100,"total":5,"starts_at":"2026-01-01T00:00:00Z","ends_at":"2026-01-02T00:00:00Z"}"#,
        )
        .unwrap()
    }

    #[test]
    fn what_a_version_offered_comes_back() {
        let mut row = published(definition());
        (row.total, row.paused_by) = (9, Some("alice".into()));
        let (offered, paused_by) = read_offered(&offered(&row).unwrap().to_string()).unwrap();
        assert_eq!((offered, paused_by), (SaleDefinition { total: 9, ..definition() }, row.paused_by));
    }

    #[test]
    fn differing_fields_are_named_one_a_line() {
        let first = definition();
        let mut now = definition();
        assert_eq!(difference(&first, &now).unwrap(), None);
        now.price = 200;
        now.title = "红包".into();
        assert_eq!(difference(&first, &now).unwrap().unwrap(), "price: 100 → 200\ntitle: \"\" → \"红包\"");
    }
}
