//! `floodgate_sales`, `floodgate_sale_versions` and `floodgate_restocks`.

use std::collections::BTreeMap;

use mysql_async::Row;
use serde_json::{Value, json};
use stock::{SaleDefinition, SaleEdit, SaleId, Timestamp};

use super::fault::Fault;
use super::session::{NOW, Session, now};
use super::sql::{Text, TextOrNull, get, parsed, parsed_option};
use super::{MysqlDatabase, journal};
use crate::database::sales::{
    LIFT, RAISED_BY, RAISED_FOR, STILL_PAUSED_BY, changed, difference, edited, offered, published,
    read_offered, restocked_total,
};
pub(super) use crate::database::sales::{Terms, broken};
use crate::database::{Ahead, DatabaseError, Published, SaleRow, SaleVersionRow};
use crate::journal::{Action, Author};

const COLUMNS: &str = "sale_id, total, sold, version, definition, starts_at, ends_at, paused_by, opened_epoch, settled, \
                       installed_epoch, withdrawn_at, terms_version";

impl MysqlDatabase {
    pub(in crate::database) async fn publish(
        &self,
        definition: SaleDefinition,
        author: Author,
    ) -> Result<Published, DatabaseError> {
        let text = serde_json::to_string(&definition).map_err(broken)?;
        self.write(async move |session| publish(session, &definition, &text, &author).await).await
    }

