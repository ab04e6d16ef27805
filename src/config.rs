//! The configuration: one TOML file, overridden by the environment, checked as a whole before anything starts.
//!
//! Each crate owns its section's keys and defaults; here they are put together, and every mistake is
//! turned into one sentence that names the key. Secrets may be given as `…_file` and are never printed.

use std::path::Path;

use gateway::config::{AuthMode, PassSecret, SECRET_BYTES_MIN, Secret};
use order_worker::JournalKey;
use order_worker::life::payments::Provider;
use order_worker::life::payments::config::PaymentSecret;
use serde::{Deserialize, Serialize};
use stock::SaleDefinition;
use toml::{Table, Value};

mod combinations;
mod data_directory;
mod mistakes;
mod secret_files;

pub(crate) use combinations::Role;
use data_directory::DataDirectory;
use secret_files::SecretFile;

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
    pub(crate) payment: order_worker::life::payments::config::PaymentConfig,
    pub(crate) sale: Vec<SaleDefinition>,
    /// Secrets that stood in files of their own: they are printed as they were given.
    #[serde(skip)]
    secret_files: Vec<SecretFile>,
    /// Whether there was a file: then a demo login is a choice that has to show.
    #[serde(skip)]
    from_file: bool,
}

/// A mistake in the configuration: the process exits with 2 and this sentence.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub(crate) struct ConfigError(pub(crate) String);

const ENVIRONMENT_PREFIX: &str = "FLOODGATE_";

impl Config {
    /// Reads `file` (or nothing but defaults), then the environment, then the files of secrets.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = match file {
            None => Table::new(),
            Some(path) => read(path)?,
        };
        let mut overrides: Vec<_> =
            environment.filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
        overrides.sort();
        for (name, _) in &overrides {
            forget_other_form(&mut table, name);
        }
        for (name, value) in overrides {
            if name.contains("__") {
                apply_override(&mut table, &name, &value)?;
            } else {
                refuse_single_underscore(&name)?;
            }
        }
        let secret_files = secret_files::read(&mut table)?;
        secret_files::refuse_hidden(&table)?;
        let explicit_demo = table.get("auth").and_then(|auth| auth.get("demo")).is_some();
        let bare = file.is_none() && !table.contains_key("sale");
        let mut config = mistakes::deserialize(&table)?;
        config.secret_files = secret_files;
        config.from_file = file.is_some();
        if bare && !explicit_demo {
            config.auth.demo = true;
        }
        config.validate()?;
        Ok(config)
    }

    /// The `[[sale]]` of a file; what else a configuration may hold is left alone, and what it may not is named.
    pub(crate) fn sales_of(file: &Path) -> Result<Vec<SaleDefinition>, ConfigError> {
        Ok(mistakes::deserialize(&read(file)?)?.sale)
    }

    /// Whether nobody published a sale: then a fresh demo sale opens 20 s after each start.
    pub(crate) fn wants_demo_sale(&self) -> bool {
        self.auth.demo && self.sale.is_empty()
    }

    /// Whether a configuration file, which looks like a shop's, comes with a login for anybody.
    pub(crate) fn has_configured_demo(&self) -> bool {
        self.from_file && self.auth.demo
    }

    /// The effective configuration as TOML, secrets hidden. A configuration file again, but for secrets that stood in it.
    pub(crate) fn print(&self) -> Result<String, ConfigError> {
        let fail = |e: toml::ser::Error| ConfigError(e.to_string());
        let mut table = Table::try_from(self).map_err(fail)?;
        secret_files::put_back(&self.secret_files, &mut table);
        toml::to_string_pretty(&table).map_err(fail)
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
        let wrong = |e: &dyn std::fmt::Display| ConfigError(e.to_string());
        self.stock.check().map_err(|e| wrong(&e))?;
        self.sold_out.check().map_err(|e| wrong(&e))?;
        self.gateway.validate().map_err(|e| wrong(&e))?;
        self.admin.validate().map_err(|e| wrong(&e))?;
        self.limits.validate().map_err(|e| wrong(&e))?;
        self.drain.validate().map_err(|e| wrong(&e))?;
        // The keys in files, too: a process that cannot read them would refuse every payment.
        order_worker::life::payments::Receivers::new(&self.payment).map_err(|e| wrong(&e))?;
        combinations::check_backends(self)?;
        if self.gateway.listen == self.admin.listen && self.gateway.listen.port() != 0 {
            return Err(ConfigError(format!(
                "gateway.listen and admin.listen are both {}: buyers must not reach the operator's calls; give one another port",
                self.gateway.listen
            )));
        }
        // With a stand-in for each secret that is made at the first start: what else is wrong shows before anything is made.
        let (mut auth, mut gate) = (self.auth.clone(), self.gate.clone());
        let stand_in = || Some(Secret::new("-".repeat(SECRET_BYTES_MIN)));
        if auth.mode == AuthMode::Jwt && !auth.has_key() {
            auth.hs256_secret = stand_in();
        }
        if gate.pass_secrets.is_empty() {
            gate.pass_secrets.push(PassSecret { id: "k1".into(), secret: stand_in(), secret_file: None });
        }
        auth.validate().map_err(|e| wrong(&e))?;
        auth.check_listener(&self.gateway).map_err(|e| wrong(&e))?;
        gate.validate().map_err(|e| wrong(&e))
    }

    /// The key of the operators' journal, of a secret that is made once where none is configured.
    pub(crate) fn journal_key(&self) -> Result<JournalKey, ConfigError> {
        match &self.admin.journal_secret {
            Some(secret) => Ok(JournalKey::new(secret.expose().as_bytes())),
            None => Ok(JournalKey::new(self.made_journal_secret()?.as_bytes())),
        }
    }

    /// Beside the file of the operator's token, so that processes which share that share this; beside the log where there is no such
    /// file, or nothing can be made.
    fn made_journal_secret(&self) -> Result<String, ConfigError> {
        const NAME: &str = "journal.secret";
        let token_file = self.admin.token_file.as_ref().filter(|_| self.admin.token.is_none());
        if let Some(made) =
            token_file.and_then(|path| data_directory::secret_at(&path.with_file_name(NAME)).ok())
        {
            return Ok(made);
        }
        DataDirectory::beside(&self.queue.directory)?.secret(NAME)
    }

    /// Puts a secret that was made once where none is configured, and checks what depends on secrets.
    pub(crate) fn complete_secrets(&mut self) -> Result<(), ConfigError> {
        let data = DataDirectory::beside(&self.queue.directory)?;
        if !self.auth.has_key() && self.auth.mode == AuthMode::Jwt {
            self.auth.hs256_secret = Some(Secret::new(data.secret("auth.secret")?));
        }
        if self.gate.pass_secrets.is_empty() {
            let secret = Some(Secret::new(data.secret("pass.secret")?));
            self.gate.pass_secrets.push(PassSecret { id: "k1".into(), secret, secret_file: None });
        }
        // Before the token is read, which then looks as if it had been configured.
        if self.admin.journal_secret.is_none() {
            self.admin.journal_secret = Some(Secret::new(self.made_journal_secret()?));
        }
        match (&self.admin.token, &self.admin.token_file) {
            (None, Some(path)) => self.admin.token = Some(Secret::new(data_directory::secret_at(path)?)),
            // Nothing stands in the file, and nobody must be sent there.
            (Some(_), _) => self.admin.token_file = None,
            (None, None) => {}
        }
        self.auth.validate().map_err(|e| ConfigError(e.to_string()))?;
        self.gate.validate().map_err(|e| ConfigError(e.to_string()))
    }
}

