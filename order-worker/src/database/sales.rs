//! The sales port: what is on offer, versioned, so that anyone may push it to the ledger until both are equal.

mod edit;

use serde_json::{Value, json};
use stock::{SaleDefinition, SaleEdit, SaleId, SaleVersion, Timestamp};

pub(super) use self::edit::{Terms, edited, older_terms};
use super::{Database, DatabaseError, adapter};
use crate::journal::{Action, Author, Change};

/// A row of `floodgate_sales`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRow {
    /// As published and edited, with the window as it is now. Its `total` is the first one; see [`Self::total`].
    pub definition: SaleDefinition,
    /// Rises with publish, restock, pause, resume, edit and a changed end.
    pub version: u64,
    /// The version since which price, currency, limit and pay time are as they are.
    pub terms_version: u64,
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
    /// Ended, nothing outstanding: the ledger may forget it. Lifted where the end lies ahead again.
    pub settled: bool,
    /// First instant at which no unit may be taken any more.
    pub ends_at: Timestamp,
    /// When it was withdrawn with its orders: those that are unpaid are closed, those that are paid go back.
    pub withdrawn_at: Option<Timestamp>,
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
            terms_version: self.terms_version,
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

    /// Those that are not settled, by id: what is done every second is done with these, and costs nothing for what is
    /// over.
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

    /// Raises the total by `units`, once for each restock id of the sale; the same call again answers with the row as
    /// it is.
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

    /// Corrects a published sale; `reason` of the author says what for. What is as it should be already changes nothing.
    ///
    /// # Errors
    /// [`DatabaseError::Invalid`] for what cannot be changed, or not now, with the way out; [`DatabaseError::UnknownSale`].
    pub async fn edit_sale(
        &self,
        sale: &SaleId,
        edit: &SaleEdit,
        author: &Author,
    ) -> Result<SaleRow, DatabaseError> {
        adapter!(self, database => database.edit_sale(sale.clone(), edit.clone(), author.clone()).await)
    }

    /// Ends a sale now, unless it has ended already. A sale that has not begun never will: its start moves along.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn end_now(&self, sale: &SaleId, author: &Author) -> Result<SaleRow, DatabaseError> {
        adapter!(self, database => database.end_now(sale.clone(), author.clone()).await)
    }

    /// Ends a sale now, as [`Self::end_now`], for good; `with_orders` marks it besides: what intake writes of it from
    /// then on is closed at once, and the closer finds it ([`Self::withdrawing`]) and does the rest. A repeat changes
    /// nothing.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn withdraw(
        &self,
        sale: &SaleId,
        with_orders: bool,
        author: &Author,
    ) -> Result<SaleRow, DatabaseError> {
        adapter!(self, database => database.withdraw(sale.clone(), with_orders, author.clone()).await)
    }

    /// The sales that are withdrawn with their orders and may have some that are unpaid or paid, by id.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn withdrawing(&self) -> Result<Vec<SaleId>, DatabaseError> {
        adapter!(self, database => database.withdrawing().await)
    }

    /// Takes a sale out of [`Self::withdrawing`] if none of its orders is unpaid or paid; none ever will be again.
    /// `true` when it is out. Reads every order of the sale.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn withdrawal_done(&self, sale: &SaleId) -> Result<bool, DatabaseError> {
        adapter!(self, database => database.withdrawal_done(sale.clone()).await)
    }

    /// Records that this epoch's ledger holds all that it must of this sale and is about to open: whoever finds it
    /// closed may open it, and an empty one is amnesia from now on, not a beginning. An older epoch changes nothing.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn mark_opened(&self, sale: &SaleId, epoch: u64) -> Result<(), DatabaseError> {
        adapter!(self, database => database.mark_opened(sale.clone(), epoch).await)
    }

    /// Takes the one right to install this sale in the ledger of `epoch`: of all calls for an epoch `true` goes to one
    /// at most, and its caller sends one install, which it never repeats. So a state of an epoch is the only one that
    /// ever was, and what was merged into it is there as long as it is. `false`: somebody took it, or may have, or at a
    /// newer epoch.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`]. After a lost answer the repetition says `false`.
    pub async fn claim_install(&self, sale: &SaleId, epoch: u64) -> Result<bool, DatabaseError> {
        adapter!(self, database => database.claim_install(sale.clone(), epoch).await)
    }

    /// Sales that are settled though their end lies ahead: a clock was wrong then, or they were prolonged since.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn settled_too_early(&self) -> Result<Vec<SaleId>, DatabaseError> {
        adapter!(self, database => database.settled_too_early().await)
    }

    /// Lifts `settled` of a sale whose end lies ahead; `true` when it is not settled afterwards. The ledger has forgotten it: its row says
    /// [`LIFTED_EPOCH`] then, so that it is installed anew in the life that there is, and opened only with its orders, which are all
    /// rows. The caller answers for the ledger having forgotten it.
    ///
    /// # Errors
    /// [`DatabaseError::UnknownSale`].
    pub async fn lift_settled(&self, sale: &SaleId) -> Result<bool, DatabaseError> {
        adapter!(self, database => database.lift_settled(sale.clone()).await)
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

/// `opened_epoch` of a sale whose `settled` was lifted, until it is opened again: it was open once, and holds orders, in no life of the
/// ledger that there is.
pub const LIFTED_EPOCH: u64 = 0;

/// The change of the row that lifts `settled`. One that was never opened stays so.
pub(super) const LIFT: &str = "settled = 0, opened_epoch = 0 * opened_epoch, installed_epoch = NULL";

/// `by_whom` and `reason` of a version that no operator made: the ledger had a newer one than a database that was put back.
pub(super) const RAISED_BY: &str = "floodgate";
pub(super) const RAISED_FOR: &str = "the stock ledger was ahead of the database";
/// Who paused a sale of which the ledger alone remembers that an operator did.
pub(super) const STILL_PAUSED_BY: &str = "stock ledger";

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
        None if row.withdrawn_at.is_some() => {
            return Err(DatabaseError::Invalid(format!("sale {sale} is withdrawn: publish a new one")));
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
        terms_version: 1,
        total: definition.total,
        sold: 0,
        paused_by: None,
        opened_epoch: None,
        installed_epoch: None,
        settled: false,
        ends_at: definition.ends_at,
        withdrawn_at: None,
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

/// What the journal says of a new version: of the first one all, of others what versions differ in, and what `with`
/// adds.
pub(super) fn changed(
    action: Action,
    before: Option<&SaleRow>,
    after: &SaleRow,
    with: &[(&str, Value)],
) -> Result<Change, DatabaseError> {
    let state = |row: &SaleRow| {
        json!({
            "version": row.version, "total": row.total, "starts_at": row.definition.starts_at, "ends_at": row.ends_at,
            PAUSED_BY: row.paused_by, "withdrawn_at": row.withdrawn_at,
        })
    };
    let mut now = if before.is_some() { state(after) } else { offered(after)? };
    let mut was = before.map(state);
    if let (Some(row), Some(was)) = (before, &mut was) {
        for (name, from, to) in differing(&row.definition, &after.definition).map_err(broken)? {
            (was[&name], now[&name]) = (from, to);
        }
    }
    if let Value::Object(fields) = &mut now {
        fields.extend(with.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    }
    let subject = after.definition.id.to_string();
    Ok(Change { action, subject, before: was, after: Some(now) })
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
    let lines = differing(first, now)?.into_iter().map(|(name, was, is)| format!("{name}: {was} → {is}"));
    Ok(Some(lines.collect::<Vec<_>>().join("\n")))
}

/// The fields in which two definitions differ: name, before, after.
fn differing(
    first: &SaleDefinition,
    now: &SaleDefinition,
) -> Result<Vec<(String, Value, Value)>, serde_json::Error> {
    let (first, now) = (serde_json::to_value(first)?, serde_json::to_value(now)?);
    let mut names: Vec<&String> =
        [&first, &now].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys()).collect();
    names.sort();
    names.dedup();
    let of = |object: &Value, name: &String| object.get(name).cloned().unwrap_or_default();
    let both = names.into_iter().map(|name| (name.clone(), of(&first, name), of(&now, name)));
    Ok(both.filter(|(_, was, is)| was != is).collect())
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
