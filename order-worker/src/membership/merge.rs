//! What a rebuilt ledger is made of: the promises of the logs and the rows of the database. Who does it when stands in
//! [`crate::membership`].
//!
//! A log is merged from the drain's offset, and with it the orders among its dead letters: promises of which nobody can tell yet
//! what becomes of them keep their units. Draining it meanwhile is harmless: the rows come last, and what the drain moves
//! from log to rows is found in one of them. Both merges can be repeated.

use std::collections::BTreeMap;

use queue::{Message, Opening, Position, QueueError, Topic, TopicState, operator};
use stock::ledger::{BATCH_MAX, Settlement};
use stock::reservation::DecodeError;
use stock::{LedgerError, LedgerIdentity, OrderId, Owner, Reservation, SaleId, Stock, Stopped};

use super::instance::RESTORE_DRILL;
use super::same_database::{Unread, finished_without_row};
use super::tie::Misfit;
use crate::database::{Database, DatabaseError, Instance, SaleRow};
use crate::topics::DRAIN_GROUP;

/// Dead letters read at once: each reading goes through all of them.
const LETTERS_MAX: usize = 16 * BATCH_MAX;

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
    /// Others see the ledger that the sales live in. Nothing was begun.
    #[error(
        "this process is connected to the stock ledger {seen}, but the sales live in {recorded}, which instance {by} ({place}) sees: \
         nothing is begun or sold here. Compare stock.redis_urls and stock.sentinel_master here and there: one of them names another \
         server. If the sales are to move to this one, stop those that see the other: they move 5 s later"
    )]
    OtherLedger {
        /// Here.
        seen: String,
        /// By the database.
        recorded: LedgerIdentity,
        /// Who sees that one.
        by: Owner,
        /// Where its log is.
        place: String,
    },
    /// Promises of these may be missing.
    #[error("the stock ledger is not complete yet: {}", waiting_words(.0))]
    Waiting(Vec<Instance>),
    /// It must not be forgotten.
    #[error(
        "instance {0} is alive, its lease has not ended: stop it first (then its log is merged and nothing is at risk)"
    )]
    Alive(Owner),
    /// The same of one whose ledger is in its own memory.
    #[error(
        "instance {0} runs, or ended less than 5 s ago: it drains its log, and its ledger is in its memory. Stop it first: a clean stop \
         takes it off the registry, and nothing is at risk"
    )]
    Drains(Owner),
    /// It must not be forgotten as long as it may live.
    #[error(
        "nobody can tell whether instance {0} is dead, since the stock ledger does not say who has a lease ({1}): ask again when it \
         answers; a ledger that lost its memory will do"
    )]
    LeaseUnknown(Owner, LedgerError),
    /// The registry has another opening of our log than ours. Nothing is promised here any more.
    #[error("the log of instance {owner} {}; nothing is promised here any more", opening_words(.ours, .row))]
    OtherOpening {
        /// Ours.
        owner: Owner,
        /// As this process opened it.
        ours: Opening,
        /// As the registry has it.
        row: Opening,
    },
    /// What the log has handed over would be forgotten and its units sold again. Nothing is sold meanwhile.
    #[error(
        "the orders database lacks order {order}, which the log of instance {owner} handed over before: it was put back to an older state. \
         Nothing is sold until it has its orders: stop every gateway and worker, put the newest state back, or have what it lacks \
         written again: {RESTORE_DRILL}"
    )]
    OrdersLost {
        /// Whose log.
        owner: Owner,
        /// One of those that are missing.
        order: OrderId,
    },
    /// What is at an instance's place is not its newest log.
    #[error(
        "the log at the place of instance {0} {1}: the stock ledger waits for the newest one; put it back, or give up what it promised \
         with `floodgate ledger rebuild --without {0}`"
    )]
    NotTheLog(Owner, Misfit),
    /// It is left out already.
    #[error("instance {0} is left out already; it takes part again once its process starts with its log")]
    LeftOut(Owner),
    /// It sells on the ledger that is to be taken over, or sold a moment ago.
    #[error(
        "instance {0} of another orders database is alive on this ledger, its lease has not ended: stop that deployment first, or \
         give this one a stock.key_prefix of its own"
    )]
    OtherAlive(Owner),
    /// Not in the registry.
    #[error("no instance {0} is registered; `floodgate ledger instances` lists those that are")]
    UnknownInstance(Owner),
}

impl RebuildError {
    /// Whether another try may succeed without anybody's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database(error) => error.is_retryable(),
            // Another life has begun, or has not got so far: the next look tells.
            Self::Ledger(LedgerError::Invalid(_) | LedgerError::Foreign { .. }) => false,
            Self::Ledger(_) | Self::LeaseUnknown(..) | Self::Waiting(_) | Self::OtherLedger { .. } => true,
            Self::Queue(error) => error.is_retryable(),
            Self::UnknownVersion { .. }
            | Self::Alive(_)
            | Self::Drains(_)
            | Self::OtherOpening { .. }
            | Self::OrdersLost { .. }
            | Self::NotTheLog(..)
            | Self::LeftOut(_)
            | Self::OtherAlive(_)
            | Self::UnknownInstance(_) => false,
        }
    }
}