    pub(in crate::database) async fn sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        self.read(async |session| {
            let all = format!("SELECT {COLUMNS} FROM floodgate_sales ORDER BY sale_id;");
            session.ask(&all).await?.rest().map(sale_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn unsettled_sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        self.read(async |session| {
            let unsettled = format!(
                "SELECT {COLUMNS} FROM floodgate_sales FORCE INDEX (floodgate_sales_settled) WHERE settled = 0 ORDER BY sale_id;"
            );
            session.ask(&unsettled).await?.rest().map(sale_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn sale(&self, sale: SaleId) -> Result<Option<SaleRow>, DatabaseError> {
        self.read(async move |session| session.ask(&select(&sale)).await?.row().map(sale_row).transpose())
            .await
    }

    pub(in crate::database) async fn sale_version(
        &self,
        sale: SaleId,
        version: u64,
    ) -> Result<Option<SaleVersionRow>, DatabaseError> {
        self.read(async move |session| {
            let select = format!(
                "SELECT version, definition, by_whom, at, reason FROM floodgate_sale_versions
                 WHERE sale_id = {} AND version = {version};",
                Text(sale.as_str())
            );
            session.ask(&select).await?.row().map(version_row).transpose()
        })
        .await
    }

    pub(in crate::database) async fn restock(
        &self,
        sale: SaleId,
        restock_id: String,
        units: u32,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(async move |session| restock(session, &sale, &restock_id, units, &author).await).await
    }

    pub(in crate::database) async fn pause(
        &self,
        sale: SaleId,
        by: String,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.change(sale, Action::SalePause, author, move |row, _| {
            row.paused_by.is_none().then(|| format!("paused_by = {}", Text(&by)))
        })
        .await
    }

    pub(in crate::database) async fn resume(
        &self,
        sale: SaleId,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.change(sale, Action::SaleResume, author, |row, _| {
            row.paused_by.is_some().then(|| "paused_by = NULL".to_owned())
        })
        .await
    }

    pub(in crate::database) async fn edit_sale(
        &self,
        sale: SaleId,
        edit: SaleEdit,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(async move |session| {
            let (before, now) = locked(session, &sale).await?;
            let Some(row) = edited(&before, &edit, now)? else {
                session.commit_found().await?;
                return Ok(before);
            };
            // A crash before COMMIT leaves the sale as it was; one after it the row ahead of the ledger, to which anybody pushes it.
            let change = format!(
                "definition = {}, starts_at = '{}', ends_at = '{}', version = {}, terms_version = {}",
                Text(&serde_json::to_string(&row.definition).map_err(broken)?),
                row.definition.starts_at,
                row.ends_at,
                row.version,
                row.terms_version,
            );
            let statements = update(&sale, &now.to_string(), &change) + &version(&row, &author, now)?;
            let change = changed(Action::SaleEdit, Some(&before), &row, &[])?;
            journal::commit(session, &statements, &author, now, change).await?;
            Ok(row)
        })
        .await
    }

    pub(in crate::database) async fn end_now(
        &self,
        sale: SaleId,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.change(sale, Action::SaleEnd, author, |row, now| {
            (row.ends_at > now).then(|| format!("ends_at = '{now}', starts_at = LEAST(starts_at, '{now}')"))
        })
        .await
    }

    pub(in crate::database) async fn withdraw(
        &self,
        sale: SaleId,
        with_orders: bool,
        author: Author,
    ) -> Result<SaleRow, DatabaseError> {
        self.change(sale, Action::SaleWithdraw, author, move |row, now| {
            let is_new = with_orders && row.withdrawn_at.is_none();
            let mark =
                if is_new { format!(", withdrawn_at = '{now}', withdrawing = 1") } else { String::new() };
            (row.ends_at > now || is_new).then(|| {
                format!("ends_at = LEAST(ends_at, '{now}'), starts_at = LEAST(starts_at, '{now}'){mark}")
            })
        })
        .await
    }

    pub(in crate::database) async fn withdrawing(&self) -> Result<Vec<SaleId>, DatabaseError> {
        self.read(async |session| {
            let withdrawing = "SELECT sale_id FROM floodgate_sales FORCE INDEX (floodgate_sales_withdrawing)
                               WHERE withdrawing = 1 ORDER BY sale_id;";
            session.ask(withdrawing).await?.rest().map(|mut row| parsed(&mut row, 0)).collect()
        })
        .await
    }

    pub(in crate::database) async fn withdrawal_done(&self, sale: SaleId) -> Result<bool, DatabaseError> {
        self.write(async move |session| {
            // Under the sale's row: nothing of it becomes unpaid meanwhile.
            let (_, now) = locked(session, &sale).await?;
            let outstanding = format!(
                "SELECT EXISTS (SELECT 1 FROM floodgate_orders FORCE INDEX (floodgate_orders_sale)
                                WHERE sale_id = {} AND status IN ('unpaid', 'paid'));",
                Text(sale.as_str())
            );
            let outstanding: bool = session.transact(&outstanding).await?.value()?;
            if !outstanding {
                session.commit(update(&sale, &now.to_string(), "withdrawing = 0")).await?;
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
        self.write(async move |session| {
            let (row, now) = locked(session, &sale).await?;
            if row.opened_epoch < Some(epoch) {
                let change = format!("opened_epoch = {epoch}");
                return session.commit(update(&sale, &now.to_string(), &change)).await;
            }
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn claim_install(
        &self,
        sale: SaleId,
        epoch: u64,
    ) -> Result<bool, DatabaseError> {
        self.write(async move |session| {
            let (row, now) = locked(session, &sale).await?;
            let is_free = row.installed_epoch < Some(epoch);
            if is_free {
                let change = format!("installed_epoch = {epoch}");
                session.commit(update(&sale, &now.to_string(), &change)).await?;
            }
            Ok(is_free)
        })
        .await
    }

    pub(in crate::database) async fn settled_too_early(&self) -> Result<Vec<SaleId>, DatabaseError> {
        self.read(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let settled = format!(
                "SELECT sale_id FROM floodgate_sales FORCE INDEX (floodgate_sales_ends)
                 WHERE settled = 1 AND ends_at > '{now}' AND withdrawn_at IS NULL ORDER BY ends_at, sale_id;"
            );
            session.ask(&settled).await?.rest().map(|mut row| parsed(&mut row, 0)).collect()
        })
        .await
    }

    pub(in crate::database) async fn lift_settled(&self, sale: SaleId) -> Result<bool, DatabaseError> {
        self.write(async move |session| {
            let (row, now) = locked(session, &sale).await?;
            if !row.settled || row.ends_at <= now {
                session.commit_found().await?;
                return Ok(!row.settled);
            }
            session.commit(update(&sale, &now.to_string(), LIFT)).await?;
            Ok(true)
        })
        .await
    }

    pub(in crate::database) async fn mark_settled(&self, sale: SaleId) -> Result<bool, DatabaseError> {
        self.write(async move |session| {
            let (row, now) = locked(session, &sale).await?;
            if row.settled {
                session.commit_found().await?;
                return Ok(true);
            }
            if row.ends_at > now {
                return Ok(false);
            }
            let id = Text(sale.as_str());
            let outstanding = format!(
                "SELECT EXISTS (SELECT 1 FROM floodgate_orders FORCE INDEX (floodgate_orders_sale)
                                WHERE sale_id = {id} AND status = 'unpaid')
                     OR EXISTS (SELECT 1 FROM floodgate_releases WHERE sale_id = {id});"
            );
            let outstanding: bool = session.transact(&outstanding).await?.value()?;
            if !outstanding {
                session.commit(update(&sale, &now.to_string(), "settled = 1")).await?;
            }
            Ok(!outstanding)
        })
        .await
    }

    /// Changes a sale's row by what `decide` says of it at the given time (`None`: it is as it should be), and answers with the row as it is then.
    async fn change(
        &self,
        sale: SaleId,
        action: Action,
        author: Author,
        decide: impl Fn(&SaleRow, Timestamp) -> Option<String> + Send + 'static,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(async move |session| {
            let (row, now) = locked(session, &sale).await?;
            let Some(change) = decide(&row, now) else {
                session.commit_found().await?;
                return Ok(row);
            };
            bump(session, (&author, now), &row, (action, &change), ("", &[])).await
        })
        .await
    }
}

async fn publish(
    session: &mut Session,
    definition: &SaleDefinition,
    text: &str,
    author: &Author,
) -> Result<Published, Fault> {
    let mut answers = session.transact(&(lock(&definition.id) + NOW)).await?;
    if let Some(mut row) = answers.row() {
        session.commit_found().await?;
        let first: SaleDefinition = serde_json::from_str(&get::<String>(&mut row, 4)?).map_err(broken)?;
        let difference = difference(&first, definition).map_err(broken)?;
        return Ok(difference.map_or(Published::Unchanged, Published::Differs));
    }
    let now = now(&mut answers)?;
    // An absent row cannot be locked: of two that publish at once one meets the other's row, and begins anew.
    let insert = format!(
        "INSERT INTO floodgate_sales (sale_id, total, version, definition, starts_at, ends_at, created_at, updated_at)
         VALUES ({}, {}, 1, {}, '{}', '{}', '{now}', '{now}');",
        Text(definition.id.as_str()),
        definition.total,
        Text(text),
        definition.starts_at,
        definition.ends_at,
    );
    let row = published(definition.clone());
    let statements = insert + &version(&row, author, now)?;
    let change = changed(Action::SalePublish, None, &row, &[])?;
    journal::commit(session, &statements, author, now, change).await?;
    Ok(Published::New)
}

async fn restock(
    session: &mut Session,
    sale: &SaleId,
    restock_id: &str,
    units: u32,
    author: &Author,
) -> Result<SaleRow, Fault> {
    let (row, now) = locked(session, sale).await?;
    let (id, restock) = (Text(sale.as_str()), Text(restock_id));
    let recorded =
        format!("SELECT units FROM floodgate_restocks WHERE sale_id = {id} AND restock_id = {restock};");
    let recorded = session.transact(&recorded).await?.row().map(|mut row| get(&mut row, 0)).transpose()?;
    let Some(total) = restocked_total(&row, restock_id, recorded, units)? else {
        session.commit_found().await?;
        return Ok(row);
    };
    let record = format!(
        "INSERT INTO floodgate_restocks (sale_id, restock_id, units, created_at) VALUES ({id}, {restock}, {units}, '{now}');"
    );
    let with = [("restock_id", json!(restock_id)), ("units", json!(units))];
    let change = (Action::SaleRestock, &*format!("total = {total}"));
    bump(session, (author, now), &row, change, (&record, &with)).await
}

/// Changes the sale's locked row by what comes with the action to its next version; commits that together with the statements given,
/// with the version's row and with the author's, to which the fields given are added. Answers with the row as it is then.
async fn bump(
    session: &mut Session,
    (author, now): (&Author, Timestamp),
    before: &SaleRow,
    (action, change): (Action, &str),
    (beside, with): (&str, &[(&str, Value)]),
) -> Result<SaleRow, Fault> {
    let sale = &before.definition.id;
    let change = update(sale, &now.to_string(), &format!("{change}, version = version + 1"));
    let row = session.transact(&format!("{beside}{change}{}", select(sale))).await?.rest().next();
    let row = sale_row(row.ok_or_else(|| DatabaseError::UnknownSale(sale.clone()))?)?;
    let change = changed(action, Some(before), &row, with)?;
    journal::commit(session, &version(&row, author, now)?, author, now, change).await?;
    Ok(row)
}

/// See [`Database::next_epoch_after`](crate::Database::next_epoch_after). No operator changed anything: the journal has no row of it.
pub(super) async fn raise_versions(
    session: &mut Session,
    above: &BTreeMap<SaleId, Ahead>,
) -> Result<(), Fault> {
    for (sale, above) in above {
        let mut answers = session.transact(&(lock(sale) + NOW)).await?;
        let Some(row) = answers.row().map(sale_row).transpose()? else { continue };
        if row.version > above.version {
            continue;
        }
        let now = now(&mut answers)?;
        let still_paused = above.paused.then(|| STILL_PAUSED_BY.to_owned());
        let paused_by = row.paused_by.clone().or(still_paused);
        let row = SaleRow { version: above.version + 1, paused_by, ..row };
        let paused_by = TextOrNull(row.paused_by.as_deref());
        let change = format!(
            "version = {}, opened_epoch = COALESCE(opened_epoch, 0), paused_by = {paused_by}",
            row.version
        );
        let raise = update(sale, &now.to_string(), &change);
        let version = version_by(&row, (RAISED_BY, Some(RAISED_FOR)), now)?;
        session.transact(&(raise + &version)).await?;
    }
    Ok(())
}

/// The row of the sale's version. One that is there is left of a sale that somebody has deleted: the journal remembers it.
fn version(row: &SaleRow, author: &Author, now: Timestamp) -> Result<String, DatabaseError> {
    version_by(row, (author.operator(), author.reason()), now)
}

fn version_by(
    row: &SaleRow,
    (by_whom, reason): (&str, Option<&str>),
    now: Timestamp,
) -> Result<String, DatabaseError> {
    Ok(format!(
        "REPLACE INTO floodgate_sale_versions (sale_id, version, definition, by_whom, at, reason)
         VALUES ({}, {}, {}, {}, '{now}', {});",
        Text(row.definition.id.as_str()),
        row.version,
        Text(&offered(row)?.to_string()),
        Text(by_whom),
        TextOrNull(reason),
    ))
}

fn version_row(mut row: Row) -> Result<SaleVersionRow, Fault> {
    let row = &mut row;
    let (definition, paused_by) = read_offered(&get::<String>(row, 1)?).map_err(broken)?;
    Ok(SaleVersionRow {
        version: get(row, 0)?,
        definition,
        paused_by,
        by_whom: get(row, 2)?,
        at: parsed(row, 3)?,
        reason: get(row, 4)?,
    })
}

/// Asks what a sale offered from a version on: see [`version_terms`].
pub(super) fn select_version(sale: &SaleId, version: u64) -> String {
    format!(
        "SELECT version, definition FROM floodgate_sale_versions WHERE sale_id = {} AND version = {version};",
        Text(sale.as_str())
    )
}

/// The version, and what its orders are judged by.
pub(super) fn version_terms(mut row: Row) -> Result<(u64, Terms), Fault> {
    let (definition, _) = read_offered(&get::<String>(&mut row, 1)?).map_err(broken)?;
    Ok((get(&mut row, 0)?, Terms::of(&definition)))
}

/// The sale's row, locked until the transaction ends, and the time behind the lock.
async fn locked(session: &mut Session, sale: &SaleId) -> Result<(SaleRow, Timestamp), Fault> {
    let mut answers = session.transact(&(lock(sale) + NOW)).await?;
    let row = answers.row().ok_or_else(|| DatabaseError::UnknownSale(sale.clone()))?;
    Ok((sale_row(row)?, now(&mut answers)?))
}

pub(super) fn select(sale: &SaleId) -> String {
    format!("SELECT {COLUMNS} FROM floodgate_sales WHERE sale_id = {};", Text(sale.as_str()))
}

/// Locks a sale's row by its key alone, so that no other sale's is touched on the way.
pub(super) fn lock(sale: &SaleId) -> String {
    format!("SELECT {COLUMNS} FROM floodgate_sales WHERE sale_id = {} FOR UPDATE;", Text(sale.as_str()))
}

/// Changes a sale's row.
pub(super) fn update(sale: &SaleId, now: &str, change: &str) -> String {
    let id = Text(sale.as_str());
    format!("UPDATE floodgate_sales SET {change}, updated_at = {} WHERE sale_id = {id};", Text(now))
}

pub(super) fn sale_row(mut row: Row) -> Result<SaleRow, Fault> {
    let row = &mut row;
    let mut definition: SaleDefinition = serde_json::from_str(&get::<String>(row, 4)?).map_err(broken)?;
    definition.starts_at = parsed(row, 5)?;
    definition.ends_at = parsed(row, 6)?;
    Ok(SaleRow {
        ends_at: definition.ends_at,
        definition,
        version: get(row, 3)?,
        total: get(row, 1)?,
        sold: get(row, 2)?,
        paused_by: get(row, 7)?,
        opened_epoch: get(row, 8)?,
        installed_epoch: get(row, 10)?,
        settled: get(row, 9)?,
        withdrawn_at: parsed_option(row, 11)?,
        terms_version: get(row, 12)?,
    })
}
