//! Putting a group back to what is kept, or forward: what counts as finished, for the group itself and for retention. One that goes
//! forward leaves word of what it skips. Keeps nothing from going.

use super::group::DiskGroup;
use super::progress::Change;
use crate::port::{Position, QueueError};

impl DiskGroup {
    pub(crate) fn reset(&mut self, through: Option<Position>) -> Result<(), QueueError> {
        let low = through.map_or(0, |position| position.0);
        if low > self.topic.durable() {
            return Err(QueueError::OutOfRange(Position(low)));
        }
        // What the group goes back to must not be retired before the slots hold it.
        let _births = self.topic.wait_for_births()?;
        self.topic.files.refresh()?;
        let oldest = self.topic.files.oldest().map_or(0, |oldest| oldest - 1);
        if through.is_some() && low < oldest {
            // It may have gone since the caller looked: less than what was asked for would be a loss without a word.
            return Err(QueueError::NotKept { oldest_ms: self.topic.files.oldest_ms() });
        }
        let (was, low) = (self.progress.low(), low.max(oldest));
        let limits = self.topic.limit_files(&self.name);
        if low > was {
            // Before the offset moves. A crash in between leaves word of records that the group still gets: who asks for what it skipped
            // asks for nothing less than that.
            limits.add_skipped((was, low))?;
        }
        // Of what is told to retention below, nothing of before counts.
        let dropped = std::mem::take(&mut self.dropped);
        if let Err(error) = self.keep(vec![Change::Reset { low }]) {
            self.dropped = dropped;
            return Err(error);
        }
        self.rewriting.forget();
        self.reader.seek(self.progress.looked() + 1);
        self.cut_told = 0;
        // Retention goes by the cut no more before its file goes: what went by it afterwards, no file would account for.
        if let Some(standing) = self.topic.groups.lock().get_mut(&self.name) {
            standing.cut = 0;
        }
        self.topic.note_group(&self.name, &self.progress);
        // A crash before this, or an error, leaves a cut that lies ahead again: the next holder is told of it.
        self.topic.limit_files(&self.name).forget_cut()?;
        // The same leaves word of records as skipped that it gets again.
        self.topic.limit_files(&self.name).forget_skipped_above(low)
    }
}
