//! `floodgate_sales`, `floodgate_sale_versions` and `floodgate_restocks`.

use std::collections::BTreeMap;

use rusqlite::types::Null;
use rusqlite::{OptionalExtension, Row, ToSql, Transaction, params};
use serde_json::{Value, json};
use stock::{SaleDefinition, SaleEdit, SaleId, Timestamp};

use super::{DatabaseError, SqliteDatabase, journal, parsed, parsed_option, signed, unsigned};
use crate::database::sales::{
    LIFT, RAISED_BY, RAISED_FOR, STILL_PAUSED_BY, broken, changed, difference, edited, offered, published,
    read_offered, restocked_total,
};
use crate::database::{Ahead, Published, SaleRow, SaleVersionRow};
use crate::journal::{Action, Author};

const COLUMNS: &str = "sale_id, total, sold, version, definition, starts_at, ends_at, paused_by, opened_epoch, settled, installed_epoch, \
                       withdrawn_at, terms_version";

impl SqliteDatabase {
    pub(in crate::database) async fn publish(
        &self,
        definition: SaleDefinition,
        author: Author,
    ) -> Result<Published, DatabaseError> {
        let text = serde_json::to_string(&definition).map_err(broken)?;
        self.write(move |transaction, now| {
            let inserted = transaction.execute(
                "INSERT INTO floodgate_sales
                 (sale_id, total, version, definition, starts_at, ends_at, created_at, updated_at)
                 VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?6) ON CONFLICT (sale_id) DO NOTHING",
                params![
                    definition.id.as_str(),
                    definition.total,
                    text,
                    definition.starts_at.to_string(),
                    definition.ends_at.to_string(),
                    now.to_string()
                ],
            )?;
            if inserted == 1 {
                let row = published(definition);
                record(transaction, now, &author, Action::SalePublish, None, &row, &[])?;
                return Ok(Published::New);
            }
            let first: String = transaction.query_row(
                "SELECT definition FROM floodgate_sales WHERE sale_id = ?1",
                params![definition.id.as_str()],
                |row| row.get(0),
            )?;
            let first: SaleDefinition = serde_json::from_str(&first).map_err(broken)?;
            let difference = difference(&first, &definition).map_err(broken)?;
            Ok(difference.map_or(Published::Unchanged, Published::Differs))
        })
        .await
    }

    pub(in crate::database) async fn sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        self.read(|transaction| {
            let mut statement = transaction
                .prepare_cached(&format!("SELECT {COLUMNS} FROM floodgate_sales ORDER BY sale_id"))?;
            let rows = statement.query_map([], sale_row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    pub(in crate::database) async fn unsettled_sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM floodgate_sales INDEXED BY floodgate_sales_settled WHERE settled = 0 ORDER BY sale_id"
            ))?;
            let rows = statement.query_map([], sale_row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    pub(in crate::database) async fn sale(&self, sale: SaleId) -> Result<Option<SaleRow>, DatabaseError> {
        self.read(move |transaction| find(transaction, &sale)).await
    }

    pub(in crate::database) async fn sale_version(
        &self,
        sale: SaleId,
        version: u64,
    ) -> Result<Option<SaleVersionRow>, DatabaseError> {
        self.read(move |transaction| find_version(transaction, &sale, version)).await
    }

    pub(in crate::database) async fn restock(
        &self,
        sale: SaleId,
        restock_id: String,
        units: u32,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            let recorded: Option<u32> = transaction
                .query_row(
                    "SELECT units FROM floodgate_restocks WHERE sale_id = ?1 AND restock_id = ?2",
                    params![sale.as_str(), restock_id],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(total) = restocked_total(&row, &restock_id, recorded, units)? else { return Ok(row) };
            transaction.execute(
                "INSERT INTO floodgate_restocks (sale_id, restock_id, units, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![sale.as_str(), restock_id, units, now.to_string()],
            )?;
            let with = [("restock_id", json!(restock_id)), ("units", json!(units))];
            let change = (Action::SaleRestock, "total = ?3", &total as &dyn ToSql);
            bump(transaction, &author, now, &row, change, &with)
        })
        .await
    }

    pub(in crate::database) async fn pause(
        &self,
        sale: SaleId,
        by: String,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            if row.paused_by.is_some() {
                return Ok(row);
            }
            bump(transaction, &author, now, &row, (Action::SalePause, "paused_by = ?3", &by), &[])
        })
        .await
    }

    pub(in crate::database) async fn resume(
        &self,
        sale: SaleId,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            if row.paused_by.is_none() {
                return Ok(row);
            }
            bump(transaction, &author, now, &row, (Action::SaleResume, "paused_by = ?3", &Null), &[])
        })
        .await
    }

    pub(in crate::database) async fn edit_sale(
        &self,
        sale: SaleId,
        edit: SaleEdit,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(move |transaction, now| {
            let before = get(transaction, &sale)?;
            let Some(row) = edited(&before, &edit, now)? else { return Ok(before) };
            // A crash before the commit leaves the sale as it was; one after it the row ahead of the ledger, to which anybody pushes it.
            transaction.execute(
                "UPDATE floodgate_sales SET definition = ?2, starts_at = ?3, ends_at = ?4, version = ?5, terms_version = ?6,
                                            updated_at = ?7 WHERE sale_id = ?1",
                params![
                    sale.as_str(),
                    serde_json::to_string(&row.definition).map_err(broken)?,
                    row.definition.starts_at.to_string(),
                    row.ends_at.to_string(),
                    signed(row.version),
                    signed(row.terms_version),
                    now.to_string(),
                ],
            )?;
            record(transaction, now, &author, Action::SaleEdit, Some(&before), &row, &[])?;
            Ok(row)
        })
        .await
    }

    pub(in crate::database) async fn end_now(
        &self,
        sale: SaleId,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            if row.ends_at <= now {
                return Ok(row);
            }
            let change = "ends_at = ?3, starts_at = min(starts_at, ?3)";
            bump(transaction, &author, now, &row, (Action::SaleEnd, change, &now.to_string()), &[])
        })
        .await
    }

    pub(in crate::database) async fn withdraw(
        &self,
        sale: SaleId,
        with_orders: bool,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            let is_new = with_orders && row.withdrawn_at.is_none();
            if row.ends_at <= now && !is_new {
                return Ok(row);
            }
            let mark = if is_new { ", withdrawn_at = ?3, withdrawing = 1" } else { "" };
            let change = format!("ends_at = min(ends_at, ?3), starts_at = min(starts_at, ?3){mark}");
            bump(transaction, &author, now, &row, (Action::SaleWithdraw, &change, &now.to_string()), &[])
        })
        .await
    }

    pub(in crate::database) async fn withdrawing(&self) -> Result<Vec<SaleId>, DatabaseError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT sale_id FROM floodgate_sales INDEXED BY floodgate_sales_withdrawing
                 WHERE withdrawing = 1 ORDER BY sale_id",
            )?;
            let sales = statement.query_map([], |row| parsed(row, 0))?;
            Ok(sales.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn withdrawal_done(&self, sale: SaleId) -> Result<bool, DatabaseError> {
        self.write(move |transaction, now| {
            get(transaction, &sale)?;
            let outstanding: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM floodgate_orders INDEXED BY floodgate_orders_sale
                                WHERE sale_id = ?1 AND status IN ('unpaid', 'paid'))",
                params![sale.as_str()],
                |row| row.get(0),
            )?;
            if !outstanding {
                update(transaction, &sale, now, "withdrawing = ?3", &false)?;
            }
            Ok(!outstanding)
        })
        .await
    }

    pub(in crate::database) async fn mark_opened(
        &self,
        sale: SaleId,
        epoch: u64,
    ) -> Result<(), DatabaseError> {
        self.write(move |transaction, now| {
            if get(transaction, &sale)?.opened_epoch < Some(epoch) {
                update(transaction, &sale, now, "opened_epoch = ?3", &signed(epoch))?;
            }
            Ok(())
        })
        .await
    }

    pub(in crate::database) async fn claim_install(
        &self,
        sale: SaleId,
        epoch: u64,
    ) -> Result<bool, DatabaseError> {
        self.write(move |transaction, now| {
            let is_free = get(transaction, &sale)?.installed_epoch < Some(epoch);
            if is_free {
                update(transaction, &sale, now, "installed_epoch = ?3", &signed(epoch))?;
            }
            Ok(is_free)
        })
        .await
    }

    pub(in crate::database) async fn settled_too_early(&self) -> Result<Vec<SaleId>, DatabaseError> {
        let now = Timestamp((self.now)()).to_string();
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT sale_id FROM floodgate_sales INDEXED BY floodgate_sales_ends
                 WHERE settled = 1 AND ends_at > ?1 AND withdrawn_at IS NULL ORDER BY ends_at, sale_id",
            )?;
            let sales = statement.query_map(params![now], |row| parsed(row, 0))?.collect::<Result<_, _>>()?;
            Ok(sales)
        })
        .await
    }

    pub(in crate::database) async fn lift_settled(&self, sale: SaleId) -> Result<bool, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            if !row.settled || row.ends_at <= now {
                return Ok(!row.settled);
            }
            transaction.execute(
                &format!("UPDATE floodgate_sales SET {LIFT}, updated_at = ?2 WHERE sale_id = ?1"),
                params![sale.as_str(), now.to_string()],
            )?;
            Ok(true)
        })
        .await
    }

    pub(in crate::database) async fn mark_settled(&self, sale: SaleId) -> Result<bool, DatabaseError> {
        self.write(move |transaction, now| {
            let row = get(transaction, &sale)?;
            if row.settled || row.ends_at > now {
                return Ok(row.settled);
            }
            let outstanding: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM floodgate_orders INDEXED BY floodgate_orders_sale
                                WHERE sale_id = ?1 AND status = 'unpaid')
                     OR EXISTS (SELECT 1 FROM floodgate_releases WHERE sale_id = ?1)",
                params![sale.as_str()],
                |row| row.get(0),
            )?;
            if !outstanding {
                update(transaction, &sale, now, "settled = ?3", &true)?;
            }
            Ok(!outstanding)
        })
        .await
    }
}

