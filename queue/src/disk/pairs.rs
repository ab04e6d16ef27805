//! A sorted set of pairs of numbers, packed: a million of them stay small. Knows nothing of records.
//!
//! Pairs stand in sorted chunks. A chunk's memory is at least three quarters full but for a few pairs, and one that has become small
//! joins its neighbour, so that a pair costs at most about 22 bytes whatever comes and goes, in whatever order.

use std::collections::BTreeMap;

/// Pairs of one chunk.
const CHUNK_PAIRS_MAX: usize = 512;

/// Pairs by which a chunk's memory grows at least.
const GROWTH_PAIRS_MIN: usize = 4;

/// Sorted by the first number, then by the second.
pub(crate) type Pair = (u64, u64);

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pairs {
    /// Never empty ones, each by a bound: its own pairs are not below it, those of the chunk before are.
    chunks: BTreeMap<Pair, Vec<Pair>>,
    len: usize,
}

impl Pairs {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn first(&self) -> Option<Pair> {
        self.chunks.first_key_value().and_then(|(_, chunk)| chunk.first().copied())
    }

    pub(crate) fn contains(&self, pair: Pair) -> bool {
        self.since(pair).next() == Some(pair)
    }

    /// All that are not below `from`, in order.
    pub(crate) fn since(&self, from: Pair) -> impl Iterator<Item = Pair> + '_ {
        let start = self.bound(from).unwrap_or(from);
        self.chunks
            .range(start..)
            .flat_map(move |(_, chunk)| chunk[chunk.partition_point(|pair| *pair < from)..].iter().copied())
    }

    /// Whether it was not there yet.
    pub(crate) fn insert(&mut self, pair: Pair) -> bool {
        let Some(bound) = self.bound(pair) else {
            // Below everything: with the least of all bounds, so that the next such finds this chunk.
            self.chunks.insert((0, 0), vec![pair]);
            self.len += 1;
            return true;
        };
        let is_last = self.chunks.last_key_value().is_some_and(|(last, _)| *last == bound);
        let Some(chunk) = self.chunks.get_mut(&bound) else { return false };
        let Err(at) = chunk.binary_search(&pair) else { return false };
        self.len += 1;
        if chunk.len() < CHUNK_PAIRS_MAX {
            grow(chunk);
            chunk.insert(at, pair);
        } else if is_last && at == chunk.len() {
            // What only rises, as sequences do, leaves full chunks behind.
            self.chunks.insert(pair, vec![pair]);
        } else {
            let mut upper = chunk.split_off(CHUNK_PAIRS_MAX / 2);
            chunk.shrink_to_fit();
            let upper_bound = upper[0];
            let (half, at) =
                if at <= chunk.len() { (&mut *chunk, at) } else { (&mut upper, at - CHUNK_PAIRS_MAX / 2) };
            grow(half);
            half.insert(at, pair);
            self.chunks.insert(upper_bound, upper);
        }
        true
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, pair: Pair) -> bool {
        let Some(bound) = self.bound(pair) else { return false };
        let Some(chunk) = self.chunks.get_mut(&bound) else { return false };
        let Ok(at) = chunk.binary_search(&pair) else { return false };
        chunk.remove(at);
        self.len -= 1;
        self.tidy(bound);
        true
    }

    /// Removes `from..=to` and hands out each.
    pub(crate) fn remove_range(&mut self, from: Pair, to: Pair, mut each: impl FnMut(Pair)) {
        if from > to {
            return;
        }
        let start = self.bound(from).unwrap_or(from);
        let bounds: Vec<Pair> = self.chunks.range(start..=to).map(|(bound, _)| *bound).collect();
        for bound in bounds {
            let Some(chunk) = self.chunks.get_mut(&bound) else { continue };
            let (first, end) =
                (chunk.partition_point(|pair| *pair < from), chunk.partition_point(|pair| *pair <= to));
            chunk.drain(first..end).for_each(&mut each);
            self.len -= end - first;
            self.tidy(bound);
        }
    }

    /// The bound of the chunk that holds `pair` or would.
    fn bound(&self, pair: Pair) -> Option<Pair> {
        self.chunks.range(..=pair).next_back().map(|(bound, _)| *bound)
    }

    /// After a removal from the chunk of this bound.
    fn tidy(&mut self, bound: Pair) {
        let Some(chunk) = self.chunks.get_mut(&bound) else { return };
        let len = chunk.len();
        if len == 0 {
            self.chunks.remove(&bound);
            return;
        }
        if chunk.capacity() - len > chunk.capacity() / 4 + GROWTH_PAIRS_MIN {
            chunk.shrink_to(len + len / 8);
        }
        if len >= CHUNK_PAIRS_MAX / 4 {
            return;
        }
        let after = (std::ops::Bound::Excluded(bound), std::ops::Bound::Unbounded);
        let Some((next, _)) =
            self.chunks.range(after).next().filter(|(_, next)| len + next.len() <= CHUNK_PAIRS_MAX / 2)
        else {
            return;
        };
        let next = *next;
        if let Some(rest) = self.chunks.remove(&next)
            && let Some(chunk) = self.chunks.get_mut(&bound)
        {
            chunk.reserve_exact(rest.len());
            chunk.extend(rest);
        }
    }
}

