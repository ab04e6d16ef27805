//! The life of orders against a model of it: step by step what the model says, and with many actors at once whatever order their steps
//! had. Random, but replayed from its seed (proptest prints what failed, smallest first).
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "samples/mod.rs"]
mod samples;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use order_worker::database::{
    By, CancelOutcome, Capture, CloseOutcome, Database, Disposition, Due, Executor, Part, RefundAsked,
    RefundBy, RefundHeard, RefundOutcome, RefundReason, RefundState, RefundTold, SharedConnection,
};
use proptest::prelude::*;
use samples::{START_MS, author, clock, definition, order_id, reservation, sale_id};
use stock::OrderStatus;

const PRICE: u64 = 206_640;
const PAY_WITHIN_MS: u64 = 900_000;
const ORDERS: u64 = 4;
const PAYMENTS: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    Settle(u64),
    Capture { payment: u64, order: u64, wrong: bool },
    Cancel(u64),
    Close(u64),
    Refund { order: u64, part: Option<u64> },
    Told { payment: u64, outcome: u8 },
    Join,
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let orders = 0..ORDERS;
    prop_oneof![
        3 => orders.clone().prop_map(Step::Settle),
        4 => (0..PAYMENTS, orders.clone(), prop::bool::weighted(0.1))
            .prop_map(|(payment, order, wrong)| Step::Capture { payment, order, wrong }),
        1 => orders.clone().prop_map(Step::Cancel),
        2 => orders.clone().prop_map(Step::Close),
        2 => (orders, prop::option::of(1..=PRICE)).prop_map(|(order, part)| Step::Refund { order, part }),
        2 => (0..PAYMENTS, 0..4u8).prop_map(|(payment, outcome)| Step::Told { payment, outcome }),
        1 => Just(Step::Join),
        1 => (1..PAY_WITHIN_MS).prop_map(Step::Advance),
    ]
}

fn capture(payment: u64, order: u64, wrong: bool) -> Capture {
    Capture {
        provider: "sandbox".into(),
        payment_id: format!("t{payment}"),
        order_id: Some(order_id(order)),
        trade_ref: order_id(order).to_string(),
        amount: PRICE + u64::from(wrong),
        currency: "CNY".into(),
        paid_at: None,
    }
}

fn outcome(n: u8) -> RefundOutcome {
    match n {
        0 => RefundOutcome::Succeeded,
        1 => RefundOutcome::Failed("no".into()),
        2 => RefundOutcome::Sent,
        _ => RefundOutcome::Again { error: "later".into(), after_ms: 1 },
    }
}

struct Shop {
    database: Database,
    now: Arc<AtomicU64>,
    wishes: AtomicU64,
}

