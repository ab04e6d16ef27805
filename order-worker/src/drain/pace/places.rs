//! The places of the drains of one process: which log each drains, its share of the limit, and how far it has come. Decides
//! nothing: the pace adds the shares up, and the reconciler asks how far.

use std::collections::BTreeMap;
use std::sync::Arc;

use stock::Owner;
use tokio::time::Instant;

use super::Pace;

/// How far a drain has come in its log, by the ledger's time of the reservations in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Records wait. The last one that became a row was reserved then (0: none yet), and those before it a little earlier or
    /// later, since a log is not in the order of its reservations.
    Through {
        /// Ledger time, milliseconds since the Unix epoch.
        reserved_at_ms: u64,
    },
    /// When it last looked nothing waited.
    Everything,
}

/// A drain's place. Leaves when dropped, and its share with it: to be dropped before the log's group is.
pub struct Drain {
    pace: Arc<Pace>,
    log: Owner,
}

impl Drain {
    pub(super) fn new(pace: Arc<Pace>, log: Owner) -> Self {
        Self { pace, log }
    }

    /// Nothing waits in the log.
    pub fn has_settled_everything(&self) {
        self.pace.moved(self.log, Reach::Everything);
    }

    /// Records wait; what came before them is settled up to this reservation.
    pub fn has_settled_through(&self, reserved_at_ms: u64) {
        self.pace.moved(self.log, Reach::Through { reserved_at_ms });
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.pace.leave(self.log);
    }
}

/// All places of a process.
#[derive(Debug)]
pub(super) struct Places {
    /// Whether others share the limit: then a drain without a share has nothing.
    pub(super) is_shared: bool,
    pub(super) of_logs: BTreeMap<Owner, Place>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) share_ppm: u32,
    /// When the share is over, unless it is renewed.
    valid_until: Instant,
    pub(super) reach: Reach,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { is_shared: false, of_logs: BTreeMap::new() }
    }

    pub(super) fn enter(&mut self, log: Owner) {
        let nothing_yet = Reach::Through { reserved_at_ms: 0 };
        self.of_logs.insert(log, Place { share_ppm: 0, valid_until: Instant::now(), reach: nothing_yet });
    }

    /// A log that has no drain any more gets nothing, whatever the database said meanwhile.
    pub(super) fn set_share(&mut self, log: Owner, ppm: u32, until: Instant) {
        if let Some(place) = self.of_logs.get_mut(&log) {
            (place.share_ppm, place.valid_until) = (ppm, until);
        }
    }

    /// Of all logs together.
    pub(super) fn sum_ppm(&self, whole_ppm: u32) -> u32 {
        if !self.is_shared {
            return whole_ppm;
        }
        self.of_logs.values().map(|place| place.share_ppm).fold(0, u32::saturating_add)
    }

    /// Whether all shares are in force: they are renewed together.
    pub(super) fn are_valid(&self) -> bool {
        let now = Instant::now();
        let in_force = |place: &Place| place.share_ppm == 0 || now < place.valid_until;
        !self.is_shared || self.of_logs.values().all(in_force)
    }
}
