//! The configuration: one TOML file, overridden by the environment, checked as a whole before anything starts.
//!
//! Each crate owns its section's keys and defaults; here they are put together, and every mistake is
//! turned into one sentence that names the key. Secrets may be given as `…_file` and are never printed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stock::SaleDefinition;
use toml::{Table, Value};

mod data_directory;

use data_directory::DataDirectory;

/// The effective configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) gateway: gateway::config::GatewayConfig,
    pub(crate) admin: gateway::config::AdminConfig,
    pub(crate) auth: gateway::config::AuthConfig,
    pub(crate) gate: gateway::config::GateConfig,
    pub(crate) limits: gateway::config::LimitsConfig,
    pub(crate) stock: stock::StockConfig,
    pub(crate) sold_out: stock::SoldOutConfig,
    pub(crate) queue: queue::QueueConfig,
    pub(crate) orders: order_worker::OrdersConfig,
    pub(crate) drain: order_worker::DrainConfig,
    pub(crate) sale: Vec<SaleDefinition>,
}

/// A mistake in the configuration: the process exits with 2 and this sentence.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub(crate) struct ConfigError(pub(crate) String);

/// Where a secret may stand, as (section, key); each may be given as `<key>_file` instead.
/// `admin.token` is not among them: its file is made at the first start of a server, not required of every command.
const SECRETS: &[(&str, &str)] =
    &[("auth", "hs256_secret"), ("gate.pass_secrets", "secret"), ("orders", "database_url")];

const ENVIRONMENT_PREFIX: &str = "FLOODGATE_";

impl Config {
    /// Reads `file` (or nothing but defaults), then the environment, then the files of secrets.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = match file {
            None => Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
                text.parse::<Table>().map_err(|e| ConfigError(format!("{}: {e}", path.display())))?
            }
        };
        let mut overrides: Vec<_> = environment
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX) && name.contains("__"))
            .collect();
        overrides.sort();
        for (name, value) in overrides {
            apply_override(&mut table, &name, &value)?;
        }
        read_secret_files(&mut table)?;
        let explicit_demo = table.get("auth").and_then(|auth| auth.get("demo")).is_some();
        let bare = file.is_none() && !table.contains_key("sale");
        let mut config = check_each_section(&table)?;
        if bare && !explicit_demo {
            config.auth.demo = true;
        }
        config.validate()?;
        Ok(config)
    }

    /// Whether nobody published a sale: then a fresh demo sale opens 20 s after each start.
    pub(crate) fn wants_demo_sale(&self) -> bool {
        self.auth.demo && self.sale.is_empty()
    }

    /// The effective configuration as TOML, secrets hidden.
    pub(crate) fn print(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|e| ConfigError(e.to_string()))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for sale in &self.sale {
            sale.validate().map_err(|e| ConfigError(format!("[[sale]] {}: {e}", sale.id)))?;
            if !seen.insert(&sale.id) {
                return Err(ConfigError(format!(
                    "[[sale]] id {:?} stands twice: give each sale its own id",
                    sale.id.as_str()
                )));
            }
        }
        self.stock.check().map_err(|e| ConfigError(e.to_string()))?;
        self.sold_out.check().map_err(|e| ConfigError(e.to_string()))?;
        self.gateway.validate().map_err(|e| ConfigError(e.to_string()))?;
        self.limits.validate().map_err(|e| ConfigError(e.to_string()))
    }

    /// Puts a secret that was made once where none is configured, and checks what depends on secrets.
    pub(crate) fn complete_secrets(&mut self) -> Result<(), ConfigError> {
        let data = DataDirectory::beside(&self.queue.directory)?;
        if self.auth.hs256_secret.is_none() && self.auth.mode == gateway::config::AuthMode::Jwt {
            self.auth.hs256_secret = Some(gateway::config::Secret::new(data.secret("auth.secret")?));
        }
        if self.gate.pass_secrets.is_empty() {
            let secret = Some(gateway::config::Secret::new(data.secret("pass.secret")?));
            self.gate.pass_secrets.push(gateway::config::PassSecret {
                id: "k1".into(),
                secret,
                secret_file: None,
            });
        }
        if let (None, Some(path)) = (&self.admin.token, &self.admin.token_file) {
            self.admin.token = Some(gateway::config::Secret::new(data_directory::secret_at(path)?));
        }
        self.auth.validate().map_err(|e| ConfigError(e.to_string()))?;
        self.gate.validate().map_err(|e| ConfigError(e.to_string()))
    }
}

