//! The audit of money, and a provider's statement beside it.

use order_worker::database::{
    Capture, Disposition, RefundAsked, RefundBy, RefundOutcome, RefundReason, RefundRow,
};
use order_worker::{MoneyAudit, MoneySums, Statement, audit_money};
use stock::OrderStatus;

use super::payments::PRICE;
use super::refunds::{part, told};
use super::*;

const HEAD: &str = "kind,provider,payment_id,refund_id,reference,amount,currency,at\n";

impl Fixture {
    async fn money(&self) -> MoneyAudit {
        audit_money(&self.database, None).await.unwrap()
    }

    /// Asks a part of an order's money back, or all of it.
    async fn ask_back(&self, order: u64, amount: Option<u64>) -> RefundRow {
        let (author, wish) = (author(), amount.map(|amount| part("a", amount)));
        let by = RefundBy::Operator(&author);
        match self.database.refund(order_id(order), by, wish.as_ref()).await.unwrap() {
            RefundAsked::Written(refund) => refund,
            other => panic!("{other:?}"),
        }
    }

    async fn hear(&self, refund: &RefundRow, outcome: RefundOutcome) {
        self.database.refund_told(&told(refund, outcome)).await.unwrap();
    }

    /// Five orders, and money in every state but one: what is on its way is `requested` and `sent`.
    async fn move_money(&self) {
        self.publish("s", 10, 5).await;
        for n in 1..6 {
            self.settle_one(reservation("s", n, "u", 1)).await;
        }
        for n in 1..5 {
            assert_eq!(self.capture(&capture(n, n)).await.disposition, Disposition::Kept);
        }
        let second = Capture { provider: "wechat-pay".into(), ..capture(1, 1) };
        let second = self.capture(&second).await.disposition;
        assert_eq!(second, Disposition::Refund(RefundReason::Second));
        self.capture(&Capture { currency: "USD".into(), amount: 3, ..capture(5, 5) }).await;
        self.capture(&capture(9, 9)).await;
        // Of the first a part is back, of the second all, the third is stuck, the fourth on its way.
        let back = [self.ask_back(1, Some(40)).await, self.ask_back(2, None).await];
        for refund in &back {
            self.hear(refund, RefundOutcome::Succeeded).await;
        }
        let stuck = self.ask_back(3, None).await;
        self.hear(&stuck, RefundOutcome::Failed("no".into())).await;
        let sent = self.ask_back(4, Some(7)).await;
        self.hear(&sent, RefundOutcome::Sent).await;
    }
}

pub(crate) async fn captured_money_is_accounted_for(fixture: Fixture) {
    assert_eq!(fixture.money().await, MoneyAudit { at_rest: true, ..MoneyAudit::default() });
    fixture.move_money().await;
    let price = u128::from(PRICE);
    let yuan = MoneySums {
        currency: "CNY".into(),
        captured: 6 * price,
        kept: 2 * price - 47,
        refunded: price + 40,
        requested: price,
        sent: 7,
        stuck: price,
        unmatched: price,
    };
    let dollars = MoneySums { currency: "USD".into(), captured: 3, requested: 3, ..MoneySums::default() };
    let audit = fixture.money().await;
    assert_eq!(audit.broken, Vec::<String>::new());
    assert_eq!((audit.currencies, audit.payments, audit.at_rest), (vec![yuan, dollars], 7, false));

    // All comes to its end: what had no order goes back, and nothing is on its way.
    fixture.advance(86_400_000);
    fixture.database.refund_unmatched(86_400_000, 10).await.unwrap();
    let rows = fixture.database.money("alipay", "", 100).await.unwrap();
    let others = fixture.database.money("wechat-pay", "", 100).await.unwrap();
    for refund in rows.iter().chain(&others).flat_map(|row| &row.refunds) {
        fixture.hear(refund, RefundOutcome::Succeeded).await;
    }
    let audit = fixture.money().await;
    assert_eq!((audit.at_rest, audit.broken), (true, Vec::new()));
    assert_eq!((audit.currencies[0].kept, audit.currencies[0].refunded), (2 * price - 47, 4 * price + 47));
}

pub(crate) async fn money_comes_in_pages(fixture: Fixture) {
    fixture.move_money().await;
    assert_eq!(fixture.database.payment_providers().await.unwrap(), ["alipay", "wechat-pay"]);
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = fixture.database.money("alipay", &after, 2).await.unwrap();
        let is_last = page.len() < 2;
        after = page.last().map_or(after, |row| row.payment.payment_id.clone());
        seen.extend(page);
        if is_last {
            break;
        }
    }
    let ids: Vec<_> = seen.iter().map(|row| row.payment.payment_id.as_str()).collect();
    assert_eq!(ids, ["t1", "t2", "t3", "t4", "t5", "t9"]);
    for row in &seen {
        let alone = fixture.database.payment("alipay", &row.payment.payment_id).await.unwrap().unwrap();
        assert_eq!((&row.payment, &row.refunds), (&alone.0, &alone.1));
        let named = row.payment.order_id.filter(|_| row.payment.payment_id != "t9");
        assert_eq!(row.order.as_ref().map(|order| order.order_id), named);
    }
    assert_eq!(seen[1].order.as_ref().map(|order| order.status), Some(OrderStatus::Refunded));
    assert!(fixture.database.money("none", "", 2).await.unwrap().is_empty());
}

