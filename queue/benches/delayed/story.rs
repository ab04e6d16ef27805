//! One row: so many records wait, and what everything else costs beside them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::registry::Registry;
use queue::{DiskOptions, Group, Message, NewRecord, Position, Queue, QueueError, StartAt, Topic};

use crate::measured::{allocated, cpu, file_bytes, peak, reset_peak, written};

/// As long as those of a delayed topic are at most.
pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;

/// Of a record as appended here: 32 of header, 26 of key, 7 of tag, filled up to words.
pub(crate) const FRAME_BYTES: usize = 32 + 40 + PAYLOAD_BYTES;
const PAYLOAD_BYTES: usize = 200;

/// Records that are delivered and finished for each that waits.
const FINISHED_EACH: usize = 4;

/// Records that are appended, and their due ones finished, at once.
const CHUNK_RECORDS: usize = 50_000;

/// Single acknowledgements, and as many refusals: few beside what waits, and several checkpoints are among them.
fn calls_of(size: usize) -> usize {
    (size / 20).clamp(200, 10_000)
}

/// The nearest deadline: further off than the slowest run is long, or a record would come due in it.
const DEADLINE_MIN: Duration = Duration::from_hours(24);
const DEADLINE_SPREAD_MS: u64 = 29 * 24 * 3_600 * 1_000;

pub(crate) const COLUMNS: [&str; 7] = [
    "ack: CPU µs, bytes written",
    "nack: CPU µs, bytes written",
    "memory, bytes a waiting record",
    "disk MiB",
    "disk ÷ undelivered",
    "copies ÷ appended",
    "open and first pull: s, MiB at most",
];

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

fn open(directory: &Path, registry: &mut Registry) -> Result<Queue, QueueError> {
    let mut options = DiskOptions::new(directory, Arc::new(now_ms));
    options.segment_bytes = SEGMENT_BYTES;
    options.backlog_max = u64::MAX / 2;
    options.delayed("timeouts");
    Queue::open_disk(options, registry)
}

/// The cells of the row.
pub(crate) async fn tell(directory: &Path, size: usize, bound: Duration) -> Vec<String> {
    let mut registry = Registry::default();
    let queue = open(directory, &mut registry).unwrap();
    let topic = queue.topic("timeouts").await.unwrap();
    let mut group = topic.group("closer", StartAt::Oldest).await.unwrap();
    // Buffers grow before anything is measured.
    for _ in 0..2 {
        let mut under_way = Vec::with_capacity(CHUNK_RECORDS);
        for _ in 0..CHUNK_RECORDS {
            under_way.push(append(&topic, None).await);
        }
        for append in under_way {
            append.await.unwrap();
        }
        let positions: Vec<Position> =
            pull(&mut group, CHUNK_RECORDS).await.iter().map(|message| message.position).collect();
        group.ack_all(&positions).await.unwrap();
    }
    let before = allocated();
    let unfinished = || vec![format!("not finished in {} s", bound.as_secs()); COLUMNS.len()];

    let started = Instant::now();
    let mut random = 1_u64;
    let (mut waiting, mut appended) = (0, 0);
    while waiting < size {
        let records = (CHUNK_RECORDS / (FINISHED_EACH + 1)).min(size - waiting) * (FINISHED_EACH + 1);
        let mut under_way = Vec::with_capacity(records);
        for number in 0..records {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let waits = number % (FINISHED_EACH + 1) == 0;
            let deliver_at_ms = waits
                .then(|| now_ms() + DEADLINE_MIN.as_millis() as u64 + (random >> 20) % DEADLINE_SPREAD_MS);
            under_way.push(append(&topic, deliver_at_ms).await);
        }
        for append in under_way {
            append.await.unwrap();
        }
        waiting += records / (FINISHED_EACH + 1);
        appended += records;
        let due = records - records / (FINISHED_EACH + 1);
        let positions: Vec<Position> =
            pull(&mut group, due).await.iter().map(|message| message.position).collect();
        group.ack_all(&positions).await.unwrap();
        if started.elapsed() > bound {
            return unfinished();
        }
    }
    let memory = (allocated() - before) as f64 / size as f64;

    let calls = calls_of(size);
    for _ in 0..2 * calls {
        append(&topic, None).await.await.unwrap();
    }
    let mut messages = pull(&mut group, 2 * calls).await;
    quiet().await;
    let refused = messages.split_off(calls);
    let ack = cost(&mut group, &messages, bound, async |group, position| group.ack(position).await).await;
    let nack =
        cost(&mut group, &refused, bound, async |group, position| group.nack(position, DEADLINE_MIN).await)
            .await;

    // What can go goes, and what is to be rewritten is, while somebody pulls.
    let mut bytes = 0;
    loop {
        for _ in 0..200 {
            group.pull(1, Duration::from_millis(2)).await.unwrap();
        }
        let now = file_bytes(directory);
        if now == bytes || started.elapsed() > 4 * bound {
            break;
        }
        bytes = now;
    }
    let appended = appended + 2 * CHUNK_RECORDS + 2 * calls;
    let copies = counter(&registry, "rewritten_records") as f64 / appended as f64;
    let undelivered = ((size + calls) * FRAME_BYTES) as f64;
    drop(group);
    drop(topic);
    queue.shutdown().await;
    drop(queue);

    reset_peak();
    let before = allocated();
    let started = Instant::now();
    let queue = open(directory, &mut Registry::default()).unwrap();
    let topic = queue.topic("timeouts").await.unwrap();
    let mut group = topic.group("closer", StartAt::Oldest).await.unwrap();
    assert!(group.pull(1, Duration::ZERO).await.unwrap().is_empty());
    let opened = format!("{:.2}, {}", started.elapsed().as_secs_f64(), (peak() - before) >> 20);
    drop(group);
    queue.shutdown().await;
    vec![
        ack,
        nack,
        format!("{memory:.1}"),
        (bytes >> 20).to_string(),
        format!("{:.2}", bytes as f64 / undelivered),
        format!("{copies:.2}"),
        opened,
    ]
}