/// `FLOODGATE_SECTION__KEY=value`: the value is TOML where it parses as such and the key's default is no text.
fn apply_override(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let path = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
    let Some((section, key)) =
        path.split_once("__").filter(|(section, key)| !section.is_empty() && !key.is_empty())
    else {
        return Err(ConfigError(format!(
            "{name}: write FLOODGATE_SECTION__KEY, such as FLOODGATE_GATEWAY__LISTEN"
        )));
    };
    let section_table = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(section_table) = section_table else {
        return Err(ConfigError(format!("{name}: [{section}] is a list; it can only be given in the file")));
    };
    section_table.insert(key.to_owned(), typed(section, key, value));
    Ok(())
}

fn typed(section: &str, key: &str, value: &str) -> Value {
    let is_text = SECRETS.contains(&(section, key))
        || key.ends_with("_file")
        || (section, key) == ("admin", "token")
        || matches!(default_of(section, key), Some(Value::String(_)));
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    match parsed {
        Some(parsed) if !is_text || matches!(parsed, Value::String(_)) => parsed,
        _ => Value::String(value.to_owned()),
    }
}

fn default_of(section: &str, key: &str) -> Option<Value> {
    let defaults = Table::try_from(Config::default()).ok()?;
    defaults.get(section)?.get(key).cloned()
}

/// Replaces each `<secret>_file` by what stands in that file.
fn read_secret_files(table: &mut Table) -> Result<(), ConfigError> {
    for (section, key) in SECRETS {
        match section.split_once('.') {
            None => {
                if let Some(Value::Table(section_table)) = table.get_mut(*section) {
                    read_secret_file(section_table, section, key)?;
                }
            }
            Some((outer, inner)) => {
                let list =
                    table.get_mut(outer).and_then(|outer| outer.get_mut(inner)).and_then(Value::as_array_mut);
                for entry in list.into_iter().flatten().filter_map(Value::as_table_mut) {
                    read_secret_file(entry, section, key)?;
                }
            }
        }
    }
    Ok(())
}

fn read_secret_file(table: &mut Table, section: &str, key: &str) -> Result<(), ConfigError> {
    let file_key = format!("{key}_file");
    let Some(path) = table.remove(&file_key) else { return Ok(()) };
    let Some(path) = path.as_str().map(PathBuf::from) else {
        return Err(ConfigError(format!("[{section}] {file_key} must be the name of a file")));
    };
    if table.contains_key(key) {
        return Err(ConfigError(format!("[{section}] has both {key} and {file_key}: keep one")));
    }
    let secret = std::fs::read_to_string(&path)
        .map_err(|e| ConfigError(format!("[{section}] {file_key}: cannot read {}: {e}", path.display())))?;
    table.insert(key.to_owned(), Value::String(secret.trim_end_matches(['\r', '\n']).to_owned()));
    Ok(())
}

/// Section by section, so that a mistake is reported with its section's name.
fn check_each_section(table: &Table) -> Result<Config, ConfigError> {
    for (name, section) in table {
        let single = Table::from_iter([(name.clone(), section.clone())]);
        Config::deserialize(Value::Table(single)).map_err(|e| ConfigError(explain(name, e.message())))?;
    }
    Config::deserialize(Value::Table(table.clone())).map_err(|e| ConfigError(e.message().to_owned()))
}

/// Turns serde's words into ours: an unknown key gets the nearest known one.
fn explain(section: &str, message: &str) -> String {
    let message = message.trim_end();
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return format!("[{section}] {message}");
    };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    let place = if unknown == section { "section".to_owned() } else { format!("key in [{section}]") };
    let nearest = known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => format!(
            "unknown {place}: {unknown:?}; the nearest known one is {nearest:?} (all: {})",
            known.join(", ")
        ),
        None => format!("unknown {place}: {unknown:?}"),
    }
}

#[cfg(test)]
mod tests;
