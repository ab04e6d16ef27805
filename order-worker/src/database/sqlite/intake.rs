//! Promised orders become rows of `floodgate_orders`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction, params};
use stock::{OrderStatus, Reservation, SaleId, Timestamp};

use super::transitions::apply;
use super::{DatabaseError, SqliteDatabase, life, parsed, parsed_option, sales, signed};
use crate::database::intake::NO_CURRENCY;
use crate::database::life::RowStatus;
use crate::database::sales::{Terms, older_terms};
use crate::database::transitions;
use crate::database::{CloseCause, Outcome, RejectReason, SaleRow, Settled};

impl SqliteDatabase {
    pub(in crate::database) async fn settle(
        &self,
        batch: Arc<[Reservation]>,
    ) -> Result<Vec<Settled>, DatabaseError> {
        let settled = self.write(move |transaction, now| settle(transaction, now, &batch)).await?;
        if settled.iter().any(Settled::is_released) {
            self.release_written.notify_one();
        }
        Ok(settled)
    }

    pub(in crate::database) async fn reject(
        &self,
        reservation: Reservation,
        reason: RejectReason,
    ) -> Result<Settled, DatabaseError> {
        let settled = self
            .write(move |transaction, now| {
                let sale = sales::find(transaction, &reservation.sale)?;
                let bare = Reservation { metadata: None, ..reservation };
                let definition = sale.as_ref().map(|sale| &sale.definition);
                let entry = Entry {
                    amount: None,
                    verdict: Err(reason),
                    pay_by: None,
                    currency: definition.map(|definition| &*definition.currency),
                    rehearsal: definition.is_some_and(|definition| definition.rehearsal),
                };
                write(transaction, &now.to_string(), &bare, &entry)
            })
            .await?;
        self.release_written.notify_one();
        Ok(settled)
    }
}

/// A sale's row as this transaction has changed it so far.
struct OpenSale {
    row: SaleRow,
    sold: u32,
    terms: Terms,
    /// Of versions that are older than the row's terms.
    older: BTreeMap<u64, Terms>,
}

impl OpenSale {
    fn new(row: SaleRow) -> Self {
        Self { sold: row.sold, terms: Terms::of(&row.definition), older: BTreeMap::new(), row }
    }

    /// Those under which this was promised.
    fn terms(&mut self, transaction: &Transaction<'_>, of: &Reservation) -> Result<&Terms, DatabaseError> {
        let Some(version) = older_terms(&self.row, of.sale_version) else { return Ok(&self.terms) };
        if !self.older.contains_key(&version) {
            let found = sales::find_version(transaction, &of.sale, version)?;
            let terms = found.map_or_else(|| self.terms.clone(), |found| Terms::of(&found.definition));
            self.older.insert(version, terms);
        }
        Ok(self.older.get(&version).unwrap_or(&self.terms))
    }
}

/// What is about to be written for one order.
struct Entry<'a> {
    amount: Option<i64>,
    verdict: Result<(), RejectReason>,
    pay_by: Option<Timestamp>,
    currency: Option<&'a str>,
    rehearsal: bool,
}

fn settle(
    transaction: &Transaction<'_>,
    now: Timestamp,
    batch: &[Reservation],
) -> Result<Vec<Settled>, DatabaseError> {
    let now_text = now.to_string();
    let mut open: BTreeMap<SaleId, Option<OpenSale>> = BTreeMap::new();
    let mut all_settled = Vec::with_capacity(batch.len());
    let mut withdrawn = Vec::new();
    for reservation in batch {
        if !open.contains_key(&reservation.sale) {
            let found = sales::find(transaction, &reservation.sale)?;
            open.insert(reservation.sale.clone(), found.map(OpenSale::new));
        }
        let Some(sale) = open.get_mut(&reservation.sale).and_then(Option::as_mut) else {
            let settled = existing(transaction, reservation)?;
            all_settled.push(settled.ok_or_else(|| DatabaseError::UnknownSale(reservation.sale.clone()))?);
            continue;
        };
        let entry = judge(transaction, now, reservation, sale)?;
        let settled = write(transaction, &now_text, reservation, &entry)?;
        if settled.outcome == Outcome::Inserted {
            sale.sold += reservation.quantity;
            if sale.row.withdrawn_at.is_some() {
                withdrawn.push((all_settled.len(), sale.row.settled));
            }
        }
        all_settled.push(settled);
    }
    for (id, sale) in open.iter().filter_map(|(id, sale)| sale.as_ref().map(|sale| (id, sale))) {
        if sale.sold != sale.row.sold {
            transaction
                .prepare_cached("UPDATE floodgate_sales SET sold = ?2, updated_at = ?3 WHERE sale_id = ?1")?
                .execute(params![id.as_str(), sale.sold, now_text])?;
        }
    }
    // Behind what the sales' rows count: each gives its units back.
    for (at, is_settled) in withdrawn {
        let settled: &mut Settled = &mut all_settled[at];
        let row = life::find(transaction, settled.order_id)?;
        let step = row.map(|row| transitions::close(&row, now, CloseCause::Withdrawn, is_settled));
        if let Some(Ok(step)) = step {
            apply(transaction, &step)?;
            *settled = settled.clone().withdrawn();
        }
    }
    Ok(all_settled)
}

