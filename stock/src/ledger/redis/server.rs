//! Finding the primary, greeting it, and learning whether it may hold a ledger. It keeps no connection.
//!
//! A password never leaves this file: errors show addresses only.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo};

use super::scripts;
use super::start_error::{MAJOR_VERSION_MIN, RedisStartError};
use super::wire::{KeySet, SaleKeys, leases_key};
use crate::StockConfig;
use crate::config::{ConfigError, RedisMode};

/// How long the TCP connection and the login may take.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a Sentinel may take to answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(300);
/// Attempts to greet a server that is only slow, where nobody waits in a queue.
const GREETINGS_MAX: usize = 5;
/// The kernel gives up unacknowledged bytes after this.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long callers wait for Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For one answer. What takes longer may still be carried out.
    pub response: Duration,
    /// For a call as a whole, a script that has to be loaded first included.
    pub call: Duration,
}

impl Default for Patience {
    /// What a buyer can bear: 300 ms, 700 ms.
    fn default() -> Self {
        Self { response: Duration::from_millis(300), call: Duration::from_millis(700) }
    }
}

/// Where the primary is, or who knows.
#[derive(Debug)]
pub(super) struct Target {
    addresses: Vec<ConnectionInfo>,
    key_prefix: String,
    /// The primary's name, when `addresses` are Sentinels.
    sentinel_master: Option<String>,
}

/// Where the primary is said to be.
pub(super) struct Named {
    pub(super) primary: ConnectionInfo,
    /// By more than half of all Sentinels, or by nobody where there are none: it cannot be one of two.
    pub(super) by_majority: bool,
}

/// A primary that was greeted: its scripts are loaded and nothing speaks against it.
pub(super) struct Primary {
    pub(super) connection: MultiplexedConnection,
    pub(super) identity: String,
    pub(super) server: String,
    pub(super) is_undoubted: bool,
}

impl Target {
    pub(super) fn new(config: &StockConfig) -> Result<Self, RedisStartError> {
        config.check()?;
        let parse = |url: &crate::config::ServerUrl| {
            let settings =
                redis::io::tcp::TcpSettings::default().set_nodelay(true).set_user_timeout(TCP_USER_TIMEOUT);
            let parsed = url.reveal().into_connection_info().map_err(|error| ConfigError::Wrong {
                key: "stock.redis_urls",
                problem: format!("\"{url}\": {}", error.category()),
            });
            parsed.map(|info| info.set_tcp_settings(settings))
        };
        let addresses = config.redis_urls.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let sentinel_master =
            (config.redis_mode == RedisMode::Sentinel).then(|| config.sentinel_master.clone());
        let key_prefix = config.key_prefix.clone();
        Ok(Self { addresses, key_prefix, sentinel_master })
    }

    pub(super) fn has_sentinels(&self) -> bool {
        self.sentinel_master.is_some()
    }

    /// Where the primary is now. All Sentinels are asked at once, until more than half of them agree; where no majority does, the
    /// first in the configuration's order that names one is believed: some may be down.
    pub(super) async fn primary(&self) -> Result<Named, RedisStartError> {
        let Some(master) = &self.sentinel_master else {
            return Ok(Named { primary: self.addresses[0].clone(), by_majority: true });
        };
        let mut asked: FuturesUnordered<_> = self
            .addresses
            .iter()
            .enumerate()
            .map(async |(place, sentinel)| (place, ask_sentinel(sentinel, master).await))
            .collect();
        let (mut answers, mut reason) = (BTreeMap::new(), String::new());
        let mut by_majority = None;
        while let Some((place, answer)) = asked.next().await {
            match answer {
                Ok(Some(named)) => {
                    let same = answers.values().filter(|other| **other == named).count() + 1;
                    if 2 * same > self.addresses.len() {
                        by_majority = Some((place, named));
                        break;
                    }
                    answers.insert(place, named);
                }
                Ok(None) => reason = format!("{} does not know that name", self.addresses[place].addr()),
                Err(error) => reason = format!("{}: {error}", self.addresses[place].addr()),
            }
        }
        let is_majority = by_majority.is_some();
        let Some((place, (host, port))) = by_majority.or_else(|| answers.pop_first()) else {
            return Err(RedisStartError::NoPrimary { master: master.clone(), reason });
        };
        let primary = self.addresses[place].clone().set_addr(ConnectionAddr::Tcp(host, port));
        Ok(Named { primary, by_majority: is_majority })
    }

