//! Drains promised orders into the orders database and keeps database and ledger equal. No HTTP server.
//!
//! Start reading at [`drain`] (the way from queue to row) and [`database`] (the contract of the final truth).
#![forbid(unsafe_code)]

mod backoff;
mod clocks;
pub mod config;
pub mod database;
pub mod drain;
pub mod journal;
pub mod life;
pub mod membership;
pub mod metrics;
pub mod reconcile;
pub mod topics;
pub mod worker_log;

pub use config::{DatabaseUrl, DrainConfig, OrdersBackend, OrdersConfig};
pub use database::{Database, DatabaseError, Executor, schema_sql};
pub use drain::pace::Pace;
pub use drain::sources::{SourceReport, SourceState, Sources, SourcesParts};
pub use drain::stats::{DrainState, DrainStats};
pub use drain::{DrainError, Worker, WorkerParts};
pub use journal::{Author, JournalKey};
pub use life::closing::{Closing, ClosingParts};
pub use life::joining::join_payments;
pub use life::shop::Shop;
pub use life::timeouts::{GetTopic, Timeouts};
pub use membership::instance::{Instance, InstanceError, InstanceParts};
pub use membership::merge::RebuildError;
pub use membership::{Member, MemberParts, MemberRow, OpenLog, OwnLog};
#[cfg(feature = "redis")]
pub use metrics::AuditorMetrics;
pub use metrics::{BacklogMetrics, LogBacklogs, MembershipMetrics, WorkerLogMetrics, WorkerMetrics};
pub use reconcile::accounting::{Accounts, LONG_PENDING_MS, LongPending, OrderGroup, account_for};
pub use reconcile::audit::{Audit, AuditError, Rejected, SaleAudit, audit, totals_differ};
#[cfg(feature = "redis")]
pub use reconcile::auditor::Auditor;
pub use reconcile::money::{MoneyAudit, MoneySums, audit_money, watch_money};
pub use reconcile::reconciler::{ReconcileError, Reconciler, bring};
pub use reconcile::relay::Relay;
pub use reconcile::statement::{Statement, StatementError};
pub use topics::{CHANGES_TOPIC, CLOSING_GROUP, DRAIN_GROUP, EVENTS_TOPIC, ORDERS_TOPIC, TIMEOUTS_TOPIC};
pub use worker_log::{GetLog, WorkerLog, WorkerLogParts, WorkerLogReport};

/// Every failpoint of this crate, in the order of the steps. One that fails its step loses an answer or skips to the next
/// try; those between two steps only crash. Hooks are a thread's own: the database's are passed with [`Executor::Inline`] only.
pub const FAILPOINTS: &[&str] = &[
    "database.begin",
    "database.commit",
    "database.committed",
    "database.read",
    "drain.pulled",
    "drain.settled",
    "drain.timed",
    "drain.committed",
    "drain.confirm",
    "closing.pulled",
    "closing.closed",
    "relay.read",
    "relay.released",
    "reconciler.looked_up",
    "reconciler.claimed",
    "reconciler.marked_opened",
    "reconciler.settled",
    "tie.written",
    "tie.registered",
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
