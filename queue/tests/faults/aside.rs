//! What happens beside the promise group: a group that may be cut off, and clocks that are put.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use queue::{BehindMax, Group, Position, QueueError, StartAt, Topic};

use crate::Random;
use crate::promises::Model;

/// Draws from streams of its own, so that the rest of a seed stays what it is.
pub(crate) struct Aside {
    pub(crate) random: Random,
    /// In one seed of four: for the group that is put back and forward.
    resets: Option<Random>,
}

impl Aside {
    pub(crate) fn new(seed: u64) -> Self {
        let random = Random(seed.wrapping_mul(0x2545_f491).wrapping_add(5));
        let resets = (seed % 4 == 1).then(|| Random(seed.wrapping_mul(0x6c07_8965).wrapping_add(7)));
        Self { random, resets }
    }

    pub(crate) async fn act(
        &mut self,
        topic: &Topic,
        late: &mut Option<Group>,
        clock: &AtomicU64,
        model: &mut Model,
    ) -> Result<(), QueueError> {
        if let (Some(random), Some(late)) = (&mut self.resets, late.as_mut())
            && random.below(8) == 0
        {
            reset_late(topic, late, random, model).await?;
        }
        match self.random.below(12) {
            0 if late.is_none() => *late = Some(hold_late(topic, &mut self.random, model).await?),
            1 => *late = None,
            2 | 3 => {
                if let Some(late) = late {
                    let most = 1 + self.random.below(30) as usize;
                    if let Some(end) = pull_late(late, most, model).await? {
                        late.commit(end).await?;
                    }
                }
            }
            4 => tokio::time::advance(Duration::from_millis(self.random.below(700))).await,
            5 => {
                let step = self.random.below(20_000);
                let back = self.random.below(2) == 0;
                let put = |ms: u64| if back { ms.saturating_sub(step).max(1) } else { ms + step };
                let _ = clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |ms| Some(put(ms)));
            }
            _ => {}
        }
        model.latest_ms = model.latest_ms.max(clock.load(Ordering::Relaxed));
        Ok(())
    }
}

pub(crate) async fn hold_late(
    topic: &Topic,
    random: &mut Random,
    model: &mut Model,
) -> Result<Group, QueueError> {
    if topic.groups().await?.iter().all(|group| group != "late") {
        model.late_oldest = topic.read(None, 1).await?.first().map(|message| message.position);
        if model.late_oldest.is_none() {
            // Nothing that was ever written is kept.
            model.late_skipped = topic.end().map_or(0, |end| sequence(&end));
        }
    }
    let mut late = topic.group("late", StartAt::Oldest).await?;
    let age = (random.below(2) == 0).then(|| Duration::from_millis(1 + random.below(500)));
    late.limit_behind(Some(BehindMax { records: Some(1 + random.below(40)), age })).await?;
    Ok(late)
}

/// Puts the group back to what is kept, or forward: then it sees again what is behind that place, or is told, and nothing else.
async fn reset_late(
    topic: &Topic,
    late: &mut Group,
    random: &mut Random,
    model: &mut Model,
) -> Result<(), QueueError> {
    if random.below(2) == 0 {
        late.limit_behind(None).await?;
    }
    let log = topic.read(None, usize::MAX).await?;
    let Some(oldest) = log.first() else { return Ok(()) };
    let some = &log[random.below(log.len() as u64) as usize];
    let (through, last) = match random.below(3) {
        0 => (None, sequence(&oldest.position) - 1),
        _ => (Some(some.position), sequence(&some.position)),
    };
    // It may have happened if it fails.
    model.late_skipped = model.late_skipped.max(last);
    late.reset(through).await?;
    model.late_skipped = last;
    model.late_seen.retain(|position| sequence(position) <= last);
    model.late_cuts.clear();
    Ok(())
}

fn sequence(position: &Position) -> u64 {
    position.to_string().parse().unwrap()
}

/// Everything that is pulled was promised to it, and what is left out was told. The last position pulled.
pub(crate) async fn pull_late(
    late: &mut Group,
    most: usize,
    model: &mut Model,
) -> Result<Option<Position>, QueueError> {
    match late.pull(most, Duration::ZERO).await {
        Ok(messages) => {
            for message in &messages {
                let id = model.check_message(message);
                model.promised.insert(message.position, id);
                model.late_seen.insert(message.position);
            }
            Ok(messages.iter().map(|message| message.position).max())
        }
        Err(QueueError::Cut { records, through, .. }) => {
            model.late_cuts.push((sequence(&through), records));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The group that may be cut off has seen every record that it was not told of.
pub(crate) async fn finish_late(topic: &Topic, model: &mut Model) -> Result<(), QueueError> {
    if !topic.groups().await?.iter().any(|group| group == "late") {
        return Ok(());
    }
    let mut late = topic.group("late", StartAt::Oldest).await?;
    loop {
        let told = model.late_cuts.len();
        match pull_late(&mut late, 1_000, model).await? {
            Some(end) => late.commit(end).await?,
            None if model.late_cuts.len() > told => {}
            None => break,
        }
    }
    let oldest = model.late_oldest;
    for position in model.promised.keys() {
        let sequence = sequence(position);
        let told =
            model.late_cuts.iter().any(|(last, records)| (last - records + 1..=*last).contains(&sequence));
        let seen = model.late_seen.contains(position) || sequence <= model.late_skipped;
        assert!(
            seen || told || Some(*position) < oldest || model.lies,
            "{position} was left out without a word"
        );
    }
    Ok(())
}
