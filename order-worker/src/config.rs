//! The configuration sections `[orders]` and `[drain]`.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// Section `[orders]`: where orders are written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrdersConfig {
    /// Which adapter.
    pub backend: OrdersBackend,
    /// Where the database is.
    pub database_url: DatabaseUrl,
}

/// The adapters of the orders database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrdersBackend {
    /// Embedded: one file.
    #[default]
    Sqlite,
    /// MySQL or MariaDB.
    Mysql,
    /// The operator's own order system consumes the topic.
    External,
}

/// A database URL. A password in it never shows in `Debug` or when serialised.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole URL, password included: for connecting, never for showing.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Default for DatabaseUrl {
    fn default() -> Self {
        Self("sqlite://data/orders.db".into())
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

/// As it may be shown: `mysql://user:***@host/name`.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&stock::config::without_password(&self.0))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Beyond it nanoseconds no longer pace exactly, and no database follows.
const ORDERS_PER_SECOND_LIMIT: u32 = 10_000_000;

/// Section `[drain]`: how fast the queue becomes rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// What the database can bear. Any second sees at most this and a tenth of it.
    pub orders_per_second_max: u32,
    /// Most orders in one transaction; smaller ones where this is more than a twentieth of the limit.
    pub batch_size_max: u32,
    /// Go slower than the limit while the database answers slowly.
    pub adaptive: bool,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { orders_per_second_max: 2_000, batch_size_max: 256, adaptive: true }
    }
}

impl DrainConfig {
    /// What is wrong with the section, naming the key.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn validate(&self) -> Result<(), String> {
        if self.orders_per_second_max == 0 || self.orders_per_second_max > ORDERS_PER_SECOND_LIMIT {
            return Err(format!("drain.orders_per_second_max must be 1 to {ORDERS_PER_SECOND_LIMIT}"));
        }
        let most = stock::ledger::BATCH_MAX;
        if self.batch_size_max == 0 || self.batch_size_max as usize > most {
            return Err(format!("drain.batch_size_max must be 1 to {most}"));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::*;

    #[test]
    fn a_password_never_shows() {
        let url: DatabaseUrl = "mysql://floodgate:pa:ss@wo@rd@db.example:3306/shop".to_owned().into();
        assert_eq!(url.to_string(), "mysql://floodgate:***@db.example:3306/shop");
        assert_eq!(format!("{url:?}"), "\"mysql://floodgate:***@db.example:3306/shop\"");
        assert!(!serde_json::to_string(&url).unwrap().contains("rd@"));
        assert!(url.reveal().contains("pa:ss"));
        assert_eq!(DatabaseUrl::default().to_string(), "sqlite://data/orders.db");
    }

    #[test]
    fn bounds_name_their_key() {
        assert_eq!(DrainConfig::default().validate(), Ok(()));
        for orders_per_second_max in [0, u32::MAX] {
            let bad = DrainConfig { orders_per_second_max, ..DrainConfig::default() };
            assert!(bad.validate().unwrap_err().starts_with("drain.orders_per_second_max"));
        }
        for batch_size_max in [0, 513] {
            let bad = DrainConfig { batch_size_max, ..DrainConfig::default() };
            assert!(bad.validate().unwrap_err().starts_with("drain.batch_size_max"));
        }
        assert!(serde_json::from_str::<DrainConfig>(r#"{"orders_per_second": 1}"#).is_err());
    }
}
