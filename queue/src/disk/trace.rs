//! When batches passed their stages, for whoever measures. Measures nothing by itself.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::port::Position;

/// When one batch passed its stages, by tokio's clock: which of them a slow acknowledgement was in.
#[derive(Debug, Clone, Copy)]
pub struct BatchTrace {
    /// Its first record.
    pub first: Position,
    /// How many follow each other from there.
    pub records: u64,
    /// What it takes on the disk.
    pub bytes: u64,
    /// The committer began to gather it.
    pub started: Instant,
    /// Everything that was in the ring is gathered.
    pub gathered_at: Instant,
    /// Its checksum stands; the write begins.
    pub sealed_at: Instant,
    /// Written and synced.
    pub durable_at: Instant,
    /// Published, waiters woken, its room in the ring given back.
    pub released_at: Instant,
}

/// What is called, on the committer's thread, after each batch: it must not block.
#[derive(Clone)]
pub struct Trace(pub Arc<dyn Fn(&BatchTrace) + Send + Sync>);

impl fmt::Debug for Trace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Trace")
    }
}
