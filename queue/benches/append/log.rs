//! Our side: one task keeps so many appends under way, as the gateway's batches do, and times each of them.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use queue::{
    Append, AppendError, BatchTrace, DiskOptions, Group, NewRecord, Position, Queue, StartAt, Topic, Trace,
};

use crate::figures::Outcome;

/// Ring of the log, in bytes.
pub(crate) const RING_BYTES: usize = 16 << 20;

/// Traces kept at most: a slice has fewer batches.
const TRACES_MAX: usize = 200_000;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// Appends after which the one task looks for acknowledgements: it is all clients in one.
const LOOK_EVERY: usize = 32;

/// Whether it is settled by now.
fn look(append: &mut Append) -> Option<Result<Position, AppendError>> {
    match Pin::new(append).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(position) => Some(position),
        Poll::Pending => None,
    }
}

/// The slowest acknowledgement seen, with the batches around it.
pub(crate) struct Worst {
    pub(crate) label: String,
    waited: Duration,
    appended: Instant,
    seen: Instant,
    position: Position,
    traces: Vec<BatchTrace>,
}

pub(crate) struct Log {
    queue: Queue,
    topic: Topic,
    group: Group,
    registry: Registry,
    traces: Arc<Mutex<Vec<BatchTrace>>>,
    pub(crate) worst: Option<Worst>,
}

impl Log {
    pub(crate) fn open(directory: &Path) -> Self {
        let traces: Arc<Mutex<Vec<BatchTrace>>> = Arc::new(Mutex::new(Vec::with_capacity(TRACES_MAX)));
        let mut options = DiskOptions::new(directory, Arc::new(now_ms));
        options.ring_bytes = RING_BYTES;
        options.backlog_max = u64::MAX / 2;
        let keep = Arc::clone(&traces);
        options.trace = Some(Trace(Arc::new(move |batch| {
            let mut traces = keep.lock().unwrap();
            if traces.len() < TRACES_MAX {
                traces.push(*batch);
            }
        })));
        let mut registry = Registry::default();
        let queue = Queue::open_disk(options, &mut registry).unwrap();
        let topic = queue.topic("bench").now_or_never().unwrap().unwrap();
        // A consumer that has everything done soon, so that segments are recycled as in production.
        let group = topic.group("bench", StartAt::Oldest).now_or_never().unwrap().unwrap();
        Self { queue, topic, group, registry, traces, worst: None }
    }

    /// One slice. The appends still under way at its end are waited for and not counted.
    pub(crate) async fn run(
        &mut self,
        bytes: usize,
        in_flight: usize,
        length: Duration,
        outcome: &mut Outcome,
    ) {
        self.traces.lock().unwrap().clear();
        let payload = vec![7; bytes];
        let mut under_way: VecDeque<(Instant, Append)> = VecDeque::with_capacity(in_flight);
        let mut slowest: Option<(Duration, Instant, Instant, Position)> = None;
        let before =
            (cpu(), cpu_log(), self.counter("written_bytes"), self.counter("batches"), sent_to_disk());
        let started = Instant::now();
        let mut committed = started;
        let mut now = started;
        while now.duration_since(started) < length {
            let room = in_flight - under_way.len();
            for _ in 0..room.min(LOOK_EVERY) {
                let Ok(permit) = self.topic.try_permit(bytes) else { break };
                let record = NewRecord {
                    key: b"01JD0000000000000000000000",
                    tag: "order",
                    deliver_at_ms: None,
                    payload: &payload,
                };
                under_way.push_back((Instant::now(), self.topic.append(permit, record)));
            }
            let Some((_, first)) = under_way.front_mut() else {
                tokio::task::yield_now().await;
                now = Instant::now();
                continue;
            };
            let mut settled = if room <= LOOK_EVERY {
                Some(std::future::poll_fn(|context| Pin::new(&mut *first).poll(context)).await)
            } else {
                look(first)
            };
            now = Instant::now();
            // The rest of the batch is ready too: the first one's wake-up was for all.
            while let Some(position) = settled {
                let position = position.unwrap();
                let (since, _) = under_way.pop_front().unwrap();
                let waited = now.duration_since(since);
                outcome.latencies.saturating_record(waited.as_nanos() as u64);
                outcome.records += 1;
                if slowest.is_none_or(|(most, ..)| waited > most) {
                    slowest = Some((waited, since, now, position));
                }
                settled = under_way.front_mut().and_then(|(_, append)| look(append));
            }
            if committed.elapsed() > Duration::from_millis(20) {
                committed = now;
                self.group.commit(self.topic.end().unwrap()).await.unwrap();
            }
        }
        outcome.seconds += now.duration_since(started).as_secs_f64();
        outcome.cpu += cpu() - before.0;
        outcome.cpu_log += cpu_log() - before.1;
        outcome.written += self.counter("written_bytes") - before.2;
        outcome.batches += self.counter("batches") - before.3;
        for pair in self.traces.lock().unwrap().windows(2) {
            let (before, batch) = (&pair[0], &pair[1]);
            let stages = [
                batch.started - before.released_at,
                batch.gathered_at - batch.started,
                batch.sealed_at - batch.gathered_at,
                batch.durable_at - batch.sealed_at,
                batch.released_at - batch.durable_at,
            ];
            for (sum, stage) in outcome.stages.iter_mut().zip(stages) {
                *sum += stage.as_nanos() as u64;
            }
        }
        for (_, append) in under_way {
            append.await.unwrap();
        }
        outcome.written_all += sent_to_disk() - before.4;
        self.group.commit(self.topic.end().unwrap()).await.unwrap();
        if let Some((waited, appended, seen, position)) = slowest
            && self.worst.as_ref().is_none_or(|worst| waited > worst.waited)
        {
            let traces = self.traces.lock().unwrap().clone();
            let label = format!("{bytes} bytes, {in_flight} in flight");
            self.worst = Some(Worst { label, waited, appended, seen, position, traces });
        }
    }

