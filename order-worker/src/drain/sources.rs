//! The logs that a worker drains: attaches to each, waits for one that is not there yet, stands by while another process
//! holds its group, and takes over when that one dies. One log's trouble does not hold up another.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use queue::{Group, GroupWatch, LogAddress, Now, Queue, QueueError, StartAt, Topic};
use serde::Serialize;
use stock::{Owner, Stock};
use tokio::sync::watch;
use tokio::time::sleep;

use super::pace::Pace;
use super::stats::{DrainState, DrainStats};
use super::{DrainError, Worker, WorkerParts, rate_shares};
use crate::config::DrainConfig;
use crate::database::Database;
use crate::life::timeouts::Timeouts;
use crate::membership::tie::{self, NotOurs, TieError};
use crate::metrics::{LogBacklogs, WorkerMetrics};
use crate::topics::{DRAIN_GROUP, ORDERS_TOPIC};

/// How often a log that is absent, or held by another process, is tried again.
const LOOK: Duration = Duration::from_millis(200);
/// How often the directory is asked whether it still holds the same log.
const IDENTITY_LOOK: Duration = Duration::from_secs(2);
/// How often it is asked whether a log belongs to the orders database, before it is drained and while it is.
const BELONGS_LOOK: Duration = Duration::from_millis(500);
/// So long after its log a starting gateway has written its row, on a machine that is not too busy.
const REGISTERED_WITHIN: Duration = Duration::from_millis(100);
/// Pause after a log could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// What a worker does with one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// It is not there yet, or cannot be read at the moment.
    Waiting(String),
    /// It does not belong to this worker's orders database: nothing is taken from it.
    Refused(String),
    /// Another process drains it.
    StandingBy,
    /// This one does.
    Draining,
    /// Somebody has to act.
    Stopped(String),
}

/// One log.
struct Source {
    log: LogAddress,
    state: Mutex<SourceState>,
    stats: Arc<DrainStats>,
}

/// What [`Sources`] are made of.
pub struct SourcesParts {
    /// Where the logs are.
    pub logs: Vec<LogAddress>,
    /// The clock of logs.
    pub now: Now,
    /// Where orders go.
    pub database: Database,
    /// Who is told afterwards.
    pub stock: Arc<Stock>,
    /// How fast all of them together.
    pub drain: DrainConfig,
    /// Where they leave payment deadlines.
    pub timeouts: Timeouts,
    /// Where they count.
    pub metrics: WorkerMetrics,
    /// Where what waits in each of them shows.
    pub backlogs: LogBacklogs,
    /// This life of the process; random.
    pub life: u64,
}

/// All logs of one worker.
pub struct Sources {
    sources: Vec<Source>,
    now: Now,
    database: Database,
    stock: Arc<Stock>,
    /// Of all drains together.
    pace: Arc<Pace>,
    timeouts: Timeouts,
    metrics: WorkerMetrics,
    backlogs: LogBacklogs,
    life: u64,
    stopping: watch::Receiver<bool>,
}

/// One log, as `/readyz` shows it.
#[derive(Debug, Serialize)]
pub struct SourceReport {
    /// Where the log is.
    pub log: String,
    /// What the worker does with it.
    pub state: SourceState,
    /// What holds up its drain at the moment.
    pub trouble: Option<String>,
}

impl Sources {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(parts: SourcesParts, stopping: watch::Receiver<bool>) -> Self {
        let SourcesParts { logs, now, database, stock, drain, timeouts, metrics, backlogs, life } = parts;
        let source = |log| Source {
            log,
            state: Mutex::new(SourceState::Waiting("not looked at yet".into())),
            stats: Arc::new(DrainStats::new(drain.orders_per_second_max)),
        };
        Self {
            sources: logs.into_iter().map(source).collect(),
            now,
            database,
            stock,
            pace: Arc::new(Pace::new(&drain)),
            timeouts,
            metrics,
            backlogs,
            life,
            stopping,
        }
    }

