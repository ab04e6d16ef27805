//! Equal shares of the limit among the drains of all workers: each worker says every second that its drains live, and hears what
//! each may use.
//!
//! The heart of it is in [`crate::database::shares`]. At every moment the shares in use add up to the whole at most. A drain that is to use less goes down first and says so
//! afterwards; one that is to use more waits until the database says that it may. A drain that dies keeps its share until its time
//! is over, by the database's clock, or until another process has got its log's group, which proves its death: that one takes the share over.
//! By its own clock, counted from before it spoke, a drain's time is over no later.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use stock::Owner;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::pace::Pace;
use crate::database::{Beat, Database, DatabaseError, LogBeat, Renewed, Work};

/// Between two beats …
const INTERVAL: Duration = Duration::from_secs(1);
/// … and while others still hold what is ours.
const INTERVAL_SHORT: Duration = Duration::from_millis(200);
/// How long a drain of which nothing is said keeps its share.
const TTL: Duration = Duration::from_secs(5);
/// Longest wait for the database's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Beats of one round: one that says to go down or to take over is followed by another.
const BEATS_MAX: usize = 3;

/// Runs `drains` at their shares until they end, and gives those back.
pub async fn within<T>(
    drains: impl Future<Output = T>,
    (database, pace, life): (Database, Arc<Pace>, u64),
    shutdown: watch::Receiver<bool>,
) -> T {
    let sharing = run(database, pace, (Work::Drain, life), shutdown);
    let mut drains = std::pin::pin!(drains);
    tokio::select! {
        biased;
        ended = &mut drains => ended,
        // They end their batches.
        () = sharing => drains.await,
    }
}

/// Keeps the drains of `pace` at their shares until `shutdown`; from the call on each has none until the database's first answer.
/// `life` is random.
pub fn run(
    database: Database,
    pace: Arc<Pace>,
    (work, life): (Work, u64),
    mut shutdown: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send {
    pace.share();
    let mut sharing =
        Sharing { database, pace, work, life, recorded: BTreeSet::new(), copies: BTreeSet::new() };
    async move {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => {}
            () = sharing.keep() => {}
        }
        sharing.give_up(&BTreeSet::new()).await;
    }
}

struct Sharing {
    database: Database,
    pace: Arc<Pace>,
    work: Work,
    life: u64,
    /// Logs with a share of ours.
    recorded: BTreeSet<Owner>,
    /// Logs whose group another process holds as well: copies of one directory, which have its id.
    copies: BTreeSet<Owner>,
}

impl Sharing {
    async fn keep(&mut self) {
        let mut logs = self.pace.logs();
        let mut reachable = true;
        loop {
            let drained = logs.borrow_and_update().clone();
            self.give_up(&drained).await;
            let interval = match self.round(&drained).await {
                Ok(is_less) => {
                    if !std::mem::replace(&mut reachable, true) {
                        tracing::info!(work = self.work.as_str(), "a share of the limit again");
                    }
                    if is_less { INTERVAL_SHORT } else { INTERVAL }
                }
                Err(error) => {
                    if std::mem::replace(&mut reachable, false) {
                        let work = self.work.as_str();
                        tracing::warn!(%error, work, "the share of the limit cannot be renewed");
                    }
                    INTERVAL_SHORT
                }
            };
            // A closed channel is impossible: the pace is ours.
            let _ = timeout(interval, logs.changed()).await;
        }
    }

    /// Answers whether others still hold what is ours.
    async fn round(&mut self, drained: &BTreeSet<Owner>) -> Result<bool, DatabaseError> {
        let mut is_less = false;
        let mut beats: Vec<LogBeat> = drained.iter().map(|log| self.beat(*log, None)).collect();
        for _ in 0..BEATS_MAX {
            if beats.is_empty() {
                return Ok(is_less);
            }
            let spoken_at = Instant::now();
            let ttl_ms = u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX);
            let logs = beats.iter().map(|beat| LogBeat { log: self.name(beat.log), ..*beat }).collect();
            self.recorded.extend(beats.iter().map(|beat| beat.log));
            let beat = Beat { work: self.work, life: self.life, ttl_ms, logs };
            let answer = timeout(ANSWER_MAX, self.database.renew_shares(beat)).await;
            let renewed = answer.map_err(|_| DatabaseError::Unavailable("no answer in time".into()))??;
            let mut again = Vec::new();
            for (LogBeat { log, holding_ppm, .. }, renewed) in beats.into_iter().zip(renewed) {
                match renewed {
                    Renewed::Share(share) => {
                        self.pace.set_share(log, share.ppm, spoken_at + TTL);
                        is_less |= share.is_less_than_equal();
                        if share.ppm < holding_ppm {
                            again.push(self.beat(log, None));
                        }
                    }
                    Renewed::Held { by } => {
                        self.pace.set_share(log, 0, spoken_at);
                        // Nobody takes over from a drain that lives and holds the group.
                        if holding_ppm > 0 && self.copies.insert(log) {
                            tracing::warn!(%log, "another process drains a log with this id, too: is one a copy of the other?");
                        }
                        // Looked at only now: who has lost the group meanwhile has nothing to take over, and the name of the dead
                        // life was read while it was held.
                        if self.pace.reach(log).is_some() {
                            again.push(self.beat(log, Some(by)));
                        }
                    }
                }
            }
            beats = again;
        }
        Ok(true)
    }

    fn beat(&self, log: Owner, takes_over: Option<u64>) -> LogBeat {
        LogBeat { log, holding_ppm: self.pace.share_ppm_of(log), takes_over }
    }

    /// As what the log's share is recorded: as the log's own, but for a copy's.
    fn name(&self, log: Owner) -> Owner {
        if self.copies.contains(&log) { Owner(log.0 ^ self.life) } else { log }
    }

    /// Gives back what logs have that are not drained any more.
    async fn give_up(&mut self, drained: &BTreeSet<Owner>) {
        let ended: Vec<Owner> = self.recorded.difference(drained).copied().collect();
        if ended.is_empty() {
            return;
        }
        for log in &ended {
            self.pace.set_share(*log, 0, Instant::now());
            self.recorded.remove(log);
        }
        let names = ended.into_iter().map(|log| self.name(log)).collect();
        // Unheard, the shares come free by themselves.
        let _ = timeout(ANSWER_MAX, self.database.end_shares(self.life, names)).await;
    }
}
