//! The ledger in Redis, against one real server that all tests of this binary share.

use std::sync::LazyLock;
use std::time::Duration;

use stock::ledger::redis::Patience;
use stock::{DeploymentId, Ledger, RedisLedger, StockConfig};
use testbed::{Redis, RedisOptions};

static SERVER: LazyLock<Redis> = LazyLock::new(|| Redis::start(RedisOptions::default()).expect("a Redis"));

async fn redis_ledger() -> Ledger {
    ledger_of(DeploymentId(1)).await
}

async fn two_deployments() -> (Ledger, Ledger) {
    (ledger_of(DeploymentId(1)).await, ledger_of(DeploymentId(2)).await)
}

/// Patient, since the machine may be busy with other tests.
async fn ledger_of(deployment: DeploymentId) -> Ledger {
    let config = serde_json::json!({"backend": "redis", "redis_urls": [SERVER.url()]});
    let config: StockConfig = serde_json::from_value(config).unwrap();
    let patience = Patience { response: Duration::from_secs(10), call: Duration::from_secs(20) };
    Ledger::Redis(RedisLedger::connect_with(&config, deployment, patience).await.unwrap())
}

ledger_conformance!(redis_ledger);
shared_ledger_conformance!(two_deployments);
