//! Closes what nobody paid: by the delayed message of its deadline, which finds it at its time, and, as the net below
//! that, by a slow look through the index (status, pay_by). Both ask the row, in batches under a budget of their own;
//! the second to come changes nothing. What is withdrawn is closed, too (`withdrawals`). Gives no units to anybody: the
//! transaction leaves the release that the relay takes to the ledger.

mod withdrawals;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use queue::{Group, Message, Position, QueueError, StartAt};
use stock::{Now, Owner, Stock, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::shop::Shop;
use super::timeouts::{Deadline, Timeouts};
use crate::backoff::Backoff;
use crate::clocks::Clocks;
use crate::config::DrainConfig;
use crate::database::{CloseCause, CloseOutcome, Database, DatabaseError, Due, Work};
use crate::drain::pace::Pace;
use crate::drain::rate_shares;
use crate::metrics::{Found, WorkerMetrics};
use crate::topics::CLOSING_GROUP;

/// Longest wait for a first message; then shutdown is looked at again.
const PULL_WAIT: Duration = Duration::from_secs(1);
/// Between two looks for a log that cannot be used, and at clocks that do not agree.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks through the index.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// The same while there are deadlines that no log has.
const SWEEP_INTERVAL_LEFT: Duration = Duration::from_secs(1);
/// So long after its time an order is still its message's: what the net catches before would be counted as if a message
/// were lost.
const SWEEP_AFTER_MS: u64 = 60_000;
/// A message that comes so long after its time tells that the closer is behind …
const BEHIND_MS_MIN: u64 = 30_000;
/// … for so long. Together not longer than [`SWEEP_AFTER_MS`]: the sweep finds what a closer has that is less late than this.
const BEHIND_HOLDS: Duration = Duration::from_secs(30);

/// What a [`Closing`] is made of.
pub struct ClosingParts {
    /// Where orders are.
    pub database: Database,
    /// Whose clock is asked too.
    pub stock: Arc<Stock>,
    /// Where the drains of this process leave deadlines.
    pub timeouts: Timeouts,
    /// Who is asked before, and told after.
    pub shop: Shop,
    /// How fast: a budget of the drain's size beside it, of all processes together; see [`Closing::share`].
    pub budget: DrainConfig,
    /// This process's clock.
    pub now: Now,
    /// Where it counts.
    pub metrics: WorkerMetrics,
}

/// Closes what nobody paid. Its owner drives [`Closing::by_message`], where a disk that hangs holds up nothing else,
/// and [`Closing::by_index`].
pub struct Closing {
    database: Database,
    timeouts: Timeouts,
    shop: Shop,
    now: Now,
    clocks: Clocks,
    pace: Arc<Pace>,
    metrics: WorkerMetrics,
    /// When a message last came late.
    behind_at: Mutex<Option<Instant>>,
}

/// The process is shutting down: what is under way will be repeated by the next one.
struct ShuttingDown;

/// Why a log's messages are no longer read.
enum Left {
    ShuttingDown,
    Lost(QueueError),
}

impl From<ShuttingDown> for Left {
    fn from(_: ShuttingDown) -> Self {
        Self::ShuttingDown
    }
}

impl Closing {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(parts: ClosingParts) -> Self {
        let ClosingParts { database, stock, timeouts, shop, budget, now, metrics } = parts;
        let apart = metrics.clocks_apart.clone();
        let clocks = Clocks::new(database.clone(), stock, now.clone(), apart, "no order is closed");
        let behind_at = Mutex::new(None);
        Self { database, timeouts, shop, now, clocks, pace: Arc::new(Pace::new(&budget)), metrics, behind_at }
    }

    /// Holds this process to its share of the budget, where several close orders of one database, until `shutdown`. `life` is random.
    pub async fn share(&self, life: u64, shutdown: watch::Receiver<bool>) {
        let _place = self.pace.enter(Owner(life));
        rate_shares::run(self.database.clone(), self.pace.clone(), (Work::Close, life), shutdown).await;
    }

    /// Closes at each deadline's message, until `shutdown` is true or its sender gone. A log that cannot be used is
    /// looked for until it can.
    pub async fn by_message(&self, mut shutdown: watch::Receiver<bool>) {
        loop {
            if let Some(topic) = self.timeouts.topic() {
                let left = match topic.group(CLOSING_GROUP, StartAt::Oldest).await {
                    Ok(mut group) => self.consume(&mut group, &mut shutdown).await,
                    Err(error) => Left::Lost(error),
                };
                match left {
                    Left::ShuttingDown => return,
                    Left::Lost(error) => {
                        tracing::warn!(%error, "deadlines cannot be read from this worker's log; it is tried again")
                    }
                }
            }
            if pause(&mut shutdown, LOOK).await.is_err() {
                return;
            }
        }
    }

    /// Looks through the index, slowly, until `shutdown` is true or its sender gone; every second while deadlines were
    /// left to it, and for withdrawn sales.
    pub async fn by_index(&self, mut shutdown: watch::Receiver<bool>) {
        let mut beside = shutdown.clone();
        tokio::join!(self.lapses(&mut shutdown), self.withdrawals(&mut beside));
    }

    async fn lapses(&self, shutdown: &mut watch::Receiver<bool>) {
        loop {
            let interval =
                if self.timeouts.left_until_ms() > 0 { SWEEP_INTERVAL_LEFT } else { SWEEP_INTERVAL };
            // Woken early where deadlines are left meanwhile.
            let begun = Instant::now();
            while begun.elapsed() < interval {
                if pause(shutdown, SWEEP_INTERVAL_LEFT).await.is_err() {
                    return;
                }
                if self.timeouts.left_until_ms() > 0 {
                    break;
                }
            }
            if let Err(error) = self.sweep(shutdown).await {
                match error {
                    None => return,
                    Some(error) => {
                        tracing::warn!(%error, "lapsed orders cannot be looked for; they are looked for again")
                    }
                }
            }
        }
    }

    /// Once through the index. No error: the process is shutting down.
    async fn sweep(&self, shutdown: &mut watch::Receiver<bool>) -> Result<(), Option<DatabaseError>> {
        let left_until_ms = self.timeouts.left_until_ms();
        let is_left = left_until_ms > 0;
        // What the closer is about to come to is its own, in the same order.
        if !self.clocks.agree().await || (!is_left && self.is_behind()) {
            return Ok(());
        }
        let after_ms = self.timeouts.grace_ms() + if is_left { 0 } else { SWEEP_AFTER_MS };
        // Read before the look, told after it: one that fails half-way leaves them to the next.
        let is_last = is_left && self.database.now().await.map_err(Some)?.0 > left_until_ms;
        loop {
            let most = self.pace.batch_max();
            let due = self.database.lapsed(after_ms, most).await.map_err(Some)?;
            if due.is_empty() {
                break;
            }
            self.take(due.len(), shutdown).await.map_err(|ShuttingDown| None)?;
            let outcomes = self.close(&due).await.map_err(Some)?;
            self.count(&outcomes, "sweep");
            if due.len() < most {
                break;
            }
        }
        if is_last {
            self.timeouts.caught(left_until_ms);
        }
        Ok(())
    }

    async fn consume(&self, group: &mut Group, shutdown: &mut watch::Receiver<bool>) -> Left {
        loop {
            if let Err(left) = self.consume_batch(group, shutdown).await {
                return left;
            }
        }
    }

    async fn consume_batch(
        &self,
        group: &mut Group,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), Left> {
        // 1. Pull what is due by the log's clock, the longest due first. Nothing is changed by it.
        let most = self.pace.batch_max();
        let pulled = tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => return Err(Left::ShuttingDown),
            pulled = group.pull(most, PULL_WAIT) => pulled,
        };
        let messages = match pulled {
            Ok(messages) => messages,
            Err(error) if error.is_retryable() => return Ok(pause(shutdown, LOOK).await?),
            Err(error) => return Err(Left::Lost(error)),
        };
        if messages.is_empty() {
            return Ok(());
        }
        if is_late(messages.iter().filter_map(|message| message.deliver_at_ms), (self.now)()) {
            *self.behind_at.lock() = Some(Instant::now());
        }
        if queue::failpoint::hit("closing.pulled") {
            group.rewind();
            return Ok(());
        }
        let (mut due, mut positions) =
            (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        for message in &messages {
            match Deadline::decode(&message.payload) {
                Ok(deadline) => {
                    due.push(deadline.due());
                    positions.push(message.position);
                }
                // The index still has the order.
                Err(error) => self.dead_letter(group, message, &error.to_string()).await?,
            }
        }

        // 2. Close, as soon as the clocks agree and the budget allows. A crash after this repeats the batch: all closed
        // before.
        while !self.clocks.agree().await {
            pause(shutdown, LOOK).await?;
        }
        self.take(due.len(), shutdown).await?;
        let outcomes = self.insist(&due, shutdown).await?;
        queue::failpoint::hit("closing.closed");
        self.count(&outcomes, "message");

        // 3. Finished, durable, but for what came too early by the database's clock: that comes again at its time.
        let (mut finished, mut early) = (Vec::new(), Vec::new());
        for (position, outcome) in positions.into_iter().zip(&outcomes) {
            match outcome {
                CloseOutcome::Early(ms) => early.push((position, Duration::from_millis((*ms).max(1)))),
                CloseOutcome::Closed | CloseOutcome::Past(_) | CloseOutcome::Absent => {
                    finished.push(position)
                }
            }
        }
        self.finish(group, (&finished, &early), shutdown).await
    }

    async fn finish(
        &self,
        group: &mut Group,
        (finished, early): (&[Position], &[(Position, Duration)]),
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), Left> {
        let mut backoff = Backoff::default();
        loop {
            let mut done = Ok(());
            if !finished.is_empty() {
                done = group.ack_all(finished).await;
            }
            if done.is_ok() && !early.is_empty() {
                done = group.nack_all(early).await;
            }
            match done {
                Ok(()) => return Ok(()),
                Err(error) if error.is_retryable() => pause(shutdown, backoff.next()).await?,
                Err(error) => return Err(Left::Lost(error)),
            }
        }
    }

    /// Repeats a batch until it is carried out. The row that the database refuses for good is left to people: its
    /// message goes.
    async fn insist(
        &self,
        due: &[Due],
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<Vec<CloseOutcome>, ShuttingDown> {
        let mut backoff = Backoff::default();
        loop {
            match self.close(due).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(error) if error.is_of_the_record() && due.len() > 1 => break,
                Err(error) if error.is_of_the_record() => {
                    tracing::error!(order = %due[0].order_id, %error, "an order cannot be closed");
                    return Ok(vec![CloseOutcome::Absent]);
                }
                Err(error) => {
                    if backoff.failures() == 0 {
                        tracing::error!(%error, "what nobody paid cannot be closed; it is tried again");
                    }
                    pause(shutdown, backoff.next()).await?;
                }
            }
        }
        let mut outcomes = Vec::with_capacity(due.len());
        for one in due {
            outcomes.extend(Box::pin(self.insist(std::slice::from_ref(one), shutdown)).await?);
        }
        Ok(outcomes)
    }

    /// One transaction, the shop's word before and behind it.
    async fn close(&self, due: &[Due]) -> Result<Vec<CloseOutcome>, DatabaseError> {
        self.shop.ask(&self.database, due).await?;
        let begun = Instant::now();
        let closed = self.database.close_due(due, self.timeouts.grace_ms()).await;
        match &closed {
            Ok(outcomes) => {
                self.pace.committed(begun.elapsed(), due.len());
                let is_closed = |(_, outcome): &(&Due, &CloseOutcome)| **outcome == CloseOutcome::Closed;
                let told: Vec<Due> =
                    due.iter().zip(outcomes).filter(is_closed).map(|(due, _)| due.clone()).collect();
                self.shop.tell(told, CloseCause::Lapsed, Timestamp((self.now)())).await;
            }
            Err(_) => self.pace.failed(),
        }
        closed
    }

    async fn take(&self, orders: usize, shutdown: &mut watch::Receiver<bool>) -> Result<(), ShuttingDown> {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => Err(ShuttingDown),
            () = self.pace.take(orders) => Ok(()),
        }
    }

    async fn dead_letter(&self, group: &mut Group, message: &Message, reason: &str) -> Result<(), Left> {
        tracing::error!(position = %message.position, reason, "a deadline's message becomes a dead letter");
        self.metrics.dead_letters.inc();
        group.dead_letter(message, reason).await.map_err(Left::Lost)
    }

    fn count(&self, outcomes: &[CloseOutcome], found: &'static str) {
        let closed = outcomes.iter().filter(|outcome| **outcome == CloseOutcome::Closed).count();
        self.metrics.closed_orders.get_or_create(&Found { found }).inc_by(closed as u64);
    }

    fn is_behind(&self) -> bool {
        self.behind_at.lock().is_some_and(|at| at.elapsed() < BEHIND_HOLDS)
    }
}

