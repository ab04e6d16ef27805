//! `floodgate queue …`: looks into this instance's log while its owner runs, or without it.

use clap::Subcommand;
use queue::operator::{self, GroupSummary, TopicSummary};
use queue::{Position, Queue, QueueError};
use serde::Serialize;

use super::{Failure, Json, output};
use crate::config::Config;
use crate::engines;

mod accept;
mod letters;
mod probe;
mod records;
mod reset;
mod verify;

/// The queue is the log in queue.directory. Reading it disturbs nobody: all of these work while floodgate runs and
/// while it does not, but for `reset-offset` of a group in use and `dead-letters --replay`. For a worker's own log name
/// its queue.worker_directory, as FLOODGATE_QUEUE__DIRECTORY=data/worker-queue.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// List the topics: what is kept of each, and who reads it
    Topics(#[command(flatten)] Json),
    /// List the consumer groups of every topic, with the position through which each has finished
    Groups(#[command(flatten)] Json),
    /// Show how far every group is behind: records, and the age of the oldest in milliseconds
    Lag(#[command(flatten)] Json),
    /// Print a topic's records, oldest first
    ///
    /// One record a line: position, time of the append, key, tag, payload.
    Dump(records::Dump),
    /// Print a topic's newest records, and with --follow those that come
    ///
    /// One record a line: position, time of the append, key, tag, payload.
    Tail(records::Tail),
    /// Read every batch of every segment and check that nothing acknowledged is damaged; exit 1 if something is
    Verify(#[command(flatten)] Json),
    /// Have a consumer group go on from another place: earlier to repeat records, later to skip some
    ///
    /// The group must be free: stop its consumer first (for order-worker, stop floodgate). Going back repeats records:
    /// harmless for order-worker, which recognises orders that it has written; a shared stock ledger is rebuilt then. Going forward skips
    /// records for good; the log remembers which.
    ResetOffset(reset::ResetOffset),
    /// Take a log for this orders database that its start refused: a copy, one put back from a backup, another deployment's, or one that is
    /// newer than a database that was put back
    ///
    /// A log and the registry in the orders database remember the log's last opening; where they differ, a start stops, since promises
    /// would be lost or rejected. This makes the log say what the registry says, after which it starts. Stop floodgate first. It
    /// changes no record. See what is lost by it in the sentence that the start ended with. For a database that was put back the drill is:
    /// this, where the start asks for it, then `queue reset-offset floodgate-orders order-worker --before TIME`, for every log.
    Accept(accept::Accept),
    /// List the messages that a consumer group has given up, and put one back
    ///
    /// Letters stay until their group is dropped. Putting one back appends its message as a new record, which every group
    /// of the topic sees.
    DeadLetters(letters::DeadLetters),
    /// Measure how long the disk takes to make 4 KiB durable
    ///
    /// Writes a small file, measures both ways in microseconds (median), and removes it. The faster one is what a new queue
    /// there would use; every 202 waits for one such write.
    ProbeDisk(probe::ProbeDisk),
}

pub(super) async fn run(command: QueueCommand, config: &Config) -> Result<(), Failure> {
    match command {
        QueueCommand::Topics(json) => topics(&attach(config).await?, json).await,
        QueueCommand::Groups(json) => groups(&attach(config).await?, json).await,
        QueueCommand::Lag(json) => lag(&attach(config).await?, json).await,
        QueueCommand::Dump(dump) => dump.run(&attach(config).await?).await,
        QueueCommand::Tail(tail) => tail.run(&attach(config).await?).await,
        QueueCommand::Verify(json) => {
            attach(config).await?;
            verify::run(&config.queue.directory, json)
        }
        QueueCommand::ResetOffset(reset) => reset.run(config, &attach(config).await?).await,
        QueueCommand::Accept(accept) => accept.run(config, &attach(config).await?).await,
        QueueCommand::DeadLetters(letters) => letters.run(config).await,
        QueueCommand::ProbeDisk(probe) => probe.run(config),
    }
}

/// The queue, whoever owns it. Where there is none, a sentence that says what to do.
async fn attach(config: &Config) -> Result<Queue, Failure> {
    engines::attach_queue(config).await.map_err(|error| match error {
        QueueError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::Failed(format!(
                "there is no queue in {} yet: start `floodgate` once, run this where it runs, or set queue.directory",
                config.queue.directory.display()
            ))
        }
        error => error.into(),
    })
}

/// What a topic that was asked for by name is.
async fn topic(queue: &Queue, name: &str) -> Result<queue::Topic, Failure> {
    Ok(queue.topic(name).await?)
}

async fn topics(queue: &Queue, json: Json) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Line {
        topic: String,
        oldest: Option<Position>,
        newest: Option<Position>,
        groups: Vec<String>,
    }
    let lines: Vec<Line> = operator::topics(queue)
        .await?
        .into_iter()
        .map(|TopicSummary { topic, oldest, end, groups }| Line { topic, oldest, newest: end, groups })
        .collect();
    output::list(json, &lines, ["TOPIC", "OLDEST", "NEWEST", "GROUPS"], |line| {
        [line.topic.clone(), position(line.oldest), position(line.newest), line.groups.join(", ")]
    })
}

#[derive(Serialize)]
struct GroupLine {
    topic: String,
    group: String,
    committed: Option<Position>,
    records: u64,
    age_ms: u64,
}

impl From<GroupSummary> for GroupLine {
    fn from(GroupSummary { topic, group, committed, lag }: GroupSummary) -> Self {
        Self { topic, group, committed, records: lag.records, age_ms: lag.age_ms }
    }
}

async fn group_lines(queue: &Queue) -> Result<Vec<GroupLine>, Failure> {
    Ok(operator::groups(queue).await?.into_iter().map(GroupLine::from).collect())
}

async fn groups(queue: &Queue, json: Json) -> Result<(), Failure> {
    output::list(json, &group_lines(queue).await?, ["TOPIC", "GROUP", "COMMITTED"], |line| {
        [line.topic.clone(), line.group.clone(), position(line.committed)]
    })
}

async fn lag(queue: &Queue, json: Json) -> Result<(), Failure> {
    output::list(
        json,
        &group_lines(queue).await?,
        ["TOPIC", "GROUP", "COMMITTED", "RECORDS", "AGE MS"],
        |line| {
            [
                line.topic.clone(),
                line.group.clone(),
                position(line.committed),
                line.records.to_string(),
                line.age_ms.to_string(),
            ]
        },
    )
}

fn position(position: Option<Position>) -> String {
    position.map_or_else(|| "-".to_owned(), |position| position.to_string())
}
