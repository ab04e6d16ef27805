//! Drains promised orders into the orders database and keeps database and ledger equal. No HTTP server.
//!
//! Start reading at [`drain`] (the way from queue to row) and [`database`] (the contract of the final truth).
#![forbid(unsafe_code)]

pub mod audit;
mod backoff;
pub mod config;
pub mod database;
pub mod drain;
pub mod journal;
pub mod membership;
pub mod metrics;
pub mod pace;
pub mod rebuild;
pub mod reconciler;
pub mod relay;
pub mod shares;
pub mod stats;

pub use audit::{Audit, AuditError, SaleAudit, audit};
pub use config::{DatabaseUrl, DrainConfig, OrdersBackend, OrdersConfig};
pub use database::{Database, DatabaseError, Executor, schema_sql};
pub use drain::{DRAIN_GROUP, DrainError, ORDERS_TOPIC, Worker, WorkerParts};
pub use journal::{Author, JournalKey};
pub use membership::{Member, MemberParts, OpenLog, OwnLog};
pub use metrics::{BacklogMetrics, LogBacklogs, MembershipMetrics, WorkerMetrics};
pub use pace::Pace;
pub use rebuild::RebuildError;
pub use reconciler::{ReconcileError, Reconciler, bring};
pub use relay::Relay;
pub use stats::{DrainState, DrainStats};

/// Every failpoint of this crate, in the order of the steps. One that fails its step loses an answer or skips to the next
/// try; those between two steps only crash. Hooks are a thread's own: the database's are passed with [`Executor::Inline`] only.
pub const FAILPOINTS: &[&str] = &[
    "database.begin",
    "database.commit",
    "database.committed",
    "database.read",
    "drain.pulled",
    "drain.settled",
    "drain.committed",
    "drain.confirm",
    "relay.read",
    "relay.released",
    "reconciler.looked_up",
    "reconciler.claimed",
    "reconciler.marked_opened",
    "reconciler.settled",
    "rebuild.epoch",
    "rebuild.claimed",
    "rebuild.installed",
    "rebuild.settled",
    "rebuild.log",
    "rebuild.reported",
    "rebuild.neighbour",
    "rebuild.rows",
    "rebuild.marked",
    "rebuild.opened",
];
