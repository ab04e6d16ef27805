//! An independent reader of what the ledger holds in Redis: it counts orders and units from the raw keys, page by page, and
//! says whether they add up. It writes nothing and shares no code with what it audits, client library included.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ReconnectPolicy, Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use serde::Serialize;

use crate::config::RedisMode;
use crate::{SaleId, StockConfig};

mod pending;

pub use pending::LongPending;

/// fred waits for ever without one.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long connecting may take, Sentinels included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Entries that one command is asked for; Redis may answer with a few more.
const PAGE: &str = "512";
/// Entries of the list of fresh ids that are read at once: an entry has up to 8 KiB.
const FRESH_PAGE: i64 = 64;
/// Findings that are spelled out.
const FINDINGS_MAX: usize = 20;

/// Why nothing can be said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// Another place or login is needed.
    #[error("stock.redis_urls: {0}")]
    Config(String),
    /// No answer.
    #[error("the audit cannot read Redis: {0}")]
    Unavailable(String),
}

impl From<fred::error::Error> for AuditError {
    fn from(error: fred::error::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// What was counted, entry by entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Ids that are pending.
    pub pending_orders: u64,
    /// Their units.
    pub pending_units: u64,
    /// Ids that are confirmed.
    pub confirmed_orders: u64,
    /// Their units.
    pub confirmed_units: u64,
    /// Ids that are released.
    pub released_orders: u64,
    /// Users that hold units.
    pub users: u64,
    /// What they hold.
    pub user_units: u64,
    /// Entries of the index of pending ids.
    pub indexed: u64,
    /// Ids that are not filed there yet; some have moved on since.
    pub fresh: u64,
    /// Passes that count or have expired unswept.
    pub passes: u64,
}

/// One sale as Redis holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SaleAudit {
    /// Life of the ledger.
    pub epoch: u64,
    /// Run id and replication id of the server that it was installed on.
    pub identity: String,
    /// The id of the orders database that it belongs to; none where no tagged version installed it.
    pub deployment: Option<String>,
    /// No rebuild is under way.
    pub open: bool,
    /// Nobody may buy.
    pub paused: bool,
    /// Of the sale's row.
    pub version: u64,
    /// Units on offer, as kept.
    pub total: i64,
    /// Units left, as kept.
    pub remaining: i64,
    /// Units pending, as kept.
    pub pending: i64,
    /// Units confirmed, as kept.
    pub confirmed: i64,
    /// What was counted.
    pub counted: Counted,
    /// Whether the sale moved while it was counted: then the counts prove nothing.
    pub moving: bool,
    /// What does not add up, in words.
    pub findings: Vec<String>,
}

impl SaleAudit {
    /// `total - remaining - pending - confirmed`, by what is kept: one step of Redis, so true at any time.
    #[must_use]
    pub fn error_units(&self) -> i64 {
        self.total - self.remaining - self.pending - self.confirmed
    }

    /// Whether all adds up; none when the sale moved under the count and nothing else is wrong.
    #[must_use]
    pub fn conserved(&self) -> Option<bool> {
        if !self.findings.is_empty() {
            return Some(false);
        }
        (!self.moving).then_some(true)
    }
}

/// A connection for reading.
pub struct RedisAudit {
    client: Client,
    key_prefix: String,
}

impl std::fmt::Debug for RedisAudit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisAudit").field("key_prefix", &self.key_prefix).finish_non_exhaustive()
    }
}

/// The figures that tell whether anything moved: an id that is new makes `ids` grow, and one that moves forward changes a sum.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    books: Vec<Option<String>>,
    /// None if an id came while this was read.
    ids: Option<u64>,
    deployment: Option<String>,
}

const FIELDS: [&str; 9] =
    ["epoch", "identity", "open", "paused", "version", "total", "remaining", "pending", "confirmed"];

