//! One instance of the gateway: what it is made of and how its parts are put together. Does no I/O; `server` serves it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use prometheus_client::registry::Registry;
use queue::{GroupWatch, Random, Topic};
use stock::{EpochGate, Now, Owner, Stock};

use crate::admission::auth::Authenticator;
use crate::admission::challenge::{ChallengeOptions, Challenges, Kind};
use crate::admission::limits::Limits;
use crate::admission::pass::PassKeys;
use crate::api::orders::OrderDocument;
use crate::api::payments::InFlight;
use crate::catalog::{Catalog, PageHints};
use crate::clock::LedgerClocks;
use crate::conditions::{Condition, Conditions};
use crate::config::{
    AdminConfig, AuthConfig, ChallengeKind, ConfigError, GateConfig, GatewayConfig, LimitsConfig,
};
use crate::final_orders::FinalOrders;
use crate::health::Health;
use crate::http::client::Clients;
use crate::metrics::{PurchaseMetrics, ServerMetrics};
use crate::ports::{Operator, Orders, Payments};
use crate::purchase::progress::Progress;
use crate::purchase::recovery::Recovery;
use crate::purchase::{PurchaseParts, Purchases};
use crate::streams::Streams;

/// How many looks at orders a user has for each purchase that `limits.per_user_rps` allows.
const LOOKS_PER_PURCHASE: u32 = 4;

/// Says what holds of a worker.
pub type WorkerConditions = Box<dyn Fn() -> Vec<Condition> + Send + Sync>;

