//! Which backends and roles go together. What is configured and not in this binary, or cannot work in this role, stops the
//! start: orders would go elsewhere than was asked for, or units be sold twice.

use order_worker::OrdersBackend;
use queue::QueueBackend;
use stock::config::{SoldOutBackend, StockBackend};

use super::{Config, ConfigError};

/// Logs that one worker drains at most.
const SOURCES_MAX: usize = 64;

/// What a process is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Gateway and worker in one process.
    AllInOne,
    /// Sells, and appends to its own log.
    Gateway,
    /// Drains the logs of gateways on this machine.
    Worker,
}

impl Role {
    /// The command that starts it.
    fn command(self) -> &'static str {
        match self {
            Self::AllInOne => "floodgate",
            Self::Gateway => "floodgate gateway",
            Self::Worker => "floodgate worker",
        }
    }
}

fn wrong<T>(sentence: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(sentence.into()))
}

/// Refuses what this binary does not have, whatever the role, and an address that is not the backend's.
pub(super) fn check_backends(config: &Config) -> Result<(), ConfigError> {
    let later = |key: &str, backend: &str| {
        wrong(format!(
            "{key} = \"{backend}\" is not compiled into this binary: it needs the cargo feature `{backend}`, \
             which comes with a later version"
        ))
    };
    match config.queue.backend {
        QueueBackend::Disk => {}
        QueueBackend::Rocketmq => return later("queue.backend", "rocketmq"),
    }
    let url = config.orders.database_url.reveal();
    match config.orders.backend {
        OrdersBackend::External => return later("orders.backend", "external"),
        OrdersBackend::Sqlite if url.is_empty() || url.contains("://") && !url.starts_with("sqlite://") => {
            let instead =
                if url.starts_with("mysql://") { ", or set orders.backend = \"mysql\"" } else { "" };
            return wrong(format!(
                "orders.database_url = \"{}\" is no SQLite database: write sqlite://PATH{instead}",
                config.orders.database_url
            ));
        }
        OrdersBackend::Sqlite => {}
        OrdersBackend::Mysql if !cfg!(feature = "mysql") => {
            return wrong(
                "orders.backend = \"mysql\" is not compiled into this binary: it needs the cargo feature `mysql`; build it with \
                 `cargo build --release --features mysql`, or leave the key out for SQLite",
            );
        }
        OrdersBackend::Mysql if !url.starts_with("mysql://") => {
            return wrong(format!(
                "orders.database_url = \"{}\" is no MySQL database: write mysql://USER:PASSWORD@HOST:PORT/DATABASE, here or in \
                 the file of orders.database_url_file",
                config.orders.database_url
            ));
        }
        OrdersBackend::Mysql => {}
    }
    if config.queue.topic_prefix != queue::QueueConfig::default().topic_prefix {
        return wrong("queue.topic_prefix: this version's topics begin with floodgate-: remove the key");
    }
    if config.queue.backlog_max == 0 {
        return wrong("queue.backlog_max: at least 1 record, or nobody could buy");
    }
    let own = [&config.queue.directory, &config.queue.worker_directory];
    if own.into_iter().any(|directory| directory.as_os_str().is_empty()) {
        return wrong(
            "queue.directory, queue.worker_directory: a directory's name is empty: write one, such as \"data/queue\"",
        );
    }
    if config.queue.sources.len() > SOURCES_MAX {
        return wrong(format!("queue.sources: at most {SOURCES_MAX} logs for one worker"));
    }
    let mut sources: Vec<_> = config.queue.sources.iter().collect();
    sources.sort();
    match sources.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => {
            wrong(format!("queue.sources: {} stands twice: one process drains a log once", twice[0]))
        }
        None => Ok(()),
    }
}

impl Config {
    /// Refuses a configuration with which this role would not do what its operator expects, and says why.
    pub(crate) fn check_role(&self, role: Role) -> Result<(), ConfigError> {
        match role {
            Role::AllInOne if !self.queue.sources.is_empty() => wrong(
                "queue.sources is for `floodgate worker`: without a command gateway and worker are one process, which drains its \
                 own log; remove the key",
            ),
            Role::AllInOne => Ok(()),
            Role::Gateway => self.check_shared(role).and_then(|()| self.check_shared_secrets()),
            Role::Worker => self.check_shared(role).and_then(|()| self.check_logs_of_worker()),
        }
    }

    /// A worker is told what it drains, and appends to none of it.
    fn check_logs_of_worker(&self) -> Result<(), ConfigError> {
        if self.queue.sources.is_empty() {
            return wrong(
                "queue.sources is missing: `floodgate worker` drains the logs that it names; write the queue.directory of each \
                 gateway on this machine, such as sources = [\"/srv/gateway-1/queue\"], below [queue]",
            );
        }
        let own = self.queue.workers_log().absolute();
        if self.queue.sources.iter().any(|source| source.absolute() == own) {
            return wrong(format!(
                "queue.worker_directory and queue.sources are both {}: a worker's own log is none of those that it drains; give it \
                 a directory of its own",
                own
            ));
        }
        Ok(())
    }

    /// Roles in processes of their own meet in Redis and MySQL only.
    fn check_shared(&self, role: Role) -> Result<(), ConfigError> {
        let command = role.command();
        if self.stock.backend != StockBackend::Redis {
            return wrong(format!(
                "`{command}` needs stock.backend = \"redis\": an embedded ledger lives in the memory of one process, so gateway and \
                 worker apart would each count the stock for themselves and sell it twice; run `floodgate` without a command (both \
                 in one process), or set stock.backend and stock.redis_urls"
            ));
        }
        if self.orders.backend != OrdersBackend::Mysql {
            return wrong(format!(
                "`{command}` needs orders.backend = \"mysql\": an SQLite file serves one process on one machine, and gateways and \
                 workers share the orders; run `floodgate` without a command (both in one process), or set orders.backend and \
                 orders.database_url"
            ));
        }
        if self.sold_out.backend == SoldOutBackend::Embedded {
            tracing::warn!(
                "sold_out.backend is \"embedded\": each gateway learns from its own calls on the ledger that a sale is sold out; \
                 \"zookeeper\" tells all of them at once"
            );
        }
        Ok(())
    }

    /// A secret that a gateway made for itself would void its passes and logins at every other.
    fn check_shared_secrets(&self) -> Result<(), ConfigError> {
        if self.gate.pass_secrets.is_empty() {
            return wrong(
                "gate.pass_secrets is missing: a pass must count at every gateway, so all need the same; set \
                 [{ id = \"k1\", secret_file = \"FILE\" }] (at least 32 bytes, such as `openssl rand -hex 32` gives)",
            );
        }
        if self.auth.mode == gateway::config::AuthMode::Jwt && !self.auth.has_key() {
            return wrong(
                "auth.hs256_secret is missing: a login must count at every gateway, so all need the same; set it or \
                 auth.hs256_secret_file",
            );
        }
        if self.lacks_callback_secret() {
            tracing::warn!(
                "payment.callback_secret is missing: this gateway takes no payments at /api/v1/payments/callback; set the same at \
                 every gateway"
            );
        }
        Ok(())
    }
}
