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
        if beyond(topic, own, &standing).is_some()
            && let Err(error) = cut(topic, own, &name)
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

/// Cuts by what the group's files say while nobody can lift its bound or put it back: what this process knew of them may be older.
///
/// The cut is durable before anything goes for which the group would still be asked. A crash before it leaves the group as it was; one
/// behind it leaves a cut that the next open finds.
fn cut(topic: &TopicShared, own: &OwnTopic, name: &str) -> Result<(), QueueError> {
    // A process that puts the group back or changes its bound at this moment comes first, or waits.
    let births = topic.births();
    let Some(_births) = topic.storage().lock(&births).map_err(io("lock", &births))? else { return Ok(()) };
    let stored = topic.stored(name)?;
    // Of a cut before, whose error came after its file was written, nobody was told: it is made durable with this one, or alone.
    let through = beyond(topic, own, &stored).unwrap_or(0).max(stored.cut);
    let known = topic.groups.lock().get(name).map_or(0, |standing| standing.cut);
    let passed = stored.low.max(known);
    if through <= passed {
        return Ok(());
    }
    let limits = topic.limit_files(name);
    limits.set_cut(passed, through)?;
    if failpoint::hit("queue.cut") {
        return Err(limits.failed());
    }
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
        // A cut that was made under a bound that is gone is told all the same, and so is one under a bound whose error came late.
        self.limited |= limit.is_some();
        // The owner must not cut by a bound that is lifted.
        let _births = self.topic.wait_for_births()?;
        self.topic.limit_files(&self.name).set_limit(limit)?;
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

#[cfg(test)]
mod tests {
    use crate::disk::group::tests::{World, append};
    use crate::port::StartAt;

    use super::*;

    /// The owner has seen that the group is too far behind; before it has cut, the bound is lifted.
    #[test]
    fn a_bound_that_is_lifted_in_time_cuts_nobody() {
        World::default().live(async |topic| {
            let mut late = topic.group("late", StartAt::Oldest).unwrap();
            append(&topic, 10, [None; 20]).await;
            late.limit_behind(Some(BehindMax { records: Some(5), age: None })).unwrap();
            let (shared, own) = (&topic.shared, topic.shared.own.as_ref().unwrap());
            assert!(beyond(shared, own, &shared.standing("late").unwrap()).is_some());
            late.limit_behind(None).unwrap();
            cut(shared, own, "late").unwrap();
            assert_eq!(shared.stored("late").unwrap().cut, 0);
            late.meet_cut().unwrap();
        });
    }
}
