//! The simulated ledger without faults.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stock::ledger::{FaultPlan, Ledger, SimulatedServer};
use stock::{DeploymentId, SaleId};

fn server() -> SimulatedServer {
    server_at(Duration::ZERO)
}

/// One whose clock is so far ahead.
fn server_at(ahead: Duration) -> SimulatedServer {
    let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = Arc::new(move || (since_epoch() + ahead).as_millis() as u64);
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

/// Three servers, hours apart: one with the leases, one with the sales whose names begin with "two", one with all others.
mod servers {
    use stock::ledger::SimulatedLedger;

    use super::*;

    async fn ledger_of_servers() -> Ledger {
        let servers = [0, 3, 6].map(|hours| server_at(Duration::from_secs(3_600 * hours)));
        let placing = Arc::new(|sale: &SaleId| if sale.as_str().starts_with("two") { 2 } else { 1 });
        Ledger::Simulated(SimulatedLedger::of_several(&servers, placing))
    }

    ledger_conformance!(ledger_of_servers);
}
