//! Loads the scripts into a server and tries each of them without changing anything. It serves nobody.

use std::time::Duration;

use redis::Value;
use serde::Serialize;

use super::scripts::{self, Script};
use super::server::{Patience, Target};
use super::start_error::RedisStartError;
use super::wire::{KeySet, SaleKeys, leases_key};
use crate::StockConfig;

/// An operator has more time than a buyer.
const PATIENCE: Patience = Patience { response: Duration::from_secs(10), call: Duration::from_secs(20) };

/// What `floodgate stock deploy-scripts` did.
#[derive(Debug, Clone, Serialize)]
pub struct Deployed {
    /// `host:port` of the primary.
    pub server: String,
    /// Each script, loaded and tried.
    pub scripts: Vec<DeployedScript>,
}

/// One script.
#[derive(Debug, Clone, Serialize)]
pub struct DeployedScript {
    /// Its file in `lua/redis/`, without `.lua`.
    pub name: &'static str,
    /// Its SHA-1, as Redis names it.
    pub sha: String,
}

/// Loads every script, compares its SHA-1, and runs it where it must change nothing: on a sale that does not exist, or with
/// arguments that it must refuse.
///
/// # Errors
/// [`RedisStartError`]; of a script that does not do what it should, [`RedisStartError::Script`].
pub async fn deploy_scripts(config: &StockConfig) -> Result<Deployed, RedisStartError> {
    let primary = Target::new(config)?.greet_patiently(PATIENCE).await?;
    let mut deployed = Deployed { server: primary.server, scripts: Vec::new() };
    for script in scripts::all() {
        let trial = Trial::of(script, &config.key_prefix);
        let mut call = redis::cmd("EVALSHA");
        call.arg(&script.sha).arg(trial.keys.len()).arg(&trial.keys).arg(&trial.arguments);
        let answer: Result<Vec<Value>, _> = call.query_async(&mut primary.connection.clone()).await;
        let problem = match answer.map(|answer| answer.into_iter().next()) {
            Ok(Some(Value::BulkString(word))) if word == trial.expected.as_bytes() => {
                deployed.scripts.push(DeployedScript { name: script.name, sha: script.sha.clone() });
                continue;
            }
            Ok(word) => format!("its trial answered {word:?}, not {}", trial.expected),
            Err(error) => error.to_string(),
        };
        return Err(RedisStartError::Script { server: deployed.server, script: script.name, problem });
    }
    Ok(deployed)
}

/// A call that changes nothing, and the word that must come back.
struct Trial {
    keys: Vec<String>,
    arguments: Vec<&'static str>,
    expected: &'static str,
}

impl Trial {
    fn of(script: &Script, prefix: &str) -> Self {
        // No sale can have this name: a SaleId does not begin with a dot.
        let keys = SaleKeys::named(prefix, ".trial");
        let of_sale = |expected| Self {
            keys: keys.of(KeySet::All).map(str::to_owned).collect(),
            arguments: Vec::new(),
            expected,
        };
        // The real one: a login may have the right to the keys of sales alone.
        let of_leases = |arguments: &[&'static str], expected| Self {
            keys: vec![leases_key(prefix)],
            arguments: arguments.to_vec(),
            expected,
        };
        match script.name {
            "probe" | "now" => Self { keys: Vec::new(), ..of_sale("OK") },
            "install" => of_sale("INVALID"),
            "forget" | "rights" => of_sale("OK"),
            "renew_lease" => of_leases(&[], "INVALID"),
            "end_lease" => of_leases(&["nobody"], "OK"),
            "leases" => of_leases(&[], "OK"),
            _ => of_sale("UNKNOWN"),
        }
    }
}
