//! The sections `[stock]` and `[sold_out]` of the configuration, and addresses whose password never shows.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a section cannot be used. Names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The backend exists, but not in this binary.
    #[error(
        "{key} = \"{backend}\" is not compiled into this binary: it needs the cargo feature `{feature}`; build it with `cargo build --release --features {feature}`, or leave the key out for the embedded one"
    )]
    NotCompiledIn {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        backend: &'static str,
        /// The cargo feature.
        feature: &'static str,
    },
    /// A value that cannot work.
    #[error("{key}: {problem}")]
    Wrong {
        /// The configuration key.
        key: &'static str,
        /// What is wrong and what to write instead.
        problem: String,
    },
}

fn wrong(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Wrong { key, problem: problem.into() }
}

/// What stands where a password stood.
const HIDDEN: &str = "***";

/// `url` as it may be shown: `redis://user:***@host:port`, `…?pass=***`.
#[must_use]
pub fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let separator = if scheme.is_empty() { "" } else { "://" };
    // The last `@` ends the login: a password may hold one.
    let (login, place) = match rest.rsplit_once('@') {
        None => (String::new(), rest),
        Some((login, place)) => match login.split_once(':') {
            Some((user, _password)) => (format!("{user}:{HIDDEN}@"), place),
            None => (format!("{login}@"), place),
        },
    };
    let Some((path, query)) = place.split_once('?') else {
        return format!("{scheme}{separator}{login}{place}");
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if name.starts_with("pass") => format!("{name}={HIDDEN}"),
        _ => pair.to_owned(),
    });
    format!("{scheme}{separator}{login}{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// A server's address. A password in it never shows in `Debug` or `Display`, or when serialised.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// The whole address, password included: for connecting, never for showing.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for ServerUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.0))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for ServerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One address or a list of them: a refused type would show what was written.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ServerUrl>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list of addresses, in brackets")]
    enum OneOrMany {
        One(ServerUrl),
        Many(Vec<ServerUrl>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(url) => vec![url],
        OneOrMany::Many(urls) => urls,
    })
}

/// Where the stock ledger lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StockBackend {
    /// In this process.
    #[default]
    Embedded,
    /// In Redis.
    Redis,
}

/// How Redis is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedisMode {
    /// One server.
    #[default]
    Single,
    /// A primary found through Sentinel.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

/// `[stock]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StockConfig {
    /// Where the ledger lives.
    pub backend: StockBackend,
    /// How Redis is deployed.
    pub redis_mode: RedisMode,
    /// The server, the Sentinels or some nodes of the cluster.
    #[serde(deserialize_with = "one_or_many")]
    pub redis_urls: Vec<ServerUrl>,
    /// The primary's name at the Sentinels.
    pub sentinel_master: String,
    /// Starts every key.
    pub key_prefix: String,
}

impl Default for StockConfig {
    fn default() -> Self {
        Self {
            backend: StockBackend::default(),
            redis_mode: RedisMode::default(),
            redis_urls: Vec::new(),
            sentinel_master: String::new(),
            key_prefix: "fg".into(),
        }
    }
}

impl StockConfig {
    /// Checks what can be checked without reaching out.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.backend {
            StockBackend::Embedded => Ok(()),
            StockBackend::Redis if cfg!(feature = "redis") => self.check_redis(),
            StockBackend::Redis => {
                Err(ConfigError::NotCompiledIn { key: "stock.backend", backend: "redis", feature: "redis" })
            }
        }
    }

    fn check_redis(&self) -> Result<(), ConfigError> {
        const URLS: &str = "stock.redis_urls";
        let example = "such as [\"redis://127.0.0.1:6379\"]";
        if self.redis_urls.is_empty() {
            return Err(wrong(
                URLS,
                format!("missing: list where Redis is, {example}, or set stock.redis_urls_file"),
            ));
        }
        const SCHEMES: [&str; 3] = ["redis://", "unix://", "redis+unix://"];
        if let Some(url) = self.redis_urls.iter().find(|url| !SCHEMES.iter().any(|s| url.0.starts_with(s))) {
            return Err(wrong(
                URLS,
                format!("\"{url}\" is no address of Redis: write redis://HOST:PORT, {example}"),
            ));
        }
        match self.redis_mode {
            RedisMode::Single if self.redis_urls.len() > 1 => Err(wrong(
                URLS,
                "several addresses, but stock.redis_mode is \"single\": keep one, or set stock.redis_mode = \"sentinel\" and list \
                 the Sentinels",
            )),
            RedisMode::Sentinel if self.sentinel_master.is_empty() => Err(wrong(
                "stock.sentinel_master",
                "missing: the name that the Sentinels know the primary by, such as \"mymaster\"",
            )),
            RedisMode::Cluster => Err(wrong(
                "stock.redis_mode",
                "\"cluster\" comes with a later version: use \"single\" or \"sentinel\"",
            )),
            RedisMode::Single | RedisMode::Sentinel => self.check_key_prefix(),
        }
    }

    /// The prefix stands before each key's hash tag, so it must not hold braces of its own.
    fn check_key_prefix(&self) -> Result<(), ConfigError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if (1..=64).contains(&self.key_prefix.len()) && self.key_prefix.chars().all(allowed) {
            return Ok(());
        }
        Err(wrong("stock.key_prefix", "1 to 64 letters, digits, -, _, . or :"))
    }
}

/// How gateways tell each other that a sale is sold out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SoldOutBackend {
    /// One process, nobody to tell.
    #[default]
    Embedded,
    /// Through ZooKeeper.
    Zookeeper,
}

