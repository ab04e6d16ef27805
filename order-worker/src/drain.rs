//! The drain (泄洪): promised orders leave the queue at a pace that the database can bear, and become rows.
//!
//! The order of its steps is the protocol: rows durable, then deadlines and dead letters durable, then the offset, then the ledger hears
//! of it. A crash between two steps repeats the batch, and every step is harmless when repeated. The ledger never holds
//! the drain: confirmations go through a bounded side lane, and what is lost there the reconciler finds.

mod confirm;
pub mod pace;
pub mod rate_shares;
pub mod sources;
pub mod stats;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use queue::{Group, Message, Position, QueueError};
use stock::reservation::DecodeError;
use stock::{OrderId, Owner, Reservation, SaleId, Stock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::database::{Database, DatabaseError, Outcome, RejectReason, Settled};
use crate::life::timeouts::Timeouts;
use crate::metrics::{Reason, WorkerMetrics};
use confirm::Confirms;
use pace::{Drain, Pace};
use stats::{DrainState, DrainStats};

/// Longest wait for a first message; then shutdown is looked at again.
const PULL_WAIT: Duration = Duration::from_secs(1);

/// Everything that a [`Worker`] needs.
pub struct WorkerParts {
    /// Where orders go.
    pub database: Database,
    /// Who is told afterwards.
    pub stock: Arc<Stock>,
    /// The group [`crate::DRAIN_GROUP`] of the topic [`crate::ORDERS_TOPIC`] of one log …
    pub group: Group,
    /// … which has this id.
    pub log: Owner,
    /// How fast: one for all drains of the process.
    pub pace: Arc<Pace>,
    /// Where it leaves payment deadlines.
    pub timeouts: Timeouts,
    /// Where it counts.
    pub metrics: WorkerMetrics,
    /// Where it tells how it does.
    pub stats: Arc<DrainStats>,
}

/// Why a drain has ended for good. The log and everything not settled stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// A newer process wrote to this log. Nothing at or behind that message was touched.
    #[error("the order queue stops at position {position}: {error}")]
    UnknownVersion {
        /// Of the message.
        position: Position,
        /// Which version.
        error: DecodeError,
    },
    /// The log cannot be read or its offset not be moved.
    #[error("the order queue cannot be drained: {0}")]
    Queue(#[from] QueueError),
}

/// Drains one log. Whoever owns the process drives [`Worker::run`].
pub struct Worker {
    database: Database,
    stock: Arc<Stock>,
    pace: Arc<Pace>,
    /// Its place among the drains of the process. Before the group: who gets that next takes over the share of a drain that has
    /// none any more.
    place: Drain,
    group: Group,
    timeouts: Timeouts,
    metrics: WorkerMetrics,
    stats: Arc<DrainStats>,
    shutdown: watch::Receiver<bool>,
    /// Of the last order that was settled.
    last_reserved_at_ms: u64,
    /// When the last batch was settled, if more was waiting behind it.
    backlogged_since: Option<Instant>,
}

/// What holds up a drain that meets an order of a sale that the database lacks.
#[derive(Debug, thiserror::Error)]
#[error(
    "the orders database has no sale {sale}, of which order {order} was promised: put the database's newest state back or publish the sale \
     again as it was; the log waits. To give up what it holds of it, `floodgate queue reset-offset` goes past records"
)]
struct UnknownSale {
    sale: SaleId,
    order: OrderId,
}

/// The process is shutting down: what is under way will be repeated by the next one.
struct ShuttingDown;

/// Why a batch was left.
enum Left {
    ShuttingDown,
    Failed(DrainError),
}

impl From<ShuttingDown> for Left {
    fn from(_: ShuttingDown) -> Self {
        Self::ShuttingDown
    }
}

impl From<QueueError> for Left {
    fn from(error: QueueError) -> Self {
        Self::Failed(error.into())
    }
}

