//! Upkeep of the logs that this process owns: segments zeroed ahead, other processes' groups, files that somebody took away; what is
//! drained goes by `retention`, groups too far behind by `cut`.

use std::sync::atomic::Ordering;

use super::cut::cut_off;
use super::others::Look;
use super::retention::{Going, drained_bytes, retire, retire_oldest};
use super::shared::{OwnTopic, TopicShared};
use super::writer::prepare;
use crate::storage::BLOCK_BYTES;

/// One round for one topic: cheap when there is nothing to do.
pub(crate) fn round(topic: &TopicShared) {
    let Some(own) = &topic.own else { return };
    if own.has_ended.load(Ordering::Acquire) {
        return;
    }
    if topic.storage().is_real() {
        let _ = topic.read_groups(Look::Quick);
    }
    topic.publish_slowest();
    notice_removal(topic, own);
    cut_off(topic, own);
    retire(topic, own);
    while !own.closed.load(Ordering::Acquire)
        && own.wants_segment(own.room_bytes.load(Ordering::Relaxed))
        && own.prepared.lock().ready.len() < own.ready_segments_max
    {
        // What is kept though it is drained refuses nobody a permit.
        if !make_segment(topic) && !retire_oldest(topic, own, Going::DiskFull) {
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
        if drained_bytes(topic, own) > 0 {
            return false;
        }
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
