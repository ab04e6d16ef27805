//! When segments that all groups are past go: after `keep_drained`, earlier only for want of room. What a group has not finished is
//! never asked here.
//!
//! A segment counts from the time at which the next one was begun, by the log's clock.

use std::sync::atomic::Ordering;

use super::files::Segment;
use super::others::Look;
use super::shared::{OwnTopic, TopicShared};
use super::writer::{has_room, recycle};
use crate::failpoint;

/// Why a drained segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Going {
    /// Its time has come.
    Old,
    /// More is kept than `keep_drained_bytes_max`.
    TooMuch,
    /// The disk has no room for records to come, or for others.
    DiskFull,
}

/// Lets go what has been kept long enough, or is more than may be kept.
pub(crate) fn retire(topic: &TopicShared, own: &OwnTopic) {
    let now_ms = own.keeping.now_ms((topic.now)());
    while let Some(going) = due(topic, own, now_ms) {
        if !retire_oldest(topic, own, going) {
            break;
        }
    }
    own.metrics.kept_bytes.set(drained_bytes(topic, own) as i64);
}

fn due(topic: &TopicShared, own: &OwnTopic, now_ms: u64) -> Option<Going> {
    let kept_bytes = drained_bytes(topic, own);
    let begun_ms = {
        let segments = topic.files.segments.read();
        let second = segments.get(1).filter(|second| is_done_with(own, second))?;
        second.index.first().map_or(0, |entry| entry.written_at_ms)
    };
    if now_ms.saturating_sub(begun_ms) >= own.keeping.keep_ms {
        Some(Going::Old)
    } else if kept_bytes > own.keeping.bytes_max {
        Some(Going::TooMuch)
    } else if !has_room(&topic.files, own.segment_bytes) {
        Some(Going::DiskFull)
    } else {
        None
    }
}

/// Bytes of the segments that all groups are past.
pub(crate) fn drained_bytes(topic: &TopicShared, own: &OwnTopic) -> u64 {
    let segments = topic.files.segments.read();
    let followers = segments.iter().skip(1).take_while(|next| is_done_with(own, next));
    segments.iter().zip(followers).map(|(segment, _)| segment.bytes).sum()
}

/// Takes the oldest segment out of use if all groups are past it: for the next records if they need one, else away.
///
/// A crash on the way leaves it under its old or its new name; either is what an open expects.
pub(crate) fn retire_oldest(topic: &TopicShared, own: &OwnTopic, going: Going) -> bool {
    if topic.groups.lock().is_empty() {
        return false;
    }
    if !topic.files.segments.read().get(1).is_some_and(|second| is_done_with(own, second)) {
        return false;
    }
    // A group that begins or goes back at this moment, in this process or another, holds what it needs first, or waits.
    let births = topic.births();
    let Ok(Some(_births)) = topic.storage().lock(&births) else { return false };
    if topic.storage().is_real() {
        if topic.read_groups(Look::Whole).is_none() {
            return false;
        }
        topic.publish_slowest();
    }
    let oldest = {
        let mut segments = topic.files.segments.write();
        match segments.get(1) {
            Some(second) if is_done_with(own, second) => segments.remove(0),
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
    let Err(error) = result else {
        note_going(topic, own, going);
        return true;
    };
    tracing::warn!(topic = topic.name, %error, segment = %oldest.path.display(), "cannot retire a segment");
    // While it stands under its old name no younger one may go: the next open follows the chain from the oldest file on.
    if topic.storage().exists(&oldest.path).unwrap_or(true) {
        topic.files.segments.write().insert(0, oldest);
    }
    false
}

fn note_going(topic: &TopicShared, own: &OwnTopic, going: Going) {
    let early = going != Going::Old && own.keeping.keep_ms > 0;
    if early {
        own.metrics.kept_cut.inc();
    }
    if own.keeping.goes_early.swap(early, Ordering::Relaxed) == early || !early {
        return;
    }
    let bound = match going {
        Going::DiskFull => "the disk is full",
        _ => "queue.keep_drained_bytes_max is reached",
    };
    tracing::warn!(
        topic = topic.name,
        "drained records go before queue.keep_drained_s is over, since {bound}: after a restore of the database the log \
         may lack what the backup lacks"
    );
}

/// Whether all groups are past everything before this segment.
fn is_done_with(own: &OwnTopic, second: &Segment) -> bool {
    second.first_sequence <= own.slowest.load(Ordering::Relaxed) + 1
}
