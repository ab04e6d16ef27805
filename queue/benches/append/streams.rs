//! Redis's side: XADD with `appendfsync always` over loopback TCP, as many in the pipeline as we have in flight.
//!
//! The client writes prepared bytes and counts lines, which costs less than any library: a ratio that favours Redis.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use testbed::{AppendFsync, Redis, RedisOptions};

use crate::figures::Outcome;

pub(crate) struct Streams {
    server: Redis,
    connection: TcpStream,
}

impl Streams {
    pub(crate) fn start(directory: &Path) -> Self {
        let directory = directory.canonicalize().unwrap();
        // On the same disk as the log, and never rewriting its file meanwhile.
        let config = vec![
            ("dir".to_owned(), directory.display().to_string()),
            ("auto-aof-rewrite-percentage".to_owned(), "0".to_owned()),
        ];
        let options = RedisOptions { appendfsync: AppendFsync::Always, config, ..RedisOptions::default() };
        let server = Redis::start(options).unwrap_or_else(|error| panic!("{error}"));
        let connection = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        connection.set_nodelay(true).unwrap();
        Self { server, connection }
    }

    pub(crate) fn run(&mut self, bytes: usize, in_flight: usize, length: Duration, outcome: &mut Outcome) {
        let body = "x".repeat(bytes);
        let command = format!("*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nf\r\n${bytes}\r\n{body}\r\n");
        let commands = command.repeat(in_flight);
        let mut sent: VecDeque<Instant> = VecDeque::with_capacity(in_flight);
        let mut buffer = vec![0; 1 << 16];
        let mut lines = 0;
        let cpu = self.server.cpu();
        let started = Instant::now();
        let mut now = started;
        loop {
            let ends = now.duration_since(started) >= length;
            if ends && sent.is_empty() {
                break;
            }
            let missing = if ends { 0 } else { in_flight - sent.len() };
            self.connection.write_all(&commands.as_bytes()[..missing * command.len()]).unwrap();
            sent.extend(std::iter::repeat_n(Instant::now(), missing));
            let read = self.connection.read(&mut buffer).unwrap();
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
            now = Instant::now();
            // An answer is the entry's id as a bulk string: two lines.
            while lines >= 2 {
                lines -= 2;
                let since = sent.pop_front().unwrap();
                outcome.latencies.saturating_record(now.duration_since(since).as_nanos() as u64);
                outcome.records += 1;
            }
        }
        outcome.seconds += now.duration_since(started).as_secs_f64();
        outcome.cpu += self.server.cpu() - cpu;
        // Not measured: a stream that grows for ever would be Redis's memory, not its speed.
        self.server.command(&["DEL", "s"]).unwrap();
    }
}
