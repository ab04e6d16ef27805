//! One process: the production parts, started as the binary starts them, below HTTP. All of it is one future.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use gateway::admission::pass::Pass;
use gateway::config::{
    AdminConfig, AuthConfig, ChallengeKind, GateConfig, GatewayConfig, LimitsConfig, PassSecret, Secret,
};
use gateway::ports::{Cancelled, Operator, Orders, PortError, SaleChange, SaleView};
use gateway::purchase::{Attempt, PurchaseAnswer, Purchases};
use gateway::{Gateway, GatewayParts};
use order_worker::database::{Capture, Captured};
use order_worker::life::payments::Receivers;
use order_worker::life::payments::config::PaymentConfig;
use order_worker::life::payments::inbox::PaymentInbox;
use order_worker::membership::tie::tie;
use order_worker::{
    Closing, ClosingParts, DRAIN_GROUP, Database, DrainConfig, DrainStats, GetTopic, JournalKey, Member,
    MemberParts, MemberRow, MembershipMetrics, ORDERS_TOPIC, OwnLog, Pace, Reconciler, Relay, Shop,
    TIMEOUTS_TOPIC, Timeouts, Worker, WorkerLog, WorkerMetrics, WorkerParts, join_payments,
};
use prometheus_client::registry::Registry;
use queue::{GroupWatch, NewRecord, Queue, StartAt, Topic, TopicState};
use stock::ledger::{GrantOutcome, GrantRequest, Ledger, counts_until_ms};
use stock::{
    DeploymentId, EmbeddedFlag, EmbeddedLedger, EpochGate, Flag, OrderId, OrderStatus, Owner, SaleDefinition,
    SaleId, Stock, UserId,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::census::LETTER_AT_START;
use crate::elsewhere;
use crate::gateway_ports::{RootOperator, RootOrders, RootPayments};
use crate::logs::{neighbours, queue_options, queue_parts};
use crate::operator::promised_letters;
use crate::parts::{Parts, lasts, part};
use crate::slow::slowly;
use crate::worker_log;
use crate::world::{Mode, World};

/// What reaches a process from outside. A dropped answer is a closed connection.
pub(crate) enum Call {
    Pass {
        user: UserId,
        sale: SaleId,
        answer: oneshot::Sender<PassAnswer>,
    },
    Buy {
        sale: SaleId,
        pass: String,
        quantity: u32,
        answer: oneshot::Sender<PurchaseAnswer>,
    },
    Status {
        order_id: OrderId,
        user: UserId,
        answer: oneshot::Sender<Result<Option<OrderStatus>, PortError>>,
    },
    Cancel {
        order_id: OrderId,
        user: UserId,
        answer: oneshot::Sender<Result<Cancelled, PortError>>,
    },
    Pay {
        capture: Box<Capture>,
        answer: oneshot::Sender<Option<Captured>>,
    },
    Change {
        sale: SaleId,
        change: SaleChange,
        answer: oneshot::Sender<Result<SaleView, PortError>>,
    },
    /// Something that is no order gets into the topic of orders.
    Rubbish {
        answer: oneshot::Sender<bool>,
    },
    Publish {
        definition: Box<SaleDefinition>,
        answer: oneshot::Sender<Result<SaleView, PortError>>,
    },
}

/// Of a wish for a pass.
#[derive(Debug, Clone)]
pub(crate) enum PassAnswer {
    Issued { pass: String, order_id: OrderId },
    Refused,
}

/// Why a process ended by itself.
pub(crate) enum Stop {
    /// It was asked to.
    Clean,
    /// It cannot start or go on: whoever runs it starts it again.
    Failed(String),
}

/// What the checks look at.
pub(crate) struct Inside {
    pub(crate) database: Database,
    pub(crate) stock: Arc<Stock>,
    pub(crate) topic: Topic,
    pub(crate) worker_log: Arc<WorkerLog>,
    epoch_gate: Arc<EpochGate>,
    gateway: Arc<Gateway>,
    purchases: Purchases,
}

impl Inside {
    /// Purchases between permit and answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.purchases.parts().in_flight.load(Ordering::Relaxed)
    }

    /// Whether the owner's recovery has nothing left to do.
    pub(crate) fn recovered(&self) -> bool {
        self.gateway.recovered()
    }
}