impl Config {
    /// Whether payments' callback is wanted, and nobody has configured its secret.
    fn lacks_callback_secret(&self) -> bool {
        let payment = &self.payment;
        payment.providers.contains(&Provider::StandardWebhooks)
            && payment.callback_secret.is_none()
            && payment.callback_secrets.is_empty()
    }

    /// Puts the callback's secret that was made once where none is configured. Not for one gateway among several: what one made for
    /// itself no other would know.
    pub(crate) fn complete_callback_secret(&mut self) -> Result<(), ConfigError> {
        if self.lacks_callback_secret() {
            let made = DataDirectory::beside(&self.queue.directory)?.secret("payment.secret")?;
            self.payment.callback_secret = Some(PaymentSecret::new(made));
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
    let text = text.trim_start_matches('\u{feff}');
    text.parse::<Table>().map_err(|e| mistakes::syntax(path, text, &e))
}

/// `FLOODGATE_SECTION__KEY=value`: a text where the key takes one, otherwise TOML.
fn apply_override(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let path = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
    let Some((section, key)) =
        path.split_once("__").filter(|(section, key)| !section.is_empty() && !key.is_empty())
    else {
        return Err(ConfigError(format!(
            "{name}: write FLOODGATE_SECTION__KEY, such as FLOODGATE_GATEWAY__LISTEN"
        )));
    };
    if section == "sale" {
        return Err(ConfigError(format!("{name}: sales can only be given in the file, as [[sale]]")));
    }
    let section_table = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(section_table) = section_table else {
        return Err(ConfigError(format!("{name}: {section} in the file is no section: write [{section}]")));
    };
    section_table.insert(key.to_owned(), typed(section, key, value));
    Ok(())
}

/// A secret and the file of it are one key: in the environment either goes before both in the file.
fn forget_other_form(table: &mut Table, name: &str) {
    let path = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
    if let Some((section, key)) = path.split_once("__")
        && let Some(section) = table.get_mut(section).and_then(Value::as_table_mut)
    {
        section.remove(key.strip_suffix("_file").unwrap_or(key));
        section.remove(&format!("{key}_file"));
    }
}

fn typed(section: &str, key: &str, value: &str) -> Value {
    let text = Value::String(value.to_owned());
    match format!("v = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("v")) {
        Some(quoted @ Value::String(_)) => quoted,
        // Before the text: a key that takes one address or a list of them takes both.
        Some(list @ Value::Array(_)) if mistakes::fits(section, key, &list) => list,
        Some(parsed) if !mistakes::fits(section, key, &text) && mistakes::fits(section, key, &parsed) => {
            parsed
        }
        _ => text,
    }
}

/// One underscore instead of two would be passed over in silence. Names that merely begin like ours are left alone: a
/// cluster puts its own there.
fn refuse_single_underscore(name: &str) -> Result<(), ConfigError> {
    let path = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
    for (section, keys) in &mistakes::known_sections() {
        let key = path.strip_prefix(section.as_str()).and_then(|rest| rest.strip_prefix('_'));
        if let (Some(key), Some(keys)) = (key, keys.as_table())
            && keys.contains_key(key)
        {
            let (section, key) = (section.to_ascii_uppercase(), key.to_ascii_uppercase());
            return Err(ConfigError(format!(
                "{name}: two underscores stand between section and key: {ENVIRONMENT_PREFIX}{section}__{key}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
