//! Connections that press as fast as they are answered, one request at a time on each. Their processor time is nobody's figure.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const HEAD_AND_BODY_MAX: usize = 4_096;

/// Keep-alive connections to one server.
pub(crate) struct Crowd {
    runtime: Runtime,
    connections: Vec<TcpStream>,
}

/// What a turn took.
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    pub(crate) latencies_us: Vec<u32>,
}

/// What the connections share during a turn.
struct Presses {
    requests: Vec<Vec<u8>>,
    count: usize,
    next: AtomicUsize,
    /// How every answer has to begin.
    begin: Vec<u8>,
}

impl Presses {
    fn next(&self) -> Option<&[u8]> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        (turn < self.count).then(|| self.requests[turn % self.requests.len()].as_slice())
    }
}

impl Crowd {
    pub(crate) fn connect(port: u16, connections: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let connect = async || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connected");
            stream.set_nodelay(true).expect("nodelay");
            stream
        };
        let connections = (0..connections).map(|_| runtime.block_on(connect())).collect();
        Self { runtime, connections }
    }

    /// Sends `count` requests, these in turn. Every answer must have this status.
    pub(crate) fn press(&mut self, requests: Vec<Vec<u8>>, count: usize, status: u16) -> Run {
        let presses = Arc::new(Presses {
            requests,
            count,
            next: AtomicUsize::new(0),
            begin: format!("HTTP/1.1 {status} ").into_bytes(),
        });
        let connections = std::mem::take(&mut self.connections);
        let (connections, run) = self.runtime.block_on(async {
            let begin = Instant::now();
            let press = |connection| tokio::spawn(press(connection, presses.clone()));
            let tasks: Vec<_> = connections.into_iter().map(press).collect();
            let (mut connections, mut latencies_us) = (Vec::new(), Vec::new());
            for task in tasks {
                let (connection, latencies) = task.await.expect("every answer is the expected one");
                connections.push(connection);
                latencies_us.extend(latencies);
            }
            (connections, Run { elapsed: begin.elapsed(), latencies_us })
        });
        self.connections = connections;
        run
    }
}

async fn press(mut connection: TcpStream, presses: Arc<Presses>) -> (TcpStream, Vec<u32>) {
    let mut latencies_us = Vec::new();
    let mut buffer = vec![0; HEAD_AND_BODY_MAX];
    while let Some(request) = presses.next() {
        let pressed = Instant::now();
        connection.write_all(request).await.expect("sent");
        let mut length = 0;
        while !is_whole(&buffer[..length]) {
            let read = connection.read(&mut buffer[length..]).await.expect("read");
            assert!(read > 0, "the server hung up after {:?}", String::from_utf8_lossy(&buffer[..length]));
            length += read;
        }
        assert!(buffer.starts_with(&presses.begin), "{}", String::from_utf8_lossy(&buffer[..length]));
        latencies_us.push(u32::try_from(pressed.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    (connection, latencies_us)
}

/// Whether an answer with Content-Length is all there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = std::str::from_utf8(&answer[..head]).expect("text");
    let length = text.lines().filter_map(|line| line.split_once(": "));
    let length = length
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, length)| length.parse::<usize>().ok());
    answer.len() >= head + 4 + length.expect("a length")
}