/// Starts and runs one process until it is asked to stop, fails, or is dropped. `started` hears when it takes calls.
pub(crate) async fn run(
    world: &World,
    instance: usize,
    calls: mpsc::UnboundedReceiver<Call>,
    stop: &Notify,
    started: impl FnOnce(Rc<Inside>),
) -> Stop {
    match start(world, instance).await {
        Ok(process) => {
            started(process.inside.clone());
            world.trace.say(format_args!("machine {instance}: runs at epoch {}", process.epoch));
            process.serve(world, calls, stop).await
        }
        Err(error) => Stop::Failed(error),
    }
}

/// The same in every process, as all on one database must have it.
pub(crate) fn journal() -> JournalKey {
    JournalKey::new(&[7; 32])
}

/// How long after its deadline an order is closed.
pub(crate) const GRACE_MS: u64 = 500;
/// How long a payment waits for its order: longer than any run.
const UNMATCHED_REFUND_MS: u64 = 86_400_000;
/// The default of `gate.pass_ttl_s`.
pub(crate) const PASS_TTL_MS: u64 = 120_000;
/// Longest that a process takes to stop, as the binary allows.
const STOP_MAX: Duration = Duration::from_secs(20);

/// A started process.
struct Process {
    inside: Rc<Inside>,
    queue: Queue,
    operator: Arc<RootOperator>,
    epoch: u64,
    worker: WorkerParts,
    closing: Closing,
    member: Member,
}

