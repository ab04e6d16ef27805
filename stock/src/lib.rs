//! Sales, reservations, the stock ledger and the sold-out flag. No HTTP, no SQL, no files.
//!
//! Start reading at [`ledger`] (the contract of the stock ledger) and [`flag`] (the sold-out hint); [`Stock`] joins the two.
#![forbid(unsafe_code)]

pub mod config;
pub mod flag;
pub mod ids;
pub mod ledger;
mod metrics;
mod order_status;
pub mod reservation;
pub mod sale;
mod stock;
pub mod timestamp;

use std::sync::Arc;

pub use config::{ServerUrl, SoldOutConfig, StockConfig};
#[cfg(feature = "zookeeper")]
pub use flag::ZooKeeperFlag;
pub use flag::{EmbeddedFlag, Flag, FlagCell, FlagState, FlagVersion};
pub use ids::{DeploymentId, IdError, OrderId, Owner, SaleId, UserId};
#[cfg(feature = "redis")]
pub use ledger::RedisLedger;
pub use ledger::epoch_gate::{EpochGate, Stopped, UnderWay};
pub use ledger::{EmbeddedLedger, Ledger, LedgerError, LedgerIdentity, LedgerServer, LedgerSight};
pub use order_status::{OrderStatus, UnknownOrderStatus};
pub use reservation::Reservation;
pub use sale::{RefundPolicy, SaleDefinition, SaleEdit, SaleError, SaleVersion, currency_digits};
pub use stock::Stock;
pub use timestamp::Timestamp;

/// The injected wall clock: milliseconds since the Unix epoch, never going back.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;
