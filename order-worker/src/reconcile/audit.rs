//! The audit: do ledger, log and rows agree? For `floodgate audit`, `at_rest` and the operator's figures.
//!
//! Some things hold at every moment; the rest only at rest, when nothing is on its way between ledger, log and rows.

use queue::{QueueError, Topic};
use serde::Serialize;
use stock::ledger::Snapshot;
use stock::{LedgerError, SaleId, Stock, Timestamp};

use crate::database::{Database, DatabaseError, RejectedOrder, SaleBooks};
use crate::topics::DRAIN_GROUP;

/// Rejected orders that are named.
const NAMED_MAX: usize = 20;

/// What keeps an audit from being made.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The database's.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The ledger's.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The log's.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// One sale's books side by side. Units, but for the counts of orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SaleAudit {
    /// Which sale.
    pub sale: SaleId,
    /// On offer, as the database says; none when only orders name the sale.
    pub total: Option<u32>,
    /// Of the sale's row.
    pub version: Option<u64>,
    /// As the sale's row counts.
    pub sold: u64,
    /// As the orders sum up.
    pub units_held: u64,
    /// Orders with a row.
    pub orders: u64,
    /// Of those, rejected ones.
    pub rejected: u64,
    /// Users who hold more than the limit.
    pub users_over_limit: u64,
    /// Orders whose release the ledger has not answered for.
    pub releases: u64,
    /// The ledger's side; none when it was not asked or knows no such sale.
    pub ledger: Option<LedgerBooks>,
    /// Whether nothing is on its way for this sale; none when ledger or log were not asked.
    pub at_rest: Option<bool>,
    /// Every invariant that does not hold, in words. Empty is good.
    pub broken: Vec<String>,
}

/// The ledger's side of one sale's books, in units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerBooks {
    /// On offer.
    pub total: u32,
    /// Free; below 0 if the database sold what the ledger had forgotten.
    pub remaining: i64,
    /// Promised.
    pub pending: u64,
    /// In the database.
    pub confirmed: u64,
    /// Of the sale's row, as last pushed.
    pub version: u64,
    /// The ledger's life.
    pub epoch: u64,
    /// Whether purchases are let in.
    pub open: bool,
}

/// Every sale's books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// By id.
    pub sales: Vec<SaleAudit>,
    /// Promised orders in the log that are not rows yet; none when it was not asked.
    pub backlog: Option<u64>,
}

impl Audit {
    /// Whether no invariant is broken.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.sales.iter().all(|sale| sale.broken.is_empty())
    }

    /// Whether nothing is on its way at all; `false` when that is not known.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        self.backlog == Some(0)
            && self.sales.iter().all(|sale| sale.ledger.is_none() || sale.at_rest == Some(true))
    }
}

/// Orders of one sale that were promised, and that the database would not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// How many.
    pub orders: u64,
    /// The first of them.
    pub named: Vec<RejectedOrder>,
}

impl Rejected {
    /// A record is in a log only behind a reservation, and its buyer was answered 202 or could have been: none may be rejected.
    ///
    /// # Errors
    /// The database's.
    pub async fn since(database: &Database, sale: &SaleId, since: Timestamp) -> Result<Self, DatabaseError> {
        let (orders, named) = database.rejected_orders(sale, since, NAMED_MAX).await?;
        Ok(Self { orders, named })
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let reason = |order: &RejectedOrder| order.reason.clone().unwrap_or_else(|| "no reason".into());
        let named = self.named.iter().map(|order| format!("{} ({})", order.order_id, reason(order)));
        let named: Vec<String> = named.collect();
        let more = if self.orders > named.len() as u64 { ", …" } else { "" };
        (self.orders > 0)
            .then(|| format!("{} orders were promised and rejected: {}{more}", self.orders, named.join(", ")))
    }
}

/// What is wrong with totals: ledger and row must have the same total for one version of a sale.
#[must_use]
pub fn totals_differ(row: (Option<u64>, Option<u32>), ledger: (u64, u64)) -> Option<String> {
    let ((Some(version), Some(total)), (ledger_version, ledger_total)) = (row, ledger) else { return None };
    (version == ledger_version && u64::from(total) != ledger_total).then(|| {
        format!(
            "at version {version} the ledger offers {ledger_total} units, the database {total}: one of them was put back to an \
             earlier state"
        )
    })
}