    /// Drains them all until the worker stops.
    ///
    /// # Errors
    /// When the last of them has stopped for good: the first one's reason.
    pub async fn drain_all(self: Arc<Self>) -> Result<(), DrainError> {
        let mut drains: FuturesUnordered<_> =
            self.sources.iter().map(|source| self.drain_source(source)).collect();
        let drains = async {
            let mut stopped = None;
            while let Some(outcome) = drains.next().await {
                if let Err(error) = outcome {
                    stopped.get_or_insert(error);
                }
            }
            stopped.map_or(Ok(()), Err)
        };
        let share = (self.database.clone(), self.pace.clone(), self.life);
        rate_shares::within(drains, share, self.stopping.clone()).await
    }

    /// The pace of all drains together.
    #[must_use]
    pub fn pace(&self) -> Arc<Pace> {
        self.pace.clone()
    }

    /// What it does with each of them.
    #[must_use]
    pub fn report(&self) -> Vec<SourceReport> {
        let report = |source: &Source| SourceReport {
            log: source.log.to_string(),
            state: source.state.lock().clone(),
            trouble: match source.stats.state() {
                DrainState::Running => None,
                DrainState::Stalled(why) | DrainState::Stopped(why) => Some(why),
            },
        };
        self.sources.iter().map(report).collect()
    }

    async fn drain_source(&self, source: &Source) -> Result<(), DrainError> {
        let mut stopping = self.stopping.clone();
        loop {
            let attached = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                attached = attach(source, &self.now) => attached,
            };
            let (queue, orders) = match attached {
                Ok(attached) => attached,
                Err(error) => return Err(source.stop(error.into())),
            };
            let drained = Arc::new(GroupWatch::new(orders.clone(), DRAIN_GROUP));
            self.backlogs.show(&source.log, drained.clone());
            let drained = tokio::select! {
                biased;
                drained = self.drain_if_ours(source, &queue, &orders) => drained,
                () = replaced(&source.log, &self.now, queue.instance()) => {
                    tracing::warn!(log = %source.log, "another log is at this address now; it is drained from here on");
                    continue;
                }
                never = drained.follow() => match never {},
            };
            match drained {
                Ok(()) => return Ok(()),
                // The directory may be gone, or back in a moment: what was settled is found settled.
                Err(DrainError::Queue(error @ QueueError::Io { .. })) => {
                    source.wait(&error);
                    tokio::select! {
                        biased;
                        _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                        () = sleep(RETRY) => {}
                    }
                }
                Err(error) => return Err(source.stop(error)),
            }
        }
    }

    /// Drains the log whenever it belongs to the orders database, until the worker stops. Its group is held for no other database: a
    /// drain that did would write promises as orders of nobody's, and move the offset past them.
    async fn drain_if_ours(&self, source: &Source, queue: &Queue, orders: &Topic) -> Result<(), DrainError> {
        loop {
            let mut stopping = self.stopping.clone();
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                ours = self.until(source, queue, orders, true) => ours?,
            }
            tokio::select! {
                biased;
                drained = self.drain(source, queue, orders) => match drained? {
                    Ended::WithTheWorker => return Ok(()),
                    Ended::NotOurs => {}
                },
                // What was under way is dropped with the group, and repeated by the process that gets that next.
                not_ours = self.until(source, queue, orders, false) => not_ours?,
            }
        }
    }

    /// Returns when it is `ours` whether the log belongs to the orders database, and shows what it found where it does not. A database that
    /// cannot be read says nothing, neither way; a log that cannot be read is an error where nobody drains it, who would find out.
    async fn until(
        &self,
        source: &Source,
        queue: &Queue,
        orders: &Topic,
        ours: bool,
    ) -> Result<(), DrainError> {
        loop {
            match tie::is_ours(queue, &self.database).await {
                Ok(Ok(())) if ours => {
                    if source.is_refused() {
                        source.show(SourceState::StandingBy);
                        self.count_refused();
                    }
                    return Ok(());
                }
                Ok(Err(why)) if !ours => {
                    // Its gateway may be between its log and the row: that passes in a moment.
                    sleep(REGISTERED_WITHIN).await;
                    if matches!(tie::is_ours(queue, &self.database).await, Ok(Err(_))) {
                        tracing::warn!(log = %source.log, %why, "this log is drained no more");
                        return Ok(());
                    }
                }
                Ok(Err(why)) => {
                    let is_loud = match &why {
                        NotOurs::Misfit(_) => true,
                        NotOurs::NotRegistered => tie::waits(orders).await,
                        NotOurs::LeftOut => false,
                    };
                    source.show(match is_loud {
                        true => SourceState::Refused(why.to_string()),
                        false => SourceState::Waiting(why.to_string()),
                    });
                    self.count_refused();
                }
                Err(TieError::Queue(error)) if ours => return Err(error.into()),
                Err(TieError::Database(error)) if ours => {
                    source.show(SourceState::Waiting(error.to_string()));
                }
                Ok(Ok(())) | Err(_) => {}
            }
            sleep(BELONGS_LOOK).await;
        }
    }

    fn count_refused(&self) {
        let refused = self.sources.iter().filter(|source| source.is_refused()).count();
        self.metrics.refused_logs.set(i64::try_from(refused).unwrap_or(i64::MAX));
    }

    /// Stands by until the group is free, then drains until the worker stops.
    async fn drain(&self, source: &Source, queue: &Queue, orders: &Topic) -> Result<Ended, DrainError> {
        let mut stopping = self.stopping.clone();
        let group = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return Ok(Ended::WithTheWorker),
            held = hold(source, orders) => held?,
        };
        // It may have been long in coming.
        if !matches!(tie::is_ours(queue, &self.database).await, Ok(Ok(()))) {
            return Ok(Ended::NotOurs);
        }
        source.show(SourceState::Draining);
        let log = Owner(queue.instance());
        let parts = WorkerParts {
            database: self.database.clone(),
            stock: self.stock.clone(),
            group,
            log,
            pace: self.pace.clone(),
            timeouts: self.timeouts.clone(),
            metrics: self.metrics.clone(),
            stats: source.stats.clone(),
        };
        Worker::new(parts, stopping).run().await.map(|()| Ended::WithTheWorker)
    }
}

