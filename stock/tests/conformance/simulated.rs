//! The simulated ledger without faults.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stock::DeploymentId;
use stock::ledger::{FaultPlan, Ledger, SimulatedServer};

fn server() -> SimulatedServer {
    let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = Arc::new(move || since_epoch().as_millis() as u64);
    SimulatedServer::new(1, now, FaultPlan::default())
}

async fn simulated_ledger() -> Ledger {
    Ledger::Simulated(server().connect())
}

async fn two_deployments() -> (Ledger, Ledger) {
    let server = server();
    let of = |deployment| Ledger::Simulated(server.connect_for(DeploymentId(deployment)));
    (of(1), of(2))
}

ledger_conformance!(simulated_ledger);
shared_ledger_conformance!(two_deployments);