/// The sale's row, if there is one.
pub(super) fn find(transaction: &Transaction<'_>, sale: &SaleId) -> Result<Option<SaleRow>, DatabaseError> {
    let mut statement =
        transaction.prepare_cached(&format!("SELECT {COLUMNS} FROM floodgate_sales WHERE sale_id = ?1"))?;
    Ok(statement.query_row(params![sale.as_str()], sale_row).optional()?)
}

/// What the sale offered from this version on, if it has had it.
pub(super) fn find_version(
    transaction: &Transaction<'_>,
    sale: &SaleId,
    version: u64,
) -> Result<Option<SaleVersionRow>, DatabaseError> {
    let mut statement = transaction.prepare_cached(
        "SELECT version, definition, by_whom, at, reason FROM floodgate_sale_versions
         WHERE sale_id = ?1 AND version = ?2",
    )?;
    Ok(statement.query_row(params![sale.as_str(), signed(version)], version_row).optional()?)
}

pub(super) fn get(transaction: &Transaction<'_>, sale: &SaleId) -> Result<SaleRow, DatabaseError> {
    find(transaction, sale)?.ok_or_else(|| DatabaseError::UnknownSale(sale.clone()))
}

/// Changes the sale's row by what comes with the action, in which `?3` is the value, to its next version; writes that version's row and
/// the author's.
fn bump(
    transaction: &Transaction<'_>,
    author: &Author,
    now: Timestamp,
    before: &SaleRow,
    (action, change, value): (Action, &str, &dyn ToSql),
    with: &[(&str, Value)],
) -> Result<SaleRow, DatabaseError> {
    let change = format!("{change}, version = version + 1");
    let row = update(transaction, &before.definition.id, now, &change, value)?;
    record(transaction, now, author, action, Some(before), &row, with)?;
    Ok(row)
}

