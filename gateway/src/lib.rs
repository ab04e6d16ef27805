//! HTTP, passes, challenges, admission and the purchase path. Knows no SQL.
//!
//! Start reading at [`config`], then [`pass`].
#![forbid(unsafe_code)]

pub mod challenge;
pub mod config;
pub mod pass;

use std::sync::Arc;

/// 64 fresh random bits at each call: the operating system's outside a simulation, a seed's inside.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;
