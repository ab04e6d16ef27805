//! What a refusal costs, what memory a million of them takes, and how fast orders are promised on a real disk.
//!
//! `cargo bench -p gateway`. The load comes from a thread of the same process; the server's CPU is that of its own threads
//! alone, from the scheduler's counters.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Options, SALE, Site};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REFUSAL_CONNECTIONS: usize = 64;
const REFUSALS: usize = 1_000_000;
const ORDERS: usize = 100_000;

fn main() {
    refusals();
    for connections in [1, 64, 512] {
        accepted(connections);
    }
}

fn refusals() {
    let mut options = Options::default();
    options.gateway.threads = 1;
    options.sale.total = 1;
    let site = Site::start(options);
    let (winner, _) = site.pass("winner");
    assert_eq!(site.buy(&winner, "{}").status, 202);
    let (pass, _) = site.pass_for(SALE, "late", u64::MAX);
    site.buy(&pass, "{}").is(410, "sold-out");
    let request = support::http::request(
        "POST",
        "/api/v1/sales/demo/orders",
        &[("Floodgate-Pass", &pass)],
        Some(b"{\"quantity\":1}"),
    );

    let one = Arc::new(vec![request]);
    let warm_up = press_all(site.address(), REFUSAL_CONNECTIONS, &one, REFUSALS / 10, 410);
    println!("warm-up: {} refusals in {:.2} s", REFUSALS / 10, warm_up.elapsed.as_secs_f64());
    let (memory, cpu) = (resident_kib(), server_cpu_us());
    let run = press_all(site.address(), REFUSAL_CONNECTIONS, &one, REFUSALS, 410);
    let (memory_after, cpu_after) = (resident_kib(), server_cpu_us());
    println!(
        "refusals (sold-out, {REFUSAL_CONNECTIONS} keep-alive connections, 1 server thread): {:.0}/s, {:.2} µs of server CPU each",
        REFUSALS as f64 / run.elapsed.as_secs_f64(),
        (cpu_after - cpu) / REFUSALS as f64,
    );
    println!("memory before and after {REFUSALS} refusals: {memory} KiB, {memory_after} KiB resident");
}

fn accepted(connections: usize) {
    let mut options = Options::default();
    options.gateway.threads = 1;
    options.sale.total = 10_000_000;
    options.sale.per_user_limit = 10;
    options.segment_bytes = 32 << 20;
    let site = Site::start(options);
    let orders = if connections == 1 { ORDERS / 20 } else { ORDERS };
    let requests: Vec<_> = (0..orders)
        .map(|n| {
            let (pass, _) = site.pass_for(SALE, &format!("user-{n}"), u64::MAX);
            let headers = [("Floodgate-Pass", pass.as_str())];
            support::http::request("POST", "/api/v1/sales/demo/orders", &headers, Some(b"{}"))
        })
        .collect();
    let cpu = server_cpu_us();
    let mut run = press_all(site.address(), connections, &Arc::new(requests), orders, 202);
    let cpu = server_cpu_us() - cpu;
    run.latencies_us.sort_unstable();
    let at = |share: f64| f64::from(run.latencies_us[((orders - 1) as f64 * share) as usize]) / 1_000.0;
    println!(
        "accepted ({connections} connections, 1 server thread): {:.0}/s, {:.2} µs of server CPU each; press to durable answer p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        orders as f64 / run.elapsed.as_secs_f64(),
        cpu / orders as f64,
        at(0.5),
        at(0.99),
        at(0.999),
    );
    assert_eq!(site.snapshot().pending, orders as u64);
}

struct Run {
    elapsed: Duration,
    latencies_us: Vec<u32>,
}

/// Sends `total` requests in turn over so many connections, one at a time on each; all must be answered with `status`.
fn press_all(
    address: SocketAddr,
    connections: usize,
    requests: &Arc<Vec<Vec<u8>>>,
    total: usize,
    status: u16,
) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let next = Arc::new(AtomicUsize::new(0));
    let expected = format!("HTTP/1.1 {status} ");
    runtime.block_on(async {
        let begin = Instant::now();
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let (requests, next, expected) = (requests.clone(), next.clone(), expected.clone());
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.expect("connected");
                    stream.set_nodelay(true).expect("nodelay");
                    let mut latencies = Vec::new();
                    let mut buffer = vec![0; 4_096];
                    loop {
                        let turn = next.fetch_add(1, Ordering::Relaxed);
                        if turn >= total {
                            break;
                        }
                        let request = &requests[turn % requests.len()];
                        let pressed = Instant::now();
                        stream.write_all(request).await.expect("sent");
                        let mut length = 0;
                        while !is_whole(&buffer[..length]) {
                            let read = stream.read(&mut buffer[length..]).await.expect("read");
                            assert!(read > 0, "closed");
                            length += read;
                        }
                        assert!(
                            buffer.starts_with(expected.as_bytes()),
                            "{}",
                            String::from_utf8_lossy(&buffer[..length])
                        );
                        // Of refusals memory is measured, so the measuring keeps none.
                        if status == 202 {
                            latencies.push(u32::try_from(pressed.elapsed().as_micros()).unwrap_or(u32::MAX));
                        }
                    }
                    latencies
                })
            })
            .collect();
        let mut latencies_us = Vec::new();
        for task in tasks {
            latencies_us.extend(task.await.expect("a client"));
        }
        Run { elapsed: begin.elapsed(), latencies_us }
    })
}

/// Whether an answer with Content-Length is all there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let text = std::str::from_utf8(&answer[..head]).expect("text");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    answer.len() >= head + 4 + length.parse::<usize>().expect("a number")
}

/// Microseconds on a CPU of the threads that serve the public, so far.
fn server_cpu_us() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs");
    let server = tasks
        .filter_map(Result::ok)
        .map(|task| task.path())
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "gateway-0"));
    server
        .filter_map(|task| fs::read_to_string(task.join("schedstat")).ok())
        .filter_map(|counters| counters.split(' ').next()?.parse::<f64>().ok())
        .sum::<f64>()
        / 1_000.0
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
