//! A Redis server of one's own.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::{find, run};
use crate::{Directory, Error, Port, Process, ProcessOptions};

/// How long a question that shows readiness may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);
const PACKAGE: &str = "redis-server";

/// When the append-only file is synced; `Off`: there is none, and a restart has forgotten everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendFsync {
    /// No append-only file and no snapshots.
    Off,
    /// By the operating system.
    No,
    /// Once a second.
    #[default]
    Everysec,
    /// Before every answer.
    Always,
}

/// How a Redis is started.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Durability.
    pub appendfsync: AppendFsync,
    /// Further lines of redis.conf; they come last and so override.
    pub config: Vec<(String, String)>,
    /// A certain port instead of any free one.
    pub port: Option<u16>,
}

/// A running Redis. Snapshots are off; `maxmemory-policy` is `noeviction`.
#[derive(Debug)]
pub struct Redis {
    // In this order: the process ends, then its data go, then its port is free.
    process: Process,
    _directory: Directory,
    port: Port,
}

impl Redis {
    /// Starts one and waits until it answers PING.
    pub fn start(options: RedisOptions) -> Result<Self, Error> {
        let sync = match options.appendfsync {
            AppendFsync::Off | AppendFsync::No => "no",
            AppendFsync::Everysec => "everysec",
            AppendFsync::Always => "always",
        };
        let append = if options.appendfsync == AppendFsync::Off { "no" } else { "yes" };
        let mut lines = vec![
            ("save".to_owned(), "\"\"".to_owned()),
            ("appendonly".to_owned(), append.to_owned()),
            ("appendfsync".to_owned(), sync.to_owned()),
            ("maxmemory-policy".to_owned(), "noeviction".to_owned()),
            // A replica follows at once instead of after 5 s.
            ("repl-diskless-sync-delay".to_owned(), "0".to_owned()),
            ("enable-debug-command".to_owned(), "local".to_owned()),
        ];
        lines.extend(options.config);
        Self::launch("redis", &[], lines, options.port)
    }

    pub(crate) fn launch(
        name: &str,
        flags: &[&str],
        lines: Vec<(String, String)>,
        port: Option<u16>,
    ) -> Result<Self, Error> {
        let program = find("redis-server", PACKAGE)?;
        let port = port.map_or_else(Port::claim, Port::take)?;
        let directory = Directory::new(name)?;
        let mut text = format!(
            "port {}\nbind 127.0.0.1\ndaemonize no\ndir {}\n",
            port.number(),
            directory.path().display()
        );
        for (key, value) in lines {
            text.push_str(&format!("{key} {value}\n"));
        }
        let file = directory.write("redis.conf", &text)?;
        let mut arguments = vec![OsString::from(file)];
        arguments.extend(flags.iter().map(OsString::from));
        let options = ProcessOptions {
            name: format!("{name} on port {}", port.number()),
            program,
            arguments,
            environment: Default::default(),
            directory: directory.path().to_owned(),
            log: directory.path().join("log"),
        };
        let number = port.number();
        // Not yet: -LOADING while it reads its file.
        let ready = move || ask(number, "PING\r\n").is_some_and(|answer| answer.starts_with("+PONG"));
        let redis = Self { process: Process::new(options, ready), _directory: directory, port };
        redis.process.start()?;
        Ok(redis)
    }

    /// `redis://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// Its port; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Carries out one command by redis-cli; an error reply is an error.
    pub fn command(&self, arguments: &[&str]) -> Result<String, Error> {
        let port = self.port().to_string();
        let mut all = vec!["-e", "-h", "127.0.0.1", "-p", &port];
        all.extend(arguments);
        run(&client()?, &all, &[])
    }

    /// One field of INFO, such as `run_id` or `master_link_status`.
    pub fn info(&self, field: &str) -> Result<String, Error> {
        let all = self.command(&["INFO", "everything"])?;
        all.lines()
            .find_map(|line| line.trim_end().strip_prefix(field)?.strip_prefix(':'))
            .map(str::to_owned)
            .ok_or_else(|| Error::new(format!("INFO has no {field}")))
    }
}

impl Deref for Redis {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

fn client() -> Result<PathBuf, Error> {
    find("redis-cli", "redis-tools")
}

/// Sends a line and reads what comes at once; nothing if nobody is there. Serves whatever speaks in lines.
pub(crate) fn ask(port: u16, line: &str) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ASK_WITHIN).ok()?;
    stream.set_read_timeout(Some(ASK_WITHIN)).ok()?;
    stream.set_write_timeout(Some(ASK_WITHIN)).ok()?;
    stream.write_all(line.as_bytes()).ok()?;
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}
