//! The operating system's randomness: for secrets' ids, lives of processes, passes. A simulation has a seed instead.

/// 64 fresh random bits.
pub(crate) fn random() -> u64 {
    getrandom::u64()
        .unwrap_or_else(|e| panic!("the kernel gives no randomness, without which no pass is safe: {e}"))
}