/// Pulled messages, told apart.
#[derive(Default)]
struct Batch {
    /// In log order.
    orders: Vec<Reservation>,
    /// The message of each order.
    messages: Vec<Message>,
    /// Not orders at all, and why.
    malformed: Vec<(Message, String)>,
    /// The last message before `unknown`, if there is any.
    through: Option<Position>,
    /// A message that must stop the drain.
    unknown: Option<(Position, DecodeError)>,
}

impl Worker {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(parts: WorkerParts, shutdown: watch::Receiver<bool>) -> Self {
        let WorkerParts { database, stock, group, log, pace, timeouts, metrics, stats } = parts;
        let place = pace.enter(log);
        let (last_reserved_at_ms, backlogged_since) = (0, None);
        Self {
            database,
            stock,
            pace,
            place,
            group,
            timeouts,
            metrics,
            stats,
            shutdown,
            last_reserved_at_ms,
            backlogged_since,
        }
    }

    /// Drains until `shutdown` is true (or its sender gone), then lets confirmations under way finish, for 2 s at most.
    ///
    /// # Errors
    /// [`DrainError`]: this log needs somebody; [`DrainStats::state`] says so too.
    pub async fn run(mut self) -> Result<(), DrainError> {
        let (confirms, lane) = confirm::lane(self.stock.clone(), self.metrics.clone());
        let mut lane = std::pin::pin!(lane);
        let ended = tokio::select! {
            biased;
            left = self.drain(confirms) => left,
            // The lane ends when the drain has dropped its sender, never before it.
            () = &mut lane => Left::ShuttingDown,
        };
        // What it cannot deliver in time the reconciler will.
        let _ = tokio::time::timeout(confirm::SHUTDOWN_MAX, lane).await;
        match ended {
            Left::ShuttingDown => Ok(()),
            Left::Failed(error) => {
                tracing::error!(%error, "the drain has stopped");
                self.stats.set_state(DrainState::Stopped(error.to_string()));
                self.metrics.drain_stalled.set(1);
                Err(error)
            }
        }
    }

    async fn drain(&mut self, confirms: Confirms) -> Left {
        loop {
            if let Err(left) = self.drain_batch(&confirms).await {
                return left;
            }
        }
    }

    async fn drain_batch(&mut self, confirms: &Confirms) -> Result<(), Left> {
        // 1. Pull, below the durable watermark. Nothing is changed by it.
        let most = self.pace.batch_max();
        let messages = self.pull(most).await?;
        if messages.is_empty() {
            self.backlogged_since = None;
            self.place.has_settled_everything();
            return Ok(());
        }
        self.place.has_settled_through(self.last_reserved_at_ms);
        let backlogged = messages.len() == most;
        if queue::failpoint::hit("drain.pulled") {
            self.group.rewind();
            return Ok(());
        }

        // 2. Tell orders from dead letters, up to the first message of an unknown version.
        let batch = Batch::of(messages);

        // 3. Wait for our turn.
        let orders = batch.orders.len();
        let shutdown = self.shutdown.wait_for(|down| *down);
        tokio::select! {
            biased;
            _ = shutdown => return Err(Left::ShuttingDown),
            () = self.pace.take(orders) => {}
        }

        // 4. Rows, durable. A crash after this repeats the batch: all duplicates.
        let (settled, unwritable) = self.settle(&batch.orders).await?;
        queue::failpoint::hit("drain.settled");

        // 5. Deadlines, durable before the offset moves, or left to the index. A crash after this repeats them: an order is closed once.
        self.timeouts.keep(&settled).await;
        queue::failpoint::hit("drain.timed");

        // 6. Dead letters, durable before the offset moves. A crash after this repeats them: a letter twice.
        for (message, reason) in &batch.malformed {
            self.dead_letter(message, reason).await?;
        }
        for (index, reason) in unwritable {
            self.dead_letter(&batch.messages[index], &reason).await?;
        }

        // 7. The offset, durable. A crash after this leaves ids pending in the ledger that the reconciler confirms.
        if let Some(through) = batch.through {
            self.commit(through).await?;
        }
        queue::failpoint::hit("drain.committed");
        if let Some(latest) = batch.orders.iter().map(|order| order.reserved_at_ms).max() {
            self.last_reserved_at_ms = latest;
            self.place.has_settled_through(latest);
        }

        // 8. The ledger hears of it, without holding us.
        confirms.send(&settled);
        self.count(&settled, backlogged);
        match batch.unknown {
            Some((position, error)) => Err(Left::Failed(DrainError::UnknownVersion { position, error })),
            None => Ok(()),
        }
    }

