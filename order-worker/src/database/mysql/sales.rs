//! `floodgate_sales` and `floodgate_restocks`.

use mysql_async::Row;
use stock::{SaleDefinition, SaleId, Timestamp};

use super::MysqlDatabase;
use super::fault::Fault;
use super::session::{NOW, Session, now};
use super::sql::{Text, get, parsed};
use crate::database::sales::difference;
use crate::database::{DatabaseError, Published, SaleRow};

const COLUMNS: &str = "sale_id, total, sold, version, definition, starts_at, ends_at, paused_by, opened_epoch, settled, \
                       installed_epoch";

impl MysqlDatabase {
    pub(in crate::database) async fn publish(
        &self,
        definition: SaleDefinition,
    ) -> Result<Published, DatabaseError> {
        if let Err(fault) = definition.validate() {
            return Err(DatabaseError::Invalid(format!("sale {}: {fault}", definition.id)));
        }
        let text = serde_json::to_string(&definition).map_err(broken)?;
        self.write(async move |session| publish(session, &definition, &text).await).await
    }

    pub(in crate::database) async fn sales(&self) -> Result<Vec<SaleRow>, DatabaseError> {
        self.read(async |session| {
            let all = format!("SELECT {COLUMNS} FROM floodgate_sales ORDER BY sale_id;");
            session.ask(&all).await?.rest().map(sale_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn sale(&self, sale: SaleId) -> Result<Option<SaleRow>, DatabaseError> {
        self.read(async move |session| session.ask(&select(&sale)).await?.row().map(sale_row).transpose())
            .await
    }

    pub(in crate::database) async fn restock(
        &self,
        sale: SaleId,
        restock_id: String,
        units: u32,
    ) -> Result<SaleRow, DatabaseError> {
        if units == 0 {
            return Err(DatabaseError::Invalid("a restock brings at least 1 unit".into()));
        }
        self.write(async move |session| restock(session, &sale, &restock_id, units).await).await
    }

    pub(in crate::database) async fn pause(
        &self,
        sale: SaleId,
        by: String,
    ) -> Result<SaleRow, DatabaseError> {
        self.change(sale, move |row, _| {
            let change = || format!("paused_by = {}, version = version + 1", Text(&by));
            Ok(row.paused_by.is_none().then(change))
        })
        .await
    }

    pub(in crate::database) async fn resume(&self, sale: SaleId) -> Result<SaleRow, DatabaseError> {
        self.change(sale, |row, _| {
            let change = || "paused_by = NULL, version = version + 1".to_owned();
            Ok(row.paused_by.is_some().then(change))
        })
        .await
    }

    pub(in crate::database) async fn end_now(&self, sale: SaleId) -> Result<SaleRow, DatabaseError> {
        self.change(sale, |row, now| {
            let change =
                || format!("ends_at = '{now}', starts_at = LEAST(starts_at, '{now}'), version = version + 1");
            Ok((row.ends_at > now).then(change))
        })
        .await
    }

    pub(in crate::database) async fn mark_opened(
        &self,
        sale: SaleId,
        epoch: u64,
    ) -> Result<(), DatabaseError> {
        let opened = self.change(sale, move |row, _| {
            Ok((row.opened_epoch < Some(epoch)).then(|| format!("opened_epoch = {epoch}")))
        });
        opened.await.map(|_| ())
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
                                WHERE sale_id = {id} AND status IN ('unpaid', 'refunding'))
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
        decide: impl Fn(&SaleRow, Timestamp) -> Result<Option<String>, DatabaseError> + Send + 'static,
    ) -> Result<SaleRow, DatabaseError> {
        self.write(async move |session| {
            let (row, now) = locked(session, &sale).await?;
            let Some(change) = decide(&row, now)? else {
                session.commit_found().await?;
                return Ok(row);
            };
            changed(session, &sale, now, "", &change).await
        })
        .await
    }
}

async fn publish(session: &mut Session, definition: &SaleDefinition, text: &str) -> Result<Published, Fault> {
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
    session.commit(insert).await?;
    Ok(Published::New)
}

async fn restock(
    session: &mut Session,
    sale: &SaleId,
    restock_id: &str,
    units: u32,
) -> Result<SaleRow, Fault> {
    let (row, now) = locked(session, sale).await?;
    let (id, restock) = (Text(sale.as_str()), Text(restock_id));
    let recorded =
        format!("SELECT units FROM floodgate_restocks WHERE sale_id = {id} AND restock_id = {restock};");
    let recorded = session.transact(&recorded).await?.row().map(|mut row| get(&mut row, 0)).transpose()?;
    match recorded {
        Some(recorded) if recorded == units => {
            session.commit_found().await?;
            return Ok(row);
        }
        Some(recorded) => {
            let (sale, restock_id) = (sale.clone(), restock_id.to_owned());
            return Err(DatabaseError::RestockDiffers { sale, restock_id, recorded, asked: units }.into());
        }
        None => {}
    }
    if row.settled {
        return Err(DatabaseError::Invalid(format!("sale {sale} is settled: publish a new one")).into());
    }
    let total = row.total.checked_add(units).ok_or_else(|| {
        DatabaseError::Invalid(format!("sale {sale} would offer more than {} units", u32::MAX))
    })?;
    let record = format!(
        "INSERT INTO floodgate_restocks (sale_id, restock_id, units, created_at) VALUES ({id}, {restock}, {units}, '{now}');"
    );
    changed(session, sale, now, &record, &format!("total = {total}, version = version + 1")).await
}

/// Commits `before` and the change of the sale's locked row, and answers with the row as it is then.
async fn changed(
    session: &mut Session,
    sale: &SaleId,
    now: Timestamp,
    before: &str,
    change: &str,
) -> Result<SaleRow, Fault> {
    let statements = format!("{before}{}{}", update(sale, &now.to_string(), change), select(sale));
    let row = session.transact(&statements).await?.rest().next();
    let row = sale_row(row.ok_or_else(|| DatabaseError::UnknownSale(sale.clone()))?)?;
    session.commit(String::new()).await?;
    Ok(row)
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
    })
}

pub(super) fn broken(error: serde_json::Error) -> DatabaseError {
    DatabaseError::Broken(format!("a sale's definition: {error}"))
}
