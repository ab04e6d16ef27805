//! Rebuild of an empty ledger (at start, the embedded one always is): database and own log say what it must know.
//!
//! A new epoch first, so that nothing of the old life is taken for the new one. Every sale begins closed, which lets
//! confirm, release and restore in but nobody's purchase. The log is merged from the drain's offset; the rows come last:
//! whatever the drain moves from log to rows meanwhile is found in one of them. A crash at any point leaves a closed or
//! incomplete ledger of an epoch that the next start replaces.

use std::collections::BTreeMap;

use queue::{Position, QueueError, Topic};
use stock::ledger::{BATCH_MAX, Settlement};
use stock::reservation::DecodeError;
use stock::{LedgerError, Owner, Reservation, SaleId, Stock};

use crate::database::{Database, DatabaseError, SaleRow};
use crate::drain::DRAIN_GROUP;
use crate::reconciler::{ReconcileError, bring};

/// What keeps a ledger from being rebuilt. It stays closed.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The database's.
    #[error("the stock ledger cannot be rebuilt: {0}")]
    Database(#[from] DatabaseError),
    /// The ledger's.
    #[error("the stock ledger cannot be rebuilt: {0}")]
    Ledger(#[from] LedgerError),
    /// The log's.
    #[error("the stock ledger cannot be rebuilt: {0}")]
    Queue(#[from] QueueError),
    /// A newer process wrote to the log: what it promised cannot be read here.
    #[error("the stock ledger cannot be rebuilt: the order queue at position {position}: {error}")]
    UnknownVersion {
        /// Of the message.
        position: Position,
        /// Which version.
        error: DecodeError,
    },
}

impl RebuildError {
    /// Whether another try may succeed without anybody's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database(error) => error.is_retryable(),
            Self::Ledger(error) => error.is_retryable(),
            Self::Queue(error) => error.is_retryable(),
            Self::UnknownVersion { .. } => false,
        }
    }
}

/// Takes the ledger as it is if it has outlived this process, and rebuilds it otherwise; answers with its epoch. It has
/// outlived us if it is open, at the database's epoch, for every sale that was ever opened and is not settled.
///
/// # Errors
/// As [`rebuild`].
pub async fn resume_or_rebuild(
    database: &Database,
    stock: &Stock,
    orders: &Topic,
    owner: Owner,
) -> Result<u64, RebuildError> {
    let epoch = database.epoch().await?;
    // Before the first rebuild there is no epoch to bring a sale at.
    if epoch == 0 {
        return rebuild(database, stock, orders, owner).await;
    }
    for row in database.sales().await?.into_iter().filter(|row| !row.settled) {
        let sale = &row.definition.id;
        match bring(database, stock, sale).await {
            Ok(()) | Err(ReconcileError::Ledger(LedgerError::UnknownSale(_))) => {}
            Err(ReconcileError::Ledger(error)) => return Err(error.into()),
            Err(ReconcileError::Database(error)) => return Err(error.into()),
        }
        match stock.snapshot(sale).await {
            Ok(snapshot) if snapshot.open && snapshot.epoch == epoch => {}
            Ok(_) | Err(LedgerError::UnknownSale(_)) => {
                return rebuild(database, stock, orders, owner).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(epoch)
}

/// Rebuilds the ledger of every sale that is not settled from the rows and the log of `owner`, and opens it; answers with
/// the new epoch. `orders` is the topic `floodgate-orders`. Nothing may append to it meanwhile; draining it is harmless.
///
/// # Errors
/// [`RebuildError`]; the ledger is then closed or incomplete, and another call starts over with a newer epoch.
pub async fn rebuild(
    database: &Database,
    stock: &Stock,
    orders: &Topic,
    owner: Owner,
) -> Result<u64, RebuildError> {
    // 1. A new life.
    let epoch = database.next_epoch().await?;
    queue::failpoint::hit("rebuild.epoch");

    // 2. Every sale that may still matter, closed.
    let sales: Vec<SaleRow> = database.sales().await?.into_iter().filter(|row| !row.settled).collect();
    for row in &sales {
        stock.install(&row.ledger_version(), epoch).await?;
    }
    queue::failpoint::hit("rebuild.installed");

    // 3. What was promised and is not drained.
    let promised = restore_log(stock, orders, owner, epoch, &sales).await?;
    queue::failpoint::hit("rebuild.log");

    // 4. What the database knows. After the log: an order that moved meanwhile is in both, and rows win.
    let mut rows = 0;
    for row in &sales {
        rows += merge_rows(database, stock, &row.definition.id).await?;
    }
    queue::failpoint::hit("rebuild.rows");

    // 5. Open; remembered first, so that an empty ledger never again passes for a beginning.
    for row in &sales {
        database.mark_opened(&row.definition.id, epoch).await?;
        stock.open(&row.definition.id, epoch).await?;
    }
    queue::failpoint::hit("rebuild.opened");
    tracing::info!(epoch, sales = sales.len(), promised, rows, "the stock ledger is rebuilt");
    Ok(epoch)
}

async fn restore_log(
    stock: &Stock,
    orders: &Topic,
    owner: Owner,
    epoch: u64,
    sales: &[SaleRow],
) -> Result<usize, RebuildError> {
    let mut after = match orders.committed(DRAIN_GROUP) {
        // No drain has ever come here: everything is promised still.
        Err(QueueError::UnknownGroup { .. }) => None,
        committed => committed?,
    };
    let mut promised = 0;
    loop {
        let page = orders.read(after, BATCH_MAX).await?;
        let Some(last) = page.last() else { return Ok(promised) };
        after = Some(last.position);
        let mut restored: BTreeMap<SaleId, Vec<Reservation>> = BTreeMap::new();
        for message in page {
            match Reservation::decode(&message.payload) {
                Ok(order) if order.quantity > 0 => {
                    restored.entry(order.sale.clone()).or_default().push(order)
                }
                // The drain makes dead letters of these.
                Ok(_) | Err(DecodeError::Malformed(_)) => {}
                Err(error @ DecodeError::UnknownVersion(_)) => {
                    return Err(RebuildError::UnknownVersion { position: message.position, error });
                }
            }
        }
        for (sale, reservations) in restored {
            // A sale that is settled or that the database has not: the drain decides, the ledger need not know.
            if sales.iter().any(|row| row.definition.id == sale) {
                promised += reservations.len();
                stock.restore(&sale, epoch, owner, &reservations).await?;
            }
        }
    }
}

async fn merge_rows(database: &Database, stock: &Stock, sale: &SaleId) -> Result<usize, RebuildError> {
    let (mut after, mut rows) = (None, 0);
    loop {
        let page = database.orders(sale, after, BATCH_MAX).await?;
        let last = page.len() < BATCH_MAX;
        after = page.last().map(|row| row.order_id);
        rows += page.len();
        let (mut held, mut freed) = (Vec::new(), Vec::new());
        for row in page {
            let settlement = Settlement { order_id: row.order_id, user: row.user_id, quantity: row.quantity };
            if row.units_held > 0 { held.push(settlement) } else { freed.push(settlement) }
        }
        if !held.is_empty() {
            stock.confirm(sale, &held).await?;
        }
        if !freed.is_empty() {
            stock.release(sale, &freed).await?;
        }
        if last {
            return Ok(rows);
        }
    }
}
