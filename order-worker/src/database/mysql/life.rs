//! The later life of rows of `floodgate_orders`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mysql_async::Row;
use stock::{OrderId, OrderStatus, SaleId, Timestamp, UserId};

use super::fault::Fault;
use super::session::{NOW, Session, in_parts, now};
use super::sql::{Text, get, ids, parsed, parsed_option};
use super::transitions::apply;
use super::{MysqlDatabase, journal, sales};
use crate::database::life::{Canceller, Closes, RowStatus};
use crate::database::transitions;
use crate::database::{CancelOutcome, CloseOutcome, DatabaseError, Due, OrderRow, Standing};

const COLUMNS: &str = "order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason, metadata, \
                       created_at, updated_at, pay_by, version, rehearsal, paid_at, refunded_amount, sale_version";

impl MysqlDatabase {
    pub(in crate::database) async fn order(&self, order: OrderId) -> Result<Option<OrderRow>, DatabaseError> {
        self.read(async move |session| {
            session.ask(&select(order, "")).await?.row().map(order_row).transpose()
        })
        .await
    }

    pub(in crate::database) async fn orders(
        &self,
        sale: SaleId,
        after: Option<OrderId>,
        rows: usize,
    ) -> Result<Vec<OrderRow>, DatabaseError> {
        self.read(async move |session| {
            let page = format!(
                "SELECT {COLUMNS} FROM floodgate_orders FORCE INDEX (floodgate_orders_sale)
                 WHERE sale_id = {} AND order_id > '{}' ORDER BY order_id LIMIT {rows};",
                Text(sale.as_str()),
                after.map(|order| order.to_string()).unwrap_or_default(),
            );
            session.ask(&page).await?.rest().map(order_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn orders_of_user(
        &self,
        sale: SaleId,
        user: UserId,
        rows: usize,
    ) -> Result<Vec<OrderRow>, DatabaseError> {
        self.read(async move |session| {
            let page = format!(
                "SELECT {COLUMNS} FROM floodgate_orders FORCE INDEX (floodgate_orders_user)
                 WHERE sale_id = {} AND user_id = {} ORDER BY order_id DESC LIMIT {rows};",
                Text(sale.as_str()),
                Text(user.as_str()),
            );
            session.ask(&page).await?.rest().map(order_row).collect()
        })
        .await
    }

    pub(in crate::database) async fn cancel(
        &self,
        order: OrderId,
        by: Canceller,
    ) -> Result<CancelOutcome, DatabaseError> {
        let outcome = self.write(async move |session| cancel(session, order, &by).await).await?;
        if matches!(outcome, CancelOutcome::Cancelled(_)) {
            self.release_written.notify_one();
        }
        Ok(outcome)
    }

    pub(in crate::database) async fn close_all(
        &self,
        due: Vec<Due>,
        closes: Closes,
    ) -> Result<Vec<CloseOutcome>, DatabaseError> {
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = self.write(async move |session| close_all(session, &due, closes).await).await?;
        if outcomes.contains(&CloseOutcome::Closed) {
            self.release_written.notify_one();
        }
        Ok(outcomes)
    }

    pub(in crate::database) async fn lapsed(
        &self,
        grace_ms: u64,
        rows: usize,
    ) -> Result<Vec<Due>, DatabaseError> {
        self.read(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let before = Timestamp(now.0.saturating_sub(grace_ms));
            let due = format!(
                "SELECT order_id, sale_id FROM floodgate_orders FORCE INDEX (floodgate_orders_due)
                 WHERE status = 'unpaid' AND pay_by <= '{before}' ORDER BY pay_by LIMIT {rows};"
            );
            let rows = session.ask(&due).await?.rest();
            rows.map(|mut row| Ok(Due { order_id: parsed(&mut row, 0)?, sale: parsed(&mut row, 1)? }))
                .collect()
        })
        .await
    }

    pub(in crate::database) async fn statuses(
        &self,
        orders: Vec<OrderId>,
    ) -> Result<Vec<Option<Standing>>, DatabaseError> {
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async move |session| {
            let statements = in_parts(&orders, |part| {
                format!(
                    "SELECT order_id, status, units_held FROM floodgate_orders WHERE order_id IN ({});",
                    ids(part)
                )
            });
            let mut standings: HashMap<OrderId, Standing> = HashMap::with_capacity(orders.len());
            for mut row in session.ask(&statements).await?.rest() {
                let standing =
                    Standing { status: parsed::<RowStatus>(&mut row, 1)?.0, units_held: get(&mut row, 2)? };
                standings.insert(parsed(&mut row, 0)?, standing);
            }
            Ok(orders.iter().map(|order| standings.get(order).copied()).collect())
        })
        .await
    }
}

async fn cancel(session: &mut Session, order: OrderId, by: &Canceller) -> Result<CancelOutcome, Fault> {
    // 1. The sale's row comes first, always: which sale it is never changes, so that can be asked without a lock.
    let Some(seen) = session.transact(&select(order, "")).await?.row().map(order_row).transpose()? else {
        return Ok(CancelOutcome::NotFound);
    };
    if by.is_stranger_to(&seen) {
        return Ok(CancelOutcome::NotFound);
    }
    let lock = sales::lock(&seen.sale_id) + NOW + &select(order, " FOR UPDATE");
    let mut answers = session.transact(&lock).await?;
    let sale = answers.row().map(sales::sale_row).transpose()?;
    let now = now(&mut answers)?;
    let row = answers
        .row()
        .ok_or_else(|| DatabaseError::Broken(format!("order {order} has gone while it was looked at")))?;
    let row = order_row(row)?;

    // 2. Compare …
    if by.has_closed(&row) {
        session.commit_found().await?;
        return Ok(CancelOutcome::Cancelled(row));
    }
    let is_settled = sale.is_some_and(|sale| sale.settled);
    let step = match transitions::close(&row, now, by.cause(), is_settled) {
        Ok(step) => step,
        Err(status) => return Ok(CancelOutcome::WrongState(status)),
    };

    // 3. … and set: order, sale, outbox and event at once, and the journal on an operator's word. A crash before COMMIT leaves the
    // order unpaid, one after it the release behind, which the relay finds.
    let statements = apply(std::slice::from_ref(&step))?;
    match by.journal(&row, &step.after) {
        None => session.commit(statements).await?,
        Some((author, change)) => journal::commit(session, &statements, author, now, change).await?,
    }
    Ok(CancelOutcome::Cancelled(step.after))
}

async fn close_all(session: &mut Session, due: &[Due], closes: Closes) -> Result<Vec<CloseOutcome>, Fault> {
    // 1. Lock the sales, in the order of their ids, as intake does; then the orders by their keys, in one statement.
    let ids_of_sales: BTreeSet<&SaleId> = due.iter().map(|due| &due.sale).collect();
    let mut statements: String = ids_of_sales.iter().map(|sale| sales::lock(sale)).collect();
    statements.push_str(NOW);
    statements += &in_parts(due, |part| {
        let part = ids(part.iter().map(|due| &due.order_id));
        format!(
            "SELECT {COLUMNS} FROM floodgate_orders WHERE order_id IN ({part}) ORDER BY order_id FOR UPDATE;"
        )
    });
    let mut answers = session.transact(&statements).await?;
    let mut settled: BTreeMap<SaleId, bool> = BTreeMap::new();
    for _ in &ids_of_sales {
        if let Some(sale) = answers.row().map(sales::sale_row).transpose()? {
            closes.check(&sale)?;
            settled.insert(sale.definition.id, sale.settled);
        }
    }
    let now = now(&mut answers)?;
    let mut rows: HashMap<OrderId, OrderRow> = HashMap::with_capacity(due.len());
    for row in answers.rest() {
        let row = order_row(row)?;
        rows.insert(row.order_id, row);
    }

    // 2. Compare …
    let (mut outcomes, mut steps) = (Vec::with_capacity(due.len()), Vec::with_capacity(due.len()));
    for Due { order_id, .. } in due {
        let Some(row) = rows.get_mut(order_id) else {
            outcomes.push(CloseOutcome::Absent);
            continue;
        };
        if let Some(outcome) = closes.spares(row, now).filter(|_| row.status == OrderStatus::Unpaid) {
            outcomes.push(outcome);
            continue;
        }
        let is_settled = settled.get(&row.sale_id).copied();
        let is_settled = is_settled.ok_or_else(|| {
            DatabaseError::Record(format!(
                "order {order_id} is of sale {}, not of the one that it was named with",
                row.sale_id
            ))
        })?;
        outcomes.push(match transitions::close(row, now, closes.cause(), is_settled) {
            Ok(step) => {
                // One that is named twice is closed once.
                row.clone_from(&step.after);
                steps.push(step);
                CloseOutcome::Closed
            }
            Err(status) => CloseOutcome::Past(status),
        });
    }

    // 3. … and set. A crash before COMMIT leaves all of them unpaid, one after it their releases behind.
    if !steps.is_empty() {
        session.commit(apply(&steps)?).await?;
    }
    Ok(outcomes)
}

pub(super) fn select(order: OrderId, lock: &str) -> String {
    format!("SELECT {COLUMNS} FROM floodgate_orders WHERE order_id = '{order}'{lock};")
}

/// Those of a list of ids.
pub(super) fn select_all(ids: &str) -> String {
    format!("SELECT {COLUMNS} FROM floodgate_orders WHERE order_id IN ({ids});")
}

pub(super) fn order_row(mut row: Row) -> Result<OrderRow, Fault> {
    let row = &mut row;
    Ok(OrderRow {
        order_id: parsed(row, 0)?,
        sale_id: parsed(row, 1)?,
        user_id: parsed(row, 2)?,
        quantity: get(row, 3)?,
        units_held: get(row, 4)?,
        amount: get(row, 5)?,
        currency: get(row, 6)?,
        status: parsed::<RowStatus>(row, 7)?.0,
        reason: get(row, 8)?,
        metadata: get::<Option<String>>(row, 9)?.map(Into::into),
        created_at: parsed(row, 10)?,
        updated_at: parsed(row, 11)?,
        pay_by: parsed_option(row, 12)?,
        version: get(row, 13)?,
        rehearsal: get(row, 14)?,
        paid_at: parsed_option(row, 15)?,
        refunded_amount: get(row, 16)?,
        sale_version: get(row, 17)?,
    })
}
