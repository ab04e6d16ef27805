//! Money that comes in, against the sandbox provider: every capture that was told of is one row, every order paid by one of them,
//! and whatever is not believed leaves nothing.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use testbed::{Answer, Deployment, How, Instance, Payment, Sandbox};

use crate::place::{ENGINES, deploy_with, engines_toml, pass, press, sale_toml, wait_for_status};

const SALE: &str = "shop";
const SECRET: &str = "whsec_MTIzNDU2NzgxMjM0NTY3ODEyMzQ1Njc4";
const OLD_SECRET: &str = "whsec_ODc2NTQzMjE4NzY1NDMyMTg3NjU0MzIx";
const FOREIGN_SECRET: &str = "whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB";
/// What each order costs.
const PRICE: (u64, &str) = (100, "CNY");
const DAY_S: u64 = 86_400;

struct Shop {
    deployment: Deployment,
    database: String,
    sandbox: Sandbox,
}

/// An order with a row, and its pass.
struct Order {
    id: String,
    pass: String,
}

impl Shop {
    fn open() -> Self {
        let (database, engines) = engines_toml();
        let payment = format!(
            "[payment]\ncallback_secret = \"{SECRET}\"\ncallback_secrets = [\"{OLD_SECRET}\"]\nunmatched_refund_s = 3600\n"
        );
        let deployment = deploy_with(1, 1, engines + &payment + &sale_toml(SALE, 50));
        let sandbox = Sandbox::new(SECRET, deployment.gateways()[0].buyers_port());
        Self { deployment, database, sandbox }
    }

    fn gateway(&self) -> &Instance {
        &self.deployment.gateways()[0]
    }

    fn order(&self, user: &str) -> Order {
        let (_, pass, id) = pass(self.gateway(), SALE, user);
        assert_eq!(press(self.gateway(), SALE, &pass).status, 202);
        let order = Order { id, pass };
        self.await_status(&order, "unpaid");
        order
    }

    fn await_status(&self, order: &Order, status: &str) {
        wait_for_status(self.gateway(), &order.id, &order.pass, status);
    }

    fn pay(&self, channel: &str, reference: &str, price: (u64, &str), how: How) -> Vec<(u16, String)> {
        self.sandbox.pay(channel, reference, price, how).expect("answers").iter().map(heard).collect()
    }

    /// Payment, order, amount, disposition and reason of each row.
    fn rows(&self) -> BTreeMap<String, Vec<String>> {
        let rows = "SELECT payment_id, IFNULL(order_id, '-'), amount, disposition, IFNULL(reason, '-') FROM floodgate_payments";
        let rows = ENGINES.maria.sql(&self.database, rows).expect("rows");
        let row = |line: &str| {
            let mut words = line.split('\t').map(str::to_owned);
            (words.next().unwrap_or_default(), words.collect())
        };
        rows.lines().map(row).collect()
    }
}

/// Status, and the word of a problem.
fn heard(answer: &Answer) -> (u16, String) {
    let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let word = problem["type"].as_str().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
    (answer.status, word.to_owned())
}

fn good() -> (u16, String) {
    (200, String::new())
}

