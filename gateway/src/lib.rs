//! HTTP, passes, challenges, admission and the purchase path. Knows no SQL.
//!
//! Start reading at [`config`], then [`pass`].
#![forbid(unsafe_code)]

pub mod auth;
pub mod books;
pub mod catalog;
pub mod challenge;
pub mod client;
pub mod clock;
pub mod config;
pub mod limits;
pub mod metrics;
pub mod pages;
pub mod pass;
pub mod purchase;

use std::sync::Arc;

/// 64 fresh random bits at each call: the operating system's outside a simulation, a seed's inside.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;
