//! The simulated ledger without faults.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stock::ledger::{FaultPlan, Ledger, SimulatedServer};

async fn simulated_ledger() -> Ledger {
    let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = Arc::new(move || since_epoch().as_millis() as u64);
    Ledger::Simulated(SimulatedServer::new(1, now, FaultPlan::default()).connect())
}

ledger_conformance!(simulated_ledger);