/// The start of the binary: database → queue → sales published → ledger rebuilt, or found to have outlived us.
async fn start(world: &World, instance: usize) -> Result<Process, String> {
    let mut registry = Registry::default();
    let now = world.now.clone();
    let random = world.random.source();

    // 1. What outlives the process.
    let database = Database::over_connection(world.database.clone(), now.clone()).map_err(text)?;
    world.curse();
    let queue =
        Queue::open_disk(queue_options(&queue_parts(world, instance)), &mut registry).map_err(text)?;
    if world.is_started_elsewhere(instance) {
        return Err(elsewhere::start(world, &queue, DeploymentId(u128::from(random()))).await?);
    }
    let deployment = database.deployment(DeploymentId(u128::from(random()))).await.map_err(text)?;
    let opening = tie(&queue, &database, deployment, &instance.to_string()).await.map_err(text)?;
    let topic = queue.topic(ORDERS_TOPIC).await.map_err(text)?;
    let group = topic.group(DRAIN_GROUP, StartAt::Oldest).await.map_err(text)?;
    let owner = Owner(queue.instance());
    world.saw_log(instance, owner);
    database.publish(&world.sale, &journal().config()).await.map_err(text)?;

    // 2. The ledger's memory.
    let ledger = match world.mode {
        Mode::Embedded => Ledger::Embedded(EmbeddedLedger::new(now.clone())),
        Mode::Outliving => world.connect(instance),
    };
    let stock = Arc::new(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(random())), &mut registry));
    let epoch_gate = Arc::new(EpochGate::new());
    let own = OwnLog {
        topic: topic.clone(),
        owner,
        opening,
        place: instance.to_string(),
        epoch_gate: epoch_gate.clone(),
    };
    let mut member = Member::new(MemberParts {
        database: database.clone(),
        stock: stock.clone(),
        own: Some(own),
        row: MemberRow::of(owner),
        logs: neighbours(world, instance),
        outliving: world.mode == Mode::Outliving,
        metrics: MembershipMetrics::new(&mut registry),
    });
    let epoch = member.start().await.map_err(text)?;
    if !promised_letters(&topic).await.map_err(text)?.is_empty() {
        world.census.saw(LETTER_AT_START);
    }

    // 3. The gateway and the drain.
    let operator = Arc::new(RootOperator::new(
        database.clone(),
        stock.clone(),
        topic.clone(),
        epoch_gate.clone(),
        journal().operator("admin"),
    ));
    let receivers = Receivers::new(&PaymentConfig::default())?;
    let payments = Arc::new(RootPayments(PaymentInbox::new(receivers, database.clone())));
    let ports = (Arc::new(RootOrders(database.clone())), payments, operator.clone());
    let drain = DrainConfig {
        batch_size_max: 16,
        orders_per_second_max: world.drained_per_second,
        ..DrainConfig::default()
    };
    let parts = gateway_parts(stock.clone(), topic.clone(), (owner, epoch_gate.clone()), ports, now, random);
    let gateway = Arc::new(Gateway::new(parts, &mut registry).map_err(text)?);
    operator.offer_through(gateway.catalog().clone());
    operator.refresh_catalog().await.map_err(text)?;
    let worker_log = worker_log::own_log(world, instance, &database);
    let metrics = WorkerMetrics::new(&mut registry);
    let of_log = worker_log.clone();
    let deadlines: GetTopic = Arc::new(move || of_log.topic(TIMEOUTS_TOPIC));
    let timeouts = Timeouts::new(deadlines, GRACE_MS, &metrics);
    let closing = Closing::new(ClosingParts {
        database: database.clone(),
        stock: stock.clone(),
        timeouts: timeouts.clone(),
        shop: Shop::default(),
        budget: drain.clone(),
        now: world.now.clone(),
        metrics: metrics.clone(),
    });
    let worker = WorkerParts {
        database: database.clone(),
        stock: stock.clone(),
        group,
        log: owner,
        stats: Arc::new(DrainStats::new(drain.orders_per_second_max)),
        pace: Arc::new(Pace::new(&drain)),
        timeouts,
        metrics,
    };
    let purchases = gateway.purchases();
    let inside = Rc::new(Inside { database, stock, topic, worker_log, epoch_gate, gateway, purchases });
    Ok(Process { inside, queue, operator, epoch, worker, closing, member })
}

fn gateway_parts(
    stock: Arc<Stock>,
    topic: Topic,
    (owner, epoch_gate): (Owner, Arc<EpochGate>),
    (orders, payments, operator): (Arc<RootOrders>, Arc<RootPayments>, Arc<RootOperator>),
    now: stock::Now,
    random: queue::Random,
) -> GatewayParts {
    let secret = || Some(Secret::new("s".repeat(32)));
    let key = PassSecret { id: "k1".into(), secret: secret(), secret_file: None };
    GatewayParts {
        gateway: GatewayConfig::default(),
        admin: AdminConfig::default(),
        auth: AuthConfig { hs256_secret: secret(), ..AuthConfig::default() },
        gate: GateConfig { challenge: ChallengeKind::Off, pass_secrets: vec![key], ..GateConfig::default() },
        limits: LimitsConfig { per_user_rps: 0, in_flight_max: 100, ..LimitsConfig::default() },
        stock,
        drained: Arc::new(GroupWatch::new(topic.clone(), DRAIN_GROUP)),
        topic,
        owner,
        epoch_gate,
        drain_rate_hint: None,
        orders,
        payments,
        operator,
        now,
        random,
    }
}