/// `[sold_out]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoldOutConfig {
    /// How the flag travels.
    pub backend: SoldOutBackend,
    /// Servers and root, with a login before them if ZooKeeper is to keep others out.
    pub zookeeper: ServerUrl,
}

impl Default for SoldOutConfig {
    fn default() -> Self {
        Self { backend: SoldOutBackend::default(), zookeeper: "127.0.0.1:2181/floodgate".to_owned().into() }
    }
}

impl SoldOutConfig {
    /// Checks what can be checked without reaching out.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.backend {
            SoldOutBackend::Embedded => Ok(()),
            SoldOutBackend::Zookeeper => self.check_zookeeper(),
        }
    }

    #[cfg(feature = "zookeeper")]
    fn check_zookeeper(&self) -> Result<(), ConfigError> {
        crate::flag::zookeeper::address::Address::parse(self.zookeeper.reveal())
            .map(|_| ())
            .map_err(|problem| wrong("sold_out.zookeeper", problem))
    }

    #[cfg(not(feature = "zookeeper"))]
    fn check_zookeeper(&self) -> Result<(), ConfigError> {
        Err(ConfigError::NotCompiledIn {
            key: "sold_out.backend",
            backend: "zookeeper",
            feature: "zookeeper",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_stand() {
        let stock: StockConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(stock, StockConfig::default());
        assert_eq!(stock.check(), Ok(()));
        assert_eq!(SoldOutConfig::default().check(), Ok(()));
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn a_ledger_that_is_not_compiled_in_names_its_feature_and_command() {
        let stock: StockConfig = serde_json::from_str(r#"{"backend": "redis"}"#).unwrap();
        let message = stock.check().unwrap_err().to_string();
        for word in ["stock.backend", "feature `redis`", "cargo build --release --features redis"] {
            assert!(message.contains(word), "{message}");
        }
    }

    #[cfg(not(feature = "zookeeper"))]
    #[test]
    fn a_flag_that_is_not_compiled_in_names_its_feature_and_command() {
        let sold_out: SoldOutConfig = serde_json::from_str(r#"{"backend": "zookeeper"}"#).unwrap();
        let message = sold_out.check().unwrap_err().to_string();
        for word in ["sold_out.backend", "`zookeeper`", "cargo build --release --features zookeeper"] {
            assert!(message.contains(word), "{message}");
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn each_mistake_about_redis_names_its_key_and_no_password() {
        for (json, key, words) in [
            (r#"{"backend":"redis"}"#, "stock.redis_urls", "missing"),
            (r#"{"backend":"redis","redis_urls":["http://u:pw@h"]}"#, "stock.redis_urls", "u:***@h"),
            (
                r#"{"backend":"redis","redis_urls":["redis://a:1","redis://b:1"]}"#,
                "stock.redis_urls",
                "sentinel",
            ),
            (
                r#"{"backend":"redis","redis_mode":"sentinel","redis_urls":["redis://a:1"]}"#,
                "stock.sentinel_master",
                "missing",
            ),
            (
                r#"{"backend":"redis","redis_urls":"redis://a:1","key_prefix":"{x}"}"#,
                "stock.key_prefix",
                "1 to 64",
            ),
        ] {
            let stock: StockConfig = serde_json::from_str(json).unwrap();
            let message = stock.check().unwrap_err().to_string();
            assert!(
                message.contains(key) && message.contains(words) && !message.contains("pw@"),
                "{message}"
            );
        }
        let stock: StockConfig =
            serde_json::from_str(r#"{"backend":"redis","redis_urls":["redis://127.0.0.1:6379"]}"#).unwrap();
        assert_eq!(stock.check(), Ok(()));
    }

    #[cfg(feature = "zookeeper")]
    #[test]
    fn a_place_in_zookeeper_is_servers_and_a_root() {
        for (zookeeper, good) in [
            ("127.0.0.1:2181", true),
            ("a:1,b:2,c:3/shop/flags", true),
            ("127.0.0.1", false),
            ("", false),
            ("a:1,/x", false),
            ("a:1/x/", false),
        ] {
            let config =
                SoldOutConfig { backend: SoldOutBackend::Zookeeper, zookeeper: zookeeper.to_owned().into() };
            assert_eq!(config.check().is_ok(), good, "{zookeeper}");
        }
    }

    #[test]
    fn a_password_never_shows() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/1", "redis://127.0.0.1:6379/1"),
            ("redis://user@h:1", "redis://user@h:1"),
            ("redis://:p:w@rd@h:1/0?protocol=resp3", "redis://:***@h:1/0?protocol=resp3"),
            ("redis+unix:///run/redis.sock?db=1&pass=pw", "redis+unix:///run/redis.sock?db=1&pass=***"),
            ("u:pw@h", "u:***@h"),
        ] {
            let url = ServerUrl::from(url.to_owned());
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("\"{shown}\""));
            assert_eq!(serde_json::to_string(&url).unwrap(), format!("\"{shown}\""));
        }
        let stock: StockConfig = serde_json::from_str(r#"{"redis_urls": "redis://u:pw@h"}"#).unwrap();
        assert_eq!(stock.redis_urls[0].reveal(), "redis://u:pw@h");
        let error =
            serde_json::from_str::<StockConfig>(r#"{"redis_urls": {"redis://u:pw@h": 1}}"#).unwrap_err();
        assert!(!error.to_string().contains("pw"), "{error}");
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        assert!(serde_json::from_str::<StockConfig>(r#"{"backned": "redis"}"#).is_err());
        assert!(serde_json::from_str::<StockConfig>(r#"{"redis_mode": "ring"}"#).is_err());
        assert!(serde_json::from_str::<SoldOutConfig>(r#"{"backend": "redis"}"#).is_err());
    }
}
