//! Where orders are that have been pending for long: in a log that will be drained, in a row, or nowhere. For the audit: reads whole logs
//! and changes nothing.
//!
//! Asked in this order, so that an order on its way from log to row is found in one of them: the undrained part of every log, the
//! database, and only for what neither has the drains' dead letters and what the logs keep of what is drained.

use std::collections::BTreeMap;

use queue::{Message, Position, QueueError, Topic, operator};
use serde::Serialize;
use stock::ledger::BATCH_MAX;
use stock::{OrderId, Owner, Reservation};

use super::audit::AuditError;
use crate::database::Database;
use crate::topics::DRAIN_GROUP;

/// An order that has been pending for so long should be in a log or a row, whatever happened to its gateway.
pub const LONG_PENDING_MS: u64 = 60_000;
/// Orders that the database is asked about in one audit of a sale.
pub const ASKED_MAX: usize = 65_536;
/// Orders that are named.
const NAMED_MAX: usize = 20;
/// Records read at once.
const READ_MAX: usize = 1_024;
/// Dead letters read at once: each reading goes through all of them.
const LETTERS_MAX: usize = 8_192;

/// One order that has been pending for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPending {
    /// Which.
    pub order_id: OrderId,
    /// Units.
    pub quantity: u32,
}

/// Orders of one kind, some of them named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OrderGroup {
    /// How many.
    pub orders: u64,
    /// Their units.
    pub units: u64,
    /// The first ones.
    pub named: Vec<Named>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Which.
    pub order_id: OrderId,
    /// The log that has its record, hexadecimal; none has.
    pub log: Option<String>,
}

/// Where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Accounts {
    /// They wait in a log for its drain.
    pub waiting: u64,
    /// They are rows; the ledger will hear of it.
    pub rows: u64,
    /// The drain could not write them, and made dead letters of them.
    pub dead_letters: OrderGroup,
    /// A drain is past their records, and they are no rows of this database.
    pub drained_without_row: OrderGroup,
    /// In no log that was read, and no rows.
    pub nowhere: OrderGroup,
    /// More than [`ASKED_MAX`] were in no log: these were not looked for any further.
    pub not_asked: u64,
}

impl Accounts {
    /// What is wrong whatever any other log holds, in words. Empty is good.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must_be_empty = |group: &OrderGroup, what: &str| {
            if group.orders > 0 {
                faults.push(group.words(what));
            }
        };
        must_be_empty(
            &self.dead_letters,
            "dead letters of the drain, which nobody writes any more (`floodgate queue dead-letters`)",
        );
        must_be_empty(
            &self.drained_without_row,
            "drained, but no rows of this database: a worker wrote them into another one, or their records were skipped",
        );
        faults
    }

    /// What cannot be accounted for, in words, unless a log holds it that was not read.
    #[must_use]
    pub fn gap(&self) -> Option<String> {
        (self.nowhere.orders > 0).then(|| self.nowhere.words("in no log within reach and no row"))
    }
}

impl OrderGroup {
    fn add(&mut self, order_id: OrderId, quantity: u32, log: Option<Owner>) {
        self.orders += 1;
        self.units += u64::from(quantity);
        if self.named.len() < NAMED_MAX {
            self.named.push(Named { order_id, log: log.map(|log| log.to_string()) });
        }
    }

    fn words(&self, what: &str) -> String {
        let named = self.named.iter().map(|named| match &named.log {
            Some(log) => format!("{} (log {log})", named.order_id),
            None => named.order_id.to_string(),
        });
        let named: Vec<String> = named.collect();
        let more = if self.orders > named.len() as u64 { ", …" } else { "" };
        format!(
            "{} orders ({} units) pending for more than {} s are {what}: {}{more}",
            self.orders,
            self.units,
            LONG_PENDING_MS / 1_000,
            named.join(", ")
        )
    }
}

/// Looks for orders of one sale, whose ids were read from the ledger before. `logs`: those that may hold promises, as far as they are
/// within reach.
///
/// # Errors
/// [`AuditError`]: nothing can be said.
pub async fn account_for(
    database: &Database,
    logs: &[(Owner, Topic)],
    pending: Vec<LongPending>,
) -> Result<Accounts, AuditError> {
    let mut accounts = Accounts::default();
    let mut left: BTreeMap<OrderId, u32> =
        pending.into_iter().map(|pending| (pending.order_id, pending.quantity)).collect();

    for (_, log) in logs {
        let mut after = committed(log).await?;
        while !left.is_empty() {
            let page = log.read(after, READ_MAX).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.position);
            accounts.waiting += ids(&page).filter(|id| left.remove(id).is_some()).count() as u64;
            tokio::task::yield_now().await;
        }
    }

    if let Some((&beyond, _)) = left.iter().nth(ASKED_MAX) {
        accounts.not_asked = left.split_off(&beyond).len() as u64;
    }
    let asked: Vec<OrderId> = left.keys().copied().collect();
    for part in asked.chunks(BATCH_MAX) {
        for (id, standing) in part.iter().zip(database.statuses(part).await?) {
            if standing.is_some() {
                left.remove(id);
                accounts.rows += 1;
            }
        }
    }

    for (owner, log) in logs {
        dead_letters(log, |id| {
            if let Some(quantity) = left.remove(&id) {
                accounts.dead_letters.add(id, quantity, Some(*owner));
            }
        })
        .await?;
    }
    for (owner, log) in logs {
        let Some(through) = committed(log).await? else { continue };
        let mut after = None;
        while !left.is_empty() && after < Some(through) {
            let page = log.read(after, READ_MAX).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.position);
            // What waits by now was appended behind the first look.
            for message in page {
                let taken = id(&message).and_then(|id| Some((id, left.remove(&id)?)));
                match taken {
                    Some((id, quantity)) if message.position <= through => {
                        accounts.drained_without_row.add(id, quantity, Some(*owner));
                    }
                    Some(_) => accounts.waiting += 1,
                    None => {}
                }
            }
            tokio::task::yield_now().await;
        }
    }
    for (id, quantity) in left {
        accounts.nowhere.add(id, quantity, None);
    }
    Ok(accounts)
}

/// Which order a record is of; where a newer version wrote it, its key tells.
fn id(message: &Message) -> Option<OrderId> {
    let of_key = || std::str::from_utf8(&message.key).ok()?.parse().ok();
    Reservation::decode(&message.payload).ok().map(|reservation| reservation.order_id).or_else(of_key)
}

fn ids(messages: &[Message]) -> impl Iterator<Item = OrderId> + '_ {
    messages.iter().filter_map(id)
}

/// Where nobody has ever drained, everything waits.
async fn committed(log: &Topic) -> Result<Option<Position>, QueueError> {
    match log.committed(DRAIN_GROUP).await {
        Err(QueueError::UnknownGroup { .. }) => Ok(None),
        committed => committed,
    }
}

async fn dead_letters(log: &Topic, mut each: impl FnMut(OrderId)) -> Result<(), QueueError> {
    let mut after = None;
    loop {
        let letters = match operator::dead_letters(log, DRAIN_GROUP, after, LETTERS_MAX).await {
            Err(QueueError::UnknownGroup { .. }) => return Ok(()),
            letters => letters?,
        };
        let Some(last) = letters.last() else { return Ok(()) };
        after = Some(last.letter);
        letters.iter().filter_map(|letter| id(&letter.message)).for_each(&mut each);
    }
}