/// Whether any message of these times should have come long before.
fn is_late(due_ms: impl IntoIterator<Item = u64>, now_ms: u64) -> bool {
    let oldest_ms = due_ms.into_iter().min();
    oldest_ms.is_some_and(|due_ms| now_ms.saturating_sub(due_ms) >= BEHIND_MS_MIN)
}

async fn pause(shutdown: &mut watch::Receiver<bool>, pause: Duration) -> Result<(), ShuttingDown> {
    tokio::select! {
        biased;
        _ = shutdown.wait_for(|down| *down) => Err(ShuttingDown),
        () = sleep(pause) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use prometheus_client::registry::Registry;
    use stock::{EmbeddedFlag, EmbeddedLedger, Flag, Ledger};

    use super::*;
    use crate::database::SharedConnection;

    fn closing(connection: &SharedConnection) -> Arc<Closing> {
        let now: Now = Arc::new(|| 1_000);
        let (ledger, flag) = (EmbeddedLedger::new(now.clone()), EmbeddedFlag::new(1));
        let stock = Stock::new(Ledger::Embedded(ledger), Flag::Embedded(flag), &mut Registry::default());
        let metrics = WorkerMetrics::new(&mut Registry::default());
        Arc::new(Closing::new(ClosingParts {
            database: Database::over_connection(connection.clone(), now.clone()).unwrap(),
            stock: Arc::new(stock),
            timeouts: Timeouts::new(Arc::new(|| None), 0, &metrics),
            shop: Shop::default(),
            budget: DrainConfig::default(),
            now,
            metrics,
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_close_share_one_limit() {
        let connection = SharedConnection::open(":memory:").unwrap();
        let (shutdown, down) = watch::channel(false);
        let both: Vec<_> = [1, 2]
            .map(|life| {
                let (closing, down) = (closing(&connection), down.clone());
                let sharing = tokio::spawn({
                    let closing = closing.clone();
                    async move { closing.share(life, down).await }
                });
                (closing, sharing)
            })
            .into();
        sleep(Duration::from_secs(10)).await;
        for (closing, _) in &both {
            assert_eq!(closing.pace.share_ppm(), 500_000);
        }
        shutdown.send_replace(true);
        for (_, sharing) in both {
            sharing.await.unwrap();
        }
        // The next one has all of it, at once.
        let (_shutdown, down) = watch::channel(false);
        let alone = closing(&connection);
        tokio::spawn({
            let alone = alone.clone();
            async move { alone.share(3, down).await }
        });
        sleep(Duration::from_secs(2)).await;
        assert_eq!(alone.pace.share_ppm(), 1_000_000);
    }

    #[test]
    fn a_closer_is_behind_when_a_message_comes_late_however_many_come_at_once() {
        let now_ms = 1_000_000;
        assert!(!is_late(now_ms - 512..=now_ms, now_ms) && !is_late([now_ms], now_ms), "full batches");
        assert!(is_late([now_ms, now_ms - BEHIND_MS_MIN], now_ms));
        assert!(!is_late([now_ms - BEHIND_MS_MIN + 1], now_ms) && !is_late([now_ms + 9], now_ms));
        assert!(!is_late([], now_ms));
    }
}
