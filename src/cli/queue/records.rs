//! `queue dump` and `queue tail`: records as people and programs can read them.

use std::time::Duration;

use clap::Args;
use queue::{Message, Position, Queue, Topic};
use serde::Serialize;
use serde_json::Value;
use stock::Timestamp;

use super::super::Failure;
use crate::stdout;

/// Records read at once, however many are asked for.
const PAGE: usize = 1_000;
/// Between two looks for new records.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Longest payload in a line for people, in characters.
const PAYLOAD_CHARS_MAX: usize = 200;

/// What to print of which topic.
#[derive(Debug, Args)]
pub(crate) struct Dump {
    /// The topic, as `floodgate queue topics` lists it
    topic: String,
    /// Start behind this position instead of with the oldest record
    #[arg(long, value_name = "POSITION")]
    after: Option<Position>,
    /// At most so many records
    #[arg(long, default_value_t = 100, value_name = "RECORDS")]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

/// What to print of which topic.
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// The topic, as `floodgate queue topics` lists it
    topic: String,
    /// So many of the newest records
    #[arg(long, default_value_t = 10, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Go on with what is appended, until Ctrl-C
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Args)]
struct Format {
    /// Print one JSON object a line, payloads in full
    #[arg(long)]
    json: bool,
}

impl Dump {
    pub(super) async fn run(self, queue: &Queue) -> Result<(), Failure> {
        let topic = super::topic(queue, &self.topic).await?;
        print_from(&topic, self.after, self.limit, self.format).await?;
        Ok(())
    }
}

impl Tail {
    pub(super) async fn run(self, queue: &Queue) -> Result<(), Failure> {
        let topic = super::topic(queue, &self.topic).await?;
        let newest = topic.read_last(None, self.limit as usize).await?;
        let mut last = newest.last().map(|message| message.position);
        print(&newest, self.format)?;
        if !self.follow {
            return Ok(());
        }
        loop {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            last = print_from(&topic, last, usize::MAX, self.format).await?.or(last);
        }
    }
}

/// Prints up to `limit` records after `after`; the last one's position.
async fn print_from(
    topic: &Topic,
    mut after: Option<Position>,
    limit: usize,
    format: Format,
) -> Result<Option<Position>, Failure> {
    let (mut left, mut last) = (limit, None);
    while left > 0 {
        let page = topic.read(after, left.min(PAGE)).await?;
        let Some(end) = page.last().map(|message| message.position) else { break };
        print(&page, format)?;
        left -= page.len();
        (after, last) = (Some(end), Some(end));
    }
    Ok(last)
}

#[derive(Serialize)]
pub(super) struct Record {
    position: Position,
    appended_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_at: Option<Timestamp>,
    key: String,
    tag: String,
    /// JSON where the payload is JSON, else its text, else its bytes in hexadecimal.
    payload: Value,
}

impl From<&Message> for Record {
    fn from(message: &Message) -> Self {
        Self {
            position: message.position,
            appended_at: Timestamp(message.appended_at_ms),
            deliver_at: message.deliver_at_ms.map(Timestamp),
            key: readable(&message.key),
            tag: message.tag.clone(),
            payload: serde_json::from_slice(&message.payload)
                .unwrap_or_else(|_| readable(&message.payload).into()),
        }
    }
}

impl Record {
    /// The payload in one line, cut where it is long.
    pub(super) fn payload_line(&self) -> String {
        let text = match &self.payload {
            Value::String(text) => text.escape_debug().to_string(),
            payload => payload.to_string(),
        };
        match text.char_indices().nth(PAYLOAD_CHARS_MAX) {
            Some((end, _)) => format!("{}… (--json shows all)", &text[..end]),
            None => text,
        }
    }
}

fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(String::from("0x"), |text, byte| format!("{text}{byte:02x}")),
    }
}

fn print(messages: &[Message], format: Format) -> Result<(), Failure> {
    for record in messages.iter().map(Record::from) {
        if format.json {
            stdout::line(serde_json::to_string(&record)?)?;
        } else {
            stdout::line(format_args!(
                "{}  {}  {}  {}  {}",
                record.position,
                record.appended_at,
                record.key.escape_debug(),
                record.tag,
                record.payload_line()
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &[u8]) -> Record {
        Record {
            position: "1".parse().expect("a position"),
            appended_at: Timestamp(0),
            deliver_at: None,
            key: String::new(),
            tag: String::new(),
            payload: serde_json::from_slice(payload).unwrap_or_else(|_| readable(payload).into()),
        }
    }

    #[test]
    fn any_payload_is_one_readable_line() {
        assert_eq!(record(b"{\"v\": 1}").payload_line(), "{\"v\":1}");
        assert_eq!(record(b"two\nlines").payload_line(), "two\\nlines");
        assert_eq!(record(&[0xff, 0x00]).payload_line(), "0xff00");
        let long = record("秒".repeat(300).as_bytes()).payload_line();
        assert!(long.starts_with("秒") && long.ends_with("(--json shows all)"), "{long}");
    }
}
