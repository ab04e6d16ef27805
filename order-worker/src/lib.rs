//! Drains promised orders into the orders database and keeps database and ledger equal. No HTTP server.
//!
//! Start reading at [`database`], the contract of the final truth.
#![forbid(unsafe_code)]

pub mod database;

pub use database::{Database, DatabaseError, Executor};

/// Every failpoint of this crate.
pub const FAILPOINTS: &[&str] = &["database.begin", "database.commit", "database.committed", "database.read"];
