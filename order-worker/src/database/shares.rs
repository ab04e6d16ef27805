//! The shares port: which workers drain, and how much of the limit each may use.
//!
//! Every adapter
//! - MUST carry the beats of all workers out one after the other;
//! - MUST NOT let the recorded shares of workers whose time is not over exceed the whole;
//! - MUST take the time from the database's clock.

use super::{Database, DatabaseError, adapter};

/// The whole limit, in millionths.
pub const WHOLE_PPM: u32 = 1_000_000;

/// A worker says that it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Random, anew with each life of the process.
    pub worker: u64,
    /// The share that it holds itself to as it speaks, in millionths of the limit.
    pub holding_ppm: u32,
    /// Without another beat it is taken for dead after this, and others get its share.
    pub ttl_ms: u64,
}

/// What a worker may use until its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// In millionths of the limit. Where it is less than what the worker holds, the worker goes down to it, *then* beats again: only
    /// that beat frees the rest for others.
    pub ppm: u32,
    /// How many share the limit, this one included.
    pub workers: u32,
}

impl Share {
    /// Whether others still hold some of an equal share.
    #[must_use]
    pub fn is_less_than_equal(&self) -> bool {
        self.ppm < WHOLE_PPM / self.workers.max(1)
    }

    /// Of one worker among `workers`, while the others hold `others_ppm`.
    pub(super) fn of_one(workers: u32, others_ppm: u64) -> Self {
        let left = u64::from(WHOLE_PPM).saturating_sub(others_ppm);
        let equal = u64::from(WHOLE_PPM / workers.max(1));
        // At most the whole, so it fits.
        Self { ppm: left.min(equal) as u32, workers }
    }

    /// What is recorded for the worker: never less than it holds.
    pub(super) fn recorded_ppm(self, beat: Beat) -> u32 {
        self.ppm.max(beat.holding_ppm)
    }
}

impl Database {
    /// Records that a worker lives and what it may use. May be repeated: whatever a lost answer said, no more is used than is
    /// recorded.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn renew_share(&self, beat: Beat) -> Result<Share, DatabaseError> {
        adapter!(self, database => database.renew_share(beat).await)
    }

    /// Forgets a worker that drains nothing any more. Repeats change nothing.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn end_share(&self, worker: u64) -> Result<(), DatabaseError> {
        adapter!(self, database => database.end_share(worker).await)
    }
}
