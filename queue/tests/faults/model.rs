//! What must be true of a log and its groups, whatever happened to the process and the disk.

use std::collections::{BTreeMap, BTreeSet};

use queue::{Message, Position};

/// What must be true of the log and the group, whatever happened.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) next_payload: u64,
    pub(crate) attempted: BTreeMap<u64, Option<u64>>,
    /// Position to payload of everything acknowledged to the appender or shown to a reader.
    pub(crate) promised: BTreeMap<Position, u64>,
    pub(crate) finished: BTreeSet<Position>,
    pub(crate) perhaps_finished: BTreeSet<Position>,
    pub(crate) delivered: BTreeSet<Position>,
    /// Given to the dead letters and not delivered since.
    pub(crate) dead: BTreeSet<Position>,
    /// What a group that may be cut off has seen, and what it was told that it will not see: the last position, and how many.
    pub(crate) late_seen: BTreeSet<Position>,
    pub(crate) late_cuts: Vec<(u64, u64)>,
    /// The oldest record when it was made.
    pub(crate) late_oldest: Option<Position>,
    /// The latest time that the wall clock has ever shown.
    pub(crate) latest_ms: u64,
    pub(crate) keep_drained_ms: u64,
    pub(crate) keep_drained_bytes_max: u64,
    pub(crate) lies: bool,
}

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 32)) % bound
    }
}

impl Model {
    pub(crate) fn payload(&mut self, random: &mut Random, now: u64) -> (u64, Vec<u8>, Option<u64>) {
        let id = self.next_payload;
        self.next_payload += 1;
        let mut payload = id.to_le_bytes().to_vec();
        let length = if random.below(8) == 0 { random.below(6000) } else { random.below(300) };
        payload.resize(8 + length as usize, id as u8);
        let deliver_at = (random.below(6) == 0).then(|| now + random.below(60));
        self.attempted.insert(id, deliver_at);
        (id, payload, deliver_at)
    }

    pub(crate) fn check_message(&self, message: &Message) -> u64 {
        let id = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
        assert!(message.payload[8..].iter().all(|byte| *byte == id as u8), "garbage in {}", message.position);
        let deliver_at = self.attempted.get(&id).expect("a record that nobody appended");
        assert_eq!(*deliver_at, message.deliver_at_ms, "of {}", message.position);
        id
    }

    /// The log as it reads now: everything promised is in it, nothing twice, nothing strange, in order.
    pub(crate) fn check_log(&mut self, log: &[Message]) {
        let mut seen = BTreeSet::new();
        let mut last = None;
        let mut positions = BTreeMap::new();
        for message in log {
            let id = self.check_message(message);
            assert!(seen.insert(id), "record {id} twice");
            assert!(last < Some(message.position), "positions rise");
            last = Some(message.position);
            positions.insert(message.position, id);
        }
        let oldest = log.first().map(|message| message.position);
        for (position, id) in &self.promised {
            let retired = oldest.is_none_or(|oldest| *position < oldest);
            match positions.get(position) {
                Some(found) => assert_eq!(found, id, "at {position}"),
                None if retired
                    && (self.finished.contains(position) || self.perhaps_finished.contains(position)) => {}
                None => {
                    let tail = last.is_none_or(|last| *position > last);
                    assert!(self.lies && tail, "promised {position} is lost");
                }
            }
        }
        if self.lies {
            self.promised.retain(|position, _| Some(*position) <= last);
            self.finished.retain(|position| Some(*position) <= last);
        }
        self.promised.extend(positions);
    }
}