/// Of pairs that rise, as a checkpoint has them.
impl FromIterator<Pair> for Pairs {
    fn from_iter<I: IntoIterator<Item = Pair>>(pairs: I) -> Self {
        let mut set = Self::default();
        for pair in pairs {
            set.insert(pair);
        }
        set
    }
}

fn grow(chunk: &mut Vec<Pair>) {
    if chunk.len() == chunk.capacity() {
        chunk.reserve_exact((chunk.len() / 4).max(GROWTH_PAIRS_MIN));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn same(pairs: &Pairs, model: &BTreeSet<Pair>, from: Pair) {
        assert_eq!((pairs.len(), pairs.first()), (model.len(), model.first().copied()));
        assert!(pairs.since(from).eq(model.range(from..).copied()), "since {from:?}");
        let used: usize = pairs.chunks.values().map(Vec::len).sum();
        let held: usize = pairs.chunks.values().map(Vec::capacity).sum();
        let slack = held / 4 + (2 * GROWTH_PAIRS_MIN + 1) * pairs.chunks.len();
        assert!(held - used <= slack, "{held} places for {used} in {} chunks", pairs.chunks.len());
    }

    /// Against the standard library's set: rising, falling and scattered, filled and emptied.
    #[test]
    fn it_is_a_sorted_set() {
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for order in 0..3 {
            let (mut pairs, mut model) = (Pairs::default(), BTreeSet::new());
            for round in 0..30_000_u64 {
                let first = match order {
                    0 => round,
                    1 => 100_000 - round,
                    _ => next(5_000),
                };
                let pair = (first, next(3));
                assert_eq!(pairs.insert(pair), model.insert(pair));
                assert!(!pairs.insert(pair) && pairs.contains(pair));
                if round % 3 == 0 {
                    let gone = (next(100_000), next(3));
                    assert_eq!(pairs.contains(gone), model.contains(&gone));
                    assert_eq!(pairs.remove(gone), model.remove(&gone));
                }
                if round % 1_000 == 0 {
                    same(&pairs, &model, (next(100_000), 1));
                }
            }
            let from = (next(50_000), 0);
            let to = (from.0 + 2_000, 1);
            let mut gone = Vec::new();
            pairs.remove_range(from, to, |pair| gone.push(pair));
            assert!(gone.iter().eq(model.range(from..=to)));
            model.retain(|pair| !(from..=to).contains(pair));
            same(&pairs, &model, (0, 0));
            while model.len() > 1 {
                let any = *model.range((next(100_000), 0)..).next().unwrap_or(model.first().unwrap());
                assert!(pairs.remove(any) && model.remove(&any));
                if model.len() % 500 == 0 {
                    same(&pairs, &model, (0, 0));
                    // Small chunks join: what is left does not keep a chunk for each.
                    assert!(
                        pairs.chunks.len() <= 4 + pairs.len() / 30,
                        "{} for {}",
                        pairs.chunks.len(),
                        pairs.len()
                    );
                }
            }
        }
    }
}
