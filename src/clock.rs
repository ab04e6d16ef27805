//! The process's wall clock: never going back, whatever the system's clock does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch. After a step back it stands still until the system's clock has caught up.
pub(crate) fn system() -> Arc<dyn Fn() -> u64 + Send + Sync> {
    let latest = AtomicU64::new(0);
    Arc::new(move || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // Relaxed: the value itself is all that is shared.
        latest.fetch_max(now, Ordering::Relaxed).max(now)
    })
}
