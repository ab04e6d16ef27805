//! Cutting off groups that have a bound and are further behind: the owner's side, and the group's, which is told. A group without a
//! bound is never touched.

use super::files::io;
use super::group::DiskGroup;
use super::progress::Change;
use super::rewriting::lost;
use super::shared::{OwnTopic, Standing, TopicShared};
use crate::failpoint;
use crate::port::{BehindMax, Position, QueueError};

/// Of the records that a group may be behind, one in so many goes beyond need, so that it is not cut record by record.
const SPARE: u64 = 8;

/// Cuts off every group that is further behind than it may be. One that cannot be cut now is looked at again in the next round.
pub(crate) fn cut_off(topic: &TopicShared, own: &OwnTopic) {
    let groups: Vec<(String, Standing)> = {
        let groups = topic.groups.lock();
        let limited = groups.iter().filter(|(_, standing)| standing.behind_max.is_some());
        limited.map(|(name, standing)| (name.clone(), *standing)).collect()
    };
    for (name, standing) in groups {
        if let Some(through) = beyond(topic, own, &standing)
            && let Err(error) = cut(topic, own, &name, through)
        {
            tracing::warn!(topic = topic.name, group = name, %error, "cannot cut off a group that is too far behind");
        }
    }
    topic.publish_slowest();
}

/// The last sequence that is further behind than the group may be, if it has not passed it.
fn beyond(topic: &TopicShared, own: &OwnTopic, standing: &Standing) -> Option<u64> {
    let limit = standing.behind_max?;
    let (durable, passed) = (own.watermark.durable(), standing.passed());
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
    // A process that puts the group back at this moment comes first, or waits.
    let births = topic.births();
    let Some(_births) = topic.storage().lock(&births).map_err(io("lock", &births))? else { return Ok(()) };
    let stored = topic.stored(name)?;
    let passed = stored.passed();
    if through <= passed {
        // Of a cut before, whose error came after it was durable, nobody was told.
        topic.note_cut(name, stored.cut);
        return Ok(());
    }
    topic.limit_files(name).set_cut(passed, through)?;
    failpoint::hit("queue.cut");
    topic.note_cut(name, through);
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

impl DiskGroup {
    pub(crate) fn limit_behind(&mut self, limit: Option<BehindMax>) -> Result<(), QueueError> {
        self.topic.limit_files(&self.name).set_limit(limit)?;
        // A cut that was made under a bound that is gone is told all the same.
        self.limited |= limit.is_some();
        if let Some(standing) = self.topic.groups.lock().get_mut(&self.name) {
            standing.behind_max = limit;
        }
        Ok(())
    }

    /// A cut is told first and finished by the next call: a crash in between tells it again.
    pub(super) fn meet_cut(&mut self) -> Result<(), QueueError> {
        if !self.limited {
            return Ok(());
        }
        let through = match &self.topic.own {
            Some(_) => self.topic.groups.lock().get(&self.name).map_or(0, |standing| standing.cut),
            None => self.topic.limit_files(&self.name).cut()?,
        };
        if self.cut_told > self.progress.low() {
            self.keep(vec![Change::Finished { first: 1, last: self.cut_told }])?;
        }
        let low = self.progress.low();
        if through <= low {
            return Ok(());
        }
        self.cut_told = through;
        Err(QueueError::Cut {
            topic: self.topic.name.clone(),
            group: self.name.clone(),
            records: through - low,
            through: Position(through),
        })
    }

    /// The error for a record that the group has not finished and that is not in the log: cut off meanwhile, or damage.
    pub(super) fn missing(&mut self, sequence: u64) -> QueueError {
        self.meet_cut().err().unwrap_or_else(|| lost(&self.topic.files, sequence))
    }
}