pub(crate) async fn a_statement_shows_what_nobody_was_told(fixture: Fixture) {
    fixture.publish("s", 10, 5).await;
    for n in [1, 2, 3] {
        fixture.settle_one(reservation("s", n, "u", 1)).await;
    }
    for n in [1, 2] {
        fixture.capture(&Capture { paid_at: Some(stock::Timestamp(START_MS)), ..capture(n, n) }).await;
    }
    let refund = fixture.ask_back(2, None).await;
    fixture.hear(&refund, RefundOutcome::Succeeded).await;
    let line = |kind: &str, id: &str, refund: &str, amount: u64, at_ms: u64| {
        format!("{kind},alipay,{id},{refund},shop,{amount},CNY,{}\n", stock::Timestamp(at_ms))
    };
    let compare = async |lines: &str| {
        let mut statement = Statement::read(format!("{HEAD}{lines}").as_bytes()).unwrap();
        audit_money(&fixture.database, Some(&mut statement)).await.unwrap().broken
    };
    let whole = line("payment", "t1", "", PRICE, START_MS - 600_000)
        + &line("payment", "t2", "", PRICE, START_MS)
        + &line("refund", "t2", &refund.refund_id, PRICE, START_MS + 600_000);
    assert_eq!(compare(&whole).await, Vec::<String>::new());
    let lost = compare(&(whole.clone() + &line("payment", "t7", "", 5, START_MS))).await;
    assert!(
        lost.len() == 1 && lost[0].contains("payment t7") && lost[0].contains("never heard of it"),
        "{lost:?}"
    );
    let without = whole.replace(&line("payment", "t2", "", PRICE, START_MS), "");
    let invented = compare(&without).await;
    assert!(invented.len() == 1 && invented[0].contains("payment t2 of alipay"), "{invented:?}");
    let by_hand = compare(&(whole + &line("refund", "t1", &"f".repeat(32), 5, START_MS))).await;
    assert!(by_hand.len() == 1 && by_hand[0].contains("no refund of floodgate's"), "{by_hand:?}");
}

/// What somebody has changed by hand, or a bug has: `write` carries out a statement.
pub(crate) async fn money_that_does_not_add_up_is_named(fixture: &Fixture, write: impl Fn(&str)) {
    fixture.move_money().await;
    fixture.settle_one(reservation("s", 6, "u", 1)).await;
    assert_eq!(fixture.money().await.broken, Vec::<String>::new());
    // A change, the change that takes it back, and what is said in between.
    let cases = [
        [
            "payments SET amount = amount + 1 WHERE payment_id = 't4'",
            "payments SET amount = amount - 1 WHERE payment_id = 't4'",
            "costs 206640 CNY",
        ],
        [
            "orders SET status = 'closed' WHERE status = 'refunded'",
            "orders SET status = 'refunded' WHERE status = 'closed'",
            "which is closed",
        ],
        [
            "refunds SET amount = amount + 1 WHERE state = 'stuck'",
            "refunds SET amount = amount - 1 WHERE state = 'stuck'",
            "minor units go back",
        ],
        [
            "refunds SET state = 'succeeded' WHERE state = 'sent'",
            "refunds SET state = 'sent' WHERE amount = 7",
            "minor units are back",
        ],
        [
            "payments SET disposition = 'kept', reason = NULL WHERE provider = 'wechat-pay'",
            "payments SET disposition = 'refund', reason = 'second' WHERE provider = 'wechat-pay'",
            "more than one payment was kept",
        ],
        [
            "orders SET status = 'paid' WHERE status = 'unpaid'",
            "orders SET status = 'unpaid' WHERE status = 'paid' AND paid_at IS NULL",
            "no payment was kept for them",
        ],
    ];
    for [spoil, mend, fault] in cases {
        write(&format!("UPDATE floodgate_{spoil}"));
        let broken = fixture.money().await.broken;
        assert!(broken.iter().any(|found| found.contains(fault)), "{spoil}: {broken:?}");
        write(&format!("UPDATE floodgate_{mend}"));
        assert_eq!(fixture.money().await.broken, Vec::<String>::new(), "{mend}");
    }
}
