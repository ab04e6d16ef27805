//! Why Redis cannot hold the ledger, in words for the operator. Passwords are never among them.

use crate::config::ConfigError;

/// Scripts with flags came with this version.
pub(super) const MAJOR_VERSION_MIN: u32 = 7;

/// Why Redis cannot hold the ledger, now or at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisStartError {
    /// The section `[stock]` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No answer, or none in time.
    #[error("Redis at {server} is out of reach: {reason}")]
    Unreachable {
        /// Where.
        server: String,
        /// What happened.
        reason: String,
    },
    /// It wants another login.
    #[error("Redis at {server} refuses the login: {reason}; put user and password into stock.redis_urls")]
    Login {
        /// Where.
        server: String,
        /// What it said.
        reason: String,
    },
    /// No Sentinel answers, or none knows the name.
    #[error("no Sentinel names the primary of {master}: {reason}")]
    NoPrimary {
        /// `stock.sentinel_master`.
        master: String,
        /// What the last one said.
        reason: String,
    },
    /// A replica, though the Sentinels still name it: they will hear of the failover.
    #[error("the Sentinels name Redis at {server} as the primary of {master}, but it is a replica now")]
    Demoted {
        /// Where.
        server: String,
        /// `stock.sentinel_master`.
        master: String,
    },
    /// A replica: it takes no writes.
    #[error(
        "Redis at {server} is a replica; name the primary in stock.redis_urls, or use stock.redis_mode = \"sentinel\""
    )]
    Replica {
        /// Where.
        server: String,
    },
    /// It reads its data back in.
    #[error("Redis at {server} is loading its data")]
    Loading {
        /// Where.
        server: String,
    },
    /// It lacks what the scripts need.
    #[error(
        "Redis at {server} is version {version}; the ledger's scripts need {MAJOR_VERSION_MIN}.0 or newer"
    )]
    TooOld {
        /// Where.
        server: String,
        /// What it is.
        version: String,
    },
    /// It would throw reservations away when memory gets short.
    #[error(
        "Redis at {server} has maxmemory-policy {policy}, which throws stock away when memory gets short; set it to noeviction"
    )]
    Evicting {
        /// Where.
        server: String,
        /// What is set.
        policy: String,
    },
    /// It does not say what it does when memory gets short.
    #[error(
        "Redis at {server} does not tell its maxmemory_policy in INFO (a service that hides its CONFIG?), and with any but \
         noeviction it would throw stock away: have its operator set noeviction and show it in INFO, or name another Redis in \
         stock.redis_urls"
    )]
    Untold {
        /// Where.
        server: String,
    },
    /// It lets this login do less than the ledger needs.
    #[error(
        "Redis at {server} does not let this login do all that the ledger needs: {reason}; what it needs is: ACL SETUSER NAME on \
         >PASSWORD {}",
        acl_rules(.key_prefix)
    )]
    Rights {
        /// Where.
        server: String,
        /// What it refused.
        reason: String,
        /// `stock.key_prefix`.
        key_prefix: String,
    },
    /// A script does not work there.
    #[error("Redis at {server}: script {script}: {problem}")]
    Script {
        /// Where.
        server: String,
        /// Which one.
        script: &'static str,
        /// What happened.
        problem: String,
    },
    /// The operating system gives no thread.
    #[error("no thread for the connection to Redis: {0}")]
    Thread(String),
}

impl RedisStartError {
    /// Whether waiting cannot help: somebody has to change something first.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Login { .. }
            | Self::Rights { .. }
            | Self::Replica { .. }
            | Self::TooOld { .. }
            | Self::Evicting { .. }
            | Self::Untold { .. }
            | Self::Script { .. }
            | Self::Thread(_) => true,
            Self::Unreachable { .. }
            | Self::NoPrimary { .. }
            | Self::Demoted { .. }
            | Self::Loading { .. } => false,
        }
    }
}

/// What a login of the ledger must be allowed, as ACL SETUSER takes it: the keys of sales, the leases, and what scripts and audit do.
fn acl_rules(key_prefix: &str) -> String {
    format!(
        "~{{{key_prefix}:* ~{{{key_prefix}}}:* +@hash +@list +@sortedset +@connection +evalsha +script|load +unlink +exists +info +time"
    )
}
