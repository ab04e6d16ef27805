//! The event streams open in this process: how many there are in all and of one user, and what wakes them. Asks nobody
//! anything; forgets a stream when it is dropped.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use queue::Position;
use stock::{OrderId, UserId};
use tokio::sync::Notify;

/// Event streams that one user may have open at once: a browser shows one order a tab, and hidden tabs close theirs.
pub(crate) const STREAMS_PER_USER_MAX: usize = 4;

/// See the module.
pub(crate) struct Streams {
    open_max: usize,
    gauge: Gauge,
    open: Mutex<Open>,
}

/// Every map is bounded by the number of open streams.
#[derive(Default)]
struct Open {
    count: usize,
    /// Tells two streams of one order apart.
    next: u64,
    by_user: HashMap<UserId, usize>,
    by_order: BTreeMap<(OrderId, u64), Arc<Notify>>,
    /// Those that wait for the drain to pass a record of this instance's log.
    by_position: BTreeMap<(Position, u64), Arc<Notify>>,
}

/// Why no stream is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// `gateway.event_streams_max` are open.
    Full,
    /// The user has [`STREAMS_PER_USER_MAX`].
    OfUser,
}

impl Streams {
    pub(crate) fn new(open_max: usize, gauge: Gauge) -> Self {
        Self { open_max, gauge, open: Mutex::default() }
    }

    /// A place among the open streams, given back when it is dropped.
    pub(crate) fn open(self: &Arc<Self>, user: &UserId, order_id: OrderId) -> Result<OpenStream, NoPlace> {
        let mut open = self.open.lock();
        if open.by_user.get(user).is_some_and(|held| *held >= STREAMS_PER_USER_MAX) {
            return Err(NoPlace::OfUser);
        }
        if open.count >= self.open_max {
            return Err(NoPlace::Full);
        }
        let (number, wake) = (open.next, Arc::new(Notify::new()));
        open.count += 1;
        open.next += 1;
        *open.by_user.entry(user.clone()).or_default() += 1;
        open.by_order.insert((order_id, number), wake.clone());
        self.gauge.inc();
        Ok(OpenStream { streams: self.clone(), user: user.clone(), order_id, number, wake, position: None })
    }

    /// Wakes the streams of an order of which something has happened.
    pub(crate) fn changed(&self, order_id: OrderId) {
        let open = self.open.lock();
        for (_, wake) in open.by_order.range((order_id, 0)..=(order_id, u64::MAX)) {
            wake.notify_one();
        }
    }

    /// Wakes the streams whose record the drain has passed, each once.
    pub(crate) fn drained(&self, through: Position) {
        let mut open = self.open.lock();
        let later = open.by_position.split_off(&(through, u64::MAX));
        for wake in mem::replace(&mut open.by_position, later).into_values() {
            wake.notify_one();
        }
    }
}

/// One open stream.
pub(crate) struct OpenStream {
    streams: Arc<Streams>,
    user: UserId,
    order_id: OrderId,
    number: u64,
    wake: Arc<Notify>,
    position: Option<Position>,
}

impl OpenStream {
    /// From now on the drain's passing `position` wakes it, once. What has passed already is for the caller to see.
    pub(crate) fn wait_for_drain(&mut self, position: Position) {
        self.position = Some(position);
        self.streams.open.lock().by_position.insert((position, self.number), self.wake.clone());
    }

    /// Returns when it has been woken, perhaps before the call.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock();
        open.count -= 1;
        open.by_order.remove(&(self.order_id, self.number));
        if let Some(position) = self.position {
            open.by_position.remove(&(position, self.number));
        }
        if let Some(held) = open.by_user.get_mut(&self.user) {
            *held -= 1;
            if *held == 0 {
                open.by_user.remove(&self.user);
            }
        }
        self.streams.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn user(name: &str) -> UserId {
        name.parse().expect("a user")
    }

    fn position(number: u64) -> Position {
        number.to_string().parse().expect("a position")
    }

    fn is_woken(stream: &OpenStream) -> bool {
        stream.woken().now_or_never().is_some()
    }

    #[test]
    fn places_are_bounded_in_all_and_a_user_and_come_back() {
        let streams = Arc::new(Streams::new(5, Gauge::default()));
        let open = |name: &str| streams.open(&user(name), OrderId(1));
        let mut held: Vec<_> = (0..4).map(|_| open("a").expect("a place")).collect();
        assert_eq!(open("a").err(), Some(NoPlace::OfUser));
        held.push(open("b").expect("a place"));
        assert_eq!(open("c").err(), Some(NoPlace::Full));
        held.swap_remove(0);
        assert!(open("a").is_ok() && open("c").is_ok());
        held.clear();
        let open = streams.open.lock();
        assert_eq!((open.count, open.by_user.len(), open.by_order.len()), (0, 0, 0));
        assert_eq!(streams.gauge.get(), 0);
    }

    #[test]
    fn a_change_wakes_the_streams_of_its_order() {
        let streams = Arc::new(Streams::new(10, Gauge::default()));
        let open = |order| streams.open(&user("a"), OrderId(order)).expect("a place");
        let (first, second, other) = (open(7), open(7), open(8));
        streams.changed(OrderId(7));
        assert_eq!([&first, &second, &other].map(is_woken), [true, true, false]);
        assert!(!is_woken(&first), "once a change");
    }

    #[test]
    fn the_drain_wakes_those_whose_record_it_has_passed() {
        let streams = Arc::new(Streams::new(10, Gauge::default()));
        let mut waiting: Vec<_> = [4, 5, 6]
            .map(|at| {
                let mut stream = streams.open(&user(&at.to_string()), OrderId(at)).expect("a place");
                stream.wait_for_drain(position(at as u64));
                stream
            })
            .into();
        streams.drained(position(5));
        assert_eq!(waiting.iter().map(is_woken).collect::<Vec<_>>(), [true, true, false]);
        streams.drained(position(5));
        assert!(!waiting.iter().any(is_woken));
        drop(waiting.pop());
        assert!(streams.open.lock().by_position.is_empty());
    }
}
