//! `floodgate queue …`: looks into this instance's log while its owner runs, or without it.

use clap::Subcommand;
use serde::Serialize;

use super::{Failure, Json, output};
use crate::config::Config;
use crate::engines;

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// List the topics
    Topics(#[command(flatten)] Json),
    /// List the consumer groups of every topic
    Groups(#[command(flatten)] Json),
    /// Show how far every group is behind: records, and the age of the oldest in milliseconds
    Lag(#[command(flatten)] Json),
}

#[derive(Serialize)]
struct GroupLine {
    topic: String,
    group: String,
    committed: Option<queue::Position>,
    records: u64,
    age_ms: u64,
}

pub(super) async fn run(command: QueueCommand, config: &Config) -> Result<(), Failure> {
    let queue = engines::attach_queue(config)?;
    match command {
        QueueCommand::Topics(json) => {
            output::list(json, &queue.topics()?, ["TOPIC"], |topic| [topic.clone()])
        }
        QueueCommand::Groups(json) => {
            output::list(json, &groups(&queue)?, ["TOPIC", "GROUP", "COMMITTED"], |line| {
                [line.topic.clone(), line.group.clone(), position(line)]
            })
        }
        QueueCommand::Lag(json) => output::list(
            json,
            &groups(&queue)?,
            ["TOPIC", "GROUP", "COMMITTED", "RECORDS", "AGE MS"],
            |line| {
                [
                    line.topic.clone(),
                    line.group.clone(),
                    position(line),
                    line.records.to_string(),
                    line.age_ms.to_string(),
                ]
            },
        ),
    }
}

fn position(line: &GroupLine) -> String {
    line.committed.map_or_else(|| "-".to_owned(), |position| position.to_string())
}

fn groups(queue: &queue::Queue) -> Result<Vec<GroupLine>, Failure> {
    let mut lines = Vec::new();
    for topic_name in queue.topics()? {
        let topic = queue.topic(&topic_name)?;
        for group in topic.groups()? {
            let lag = topic.lag(&group)?;
            lines.push(GroupLine {
                topic: topic_name.clone(),
                committed: topic.committed(&group)?,
                records: lag.records,
                age_ms: lag.age_ms,
                group,
            });
        }
    }
    Ok(lines)
}
