//! The audit of money: every minor unit that a provider has captured pays a live order, has gone back, is on its way,
//! is stuck, or waits for its order. For `floodgate audit` and for the metrics; it changes nothing.
//!
//! Payments are read page by page, each with its refunds and its order of one moment: what moves meanwhile moves whole,
//! and breaks no sum.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use stock::OrderStatus;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::statement::Statement;
use crate::database::money::MoneyRow;
use crate::database::{Database, DatabaseError, Disposition, RefundState};
use crate::metrics::WorkerMetrics;

/// Payments in one read.
const PAGE: usize = 1_000;
/// Faults that have a sentence each, of each kind.
pub(super) const NAMED_MAX: usize = 20;
/// Currencies that are counted apart: a provider may name any word.
const CURRENCIES_MAX: usize = 256;
/// Between two audits for the metrics, at least …
const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// … and so many times what the last one took, so that it costs a database little however many payments there are.
const INTERVAL_OF_AUDIT: u32 = 20;

/// Money in one currency, minor units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MoneySums {
    /// As the payments say.
    pub currency: String,
    /// What providers have captured.
    pub captured: u128,
    /// What live paid orders cost, less what of it goes back: counted from the orders.
    pub kept: u128,
    /// Back.
    pub refunded: u128,
    /// To be sent back, and not taken by the shop's service yet.
    pub requested: u128,
    /// Taken by the shop's service.
    pub sent: u128,
    /// Waits for a person.
    pub stuck: u128,
    /// Waits for its order's row.
    pub unmatched: u128,
}

impl MoneySums {
    /// What captured money has become.
    #[must_use]
    pub fn accounted(&self) -> u128 {
        self.kept + self.refunded + self.requested + self.sent + self.stuck + self.unmatched
    }

    /// By the names that the metric has.
    pub(crate) fn parts(&self) -> [(&'static str, u128); 7] {
        [
            ("captured", self.captured),
            ("kept", self.kept),
            ("refunded", self.refunded),
            ("requested", self.requested),
            ("sent", self.sent),
            ("stuck", self.stuck),
            ("unmatched", self.unmatched),
        ]
    }
}

/// All money.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MoneyAudit {
    /// By currency.
    pub currencies: Vec<MoneySums>,
    /// How many payments were read.
    pub payments: u64,
    /// Nothing is on its way back, and nothing waits for its order.
    pub at_rest: bool,
    /// What does not add up, in words. Empty is good.
    pub broken: Vec<String>,
}

/// Sentences, of which the first are kept and the others counted.
#[derive(Debug, Default)]
pub(super) struct Faults {
    named: Vec<String>,
    more: u64,
}