    /// Fills a log with `records` that no group takes, and tells how long its next open reads.
    pub(crate) async fn reopen(directory: &Path, records: usize) {
        let mut log = Self::open(directory);
        let payload = [7; 300];
        let before = log.counter("written_bytes");
        for _ in 0..records / 1_000 {
            let mut under_way = Vec::with_capacity(1_000);
            while under_way.len() < 1_000 {
                let record = NewRecord { key: b"k", tag: "order", deliver_at_ms: None, payload: &payload };
                match log.topic.try_permit(300) {
                    Ok(permit) => under_way.push(log.topic.append(permit, record)),
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
            for append in under_way {
                append.await.unwrap();
            }
        }
        let bytes = log.counter("written_bytes") - before;
        log.worst = None;
        log.shutdown().await;
        let started = Instant::now();
        let log = Self::open(directory);
        let took = started.elapsed();
        println!(
            "open with a backlog of {records} records, {} MiB, in the page cache: {:.2} s, {:.2} s a GiB",
            bytes >> 20,
            took.as_secs_f64(),
            took.as_secs_f64() / (bytes as f64 / f64::from(1 << 30)),
        );
        log.shutdown().await;
    }

    pub(crate) async fn shutdown(self) -> Option<Worst> {
        drop(self.group);
        self.queue.shutdown().await;
        self.worst
    }

    /// The value of a counter in the registry's text.
    fn counter(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let begin = format!("floodgate_queue_{name}_total{{");
        let line = text.lines().find(|line| line.starts_with(&begin));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
    }
}

impl Worst {
    /// Where the time of the slowest acknowledgement went, stage by stage.
    pub(crate) fn explain(&self) {
        let number = |position: Position| position.to_string().parse::<u64>().unwrap();
        let wanted = number(self.position);
        let Some(at) = self
            .traces
            .iter()
            .position(|batch| (number(batch.first)..number(batch.first) + batch.records).contains(&wanted))
        else {
            println!("the worst acknowledgement ({}) has no trace", self.label);
            return;
        };
        let own = &self.traces[at];
        let since = |at: Instant| at.saturating_duration_since(self.appended).as_micros();
        println!(
            "the worst acknowledgement: {} µs ({}). Its batch ({} records, {} KiB) was begun {} µs after the append, gathered at {}, sealed at {}, durable at {}, released at {}; its client saw it at {}.",
            self.waited.as_micros(),
            self.label,
            own.records,
            own.bytes / 1024,
            since(own.started.into_std()),
            since(own.gathered_at.into_std()),
            since(own.sealed_at.into_std()),
            since(own.durable_at.into_std()),
            since(own.released_at.into_std()),
            since(self.seen),
        );
        for before in
            self.traces[..at].iter().rev().take_while(|batch| batch.released_at.into_std() > self.appended)
        {
            println!(
                "  meanwhile a batch of {} records: write and sync took {} µs and ended at {} µs",
                before.records,
                (before.durable_at - before.sealed_at).as_micros(),
                since(before.durable_at.into_std()),
            );
        }
    }
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    thread_cpu(|_| true)
}

/// CPU time of the log's own threads so far.
fn cpu_log() -> Duration {
    thread_cpu(|name| name.starts_with("queue-"))
}

fn thread_cpu(wanted: impl Fn(&str) -> bool) -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let (Ok(name), Ok(stat)) =
            (std::fs::read_to_string(task.join("comm")), std::fs::read_to_string(task.join("schedstat")))
        else {
            continue;
        };
        if wanted(name.trim()) {
            nanos += stat.split_whitespace().next().map_or(0, |nanos| nanos.parse::<u64>().unwrap());
        }
    }
    Duration::from_nanos(nanos)
}

/// Bytes that this process has sent to the disk so far.
fn sent_to_disk() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.map_or(0, |bytes| bytes.parse().unwrap())
}

/// The most memory that this process has had, in MiB.
pub(crate) fn memory_peak_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()).map_or(0, |kib| kib.parse::<u64>().unwrap() / 1024)
}
