//! Whether an orders database is the one that a log was drained into: what the log has handed over must have a row there. Tells
//! another deployment's database and an older copy, as far as the log still keeps what tells; changes nothing.

use std::collections::BTreeSet;
use std::fmt;

use queue::{Position, Queue, QueueError, Topic, operator};
use stock::{OrderId, Owner, Reservation, SaleId};

use crate::database::{Database, DatabaseError};
use crate::topics::{DRAIN_GROUP, ORDERS_TOPIC};

/// Finished records that are looked for: the newest, since they are what an older copy lacks first.
const FINISHED_MAX: usize = 512;
/// Records behind the offset that are looked at.
const WAITING_MAX: usize = 512;
/// Dead letters read at once.
const LETTERS_MAX: usize = 8_192;

/// What a database lacks that the log's own has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// It is new, and the log has handed over something.
    Everything,
    /// The log has handed it over.
    Order(OrderId),
    /// The log holds orders of it that are no rows yet.
    Sale(SaleId),
}

/// Which of the two could not be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("is new"),
            Self::Order(order) => write!(f, "lacks order {order}, which was written before"),
            Self::Sale(sale) => write!(f, "lacks sale {sale}, of which orders were promised"),
        }
    }
}

/// What tells that `database` is not the log's own. To be asked before the log is opened: its owner soon makes room of what is
/// finished, which is what could be written again.
pub(super) async fn mismatch(queue: &Queue, database: &Database) -> Result<Option<Mismatch>, DatabaseError> {
    // A log in which something is wrong: the open tells.
    let Ok(orders) = queue.topic(ORDERS_TOPIC).await else { return Ok(None) };
    match of_orders(queue, &orders, database).await {
        Ok(found) => Ok(found),
        Err(Unread::Queue(_)) => Ok(None),
        Err(Unread::Database(error)) => Err(error),
    }
}

async fn of_orders(queue: &Queue, orders: &Topic, database: &Database) -> Result<Option<Mismatch>, Unread> {
    let committed = match orders.committed(DRAIN_GROUP).await {
        Err(QueueError::UnknownGroup { .. }) => None,
        committed => committed?,
    };
    if committed.is_some() {
        if database.epoch().await? == 0 {
            return Ok(Some(Mismatch::Everything));
        }
        if let Some(order) = finished_without_row(orders, database).await? {
            return Ok(Some(Mismatch::Order(order)));
        }
    }
    // A sale is published before its first promise: a database that knows this log and not the sale lost it to an operator.
    let owner = Owner(queue.instance());
    if database.instances().await?.iter().any(|instance| instance.owner == owner) {
        return Ok(None);
    }
    let waiting = orders.read(committed, WAITING_MAX).await?;
    let waiting = waiting.iter().filter_map(|message| Reservation::decode(&message.payload).ok());
    let promised: BTreeSet<SaleId> = waiting.map(|order| order.sale).collect();
    let sales = database.sales().await?;
    let is_unknown = |sale: &SaleId| sales.iter().all(|row| row.definition.id != *sale);
    Ok(promised.into_iter().find(is_unknown).map(Mismatch::Sale))
}

/// A finished order that is no row, though it should be: no dead letter, nor of a sale that is over, whose rows may be archived.
async fn finished_without_row(orders: &Topic, database: &Database) -> Result<Option<OrderId>, Unread> {
    let finished: Vec<(Position, Reservation)> = operator::finished(orders, DRAIN_GROUP, FINISHED_MAX)
        .await?
        .iter()
        .filter_map(|message| Some((message.position, Reservation::decode(&message.payload).ok()?)))
        .filter(|(_, order)| order.quantity > 0)
        .collect();
    let ids: Vec<OrderId> = finished.iter().map(|(_, order)| order.order_id).collect();
    let standings = database.statuses(&ids).await?;
    let rows = finished.into_iter().zip(standings);
    let mut missing: Vec<_> = rows.filter(|(_, row)| row.is_none()).map(|(record, _)| record).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let sales = database.sales().await?;
    missing.retain(|(_, order)| !sales.iter().any(|row| row.settled && row.definition.id == order.sale));
    let letters = dead_letters(orders).await?;
    missing.retain(|(position, _)| !letters.contains(position));
    Ok(missing.last().map(|(_, order)| order.order_id))
}

async fn dead_letters(orders: &Topic) -> Result<BTreeSet<Position>, QueueError> {
    let (mut positions, mut after) = (BTreeSet::new(), None);
    loop {
        let page = operator::dead_letters(orders, DRAIN_GROUP, after, LETTERS_MAX).await?;
        let Some(last) = page.last() else { return Ok(positions) };
        after = Some(last.letter);
        positions.extend(page.iter().map(|letter| letter.message.position));
    }
}
