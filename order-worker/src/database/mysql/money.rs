//! Reads `floodgate_payments` as a whole, for the audit.

use std::collections::HashMap;

use stock::OrderId;

use super::fault::Fault;
use super::session::{Purpose, Session, in_parts};
use super::sql::{get, ids, parsed};
use super::{MysqlDatabase, life, payments, refunds};
use crate::database::money::{MoneyRow, PaidOtherwise};
use crate::database::refunds::RefundRow;
use crate::database::{DatabaseError, OrderRow, PaymentRow};

impl MysqlDatabase {
    pub(in crate::database) async fn payment_providers(&self) -> Result<Vec<String>, DatabaseError> {
        let all = async |session: &mut Session| {
            let providers = "SELECT DISTINCT provider FROM floodgate_payments ORDER BY provider;";
            session.transact(providers).await?.rest().map(|mut row| get(&mut row, 0)).collect()
        };
        self.pool.run(Purpose::Sums, all).await
    }

    pub(in crate::database) async fn money(
        &self,
        provider: String,
        after: String,
        rows: usize,
    ) -> Result<Vec<MoneyRow>, DatabaseError> {
        let page = async move |session: &mut Session| page(session, &provider, &after, rows).await;
        self.pool.run(Purpose::Sums, page).await
    }

    pub(in crate::database) async fn paid_otherwise(
        &self,
        rows: usize,
    ) -> Result<PaidOtherwise, DatabaseError> {
        let both = async move |session: &mut Session| {
            let without_payment = format!(
                "SELECT o.order_id FROM floodgate_orders AS o FORCE INDEX (floodgate_orders_due)
                 WHERE o.status IN ('paid', 'refunding', 'refunded')
                   AND NOT EXISTS (SELECT 1 FROM floodgate_payments AS p FORCE INDEX (floodgate_payments_order)
                                   WHERE p.order_id = o.order_id AND p.disposition = 'kept')
                 LIMIT {rows};"
            );
            let more_than_once = format!(
                "SELECT order_id FROM floodgate_payments FORCE INDEX (floodgate_payments_order)
                 WHERE order_id IS NOT NULL AND disposition = 'kept'
                 GROUP BY order_id HAVING COUNT(*) > 1 LIMIT {rows};"
            );
            Ok(PaidOtherwise {
                without_payment: orders(session, &without_payment).await?,
                more_than_once: orders(session, &more_than_once).await?,
            })
        };
        self.pool.run(Purpose::Sums, both).await
    }
}

async fn orders(session: &mut Session, select: &str) -> Result<Vec<OrderId>, Fault> {
    session.transact(select).await?.rest().map(|mut row| parsed(&mut row, 0)).collect()
}

/// Three reads of one transaction, whose view is one moment's.
async fn page(
    session: &mut Session,
    provider: &str,
    after: &str,
    rows: usize,
) -> Result<Vec<MoneyRow>, Fault> {
    let page = session.transact(&payments::page(provider, after, rows)).await?.rest();
    let page: Result<Vec<PaymentRow>, Fault> = page.map(payments::payment_row).collect();
    let page = page?;
    let Some(last) = page.last() else { return Ok(Vec::new()) };

    let of_page = refunds::between(provider, after, &last.payment_id);
    let mut refunds: HashMap<String, Vec<RefundRow>> = HashMap::new();
    for row in session.transact(&of_page).await?.rest() {
        let refund = refunds::refund_row(row)?;
        refunds.entry(refund.payment_id.clone()).or_default().push(refund);
    }
    // As they are shown elsewhere: an index by age would serve nothing else.
    refunds
        .values_mut()
        .for_each(|of| of.sort_by(|a, b| (a.created_at, &a.refund_id).cmp(&(b.created_at, &b.refund_id))));

    let named: Vec<OrderId> = page.iter().filter_map(|payment| payment.order_id).collect();
    let mut orders: HashMap<OrderId, OrderRow> = HashMap::with_capacity(named.len());
    if !named.is_empty() {
        let statements = in_parts(&named, |part| life::select_all(&ids(part)));
        for row in session.transact(&statements).await?.rest() {
            let order = life::order_row(row)?;
            orders.insert(order.order_id, order);
        }
    }
    let whole = |payment: PaymentRow| MoneyRow {
        refunds: refunds.remove(&payment.payment_id).unwrap_or_default(),
        order: payment.order_id.and_then(|order| orders.get(&order).cloned()),
        payment,
    };
    Ok(page.into_iter().map(whole).collect())
}