/// How a drain ended that did not fail.
enum Ended {
    WithTheWorker,
    /// The log does not belong to the orders database (any more).
    NotOurs,
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let logs: Vec<_> = self.sources.iter().map(|source| source.log.to_string()).collect();
        f.write_str(&logs.join(", "))
    }
}

impl Source {
    /// One line for each change, not for each look.
    fn show(&self, state: SourceState) {
        let mut shown = self.state.lock();
        if *shown != state {
            match &state {
                SourceState::Refused(why) => {
                    tracing::error!(log = %self.log, why, "this log is not drained into this orders database");
                }
                state => tracing::info!(log = %self.log, ?state, "a log to drain"),
            }
            *shown = state;
        }
    }

    fn is_refused(&self) -> bool {
        matches!(*self.state.lock(), SourceState::Refused(_))
    }

    fn wait(&self, error: &QueueError) {
        self.show(SourceState::Waiting(error.to_string()));
    }

    fn stop(&self, error: DrainError) -> DrainError {
        tracing::error!(log = %self.log, %error, "this log is drained no more");
        self.show(SourceState::Stopped(error.to_string()));
        error
    }
}

/// Attaches to the log once it is there.
async fn attach(source: &Source, now: &Now) -> Result<(Queue, Topic), QueueError> {
    loop {
        let attached = async {
            let queue = Queue::attach(&source.log, now.clone()).await?;
            let orders = queue.topic(ORDERS_TOPIC).await?;
            Ok((queue, orders))
        };
        match attached.await {
            // Its gateway has not begun, or not finished beginning.
            Err(error @ (QueueError::Io { .. } | QueueError::UnknownTopic(_))) => source.wait(&error),
            attached => return attached,
        }
        sleep(LOOK).await;
    }
}

/// Takes the group once no other process holds it.
async fn hold(source: &Source, orders: &Topic) -> Result<Group, QueueError> {
    loop {
        match orders.group(DRAIN_GROUP, StartAt::Oldest).await {
            Err(QueueError::GroupHeld { .. }) => source.show(SourceState::StandingBy),
            held => return held,
        }
        sleep(LOOK).await;
    }
}

/// Waits until the address leads to another log than this one: a disk that was lost and replaced.
async fn replaced(log: &LogAddress, now: &Now, instance: u64) {
    loop {
        sleep(IDENTITY_LOOK).await;
        if Queue::attach(log, now.clone()).await.is_ok_and(|queue| queue.instance() != instance) {
            return;
        }
    }
}
