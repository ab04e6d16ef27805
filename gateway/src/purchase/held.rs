//! Which orders this instance's log holds, exactly: every record that the drain has not finished, at its position; what is on
//! its way there; what became a dead letter. Never says so of an order that the log lacks: its units would leak.
//!
//! Records come about in the log's order, so they are kept in generations that are dropped whole once the drain is past their
//! last one. A table is made in its final size, so that no order waits while one grows.
//!
//! Memory: 28.6 bytes an undrained order (buckets of 25 bytes, full to 7/8), and at most two generations, 25 MiB, beside: those that are
//! always kept and the rest of one that is drained in part. So 5,000,000 undrained orders are at most 162 MiB, and no more
//! than `queue.backlog_max` are ever undrained.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use queue::Position;
use stock::OrderId;

const SHARDS: usize = 16;
/// Records of one generation in one shard: what a table of 32,768 buckets takes before it grows.
const GENERATION_RECORDS_MAX: usize = 28_672;
/// Generations that are kept although they are drained: the ledger hears of a drained order a little later.
const GENERATIONS_KEPT: usize = 2;

/// An id in two words: as one of 16 bytes' alignment a bucket would take 32 bytes.
type Key = [u64; 2];

fn key(order_id: OrderId) -> Key {
    [(order_id.0 >> 64) as u64, order_id.0 as u64]
}

/// See the module.
#[derive(Default)]
pub(super) struct Held {
    shards: [Mutex<Shard>; SHARDS],
    /// The promises among the drain's dead letters.
    letters: Mutex<BTreeSet<OrderId>>,
    /// The batches that the ledger is being asked for: their owner decides what becomes of them.
    asked: Mutex<Vec<Arc<[OrderId]>>>,
}

#[derive(Default)]
struct Shard {
    /// Oldest first.
    generations: VecDeque<Generation>,
    /// How many records of each are in the log's ring.
    on_the_way: HashMap<OrderId, u32>,
}

struct Generation {
    positions: HashMap<Key, Position>,
    last: Position,
}

/// A batch during its ledger call; the call is over when this is dropped.
pub(super) struct Asking<'a> {
    held: &'a Held,
    ids: Arc<[OrderId]>,
}

impl Held {
    /// The ledger is about to be asked for these. To be dropped only when each of them that was taken is on its way, or was handed
    /// to the recovery.
    pub(super) fn ask(&self, ids: Arc<[OrderId]>) -> Asking<'_> {
        self.asked.lock().push(ids.clone());
        Asking { held: self, ids }
    }

    /// The order's record is in the log's ring: [`Self::landed`] or [`Self::gave_up`] has to follow.
    pub(super) fn begin(&self, order_id: OrderId) {
        *self.shard(order_id).lock().on_the_way.entry(order_id).or_default() += 1;
    }

    /// A record that was on its way is durable at `position`.
    pub(super) fn landed(&self, order_id: OrderId, position: Position) {
        let mut shard = self.shard(order_id).lock();
        shard.enter(order_id, position);
        shard.is_over(order_id);
    }

    /// The end of a record that was on its way is not known: nobody may rely on it.
    pub(super) fn gave_up(&self, order_id: OrderId) {
        self.shard(order_id).lock().is_over(order_id);
    }

    /// The log was read and holds the order at `position`.
    pub(super) fn found(&self, order_id: OrderId, position: Position) {
        self.shard(order_id).lock().enter(order_id, position);
    }

    /// The order is among the drain's dead letters.
    pub(super) fn found_letter(&self, order_id: OrderId) {
        self.letters.lock().insert(order_id);
    }

    /// Where the log holds the order durably; `None` also for a dead letter, and for one that was drained a while ago.
    pub(super) fn position_of(&self, order_id: OrderId) -> Option<Position> {
        self.shard(order_id).lock().position_of(order_id)
    }

    /// Whether the order is among the dead letters, as far as they were read.
    pub(super) fn is_letter(&self, order_id: OrderId) -> bool {
        self.letters.lock().contains(&order_id)
    }

    /// Whether the order is durable in the log or among its dead letters.
    pub(super) fn holds(&self, order_id: OrderId) -> bool {
        self.position_of(order_id).is_some() || self.is_letter(order_id)
    }

    /// Whether the order needs no record from the recovery: it has one, or somebody in this process sees to it.
    pub(super) fn is_seen_to(&self, order_id: OrderId) -> bool {
        // Nearly every one is held. For the others in this order: what has left the batches that are asked for was on its way
        // before that, and what is not on its way any more was entered before that.
        self.holds(order_id)
            || self.is_asked(order_id)
            || self.is_on_the_way(order_id)
            || self.holds(order_id)
    }

    /// The drain has finished everything through `through`.
    pub(super) fn drained(&self, through: Position) {
        for shard in &self.shards {
            let mut gone = Vec::new();
            let mut shard = shard.lock();
            let generations = &mut shard.generations;
            while generations.len() > GENERATIONS_KEPT
                && generations.front().is_some_and(|g| g.last <= through)
            {
                gone.extend(generations.pop_front());
            }
            drop(shard);
            // Their memory is given back without the lock.
            drop(gone);
        }
    }

    fn is_asked(&self, order_id: OrderId) -> bool {
        self.asked.lock().iter().any(|ids| ids.contains(&order_id))
    }

    fn is_on_the_way(&self, order_id: OrderId) -> bool {
        self.shard(order_id).lock().on_the_way.contains_key(&order_id)
    }

    fn shard(&self, order_id: OrderId) -> &Mutex<Shard> {
        &self.shards[order_id.0 as usize % SHARDS]
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.held.asked.lock();
        if let Some(at) = asked.iter().position(|ids| Arc::ptr_eq(ids, &self.ids)) {
            asked.swap_remove(at);
        }
    }
}