impl RebuildError {
    /// Whether the process that owns the log of `own` promises nothing more until it is started again.
    pub(super) fn stops(&self, own: Owner) -> Option<Stopped> {
        match self {
            Self::OtherOpening { owner, .. } if *owner == own => Some(Stopped::OtherOpening),
            Self::OrdersLost { owner, .. } if *owner == own => Some(Stopped::OrdersLost),
            _ => None,
        }
    }
}

impl From<Unread> for RebuildError {
    fn from(error: Unread) -> Self {
        match error {
            Unread::Database(error) => error.into(),
            Unread::Queue(error) => error.into(),
        }
    }
}

fn opening_words(ours: &Opening, row: &Opening) -> String {
    match ours.generation > row.generation {
        true => format!(
            "was opened here as {ours}, and the registry knows {row}: the orders database was put back to an older state; restart this \
             process, its start says what to do"
        ),
        false => format!(
            "was opened here as {ours}, and as {row} after that, from a copy of its directory: find out which of the two processes is to \
             go on, stop the other one, and restart this one"
        ),
    }
}

fn waiting_words(instances: &[Instance]) -> String {
    if instances.is_empty() {
        return "sales are being installed".to_owned();
    }
    let logs: Vec<String> =
        instances.iter().map(|instance| format!("{} ({})", instance.owner, instance.place)).collect();
    format!(
        "it waits for the logs of {}: start those instances, or give up what they promised with `floodgate ledger rebuild \
         --without ID`",
        logs.join(", ")
    )
}

/// Merges what `orders`, the log of `owner`, promised and the drain has not finished into the closed ledger of `epoch`.
/// Nothing of an older epoch may be appended to it any more.
///
/// # Errors
/// [`LedgerError::Open`]: the ledger was opened without it. [`RebuildError::OrdersLost`]: it must not be merged. Any error leaves some of it
/// merged, which a repeat completes.
pub(crate) async fn merge_log(
    database: &Database,
    stock: &Stock,
    orders: &Topic,
    owner: Owner,
    epoch: u64,
) -> Result<usize, RebuildError> {
    // What is behind the offset comes from the rows: were they put back to an older state, nobody would know of it.
    if let Some(order) = finished_without_row(orders, database).await? {
        return Err(RebuildError::OrdersLost { owner, order });
    }
    // Read here, when the log has got its last record: every sale of a record was published before.
    let sales = database.unsettled_sales().await?;
    let mut after = match orders.committed(DRAIN_GROUP).await {
        // No drain has ever come here: everything is promised still.
        Err(QueueError::UnknownGroup { .. }) => None,
        committed => committed?,
    };
    let mut promised = 0;
    loop {
        let page = orders.read(after, BATCH_MAX).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.position);
        promised += restore(stock, &sales, owner, epoch, &page).await?;
    }
    let mut after = None;
    loop {
        let page = match operator::dead_letters(orders, DRAIN_GROUP, after, LETTERS_MAX).await {
            Err(QueueError::UnknownGroup { .. }) => return Ok(promised),
            page => page?,
        };
        let Some(last) = page.last() else { return Ok(promised) };
        after = Some(last.letter);
        let page: Vec<Message> = page.into_iter().map(|letter| letter.message).collect();
        for part in page.chunks(BATCH_MAX) {
            promised += restore(stock, &sales, owner, epoch, part).await?;
        }
    }
}

/// Whether a merge of `orders` would find no promise. Nothing of an older epoch may be appended to it any more. Asks no ledger.
///
/// # Errors
/// The log's.
pub(crate) async fn owes_nothing(orders: &Topic) -> Result<bool, RebuildError> {
    if orders.state() == TopicState::Poisoned {
        // Nobody can tell what it holds.
        return Ok(false);
    }
    let is_drained = match orders.lag(DRAIN_GROUP).await {
        // No drain has ever come here.
        Err(QueueError::UnknownGroup { .. }) => return Ok(orders.end().is_none()),
        lag => lag?.records == 0,
    };
    Ok(is_drained && operator::dead_letters(orders, DRAIN_GROUP, None, 1).await?.is_empty())
}

/// Restores the orders among `messages`; answers how many there are.
async fn restore(
    stock: &Stock,
    sales: &[SaleRow],
    owner: Owner,
    epoch: u64,
    messages: &[Message],
) -> Result<usize, RebuildError> {
    let mut restored: BTreeMap<SaleId, Vec<Reservation>> = BTreeMap::new();
    for message in messages {
        match Reservation::decode(&message.payload) {
            Ok(order) if order.quantity > 0 => {
                restored.entry(order.sale.clone()).or_default().push(order);
            }
            // The drain makes dead letters of these.
            Ok(_) | Err(DecodeError::Malformed(_)) => {}
            Err(error @ DecodeError::UnknownVersion(_)) => {
                return Err(RebuildError::UnknownVersion { position: message.position, error });
            }
        }
    }
    let mut promised = 0;
    for (sale, reservations) in restored {
        // A sale that is settled or that the database has not: the drain decides, the ledger need not know.
        if sales.iter().any(|row| row.definition.id == sale) {
            promised += reservations.len();
            stock.restore(&sale, epoch, owner, &reservations).await?;
        }
    }
    Ok(promised)
}

/// Merges the rows of `sale`: last, when all logs are merged.
pub(crate) async fn merge_rows(
    database: &Database,
    stock: &Stock,
    sale: &SaleId,
) -> Result<usize, RebuildError> {
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
