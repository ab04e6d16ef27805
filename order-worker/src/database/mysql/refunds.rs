//! `floodgate_refunds`: money that goes back. Locks as in [`super::payments`].

use mysql_async::Row;
use stock::{OrderId, Timestamp};

use super::fault::Fault;
use super::session::{NOW, Session, now};
use super::sql::{Text, TextOrNull, get, parsed, parsed_option};
use super::transitions::apply;
use super::{MysqlDatabase, journal, life, payments, sales};
use crate::database::DatabaseError;
use crate::database::payments::Disposition;
use crate::database::refunds::{
    Asker, Decision, OVERDUE_MS, OpenRefunds, Part, RefundAsked, RefundHeard, RefundRow, RefundState,
    RefundTold, asked, decide, retried, steps,
};
use crate::database::transitions;
use crate::journal::Author;

const COLUMNS: &str = "refund_id, provider, payment_id, order_id, amount, whole, reason, requested_by, state, attempts, \
                       next_try_at, provider_refund_id, last_error, created_at, updated_at";

impl MysqlDatabase {
    pub(in crate::database) async fn refund_told(
        &self,
        told: RefundTold,
    ) -> Result<RefundHeard, DatabaseError> {
        self.write(async move |session| hear(session, &told).await).await
    }

    pub(in crate::database) async fn refund(
        &self,
        order: OrderId,
        by: Asker,
        part: Option<Part>,
    ) -> Result<RefundAsked, DatabaseError> {
        let written = self.write(async move |session| ask(session, order, &by, part.as_ref()).await).await?;
        if matches!(&written, RefundAsked::Written(refund) if refund.whole) {
            self.release_written.notify_one();
        }
        Ok(written)
    }

