//! What a process gives the queue instead of letting it take it: time and randomness.

use std::sync::Arc;

/// The injected wall clock: milliseconds since the Unix epoch, never going back.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The injected randomness: 64 fresh bits a call.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;
