//! A Redis primary, its replicas and three sentinels that watch them.

use std::time::Duration;

use crate::{AppendFsync, Error, Redis, RedisOptions};

/// What the sentinels call the primary.
const MASTER: &str = "floodgate";
const SENTINELS: usize = 3;
/// How long they may take to find each other and the replicas, or to agree on another primary. A sentinel that was not given
/// the processor for 2 s mistrusts its clock and does nothing for 30 s.
const AGREE_WITHIN: Duration = Duration::from_secs(240);
/// A primary that says nothing for so long is replaced. Less, and one that merely waits for the processor would be.
const DOWN_AFTER_MS: u32 = 3_000;

/// A watched primary. Dropped as a whole.
#[derive(Debug)]
pub struct Sentinel {
    // Sentinels end first: they should not fail over what is being taken down.
    sentinels: Vec<Redis>,
    replicas: Vec<Redis>,
    primary: Redis,
}

impl Sentinel {
    /// Starts one primary, `replicas` replicas and three sentinels, and waits until all know each other.
    pub fn start(replicas: usize) -> Result<Self, Error> {
        Self::start_with(replicas, AppendFsync::default())
    }

    /// The same with another durability.
    pub fn start_with(replicas: usize, appendfsync: AppendFsync) -> Result<Self, Error> {
        let primary = Redis::start(RedisOptions { appendfsync, ..Default::default() })?;
        let of = format!("127.0.0.1 {}", primary.port());
        let replicas = (0..replicas)
            .map(|_| {
                let config = vec![("replicaof".to_owned(), of.clone())];
                Redis::start(RedisOptions { appendfsync, config, port: None })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let sentinels = (0..SENTINELS)
            .map(|_| {
                let lines = vec![
                    ("sentinel".to_owned(), format!("monitor {MASTER} {of} 2")),
                    ("sentinel".to_owned(), format!("down-after-milliseconds {MASTER} {DOWN_AFTER_MS}")),
                    ("sentinel".to_owned(), format!("failover-timeout {MASTER} 3000")),
                ];
                Redis::launch("sentinel", &["--sentinel"], lines, None)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let all = Self { sentinels, replicas, primary };
        all.wait_until_together()?;
        Ok(all)
    }

    fn wait_until_together(&self) -> Result<(), Error> {
        let knows = |sentinel: &Redis, field: &str, count: usize| {
            sentinel
                .command(&["SENTINEL", "MASTER", MASTER])
                .is_ok_and(|answer| field_of(&answer, field) == Some(count.to_string().as_str()))
        };
        for sentinel in &self.sentinels {
            sentinel.wait_until("knows all others", AGREE_WITHIN, || {
                knows(sentinel, "num-slaves", self.replicas.len())
                    && knows(sentinel, "num-other-sentinels", SENTINELS - 1)
            })?;
        }
        for replica in &self.replicas {
            replica.wait_until("follows", AGREE_WITHIN, || {
                replica.info("master_link_status").is_ok_and(|status| status == "up")
            })?;
        }
        Ok(())
    }

    /// The server that was the primary at the start.
    pub fn primary(&self) -> &Redis {
        &self.primary
    }

    /// The servers that were replicas at the start.
    pub fn replicas(&self) -> &[Redis] {
        &self.replicas
    }

    /// The sentinels themselves, to be killed or frozen.
    pub fn sentinels(&self) -> &[Redis] {
        &self.sentinels
    }

    /// `redis://127.0.0.1:PORT` of each sentinel.
    pub fn sentinel_urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Redis::url).collect()
    }

    /// What the sentinels call the primary.
    pub fn master_name(&self) -> &str {
        MASTER
    }

    /// The server that a majority of the sentinels now calls the primary, if one does.
    pub fn current(&self) -> Option<&Redis> {
        let mut ports: Vec<u16> = self
            .sentinels
            .iter()
            .filter_map(|sentinel| sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).ok())
            .filter_map(|answer| answer.lines().nth(1)?.trim().parse().ok())
            .collect();
        ports.sort_unstable();
        let majority = ports.windows(SENTINELS / 2 + 1).find(|same| same.first() == same.last())?;
        let port = *majority.first()?;
        std::iter::once(&self.primary).chain(&self.replicas).find(|redis| redis.port() == port)
    }

    /// Waits until another server than `old` is the primary and takes writes.
    pub fn wait_for_other_primary(&self, old: &Redis) -> Result<&Redis, Error> {
        let mut found = None;
        let any = self.sentinels.first().ok_or_else(|| Error::new("no sentinel"))?;
        any.wait_until("has failed over", AGREE_WITHIN, || {
            found = self.current().filter(|redis| redis.port() != old.port());
            found.is_some_and(|redis| redis.info("role").is_ok_and(|role| role == "master"))
        })?;
        found.ok_or_else(|| Error::new("no primary"))
    }
}

/// redis-cli prints a map as alternating lines.
fn field_of<'a>(answer: &'a str, field: &str) -> Option<&'a str> {
    let mut lines = answer.lines();
    while let (Some(name), Some(value)) = (lines.next(), lines.next()) {
        if name == field {
            return Some(value);
        }
    }
    None
}
