//! A database that outlives crashes, a ledger that does not, a clock in the test's hand.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

pub(crate) mod process;
#[path = "../samples/mod.rs"]
mod samples;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use order_worker::database::{Database, Executor, Published, SharedConnection};
use order_worker::drain::pace::Drain;
use order_worker::{DrainConfig, Pace, Reconciler, Relay, WorkerMetrics};
use prometheus_client::registry::Registry;
use stock::ledger::{ReserveBatch, ReserveOutcome, ReserveRequest, Snapshot};
use stock::{EmbeddedFlag, EmbeddedLedger, Flag, Ledger, Now, Owner, Reservation, SaleId, Stock};

pub(crate) use samples::*;

pub(crate) const OWNER: Owner = Owner(7);

pub(crate) struct World {
    pub(crate) connection: SharedConnection,
    pub(crate) now_ms: Arc<AtomicU64>,
    pub(crate) database: Database,
    pub(crate) stock: Arc<Stock>,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) pace: Arc<Pace>,
    /// Of [`OWNER`]'s log.
    pub(crate) drain: Drain,
    pub(crate) registry: Registry,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::over(SharedConnection::open(":memory:").unwrap(), Arc::new(AtomicU64::new(START_MS)))
    }

    /// The next process: the ledger's memory is gone, the database is not.
    pub(crate) fn restart(self) -> Self {
        Self::over(self.connection, self.now_ms)
    }

    /// Another process on the same database and the same ledger.
    pub(crate) fn neighbour(&self) -> Self {
        let mut registry = Registry::default();
        let metrics = WorkerMetrics::new(&mut registry);
        let (pace, drain) = idle();
        Self {
            connection: self.connection.clone(),
            now_ms: self.now_ms.clone(),
            database: self.database.clone(),
            stock: self.stock.clone(),
            metrics,
            pace,
            drain,
            registry,
        }
    }

    /// As in production: a file, and SQLite on threads of its own.
    pub(crate) fn on_threads(file: &Path) -> Self {
        let now_ms = Arc::new(AtomicU64::new(START_MS));
        let database =
            Database::open_sqlite(file.to_str().unwrap(), Executor::Thread, clock(&now_ms)).unwrap();
        Self::with(SharedConnection::open(file).unwrap(), now_ms, database)
    }

    /// The ledger is on a machine whose clock is so far behind everybody else's.
    pub(crate) fn with_slow_ledger(behind_ms: u64) -> Self {
        let world = Self::new();
        let now = world.now();
        let ledger = Ledger::Embedded(EmbeddedLedger::new(Arc::new(move || now() - behind_ms)));
        let flag = Flag::Embedded(EmbeddedFlag::new(1));
        let stock = Arc::new(Stock::new(ledger, flag, &mut Registry::default()));
        Self { stock, ..world }
    }

    fn over(connection: SharedConnection, now_ms: Arc<AtomicU64>) -> Self {
        let database = Database::over_connection(connection.clone(), clock(&now_ms)).unwrap();
        Self::with(connection, now_ms, database)
    }

    fn with(connection: SharedConnection, now_ms: Arc<AtomicU64>, database: Database) -> Self {
        let mut registry = Registry::default();
        let now = clock(&now_ms);
        let ledger = Ledger::Embedded(EmbeddedLedger::new(now));
        let stock = Arc::new(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(1)), &mut registry));
        let metrics = WorkerMetrics::new(&mut registry);
        let (pace, drain) = idle();
        Self { connection, now_ms, database, stock, metrics, pace, drain, registry }
    }

    pub(crate) fn now(&self) -> Now {
        clock(&self.now_ms)
    }

    pub(crate) fn advance(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    pub(crate) async fn publish(&self, id: &str, total: u32, per_user_limit: u32) -> SaleId {
        let definition = definition(id, total, per_user_limit);
        assert_eq!(self.database.publish(&definition, &author()).await.unwrap(), Published::New);
        definition.id
    }

    /// The ledger's first life, as a first start begins it where there is nothing to rebuild from.
    pub(crate) async fn begin(&self) {
        if self.database.epoch().await.unwrap() == 0 {
            self.database.next_epoch().await.unwrap();
        }
    }

    /// Publishes a sale and opens the ledger for it.
    pub(crate) async fn open(&self, id: &str, total: u32, per_user_limit: u32) -> SaleId {
        self.begin().await;
        let sale = self.publish(id, total, per_user_limit).await;
        order_worker::bring(&self.database, &self.stock, &sale).await.unwrap();
        sale
    }

    /// What the gateway does first: takes units; `Err` says why not.
    pub(crate) async fn reserve(
        &self,
        sale: &SaleId,
        n: u64,
        user: &str,
        quantity: u32,
    ) -> Result<Reservation, ReserveOutcome> {
        let epoch = self.stock.snapshot(sale).await.unwrap().epoch;
        let request =
            ReserveRequest { order_id: order_id(n), user: user.parse().unwrap(), quantity, metadata: None };
        let batch = ReserveBatch {
            sale: sale.clone(),
            epoch,
            deadline_ms: self.now_ms.load(Ordering::SeqCst) + 500,
            terms_version: 1,
            owner: OWNER,
            requests: vec![request],
        };
        match self.stock.reserve(&batch).await.unwrap().outcomes.remove(0) {
            ReserveOutcome::Pending { reservation, .. } => Ok(reservation),
            refused => Err(refused),
        }
    }

    pub(crate) async fn snapshot(&self, sale: &SaleId) -> Snapshot {
        self.stock.snapshot(sale).await.unwrap()
    }

    /// (remaining, pending, confirmed)
    pub(crate) async fn units(&self, sale: &SaleId) -> (i64, u64, u64) {
        let snapshot = self.snapshot(sale).await;
        (snapshot.remaining, snapshot.pending, snapshot.confirmed)
    }

    pub(crate) fn relay(&self) -> Relay {
        Relay::new(self.database.clone(), self.stock.clone(), self.metrics.clone())
    }

    /// Of a process that drains [`OWNER`]'s log, in which nothing waits.
    pub(crate) fn reconciler(&self) -> Reconciler {
        self.reconciler_beside(self.pace.clone())
    }

    /// Of the process whose drains have this pace.
    pub(crate) fn reconciler_beside(&self, pace: Arc<Pace>) -> Reconciler {
        Reconciler::new(self.database.clone(), self.stock.clone(), pace, self.now(), self.metrics.clone())
    }

    /// The same of a counter; 0 while it has counted nothing.
    pub(crate) fn counter(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |figure| figure.parse().unwrap())
    }

    /// The sum of a counter over all of its labels.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// The value of a metric's line, labels included.
    /// As [`Self::metric`]; 0 for what has not happened yet.
    pub(crate) fn counted(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0.0, |found| found.parse().unwrap())
    }

    pub(crate) fn metric(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} in\n{text}")).parse().unwrap()
    }
}

