//! The later life of rows of `floodgate_orders`.

use std::collections::HashMap;

use mysql_async::Row;
use stock::{OrderId, OrderStatus, SaleId};

use super::fault::Fault;
use super::session::{NOW, Session, in_parts, now};
use super::sql::{Text, get, ids, parsed, parsed_option};
use super::{MysqlDatabase, intake, journal, sales};
use crate::database::life::{Canceller, RowStatus, cancelled};
use crate::database::{CancelOutcome, DatabaseError, OrderRow, Standing};

const COLUMNS: &str = "order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason, metadata, \
                       created_at, updated_at, pay_by, version, rehearsal";

/// Why an order is closed that somebody cancelled.
const CANCELLED: &str = "cancelled";

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
    let _sale = answers.row();
    let now = now(&mut answers)?;
    let row = answers
        .row()
        .ok_or_else(|| DatabaseError::Broken(format!("order {order} has gone while it was looked at")))?;
    let row = order_row(row)?;

    // 2. Compare …
    if row.status == OrderStatus::Closed && row.reason.as_deref() == Some(CANCELLED) {
        session.commit_found().await?;
        return Ok(CancelOutcome::Cancelled(row));
    }
    if row.status != OrderStatus::Unpaid {
        return Ok(CancelOutcome::WrongState(row.status));
    }

    // 3. … and set: order, sale and outbox at once, and the journal on an operator's word. A crash before COMMIT leaves the order unpaid, one after it the release behind, which
    // the relay finds.
    let (sale_id, user_id) = (Text(row.sale_id.as_str()), Text(row.user_id.as_str()));
    let statements = format!(
        "UPDATE floodgate_orders
         SET status = 'closed', reason = '{CANCELLED}', units_held = 0, version = version + 1, updated_at = '{now}'
         WHERE order_id = '{order}' AND status = 'unpaid';
         {}{}",
        sales::update(&row.sale_id, &now.to_string(), &format!("sold = sold - {}", row.units_held)),
        intake::release(&format!("('{order}', {sale_id}, {user_id}, {}, '{now}')", row.quantity)),
    );
    let closed = OrderRow {
        status: OrderStatus::Closed,
        reason: Some(CANCELLED.to_owned()),
        units_held: 0,
        version: row.version + 1,
        updated_at: now,
        ..row.clone()
    };
    match by {
        Canceller::User(_) => session.commit(statements).await?,
        Canceller::Operator(author) => {
            journal::commit(session, &statements, author, now, cancelled(&row, &closed)).await?;
        }
    }
    Ok(CancelOutcome::Cancelled(closed))
}

fn select(order: OrderId, lock: &str) -> String {
    format!("SELECT {COLUMNS} FROM floodgate_orders WHERE order_id = '{order}'{lock};")
}

fn order_row(mut row: Row) -> Result<OrderRow, Fault> {
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
    })
}
