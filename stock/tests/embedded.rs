//! The embedded adapters against their ports' conformance suites.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[macro_use]
mod conformance;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stock::{EmbeddedFlag, EmbeddedLedger, Flag, Ledger};

async fn embedded_ledger() -> Ledger {
    let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ledger::Embedded(EmbeddedLedger::new(Arc::new(move || since_epoch().as_millis() as u64)))
}

async fn embedded_flag() -> Flag {
    Flag::Embedded(EmbeddedFlag::new(1))
}

ledger_conformance!(embedded_ledger);
flag_conformance!(embedded_flag);