    pub(in crate::database) async fn refunds_due(
        &self,
        rows: usize,
    ) -> Result<Vec<RefundRow>, DatabaseError> {
        self.read(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let due = format!(
                "SELECT {COLUMNS} FROM floodgate_refunds FORCE INDEX (floodgate_refunds_due)
                 WHERE next_try_at <= '{now}' ORDER BY next_try_at LIMIT {rows};"
            );
            session.ask(&due).await?.rest().map(refund_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn open_refunds(&self) -> Result<OpenRefunds, DatabaseError> {
        self.read(async |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let since = Timestamp(now.0.saturating_sub(OVERDUE_MS));
            let count = format!(
                "SELECT (SELECT COUNT(*) FROM floodgate_refunds WHERE next_try_at <= '{now}'),
                        (SELECT COUNT(*) FROM floodgate_refunds WHERE next_try_at <= '{since}'),
                        (SELECT COUNT(*) FROM floodgate_refunds WHERE state = 'stuck');"
            );
            let row = session.ask(&count).await?.row();
            let mut row = row.ok_or_else(|| DatabaseError::Broken("counts have no row".into()))?;
            let (due, overdue, stuck) = (get(&mut row, 0)?, get(&mut row, 1)?, get(&mut row, 2)?);
            Ok(OpenRefunds { due, overdue, stuck })
        })
        .await
    }

    pub(in crate::database) async fn refunds(
        &self,
        state: RefundState,
        after: String,
        rows: usize,
    ) -> Result<Vec<RefundRow>, DatabaseError> {
        self.read(async move |session| {
            let page = format!(
                "SELECT {COLUMNS} FROM floodgate_refunds FORCE INDEX (floodgate_refunds_state)
                 WHERE state = '{state}' AND refund_id > {} ORDER BY refund_id LIMIT {rows};",
                Text(&after)
            );
            session.ask(&page).await?.rest().map(refund_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn retry_refund(
        &self,
        refund_id: String,
        author: Author,
    ) -> Result<Option<RefundRow>, DatabaseError> {
        self.write(async move |session| {
            let mut answers = session.transact(&(select(&refund_id, " FOR UPDATE") + NOW)).await?;
            let Some(row) = answers.row().map(refund_row).transpose()? else { return Ok(None) };
            let now = now(&mut answers)?;
            let Some((after, change)) = retried(&row, now) else {
                session.commit_found().await?;
                return Ok(Some(row));
            };
            journal::commit(session, &update(&after, now), &author, now, change).await?;
            Ok(Some(after))
        })
        .await
    }
}

async fn hear(session: &mut Session, told: &RefundTold) -> Result<RefundHeard, Fault> {
    // 1. Lock order, payment and refund. Which order and payment it is of never changes, so that can be asked without a lock.
    let seen = session.transact(&select(&told.refund_id, "")).await?.row().map(refund_row).transpose()?;
    let Some(seen) = seen else { return Ok(RefundHeard::Unknown) };
    let (order, payment, now) =
        payments::locked(session, seen.order_id, &seen.provider, &seen.payment_id).await?;
    let row = session.transact(&select(&told.refund_id, " FOR UPDATE")).await?.row();
    let row = refund_row(row.ok_or_else(|| Fault::Again("a refund was there and is gone".into()))?)?;

    // 2. Compare, and set. A crash before COMMIT leaves the refund as it was, and the same is told again.
    let Some(after) = row.after(told, now) else {
        session.commit_found().await?;
        return Ok(RefundHeard::Unchanged);
    };
    let mut statements = update(&after, now);
    if let (RefundState::Succeeded, Some(order)) = (after.state, order) {
        let is_own = payment.is_some_and(|payment| payment.disposition == Disposition::Kept);
        statements += &apply(&[transitions::money_is_back(&order, now, &after, is_own)])?;
    }
    session.commit(statements).await?;
    Ok(RefundHeard::Changed)
}

async fn ask(
    session: &mut Session,
    order: OrderId,
    by: &Asker,
    part: Option<&Part>,
) -> Result<RefundAsked, Fault> {
    // 1. The sale's row comes first, since units may move; then the order, the payment that it kept, and that payment's refunds.
    let seen = session.transact(&life::select(order, "")).await?.row().map(life::order_row).transpose()?;
    let Some(seen) = seen.filter(|row| !by.is_stranger_to(row)) else {
        return Ok(RefundAsked::NotFound);
    };
    let lock =
        sales::lock(&seen.sale_id) + &life::select(order, " FOR UPDATE") + &payments::kept(order) + NOW;
    let mut answers = session.transact(&lock).await?;
    let sale = answers.row().map(sales::sale_row).transpose()?;
    let row = answers.row().map(life::order_row).transpose()?;
    let payment = answers.row().map(payments::payment_row).transpose()?;
    let now = now(&mut answers)?;
    let Some(row) = row else { return Ok(RefundAsked::NotFound) };
    let Some(payment) = payment else { return Ok(RefundAsked::WrongState(row.status)) };
    let sale = sale.ok_or_else(|| DatabaseError::UnknownSale(row.sale_id.clone()))?;
    let earlier = of_payment(&payment.provider, &payment.payment_id, " FOR UPDATE");
    let earlier: Result<Vec<RefundRow>, Fault> =
        session.transact(&earlier).await?.rest().map(refund_row).collect();
    let earlier = earlier?;

    // 2. Compare …
    let refund = match decide((&sale, &row), &payment, &earlier, (by, part), now)? {
        Decision::Write(refund) => refund,
        Decision::Answer(answer) => {
            session.commit_found().await?;
            return Ok(answer);
        }
    };

    // 3. … and set. A crash before COMMIT leaves a paid order, one after it a refund that is due.
    let mut statements = insert(&refund);
    match steps(&sale, &row, &refund, now) {
        // One statement group a step: the second begins where the first ends.
        Ok(steps) => {
            for step in steps {
                statements += &apply(&[step])?;
            }
        }
        Err(status) => return Ok(RefundAsked::WrongState(status)),
    }
    match by {
        Asker::User(_) | Asker::Withdrawal => session.commit(statements).await?,
        Asker::Operator(author) => {
            journal::commit(session, &statements, author, now, asked(&row, &refund)).await?;
        }
    }
    Ok(RefundAsked::Written(refund))
}

pub(super) fn insert(refund: &RefundRow) -> String {
    format!(
        "INSERT INTO floodgate_refunds (refund_id, provider, payment_id, order_id, amount, whole, reason, requested_by, state,
                                        attempts, next_try_at, created_at, updated_at)
         VALUES ({}, {}, {}, {}, {}, {}, {}, {}, '{}', {}, {}, '{now}', '{now}');",
        Text(&refund.refund_id),
        Text(&refund.provider),
        Text(&refund.payment_id),
        TextOrNull(refund.order_id.map(|order| order.to_string()).as_deref()),
        refund.amount,
        u8::from(refund.whole),
        TextOrNull(refund.reason.as_deref()),
        Text(&refund.requested_by),
        refund.state,
        refund.attempts,
        TextOrNull(refund.next_try_at.map(|at| at.to_string()).as_deref()),
        now = refund.created_at,
    )
}

/// What changes of a refund; its amount and its id never do.
fn update(refund: &RefundRow, now: Timestamp) -> String {
    format!(
        "UPDATE floodgate_refunds SET state = '{}', attempts = {}, next_try_at = {}, provider_refund_id = {}, last_error = {},
                                      updated_at = '{now}'
         WHERE refund_id = {};",
        refund.state,
        refund.attempts,
        TextOrNull(refund.next_try_at.map(|at| at.to_string()).as_deref()),
        TextOrNull(refund.provider_refund_id.as_deref()),
        TextOrNull(refund.last_error.as_deref()),
        Text(&refund.refund_id),
    )
}

fn select(refund_id: &str, lock: &str) -> String {
    format!("SELECT {COLUMNS} FROM floodgate_refunds WHERE refund_id = {}{lock};", Text(refund_id))
}

pub(super) fn of_payment(provider: &str, payment_id: &str, lock: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM floodgate_refunds FORCE INDEX (floodgate_refunds_payment)
         WHERE provider = {} AND payment_id = {} ORDER BY created_at, refund_id{lock};",
        Text(provider),
        Text(payment_id)
    )
}

/// Those of a provider's payments behind one, up to and including the other.
pub(super) fn between(provider: &str, after: &str, last: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM floodgate_refunds FORCE INDEX (floodgate_refunds_payment)
         WHERE provider = {} AND payment_id > {} AND payment_id <= {};",
        Text(provider),
        Text(after),
        Text(last)
    )
}

pub(super) fn refund_row(mut row: Row) -> Result<RefundRow, Fault> {
    let row = &mut row;
    Ok(RefundRow {
        refund_id: get(row, 0)?,
        provider: get(row, 1)?,
        payment_id: get(row, 2)?,
        order_id: parsed_option(row, 3)?,
        amount: get(row, 4)?,
        whole: get(row, 5)?,
        reason: get(row, 6)?,
        requested_by: get(row, 7)?,
        state: parsed(row, 8)?,
        attempts: get(row, 9)?,
        next_try_at: parsed_option(row, 10)?,
        provider_refund_id: get(row, 11)?,
        last_error: get(row, 12)?,
        created_at: parsed(row, 13)?,
        updated_at: parsed(row, 14)?,
    })
}