/// Until nothing is written any more: segments are zeroed in the background.
async fn quiet() {
    let mut before = 0;
    while before != written() {
        before = written();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn append(topic: &Topic, deliver_at_ms: Option<u64>) -> queue::Append {
    let permit = loop {
        match topic.try_permit(PAYLOAD_BYTES) {
            Ok(permit) => break permit,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let record = NewRecord {
        key: b"01JD0000000000000000000000",
        tag: "timeout",
        deliver_at_ms,
        payload: &[7; PAYLOAD_BYTES],
    };
    topic.append(permit, record)
}

async fn pull(group: &mut Group, records: usize) -> Vec<Message> {
    let mut messages = Vec::with_capacity(records);
    while messages.len() < records {
        messages.extend(group.pull(records - messages.len(), Duration::from_secs(1)).await.unwrap());
    }
    messages
}

/// What one of these calls costs, on average over as many as come within the bound.
async fn cost(
    group: &mut Group,
    messages: &[Message],
    bound: Duration,
    call: impl AsyncFn(&mut Group, Position) -> Result<(), QueueError>,
) -> String {
    let started = Instant::now();
    let before = (cpu(), written());
    let mut calls = 0;
    for message in messages {
        call(group, message.position).await.unwrap();
        calls += 1;
        if started.elapsed() > bound / 10 {
            break;
        }
    }
    let micros = (cpu() - before.0).as_micros() as f64 / f64::from(calls);
    let written = written() - before.1;
    // Those that the bound has left are nobody's cost.
    let left: Vec<Position> = messages[calls as usize..].iter().map(|message| message.position).collect();
    group.ack_all(&left).await.unwrap();
    let few = if (calls as usize) < messages.len() { format!(" ({calls} calls)") } else { String::new() };
    format!("{micros:.0}, {:.0}{few}", written as f64 / f64::from(calls))
}

/// The value of a counter in the registry's text; 0 where there is none.
fn counter(registry: &Registry, name: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let begin = format!("floodgate_queue_{name}_total{{");
    let line = text.lines().find(|line| line.starts_with(&begin));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
}
