//! Topics, appends, groups, delayed messages, dead letters. Knows bytes, never what they mean.

pub mod failpoint;

use std::sync::Arc;

/// The injected wall clock: milliseconds since the Unix epoch, never going back.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;
