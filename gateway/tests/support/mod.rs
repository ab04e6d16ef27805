//! A real gateway on free loopback ports: embedded stock, a disk queue in a temporary directory, books over a map.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses a part of it")]

mod epoch_gates;
pub(crate) mod http;
pub(crate) mod life;
mod options;
mod orders;
mod payments;
mod refunds;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use gateway::admission::pass::Pass;
use gateway::catalog::{Catalog, CatalogSale};
use gateway::config::{AdminConfig, Secret};
use gateway::ports::{
    Cancelled, Figures, Operator, OrderChange, OrderChanged, OrderView, Orders, PortError, PortFuture,
    RebuildBegun, RefundView, Refunded, SaleChange, SaleView, Standing,
};
use gateway::server::Running;
use gateway::{Gateway, GatewayParts};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use queue::{DiskOptions, GroupWatch, Queue, StartAt, Storage, Topic};
use stock::{
    EmbeddedFlag, EmbeddedLedger, Flag, Ledger, OrderId, OrderStatus, Owner, Reservation, SaleDefinition,
    SaleId, SaleVersion, Stock, Timestamp, UserId,
};

use epoch_gates::epoch_gate_at;
pub use http::{Answer, Connection};
pub use options::Options;
pub use tokens::{bearer, token};

pub const SALE: &str = "demo";
pub const ADMIN_TOKEN: &str = "the-operators-token";
pub const JWT_SECRET: &str = "an-hs256-secret-of-at-least-32-bytes";
pub const DRAIN_GROUP: &str = "order-worker";

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// A sale of 100 units, 2 a user, open since a minute and for an hour.
pub fn sale(id: &str) -> SaleDefinition {
    serde_json::from_value(serde_json::json!({
        "id": id,
        "item_id": "item-1",
        "title": "A thing",
        "price": 1_000,
        "total": 100,
        "per_user_limit": 2,
        "starts_at": Timestamp(now_ms() - 60_000),
        "ends_at": Timestamp(now_ms() + 3_600_000),
    }))
    .expect("a definition")
}

