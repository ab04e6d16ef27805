//! Durable appends: records/s, latencies, CPU, write amplification, and batches/s against the device's own sync rate in the
//! same run. `cargo bench -p queue [-- QUICK]`; with `redis-server` on the machine, Redis Streams beside it.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::io::{Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::registry::Registry;
use queue::{Append, DiskOptions, NewRecord, Queue, operator};

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// CPU time of this process so far, all threads.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The value of a counter in the registry's text.
fn counter(registry: &Registry, name: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}_total{{")));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
}

struct Outcome {
    records: u64,
    seconds: f64,
    latencies: Vec<u32>,
    cpu: Duration,
    written: u64,
    batches: u64,
}

/// Keeps `in_flight` appends under way from one task, as a purchase batcher does, and times each.
async fn append_run(directory: &Path, bytes: usize, in_flight: usize, length: Duration) -> Outcome {
    let mut registry = Registry::default();
    let mut options = DiskOptions::new(directory, Arc::new(now_ms));
    options.segment_bytes = 64 << 20;
    options.ring_bytes = 16 << 20;
    options.backlog_max = u64::MAX / 2;
    let queue = Queue::open_disk(options, &mut registry).unwrap();
    let topic = queue.topic("bench").unwrap();
    // A consumer that has everything done at once, so that segments are recycled as in production.
    let mut group = topic.group("bench").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let payload = vec![7; bytes];
    let mut under_way: std::collections::VecDeque<(Instant, Append)> = std::collections::VecDeque::new();
    let mut latencies: Vec<u32> = Vec::with_capacity(8 << 20);
    let (cpu_before, started) = (cpu(), Instant::now());
    let mut committed = Instant::now();
    while started.elapsed() < length {
        while under_way.len() < in_flight {
            let Ok(permit) = topic.try_permit(bytes) else { break };
            let record = NewRecord {
                key: b"01JD0000000000000000000000",
                tag: "order",
                deliver_at_ms: None,
                payload: &payload,
            };
            under_way.push_back((Instant::now(), topic.append(permit, record)));
        }
        if under_way.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        let (_, first) = under_way.front_mut().unwrap();
        std::future::poll_fn(|context| Pin::new(&mut *first).poll(context)).await.unwrap();
        let now = Instant::now();
        latencies.push(now.duration_since(under_way.pop_front().unwrap().0).as_nanos() as u32);
        // The rest of the batch is ready too: the first one's wake-up was for all.
        while let Some((since, append)) = under_way.front_mut() {
            let waker = std::task::Waker::noop();
            match Pin::new(append).poll(&mut std::task::Context::from_waker(waker)) {
                Poll::Ready(outcome) => {
                    outcome.unwrap();
                    latencies.push(now.duration_since(*since).as_nanos() as u32);
                    under_way.pop_front();
                }
                Poll::Pending => break,
            }
        }
        if committed.elapsed() > Duration::from_millis(20) {
            committed = Instant::now();
            let end = topic.end().unwrap();
            group.commit(end).await.unwrap();
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu() - cpu_before;
    for (_, append) in under_way {
        append.await.unwrap();
    }
    let records = latencies.len() as u64;
    let (written, batches) =
        (counter(&registry, "floodgate_queue_written_bytes"), counter(&registry, "floodgate_queue_batches"));
    drop(group);
    queue.shutdown().await;
    Outcome { records, seconds, latencies, cpu, written, batches }
}

fn micros(latencies: &[u32], quantile: f64) -> f64 {
    let at = ((latencies.len() - 1) as f64 * quantile).round() as usize;
    f64::from(latencies[at]) / 1000.0
}

fn print(label: &str, bytes: usize, in_flight: usize, mut outcome: Outcome, sync_rate: f64) -> f64 {
    outcome.latencies.sort_unstable();
    let rate = outcome.records as f64 / outcome.seconds;
    let quantiles =
        [0.5, 0.99, 0.999, 1.0].map(|quantile| format!("{:.0}", micros(&outcome.latencies, quantile)));
    let cpu = outcome.cpu.as_secs_f64() * 1e6 / outcome.records as f64;
    let amplification = outcome.written as f64 / (outcome.records.max(1) as f64 * bytes as f64);
    let batches = outcome.batches as f64 / outcome.seconds;
    println!(
        "| {label} | {bytes} | {in_flight} | {rate:.0} | {} | {cpu:.2} | {amplification:.2} | {batches:.0} | {:.2} |",
        quantiles.join(" / "),
        batches / sync_rate,
    );
    rate
}

struct Redis(Child, std::net::TcpStream);

impl Redis {
    fn start(directory: &Path) -> Option<Self> {
        let port = "46379";
        let child = Command::new("redis-server")
            .args(["--port", port, "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"])
            .args(["--save", "", "--dir"])
            .arg(directory)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(50));
            if let Ok(stream) = std::net::TcpStream::connect(("127.0.0.1", 46379)) {
                stream.set_nodelay(true).ok()?;
                return Some(Self(child, stream));
            }
        }
        None
    }

    /// XADDs with `in_flight` outstanding in one pipeline.
    fn run(&mut self, bytes: usize, in_flight: usize, length: Duration) -> Outcome {
        let body = "x".repeat(bytes);
        let command = format!("*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nf\r\n${bytes}\r\n{body}\r\n");
        let mut sent: std::collections::VecDeque<Instant> = std::collections::VecDeque::new();
        let mut latencies = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        let started = Instant::now();
        let mut lines = 0;
        while started.elapsed() < length {
            let missing = in_flight - sent.len();
            self.1.write_all(command.repeat(missing).as_bytes()).unwrap();
            let now = Instant::now();
            sent.extend(std::iter::repeat_n(now, missing));
            let read = self.1.read(&mut buffer).unwrap();
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
            let now = Instant::now();
            while lines >= 2 {
                lines -= 2;
                latencies.push(now.duration_since(sent.pop_front().unwrap()).as_nanos() as u32);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        while !sent.is_empty() {
            let read = self.1.read(&mut buffer).unwrap();
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
            while lines >= 2 {
                lines -= 2;
                sent.pop_front();
            }
        }
        let records = latencies.len() as u64;
        Outcome { records, seconds, latencies, cpu: Duration::ZERO, written: 0, batches: 0 }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "QUICK");
    let length = Duration::from_millis(if quick { 500 } else { 3000 });
    // On the disk that the build is on, not on a tmpfs.
    let base = std::env::var_os("FLOODGATE_BENCH_DIR").map_or_else(|| ".".into(), std::path::PathBuf::from);
    let directory = tempfile::Builder::new().prefix("queue-bench").tempdir_in(base).unwrap();
    let probed = operator::probe_disk(directory.path()).unwrap();
    println!(
        "disk: one sync of 4 KiB: fdatasync {} µs, O_DIRECT|O_DSYNC {:?} µs; chosen {}",
        operator::micros(probed.data_sync),
        probed.direct_write.map(operator::micros),
        probed.chosen()
    );
    let sync = probed.direct_write.map_or(probed.data_sync, |direct| direct.min(probed.data_sync));
    let sync_rate = 1.0 / sync.as_secs_f64();
    println!(
        "| | bytes | in flight | records/s | p50 / p99 / p99.9 / max µs | CPU µs a record | written per payload byte | batches/s | of the sync rate |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut redis_directory = directory.path().join("redis");
    std::fs::create_dir_all(&redis_directory).unwrap();
    redis_directory = redis_directory.canonicalize().unwrap();
    let mut redis = Redis::start(&redis_directory);
    for bytes in [100, 200, 300] {
        for in_flight in [1, 64, 1024, 4096] {
            let place = directory.path().join(format!("{bytes}-{in_flight}"));
            let outcome = runtime.block_on(append_run(&place, bytes, in_flight, length));
            let ours = print("queue, in process", bytes, in_flight, outcome, sync_rate);
            std::fs::remove_dir_all(&place).unwrap();
            if let Some(redis) = &mut redis {
                let outcome = redis.run(bytes, in_flight, length);
                let theirs =
                    print("Redis Streams, always, loopback TCP", bytes, in_flight, outcome, f64::NAN);
                println!("| ratio | | | {:.1} | | | | | |", ours / theirs);
            }
        }
    }
    if redis.is_none() {
        println!("no redis-server on this machine: its side is left out");
    }
}
