//! Cutting off groups that have a bound and are further behind: the owner's side. A group without a bound is never touched.

use super::files::io;
use super::shared::{GroupMark, OwnTopic, TopicShared};
use crate::failpoint;
use crate::port::QueueError;

/// Of the records that a group may be behind, one in so many goes beyond need, so that it is not cut record by record.
const SPARE: u64 = 8;

/// Cuts off every group that is further behind than it may be. One that cannot be cut now is looked at again in the next round.
pub(crate) fn cut_off(topic: &TopicShared, own: &OwnTopic) {
    let groups: Vec<(String, GroupMark)> = {
        let groups = topic.groups.lock();
        let limited = groups.iter().filter(|(_, mark)| mark.behind_max.is_some());
        limited.map(|(name, mark)| (name.clone(), *mark)).collect()
    };
    for (name, mark) in groups {
        if let Some(through) = beyond(topic, own, &mark)
            && let Err(error) = cut(topic, own, &name, through)
        {
            tracing::warn!(topic = topic.name, group = name, %error, "cannot cut off a group that is too far behind");
        }
    }
    topic.publish_slowest();
}

/// The last sequence that is further behind than the group may be, if it has not passed it.
fn beyond(topic: &TopicShared, own: &OwnTopic, mark: &GroupMark) -> Option<u64> {
    let limit = mark.behind_max?;
    let (durable, passed) = (own.watermark.durable(), mark.passed());
    let by_records = limit.records.filter(|records| durable.saturating_sub(passed) > *records);
    let by_records = by_records.map(|records| durable - (records - records / SPARE));
    let by_age = limit.age.and_then(|age| {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let before_ms = own.keeping.now_ms((topic.now)()).checked_sub(age_ms)?;
        // By the index alone: a few records too many stay.
        let segments = topic.files.segments.read();
        let entries = segments.iter().flat_map(|segment| &segment.index);
        let old = entries.take_while(|entry| entry.written_at_ms < before_ms);
        old.last().map(|entry| entry.sequence.saturating_sub(1).min(durable))
    });
    by_records.max(by_age).filter(|through| *through > passed)
}

/// The cut is durable before anything goes for which the group would still be asked. A crash before it leaves the group as it was; one
/// behind it leaves a cut that the next open finds.
fn cut(topic: &TopicShared, own: &OwnTopic, name: &str, through: u64) -> Result<(), QueueError> {
    // Whoever puts the group back at this moment comes first, or waits.
    let births = topic.births();
    let Some(_births) = topic.storage().lock(&births).map_err(io("lock", &births))? else { return Ok(()) };
    let passed = topic.progress(name)?.finished.low();
    if through <= passed {
        return Ok(());
    }
    topic.limit_files(name).set_cut(passed, through)?;
    failpoint::hit("queue.cut");
    if let Some(mark) = topic.groups.lock().get_mut(name) {
        mark.cut = through;
    }
    let records = through - passed;
    own.metrics.cut_records(name).inc_by(records);
    tracing::error!(
        topic = topic.name,
        group = name,
        records,
        through,
        "a group was further behind than it may be and is cut off: it will never see these records"
    );
    Ok(())
}
