//! Where this instance's own appends stand: the position of an order in the log, how many are ahead of it, how long they
//! will take. What is drained is asked of ledger and database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use queue::{GroupWatch, Message, Position, QueueError, operator};
use stock::{OrderId, Reservation};

use super::held::{Asking, Held};

/// How often the drain's offset is looked at.
pub const REFRESH_INTERVAL: Duration = Duration::from_millis(250);
/// Records read at once while the index is built at start.
const READ_MAX: usize = 1_024;
/// Records before the drain's offset that are read as well: the ledger may not have heard of the last ones.
const FINISHED_MAX: usize = 8_192;
/// Dead letters read at once: each reading goes through all of them.
const LETTERS_MAX: usize = 8_192;

/// What a waiting buyer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Undrained records ahead in this instance's log; `None` where unknown.
    pub position: Option<u64>,
    /// `position` over the drain's rate; `None` where unknown.
    pub eta_ms: Option<u64>,
    /// When to ask again.
    pub poll_after_ms: u64,
}

/// What has become of an order's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// The drain will come to it.
    Waiting,
    /// The drain is past it: it is a row, or a dead letter that is not known here yet.
    Drained,
    /// It is a dead letter: nobody writes its row.
    Letter,
}

/// See the module.
pub struct Progress {
    drained: Arc<GroupWatch>,
    held: Held,
    /// The last dead letter that was read.
    letters_through: Mutex<Option<Position>>,
    /// Milli-orders a second; 0 is unknown. Written by [`Self::refresh`] alone; a lone figure, so relaxed.
    rate_milli: AtomicU64,
}

impl Progress {
    /// Follows what is `drained` of the log. `rate_hint`: orders a second to count with until a rate has been seen.
    #[must_use]
    pub fn new(drained: Arc<GroupWatch>, rate_hint: Option<u32>) -> Self {
        Self {
            drained,
            held: Held::default(),
            letters_through: Mutex::default(),
            rate_milli: AtomicU64::new(u64::from(rate_hint.unwrap_or(0)) * 1_000),
        }
    }

