//! How a group stood when it was last looked at, for those who may not wait for an engine: a scrape of metrics, the answer to a buyer.
//! Asks nothing by itself: its owner refreshes it, or lets [`GroupWatch::follow`] do so.

use std::convert::Infallible;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::handles::Topic;
use crate::port::{Lag, Position, QueueError};

/// How often [`GroupWatch::follow`] looks.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// A lag older than this is no answer any more.
const LAG_AGE_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct GroupWatch {
    topic: Topic,
    group: Box<str>,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    committed: Option<Position>,
    lag: Lag,
    at: Instant,
}

/// What a group has finished between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movement {
    /// Records.
    pub records: u64,
    /// The time between the looks.
    pub within: Duration,
}

impl GroupWatch {
    /// Has seen nothing yet.
    #[must_use]
    pub fn new(topic: Topic, group: &str) -> Self {
        Self { topic, group: group.into(), seen: Mutex::default() }
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Asks the engine. The movement since the last look; none after the first one, and none that went backwards.
    ///
    /// # Errors
    /// As [`Topic::lag`]; nothing is known of the group then.
    pub async fn refresh(&self) -> Result<Option<Movement>, QueueError> {
        let asked =
            async { Ok((self.topic.committed(&self.group).await?, self.topic.lag(&self.group).await?)) };
        let (committed, lag) = asked.await.inspect_err(|_| *self.seen.lock() = None)?;
        let now = Instant::now();
        let before = self.seen.lock().replace(Seen { committed, lag, at: now });
        Ok(before.zip(committed).map(|(before, committed)| Movement {
            records: self.topic.records_between(before.committed, committed),
            within: now - before.at,
        }))
    }

    /// Refreshes every second; never ends.
    pub async fn follow(&self) -> Infallible {
        loop {
            // What is wrong with the log its consumer says; here it shows as nothing known.
            let _ = self.refresh().await;
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    }

    /// How far the group was behind at the last look; `None` if that is 5 s ago, or nothing is known.
    pub fn lag(&self) -> Option<Lag> {
        self.seen.lock().filter(|seen| seen.at.elapsed() < LAG_AGE_MAX).map(|seen| seen.lag)
    }

    /// The position through which the group had finished everything at the last look; `None` also where nothing is known.
    pub fn committed(&self) -> Option<Position> {
        (*self.seen.lock())?.committed
    }

    /// How many records before the one at `position` the group had not finished at the last look; `None` where nothing is known.
    pub fn ahead_of(&self, position: Position) -> Option<u64> {
        let seen = (*self.seen.lock())?;
        Some(self.topic.records_between(seen.committed, position).saturating_sub(1))
    }
}