impl Process {
    /// Runs every part, always in the same order, and answers calls.
    async fn serve(self, world: &World, calls: mpsc::UnboundedReceiver<Call>, stop: &Notify) -> Stop {
        let Self { inside, queue, operator, worker, closing: closer, mut member, .. } = self;
        let (closing, closed) = watch::channel(false);
        let (database, stock, metrics) =
            (inside.database.clone(), inside.stock.clone(), worker.metrics.clone());
        let pace = worker.pace.clone();
        let worker = Worker::new(worker, closed.clone());
        let relay = Relay::new(database.clone(), stock.clone(), metrics.clone());
        let reconciler = Reconciler::new(database, stock, pace, world.now.clone(), metrics);
        let front = Front { world, operator: &operator, inside: &inside };
        let mut ending = Parts(vec![
            lasts(front.answer(calls, closed.clone())),
            lasts(inside.purchases.run(closed.clone())),
            lasts(inside.gateway.background(closed.clone())),
            part(async { worker.run().await.map_err(text) }),
            lasts(relay.run(closed.clone())),
            lasts(reconciler.run(closed.clone())),
            lasts(closer.by_message(closed.clone())),
            lasts(closer.by_index(closed.clone())),
            lasts(join_payments(inside.database.clone(), UNMATCHED_REFUND_MS, closed.clone())),
            lasts(worker_log::watch_trouble(world, &inside.worker_log, closed.clone())),
            lasts(inside.worker_log.run(closed.clone())),
        ]);
        let mut lasting = Parts(vec![
            lasts(slowly(|| world.draw_disk_delay(), queue.run())),
            lasts(member.run(closed)),
            part(keep_watch(&operator, &inside.epoch_gate, &inside.topic)),
        ]);
        let ended = {
            let mut ended = std::pin::pin!(async {
                tokio::select! {
                    biased;
                    ended = ending.until_done() => ended,
                    failed = lasting.until_done() => failed.and(Err("the queue stopped by itself".into())),
                }
            });
            tokio::select! {
                biased;
                ended = &mut ended => ended,
                () = stop.notified() => {
                    let _ = closing.send(true);
                    timeout(STOP_MAX, ended).await.unwrap_or_else(|_| Err("it did not stop in time".into()))
                }
            }
        };
        if let Err(error) = ended {
            return Stop::Failed(error);
        }
        // Everything under way has ended; the log is settled last, and deregistered if it owes nothing, as by the binary.
        let end = async {
            queue.settle().await;
            if inside.gateway.owes_nothing()
                && inside.topic.lag(DRAIN_GROUP).await.is_ok_and(|lag| lag.records == 0)
            {
                let _ = inside.database.deregister_instance(queue.instance()).await;
            }
            queue.shutdown().await;
        };
        tokio::select! {
            biased;
            () = end => Stop::Clean,
            _ = lasting.until_done() => Stop::Clean,
        }
    }
}

/// Keeps the catalog as the rows are. A log that takes no more has the process started again, as readiness would.
async fn keep_watch(operator: &RootOperator, epoch_gate: &EpochGate, topic: &Topic) -> Result<(), String> {
    let mut offers = epoch_gate.offers();
    loop {
        let _ = timeout(Duration::from_secs(1), offers.changed()).await;
        if topic.state() == TopicState::Poisoned {
            return Err("the log is poisoned".into());
        }
        // A database out of reach leaves the catalog as it is.
        let _ = operator.refresh_catalog().await;
    }
}

/// What stands between a connection and the parts.
struct Front<'a> {
    world: &'a World,
    operator: &'a RootOperator,
    inside: &'a Inside,
}