impl Shop {
    async fn open(database: Database, now: Arc<AtomicU64>) -> Self {
        database.publish(&definition("s", 100, 100), &author()).await.unwrap();
        Self { database, now, wishes: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// Carries a step out; what it answered, in words that the model has too.
    async fn take(&self, step: &Step) -> String {
        let database = &self.database;
        match step {
            Step::Settle(order) => {
                let settled = database.settle(vec![reservation("s", *order, "u", 1)]).await.unwrap();
                settled[0].status.to_string()
            }
            Step::Capture { payment, order, wrong } => {
                let captured = database.capture(&capture(*payment, *order, *wrong)).await.unwrap();
                format!("{:?}", captured.disposition)
            }
            Step::Cancel(order) => {
                match database.cancel(order_id(*order), By::Operator(&author())).await.unwrap() {
                    CancelOutcome::Cancelled(_) => "cancelled".into(),
                    CancelOutcome::WrongState(status) => status.to_string(),
                    CancelOutcome::NotFound => "none".into(),
                }
            }
            Step::Close(order) => {
                let due = Due { order_id: order_id(*order), sale: sale_id("s") };
                match database.close_due(&[due], 0).await.unwrap()[0] {
                    CloseOutcome::Closed => "closed now".into(),
                    CloseOutcome::Early(_) => "early".into(),
                    CloseOutcome::Past(status) => status.to_string(),
                    CloseOutcome::Absent => "none".into(),
                }
            }
            Step::Refund { order, part } => {
                let author = author();
                // Each wish is its own.
                let request_id = self.wishes.fetch_add(1, Ordering::SeqCst).to_string();
                let part = part.map(|amount| Part { request_id, amount });
                let by = RefundBy::Operator(&author);
                match database.refund(order_id(*order), by, part.as_ref()).await.unwrap() {
                    RefundAsked::Written(refund) => format!("{} whole {}", refund.amount, refund.whole),
                    RefundAsked::NotOffered => unreachable!("an operator asks"),
                    RefundAsked::WrongState(status) => status.to_string(),
                    RefundAsked::TooMuch(left) => format!("left {left}"),
                    RefundAsked::NotFound => "none".into(),
                }
            }
            Step::Told { payment, outcome: n } => {
                let found = database.payment("sandbox", &format!("t{payment}")).await.unwrap();
                let Some(refund) = found.and_then(|(_, refunds)| refunds.into_iter().next()) else {
                    return "none".into();
                };
                let told = RefundTold {
                    refund_id: refund.refund_id,
                    outcome: outcome(*n),
                    provider_refund_id: None,
                };
                format!("{:?}", database.refund_told(&told).await.unwrap())
            }
            Step::Join => format!("joined {}", database.join_unmatched(100).await.unwrap()),
            Step::Advance(ms) => {
                self.now.fetch_add(*ms, Ordering::SeqCst);
                String::new()
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Order {
    status: OrderStatus,
    cancelled: bool,
    pay_by_ms: u64,
    back: u64,
}

#[derive(Debug, Clone)]
struct Refund {
    amount: u64,
    whole: bool,
    state: RefundState,
}

#[derive(Debug, Clone)]
struct Payment {
    order: u64,
    amount: u64,
    disposition: Disposition,
    refunds: Vec<Refund>,
}

/// What design says, in as few words as possible.
#[derive(Debug, Default)]
struct Model {
    orders: BTreeMap<u64, Order>,
    payments: BTreeMap<u64, Payment>,
}

impl Model {
    fn judge(&mut self, payment: u64) -> Disposition {
        let Payment { order, amount, .. } = self.payments[&payment].clone();
        let Some(found) = self.orders.get_mut(&order) else { return Disposition::Unmatched };
        let disposition = if amount != PRICE {
            Disposition::Refund(RefundReason::WrongAmount)
        } else {
            match found.status {
                OrderStatus::Unpaid => {
                    found.status = OrderStatus::Paid;
                    Disposition::Kept
                }
                OrderStatus::Paid | OrderStatus::Refunding => Disposition::Refund(RefundReason::Second),
                _ => Disposition::Refund(RefundReason::Late),
            }
        };
        let row = self.payments.get_mut(&payment).unwrap();
        row.disposition = disposition;
        if disposition != Disposition::Kept {
            row.refunds.push(Refund { amount, whole: true, state: RefundState::Requested });
        }
        disposition
    }

    fn take(&mut self, step: &Step, now_ms: u64) -> String {
        match *step {
            Step::Settle(n) => {
                let new = Order {
                    status: OrderStatus::Unpaid,
                    cancelled: false,
                    pay_by_ms: now_ms + PAY_WITHIN_MS,
                    back: 0,
                };
                self.orders.entry(n).or_insert(new).status.to_string()
            }
            Step::Capture { payment, order, wrong } => {
                if let Some(row) = self.payments.get(&payment) {
                    return format!("{:?}", row.disposition);
                }
                let amount = PRICE + u64::from(wrong);
                let row = Payment { order, amount, disposition: Disposition::Unmatched, refunds: Vec::new() };
                self.payments.insert(payment, row);
                format!("{:?}", self.judge(payment))
            }
            Step::Cancel(n) => match self.orders.get_mut(&n) {
                None => "none".into(),
                Some(order) if order.status == OrderStatus::Unpaid || order.cancelled => {
                    (order.status, order.cancelled) = (OrderStatus::Closed, true);
                    "cancelled".into()
                }
                Some(order) => order.status.to_string(),
            },
            Step::Close(n) => match self.orders.get_mut(&n) {
                None => "none".into(),
                Some(order) if order.status != OrderStatus::Unpaid => order.status.to_string(),
                Some(order) if order.pay_by_ms > now_ms => "early".into(),
                Some(order) => {
                    order.status = OrderStatus::Closed;
                    "closed now".into()
                }
            },
            Step::Refund { order, part } => self.refund(order, part),
            Step::Told { payment, outcome } => self.told(payment, outcome),
            Step::Join => {
                let is_joinable = |(_, payment): &(&u64, &Payment)| {
                    payment.disposition == Disposition::Unmatched && self.orders.contains_key(&payment.order)
                };
                // In the order in which they came, which their numbers do not tell: at most one of an order can be kept, so
                // that the model asks the shop's rows which it was.
                let found: Vec<u64> = self.payments.iter().filter(is_joinable).map(|(n, _)| *n).collect();
                format!("joined {}", found.len())
            }
            Step::Advance(_) => String::new(),
        }
    }

    fn refund(&mut self, n: u64, part: Option<u64>) -> String {
        let Some(order) = self.orders.get_mut(&n) else { return "none".into() };
        let kept = self.payments.values_mut();
        let mut kept = kept.filter(|row| row.order == n && row.disposition == Disposition::Kept);
        let Some(payment) = kept.next() else { return order.status.to_string() };
        if order.status != OrderStatus::Paid {
            return match payment.refunds.iter().find(|refund| refund.whole && part.is_none()) {
                Some(whole) => format!("{} whole true", whole.amount),
                None => order.status.to_string(),
            };
        }
        let left = payment.amount - payment.refunds.iter().map(|refund| refund.amount).sum::<u64>();
        let amount = part.unwrap_or(left);
        if amount > left {
            return format!("left {left}");
        }
        let whole = amount == left;
        payment.refunds.push(Refund { amount, whole, state: RefundState::Requested });
        if whole {
            order.status = OrderStatus::Refunding;
        }
        format!("{amount} whole {whole}")
    }

    fn told(&mut self, n: u64, outcome: u8) -> String {
        let Some(payment) = self.payments.get_mut(&n) else { return "none".into() };
        let Some(refund) = payment.refunds.first_mut() else { return "none".into() };
        let state = refund.state;
        if state == RefundState::Succeeded || (state == RefundState::Stuck && outcome != 0) {
            return format!("{:?}", RefundHeard::Unchanged);
        }
        refund.state = match outcome {
            0 => RefundState::Succeeded,
            1 => RefundState::Stuck,
            2 => RefundState::Sent,
            _ => state,
        };
        if outcome == 0
            && payment.disposition == Disposition::Kept
            && let Some(order) = self.orders.get_mut(&payment.order)
        {
            order.back += refund.amount;
            if refund.whole {
                order.status = OrderStatus::Refunded;
            }
        }
        format!("{:?}", RefundHeard::Changed)
    }
}

/// What must be true of all rows, in whatever order the actors came.
async fn must_be_sound(shop: &Shop, connection: &SharedConnection) {
    let database = &shop.database;
    let mut held = 0;
    for n in 0..ORDERS {
        let Some(order) = database.order(order_id(n)).await.unwrap() else { continue };
        held += u64::from(order.units_held);
        let holds = matches!(order.status, OrderStatus::Unpaid | OrderStatus::Paid);
        assert_eq!(order.units_held, u32::from(holds), "{order:?}");
        let payments = database.payments_of(order_id(n)).await.unwrap();
        let kept: Vec<_> = payments.iter().filter(|(row, _)| row.disposition == Disposition::Kept).collect();
        let was_paid = order.paid_at.is_some();
        assert_eq!(kept.len(), usize::from(was_paid), "{order:?}: {payments:?}");
        for (row, refunds) in &payments {
            let back: u64 = refunds.iter().map(|refund| refund.amount).sum();
            assert!(back <= row.amount, "{row:?}: {refunds:?}");
            if let Disposition::Refund(_) = row.disposition {
                assert_eq!((refunds.len(), back), (1, row.amount));
            }
        }
        let versions: Vec<u64> = connection.with(|c| {
            let versions = "SELECT version FROM floodgate_events WHERE order_id = ?1 ORDER BY version";
            let mut versions = c.prepare(versions).unwrap();
            let versions = versions.query_map([order_id(n).to_string()], |row| row.get::<_, i64>(0));
            versions.unwrap().map(|version| version.unwrap() as u64).collect()
        });
        assert_eq!(versions, (2..=order.version).collect::<Vec<_>>(), "a version has one event");
    }
    let books = database.books(None).await.unwrap();
    assert_eq!((books[0].sold, books[0].units_held), (held, held));
    let gave_back = books[0].orders - held;
    assert_eq!(books[0].releases, gave_back, "units are back once");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn each_step_is_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let connection = SharedConnection::open(":memory:").unwrap();
            let now = Arc::new(AtomicU64::new(START_MS));
            let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
            let shop = Shop::open(database, now).await;
            let mut model = Model::default();
            for (n, step) in steps.iter().enumerate() {
                // Each its own moment, so that what came first is known.
                shop.now.fetch_add(1, Ordering::SeqCst);
                let before: Vec<u64> = model.payments.iter()
                    .filter(|(_, row)| row.disposition == Disposition::Unmatched).map(|(n, _)| *n).collect();
                let said = model.take(step, shop.now_ms());
                assert_eq!(shop.take(step).await, said, "step {n}: {step:?} of {steps:?}");
                if matches!(step, Step::Join) {
                    let mut came = Vec::new();
                    for payment in before {
                        let (row, _) = shop.database.payment("sandbox", &format!("t{payment}")).await.unwrap().unwrap();
                        came.push((row.received_at, payment, row.disposition));
                    }
                    came.sort_by_key(|(at, ..)| *at);
                    for (_, payment, disposition) in came {
                        assert_eq!(model.judge(payment), disposition, "{steps:?}");
                    }
                }
                for (n, order) in &model.orders {
                    let row = shop.database.order(order_id(*n)).await.unwrap().unwrap();
                    assert_eq!((row.status, row.refunded_amount), (order.status, order.back), "{steps:?}");
                }
            }
            must_be_sound(&shop, &connection).await;
        });
    }

    #[test]
    fn many_actors_leave_what_is_sound(actors in prop::collection::vec(prop::collection::vec(step(), 1..16), 2..6)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("orders.db");
            let now = Arc::new(AtomicU64::new(START_MS));
            let database = Database::open_sqlite(file.to_str().unwrap(), Executor::Thread, clock(&now)).unwrap();
            let shop = Arc::new(Shop::open(database, now).await);
            let acting = actors.into_iter().map(|steps| {
                let shop = shop.clone();
                tokio::spawn(async move {
                    for step in &steps {
                        shop.take(step).await;
                    }
                })
            });
            for actor in acting.collect::<Vec<_>>() {
                actor.await.unwrap();
            }
            must_be_sound(&shop, &SharedConnection::open(&file).unwrap()).await;
        });
    }
}