/// What a gateway is made of.
pub struct GatewayParts {
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[admin]`, its token resolved.
    pub admin: AdminConfig,
    /// `[auth]`, its secret resolved.
    pub auth: AuthConfig,
    /// `[gate]`, its secrets resolved.
    pub gate: GateConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// Ledger and flag.
    pub stock: Arc<Stock>,
    /// This instance's own log of orders.
    pub topic: Topic,
    /// This instance: the id of its log directory.
    pub owner: Owner,
    /// Its epoch_gate among the instances on the ledger.
    pub epoch_gate: Arc<EpochGate>,
    /// What has been drained of `topic`; the gateway refreshes it.
    pub drained: Arc<GroupWatch>,
    /// Orders a second to count with until a rate has been seen.
    pub drain_rate_hint: Option<u32>,
    /// What buyers' calls want of orders.
    pub orders: Arc<dyn Orders>,
    /// What payment providers' calls want.
    pub payments: Arc<dyn Payments>,
    /// What the operator wants.
    pub operator: Arc<dyn Operator>,
    /// The wall clock: a guess, until the ledger has told the time.
    pub now: Now,
    /// Randomness.
    pub random: Random,
}

/// One instance of the gateway. [`Gateway::start`] serves it on threads of its own; a simulation drives
/// [`Gateway::purchases`] and [`Gateway::background`] itself.
pub struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) admin_config: AdminConfig,
    pub(crate) auth: Authenticator,
    pub(crate) passes: PassKeys,
    pub(crate) pass_ttl_ms: u64,
    pub(crate) opens_before_ms: u64,
    pub(crate) challenges: Option<Challenges>,
    pub(crate) clients: Clients,
    pub(crate) limits: Arc<Limits>,
    pub(crate) limits_by_address: bool,
    /// Looks at orders, which may cost a read of the database.
    pub(crate) looks: Limits,
    pub(crate) clocks: Arc<LedgerClocks>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stock: Arc<Stock>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) orders: Arc<dyn Orders>,
    pub(crate) payments: Arc<dyn Payments>,
    pub(crate) payments_in_flight: InFlight,
    pub(crate) operator: Arc<dyn Operator>,
    pub(crate) parts: Arc<PurchaseParts>,
    pub(crate) health: Health,
    pub(crate) conditions: Conditions,
    pub(crate) server_metrics: ServerMetrics,
    pub(crate) streams: Arc<Streams>,
    pub(crate) finals: FinalOrders<OrderDocument>,
    /// Set by the shutdown: `/readyz` says no from then on.
    pub(crate) draining: AtomicBool,
    /// Whether the process's clock has jumped lately.
    pub(crate) clock_has_jumped: Option<fn() -> bool>,
    /// Whether lines of the process's log are lost at the moment.
    pub(crate) loses_log_lines: Option<fn() -> bool>,
    pub(crate) worker: OnceLock<WorkerConditions>,
    pub(crate) random: Random,
}

impl Gateway {
    /// Checks the configuration and puts the parts together. Touches neither network nor disk; the catalog is empty.
    ///
    /// # Errors
    /// The first configuration key that is wrong.
    pub fn new(parts: GatewayParts, registry: &mut Registry) -> Result<Self, ConfigError> {
        let GatewayParts {
            gateway,
            admin,
            auth,
            gate,
            limits,
            stock,
            topic,
            owner,
            epoch_gate,
            orders,
            payments,
            operator,
            drained,
            now,
            random,
            ..
        } = parts;
        gateway.validate()?;
        auth.check_listener(&gateway)?;
        limits.validate()?;
        let passes = PassKeys::new(&gate)?;
        let auth = Authenticator::new(&auth)?;
        let hints =
            PageHints { opens_before_s: gate.opens_before_s, challenge: gate.challenge, demo: auth.demo() };
        let metrics = PurchaseMetrics::register(registry);
        let server_metrics = ServerMetrics::register(registry);
        let event_streams_max = gateway.event_streams_max;
        let clocks = Arc::new(LedgerClocks::new(now()));
        clocks.register(registry);
        let catalog = Arc::new(Catalog::new(stock.clone(), clocks.clone(), metrics.clone(), hints));
        let progress = Arc::new(Progress::new(drained, parts.drain_rate_hint));
        let limits_by_address = limits.per_address_rps > 0;
        let in_flight_max = limits.in_flight_max;
        let looks = LimitsConfig {
            per_user_rps: limits.per_user_rps.saturating_mul(LOOKS_PER_PURCHASE),
            per_address_rps: 0,
            in_flight_max,
        };
        let looks = Limits::new(&looks, &random);
        let limits = Arc::new(Limits::new(&limits, &random));
        let parts = Arc::new(PurchaseParts {
            stock: stock.clone(),
            orders: orders.clone(),
            topic,
            owner,
            epoch_gate,
            catalog: catalog.clone(),
            passes: passes.clone(),
            limits: limits.clone(),
            clocks: clocks.clone(),
            progress: progress.clone(),
            recovery: Arc::new(Recovery::default()),
            metrics,
            in_flight_max,
            in_flight: Arc::default(),
        });
        Ok(Self {
            challenges: challenges(&gate, &random, time_of_no_sale(&stock, &clocks)),
            clients: Clients::new(gateway.trusted_proxies.clone()),
            pass_ttl_ms: gate.pass_ttl_s * 1_000,
            opens_before_ms: gate.opens_before_s * 1_000,
            config: gateway,
            admin_config: admin,
            auth,
            passes,
            limits,
            limits_by_address,
            looks,
            clocks,
            progress,
            stock,
            catalog,
            orders,
            payments,
            payments_in_flight: InFlight::default(),
            operator,
            parts,
            health: Health::default(),
            conditions: Conditions::default(),
            streams: Arc::new(Streams::new(event_streams_max, server_metrics.event_streams.clone())),
            finals: FinalOrders::new(),
            server_metrics,
            draining: AtomicBool::new(false),
            clock_has_jumped: None,
            loses_log_lines: None,
            worker: OnceLock::new(),
            random,
        })
    }

    /// Whether the process's clock has jumped lately, asked at each `/readyz`.
    #[must_use]
    pub fn with_clock(mut self, has_jumped: fn() -> bool) -> Self {
        self.clock_has_jumped = Some(has_jumped);
        self
    }

    /// Whether lines of the process's log are lost at the moment, asked at each `/readyz`.
    #[must_use]
    pub fn with_log(mut self, loses_lines: fn() -> bool) -> Self {
        self.loses_log_lines = Some(loses_lines);
        self
    }

    /// A worker runs in the same process: what holds of it is asked at each `/readyz`. The first call decides.
    pub fn show_worker(&self, holding: WorkerConditions) {
        let _ = self.worker.set(holding);
    }

    /// The sales on offer: to be filled, and replaced at every change, by whoever knows them.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The keys of passes, for whoever issues them without HTTP.
    #[must_use]
    pub fn passes(&self) -> &PassKeys {
        &self.passes
    }

    /// The time of what belongs to no sale (tokens, pictures): that of the server with the leases, which all gateways share.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clocks.now_ms(self.stock.leases_server())
    }

    /// Whether everything that a crash or a lost answer left to the owner has been appended.
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.parts.recovery.is_idle()
    }

    /// The same, and no abandoned call may still run: what it took would get its record from this process alone, or from
    /// another as long as this one is registered.
    #[must_use]
    pub fn owes_nothing(&self) -> bool {
        self.recovered() && !self.parts.recovery.has_doubts()
    }

    /// A purchase path, for one thread; its batcher has to be run there.
    #[must_use]
    pub fn purchases(&self) -> Purchases {
        Purchases::new(self.parts.clone())
    }
}

/// See [`Gateway::now_ms`].
fn time_of_no_sale(stock: &Arc<Stock>, clocks: &Arc<LedgerClocks>) -> Now {
    let (stock, clocks) = (stock.clone(), clocks.clone());
    Arc::new(move || clocks.now_ms(stock.leases_server()))
}

fn challenges(gate: &GateConfig, random: &Random, now: Now) -> Option<Challenges> {
    let kind = match gate.challenge {
        ChallengeKind::Off => return None,
        ChallengeKind::Image => Kind::Image,
        ChallengeKind::ProofOfWork => Kind::ProofOfWork,
    };
    let secrets: Vec<_> = gate
        .pass_secrets
        .iter()
        .filter_map(|entry| entry.secret.as_ref().map(|s| (entry.id.clone(), s.expose().as_bytes().to_vec())))
        .collect();
    let options = ChallengeOptions { kind, pow_bits: gate.pow_bits, ..ChallengeOptions::default() };
    Some(Challenges::new(options, &secrets, random.clone(), now))
}
