//! Real processes and kill -9: one process appends delayed messages, rewrites its own and finishes them, under load, and is killed at
//! random moments. The parent knows what it was told, and looks at the log after each kill.
//!
//! `FLOODGATE_SEED=n` replays what is appended and when the kills come, as far as a machine's scheduling lets it; `FLOODGATE_LONG=1`
//! kills ten times as often.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::registry::Registry;
use queue::{DiskOptions, Group, Message, NewRecord, Position, Queue, StartAt, Topic};

const CHILD: &str = "FLOODGATE_QUEUE_REWRITER";

/// Records that are appended at once.
const BURST: u64 = 64;

/// Most messages that are pulled, and finished or refused, at once.
const BATCH: usize = 200;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

fn open(directory: &Path, registry: &mut Registry) -> Queue {
    let mut options = DiskOptions::new(directory, Arc::new(now_ms));
    options.segment_bytes = 128 * 1024;
    options.ring_bytes = 128 * 1024;
    options.delayed("timeouts");
    Queue::open_disk(options, registry).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Runs this test binary's [`child`] in a process of its own.
fn spawn(directory: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, directory)
        .env("FLOODGATE_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// What the child does; nothing in the parent.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let seed: u64 = std::env::var("FLOODGATE_SEED").unwrap().parse().unwrap();
    runtime().block_on(async {
        let mut registry = Registry::default();
        let queue = open(Path::new(&directory), &mut registry);
        let topic = queue.topic("timeouts").await.unwrap();
        let group = topic.group("closer", StartAt::Oldest).await.unwrap();
        say("\nready .\n");
        tokio::join!(append(&topic, seed), consume(group, seed, &registry));
    });
}

/// One write for all lines, each with a dot at its end: the kill cuts the last one off, or leaves it whole.
fn say(lines: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(lines.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Tells of each record before it is appended, and after it is acknowledged.
async fn append(topic: &Topic, seed: u64) {
    let mut random = Random(seed);
    let mut id = seed << 32;
    loop {
        let mut lines = String::new();
        let mut burst = Vec::new();
        for _ in 0..BURST {
            let wait_ms = match random.below(10) {
                0 => 200 + random.below(1_500),
                1..=4 => random.below(60),
                _ => 0,
            };
            let due_ms = now_ms() + wait_ms;
            id += 1;
            lines.push_str(&format!("begun {id} {due_ms} .\n"));
            burst.push((id, due_ms, 8 + random.below(500) as usize));
        }
        say(&lines);
        let mut appends = Vec::new();
        for (id, due_ms, bytes) in burst {
            let permit = loop {
                match topic.try_permit(bytes) {
                    Ok(permit) => break permit,
                    Err(refused) => assert!(refused.is_retryable(), "{refused}"),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            let mut payload = id.to_le_bytes().to_vec();
            payload.resize(bytes, id as u8);
            let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: Some(due_ms), payload: &payload };
            appends.push((id, topic.append(permit, record)));
        }
        let mut lines = String::new();
        for (id, append) in appends {
            append.await.unwrap();
            lines.push_str(&format!("kept {id} .\n"));
        }
        say(&lines);
        tokio::task::yield_now().await;
    }
}

/// Tells of each message before anything is done with it, and after that is durable.
async fn consume(mut group: Group, seed: u64, registry: &Registry) {
    let mut random = Random(seed ^ 0x5555);
    let mut told = 0;
    loop {
        let messages = group.pull(1 + random.below(BATCH as u64) as usize, Duration::from_millis(5)).await;
        let messages = messages.unwrap();
        let now = now_ms();
        let lines: Vec<String> =
            messages.iter().map(|message| format!("got {} {now} .\n", id_of(message))).collect();
        say(&lines.concat());
        let (refused, finished): (Vec<&Message>, Vec<&Message>) =
            messages.iter().partition(|_| random.below(20) == 0);
        let until = now_ms() + 30;
        let refused_positions: Vec<(Position, Duration)> =
            refused.iter().map(|message| (message.position, Duration::from_millis(30))).collect();
        group.nack_all(&refused_positions).await.unwrap();
        let positions: Vec<Position> = finished.iter().map(|message| message.position).collect();
        group.ack_all(&positions).await.unwrap();
        let mut lines: String =
            refused.iter().map(|message| format!("refused {} {until} .\n", id_of(message))).collect();
        lines.extend(finished.iter().map(|message| format!("done {} .\n", id_of(message))));
        let copies = rewritten(registry);
        lines.push_str(&format!("copies {} .\n", copies - told));
        told = copies;
        say(&lines);
        tokio::task::yield_now().await;
    }
}

fn id_of(message: &Message) -> u64 {
    let id = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
    assert!(message.payload[8..].iter().all(|byte| *byte == id as u8), "garbage in {}", message.position);
    id
}

fn rewritten(registry: &Registry) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find(|line| line.starts_with("floodgate_queue_rewritten_records_total{"));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
}

/// What the parent knows of one record.
#[derive(Debug, Default)]
struct Record {
    due_ms: u64,
    /// Acknowledged to the appender, or seen by the consumer.
    kept: bool,
    /// Certainly finished.
    done: bool,
    /// Delivered, and nothing heard of it since.
    in_hand: bool,
    /// Was in hand when a kill came, and has not come again.
    perhaps_done: bool,
    /// Refused until then, for certain.
    not_before_ms: u64,
}

#[derive(Default)]
struct Model {
    records: BTreeMap<u64, Record>,
    copies: u64,
    delivered: u64,
}

impl Model {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[..] {
            ["begun", _, _, "."] => {
                let record = Record { due_ms: number(2), ..Record::default() };
                assert!(self.records.insert(number(1), record).is_none(), "{line}");
            }
            ["kept", _, "."] => self.record(number(1)).kept = true,
            ["got", _, _, "."] => self.deliver(number(1), number(2)),
            ["done", _, "."] => {
                let record = self.record(number(1));
                (record.done, record.in_hand) = (true, false);
            }
            ["refused", _, _, "."] => {
                let until_ms = number(2);
                let record = self.record(number(1));
                (record.not_before_ms, record.in_hand) = (until_ms, false);
            }
            ["copies", _, "."] => self.copies += number(1),
            _ => {}
        }
    }

    fn deliver(&mut self, id: u64, now_ms: u64) {
        self.delivered += 1;
        let record = self.record(id);
        assert!(record.due_ms <= now_ms, "{id} came {} ms early", record.due_ms - now_ms);
        assert!(record.not_before_ms <= now_ms, "{id} came again before its time: {record:?}");
        assert!(!record.done, "{id} came again, finished");
        assert!(!record.in_hand, "{id} came twice at once");
        (record.kept, record.in_hand, record.perhaps_done) = (true, true, false);
    }

    fn record(&mut self, id: u64) -> &mut Record {
        self.records.get_mut(&id).unwrap_or_else(|| panic!("nobody appended {id}"))
    }

    /// What was in the dead one's hands comes again, unless it was finished at the last moment.
    fn killed(&mut self) {
        for record in self.records.values_mut().filter(|record| record.in_hand) {
            (record.in_hand, record.perhaps_done) = (false, true);
        }
    }

    /// What is there and not finished, for certain.
    fn waits(&self) -> BTreeSet<u64> {
        let kept = self.records.iter().filter(|(_, record)| record.kept);
        kept.filter(|(_, record)| !record.done && !record.perhaps_done).map(|(id, _)| *id).collect()
    }
}

#[test]
fn each_record_comes_once_after_every_kill_of_the_process_that_rewrites_it() {
    let seed: u64 = std::env::var("FLOODGATE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let kills = if std::env::var_os("FLOODGATE_LONG").is_some() { 100 } else { 10 };
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(seed);
    let mut model = Model::default();
    println!("replay with FLOODGATE_SEED={seed}");
    for kill in 0..kills {
        let mut child = spawn(directory.path(), seed * 1_000 + kill);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "ready .\n" {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the process ended by itself");
        }
        let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(20 + random.below(400)));
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap().iter().for_each(|line| model.hear(line));
        model.killed();
        let waits = model.waits();
        runtime().block_on(async {
            let queue = open(directory.path(), &mut Registry::default());
            let topic = queue.topic("timeouts").await.unwrap();
            let found: BTreeSet<u64> =
                topic.read(None, usize::MAX).await.unwrap().iter().map(id_of).collect();
            let lost: Vec<&u64> = waits.difference(&found).collect();
            assert!(lost.is_empty(), "{} are lost after kill {kill}, the first is {:?}", lost.len(), lost[0]);
            queue.shutdown().await;
        });
    }
    let waits = model.waits();
    runtime().block_on(async {
        let queue = open(directory.path(), &mut Registry::default());
        let topic = queue.topic("timeouts").await.unwrap();
        let mut group = topic.group("closer", StartAt::Oldest).await.unwrap();
        while topic.lag("closer").await.unwrap().records > 0 {
            let messages = group.pull(BATCH, Duration::from_secs(60)).await.unwrap();
            let now = now_ms();
            messages.iter().for_each(|message| model.deliver(id_of(message), now));
            let positions: Vec<Position> = messages.iter().map(|message| message.position).collect();
            group.ack_all(&positions).await.unwrap();
        }
        drop(group);
        queue.shutdown().await;
    });
    let never: Vec<u64> = waits.into_iter().filter(|id| !model.records[id].in_hand).collect();
    assert!(never.is_empty(), "{} never came, the first is {:?}", never.len(), never.first());
    println!(
        "{kills} kills, {} records, {} deliveries, {} copies",
        model.records.len(),
        model.delivered,
        model.copies
    );
    assert!(model.copies > 0, "nothing was rewritten");
}