    /// [`Self::greet`], tried a few times.
    pub(super) async fn greet_patiently(&self, patience: Patience) -> Result<Primary, RedisStartError> {
        let mut greetings = 1;
        loop {
            match self.greet(patience).await {
                Err(error) if !error.is_final() && greetings < GREETINGS_MAX => greetings += 1,
                answer => return answer,
            }
        }
    }

    /// Connects to the primary and learns who it is, before anything else is sent to it.
    pub(super) async fn greet(&self, patience: Patience) -> Result<Primary, RedisStartError> {
        let Named { primary: address, by_majority: is_undoubted } = self.primary().await?;
        let server = address.addr().to_string();
        let mut connection =
            connect(address, patience.response).await.map_err(|error| self.unreachable(&server, &error))?;
        let info: String = redis::cmd("INFO")
            .query_async(&mut connection)
            .await
            .map_err(|error| self.unreachable(&server, &error))?;
        let info = Info { text: &info };
        info.check(&server).map_err(|error| match (error, &self.sentinel_master) {
            (RedisStartError::Replica { server }, Some(master)) => {
                RedisStartError::Demoted { server, master: master.clone() }
            }
            (error, _) => error,
        })?;
        for script in scripts::all() {
            let loaded: Result<String, _> =
                redis::cmd("SCRIPT").arg("LOAD").arg(script.code).query_async(&mut connection).await;
            match loaded {
                Ok(sha) if sha == script.sha => {}
                Ok(sha) => {
                    let problem = format!("its SHA-1 is {sha} there, {} here", script.sha);
                    return Err(RedisStartError::Script { server, script: script.name, problem });
                }
                Err(error) if error.code().is_some_and(|code| !matches!(code, "LOADING" | "NOPERM")) => {
                    return Err(RedisStartError::Script {
                        server,
                        script: script.name,
                        problem: error.to_string(),
                    });
                }
                Err(error) => return Err(self.unreachable(&server, &error)),
            }
        }
        self.check_rights(&server, &mut connection).await?;
        Ok(Primary { connection, identity: info.identity(), server, is_undoubted })
    }

    /// A login that may do a part of it only would fail in the middle of a sale, or let its lease end unnoticed.
    async fn check_rights(
        &self,
        server: &str,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisStartError> {
        // No sale can have this name: a SaleId does not begin with a dot.
        let of_sale = SaleKeys::named(&self.key_prefix, ".trial");
        let leases = leases_key(&self.key_prefix);
        for keys in [of_sale.of(KeySet::All).collect(), vec![leases.as_str()]] {
            let mut call = redis::cmd("EVALSHA");
            call.arg(&scripts::RIGHTS.sha).arg(keys.len()).arg(&keys);
            let answer: Result<Vec<String>, _> = call.query_async(connection).await;
            match answer {
                Ok(words) if words.first().is_some_and(|word| word == "LACKS") => {
                    return Err(self.lacks_rights(server, format!("it refuses {}", words[1..].join(", "))));
                }
                Ok(_) => {}
                Err(error) if error.code() == Some("NOPERM") => {
                    return Err(self.lacks_rights(server, error.to_string()));
                }
                // The server takes no writes from anybody at the moment: calls find that out, and when it is over.
                Err(error) if error.code().is_some() => {}
                Err(error) => return Err(self.unreachable(server, &error)),
            }
        }
        Ok(())
    }

    fn lacks_rights(&self, server: &str, reason: String) -> RedisStartError {
        RedisStartError::Rights { server: server.into(), reason, key_prefix: self.key_prefix.clone() }
    }

    fn unreachable(&self, server: &str, error: &redis::RedisError) -> RedisStartError {
        match error.code() {
            Some("NOPERM") => self.lacks_rights(server, error.to_string()),
            _ => unreachable(server, error),
        }
    }
}

/// Who answers on this connection now, and whether it is a primary still; an error if it must not be asked any more.
pub(super) async fn identity(connection: &mut MultiplexedConnection) -> Result<Option<String>, String> {
    let mut ask = redis::cmd("INFO");
    ask.arg("server").arg("memory").arg("replication");
    let info: Result<String, _> = ask.query_async(connection).await;
    let info = info.map_err(|error| error.to_string())?;
    let info = Info { text: &info };
    // Settings change under a server that runs, and one lost id is enough to sell a unit twice.
    let policy = info.value("maxmemory_policy");
    if policy != "noeviction" {
        return Err(format!("its maxmemory-policy is {policy} now"));
    }
    Ok((info.value("role") == "master").then(|| info.identity()))
}

async fn connect(
    address: ConnectionInfo,
    response_timeout: Duration,
) -> Result<MultiplexedConnection, redis::RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECTION_TIMEOUT))
        .set_response_timeout(Some(response_timeout));
    Client::open(address)?.get_multiplexed_async_connection_with_config(&config).await
}