fn idle() -> (Arc<Pace>, Drain) {
    let pace = Arc::new(Pace::new(&DrainConfig::default()));
    let drain = pace.enter(OWNER);
    drain.has_settled_everything();
    (pace, drain)
}

/// Removes the thread's failpoint hook when it goes.
pub(crate) struct Hooked;

impl Drop for Hooked {
    fn drop(&mut self) {
        queue::failpoint::set_hook(None);
    }
}

/// The step behind `name` fails as often as `times` says.
pub(crate) fn fail(name: &'static str, times: usize) -> Hooked {
    let left = RefCell::new(times);
    hook(move |hit| {
        let mut left = left.borrow_mut();
        let fails = hit == name && *left > 0;
        *left -= usize::from(fails);
        fails
    })
}

/// The process crashes when it passes `name` for the `nth` time, from 1.
pub(crate) fn crash(name: &'static str, nth: usize) -> Hooked {
    let passed = RefCell::new(0);
    hook(move |hit| {
        *passed.borrow_mut() += usize::from(hit == name);
        if hit == name && *passed.borrow() == nth {
            std::panic::panic_any(queue::failpoint::Crash(name));
        }
        // Only what was not confirmed is looked up.
        hit == "drain.confirm" && name == "reconciler.looked_up"
    })
}

/// Counts the steps whose name begins so.
pub(crate) fn count_in(prefix: &'static str, count: &Arc<AtomicU64>) -> Hooked {
    let count = count.clone();
    hook(move |hit| {
        count.fetch_add(u64::from(hit.starts_with(prefix)), Ordering::Relaxed);
        false
    })
}

fn hook(hook: impl FnMut(&'static str) -> bool + 'static) -> Hooked {
    queue::failpoint::set_hook(Some(Box::new(hook)));
    Hooked
}