/// The rows that belong to a new version. A version's that is there is left of a sale that somebody has deleted: the journal
/// remembers it.
fn record(
    transaction: &Transaction<'_>,
    now: Timestamp,
    author: &Author,
    action: Action,
    before: Option<&SaleRow>,
    row: &SaleRow,
    with: &[(&str, Value)],
) -> Result<(), DatabaseError> {
    record_version(transaction, now, (author.operator(), author.reason()), row)?;
    journal::append(transaction, author, now, changed(action, before, row, with)?)
}

/// See [`Database::next_epoch_after`](crate::Database::next_epoch_after). No operator changed anything: the journal has no row of it.
pub(super) fn raise_versions(
    transaction: &Transaction<'_>,
    now: Timestamp,
    above: &BTreeMap<SaleId, Ahead>,
) -> Result<(), DatabaseError> {
    for (sale, above) in above {
        if find(transaction, sale)?.is_some_and(|row| row.version <= above.version) {
            let pause = format!(", paused_by = COALESCE(paused_by, '{STILL_PAUSED_BY}')");
            let pause = if above.paused { pause.as_str() } else { "" };
            let change = format!("version = ?3, opened_epoch = COALESCE(opened_epoch, 0){pause}");
            let row = update(transaction, sale, now, &change, &signed(above.version + 1))?;
            record_version(transaction, now, (RAISED_BY, Some(RAISED_FOR)), &row)?;
        }
    }
    Ok(())
}