async fn ask_sentinel(
    sentinel: &ConnectionInfo,
    master: &str,
) -> Result<Option<(String, u16)>, redis::RedisError> {
    // The login is the primary's: a Sentinel gets it only if it asks for one.
    let open = sentinel.clone().set_redis_settings(redis::RedisConnectionInfo::default());
    let with_login = || {
        let settings = sentinel.redis_settings().clone().set_db(0);
        sentinel.clone().set_redis_settings(settings)
    };
    let mut ask = redis::cmd("SENTINEL");
    ask.arg("get-master-addr-by-name").arg(master);
    let answer = match connect(open, RESPONSE_TIMEOUT).await {
        Ok(mut connection) => ask.query_async(&mut connection).await,
        Err(error) => Err(error),
    };
    match answer {
        Err(error) if error.code() == Some("NOAUTH") || error.kind() == ErrorKind::AuthenticationFailed => {
            ask.query_async(&mut connect(with_login(), RESPONSE_TIMEOUT).await?).await
        }
        answer => answer,
    }
}

fn unreachable(server: &str, error: &redis::RedisError) -> RedisStartError {
    let (server, reason) = (server.to_owned(), error.to_string());
    match error.code() {
        Some("LOADING") => RedisStartError::Loading { server },
        Some("NOAUTH" | "WRONGPASS") => RedisStartError::Login { server, reason },
        _ if error.kind() == ErrorKind::AuthenticationFailed => RedisStartError::Login { server, reason },
        _ => RedisStartError::Unreachable { server, reason },
    }
}

/// The answer to INFO.
struct Info<'a> {
    text: &'a str,
}

impl Info<'_> {
    fn value(&self, name: &str) -> &str {
        let of = |line: &'_ str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        self.text.lines().find(|line| of(line)).map_or("", |line| line[name.len() + 1..].trim())
    }

    /// A restart changes the first half, a promotion or another history the second one.
    fn identity(&self) -> String {
        format!("{}:{}", self.value("run_id"), self.value("master_replid"))
    }

    fn check(&self, server: &str) -> Result<(), RedisStartError> {
        let server = server.to_owned();
        let version = self.value("redis_version");
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < MAJOR_VERSION_MIN) {
            return Err(RedisStartError::TooOld { server, version: version.to_owned() });
        }
        if self.value("loading") == "1" {
            return Err(RedisStartError::Loading { server });
        }
        if self.value("role") != "master" {
            return Err(RedisStartError::Replica { server });
        }
        let policy = self.value("maxmemory_policy");
        if policy.is_empty() {
            return Err(RedisStartError::Untold { server });
        }
        if policy != "noeviction" {
            return Err(RedisStartError::Evicting { server, policy: policy.to_owned() });
        }
        if self.value("aof_enabled") != "1" {
            tracing::warn!(
                server,
                "Redis keeps no append-only file: each restart loses every reservation, and the ledger is rebuilt from the \
                 logs and the database; set appendonly yes"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:aa\r\n# Memory\r\nmaxmemory_policy:noeviction\r\n\
                        # Persistence\r\nloading:0\r\naof_enabled:1\r\n# Replication\r\nrole:master\r\nmaster_replid:bb\r\n";

    #[test]
    fn a_good_server_passes_and_tells_who_it_is() {
        let info = Info { text: GOOD };
        assert_eq!(info.check("here"), Ok(()));
        assert_eq!(info.identity(), "aa:bb");
    }

    #[test]
    fn what_speaks_against_a_server_is_named() {
        for (good, bad, word) in [
            ("redis_version:7.0.15", "redis_version:6.2.0", "6.2.0"),
            ("loading:0", "loading:1", "loading"),
            ("role:master", "role:slave", "replica"),
            ("noeviction", "allkeys-lru", "allkeys-lru"),
            ("maxmemory_policy:noeviction\r\n", "", "CONFIG"),
        ] {
            let text = GOOD.replace(good, bad);
            let error = Info { text: &text }.check("here").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("here"), "{error}");
        }
    }

    #[test]
    fn addresses_are_checked_without_showing_passwords() {
        let config = |url: &str| {
            let config = serde_json::json!({"backend": "redis", "redis_urls": [url]});
            Target::new(&serde_json::from_value(config).unwrap())
        };
        assert!(config("redis://:s3cret@127.0.0.1:6379/2").is_ok());
        let error = config("redis://:s3cret@127.0.0.1:6379/two").unwrap_err().to_string();
        assert!(error.contains("stock.redis_urls") && !error.contains("s3cret"), "{error}");
    }
}