impl Front<'_> {
    async fn answer(&self, mut calls: mpsc::UnboundedReceiver<Call>, mut closing: watch::Receiver<bool>) {
        let mut answering = FuturesUnordered::new();
        let mut is_closing = false;
        while !(is_closing && answering.is_empty()) {
            tokio::select! {
                biased;
                Some(()) = answering.next() => {}
                Some(call) = calls.recv(), if !is_closing => answering.push(self.answer_one(call)),
                _ = closing.wait_for(|closing| *closing), if !is_closing => is_closing = true,
            }
        }
    }

    async fn answer_one(&self, call: Call) {
        let gateway = &self.inside.gateway;
        match call {
            Call::Pass { user, sale, answer } => unless_gone(answer, self.pass(user, &sale)).await,
            Call::Buy { sale, pass, quantity, answer } => {
                let attempt = Attempt {
                    sale: sale.as_str(),
                    pass: Some(&pass),
                    quantity,
                    metadata: None,
                    sale_version: None,
                    address: None,
                };
                unless_gone(answer, self.inside.purchases.purchase(attempt)).await;
            }
            Call::Status { order_id, user, answer } => {
                unless_gone(answer, gateway.order_status(order_id, &user)).await;
            }
            Call::Cancel { order_id, user, answer } => {
                unless_gone(answer, self.cancel(order_id, user)).await;
            }
            Call::Pay { capture, answer } => {
                let captured = async { self.inside.database.capture(&capture).await.ok() };
                unless_gone(answer, captured).await;
            }
            Call::Change { sale, change, answer } => {
                unless_gone(answer, self.operator.change(sale, change)).await;
            }
            Call::Rubbish { answer } => unless_gone(answer, self.rubbish()).await,
            Call::Publish { definition, answer } => {
                unless_gone(answer, self.operator.publish(*definition)).await;
            }
        }
    }

    async fn pass(&self, user: UserId, sale: &SaleId) -> PassAnswer {
        let gateway = &self.inside.gateway;
        let Some(sale) = gateway.catalog().offer().sale(sale.as_str()).cloned() else {
            return PassAnswer::Refused;
        };
        let now_ms = sale.now_ms();
        let mut pass = Pass {
            order_id: OrderId::new(now_ms, &sale.id, self.world.random.next()),
            expires_at_ms: now_ms.max(sale.starts_at_ms) + PASS_TTL_MS,
            sale: sale.id.clone(),
            user,
        };
        if sale.definition.passes_per_unit > 0 {
            let Pass { order_id, expires_at_ms, user, .. } = pass.clone();
            let counts_until_ms = counts_until_ms(order_id, now_ms.max(sale.starts_at_ms), expires_at_ms);
            let request = GrantRequest { user, order_id, expires_at_ms, counts_until_ms };
            match self.inside.stock.grant(&sale.id, sale.epoch, &request).await {
                Ok((GrantOutcome::Granted, _)) => {}
                Ok((GrantOutcome::Existing { order_id, expires_at_ms }, _)) => {
                    pass = Pass { order_id, expires_at_ms, ..pass };
                }
                Ok((GrantOutcome::GateFull | GrantOutcome::SoldOut, _)) | Err(_) => {
                    return PassAnswer::Refused;
                }
            }
        }
        PassAnswer::Issued { pass: gateway.passes().issue(&pass), order_id: pass.order_id }
    }

    async fn rubbish(&self) -> bool {
        let topic = &self.inside.topic;
        let payload = b"{\"v\": 1, \"hello\": \"world\"}";
        let Ok(permit) = topic.try_permit(payload.len()) else { return false };
        let record = NewRecord { key: b"rubbish", tag: "order", deliver_at_ms: None, payload };
        topic.append(permit, record).await.is_ok()
    }

    async fn cancel(&self, order_id: OrderId, user: UserId) -> Result<Cancelled, PortError> {
        match self.inside.gateway.order_status(order_id, &user).await? {
            Some(OrderStatus::Queued) => Ok(Cancelled::WrongState(OrderStatus::Queued)),
            Some(_) => RootOrders(self.inside.database.clone()).cancel(order_id, user).await,
            None => Ok(Cancelled::NotFound),
        }
    }
}

/// Works until the client hangs up.
async fn unless_gone<T>(mut answer: oneshot::Sender<T>, work: impl Future<Output = T>) {
    let reply = tokio::select! {
        biased;
        () = answer.closed() => return,
        reply = work => reply,
    };
    // It may have hung up just now.
    let _ = answer.send(reply);
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
