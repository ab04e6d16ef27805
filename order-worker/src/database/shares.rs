//! The shares port: which logs are drained, and how much of the limit each drain may use; and beside it, under the same limit of its own,
//! the same of the processes that close unpaid orders.
//!
//! A share belongs to a log, since a log has one drain at most, the holder of its group. So a process that has got the group
//! knows that its predecessor's drain is dead, and takes over its share at once, however long that would have had its time.
//!
//! Every adapter
//! - MUST carry the beats of all processes out one after the other;
//! - MUST NOT let the recorded shares of logs whose time is not over exceed the whole;
//! - MUST take the time from the database's clock.

use std::collections::BTreeMap;

use stock::Owner;

use super::{Database, DatabaseError, adapter};

/// The whole limit, in millionths.
pub const WHOLE_PPM: u32 = 1_000_000;

/// What shares one limit. Each has the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// From the logs into the database.
    Drain,
    /// Orders that nobody paid. Each process has a share in the name of its life.
    Close,
}

impl Work {
    /// As the row's `work`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Close => "close",
        }
    }
}

/// A process says that its drains live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Whose shares it speaks of.
    pub work: Work,
    /// Of the process; random.
    pub life: u64,
    /// Without another beat its drains are taken for dead after this, and others get their shares.
    pub ttl_ms: u64,
    /// Those that it drains.
    pub logs: Vec<LogBeat>,
}

/// The same of one of its drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBeat {
    /// Which log. Its group MUST be held since before the beat.
    pub log: Owner,
    /// The share that the drain holds itself to as it speaks, in millionths of the limit.
    pub holding_ppm: u32,
    /// The life whose share it takes over. Asked for and answered by name, so that a beat of a dead process that the database carries
    /// out late finds itself outdated.
    pub takes_over: Option<u64>,
}

/// What became of a [`LogBeat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// It is recorded.
    Share(Share),
    /// Nothing is recorded: the log's share is still another life's. The group's holder uses nothing yet and takes it over.
    Held {
        /// Whose.
        by: u64,
    },
}

/// What a drain may use until its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// In millionths of the limit. Where it is less than what the drain holds, the drain goes down to it, *then* beats again: only
    /// that beat frees the rest for others.
    pub ppm: u32,
    /// How many drains share the limit, this one included.
    pub drains: u32,
}

impl Share {
    /// Whether others still hold some of an equal share.
    #[must_use]
    pub fn is_less_than_equal(&self) -> bool {
        self.ppm < WHOLE_PPM / self.drains.max(1)
    }
}

/// What is recorded of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) life: u64,
    pub(super) ppm: u32,
}

/// What is recorded of all logs whose time is not over.
pub(super) type Record = BTreeMap<Owner, Recorded>;

/// What a beat comes to.
pub(super) struct CarriedOut {
    /// In the order asked.
    pub(super) answers: Vec<Renewed>,
    /// To be recorded, all with the beat's own time.
    pub(super) changed: Record,
}

/// Carries a beat out on what is recorded.
pub(super) fn carry_out(beat: &Beat, mut record: Record) -> CarriedOut {
    let held_by = |log: &LogBeat| {
        let by = record.get(&log.log)?.life;
        (by != beat.life && Some(by) != log.takes_over).then_some(by)
    };
    let held: Vec<Option<u64>> = beat.logs.iter().map(held_by).collect();
    // All of them are there before the first is given anything, so that they count each other.
    for (log, _) in beat.logs.iter().zip(&held).filter(|(_, held)| held.is_none()) {
        let before = record.get(&log.log).filter(|before| before.life == beat.life);
        let ppm = before.map_or(log.holding_ppm, |before| before.ppm);
        record.insert(log.log, Recorded { life: beat.life, ppm });
    }
    let drains = u32::try_from(record.len()).unwrap_or(u32::MAX);
    let (mut answers, mut changed) = (Vec::with_capacity(held.len()), Record::new());
    for (log, held) in beat.logs.iter().zip(held) {
        if let Some(by) = held {
            answers.push(Renewed::Held { by });
            continue;
        }
        let others = record.iter().filter(|(other, _)| **other != log.log);
        let others_ppm: u64 = others.map(|(_, recorded)| u64::from(recorded.ppm)).sum();
        let left = u64::from(WHOLE_PPM).saturating_sub(others_ppm);
        // At most the whole, so it fits.
        let ppm = left.min(u64::from(WHOLE_PPM / drains.max(1))) as u32;
        answers.push(Renewed::Share(Share { ppm, drains }));
        // Never less than it holds.
        let recorded = Recorded { life: beat.life, ppm: ppm.max(log.holding_ppm) };
        record.insert(log.log, recorded);
        changed.insert(log.log, recorded);
    }
    CarriedOut { answers, changed }
}

impl Database {
    /// Records that drains live and what each may use; answers in the order asked. May be repeated: whatever a lost answer said, no
    /// more is used than is recorded.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn renew_shares(&self, beat: Beat) -> Result<Vec<Renewed>, DatabaseError> {
        adapter!(self, database => database.renew_shares(beat).await)
    }

    /// Whether somebody drains this log, by the database's clock.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn is_drained(&self, log: Owner) -> Result<bool, DatabaseError> {
        adapter!(self, database => database.is_drained(log).await)
    }

    /// Forgets shares of this life, whose drains have ended; another's stay. Repeats change nothing.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn end_shares(&self, life: u64, logs: Vec<Owner>) -> Result<(), DatabaseError> {
        adapter!(self, database => database.end_shares(life, logs).await)
    }
}