impl RedisAudit {
    /// Connects; the runtime that this is called on keeps the connection.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn connect(config: &StockConfig) -> Result<Self, AuditError> {
        let mut builder = Builder::from_config(place(config)?);
        builder.with_performance_config(|performance| performance.default_command_timeout = COMMAND_TIMEOUT);
        builder.with_connection_config(|connection| {
            connection.connection_timeout = COMMAND_TIMEOUT;
            connection.internal_command_timeout = COMMAND_TIMEOUT;
            connection.max_command_attempts = 1;
        });
        builder.set_policy(ReconnectPolicy::new_exponential(0, 50, 1_000, 2));
        let client = builder.build()?;
        match tokio::time::timeout(CONNECT_MAX, client.init()).await {
            Ok(Ok(_)) => Ok(Self { client, key_prefix: config.key_prefix.clone() }),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(AuditError::Unavailable(format!("no connection in {CONNECT_MAX:?}"))),
        }
    }

    /// Ends the connection.
    pub async fn close(self) {
        // A connection that is gone already is closed, too.
        let _ = self.client.quit().await;
    }

    /// Counts one sale; none if Redis has no such sale.
    ///
    /// # Errors
    /// [`AuditError`]: nothing can be said.
    pub async fn sale(&self, sale: &SaleId) -> Result<Option<SaleAudit>, AuditError> {
        let Some(before) = self.kept(sale).await? else { return Ok(None) };
        let mut count = Count::default();
        self.pages("HSCAN", &self.key(sale, "orders"), |id, value| count.order(id, value)).await?;
        self.pages("HSCAN", &self.key(sale, "mine"), |user, holds| count.user(user, holds)).await?;
        // Ids go from fresh to the index, never back: read in this order, none is missed.
        self.fresh(sale, &mut count).await?;
        self.pages("ZSCAN", &self.key(sale, "pending"), |member, _| count.indexed(member)).await?;
        count.sums.passes = self.integer("HLEN", &self.key(sale, "passes")).await?;
        let after = self.kept(sale).await?;
        let figure = |place: usize| -> i64 {
            before.books[place].as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
        };
        let mut audit = SaleAudit {
            epoch: figure(0).unsigned_abs(),
            identity: before.books[1].clone().unwrap_or_default(),
            deployment: before.deployment.clone(),
            open: figure(2) == 1,
            paused: figure(3) == 1,
            version: figure(4).unsigned_abs(),
            total: figure(5),
            remaining: figure(6),
            pending: figure(7),
            confirmed: figure(8),
            moving: before.ids.is_none() || after.as_ref() != Some(&before),
            counted: Counted::default(),
            findings: Vec::new(),
        };
        if let Some(missing) = FIELDS.iter().zip(&before.books).find(|(_, value)| value.is_none()) {
            audit.findings.push(format!("the books have no {}", missing.0));
        }
        if audit.error_units() != 0 {
            audit.findings.push(format!(
                "total {} is not remaining {} + pending {} + confirmed {}",
                audit.total, audit.remaining, audit.pending, audit.confirmed
            ));
        }
        if !audit.moving {
            count.compare(&mut audit);
        }
        audit.counted = count.sums;
        Ok(Some(audit))
    }

    /// Whether the sale has moved since it was counted: what was read elsewhere meanwhile need not fit to the count then.
    ///
    /// # Errors
    /// [`AuditError`]: nothing can be said.
    pub async fn has_moved(&self, sale: &SaleId, audit: &SaleAudit) -> Result<bool, AuditError> {
        let Some(now) = self.kept(sale).await? else { return Ok(true) };
        let Counted { pending_orders, confirmed_orders, released_orders, .. } = audit.counted;
        let epoch = i64::try_from(audit.epoch).unwrap_or(i64::MAX);
        let figures =
            [(0, epoch), (5, audit.total), (6, audit.remaining), (7, audit.pending), (8, audit.confirmed)];
        let differs =
            |(place, figure): (usize, i64)| now.books[place].as_deref() != Some(&*figure.to_string());
        Ok(audit.moving
            || now.ids != Some(pending_orders + confirmed_orders + released_orders)
            || figures.into_iter().any(differs))
    }

    fn key(&self, sale: &SaleId, kind: &str) -> String {
        format!("{{{}:{sale}}}:{kind}", self.key_prefix)
    }

    async fn kept(&self, sale: &SaleId) -> Result<Option<Kept>, AuditError> {
        let ids = self.integer("HLEN", &self.key(sale, "orders")).await?;
        let mut arguments = vec![self.key(sale, "books")];
        arguments.extend(FIELDS.iter().map(|field| (*field).to_owned()));
        arguments.push("deployment".to_owned());
        let mut books: Vec<Option<String>> = self.client.custom(command("HMGET"), arguments).await?;
        // Beside the fields that no books may lack.
        let deployment = books.pop().flatten();
        // Asked twice around the sums, so that an id that came in between is seen.
        let ids_after = self.integer("HLEN", &self.key(sale, "orders")).await?;
        let known = books.iter().any(Option::is_some);
        Ok(known.then_some(Kept { books, ids: (ids == ids_after).then_some(ids), deployment }))
    }

    async fn integer(&self, name: &'static str, key: &str) -> Result<u64, AuditError> {
        Ok(self.client.custom(command(name), vec![key.to_owned()]).await?)
    }

    /// Reads the list of fresh ids from its end, which stays in place while others file its beginning.
    async fn fresh(&self, sale: &SaleId, count: &mut Count) -> Result<(), AuditError> {
        let mut end: i64 = -1;
        loop {
            let begin = end - (FRESH_PAGE - 1);
            let arguments = vec![self.key(sale, "fresh"), begin.to_string(), end.to_string()];
            let entries: Vec<Value> = self.client.custom(command("LRANGE"), arguments).await?;
            entries.iter().filter_map(Value::as_bytes).for_each(|entry| count.fresh(entry));
            if entries.len() < FRESH_PAGE as usize {
                return Ok(());
            }
            end = begin - 1;
        }
    }

    /// Hands every pair that a scan finds to `each`; some may come twice.
    async fn pages(
        &self,
        name: &'static str,
        key: &str,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), AuditError> {
        let mut cursor = "0".to_owned();
        loop {
            let arguments = vec![key.to_owned(), cursor, "COUNT".to_owned(), PAGE.to_owned()];
            let (next, page): (String, Vec<Value>) = self.client.custom(command(name), arguments).await?;
            for pair in page.chunks_exact(2) {
                if let (Some(first), Some(second)) = (pair[0].as_bytes(), pair[1].as_bytes()) {
                    each(first, second);
                }
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }
}

fn command(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

fn place(config: &StockConfig) -> Result<Config, AuditError> {
    config.check().map_err(|error| AuditError::Config(error.to_string()))?;
    // The text of fred's own error could hold the address, and with it the password.
    let parsed = config.redis_urls.iter().map(|url| {
        Config::from_url(url.reveal())
            .map_err(|_| AuditError::Config(format!("\"{url}\" is not redis://HOST:PORT")))
    });
    let mut parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    let servers: Vec<Server> = parsed.iter().flat_map(|config| config.server.hosts()).collect();
    let mut first = parsed.swap_remove(0);
    if config.redis_mode == RedisMode::Sentinel {
        first.server =
            ServerConfig::Sentinel { hosts: servers, service_name: config.sentinel_master.clone() };
    }
    Ok(first)
}

/// Ids that are kept of one user at most.
const KEPT_MAX: usize = 64;

/// What one user holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Holds {
    units: u64,
    ids: HashSet<Vec<u8>>,
}

/// What one count has seen.
#[derive(Default)]
struct Count {
    seen: HashSet<Vec<u8>>,
    /// By user, by the orders.
    held: HashMap<String, Holds>,
    /// By user, by the hash `mine`.
    kept: HashMap<String, Holds>,
    /// Id + owner, by the orders.
    pending: HashSet<Vec<u8>>,
    index: HashSet<Vec<u8>>,
    /// Id + owner, by the list of fresh ones.
    fresh: HashSet<Vec<u8>>,
    unreadable: u64,
    sums: Counted,
}

impl Count {
    fn order(&mut self, id: &[u8], value: &[u8]) {
        if !self.seen.insert(id.to_vec()) {
            return;
        }
        let of_line = |line: &[u8]| {
            let line = std::str::from_utf8(line).ok()?;
            let (quantity, user) = line.split_once(':')?;
            Some((quantity.parse::<u64>().ok()?, user.to_owned()))
        };
        let holding = match (value.first(), value.len()) {
            (Some(b'r'), 1) => {
                self.sums.released_orders += 1;
                return;
            }
            (Some(b'c'), _) => of_line(&value[1..]).inspect(|(units, _)| {
                self.sums.confirmed_orders += 1;
                self.sums.confirmed_units += units;
            }),
            (Some(b'p'), 10..) => {
                let line = value[9..].split(|byte| *byte == 0).next().unwrap_or_default();
                let line = line.splitn(3, |byte| *byte == b':').nth(2).unwrap_or_default();
                of_line(line).inspect(|(units, _)| {
                    self.sums.pending_orders += 1;
                    self.sums.pending_units += units;
                    self.pending.insert([id, &value[1..9]].concat());
                })
            }
            _ => None,
        };
        match holding {
            Some((units, user)) => {
                let held = self.held.entry(user).or_default();
                held.units += units;
                held.ids.insert(id.to_vec());
            }
            None => self.unreadable += 1,
        }
    }

    fn user(&mut self, user: &[u8], holds: &[u8]) {
        let user = String::from_utf8_lossy(user).into_owned();
        let colon = holds.iter().position(|byte| *byte == b':').unwrap_or(holds.len());
        let (units, ids) = holds.split_at(colon);
        let units = std::str::from_utf8(units).ok().and_then(|units| units.parse().ok()).unwrap_or(u64::MAX);
        let ids = ids.get(1..).unwrap_or_default().chunks(16).map(<[u8]>::to_vec).collect();
        if self.kept.insert(user, Holds { units, ids }).is_none() {
            self.sums.users += 1;
            self.sums.user_units = self.sums.user_units.saturating_add(units);
        }
    }

    fn indexed(&mut self, member: &[u8]) {
        if self.index.insert(member.to_vec()) {
            self.sums.indexed += 1;
        }
    }

    fn fresh(&mut self, entry: &[u8]) {
        let Some((owner, ids)) = entry.split_at_checked(8) else {
            self.unreadable += 1;
            return;
        };
        for id in ids.chunks(16) {
            self.sums.fresh += 1;
            self.fresh.insert([id, owner].concat());
        }
    }

    fn compare(&self, audit: &mut SaleAudit) {
        let sums = &self.sums;
        let mut findings = Vec::new();
        if sums.pending_units != audit.pending.unsigned_abs() || audit.pending < 0 {
            findings.push(format!("{} units counted pending, {} kept", sums.pending_units, audit.pending));
        }
        if sums.confirmed_units != audit.confirmed.unsigned_abs() || audit.confirmed < 0 {
            findings
                .push(format!("{} units counted confirmed, {} kept", sums.confirmed_units, audit.confirmed));
        }
        if self.unreadable > 0 {
            findings.push(format!("{} orders have a value that nobody can read", self.unreadable));
        }
        let lost = self.pending.iter().filter(|id| !self.index.contains(*id) && !self.fresh.contains(*id));
        let (lost, left) = (lost.count(), self.index.difference(&self.pending).count());
        if lost + left > 0 {
            findings.push(format!(
                "{lost} pending ids are not in their index, {left} of the index are not pending"
            ));
        }
        let users = self.held.keys().chain(self.kept.keys()).collect::<HashSet<_>>();
        let nothing = Holds::default();
        for user in users {
            let [held, kept] = [&self.held, &self.kept].map(|of| of.get(user).unwrap_or(&nothing));
            if held.units != kept.units {
                findings.push(format!(
                    "user {user} holds {} units by the orders, {} are kept",
                    held.units, kept.units
                ));
            }
            let is_whole = kept.ids.len() == held.ids.len().min(KEPT_MAX);
            if !is_whole || !kept.ids.is_subset(&held.ids) {
                findings.push(format!(
                    "user {user} holds {} orders, and the {} that are kept as the user's are not these",
                    held.ids.len(),
                    kept.ids.len()
                ));
            }
        }
        let all = findings.len();
        findings.truncate(FINDINGS_MAX);
        if all > FINDINGS_MAX {
            findings.push(format!("and {} more", all - FINDINGS_MAX));
        }
        audit.findings.extend(findings);
    }
}