impl Faults {
    pub(super) fn add(&mut self, fault: String) {
        if self.named.len() < NAMED_MAX {
            self.named.push(fault);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn told(mut self, of: &str) -> Vec<String> {
        if self.more > 0 {
            self.named.push(format!("and {} more {of}", self.more));
        }
        self.named
    }
}

/// Sums so far.
#[derive(Debug, Default)]
struct Books {
    currencies: BTreeMap<String, MoneySums>,
    payments: u64,
    faults: Faults,
}

impl Books {
    fn add(&mut self, row: &MoneyRow) {
        self.payments += 1;
        let payment = &row.payment;
        let is_known = self.currencies.contains_key(&payment.currency);
        let name =
            if is_known || self.currencies.len() < CURRENCIES_MAX { &*payment.currency } else { "other" };
        let sums = self.currencies.entry(name.to_owned()).or_default();
        sums.captured += u128::from(payment.amount);
        let mut asked = 0;
        for refund in &row.refunds {
            let amount = u128::from(refund.amount);
            asked += amount;
            *match refund.state {
                RefundState::Requested => &mut sums.requested,
                RefundState::Sent => &mut sums.sent,
                RefundState::Succeeded => &mut sums.refunded,
                RefundState::Stuck => &mut sums.stuck,
            } += amount;
        }
        let kept = kept(row);
        sums.kept += kept.saturating_sub(asked.min(kept));
        if payment.disposition == Disposition::Unmatched {
            sums.unmatched += u128::from(payment.amount);
        }
        if let Some(fault) = fault(row, asked) {
            self.faults.add(format!("payment {} of {}: {fault}", payment.payment_id, payment.provider));
        }
    }

    fn close(self) -> MoneyAudit {
        let Self { mut currencies, payments, faults } = self;
        let mut broken = Vec::new();
        for (name, sums) in &mut currencies {
            sums.currency.clone_from(name);
            if sums.captured != sums.accounted() {
                broken.push(format!(
                    "{} minor units of {name} were captured, {} are accounted for: kept {}, refunded {}, requested {}, sent {}, stuck \
                     {}, unmatched {}",
                    sums.captured,
                    sums.accounted(),
                    sums.kept,
                    sums.refunded,
                    sums.requested,
                    sums.sent,
                    sums.stuck,
                    sums.unmatched
                ));
            }
        }
        let at_rest = currencies.values().all(|sums| sums.requested + sums.sent + sums.unmatched == 0);
        broken.extend(faults.told("payments do not add up"));
        MoneyAudit { currencies: currencies.into_values().collect(), payments, at_rest, broken }
    }
}

/// What the payment's order costs, if it is paid by this payment and lives.
fn kept(row: &MoneyRow) -> u128 {
    let is_kept = row.payment.disposition == Disposition::Kept;
    let paid = row.order.as_ref().filter(|order| is_kept && order.status == OrderStatus::Paid);
    paid.map_or(0, |order| u128::from(order.amount))
}

/// What is wrong between a payment, its refunds and its order.
fn fault(row: &MoneyRow, asked: u128) -> Option<String> {
    let (payment, amount) = (&row.payment, u128::from(row.payment.amount));
    let back = row.refunds.iter().filter(|refund| refund.state == RefundState::Succeeded);
    let back: u128 = back.map(|refund| u128::from(refund.amount)).sum();
    if asked > amount {
        return Some(format!("{asked} of its {amount} minor units go back"));
    }
    match (payment.disposition, &row.order) {
        (Disposition::Unmatched, _) if asked > 0 => Some("it waits for its order and goes back".into()),
        (Disposition::Unmatched, _) => None,
        (Disposition::Refund(reason), _) if asked != amount => {
            Some(format!("it goes back ({}), and {asked} of {amount} are asked for", reason.as_str()))
        }
        (Disposition::Refund(_), _) => None,
        (Disposition::Kept, None) => Some("it is kept, and its order has no row".into()),
        (Disposition::Kept, Some(order)) => {
            let order_id = order.order_id;
            if u128::from(order.refunded_amount) != back {
                return Some(format!(
                    "{back} minor units are back, its order {order_id} says {}",
                    order.refunded_amount
                ));
            }
            match order.status {
                OrderStatus::Paid if order.amount != payment.amount || order.currency != payment.currency => {
                    Some(format!(
                        "{amount} {} are kept, order {order_id} costs {} {}",
                        payment.currency, order.amount, order.currency
                    ))
                }
                OrderStatus::Paid if asked == amount && amount > 0 => {
                    Some(format!("all of it goes back, and order {order_id} is paid"))
                }
                OrderStatus::Paid => None,
                OrderStatus::Refunding | OrderStatus::Refunded if asked != amount => Some(format!(
                    "order {order_id} is {}, and {asked} of {amount} minor units go back",
                    order.status
                )),
                OrderStatus::Refunded if back != amount => {
                    Some(format!("order {order_id} is refunded, and {back} of {amount} minor units are back"))
                }
                OrderStatus::Refunding | OrderStatus::Refunded => None,
                status => Some(format!("it is kept for order {order_id}, which is {status}")),
            }
        }
    }
}

/// Audits all money; against a provider's statement too, if there is one.
///
/// # Errors
/// The database's.
pub async fn audit_money(
    database: &Database,
    mut statement: Option<&mut Statement>,
) -> Result<MoneyAudit, DatabaseError> {
    let mut books = Books::default();
    for provider in database.payment_providers().await? {
        let mut after = String::new();
        loop {
            let page = database.money(&provider, &after, PAGE).await?;
            for row in &page {
                books.add(row);
                if let Some(statement) = &mut statement {
                    statement.compare(row);
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after.clone_from(&last.payment.payment_id),
                _ => break,
            }
        }
    }
    let mut audit = books.close();
    let otherwise = database.paid_otherwise(NAMED_MAX).await?;
    let named = |order: &stock::OrderId| order.to_string();
    if !otherwise.without_payment.is_empty() {
        let orders: Vec<_> = otherwise.without_payment.iter().map(named).collect();
        audit.broken.push(format!("paid, and no payment was kept for them: {}", orders.join(", ")));
    }
    if !otherwise.more_than_once.is_empty() {
        let orders: Vec<_> = otherwise.more_than_once.iter().map(named).collect();
        audit.broken.push(format!("more than one payment was kept for each of: {}", orders.join(", ")));
    }
    if let Some(statement) = statement {
        audit.broken.extend(statement.finish());
    }
    Ok(audit)
}

/// Audits again and again, for the metrics, until `shutdown` is true or its sender gone.
pub async fn watch_money(database: Database, metrics: WorkerMetrics, mut shutdown: watch::Receiver<bool>) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => return,
            () = sleep(pause) => {}
        }
        let begun = Instant::now();
        let audit = tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => return,
            audit = audit_money(&database, None) => audit,
        };
        match audit {
            Ok(audit) => {
                metrics.money(&audit);
                for fault in &audit.broken {
                    tracing::error!(fault, "money does not add up; `floodgate audit --money` has all of it");
                }
            }
            Err(error) => tracing::debug!(%error, "money is audited later"),
        }
        pause = INTERVAL_MIN.max(begun.elapsed() * INTERVAL_OF_AUDIT);
    }
}
