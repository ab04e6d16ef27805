//! Orders to which nothing more happens, as their buyers see them: asked for again, they cost neither ledger nor database.
//! Bounded in number and in time, so that a database that was put back from a copy is believed soon.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use stock::{OrderId, UserId};
use tokio::time::Instant;

/// Orders remembered, over all shards: about 5 MiB when full.
const REMEMBERED_MAX: usize = 1 << 14;
const SHARDS: usize = 16;
/// How long one is remembered.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// See the module. `D` is what a buyer sees.
pub(crate) struct FinalOrders<D> {
    shards: [Mutex<Shard<D>>; SHARDS],
}

struct Shard<D> {
    orders: HashMap<OrderId, (UserId, D)>,
    /// Oldest first, for forgetting; each order of the map stands here once.
    order: VecDeque<(OrderId, Instant)>,
}

impl<D: Clone> FinalOrders<D> {
    pub(crate) fn new() -> Self {
        let shard = || Mutex::new(Shard { orders: HashMap::new(), order: VecDeque::new() });
        Self { shards: std::array::from_fn(|_| shard()) }
    }

    /// Whose order it is, and what it came to; `None` if that is not remembered.
    pub(crate) fn get(&self, order_id: OrderId) -> Option<(UserId, D)> {
        let mut shard = self.shard(order_id).lock();
        shard.forget_until(Instant::now());
        shard.orders.get(&order_id).cloned()
    }

    /// Remembers an order whose status is final.
    pub(crate) fn remember(&self, order_id: OrderId, user: UserId, document: D) {
        let mut shard = self.shard(order_id).lock();
        let now = Instant::now();
        shard.forget_until(now);
        if shard.orders.insert(order_id, (user, document)).is_none() {
            shard.order.push_back((order_id, now));
        }
        if shard.orders.len() > REMEMBERED_MAX / SHARDS {
            shard.forget_oldest();
        }
    }

    fn shard(&self, order_id: OrderId) -> &Mutex<Shard<D>> {
        &self.shards[order_id.0 as usize % SHARDS]
    }
}

impl<D> Shard<D> {
    fn forget_until(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(_, since)| now >= *since + KEPT_FOR) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((oldest, _)) = self.order.pop_front() {
            self.orders.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_in_number_and_in_time() {
        let finals = FinalOrders::new();
        let user: UserId = "a".parse().expect("a user");
        for n in 0..2 * REMEMBERED_MAX as u128 {
            finals.remember(OrderId(n), user.clone(), n);
        }
        let held: usize = finals.shards.iter().map(|shard| shard.lock().orders.len()).sum();
        assert_eq!(held, REMEMBERED_MAX);
        let last = OrderId(2 * REMEMBERED_MAX as u128 - 1);
        assert_eq!((finals.get(OrderId(0)), finals.get(last)), (None, Some((user, last.0))));
        tokio::time::advance(KEPT_FOR).await;
        assert_eq!(finals.get(last), None);
    }
}
