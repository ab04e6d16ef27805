//! The log that a worker owns, for what it appends: timeouts, events, retries. It holds no promises, so nothing ever waits for it.
//! Where it is full, lost, damaged, another process's or cannot be opened, that is said, counted and tried again; it never
//! stops a drain, a start or a rebuild.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use queue::{LogAddress, Queue, QueueError, Topic, TopicState};
use serde::Serialize;
use stock::Owner;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::database::{Database, DatabaseError, ENGINE_DISK};
use crate::membership::{MemberRow, place_of};
use crate::metrics::WorkerLogMetrics;
use crate::topics::{EVENTS_TOPIC, ORDERS_TOPIC, TIMEOUTS_TOPIC};

/// Between two tries to open a log that could not be opened, or was lost.
const RETRY: Duration = Duration::from_secs(5);
/// How often the open log is asked whether it takes records.
const STATE_INTERVAL: Duration = Duration::from_millis(500);
/// How often registry and directory are asked whether they still name this log.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait for the database's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Longest wait for the log's disk at its end.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// What a worker appends to.
const TOPICS: [&str; 2] = [TIMEOUTS_TOPIC, EVENTS_TOPIC];

/// Gets at the worker's log.
pub type GetLog = Arc<dyn Fn() -> BoxFuture<'static, Result<Queue, QueueError>> + Send + Sync>;

/// What a [`WorkerLog`] is made of.
pub struct WorkerLogParts {
    /// Where the log is.
    pub log: LogAddress,
    /// Opens it as its one owner.
    pub open: GetLog,
    /// Looks at it beside its owner.
    pub attach: GetLog,
    /// Where it is registered.
    pub database: Database,
    /// Learns which row of the registry is this process's.
    pub row: MemberRow,
    /// Where its trouble counts.
    pub metrics: WorkerLogMetrics,
}

/// A worker's own log. The owner of the process drives [`WorkerLog::run`], where a disk that hangs holds up nothing else.
pub struct WorkerLog {
    parts: WorkerLogParts,
    state: Mutex<State>,
}

struct State {
    /// None: it takes records.
    trouble: Option<String>,
    /// While it is open and registered.
    topics: Vec<Topic>,
}

/// The log, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerLogReport {
    /// Where it is.
    pub directory: String,
    /// Why it takes no records at the moment.
    pub trouble: Option<String>,
}

// ## Absent => Open, not registered => Open and registered => Absent
impl WorkerLog {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(parts: WorkerLogParts) -> Self {
        parts.metrics.unusable(true);
        let trouble = Some("it is not open yet".to_owned());
        Self { parts, state: Mutex::new(State { trouble, topics: Vec::new() }) }
    }