/// Audits one sale or all of them. Without `stock` and `orders` (the topic `floodgate-orders`) the database alone is audited.
/// Batches that a gateway has under way are not known here.
///
/// # Errors
/// [`AuditError`] when something cannot be read.
pub async fn audit(
    database: &Database,
    stock: Option<&Stock>,
    orders: Option<&Topic>,
    sale: Option<&SaleId>,
) -> Result<Audit, AuditError> {
    let backlog_before = backlog(orders).await?;
    let mut sales = Vec::new();
    let all = match sale {
        Some(sale) => vec![sale.clone()],
        None => database.books(None).await?.into_iter().map(|books| books.sale).collect(),
    };
    for sale in all {
        // Ledger, rows, ledger: what moved while the rows were summed up is not at rest.
        let before = snapshot(stock, &sale).await?;
        let Some(books) = database.books(Some(&sale)).await?.pop() else { continue };
        let after = snapshot(stock, &sale).await?;
        let still = before == after && backlog(orders).await? == backlog_before;
        sales.push(audit_sale(books, after, backlog_before, still));
    }
    Ok(Audit { sales, backlog: backlog(orders).await? })
}

async fn backlog(orders: Option<&Topic>) -> Result<Option<u64>, QueueError> {
    let Some(orders) = orders else { return Ok(None) };
    match orders.lag(DRAIN_GROUP).await {
        Err(QueueError::UnknownGroup { .. }) => Ok(Some(0)),
        lag => Ok(Some(lag?.records)),
    }
}

async fn snapshot(stock: Option<&Stock>, sale: &SaleId) -> Result<Option<Snapshot>, LedgerError> {
    let Some(stock) = stock else { return Ok(None) };
    match stock.snapshot(sale).await {
        Err(LedgerError::UnknownSale(_)) => Ok(None),
        snapshot => snapshot.map(Some),
    }
}

fn audit_sale(books: SaleBooks, snapshot: Option<Snapshot>, backlog: Option<u64>, still: bool) -> SaleAudit {
    let mut broken = Vec::new();
    let mut must = |holds: bool, fault: String| {
        if !holds {
            broken.push(fault);
        }
    };
    must(
        books.sold == books.units_held,
        format!("the row counts {} units as sold, the orders hold {}", books.sold, books.units_held),
    );
    let total = books.total.map_or(0, u64::from);
    must(books.units_held <= total, format!("oversold: {} units held of {total}", books.units_held));
    must(books.users_over_limit == 0, format!("{} users hold more than the limit", books.users_over_limit));
    let mut at_rest = None;
    if let Some(ledger) = &snapshot {
        let sum = i128::from(ledger.remaining) + i128::from(ledger.pending) + i128::from(ledger.confirmed);
        must(
            sum == i128::from(ledger.total),
            format!("the ledger's remaining + pending + confirmed is {sum}, its total {}", ledger.total),
        );
        let differ = totals_differ((books.version, books.total), (ledger.version, u64::from(ledger.total)));
        must(differ.is_none(), differ.unwrap_or_default());
        at_rest = backlog.map(|backlog| {
            backlog == 0 && still && ledger.open && ledger.pending == 0 && books.releases == 0
        });
        if at_rest == Some(true) {
            must(
                ledger.confirmed == books.sold,
                format!(
                    "the ledger has {} units confirmed, the database {} sold",
                    ledger.confirmed, books.sold
                ),
            );
            must(
                Some(ledger.total) == books.total,
                format!("the ledger offers {} units, the database {total}", ledger.total),
            );
        }
    }
    SaleAudit {
        sale: books.sale,
        total: books.total,
        version: books.version,
        sold: books.sold,
        units_held: books.units_held,
        orders: books.orders,
        rejected: books.rejected,
        users_over_limit: books.users_over_limit,
        releases: books.releases,
        ledger: snapshot.map(|ledger| LedgerBooks {
            version: ledger.version,
            total: ledger.total,
            remaining: ledger.remaining,
            pending: ledger.pending,
            confirmed: ledger.confirmed,
            epoch: ledger.epoch,
            open: ledger.open,
        }),
        at_rest,
        broken,
    }
}
