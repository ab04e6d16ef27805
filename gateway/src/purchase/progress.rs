//! Where this instance's own appends stand: the position of an order in the log, how many are ahead of it, how long they
//! will take. A bounded index of what is durable; what it has forgotten is asked of ledger and database.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use queue::{GroupWatch, Position, QueueError};
use stock::{OrderId, Reservation};

/// Appends that are remembered, over all shards: about 20 MiB when full.
const REMEMBERED_MAX: usize = 1 << 18;
const SHARDS: usize = 16;
/// How often the drain's offset is looked at.
pub const REFRESH_INTERVAL: Duration = Duration::from_millis(250);
/// Records read at once while the index is built at start.
const READ_MAX: usize = 1_024;

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

/// See the module.
pub struct Progress {
    drained: Arc<GroupWatch>,
    shards: Vec<Mutex<Shard>>,
    /// Milli-orders a second; 0 is unknown. Written by [`Self::refresh`] alone; a lone figure, so relaxed.
    rate_milli: AtomicU64,
}

#[derive(Default)]
struct Shard {
    /// `None` while the append is under way.
    positions: HashMap<OrderId, Option<Position>>,
    /// Oldest first, for forgetting.
    order: VecDeque<OrderId>,
}

impl Progress {
    /// Follows what is `drained` of the log. `rate_hint`: orders a second to count with until a rate has been seen.
    #[must_use]
    pub fn new(drained: Arc<GroupWatch>, rate_hint: Option<u32>) -> Self {
        Self {
            drained,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            rate_milli: AtomicU64::new(u64::from(rate_hint.unwrap_or(0)) * 1_000),
        }
    }

    /// The order's record is in the log's ring.
    pub(super) fn begin(&self, order_id: OrderId) {
        // What is durable already stays so, whatever becomes of a second record.
        self.enter(order_id, |held| held);
    }

    /// The log holds the order durably at `position`.
    pub fn remember(&self, order_id: OrderId, position: Position) {
        self.enter(order_id, |_| Some(position));
    }

    /// The append's end is not known: recovery must not rely on it.
    pub(super) fn give_up(&self, order_id: OrderId) {
        let mut shard = self.shard(order_id).lock();
        if shard.positions.get(&order_id) == Some(&None) {
            shard.positions.remove(&order_id);
        }
    }

    fn enter(&self, order_id: OrderId, position: impl FnOnce(Option<Position>) -> Option<Position>) {
        let mut shard = self.shard(order_id).lock();
        let held = shard.positions.get(&order_id).copied();
        shard.positions.insert(order_id, position(held.flatten()));
        if held.is_none() {
            shard.order.push_back(order_id);
            if shard.order.len() > REMEMBERED_MAX / SHARDS
                && let Some(oldest) = shard.order.pop_front()
            {
                shard.positions.remove(&oldest);
            }
        }
    }

    /// Where the log holds the order durably, if this is remembered.
    #[must_use]
    pub fn position_of(&self, order_id: OrderId) -> Option<Position> {
        self.shard(order_id).lock().positions.get(&order_id).copied().flatten()
    }

    /// Whether the order's record is durable or on its way there; who gives up on the way asks for a recovery.
    pub(super) fn is_on_its_way(&self, order_id: OrderId) -> bool {
        self.shard(order_id).lock().positions.contains_key(&order_id)
    }

    fn shard(&self, order_id: OrderId) -> &Mutex<Shard> {
        &self.shards[order_id.0 as usize % SHARDS]
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
        let Ok(Some(movement)) = self.drained.refresh().await else { return };
        if movement.records > 0 {
            let elapsed_ms = u64::try_from(movement.within.as_millis()).unwrap_or(u64::MAX).max(1);
            let fresh = movement.records.saturating_mul(1_000_000) / elapsed_ms;
            let held = self.rate_milli.load(Ordering::Relaxed);
            let blended = if held == 0 { fresh } else { (held * 3 + fresh) / 4 };
            self.rate_milli.store(blended.max(1), Ordering::Relaxed);
        }
    }

    /// Remembers what the log already holds and the drain has not finished. To be done once, before any recovery.
    ///
    /// # Errors
    /// As [`queue::Topic::read`].
    pub async fn load(&self) -> Result<(), QueueError> {
        let topic = self.drained.topic();
        let mut after = match topic.committed(self.drained.group()).await {
            Ok(committed) => committed,
            Err(QueueError::UnknownGroup { .. }) => None,
            Err(error) => return Err(error),
        };
        loop {
            let messages = topic.read(after, READ_MAX).await?;
            let Some(last) = messages.last() else { return Ok(()) };
            after = Some(last.position);
            for message in &messages {
                if let Ok(reservation) = Reservation::decode(&message.payload) {
                    self.remember(reservation.order_id, message.position);
                }
            }
            tokio::task::yield_now().await;
        }
    }
}
