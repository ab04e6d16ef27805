//! Upkeep of the logs that this process owns: segments zeroed ahead, finished ones used again, other processes' groups, files that
//! somebody took away.

use std::sync::atomic::Ordering;

use super::files::Segment;
use super::offsets;
use super::shared::{OwnTopic, Standing, TopicShared};
use super::writer::{prepare, promised_bytes, recycle};
use crate::failpoint;
use crate::storage::BLOCK_BYTES;

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
    notice_removal(topic, own);
    while retire_oldest(topic, own) {}
    while !own.closed.load(Ordering::Acquire)
        && own.wants_segment(own.room_bytes.load(Ordering::Relaxed))
        && own.prepared.lock().ready.len() < own.ready_segments_max
    {
        if !make_segment(topic) {
            break;
        }
    }
}

/// Ends permits while the log's newest segment is not where it was made: what is appended then would be gone with this process.
/// What was appended before can still be read here, and so be finished.
fn notice_removal(topic: &TopicShared, own: &OwnTopic) {
    let newest = {
        let segments = topic.files.segments.read();
        segments.last().map(|segment| (segment.file.clone(), segment.path.clone()))
    };
    let Some((file, path)) = newest else { return };
    let is_gone = !file.is_at(&path);
    if own.gone.swap(is_gone, Ordering::Relaxed) == is_gone {
        return;
    }
    let (topic, file) = (&topic.name, path.display());
    if is_gone {
        tracing::error!(topic, %file, "the log was moved, removed or exchanged under a running process, which takes no more records: \
            put it back, or stop the process once its groups have finished everything");
    } else {
        tracing::info!(topic, %file, "the log is back");
    }
}

/// Zeroes one more segment; `false` if the disk does not let us.
///
/// On a full disk without any segment ready a smaller one is tried: a log whose disk holds only the segment that is being
/// written could otherwise never leave and reuse it, however far its groups are.
pub(crate) fn make_segment(topic: &TopicShared) -> bool {
    let Some(own) = &topic.own else { return false };
    let smallest = (2 * own.frame_bytes_max + 4 * BLOCK_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64);
    let mut bytes = own.segment_bytes;
    loop {
        let number = own.take_number();
        let error = match prepare(&topic.files, number, bytes, topic.method) {
            Ok(()) => {
                own.metrics.segments_made.inc();
                own.add_ready(number, bytes);
                own.disk_full.store(bytes < own.segment_bytes, Ordering::Relaxed);
                return true;
            }
            Err(error) => error,
        };
        let last_resort = own.prepared.lock().ready.is_empty();
        bytes = (bytes / 4).next_multiple_of(BLOCK_BYTES as u64);
        if error.kind() == std::io::ErrorKind::StorageFull && last_resort && bytes >= smallest {
            continue;
        }
        if !own.disk_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(topic = topic.name, %error, "cannot make a segment; permits end when the last is used");
        }
        return false;
    }
}

/// Takes the oldest segment out of use if all groups are past it: for the next records if they need one, else away.
///
/// A crash on the way leaves it under its old or its new name; either is what an open expects.
fn retire_oldest(topic: &TopicShared, own: &OwnTopic) -> bool {
    if topic.groups.lock().is_empty() {
        return false;
    }
    if !topic.files.segments.read().get(1).is_some_and(|second| own.is_done_with(second)) {
        return false;
    }
    // A group that begins at this moment, in this process or another, begins behind what goes: it comes first or waits.
    let births = topic.births();
    let Ok(Some(_births)) = topic.storage().lock(&births) else { return false };
    if topic.storage().is_real() {
        read_groups(topic);
        topic.publish_slowest();
    }
    let oldest = {
        let mut segments = topic.files.segments.write();
        match segments.get(1) {
            Some(second) if own.is_done_with(second) => segments.remove(0),
            _ => return false,
        }
    };
    failpoint::hit("queue.retire");
    // Kept even when there is room enough for now: to zero another one later would cost as much writing as the log does.
    let ready = own.prepared.lock().ready.len();
    let wanted = ready < own.ready_segments_max && oldest.bytes == own.segment_bytes;
    let result = if wanted {
        let number = own.take_number();
        recycle(&topic.files, oldest.number, number).map(|()| {
            own.metrics.segments_recycled.inc();
            own.add_ready(number, oldest.bytes);
        })
    } else {
        // Synced, since only then its blocks are free for another segment.
        let removed = topic.storage().remove(&oldest.path);
        removed.and_then(|()| topic.storage().sync_directory(&topic.files.directory))
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
    for name in names {
        if topic.groups.lock().get(&name).is_some_and(|known| known.held) {
            continue;
        }
        // What is being written at this moment is read again next time.
        let loaded = offsets::load(topic.storage(), &topic.group_directory(&name), topic.files.log_id);
        let Ok(progress) = loaded else { continue };
        let mut groups = topic.groups.lock();
        // Whoever has begun to hold it meanwhile knows better.
        if groups.get(&name).is_none_or(|known| !known.held) {
            groups.insert(name, Standing::of(&progress, false));
        }
    }
}

impl OwnTopic {
    fn take_number(&self) -> u64 {
        let mut prepared = self.prepared.lock();
        prepared.next_number += 1;
        prepared.next_number - 1
    }

    /// Whether all groups are past everything before this segment.
    fn is_done_with(&self, second: &Segment) -> bool {
        second.first_sequence <= self.slowest.load(Ordering::Relaxed) + 1
    }

    /// Numbers are entered in rising order, so that the chain can be followed by them.
    fn add_ready(&self, number: u64, bytes: u64) {
        {
            let mut prepared = self.prepared.lock();
            let at = prepared.ready.partition_point(|(other, _)| *other < number);
            prepared.ready.insert(at, (number, bytes));
        }
        let promised = promised_bytes(bytes, self.frame_bytes_max);
        self.room_bytes.fetch_add(promised as i64, Ordering::Relaxed);
    }
}
