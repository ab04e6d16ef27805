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
use crate::metrics::{LogBacklogs, WorkerMetrics};
use crate::topics::{DRAIN_GROUP, ORDERS_TOPIC};

/// How often a log that is absent, or held by another process, is tried again.
const LOOK: Duration = Duration::from_millis(200);
/// How often the directory is asked whether it still holds the same log.
const IDENTITY_LOOK: Duration = Duration::from_secs(2);
/// Pause after a log could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// What a worker does with one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// It is not there yet, or cannot be read at the moment.
    Waiting(String),
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
                drained = self.drain(source, &orders, Owner(queue.instance())) => drained,
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

    /// Stands by until the group is free, then drains until the worker stops.
    async fn drain(&self, source: &Source, orders: &Topic, log: Owner) -> Result<(), DrainError> {
        let mut stopping = self.stopping.clone();
        let group = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            held = hold(source, orders) => held?,
        };
        source.show(SourceState::Draining);
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
        Worker::new(parts, stopping).run().await
    }
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
            tracing::info!(log = %self.log, ?state, "a log to drain");
            *shown = state;
        }
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
