//! Upkeep of the logs that this process owns: segments zeroed ahead, finished ones used again, other processes' groups.

use std::sync::atomic::Ordering;

use super::offsets;
use super::topic::{OwnTopic, TopicShared};
use super::writer::{prepare, promised_bytes, recycle};
use crate::failpoint;

/// Segments ready beyond what the permits given so far need.
const READY_SEGMENTS_MAX: usize = 4;

/// One round for one topic: cheap when there is nothing to do.
pub(crate) fn round(topic: &TopicShared) {
    let Some(own) = &topic.own else { return };
    if own.has_ended.load(Ordering::Acquire) {
        return;
    }
    if topic.storage().is_real() {
        read_groups(topic);
    }
    topic.publish_slowest();
    while retire_oldest(topic, own) {}
    while !own.closed.load(Ordering::Acquire)
        && own.wants_segment(own.room_bytes.load(Ordering::Relaxed))
        && own.prepared.lock().ready.len() < READY_SEGMENTS_MAX
    {
        if !make_segment(topic) {
            break;
        }
    }
}

/// Zeroes one more segment; `false` if the disk does not let us.
pub(crate) fn make_segment(topic: &TopicShared) -> bool {
    let Some(own) = &topic.own else { return false };
    let number = own.take_number();
    match prepare(&topic.files, number, own.segment_bytes, topic.method) {
        Ok(()) => {
            own.metrics.segments_made.inc();
            own.add_ready(number);
            own.disk_full.store(false, Ordering::Relaxed);
            true
        }
        Err(error) => {
            if !own.disk_full.swap(true, Ordering::Relaxed) {
                tracing::warn!(topic = topic.name, %error, "cannot make a segment; permits end when the last is used");
            }
            false
        }
    }
}

/// Takes the oldest segment out of use if all groups are past it: for the next records if they need one, else away.
///
/// A crash on the way leaves it under its old or its new name; either is what an open expects.
fn retire_oldest(topic: &TopicShared, own: &OwnTopic) -> bool {
    if topic.groups.lock().is_empty() {
        return false;
    }
    let slowest = own.slowest.load(Ordering::Relaxed);
    let oldest = {
        let mut segments = topic.files.segments.write();
        match segments.get(1) {
            Some(second) if second.first_sequence <= slowest + 1 => segments.remove(0),
            _ => return false,
        }
    };
    failpoint::hit("queue.retire");
    let wanted =
        own.wants_segment(own.room_bytes.load(Ordering::Relaxed)) && oldest.bytes == own.segment_bytes;
    let result = if wanted {
        let number = own.take_number();
        recycle(&topic.files, oldest.number, number).map(|()| {
            own.metrics.segments_recycled.inc();
            own.add_ready(number);
        })
    } else {
        topic.storage().remove(&oldest.path)
    };
    let Err(error) = result else { return true };
    tracing::warn!(topic = topic.name, %error, segment = %oldest.path.display(), "cannot retire a segment");
    // While it stands under its old name no younger one may go: the next open follows the chain from the oldest file on.
    if topic.storage().exists(&oldest.path).unwrap_or(true) {
        topic.files.segments.write().insert(0, oldest);
    }
    false
}

/// Learns how far groups are that other processes hold.
fn read_groups(topic: &TopicShared) {
    let Ok(names) = topic.group_names() else { return };
    let mut lows = Vec::with_capacity(names.len());
    for name in names {
        // A slot that is being written at this moment is read again next time.
        if let Ok((progress, _, _)) =
            offsets::load(topic.storage(), &topic.group_directory(&name), topic.files.log_id)
        {
            lows.push((name, progress.finished.low()));
        }
    }
    let mut groups = topic.groups.lock();
    for (name, low) in lows {
        groups.insert(name, low);
    }
}

impl OwnTopic {
    fn take_number(&self) -> u64 {
        let mut prepared = self.prepared.lock();
        prepared.next_number += 1;
        prepared.next_number - 1
    }

    /// Numbers are entered in rising order, so that the chain can be followed by them.
    fn add_ready(&self, number: u64) {
        let at = {
            let mut prepared = self.prepared.lock();
            let at = prepared.ready.partition_point(|(other, _)| *other < number);
            prepared.ready.insert(at, (number, self.segment_bytes));
            at
        };
        debug_assert!(at < READY_SEGMENTS_MAX * 2, "segments are only made when wanted");
        let promised = promised_bytes(self.segment_bytes, self.frame_bytes_max);
        self.room_bytes.fetch_add(promised as i64, Ordering::Relaxed);
    }
}
