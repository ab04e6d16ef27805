//! Whether an orders database still has what a log has handed over to it: tells an older state of the right one, where log and registry
//! agree on the log's last opening (`tie.rs`), as far as the log still keeps what tells. Changes nothing.

use std::collections::BTreeSet;

use queue::{Position, Queue, QueueError, Topic, operator};
use stock::{OrderId, Reservation};

use crate::database::{Database, DatabaseError};
use crate::topics::{DRAIN_GROUP, ORDERS_TOPIC};

/// Finished records that are looked for: the newest, since they are what an older copy lacks first.
const FINISHED_MAX: usize = 512;
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