    /// The ledger is about to be asked for these orders. See [`Held::ask`].
    pub(super) fn ask(&self, ids: impl Iterator<Item = OrderId>) -> Asking<'_> {
        self.held.ask(ids.collect())
    }

    /// The order's record is in the log's ring; [`Self::end`] has to follow.
    pub(super) fn begin(&self, order_id: OrderId) {
        self.held.begin(order_id);
    }

    /// The end of what [`Self::begin`] began: the record is durable at this position, or that will not be known.
    pub(super) fn end(&self, order_id: OrderId, durable: Option<Position>) {
        match durable {
            Some(position) => self.held.landed(order_id, position),
            None => self.held.gave_up(order_id),
        }
    }

    /// Where the log holds the order durably. `None` also for one that was drained a while ago, and for a dead letter.
    #[must_use]
    pub fn position_of(&self, order_id: OrderId) -> Option<Position> {
        self.held.position_of(order_id)
    }

    /// How an order stands whose record this log has, as far as is known here. `None`: the log may lack it.
    pub(super) fn kept(&self, order_id: OrderId) -> Option<Kept> {
        let position = self.position_of(order_id);
        let through = self.drained_through();
        // A letter that was put back waits again.
        if position.is_some_and(|position| through.is_none_or(|through| position > through)) {
            return Some(Kept::Waiting);
        }
        if self.held.is_letter(order_id) {
            return Some(Kept::Letter);
        }
        position.map(|_| Kept::Drained)
    }

    /// Whether the log holds the order durably, as a dead letter if not to be drained.
    #[must_use]
    pub fn holds(&self, order_id: OrderId) -> bool {
        self.held.holds(order_id)
    }

    /// Whether the recovery has nothing to do for the order: the log holds it, or somebody in this process sees to it.
    pub(super) fn is_seen_to(&self, order_id: OrderId) -> bool {
        self.held.is_seen_to(order_id)
    }

    /// What to tell the buyer of `order_id`.
    #[must_use]
    pub fn estimate(&self, order_id: OrderId) -> Estimate {
        let position = self.position_of(order_id).and_then(|position| self.drained.ahead_of(position));
        let rate_milli = self.rate_milli.load(Ordering::Relaxed);
        let eta_ms = position.filter(|_| rate_milli > 0).map(|ahead| (ahead + 1) * 1_000_000 / rate_milli);
        let base_ms = eta_ms.map_or(500, |eta| (eta / 2).clamp(200, 5_000));
        // The id's random bits spread the crowd's next questions over a fifth more.
        let spread_ms = base_ms * (order_id.0 as u64 & 0xFF) / 0xFF / 5;
        Estimate { position, eta_ms, poll_after_ms: base_ms + spread_ms }
    }

    /// The last record that the drain has finished together with all before it, as of the last [`Self::refresh`].
    #[must_use]
    pub fn drained_through(&self) -> Option<Position> {
        self.drained.committed()
    }

    /// Looks at the drain's offset and learns its rate.
    pub async fn refresh(&self) {
        // An engine that does not answer: what is ahead is unknown until it does.
        let Ok(movement) = self.drained.refresh().await else { return };
        if let Some(through) = self.drained_through() {
            self.held.drained(through);
        }
        let Some(movement) = movement else { return };
        if movement.records > 0 {
            let elapsed_ms = u64::try_from(movement.within.as_millis()).unwrap_or(u64::MAX).max(1);
            let fresh = movement.records.saturating_mul(1_000_000) / elapsed_ms;
            let held = self.rate_milli.load(Ordering::Relaxed);
            let blended = if held == 0 { fresh } else { (held * 3 + fresh) / 4 };
            self.rate_milli.store(blended.max(1), Ordering::Relaxed);
        }
    }

    /// Learns what the log already holds: what the drain has not finished, some of what it has, and the dead letters. To be
    /// done once, before any recovery.
    ///
    /// # Errors
    /// As [`queue::Topic::read`]. A repeat is harmless.
    pub async fn load(&self) -> Result<(), QueueError> {
        let topic = self.drained.topic();
        let mut after = match topic.committed(self.drained.group()).await {
            Ok(committed) => committed,
            Err(QueueError::UnknownGroup { .. }) => None,
            Err(error) => return Err(error),
        };
        if after.is_some() {
            self.learn(&topic.read_last(after, FINISHED_MAX).await?);
        }
        loop {
            let messages = topic.read(after, READ_MAX).await?;
            let Some(last) = messages.last() else { break };
            after = Some(last.position);
            self.learn(&messages);
            tokio::task::yield_now().await;
        }
        self.load_letters().await
    }

    fn learn(&self, messages: &[Message]) {
        for message in messages {
            // The whole message: a key alone would not make it an order.
            if let Ok(reservation) = Reservation::decode(&message.payload) {
                self.held.found(reservation.order_id, message.position);
            }
        }
    }

    /// Learns of the dead letters that came since the last time. The drain is past those, and will not become rows.
    ///
    /// # Errors
    /// As [`operator::dead_letters`].
    pub(super) async fn load_letters(&self) -> Result<(), QueueError> {
        let (topic, group) = (self.drained.topic(), self.drained.group());
        let mut after = *self.letters_through.lock();
        loop {
            let letters = match operator::dead_letters(topic, group, after, LETTERS_MAX).await {
                Err(QueueError::UnknownGroup { .. }) => return Ok(()),
                letters => letters?,
            };
            let Some(last) = letters.last() else { return Ok(()) };
            after = Some(last.letter);
            for letter in &letters {
                if let Ok(reservation) = Reservation::decode(&letter.message.payload) {
                    self.held.found_letter(reservation.order_id);
                }
            }
            *self.letters_through.lock() = after;
        }
    }
}
