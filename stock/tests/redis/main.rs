//! The ledger in Redis beyond its contract: equal answers to the embedded one's, and what happens when a real server is killed,
//! frozen, flushed, filled up, cut off or replaced.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

mod audit;
mod equivalence;
mod failover;
mod faults;
mod interleavings;
mod older;
mod rights;
mod start;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use stock::ledger::redis::Patience;
use stock::ledger::{IdState, ReserveBatch, ReserveOutcome, ReserveRequest, Settlement, Snapshot};
use stock::{
    DeploymentId, Ledger, LedgerError, LedgerServer, OrderId, Owner, RedisLedger, Reservation, SaleId,
    SaleVersion, StockConfig, UserId,
};
use testbed::{AppendFsync, Redis, RedisOptions};

const OWNER: Owner = Owner(0xF1);
const HOUR_MS: u64 = 3_600_000;
const DEPLOYMENT: DeploymentId = DeploymentId(0xD1);

/// For tests that do the server no harm.
static SHARED: LazyLock<Redis> = LazyLock::new(|| redis(AppendFsync::Everysec));

fn redis(appendfsync: AppendFsync) -> Redis {
    Redis::start(RedisOptions { appendfsync, ..Default::default() }).expect("a Redis")
}

fn config(url: &str) -> StockConfig {
    serde_json::from_value(serde_json::json!({"backend": "redis", "redis_urls": [url]})).unwrap()
}

fn sentinel_config(urls: &[String], master: &str) -> StockConfig {
    let config = serde_json::json!({
        "backend": "redis", "redis_mode": "sentinel", "redis_urls": urls, "sentinel_master": master,
    });
    serde_json::from_value(config).unwrap()
}

/// No slower answer than this comes from a server that nothing strikes, however busy the machine is with other tests.
const PATIENCE: Patience = Patience { response: Duration::from_secs(3), call: Duration::from_secs(6) };

/// For tests that harm the server and wait for calls to fail.
async fn connect(url: &str) -> Ledger {
    Ledger::Redis(RedisLedger::connect_with(&config(url), DEPLOYMENT, PATIENCE).await.unwrap())
}

/// As buyers bear it: any of its calls may fail on a machine that is merely busy.
async fn connect_as_shipped(url: &str) -> Ledger {
    Ledger::Redis(RedisLedger::connect(&config(url), DEPLOYMENT).await.unwrap())
}

/// For tests that harm nothing.
async fn connect_patiently(url: &str) -> Ledger {
    let patience = Patience { response: Duration::from_secs(10), call: Duration::from_secs(20) };
    Ledger::Redis(RedisLedger::connect_with(&config(url), DEPLOYMENT, patience).await.unwrap())
}

/// Asks until `answer` is there; a test that waits for ever says what for.
async fn until<T>(what: &str, mut answer: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..6_000 {
        if let Some(answer) = answer().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited a minute in vain until {what}");
}

/// One sale on the ledger under test: limit 2, running from an hour ago to an hour ahead.
struct Sale {
    ledger: Ledger,
    version: SaleVersion,
}

impl Sale {
    async fn open(ledger: &Ledger, total: u32) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now_ms = ledger.now_ms(LedgerServer::FIRST).await.unwrap();
        let version = SaleVersion {
            sale: format!("sale-{}", NEXT.fetch_add(1, Ordering::Relaxed)).parse().unwrap(),
            version: 1,
            total,
            starts_at_ms: now_ms - HOUR_MS,
            ends_at_ms: now_ms + HOUR_MS,
            per_user_limit: 2,
            passes_per_unit: 0,
            paused: false,
            terms_version: 1,
        };
        let sale = Self { ledger: ledger.clone(), version };
        sale.install(1).await.unwrap();
        sale.ledger.open(sale.id(), 1).await.unwrap();
        sale
    }

    /// The same sale through another connection.
    fn through(&self, ledger: &Ledger) -> Self {
        Self { ledger: ledger.clone(), version: self.version.clone() }
    }

    async fn install(&self, epoch: u64) -> Result<(), LedgerError> {
        self.ledger.install(&self.version, epoch).await
    }

    fn id(&self) -> &SaleId {
        &self.version.sale
    }

    fn order(&self, n: u64) -> OrderId {
        OrderId::new(1_700_000_000_000, self.id(), n)
    }

    fn request(&self, n: u64) -> ReserveRequest {
        ReserveRequest { order_id: self.order(n), user: user(n), quantity: 1, metadata: None }
    }

    /// With a deadline as far ahead as may be.
    fn batch(&self, ids: impl IntoIterator<Item = u64>) -> ReserveBatch {
        ReserveBatch {
            sale: self.id().clone(),
            epoch: 1,
            deadline_ms: now_ms() + 20_000,
            terms_version: 1,
            owner: OWNER,
            requests: ids.into_iter().map(|n| self.request(n)).collect(),
        }
    }

    async fn reserve(&self, ids: impl IntoIterator<Item = u64>) -> Result<Vec<ReserveOutcome>, LedgerError> {
        Ok(self.ledger.reserve(&self.batch(ids)).await?.outcomes)
    }

    /// How many of these ids a call took.
    async fn take(&self, ids: impl IntoIterator<Item = u64>) -> usize {
        let outcomes = self.reserve(ids).await.unwrap();
        outcomes.iter().filter(|o| matches!(o, ReserveOutcome::Pending { first: true, .. })).count()
    }

    fn settlements(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Settlement> {
        let settlement = |n| Settlement { order_id: self.order(n), user: user(n), quantity: 1 };
        ids.into_iter().map(settlement).collect()
    }

    fn reservations(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Reservation> {
        let reservation = |n| Reservation {
            order_id: self.order(n),
            sale: self.id().clone(),
            user: user(n),
            quantity: 1,
            metadata: None,
            reserved_at_ms: 1_700_000_000_000,
            sale_version: None,
        };
        ids.into_iter().map(reservation).collect()
    }

    async fn state(&self, n: u64) -> Result<IdState, LedgerError> {
        Ok(self.ledger.states(self.id(), &[self.order(n)]).await?[0])
    }

    async fn snapshot(&self) -> Result<Snapshot, LedgerError> {
        self.ledger.snapshot(self.id()).await
    }

    /// `(remaining, pending, confirmed)`.
    async fn units(&self) -> (i64, u64, u64) {
        let snapshot = self.snapshot().await.unwrap();
        (snapshot.remaining, snapshot.pending, snapshot.confirmed)
    }
}

/// The server's as well: it is on this machine.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn user(n: u64) -> UserId {
    format!("user-{n}").parse().unwrap()
}
