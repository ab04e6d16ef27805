//! `queue verify`: is everything that was acknowledged still readable?

use std::path::Path;

use queue::operator::{self, VerifiedLog};
use serde::Serialize;

use super::super::{Failure, Json, output};
use crate::queue_words::way_out;

#[derive(Serialize)]
struct Line {
    topic: String,
    batches: u64,
    records: u64,
    oldest: Option<u64>,
    newest: Option<u64>,
    damage: Option<Damage>,
}

#[derive(Serialize)]
struct Damage {
    file: String,
    offset_bytes: u64,
    found: String,
}

impl From<VerifiedLog> for Line {
    fn from(log: VerifiedLog) -> Self {
        Self {
            topic: log.topic,
            batches: log.batches,
            records: log.records.map_or(0, |(oldest, newest)| newest - oldest + 1),
            oldest: log.records.map(|(oldest, _)| oldest),
            newest: log.records.map(|(_, newest)| newest),
            damage: log.damage.map(|damage| Damage {
                file: damage.file.display().to_string(),
                offset_bytes: damage.offset,
                found: damage.found,
            }),
        }
    }
}

pub(super) fn run(directory: &Path, json: Json) -> Result<(), Failure> {
    let lines: Vec<Line> = operator::verify(directory)?.into_iter().map(Line::from).collect();
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    output::list(json, &lines, ["TOPIC", "BATCHES", "RECORDS", "OLDEST", "NEWEST", "DAMAGE"], |line| {
        [
            line.topic.clone(),
            line.batches.to_string(),
            line.records.to_string(),
            number(line.oldest),
            number(line.newest),
            line.damage.as_ref().map_or_else(
                || "none".to_owned(),
                |damage| format!("{} at byte {}: {}", damage.file, damage.offset_bytes, damage.found),
            ),
        ]
    })?;
    let damaged = lines.iter().filter(|line| line.damage.is_some()).count();
    if damaged > 0 {
        return Err(Failure::Failed(format!(
            "{damaged} of {} topics are damaged. {}",
            lines.len(),
            way_out(directory)
        )));
    }
    Ok(())
}
