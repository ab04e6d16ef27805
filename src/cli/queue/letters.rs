//! `queue dead-letters`: what a consumer group has given up.

use clap::Args;
use queue::operator::{self, DeadLetter};
use queue::{Position, QueueError, Topic};
use serde::Serialize;
use stock::Timestamp;

use super::super::{Failure, Json, output};
use super::records::Record;
use crate::config::Config;
use crate::{engines, stdout};

/// Whose letters, and whether one is put back.
#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
    /// The topic, as `floodgate queue topics` lists it
    topic: String,
    /// The group, as `floodgate queue groups` lists it
    group: String,
    /// Start behind this letter
    #[arg(long, value_name = "LETTER", conflicts_with = "replay")]
    after: Option<Position>,
    /// At most so many letters
    #[arg(long, default_value_t = 100, value_name = "LETTERS")]
    limit: usize,
    /// Append this letter's message to the topic again; floodgate must be stopped, since only the log's owner can append
    #[arg(long, value_name = "LETTER")]
    replay: Option<Position>,
    #[command(flatten)]
    json: Json,
}

#[derive(Serialize)]
struct Line {
    letter: Position,
    given_up_at: Timestamp,
    attempts: u32,
    reason: String,
    #[serde(flatten)]
    record: Record,
}

impl From<&DeadLetter> for Line {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            letter: letter.letter,
            given_up_at: Timestamp(letter.at_ms),
            attempts: letter.message.attempt,
            reason: letter.reason.clone(),
            record: Record::from(&letter.message),
        }
    }
}

impl DeadLetters {
    pub(super) async fn run(self, config: &Config) -> Result<(), Failure> {
        match self.replay {
            Some(letter) => self.replay(letter, config).await,
            None => self.list(config).await,
        }
    }

    async fn list(self, config: &Config) -> Result<(), Failure> {
        let topic = super::topic(&super::attach(config).await?, &self.topic).await?;
        let letters = operator::dead_letters(&topic, &self.group, self.after, self.limit).await?;
        let lines: Vec<Line> = letters.iter().map(Line::from).collect();
        output::list(self.json, &lines, ["LETTER", "GIVEN UP", "ATTEMPTS", "REASON", "PAYLOAD"], |line| {
            [
                line.letter.to_string(),
                line.given_up_at.to_string(),
                line.attempts.to_string(),
                line.reason.clone(),
                line.record.payload_line(),
            ]
        })
    }

    async fn replay(&self, letter: Position, config: &Config) -> Result<(), Failure> {
        // Only looks at first, so that a typing error makes no queue.
        let found =
            self.find(&super::topic(&super::attach(config).await?, &self.topic).await?, letter).await?;
        let queue = engines::open_queue_aside(config).map_err(|error| match error {
            QueueError::InUse { .. } => Failure::Failed(
                "floodgate is running and owns the log: stop it, put the letter back, start it again".into(),
            ),
            error => error.into(),
        })?;
        let replayed = match queue.topic(&self.topic).await {
            Ok(topic) => operator::replay_dead_letter(&topic, &found).await,
            Err(error) => Err(error),
        };
        queue.shutdown().await;
        let position = replayed?;
        Ok(stdout::line(format_args!(
            "letter {letter} stands in {} again, at position {position}",
            self.topic
        ))?)
    }

    async fn find(&self, topic: &Topic, letter: Position) -> Result<DeadLetter, Failure> {
        let mut after = None;
        loop {
            let page = operator::dead_letters(topic, &self.group, after, self.limit.max(1)).await?;
            let Some(last) = page.last().map(|last| last.letter) else {
                return Err(Failure::Usage(format!(
                    "there is no letter {letter}: `floodgate queue dead-letters {} {}` lists them",
                    self.topic, self.group
                )));
            };
            if let Some(found) = page.into_iter().find(|found| found.letter == letter) {
                return Ok(found);
            }
            after = Some(last);
        }
    }
}
