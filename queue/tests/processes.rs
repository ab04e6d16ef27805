//! Real processes and kill -9: a producer whose acknowledgements the parent keeps, a consumer in another process.
//!
//! A kill cannot prove the sync, since the page cache survives it: tests/faults.rs does that. `FLOODGATE_LONG=1` kills the
//! producer 200 times and the consumer of 100,000 delayed messages ten times.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use queue::{BehindMax, DiskOptions, LogAddress, NewRecord, Queue, QueueError, StartAt, Topic};

/// Messages that the consumer takes and acknowledges at once.
const BATCH: usize = 256;

const ROLE: &str = "FLOODGATE_QUEUE_CHILD";

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

fn options(directory: &Path) -> DiskOptions {
    let mut options = DiskOptions::new(directory, Arc::new(now_ms));
    options.segment_bytes = 1 << 20;
    options.ring_bytes = 1 << 20;
    options
}

fn long() -> bool {
    std::env::var_os("FLOODGATE_LONG").is_some()
}

/// Runs this test binary's [`child`] in a process of its own.
fn spawn(role: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(ROLE, role)
        .env("FLOODGATE_QUEUE_DIRECTORY", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn permit(topic: &Topic, bytes: usize) -> queue::Permit {
    loop {
        match topic.try_permit(bytes) {
            Ok(permit) => return permit,
            Err(refused) => assert!(refused.is_retryable(), "{refused}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the children do; nothing in the parent.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let directory = std::path::PathBuf::from(std::env::var_os("FLOODGATE_QUEUE_DIRECTORY").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    match role.as_str() {
        "producer" => runtime.block_on(produce(&directory)),
        "consumer" => runtime.block_on(consume(&directory)),
        role => panic!("no role {role}"),
    }
}

/// Appends at full rate and prints each acknowledged position with what was appended there.
async fn produce(directory: &Path) {
    let queue = Queue::open_disk(options(directory), &mut Registry::default()).unwrap();
    let topic = queue.topic("orders").await.unwrap();
    let mut number = now_ms() << 20;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nready").unwrap();
    loop {
        let appends: Vec<_> = (0..256)
            .map(|_| {
                number += 1;
                let mut payload = number.to_le_bytes().to_vec();
                payload.resize(200, number as u8);
                let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload: &payload };
                (number, topic.append(permit(&topic, 200), record))
            })
            .collect();
        let mut lines = String::new();
        for (number, append) in appends {
            let position = append.await.unwrap();
            lines.push_str(&format!("{position} {number}\n"));
        }
        out.write_all(lines.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn acknowledged_is_readable_after_every_kill_of_the_producer() {
    let directory = tempfile::tempdir().unwrap();
    let kills = if long() { 200 } else { 8 };
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut read_so_far = None;
    let mut total = 0;
    for kill in 0..kills {
        let mut child = spawn("producer", directory.path());
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the producer ended by itself");
        }
        // Some are killed before they got anything in, if the machine is slow enough.
        let mut first = String::new();
        if kill % 2 == 0 {
            assert!(output.read_line(&mut first).unwrap() > 0, "the producer ended by itself");
        }
        std::thread::sleep(Duration::from_millis(5 + (kill * 37) % 90));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut lines = first;
        output.read_to_string(&mut lines).unwrap();
        // The kill may have cut the last line.
        let whole = lines.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        for (position, number) in whole.filter_map(|line| line.split_once(' ')) {
            acknowledged.insert(position.parse().unwrap(), number.parse().unwrap());
        }
        let queue = Queue::open_disk(options(directory.path()), &mut Registry::default()).unwrap();
        let topic = queue.topic("orders").now_or_never().unwrap().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut numbers = BTreeSet::new();
            loop {
                let messages = topic.read(read_so_far, 10_000).await.unwrap();
                let Some(last) = messages.last() else { break };
                read_so_far = Some(last.position);
                for message in messages {
                    let number = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
                    assert!(message.payload[8..].iter().all(|byte| *byte == number as u8), "garbage");
                    assert!(numbers.insert(number), "twice");
                    let position = message.position.to_string().parse().unwrap();
                    let expected = acknowledged.remove(&position);
                    assert!(expected.is_none_or(|expected| expected == number), "at {position}");
                }
            }
            assert!(acknowledged.is_empty(), "lost after kill {kill}: {:?}", acknowledged.first_key_value());
            total += numbers.len();
            queue.shutdown().await;
        });
    }
    println!("{kills} kills, {total} records, all that were acknowledged among them");
    assert!(total > 0, "the producer got nothing in");
}

/// Takes messages as they become due and prints each before and after its acknowledgement.
async fn consume(directory: &Path) {
    let queue = Queue::attach(&LogAddress::from(directory), Arc::new(now_ms)).await.unwrap();
    let topic = queue.topic("timeouts").await.unwrap();
    let mut group = loop {
        match topic.group("closer", StartAt::Oldest).await {
            Ok(group) => break group,
            Err(QueueError::GroupHeld { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(matches!(topic.try_permit(1), Err(queue::Refused::Closed)), "not ours");
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nready").unwrap();
    loop {
        let messages = group.pull(BATCH, Duration::from_secs(1)).await.unwrap();
        let now = now_ms();
        let mut got = String::new();
        let mut done = String::new();
        for message in &messages {
            let due = message.deliver_at_ms.unwrap_or(message.appended_at_ms);
            assert!(due <= now, "early by {}", due - now);
            got.push_str(&format!("got {} {due} {} .\n", message.position, now - due));
            done.push_str(&format!("done {} .\n", message.position));
        }
        out.write_all(got.as_bytes()).unwrap();
        let positions: Vec<_> = messages.iter().map(|message| message.position).collect();
        group.ack_all(&positions).await.unwrap();
        out.write_all(done.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn delayed_messages_reach_a_group_that_is_killed_in_time_and_once() {
    let directory = tempfile::tempdir().unwrap();
    let (messages, kills, spread_ms) = if long() { (100_000, 10, 30_000) } else { (4_000, 3, 3_000) };
    let queue = Queue::open_disk(options(directory.path()), &mut Registry::default()).unwrap();
    let topic = queue.topic("timeouts").now_or_never().unwrap().unwrap();
    drop(topic.group("closer", StartAt::Oldest).now_or_never().unwrap().unwrap());
    let start = now_ms();
    let mut random = 12_345_u64;
    let mut appends = Vec::new();
    for number in 0..messages {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let deliver_at_ms = Some(start + (random >> 33) % spread_ms);
        let payload = u64::to_le_bytes(number);
        let record = NewRecord { key: b"k", tag: "timeout", deliver_at_ms, payload: &payload };
        appends.push(topic.append(permit(&topic, 8), record));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for append in appends {
            append.await.unwrap();
        }
    });

    let mut got: BTreeMap<u64, u32> = BTreeMap::new();
    let mut done = BTreeSet::new();
    let mut late = Vec::new();
    for life in 0..=kills {
        let mut child = spawn("consumer", directory.path());
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<_>>());
        let alive_since = now_ms();
        if life < kills {
            std::thread::sleep(Duration::from_millis(spread_ms / (kills + 1)));
        } else {
            let deadline = Instant::now() + Duration::from_secs(120);
            while topic.lag("closer").now_or_never().unwrap().unwrap().records > 0 {
                assert!(Instant::now() < deadline, "not at rest: {:?}", topic.lag("closer").now_or_never());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();

        // What came due while nobody was there is late by that: only what a living consumer was late by is a figure.
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            // The kill may have cut the last line, and a digit with it.
            match words[..] {
                ["got", position, due, behind, "."] => {
                    let position: u64 = position.parse().unwrap();
                    assert!(!done.contains(&position), "{position} came again after its acknowledgement");
                    *got.entry(position).or_default() += 1;
                    if due.parse::<u64>().unwrap() > alive_since + 500 {
                        late.push(behind.parse::<u64>().unwrap());
                    }
                }
                ["done", position, "."] => {
                    done.insert(position.parse::<u64>().unwrap());
                }
                _ => {}
            }
        }
    }
    // Each is printed before its acknowledgement, so that whatever is finished has been seen.
    let missing: Vec<u64> = (1..=messages).filter(|position| !got.contains_key(position)).collect();
    assert!(missing.is_empty(), "{} never seen, the first {:?}", missing.len(), missing.first());
    // A kill repeats at most the one batch that was under way.
    let repeated = got.values().filter(|times| **times > 1).count() as u64;
    assert!(repeated <= BATCH as u64 * kills, "{repeated} came again");
    late.sort_unstable();
    if let Some(worst) = late.last() {
        println!(
            "late, of {}, in ms: p50 {}, p99 {}, max {worst}",
            late.len(),
            late[late.len() / 2],
            late[late.len() * 99 / 100]
        );
    }
    println!("{messages} messages, {kills} kills, {repeated} repeated, {} done", done.len());
    runtime.block_on(queue.shutdown());
}

/// The owner cuts it off, and only its file tells the consumer.
#[tokio::test]
async fn a_group_that_another_handle_holds_is_cut_off_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut owners = options(directory.path());
    owners.segment_bytes = 64 * 1024;
    let queue = Queue::open_disk(owners, &mut Registry::default()).unwrap();
    let topic = queue.topic("timeouts").await.unwrap();
    let attached = Queue::attach(&LogAddress::from(directory.path()), Arc::new(now_ms)).await.unwrap();
    let attached = attached.topic("timeouts").await.unwrap();
    let mut late = attached.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(10), age: None })).await.unwrap();
    let mut appended = 0;
    while topic.lag("late").await.unwrap().records == appended {
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: &[7; 8_000] };
        topic.append(permit(&topic, 8_000), record).await.unwrap();
        appended += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let Err(QueueError::Cut { records, through, .. }) = late.pull(1, Duration::ZERO).await else {
        panic!("not told")
    };
    assert_eq!(records.to_string(), through.to_string(), "from the first record on");
    let rest = late.pull(usize::MAX, Duration::ZERO).await.unwrap();
    assert_eq!(rest.len() as u64, appended - records);
    late.commit(rest.last().unwrap().position).await.unwrap();
    assert_eq!(topic.lag("late").await.unwrap().records, 0);
    queue.shutdown().await;
}

#[test]
fn a_consumer_in_another_process_hears_of_every_record() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open_disk(options(directory.path()), &mut Registry::default()).unwrap();
    let topic = queue.topic("timeouts").now_or_never().unwrap().unwrap();
    let mut child = spawn("consumer", directory.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while lines.next().unwrap().unwrap() != "ready" {}
    let mut times = Vec::new();
    // That it is woken and does not only look again: `storage/real.rs`.
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(3));
        let record = NewRecord { key: b"k", tag: "t", deliver_at_ms: None, payload: b"x" };
        topic.append_blocking(permit(&topic, 1), record).unwrap();
        let acknowledged = Instant::now();
        while !lines.next().unwrap().unwrap().starts_with("got") {}
        times.push(acknowledged.elapsed());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    times.sort_unstable();
    println!(
        "acknowledged to seen in another process: p50 {:?}, p90 {:?}, max {:?}",
        times[50], times[90], times[99]
    );
}

#[test]
fn a_second_process_is_told_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = spawn("producer", directory.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while lines.next().unwrap().unwrap() != "ready" {}
    let error = Queue::open_disk(options(directory.path()), &mut Registry::default()).unwrap_err();
    assert!(matches!(error, QueueError::InUse { .. }), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    Queue::open_disk(options(directory.path()), &mut Registry::default()).unwrap();
}
