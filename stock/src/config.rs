//! The sections `[stock]` and `[sold_out]` of the configuration.

use serde::{Deserialize, Serialize};

/// Why a section cannot be used. Names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The backend exists, but not in this binary.
    #[error(
        "{key} = \"{backend}\" is not compiled into this binary: it needs the cargo feature `{feature}`, which comes with a later version; leave the key out for the embedded one"
    )]
    NotCompiledIn {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        backend: &'static str,
        /// The cargo feature.
        feature: &'static str,
    },
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
    /// The servers, the Sentinels or some nodes of the cluster.
    pub redis_urls: Vec<String>,
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
            StockBackend::Redis => {
                Err(ConfigError::NotCompiledIn { key: "stock.backend", backend: "redis", feature: "redis" })
            }
        }
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
    /// Servers and root node.
    pub zookeeper: String,
}

impl Default for SoldOutConfig {
    fn default() -> Self {
        Self { backend: SoldOutBackend::default(), zookeeper: "127.0.0.1:2181/floodgate".into() }
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
            SoldOutBackend::Zookeeper => Err(ConfigError::NotCompiledIn {
                key: "sold_out.backend",
                backend: "zookeeper",
                feature: "zookeeper",
            }),
        }
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

    #[test]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        let stock: StockConfig = serde_json::from_str(r#"{"backend": "redis"}"#).unwrap();
        let message = stock.check().unwrap_err().to_string();
        assert!(message.contains("stock.backend") && message.contains("feature `redis`"), "{message}");
        let sold_out: SoldOutConfig = serde_json::from_str(r#"{"backend": "zookeeper"}"#).unwrap();
        let message = sold_out.check().unwrap_err().to_string();
        assert!(message.contains("sold_out.backend") && message.contains("`zookeeper`"), "{message}");
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        assert!(serde_json::from_str::<StockConfig>(r#"{"backned": "redis"}"#).is_err());
        assert!(serde_json::from_str::<StockConfig>(r#"{"redis_mode": "ring"}"#).is_err());
        assert!(serde_json::from_str::<SoldOutConfig>(r#"{"backend": "redis"}"#).is_err());
    }
}
