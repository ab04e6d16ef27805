//! The embedded adapters.

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
