//! The ledger in Redis, against one real server that all tests of this binary share.

use std::sync::LazyLock;

use stock::{Ledger, RedisLedger, StockConfig};
use testbed::{Redis, RedisOptions};

static SERVER: LazyLock<Redis> = LazyLock::new(|| Redis::start(RedisOptions::default()).expect("a Redis"));

/// Each test runs on a runtime of its own, so each gets a connection of its own.
async fn redis_ledger() -> Ledger {
    let config = serde_json::json!({"backend": "redis", "redis_urls": [SERVER.url()]});
    let config: StockConfig = serde_json::from_value(config).unwrap();
    Ledger::Redis(RedisLedger::connect(&config).await.unwrap())
}

ledger_conformance!(redis_ledger);