    async fn pull(&mut self, most: usize) -> Result<Vec<Message>, Left> {
        let mut backoff = Backoff::default();
        loop {
            let pulled = tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|down| *down) => return Err(Left::ShuttingDown),
                pulled = self.group.pull(most, PULL_WAIT) => pulled,
            };
            match pulled {
                Err(error) if error.is_retryable() => {
                    self.stalled(&backoff, &error);
                    pause(&mut self.shutdown, &mut backoff).await?;
                }
                pulled => {
                    self.running(&backoff);
                    return Ok(pulled?);
                }
            }
        }
    }

    /// Settles all of `orders` that can be; the rest by index, with the reason. A record that always fails is searched by
    /// halves, so that the others go on; it becomes a rejected row if a bare one can be written.
    async fn settle(
        &mut self,
        orders: &[Reservation],
    ) -> Result<(Vec<Settled>, Vec<(usize, String)>), ShuttingDown> {
        let (mut settled, mut unwritable) = (Vec::with_capacity(orders.len()), Vec::new());
        // A stack with the earliest range on top: halves keep the log's order.
        let mut ranges: Vec<Range<usize>> = std::iter::once(0..orders.len()).collect();
        while let Some(range) = ranges.pop() {
            if range.is_empty() {
                continue;
            }
            let part: Arc<[Reservation]> = orders[range.clone()].into();
            let begun = Instant::now();
            let answer = self.insist(|database| {
                let part = part.clone();
                async move { database.settle(part).await }
            });
            match answer.await? {
                Ok(rows) => {
                    let took = begun.elapsed();
                    self.pace.committed(took, range.len());
                    self.metrics.settle_duration.observe(took.as_secs_f64());
                    settled.extend(rows);
                }
                Err(DatabaseError::UnknownSale(sale)) if range.len() == 1 => {
                    // Nothing behind it is looked at before it is a row: what was promised is neither rejected nor passed over.
                    self.unknown_sale(&sale, orders[range.start].order_id).await?;
                    ranges.push(range);
                }
                Err(_) if range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    ranges.extend([middle..range.end, range.start..middle]);
                }
                Err(error) => {
                    let order = orders[range.start].clone();
                    tracing::error!(order = %order.order_id, %error, "the database refuses an order");
                    let answer = self.insist(|database| {
                        let order = order.clone();
                        async move { database.reject(&order, RejectReason::Unwritable).await }
                    });
                    match answer.await? {
                        Ok(row) => settled.push(row),
                        Err(error) => unwritable.push((range.start, error.to_string())),
                    }
                }
            }
        }
        Ok((settled, unwritable))
    }

    /// Waits until the database has the sale. Its row was there before the first promise: the database is older than the log, or damaged,
    /// and somebody has to put it right.
    async fn unknown_sale(&mut self, sale: &SaleId, order: OrderId) -> Result<(), ShuttingDown> {
        let trouble = UnknownSale { sale: sale.clone(), order };
        let mut backoff = Backoff::default();
        loop {
            self.metrics.drain_unknown_sale.set(1);
            self.stalled(&backoff, &trouble);
            let paused = pause(&mut self.shutdown, &mut backoff).await;
            // A database out of reach says nothing: the next try tells.
            let is_there = matches!(self.database.sale(sale).await, Ok(Some(_)));
            if paused.is_err() || is_there {
                self.metrics.drain_unknown_sale.set(0);
                self.running(&backoff);
                return paused;
            }
        }
    }

    /// Repeats a call on the database, at most every 2 s, until it is carried out or refuses its data or its sale (the inner error).
    async fn insist<T, F>(
        &mut self,
        call: impl Fn(Database) -> F,
    ) -> Result<Result<T, DatabaseError>, ShuttingDown>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match call(self.database.clone()).await {
                Err(error)
                    if !error.is_of_the_record() && !matches!(error, DatabaseError::UnknownSale(_)) =>
                {
                    self.metrics.database_failures.inc();
                    self.pace.failed();
                    self.stalled(&backoff, &error);
                    pause(&mut self.shutdown, &mut backoff).await?;
                }
                carried_out => {
                    self.running(&backoff);
                    return Ok(carried_out);
                }
            }
        }
    }

    async fn dead_letter(&mut self, message: &Message, reason: &str) -> Result<(), Left> {
        tracing::error!(position = %message.position, reason, "an order message becomes a dead letter");
        let mut backoff = Backoff::default();
        loop {
            match self.group.dead_letter(message, reason).await {
                Err(error) if error.is_retryable() => {
                    self.stalled(&backoff, &error);
                    pause(&mut self.shutdown, &mut backoff).await?;
                }
                done => {
                    self.running(&backoff);
                    self.metrics.dead_letters.inc();
                    return Ok(done?);
                }
            }
        }
    }

    async fn commit(&mut self, through: Position) -> Result<(), Left> {
        let mut backoff = Backoff::default();
        loop {
            match self.group.commit(through).await {
                Err(error) if error.is_retryable() => {
                    self.stalled(&backoff, &error);
                    pause(&mut self.shutdown, &mut backoff).await?;
                }
                done => {
                    self.running(&backoff);
                    return Ok(done?);
                }
            }
        }
    }

    fn count(&mut self, settled: &[Settled], backlogged: bool) {
        for row in settled {
            match row.outcome {
                Outcome::Duplicate => _ = self.metrics.duplicate_orders.inc(),
                Outcome::Inserted => _ = self.metrics.drained_orders.inc(),
                Outcome::Rejected(reason) => {
                    self.metrics.drained_orders.inc();
                    self.metrics.rejected_orders.get_or_create(&Reason { reason: reason.as_str() }).inc();
                }
            }
        }
        let backlogged_for = self.backlogged_since.map(|since| since.elapsed());
        self.metrics.drain_rate.set(i64::from(self.pace.rate()));
        self.stats.settled(settled.len() as u64, backlogged_for, self.pace.rate());
        self.backlogged_since = backlogged.then(Instant::now);
    }

    /// One line and one change of state for each outage, not for each try.
    fn stalled(&self, backoff: &Backoff, error: &dyn std::error::Error) {
        if backoff.failures() == 0 {
            tracing::error!(%error, "the drain is held up and keeps trying");
            self.metrics.drain_stalled.set(1);
            self.stats.set_state(DrainState::Stalled(error.to_string()));
        }
    }

    fn running(&self, backoff: &Backoff) {
        if backoff.failures() > 0 {
            tracing::info!(failures = backoff.failures(), "the drain goes on");
            self.metrics.drain_stalled.set(0);
            self.stats.set_state(DrainState::Running);
        }
    }
}

async fn pause(shutdown: &mut watch::Receiver<bool>, backoff: &mut Backoff) -> Result<(), ShuttingDown> {
    tokio::select! {
        biased;
        _ = shutdown.wait_for(|down| *down) => Err(ShuttingDown),
        () = tokio::time::sleep(backoff.next()) => Ok(()),
    }
}

impl Batch {
    fn of(messages: Vec<Message>) -> Self {
        let mut batch = Self::default();
        for message in messages {
            let position = message.position;
            match Reservation::decode(&message.payload) {
                Ok(order) if order.quantity == 0 => {
                    batch.malformed.push((message, "an order of 0 units".into()));
                }
                Ok(order) => {
                    batch.orders.push(order);
                    batch.messages.push(message);
                }
                Err(DecodeError::Malformed(error)) => batch.malformed.push((message, error.to_string())),
                Err(error @ DecodeError::UnknownVersion(_)) => {
                    batch.unknown = Some((position, error));
                    break;
                }
            }
            batch.through = Some(position);
        }
        batch
    }
}