/// A running gateway and what it stands on.
pub struct Site {
    pub gateway: Arc<Gateway>,
    pub running: Option<Running>,
    pub stock: Arc<Stock>,
    pub queue: Queue,
    pub topic: Topic,
    pub books: Arc<MapBooks>,
    pub runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Site {
    pub fn start(options: Options) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut registry = Registry::default();
        let now = options.wall;
        let mut disk = DiskOptions::new(directory.path().join("queue"), now.clone());
        disk.backlog_max = options.backlog_max;
        disk.segment_bytes = options.segment_bytes;
        disk.ring_bytes = options.ring_bytes;
        disk.storage = options.storage;
        let queue = Queue::open_disk(disk, &mut registry).expect("a queue");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let topic = runtime.block_on(queue.topic("floodgate-orders")).expect("a topic");
        drop(runtime.block_on(topic.group(DRAIN_GROUP, StartAt::Oldest)).expect("a group"));
        let embedded = || Ledger::Embedded(EmbeddedLedger::new(now.clone()));
        let ledger = options.ledger.unwrap_or_else(embedded);
        let stock = Arc::new(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(9)), &mut registry));
        let books = Arc::new(MapBooks::new(stock.clone()));
        let seed = AtomicU64::new(1);
        let random: queue::Random = Arc::new(move || {
            seed.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ now_ms()
        });
        let parts = GatewayParts {
            gateway: options.gateway,
            admin: AdminConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                token: Some(Secret::new(ADMIN_TOKEN)),
                token_file: None,
                ..AdminConfig::default()
            },
            auth: options.auth,
            gate: options.gate,
            limits: options.limits,
            stock: stock.clone(),
            topic: topic.clone(),
            owner: Owner(queue.instance()),
            epoch_gate: epoch_gate_at(1),
            drained: Arc::new(GroupWatch::new(topic.clone(), DRAIN_GROUP)),
            drain_rate_hint: Some(2_000),
            orders: books.clone(),
            payments: books.clone(),
            operator: books.clone(),
            now,
            random,
        };
        let gateway = Arc::new(Gateway::new(parts, &mut registry).expect("a good configuration"));
        *books.catalog.lock() = Some(gateway.catalog().clone());
        runtime.block_on(books.publish(options.sale)).expect("published");
        let running = Some(gateway.start(Arc::new(registry)).expect("started"));
        Self { gateway, running, stock, queue, topic, books, runtime, _directory: directory }
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.running.as_ref().expect("running").address()
    }

    pub fn admin_address(&self) -> std::net::SocketAddr {
        self.running.as_ref().expect("running").admin_address()
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.address())
    }

    pub fn admin(&self) -> Connection {
        Connection::open(self.admin_address())
    }

    /// A pass made with the site's own keys.
    pub fn pass(&self, user: &str) -> (String, OrderId) {
        self.pass_for(SALE, user, now_ms() + 60_000)
    }

    pub fn pass_for(&self, sale: &str, user: &str, expires_at_ms: u64) -> (String, OrderId) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let sale: SaleId = sale.parse().expect("a sale");
        let order_id = OrderId::new(now_ms(), &sale, NEXT.fetch_add(1, Ordering::Relaxed));
        let user = user.parse().expect("a user");
        (self.gateway.passes().issue(&Pass { sale, user, order_id, expires_at_ms }), order_id)
    }

    pub fn buy(&self, pass: &str, body: &str) -> Answer {
        self.connect().post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", pass)], body)
    }

    pub fn snapshot(&self) -> stock::ledger::Snapshot {
        self.runtime.block_on(self.stock.snapshot(&SALE.parse().expect("a sale"))).expect("a snapshot")
    }

    /// The orders that the log holds, oldest first. Recovery may have come between a unit taken and its append, and have
    /// appended it too: that is harmless, so each order comes once.
    pub fn log(&self) -> Vec<Reservation> {
        let mut seen = BTreeSet::new();
        self.records().into_iter().filter(|r| seen.insert(r.order_id)).collect()
    }

    /// Every record of the log, oldest first.
    pub fn records(&self) -> Vec<Reservation> {
        let messages = self.runtime.block_on(self.topic.read(None, 1_000_000)).expect("messages");
        messages.iter().map(|m| Reservation::decode(&m.payload).expect("a reservation")).collect()
    }

    /// Does what the worker would: rows for everything in the log, then confirmation.
    pub fn drain(&self) {
        for reservation in self.log() {
            self.runtime.block_on(self.books.settle(&reservation));
        }
        if let Some(end) = self.topic.end() {
            let group = self.runtime.block_on(self.topic.group(DRAIN_GROUP, StartAt::Oldest));
            self.runtime.block_on(group.expect("a group").commit(end)).expect("committed");
        }
    }

    /// Waits until the owner's recovery has looked at the sales on offer. Until then it may append what a batch is about to
    /// append as well, so only from here on has each order exactly one record.
    pub fn await_recovered(&self) {
        let recovered = (0..2_400).any(|_| {
            std::thread::sleep(Duration::from_millis(25));
            self.gateway.recovered()
        });
        assert!(recovered, "the owner's recovery never ends");
    }

    /// Waits until `/readyz` says yes, and nothing else.
    pub fn await_ready(&self) {
        for _ in 0..2_400 {
            let answer = self.admin().get("/readyz", &[]);
            if answer.status == 200 && answer.json()["conditions"] == serde_json::json!([]) {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("not ready: {}", self.admin().get("/readyz", &[]).text());
    }

    pub fn shutdown(&mut self) -> bool {
        let running = self.running.take().expect("running");
        self.runtime.block_on(running.shutdown())
    }
}

/// Books over a map: what the database would be, as far as the gateway can tell.
pub struct MapBooks {
    pub catalog: Mutex<Option<Arc<Catalog>>>,
    pub stock: Arc<Stock>,
    pub orders: Mutex<BTreeMap<OrderId, OrderView>>,
    pub sales: Mutex<BTreeMap<SaleId, SaleView>>,
    /// What sales offered before an edit.
    pub versions: Mutex<BTreeMap<(SaleId, u64), SaleDefinition>>,
    pub restocks: Mutex<BTreeMap<String, u32>>,
    pub unreachable: AtomicBool,
    /// Never answers a buyer's call.
    pub silent: AtomicBool,
    pub order_reads: AtomicU64,
    pub rebuilds: AtomicU64,
}

impl MapBooks {
    pub fn new(stock: Arc<Stock>) -> Self {
        Self {
            catalog: Mutex::default(),
            stock,
            orders: Mutex::default(),
            sales: Mutex::default(),
            versions: Mutex::default(),
            restocks: Mutex::default(),
            unreachable: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            order_reads: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
        }
    }

    fn check(&self) -> Result<(), PortError> {
        if self.unreachable.load(Ordering::Relaxed) {
            return Err(PortError::Unavailable("switched off".into()));
        }
        Ok(())
    }

    async fn answers(&self) {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    pub async fn settle(&self, reservation: &Reservation) {
        let sale = self.sales.lock()[&reservation.sale].clone();
        let settlement = stock::ledger::Settlement {
            order_id: reservation.order_id,
            user: reservation.user.clone(),
            quantity: reservation.quantity,
        };
        self.orders.lock().entry(reservation.order_id).or_insert_with(|| OrderView {
            order_id: reservation.order_id,
            sale: reservation.sale.clone(),
            user: reservation.user.clone(),
            quantity: reservation.quantity,
            amount: sale.definition.price * u64::from(reservation.quantity),
            currency: sale.definition.currency.clone(),
            status: OrderStatus::Unpaid,
            pay_by: Some(Timestamp(now_ms() + 900_000)),
        });
        self.stock.confirm(&reservation.sale, &[settlement]).await.expect("confirmed");
    }

    pub fn set_status(&self, order_id: OrderId, status: OrderStatus) {
        self.orders.lock().get_mut(&order_id).expect("an order").status = status;
    }

    /// Brings the ledger and the catalog to what the rows say.
    async fn push(&self, sale: &SaleView) {
        let version = SaleVersion {
            sale: sale.definition.id.clone(),
            version: sale.version,
            total: sale.total_now,
            starts_at_ms: sale.definition.starts_at.0,
            ends_at_ms: sale.definition.ends_at.0,
            per_user_limit: sale.definition.per_user_limit,
            passes_per_unit: sale.definition.passes_per_unit,
            paused: sale.paused_by.is_some(),
            terms_version: sale.terms_version,
        };
        if self.stock.push_sale(&version).await.is_err() {
            self.stock.install(&version, 1).await.expect("installed");
            self.stock.open(&version.sale, 1).await.expect("opened");
        }
        let catalog = self.catalog.lock().clone().expect("a catalog");
        let sales = self.sales.lock();
        let offered = sales.values().map(|sale| CatalogSale {
            definition: sale.definition.clone(),
            version: sale.version,
            terms_version: sale.terms_version,
            total: sale.total_now,
            paused_by: sale.paused_by.clone(),
            epoch: 1,
        });
        catalog.replace(offered.collect());
    }
}

impl Operator for MapBooks {
    fn change_order(
        &self,
        order_id: OrderId,
        change: OrderChange,
        reason: Option<String>,
    ) -> PortFuture<'_, OrderChanged> {
        refunds::change_order(self, order_id, change, reason).boxed()
    }

    fn retry_refund(&self, refund_id: String, _: Option<String>) -> PortFuture<'_, Option<RefundView>> {
        async move {
            self.check()?;
            Ok(refund_id.parse().ok().map(|order_id| refunds::refund_view(order_id, 1)))
        }
        .boxed()
    }

    fn sales(&self) -> PortFuture<'_, Vec<SaleView>> {
        async move {
            self.check()?;
            Ok(self.sales.lock().values().cloned().collect())
        }
        .boxed()
    }

    fn publish(&self, definition: SaleDefinition) -> PortFuture<'_, SaleView> {
        async move {
            self.check()?;
            definition.validate().map_err(|error| PortError::Invalid(error.to_string()))?;
            let view = {
                let mut sales = self.sales.lock();
                let view = sales.entry(definition.id.clone()).or_insert_with(|| SaleView {
                    total_now: definition.total,
                    sold: 0,
                    paused_by: None,
                    withdrawn_at: None,
                    version: 1,
                    terms_version: 1,
                    standing: None,
                    definition: definition.clone(),
                });
                if view.definition != definition {
                    return Err(PortError::Differs("title, price or another field".into()));
                }
                view.clone()
            };
            self.push(&view).await;
            Ok(view)
        }
        .boxed()
    }

    fn change(&self, sale: SaleId, change: SaleChange) -> PortFuture<'_, SaleView> {
        async move {
            self.check()?;
            let view = {
                let mut sales = self.sales.lock();
                let view = sales.get_mut(&sale).ok_or_else(|| PortError::UnknownSale(sale.clone()))?;
                match change {
                    SaleChange::Pause { by } => view.paused_by = Some(by),
                    SaleChange::Resume => view.paused_by = None,
                    SaleChange::Edit { edit, .. } => {
                        let after = edit.of(&view.definition);
                        let before = std::mem::replace(&mut view.definition, after);
                        if before.price != view.definition.price {
                            view.terms_version = view.version + 1;
                        }
                        self.versions.lock().insert((sale.clone(), view.version), before);
                        view.standing = Some(Standing::InForce);
                    }
                    SaleChange::Restock { restock_id, units } => {
                        if self.restocks.lock().insert(restock_id, units).is_none() {
                            view.total_now += units;
                        }
                    }
                    SaleChange::Withdraw { orders, .. } => {
                        view.definition.ends_at = Timestamp(now_ms());
                        view.withdrawn_at = orders.then(|| Timestamp(now_ms()));
                    }
                }
                view.version += 1;
                view.clone()
            };
            self.push(&view).await;
            Ok(view)
        }
        .boxed()
    }

    fn figures(&self, sale: SaleId) -> PortFuture<'_, Option<Figures>> {
        async move {
            self.check()?;
            let Some(view) = self.sales.lock().get(&sale).cloned() else { return Ok(None) };
            let books =
                self.stock.snapshot(&sale).await.map_err(|e| PortError::Unavailable(e.to_string()))?;
            Ok(Some(Figures {
                broken: Vec::new(),
                total: u64::from(view.total_now),
                remaining: books.remaining,
                pending: books.pending,
                confirmed: books.confirmed,
                sold: view.sold,
                backlog: 0,
                at_rest: books.pending == 0,
                epoch: books.epoch,
                paused_by: view.paused_by,
                sold_out: self.stock.flag().cell(&sale).read().map(|flag| flag.sold_out),
            }))
        }
        .boxed()
    }

    fn rebuild(&self, without: Option<Owner>) -> PortFuture<'_, RebuildBegun> {
        async move {
            self.check()?;
            self.rebuilds.fetch_add(1, Ordering::Relaxed);
            let risk = without.map(|owner| owner.0);
            Ok(RebuildBegun { epoch: 2, orders_at_risk: risk, units_at_risk: risk })
        }
        .boxed()
    }
}
