//! Whether an orders database still has what a log has handed over to it: tells an older state of the right one, where log and registry
//! agree on the log's last opening (`tie.rs`), as far as the log still keeps what tells. Changes nothing.

use std::collections::BTreeSet;

use queue::{Message, Position, Queue, QueueError, Topic, operator};
use stock::{OrderId, Reservation, SaleId};

use crate::database::{Database, DatabaseError};
use crate::topics::{DRAIN_GROUP, ORDERS_TOPIC};

/// Finished records that are looked for before a log is opened or merged: the newest, since they are what an older copy lacks first.
const FINISHED_MAX: usize = 512;
/// The same for each look of a process that runs.
const LAST_MAX: usize = 32;
/// Dead letters read at once.
const LETTERS_MAX: usize = 8_192;

/// Which of the two could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// An order that the log has handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Handed {
    position: Position,
    order: OrderId,
    sale: SaleId,
}

/// An order that the log has handed over and the database lacks. To be asked before the log is opened: its owner soon makes room of what
/// is finished, which is what could be written again.
pub(super) async fn lacks_order(
    queue: &Queue,
    database: &Database,
) -> Result<Option<OrderId>, DatabaseError> {
    // A log in which something is wrong: the open tells.
    let Ok(orders) = queue.topic(ORDERS_TOPIC).await else { return Ok(None) };
    match finished_without_row(&orders, database).await {
        Ok(found) => Ok(found),
        Err(Unread::Queue(_)) => Ok(None),
        Err(Unread::Database(error)) => Err(error),
    }
}

/// The same of an open log's orders.
pub(super) async fn finished_without_row(
    orders: &Topic,
    database: &Database,
) -> Result<Option<OrderId>, Unread> {
    let handed = finished(orders, FINISHED_MAX).await?;
    without_row(orders, database, &handed).await
}

/// What a process that runs has seen handed over last. A database that is put back to a state before that lacks it, however much is
/// drained into it before the next look.
#[derive(Debug, Default)]
pub(super) struct LastHanded(Vec<Handed>);

impl LastHanded {
    /// An order that the log had handed over at the last look, or has just now, and that is no row.
    pub(super) async fn look(
        &mut self,
        orders: &Topic,
        database: &Database,
    ) -> Result<Option<OrderId>, Unread> {
        let handed = finished(orders, LAST_MAX).await?;
        let mut looked_for = std::mem::replace(&mut self.0, handed.clone());
        looked_for.extend(handed);
        looked_for.sort_unstable_by_key(|handed| handed.position);
        looked_for.dedup();
        without_row(orders, database, &looked_for).await
    }
}

async fn finished(orders: &Topic, max: usize) -> Result<Vec<Handed>, QueueError> {
    let handed = |message: &Message| {
        let order = Reservation::decode(&message.payload).ok().filter(|order| order.quantity > 0)?;
        Some(Handed { position: message.position, order: order.order_id, sale: order.sale })
    };
    match operator::finished(orders, DRAIN_GROUP, max).await {
        // No drain has ever come here.
        Err(QueueError::UnknownGroup { .. }) => Ok(Vec::new()),
        finished => Ok(finished?.iter().filter_map(handed).collect()),
    }
}

/// A finished order that is no row, though it should be: no dead letter, none that an operator had skipped, nor of a sale that is over,
/// whose rows may be archived.
async fn without_row(
    orders: &Topic,
    database: &Database,
    finished: &[Handed],
) -> Result<Option<OrderId>, Unread> {
    let ids: Vec<OrderId> = finished.iter().map(|handed| handed.order).collect();
    let standings = database.statuses(&ids).await?;
    let rows = finished.iter().zip(standings);
    let mut missing: Vec<_> = rows.filter(|(_, row)| row.is_none()).map(|(handed, _)| handed).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let sales = database.sales().await?;
    missing.retain(|handed| !sales.iter().any(|row| row.settled && row.definition.id == handed.sale));
    let letters = dead_letters(orders).await?;
    missing.retain(|handed| !letters.contains(&handed.position));
    // Last: what is skipped says so before the offset is past it.
    let skipped = operator::skipped(orders, DRAIN_GROUP).await?;
    missing.retain(|handed| !skipped.iter().any(|skipped| skipped.contains(handed.position)));
    Ok(missing.last().map(|handed| handed.order))
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

/// A dead letter whose order the database lacks.
pub(super) async fn lacks_letter(orders: &Topic, database: &Database) -> Result<Option<OrderId>, Unread> {
    let mut after = None;
    loop {
        let page = operator::dead_letters(orders, DRAIN_GROUP, after, LETTERS_MAX).await?;
        let Some(last) = page.last() else { return Ok(None) };
        after = Some(last.letter);
        let letters = page.iter().filter_map(|letter| Reservation::decode(&letter.message.payload).ok());
        let ids: Vec<OrderId> =
            letters.filter(|order| order.quantity > 0).map(|order| order.order_id).collect();
        let rows = database.statuses(&ids).await?;
        if let Some((order, _)) = ids.into_iter().zip(rows).find(|(_, row)| row.is_none()) {
            return Ok(Some(order));
        }
    }
}
