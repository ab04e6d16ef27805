//! Payments in the model: providers that say a payment late, twice, by two channels, before the order's row, and again until they are
//! answered; and what must be true of all money at rest.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use order_worker::Database;
use order_worker::database::{Capture, Captured, Disposition, OrderRow};
use stock::{OrderId, OrderStatus};
use tokio::time::{sleep, timeout};

use crate::census::{CLOSED_UNPAID, PAID, PAID_BEFORE_ITS_ROW, PAID_LATE, PAID_TWICE};
use crate::machine::Machine;
use crate::process::Call;
use crate::random::Random;
use crate::world::World;

/// How long a provider waits for an answer.
const PATIENCE_MAX: Duration = Duration::from_secs(5);
/// How often it says the same.
const TRIES_MAX: u64 = 6;

/// What providers were answered, kept outside of every process.
#[derive(Default)]
pub(crate) struct Till(RefCell<BTreeMap<String, (Capture, Option<Captured>)>>);

impl Till {
    fn begin(&self, order_id: OrderId, amount: u64) -> Capture {
        let mut till = self.0.borrow_mut();
        let capture = Capture {
            provider: "sandbox".into(),
            payment_id: format!("t{}", till.len()),
            order_id: Some(order_id),
            trade_ref: order_id.to_string(),
            amount,
            currency: "CNY".into(),
            paid_at: None,
        };
        till.insert(capture.payment_id.clone(), (capture.clone(), None));
        capture
    }

    fn answered(&self, capture: &Capture, captured: Captured) {
        if let Some((_, answer)) = self.0.borrow_mut().get_mut(&capture.payment_id) {
            *answer = Some(captured);
        }
    }

    fn was_answered(&self, order_id: OrderId, disposition: Disposition) -> bool {
        let is_it = |(capture, answer): &(Capture, Option<Captured>)| {
            capture.order_id == Some(order_id)
                && answer.is_some_and(|answer| answer.disposition == disposition)
        };
        self.0.borrow().values().any(is_it)
    }
}

/// Pays one order, in one of the ways that providers have.
pub(crate) async fn pay(
    world: &World,
    machines: &[Machine],
    random: &Random,
    order_id: OrderId,
    quantity: u32,
) {
    let wait_ms = *random.pick(&[1, 1, 1_000, 3_000, 12_000]);
    sleep(Duration::from_millis(random.below(wait_ms))).await;
    let price = world.sale.price * u64::from(quantity);
    let amount = if random.chance(100) { price + 1 } else { price };
    let mut captures = vec![world.till.begin(order_id, amount)];
    if random.chance(250) {
        captures.push(world.till.begin(order_id, price));
    }
    for capture in captures {
        say(world, machines, random, &capture).await;
        if random.chance(300) {
            // A repeat though it was answered.
            sleep(Duration::from_millis(random.below(3_000))).await;
            say(world, machines, random, &capture).await;
        }
    }
}

/// Says it until somebody answers, or it is tired of it.
async fn say(world: &World, machines: &[Machine], random: &Random, capture: &Capture) {
    for _ in 0..TRIES_MAX {
        let (machine, said) = (random.pick(machines), capture.clone());
        let call = machine.call(|answer| Call::Pay { capture: Box::new(said), answer });
        let answer = timeout(PATIENCE_MAX, call).await.ok().flatten().flatten();
        world.trace.say(format_args!("{} for {:?}: {answer:?}", capture.payment_id, capture.order_id));
        if let Some(captured) = answer {
            world.till.answered(capture, captured);
            return;
        }
        sleep(Duration::from_millis(random.below(2_000))).await;
    }
}

/// Captured money is either of a live paid order or refunded, once; what was answered is a row.
pub(crate) async fn check(world: &World, database: &Database, rows: &BTreeMap<OrderId, OrderRow>) {
    let mut kept: BTreeMap<OrderId, u32> = BTreeMap::new();
    let till = world.till.0.borrow().clone();
    for (id, (capture, answer)) in till {
        let found = database.payment(&capture.provider, &id).await.expect("a payment");
        let Some((row, refunds)) = found else {
            assert!(answer.is_none(), "payment {id} was answered {answer:?} and has no row");
            continue;
        };
        assert_eq!((row.order_id, row.amount), (capture.order_id, capture.amount), "not what was said");
        assert!(answer.is_none_or(|answer| !answer.differs), "one that differs from itself: {row:?}");
        let order = capture.order_id.and_then(|order| rows.get(&order));
        let back: u64 = refunds.iter().map(|refund| refund.amount).sum();
        match row.disposition {
            Disposition::Kept => {
                assert_eq!(back, 0, "kept and refunded: {row:?}, {refunds:?}");
                let order = order.unwrap_or_else(|| panic!("kept without an order: {row:?}"));
                assert_eq!(order.status, OrderStatus::Paid, "kept for {order:?}");
                assert_eq!(order.amount, row.amount, "kept for {order:?}");
                *kept.entry(order.order_id).or_default() += 1;
            }
            Disposition::Refund(_) => {
                assert_eq!((refunds.len(), back), (1, row.amount), "{row:?}: {refunds:?}");
                if order.is_some_and(|order| order.status == OrderStatus::Closed) {
                    world.census.saw(PAID_LATE);
                }
            }
            Disposition::Unmatched => {
                assert!(order.is_none(), "{row:?} waits for an order that is there: {order:?}");
                assert!(refunds.is_empty());
            }
        }
        // What was kept once is kept; what was unmatched may have become anything.
        if let Some(answer) = answer
            && answer.disposition != Disposition::Unmatched
        {
            assert_eq!(row.disposition, answer.disposition, "payment {id} was answered otherwise");
        }
    }
    for order in rows.values() {
        let kept = kept.get(&order.order_id).copied().unwrap_or(0);
        let is_paid = order.status == OrderStatus::Paid;
        assert_eq!(kept, u32::from(is_paid), "payments kept for {order:?}");
        let deadline = order.pay_by.expect("no order is rejected").0;
        let pay_within_ms = u64::from(world.sale.pay_within_s) * 1_000;
        if order.sale_id == world.sale.id {
            assert_eq!(deadline, order.created_at.0 + pay_within_ms, "a deadline has moved: {order:?}");
        }
        if order.reason.as_deref() == Some("lapsed") {
            world.census.saw(CLOSED_UNPAID);
            assert!(order.updated_at.0 >= deadline, "closed before its time: {order:?}");
        }
        if is_paid {
            world.census.saw(PAID);
            if world.till.was_answered(order.order_id, Disposition::Unmatched) {
                world.census.saw(PAID_BEFORE_ITS_ROW);
            }
            let second = Disposition::Refund(order_worker::database::RefundReason::Second);
            if world.till.was_answered(order.order_id, second) {
                world.census.saw(PAID_TWICE);
            }
        }
    }
}