impl Shard {
    /// A second record of an order is entered beside the first, which its generation takes along.
    fn enter(&mut self, order_id: OrderId, position: Position) {
        let is_full = |generation: &Generation| generation.positions.len() == GENERATION_RECORDS_MAX;
        if self.generations.back().is_none_or(is_full) {
            let positions = HashMap::with_capacity(GENERATION_RECORDS_MAX);
            self.generations.push_back(Generation { positions, last: position });
        }
        if let Some(newest) = self.generations.back_mut() {
            newest.positions.insert(key(order_id), position);
            // While the log is read at the start, newer records come in between.
            newest.last = newest.last.max(position);
        }
    }

    fn is_over(&mut self, order_id: OrderId) {
        if let Some(records) = self.on_the_way.get_mut(&order_id) {
            *records -= 1;
            if *records == 0 {
                self.on_the_way.remove(&order_id);
            }
        }
    }

    fn position_of(&self, order_id: OrderId) -> Option<Position> {
        self.generations.iter().rev().find_map(|generation| generation.positions.get(&key(order_id)).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Position {
        number.to_string().parse().expect("a position")
    }

    /// Ids of one shard.
    fn id(number: u64) -> OrderId {
        OrderId(u128::from(number) * SHARDS as u128)
    }

    #[test]
    fn a_bucket_has_the_size_that_the_bound_counts_with() {
        assert_eq!(size_of::<(Key, Position)>(), 24);
        let table: HashMap<Key, Position> = HashMap::with_capacity(GENERATION_RECORDS_MAX);
        assert_eq!(table.capacity(), GENERATION_RECORDS_MAX);
    }

    #[test]
    fn whatever_is_undrained_is_held_and_what_is_drained_goes_whole_generations_at_a_time() {
        let held = Held::default();
        let generation = GENERATION_RECORDS_MAX as u64;
        for number in 1..=10 * generation {
            held.found(id(number), at(number));
        }
        assert!((1..=10 * generation).all(|number| held.position_of(id(number)) == Some(at(number))));
        held.drained(at(4 * generation - 1));
        assert!(!held.holds(id(3 * generation)), "it was drained with its whole generation");
        assert!((3 * generation + 1..=10 * generation).all(|number| held.holds(id(number))));
        held.drained(at(10 * generation));
        assert!(!held.holds(id(8 * generation)));
        assert!((8 * generation + 1..=10 * generation).all(|number| held.holds(id(number))));
    }

    #[test]
    fn a_generation_waits_for_its_last_record_whatever_order_they_came_in() {
        let held = Held::default();
        let generation = GENERATION_RECORDS_MAX as u64;
        // A purchase while the log is still being read.
        held.found(id(0), at(9 * generation));
        for number in 1..=3 * generation {
            held.found(id(number), at(number));
        }
        held.drained(at(8 * generation));
        assert!((0..=3 * generation).all(|number| held.holds(id(number))));
    }

    #[test]
    fn the_recovery_leaves_alone_what_somebody_sees_to() {
        let held = Held::default();
        let asking = held.ask(Arc::new([id(1), id(2)]));
        assert!(held.is_seen_to(id(1)) && !held.holds(id(1)) && !held.is_seen_to(id(3)));
        held.begin(id(1));
        drop(asking);
        assert!(held.is_seen_to(id(1)) && !held.is_seen_to(id(2)));
        held.begin(id(1));
        held.gave_up(id(1));
        assert!(held.is_seen_to(id(1)), "its second record is still on its way");
        held.landed(id(1), at(7));
        assert_eq!(held.position_of(id(1)), Some(at(7)));
        held.begin(id(1));
        held.gave_up(id(1));
        assert!(held.holds(id(1)), "what is durable stays so");
        held.begin(id(2));
        held.gave_up(id(2));
        assert!(!held.is_seen_to(id(2)));
        held.found_letter(id(2));
        assert!(held.holds(id(2)) && held.position_of(id(2)).is_none());
    }
}
