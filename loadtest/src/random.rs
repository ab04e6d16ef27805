//! Seeded randomness (SplitMix64, Steele et al., OOPSLA'14): the same seed plays the same crowd.

/// A stream of numbers that depends on its seed alone.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream of its own for each pair of seed and lane, so that users do not depend on each other's draws.
    pub(crate) fn new(seed: u64, lane: u64) -> Self {
        let mut mixed = Self(seed ^ lane.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        mixed.next();
        mixed
    }

    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 for a bound of 0. (The bias is below 2⁻³² for the bounds used here.)
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// A seed for a run that was given none: it is printed, so that the run can be repeated.
pub(crate) fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Random::new(now.as_nanos() as u64, u64::from(std::process::id())).next() >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_stream_and_another_lane_another() {
        let draw = |seed, lane| {
            let mut random = Random::new(seed, lane);
            [random.next(), random.next(), random.next()]
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        let mut random = Random::new(1, 1);
        let drawn: Vec<u64> = (0..1000).map(|_| random.below(10)).collect();
        assert!(drawn.iter().all(|&n| n < 10));
        assert!(drawn.contains(&0) && drawn.contains(&9));
        assert_eq!(random.below(0), 0);
    }
}