/// First fit: what the order gets if it has no row yet.
fn judge<'a>(
    transaction: &Transaction<'_>,
    now: Timestamp,
    reservation: &Reservation,
    sale: &'a mut OpenSale,
) -> Result<Entry<'a>, DatabaseError> {
    let (left, rehearsal) = (sale.row.total.saturating_sub(sale.sold), sale.row.definition.rehearsal);
    let terms = sale.terms(transaction, reservation)?;
    let verdict = if reservation.quantity > left {
        Err(RejectReason::NotEnough)
    } else if held_by_user(transaction, reservation)? + u64::from(reservation.quantity)
        > u64::from(terms.per_user_limit)
    {
        Err(RejectReason::LimitReached)
    } else {
        Ok(())
    };
    let pay_by = verdict.is_ok().then(|| terms.pay_by(now));
    let amount = terms.amount(reservation.quantity);
    Ok(Entry { amount, verdict, pay_by, currency: Some(&terms.currency), rehearsal })
}

/// Units that the user's other orders of the sale hold.
fn held_by_user(transaction: &Transaction<'_>, reservation: &Reservation) -> Result<u64, DatabaseError> {
    let mut statement = transaction.prepare_cached(
        "SELECT coalesce(sum(units_held), 0) FROM floodgate_orders WHERE sale_id = ?1 AND user_id = ?2",
    )?;
    let held: i64 = statement
        .query_row(params![reservation.sale.as_str(), reservation.user.as_str()], |row| row.get(0))?;
    Ok(u64::try_from(held).unwrap_or(0))
}

/// Inserts the row, with its release if it is rejected; an order that has a row keeps it.
fn write(
    transaction: &Transaction<'_>,
    now: &str,
    reservation: &Reservation,
    entry: &Entry<'_>,
) -> Result<Settled, DatabaseError> {
    let (status, units_held) = match entry.verdict {
        Ok(()) => (OrderStatus::Unpaid, reservation.quantity),
        Err(_) => (OrderStatus::Rejected, 0),
    };
    let order_id = reservation.order_id.to_string();
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency,
                                           status, reason, metadata, created_at, updated_at, pay_by, version,
                                           rehearsal, sale_version)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12, 1, ?13, ?14)
             ON CONFLICT (order_id) DO NOTHING",
        )?
        .execute(params![
            order_id,
            reservation.sale.as_str(),
            reservation.user.as_str(),
            reservation.quantity,
            units_held,
            entry.amount.unwrap_or(0),
            entry.currency.unwrap_or(NO_CURRENCY),
            status.as_str(),
            entry.verdict.err().map(RejectReason::as_str),
            reservation.metadata,
            now,
            entry.pay_by.map(|at| at.to_string()),
            entry.rehearsal,
            reservation.sale_version.map(signed),
        ])?;
    if inserted == 0 {
        return existing(transaction, reservation)?
            .ok_or_else(|| DatabaseError::Broken("an order conflicts with a row that is not there".into()));
    }
    if entry.verdict.is_err() {
        release(
            transaction,
            &order_id,
            reservation.sale.as_str(),
            reservation.user.as_str(),
            reservation.quantity,
            now,
        )?;
    }
    Ok(Settled {
        order_id: reservation.order_id,
        sale: reservation.sale.clone(),
        user: reservation.user.clone(),
        quantity: reservation.quantity,
        units_held,
        status,
        pay_by: entry.pay_by,
        outcome: entry.verdict.map_or_else(Outcome::Rejected, |()| Outcome::Inserted),
    })
}

/// What the row of an order says that was settled before; none if it has no row.
fn existing(
    transaction: &Transaction<'_>,
    reservation: &Reservation,
) -> Result<Option<Settled>, DatabaseError> {
    let mut statement = transaction.prepare_cached(
        "SELECT sale_id, user_id, quantity, units_held, status, pay_by FROM floodgate_orders WHERE order_id = ?1",
    )?;
    let row = statement.query_row(params![reservation.order_id.to_string()], |row| {
        Ok(Settled {
            order_id: reservation.order_id,
            sale: parsed(row, 0)?,
            user: parsed(row, 1)?,
            quantity: row.get(2)?,
            units_held: row.get(3)?,
            status: parsed::<RowStatus>(row, 4)?.0,
            pay_by: parsed_option(row, 5)?,
            outcome: Outcome::Duplicate,
        })
    });
    Ok(row.optional()?)
}

/// The outbox row of an order that holds no units any more. An order enters such a state once.
pub(super) fn release(
    transaction: &Transaction<'_>,
    order_id: &str,
    sale: &str,
    user: &str,
    quantity: u32,
    now: &str,
) -> Result<(), DatabaseError> {
    transaction
        .prepare_cached(
            "INSERT INTO floodgate_releases (order_id, sale_id, user_id, quantity, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![order_id, sale, user, quantity, now])?;
    Ok(())
}