    /// One of the topics that a worker appends to; none while the log cannot be used: what would be appended must then be kept
    /// elsewhere.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<Topic> {
        self.state.lock().topics.iter().find(|topic| topic.name() == name).cloned()
    }

    /// How it does.
    #[must_use]
    pub fn report(&self) -> WorkerLogReport {
        let trouble = self.state.lock().trouble.clone();
        WorkerLogReport { directory: self.parts.log.to_string(), trouble }
    }

    /// Opens the log, registers it, and keeps both as long as the worker runs; takes it off the registry at the end if nothing
    /// waits in it. To be stopped when nothing is appended any more.
    pub async fn run(&self, mut stopping: watch::Receiver<bool>) {
        loop {
            match (self.parts.open)().await {
                Ok(queue) => {
                    if self.hold(&queue, &mut stopping).await == Held::ToTheEnd {
                        return;
                    }
                }
                Err(error) => self.show(Some(self.words(&error))),
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    /// From the opened log to its end.
    async fn hold(&self, queue: &Queue, stopping: &mut watch::Receiver<bool>) -> Held {
        let held = async {
            let lost = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => None,
                lost = self.keep(queue) => Some(lost),
            };
            self.state.lock().topics.clear();
            self.parts.row.set(None);
            match lost {
                None => {
                    self.leave(queue).await;
                    Held::ToTheEnd
                }
                Some(trouble) => {
                    self.show(Some(trouble));
                    // A disk that hangs keeps the lock, and the next try finds it taken.
                    let _ = timeout(SETTLE_MAX, queue.shutdown()).await;
                    Held::UntilLost
                }
            }
        };
        // Where nobody else writes for the queue. It may end before we have heard of it.
        let driven = async {
            queue.run().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            held = held => held,
            () = driven => Held::UntilLost,
        }
    }

    /// Ends when the log is lost, and says why.
    async fn keep(&self, queue: &Queue) -> String {
        // Registered as a log without promises, it would be left out of a rebuild with all that it owes.
        match queue.topics().await {
            Ok(names) if names.iter().any(|name| name == ORDERS_TOPIC) => {
                return "it is a gateway's log, which holds promises: give this worker a queue.worker_directory of its own"
                    .to_owned();
            }
            Ok(_) => {}
            Err(error) => return self.words(&error),
        }
        let topics = match join_all(TOPICS.iter().map(|name| queue.topic(name))).await.into_iter().collect() {
            Ok::<Vec<Topic>, QueueError>(topics) => topics,
            Err(error) => return self.words(&error),
        };
        let (mut looked_at, mut unregistered) = (None::<Instant>, None);
        loop {
            if looked_at.is_none_or(|at| at.elapsed() >= IDENTITY_INTERVAL) || unregistered.is_some() {
                if looked_at.is_some() && self.is_replaced(queue).await {
                    return "it is no longer in its directory: a new one is made there".to_owned();
                }
                // Before its first record: an operator who forgets this log then knows that something may be missing. A crash after it
                // leaves an instance whose log is empty.
                unregistered = self.register(queue).await.err();
                if unregistered.is_none() {
                    self.parts.row.set(Some(Owner(queue.instance())));
                }
                looked_at = Some(Instant::now());
            }
            match state_of(&topics) {
                TopicState::Poisoned => {
                    return "a write to its disk failed: it is opened anew, to see what it holds".to_owned();
                }
                TopicState::Closed => return "it was closed".to_owned(),
                TopicState::Full => self.show(Some("it has no room, or its disk has none".to_owned())),
                TopicState::Stalled => self.show(Some("its disk does not answer".to_owned())),
                TopicState::Writable => {
                    self.show(unregistered.as_ref().map(|error| format!("it cannot be registered: {error}")));
                }
            }
            if unregistered.is_none() {
                self.state.lock().topics.clone_from(&topics);
            }
            sleep(STATE_INTERVAL).await;
        }
    }

    /// Registers the log, also where an operator has taken it off the registry.
    async fn register(&self, queue: &Queue) -> Result<(), DatabaseError> {
        let (id, database) = (queue.instance(), &self.parts.database);
        let registered = async {
            let instances = database.instances().await?;
            let place = place_of(&self.parts.log);
            let is_ours = instances.iter().any(|row| {
                row.owner.0 == id && row.place == place && row.engine == ENGINE_DISK && !row.holds_promises
            });
            if is_ours {
                return Ok(());
            }
            database.register_instance(id, &place, ENGINE_DISK, false).await
        };
        let unanswered = |_| DatabaseError::Unavailable("no answer in time".into());
        timeout(ANSWER_MAX, registered).await.map_err(unanswered)?
    }

    /// Whether the directory is gone, or holds another log: a disk that was lost and replaced.
    async fn is_replaced(&self, queue: &Queue) -> bool {
        match (self.parts.attach)().await {
            Ok(there) => there.instance() != queue.instance(),
            Err(QueueError::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
            Err(_) => false,
        }
    }

    /// The end of a clean stop. A crash before the registry is told leaves a row that nobody waits for.
    async fn leave(&self, queue: &Queue) {
        if timeout(SETTLE_MAX, queue.settle()).await.is_err() {
            tracing::warn!(
                "the disk of this worker's log does not answer: what it holds shows at the next start"
            );
            return;
        }
        match waiting(queue).await {
            Ok(0) => {
                let told = self.parts.database.deregister_instance(queue.instance());
                if !matches!(timeout(ANSWER_MAX, told).await, Ok(Ok(()))) {
                    tracing::warn!("this worker's log stays registered, which harms nothing");
                }
            }
            Ok(records) => tracing::info!(records, "this worker's log keeps records for the next start"),
            Err(error) => tracing::warn!(%error, "what waits in this worker's log cannot be read"),
        }
        // The lock goes last: the next owner registers anew, which a late deregistration must not undo.
        let _ = timeout(SETTLE_MAX, queue.shutdown()).await;
    }

    /// One line for each change, not for each look.
    fn show(&self, trouble: Option<String>) {
        let mut state = self.state.lock();
        if state.trouble == trouble {
            return;
        }
        let log = &self.parts.log;
        match &trouble {
            Some(why) => tracing::warn!(%log, why, "this worker's own log takes nothing; drains go on"),
            None => tracing::info!(%log, "this worker's own log takes records"),
        }
        self.parts.metrics.unusable(trouble.is_some());
        state.trouble = trouble;
    }

    /// What the queue says of a directory, with the key that leads to this one.
    fn words(&self, error: &QueueError) -> String {
        match error {
            QueueError::InUse { .. } => {
                "another process has it: give each worker of this machine a queue.worker_directory of its own"
                    .into()
            }
            QueueError::Foreign { path, found } => {
                format!("{} is not Floodgate's: {found}; give another queue.worker_directory", path.display())
            }
            QueueError::Io { .. } => format!(
                "{error}; queue.worker_directory must be a directory that this user may write, on a disk with room"
            ),
            error => error.to_string(),
        }
    }
}

/// How long a log was held.
#[derive(PartialEq, Eq)]
enum Held {
    ToTheEnd,
    UntilLost,
}

/// The worst of them.
fn state_of(topics: &[Topic]) -> TopicState {
    let severity = |state: &TopicState| match state {
        TopicState::Writable => 0,
        TopicState::Full => 1,
        TopicState::Stalled => 2,
        TopicState::Closed => 3,
        TopicState::Poisoned => 4,
    };
    topics.iter().map(Topic::state).max_by_key(severity).unwrap_or(TopicState::Closed)
}

/// Records that somebody has not finished, or that nobody has begun to read. A log that cannot tell holds some.
async fn waiting(queue: &Queue) -> Result<u64, QueueError> {
    let mut records = 0;
    for name in queue.topics().await? {
        let topic = queue.topic(&name).await?;
        if topic.state() == TopicState::Poisoned {
            records += 1;
        }
        let groups = topic.groups().await?;
        if groups.is_empty() && topic.end().is_some() {
            records += 1;
        }
        for group in groups {
            records += topic.lag(&group).await?.records;
        }
    }
    Ok(records)
}
