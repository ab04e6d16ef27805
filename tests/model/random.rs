//! Seeded randomness: every choice of a run comes from here, so that a seed replays it.

use std::sync::Arc;

use parking_lot::Mutex;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Clones share one stream; forks have their own.
#[derive(Clone)]
pub(crate) struct Random(Arc<Mutex<u64>>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// A stream of its own, so that what one part draws does not shift the others.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `bound` − 1.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// `low` to `high`, both included.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1,000 draws.
    pub(crate) fn chance(&self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// As the crates take it.
    pub(crate) fn source(&self) -> Arc<dyn Fn() -> u64 + Send + Sync> {
        let stream = self.fork();
        Arc::new(move || stream.next())
    }
}