/// What the sale offers from this version of it on.
fn record_version(
    transaction: &Transaction<'_>,
    now: Timestamp,
    (by_whom, reason): (&str, Option<&str>),
    row: &SaleRow,
) -> Result<(), DatabaseError> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO floodgate_sale_versions (sale_id, version, definition, by_whom, at, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            row.definition.id.as_str(),
            signed(row.version),
            offered(row)?.to_string(),
            by_whom,
            now.to_string(),
            reason,
        ])?;
    Ok(())
}

/// Changes the sale's row by `change`, in which `?3` is `value`, and answers with the new row.
fn update(
    transaction: &Transaction<'_>,
    sale: &SaleId,
    now: Timestamp,
    change: &str,
    value: &dyn ToSql,
) -> Result<SaleRow, DatabaseError> {
    let mut statement = transaction.prepare_cached(&format!(
        "UPDATE floodgate_sales SET {change}, updated_at = ?2 WHERE sale_id = ?1 RETURNING {COLUMNS}"
    ))?;
    Ok(statement.query_row(params![sale.as_str(), now.to_string(), value], sale_row)?)
}

fn epoch(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.and_then(|epoch| u64::try_from(epoch).ok()))
}

fn version_row(row: &Row<'_>) -> rusqlite::Result<SaleVersionRow> {
    let (definition, paused_by) = read_offered(row.get_ref(1)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(SaleVersionRow {
        version: unsigned(row, 0)?,
        definition,
        paused_by,
        by_whom: row.get(2)?,
        at: parsed(row, 3)?,
        reason: row.get(4)?,
    })
}

fn sale_row(row: &Row<'_>) -> rusqlite::Result<SaleRow> {
    let mut definition: SaleDefinition =
        serde_json::from_str(row.get_ref(4)?.as_str()?).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(error))
        })?;
    definition.starts_at = parsed(row, 5)?;
    definition.ends_at = parsed(row, 6)?;
    Ok(SaleRow {
        ends_at: definition.ends_at,
        definition,
        version: unsigned(row, 3)?,
        total: row.get(1)?,
        sold: row.get(2)?,
        paused_by: row.get(7)?,
        opened_epoch: epoch(row, 8)?,
        installed_epoch: epoch(row, 10)?,
        terms_version: unsigned(row, 12)?,
        settled: row.get(9)?,
        withdrawn_at: parsed_option(row, 11)?,
    })
}