fn mismatch() -> (u16, String) {
    (409, "amount-mismatch".to_owned())
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[test]
fn every_capture_that_was_told_of_is_one_row_and_pays_one_order() {
    let shop = Shop::open();
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut expect = |id: &str, order: &str, amount: u64, disposition: &str, reason: &str| {
        let row = [order, &amount.to_string(), disposition, reason].map(str::to_owned).to_vec();
        assert!(expected.insert(id.to_owned(), row).is_none(), "{id}");
    };

    // Paid once, however often it is told of; also by a further try's reference.
    let plain = shop.order("plain");
    assert_eq!(
        shop.pay("bank", &format!("{}-2", plain.id), PRICE, How::Repeated(3)),
        [good(), good(), good()]
    );
    shop.await_status(&plain, "paid");
    expect("bank-000001", &plain.id, 100, "kept", "-");

    // By two channels: one of them goes back.
    assert_eq!(shop.pay("wallet", &plain.id, PRICE, How::Plain), [good()]);
    expect("wallet-000002", &plain.id, 100, "refund", "second");

    // Wrong amount, wrong currency: the same answer at each repeat, and the order can be paid still.
    let wrong = shop.order("wrong");
    assert_eq!(shop.pay("bank", &wrong.id, (99, "CNY"), How::Repeated(2)), [mismatch(), mismatch()]);
    expect("bank-000003", &wrong.id, 99, "refund", "wrong-amount");
    assert_eq!(shop.pay("bank", &wrong.id, (100, "USD"), How::Repeated(2)), [mismatch(), mismatch()]);
    expect("bank-000004", &wrong.id, 100, "refund", "wrong-currency");
    shop.await_status(&wrong, "unpaid");

    // Refused and lost: nothing is known of them here. Swapped: the later is told of first, and both count.
    let swapped = shop.order("swapped");
    assert_eq!(shop.pay("bank", &swapped.id, PRICE, How::Refused), []);
    assert_eq!(shop.pay("bank", &swapped.id, PRICE, How::Lost), []);
    shop.await_status(&swapped, "unpaid");
    assert_eq!(shop.pay("bank", &swapped.id, PRICE, How::Swapped), []);
    assert_eq!(shop.pay("bank", &wrong.id, PRICE, How::Plain), [good(), good()]);
    shop.await_status(&swapped, "paid");
    shop.await_status(&wrong, "paid");
    expect("bank-000006", &swapped.id, 100, "kept", "-");
    expect("bank-000007", &wrong.id, 100, "kept", "-");

    // Delayed until the order is closed: it goes back.
    let late = shop.order("late");
    assert_eq!(shop.pay("bank", &late.id, PRICE, How::Delayed), []);
    shop.deployment.must(&["orders", "cancel", &late.id]).expect("cancelled");
    let answers: Vec<_> = shop.sandbox.deliver().expect("answers").iter().map(heard).collect();
    assert_eq!(answers, [good()]);
    shop.await_status(&late, "closed");
    expect("bank-000008", &late.id, 100, "refund", "late");

    // For an order that nobody knows, and by a reference that names none.
    let unknown = "01M7YMPT5MDHF5W669RCMTQ7B4";
    assert_eq!(shop.pay("bank", unknown, PRICE, How::Repeated(2)), [good(), good()]);
    expect("bank-000009", unknown, 100, "unmatched", "-");
    assert_eq!(shop.pay("bank", "not-an-order", PRICE, How::Plain), [good()]);
    expect("bank-000010", "-", 100, "unmatched", "-");

    // A payment that was told of again for another order pays neither: the first word stands.
    let other = shop.order("other");
    let first = shop.sandbox.payments()[0].clone();
    let moved = Payment { reference: other.id.clone(), ..first.clone() };
    assert_eq!(heard(&shop.sandbox.tell(&moved).expect("an answer")), good());
    shop.await_status(&other, "unpaid");

    // Replayed a day later as it was it is not believed; told of again a day later it is a repeat.
    for off in [now_s() - DAY_S, now_s() + DAY_S] {
        let replayed = shop.sandbox.tell_at(&first, off).expect("an answer");
        assert_eq!(heard(&replayed), (401, "signature-invalid".to_owned()));
    }
    assert_eq!(heard(&shop.sandbox.tell(&first).expect("an answer")), good());

    // Forged, and signed with a key that is being rotated out.
    let port = shop.gateway().buyers_port();
    let pay_by = |secret: &str, channel: &str| {
        let answers = Sandbox::new(secret, port).pay(channel, &other.id, PRICE, How::Plain).expect("answers");
        answers.iter().map(heard).collect::<Vec<_>>()
    };
    assert_eq!(pay_by(FOREIGN_SECRET, "forged"), [(401, "signature-invalid".to_owned())]);
    shop.await_status(&other, "unpaid");
    assert_eq!(pay_by(OLD_SECRET, "old"), [good()]);
    shop.await_status(&other, "paid");
    expect("old-000001", &other.id, 100, "kept", "-");

    // A callback's stamp goes by the database's clock: a gateway whose own is 6 minutes off takes payments all the same.
    let skewed = shop.order("skewed");
    let gateway = shop.gateway();
    gateway.kill().expect("killed");
    gateway.set_clock_wrong_by(360).expect("a wrong clock");
    gateway.start().expect("started");
    assert_eq!(shop.pay("bank", &skewed.id, PRICE, How::Plain), [good()]);
    shop.await_status(&skewed, "paid");
    expect("bank-000011", &skewed.id, 100, "kept", "-");

    assert_eq!(shop.rows(), expected);
    // All money that the provider told of is here, and none that it did not.
    let told_of = |payment: &&Payment| expected.contains_key(&payment.id);
    let captured: u64 = shop.sandbox.payments().iter().filter(told_of).map(|payment| payment.amount).sum();
    let lost = shop.sandbox.payments().len() + 1 - expected.len();
    assert_eq!(
        (captured + 100, lost),
        (expected.values().map(|row| row[1].parse::<u64>().expect("an amount")).sum(), 1)
    );
}
