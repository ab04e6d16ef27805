//! Orders with every kind of life at once, while each process is killed again and again: paid, paid late, paid twice,
//! told of late or never, cancelled, left to expire, refunded in part and whole, and a sale withdrawn under all of it.
//! What was promised, asked and captured is kept outside (by the sandbox provider, and by the buyers here); at rest the
//! rows must agree with that, to the cent.
//!
//! Under `FLOODGATE_LONG` 10,000 orders. Prints its seed; `FLOODGATE_HUNT_SEED` replays what was drawn, not the
//! machine's timing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use testbed::{Answer, Client, Deployment, How, Mood, Payment, Sandbox, Service};

use crate::place::{ENGINES, call, deploy_with, engines_toml, json, sale_toml, wait_for};

const SECRET: &str = "whsec_MTIzNDU2NzgxMjM0NTY3ODEyMzQ1Njc4";
const PRICE: u64 = 100;
/// Of this sale nothing happens to orders but what their buyers do; the other one is withdrawn with all of its orders.
const STAYS: &str = "stays";
const GOES: &str = "goes";
/// How long an order may be unpaid.
const PAY_WITHIN_S: u64 = 4;
const BUYERS_AT_ONCE: usize = 12;
/// A provider stops then; nothing of ours may be down for as long.
const TELLS_FOR: Duration = Duration::from_secs(120);
/// Longest wait for the end of all that was begun: a refund that failed all through the hunt is tried after as long
/// again.
const REST_MAX: Duration = Duration::from_secs(120);
/// And so much more for each order.
const REST_MAX_ORDER: Duration = Duration::from_millis(150);

/// What a buyer, or an operator for one, does with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Expires,
    Cancelled,
    Paid,
    PaidLate,
    PaidTwice,
    ToldLate,
    NeverTold,
    Refunded,
    RefundedInPart,
}

const LIVES: [Life; 9] = [
    Life::Expires,
    Life::Cancelled,
    Life::Paid,
    Life::PaidLate,
    Life::PaidTwice,
    Life::ToldLate,
    Life::NeverTold,
    Life::Refunded,
    Life::RefundedInPart,
];

/// Splitmix64: as many numbers as are wanted, from one seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

struct Hunt {
    deployment: Deployment,
    database: String,
    sandbox: Arc<Sandbox>,
    service: Service,
    seed: u64,
    /// Payments that nobody was ever told of.
    silent: std::sync::Mutex<BTreeSet<String>>,
}

/// One order as its buyer knows it.
struct Bought {
    order: String,
    sale: &'static str,
    life: Life,
}

fn is_answer(answer: &Answer) -> bool {
    ![0, 503].contains(&answer.status)
}

impl Hunt {
    fn open(orders: u64, seed: u64) -> Self {
        let sandbox = Sandbox::new(SECRET, 0);
        let sandbox = Arc::new(sandbox);
        let service = sandbox.serve().expect("a port");
        let (database, engines) = engines_toml();
        let (port, units) = (service.port(), u32::try_from(orders).expect("few enough"));
        let payment = format!(
            "[payment]\ncallback_secret = \"{SECRET}\"\nunmatched_refund_s = 60\nrefund_url = \"http://127.0.0.1:{port}/refund\"\n\
             check_url = \"http://127.0.0.1:{port}/check\"\n"
        );
        let pay_within = format!("pay_within_s = {PAY_WITHIN_S}\n");
        let second = sale_toml(GOES, units);
        let second = &second[second.find("[[sale]]").expect("a sale")..];
        let toml = engines + &payment + &sale_toml(STAYS, units) + &pay_within + second + &pay_within;
        let deployment = deploy_with(2, 2, toml);
        sandbox.tell_at_port(deployment.gateways()[0].buyers_port());
        Self { deployment, database, sandbox, service, seed, silent: std::sync::Mutex::default() }
    }

    /// Asks one gateway or the other until one has an answer.
    fn insist(&self, random: &mut Random, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let gateways = self.deployment.gateways();
        let mut from = random.below(2) as usize;
        let mut ask = || {
            from += 1;
            call(&gateways[from % 2], method, path, headers, "{}")
        };
        wait_for(path, &mut ask, is_answer)
    }

    fn login(&self, user: &str) -> String {
        let gateways = self.deployment.gateways();
        let body = format!("{{\"user\":\"{user}\"}}");
        let mut from = 0;
        let login = || {
            from += 1;
            call(&gateways[from % 2], "POST", "/api/v1/demo/login", &[], &body)
        };
        let login = wait_for("login", login, |answer| answer.status == 200);
        format!("Bearer {}", json(&login)["token"].as_str().expect("a token"))
    }

    /// One buyer's whole visit; none where the sale was over.
    fn visit(&self, number: u64) -> Option<Bought> {
        let mut random = Random(self.seed ^ number.wrapping_mul(0xD134_2543_DE82_EF95));
        let sale = if random.below(3) == 0 { GOES } else { STAYS };
        let life = LIVES[random.below(LIVES.len() as u64) as usize];
        let bearer = self.login(&format!("u{number}"));
        let user = [("Authorization", bearer.as_str())];
        let passes = format!("/api/v1/sales/{sale}/passes");
        let pass = self.insist(&mut random, "POST", &passes, &user);
        if pass.status != 201 {
            // Ended, or so long over that it is settled.
            assert!(sale == GOES && [403, 404].contains(&pass.status), "{pass:?}");
            return None;
        }
        let text = |name: &str| json(&pass)[name].as_str().expect("a text").to_owned();
        let (pass, order) = (text("pass"), text("order_id"));
        let press = format!("/api/v1/sales/{sale}/orders");
        let pressed = self.insist(&mut random, "POST", &press, &[("Floodgate-Pass", &pass)]);
        let bought = Bought { order: order.clone(), sale, life };
        match pressed.status {
            202 => {}
            // Its withdrawal closed it before the buyer had the answer, or came first.
            403 | 404 | 409 if sale == GOES => return None,
            // The first press won, its answer was lost, and the time to pay is over.
            409 => return Some(Bought { life: Life::Expires, ..bought }),
            _ => panic!("{pressed:?}"),
        }
        self.live(&mut random, &bought, &user);
        Some(bought)
    }

    fn live(&self, random: &mut Random, bought: &Bought, user: &[(&str, &str)]) {
        let order = &bought.order;
        // Sometimes before its row.
        thread::sleep(Duration::from_millis(random.below(800)));
        match bought.life {
            Life::Expires => {}
            Life::Cancelled => {
                self.insist(random, "POST", &format!("/api/v1/orders/{order}/cancel"), user);
            }
            Life::Paid => self.pay("bank", order, How::Plain),
            Life::PaidLate => {
                thread::sleep(Duration::from_secs(PAY_WITHIN_S) + Duration::from_millis(random.below(1_500)));
                self.pay("bank", order, How::Plain);
            }
            Life::PaidTwice => {
                self.pay("bank", order, How::Repeated(2));
                self.pay("wallet", order, How::Plain);
            }
            Life::ToldLate => self.pay("bank", order, How::Delayed),
            Life::NeverTold => self.pay("bank", order, How::Lost),
            Life::Refunded => {
                self.pay("bank", order, How::Plain);
                thread::sleep(Duration::from_millis(random.below(1_500)));
                self.insist(random, "POST", &format!("/api/v1/orders/{order}/refund"), user);
            }
            Life::RefundedInPart => {
                self.pay("bank", order, How::Plain);
                thread::sleep(Duration::from_millis(random.below(1_500)));
                let path = format!("orders/{order}/refund");
                // Twice, as somebody does who has lost the answer.
                for _ in 0..2 {
                    self.operate(&path, r#"{"request_id":"hunt","amount":30}"#);
                }
            }
        }
    }

    /// Has the sandbox pay, and call until a gateway has heard it.
    fn pay(&self, channel: &str, order: &str, how: How) {
        let reference = format!("{order}-1");
        let payment = self.sandbox.capture(channel, &reference, (PRICE, "CNY"));
        match how {
            How::Lost => drop(self.silent.lock().expect("whole").insert(payment.id)),
            // Told at the end.
            How::Delayed => {}
            How::Repeated(times) => (0..times).for_each(|_| self.tell(&payment)),
            _ => self.tell(&payment),
        }
    }

    fn tell(&self, payment: &Payment) {
        let began = Instant::now();
        while began.elapsed() < TELLS_FOR {
            match self.sandbox.tell(payment) {
                Ok(answer) if answer.status == 200 => return,
                Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
                Err(_) => {}
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("nobody heard of {payment:?}");
    }

    /// A call of the operator's, at whichever gateway answers.
    fn operate(&self, path: &str, body: &str) -> Answer {
        let token = std::fs::read_to_string(self.deployment.admin_token_file()).expect("a token");
        let bearer = format!("Bearer {}", token.trim());
        let gateways = self.deployment.gateways();
        let mut from = 0;
        let ask = || {
            from += 1;
            let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
            Client::new(gateways[from % 2].admin_port(), Duration::from_secs(20))
                .request("POST", &format!("/admin/v1/{path}"), &headers, body)
                .unwrap_or_else(|error| Answer { status: 0, body: error.to_string() })
        };
        wait_for(path, ask, is_answer)
    }

    /// Kills and starts one process after another until `ends`.
    fn strike(&self, ends: &AtomicBool) -> u64 {
        let mut random = Random(self.seed);
        let instances: Vec<_> = self.deployment.instances().collect();
        let mut strikes = 0;
        while !ends.load(Ordering::Relaxed) {
            self.service.set_mood(match random.below(8) {
                0 => Mood::FailsAfterwards,
                1 => Mood::Down,
                _ => Mood::Well,
            });
            let struck = instances[random.below(instances.len() as u64) as usize];
            struck.kill().expect("killed");
            thread::sleep(Duration::from_millis(random.below(300)));
            struck.start().expect("started again");
            strikes += 1;
            thread::sleep(Duration::from_millis(random.below(700)));
        }
        self.service.set_mood(Mood::Well);
        strikes
    }

    fn sql(&self, statement: &str) -> Vec<Vec<String>> {
        let rows = ENGINES.maria.sql(&self.database, statement).expect("rows");
        rows.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    }

    /// Waits until all that was begun has come to its end, and the audit finds nothing.
    fn rest(&self, orders: u64) {
        let rest_max = REST_MAX + REST_MAX_ORDER * u32::try_from(orders).unwrap_or(u32::MAX);
        let began = Instant::now();
        loop {
            let sales = self.deployment.floodgate(&["audit", "--json"]).expect("it runs");
            let money = self.deployment.floodgate(&["audit", "--money", "--json"]).expect("it runs");
            let read = |output: &std::process::Output| -> Value {
                serde_json::from_slice(&output.stdout).unwrap_or_default()
            };
            let unpaid = "SELECT COUNT(*) FROM floodgate_orders WHERE status IN ('unpaid', 'refunding')
                          OR (status = 'paid' AND sale_id = 'goes')";
            let is_still = self.sql(unpaid)[0][0] == "0";
            let lines = read(&sales);
            // One that is settled has left the ledger.
            let at_rest = |line: &Value| line["running"].is_null() || line["running"]["at_rest"] == true;
            let is_quiet = lines.as_array().is_some_and(|lines| lines.iter().all(at_rest));
            if is_still && is_quiet && read(&money)["at_rest"] == true {
                assert!(sales.status.success() && money.status.success(), "{sales:?}\n{money:?}");
                return;
            }
            assert!(began.elapsed() < rest_max, "no rest: {}\n{}", read(&sales), read(&money));
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn judge(&self, bought: &[Bought]) {
        // 1. Each promise is one row, none rejected, and each life ended as it may.
        let rows = self.sql(
            "SELECT order_id, sale_id, status, IFNULL(reason, '-'), refunded_amount FROM floodgate_orders",
        );
        let rows: BTreeMap<String, Vec<String>> =
            rows.into_iter().map(|mut row| (row.remove(0), row)).collect();
        for Bought { order, sale, life } in bought {
            let row = rows.get(order).unwrap_or_else(|| panic!("promise {order} has no row"));
            let (status, reason) = (row[1].as_str(), row[2].as_str());
            assert_eq!(row[0], *sale, "{order}");
            // Who pays, cancels or asks back may be too late, or too early for a row that has not come.
            let may = match (life, *sale) {
                (_, GOES) => status == "closed" || status == "refunded",
                (Life::Expires, _) => (status, reason) == ("closed", "lapsed"),
                (Life::Cancelled, _) => status == "closed",
                (Life::Refunded, _) => ["refunded", "paid", "closed"].contains(&status),
                _ => ["paid", "closed"].contains(&status),
            };
            assert!(may, "{life:?} of {sale} came to {status} ({reason}): {order}");
        }
        // 2. Captured money is of one live paid order or back, by the provider's own book.
        let known: BTreeSet<String> = self
            .sql("SELECT payment_id FROM floodgate_payments")
            .into_iter()
            .map(|mut row| row.remove(0))
            .collect();
        let silent = self.silent.lock().expect("whole");
        let mut left: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (payment, back) in self.sandbox.balances() {
            if !known.contains(&payment.id) {
                assert!(silent.contains(&payment.id), "nobody knows of {payment:?}");
                continue;
            }
            let order = payment.reference.split('-').next().unwrap_or_default().to_owned();
            assert!(back <= payment.amount, "{payment:?}: {back} back");
            left.entry(order).or_default().push(payment.amount - back);
        }
        for (order, left) in &left {
            let row = rows.get(order).unwrap_or_else(|| panic!("money for {order}, which has no row"));
            let kept: Vec<u64> = left.iter().copied().filter(|left| *left > 0).collect();
            if row[1] == "paid" {
                let refunded: u64 = row[3].parse().expect("an amount");
                assert_eq!(kept, [PRICE - refunded], "{order}: {row:?}");
            } else {
                assert_eq!(kept, [0; 0], "{order}: {row:?}");
            }
        }
        // 3. The provider's statement says nothing else, but for what it has kept to itself.
        let unheard = silent.iter().filter(|id| !known.contains(*id)).count();
        let directory = tempfile::tempdir().expect("a directory");
        let statement = directory.path().join("statement.csv");
        std::fs::write(&statement, self.sandbox.statement()).expect("writable");
        let compare = ["audit", "--money", "--statement", statement.to_str().expect("a path")];
        let compared = self.deployment.floodgate(&compare).expect("it runs");
        let said = String::from_utf8_lossy(&compared.stderr);
        assert_eq!(compared.status.success(), unheard == 0, "{said}");
        assert_eq!(said.matches("never heard of it").count(), unheard.min(20), "{said}");
        assert!(!said.contains("twice") && !said.contains("no refund of"), "{said}");
    }
}

#[test]
fn every_life_of_an_order_ends_well_under_kill_9() {
    let orders = if std::env::var_os("FLOODGATE_LONG").is_some() { 10_000 } else { 160 };
    let drawn = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let seed = std::env::var("FLOODGATE_HUNT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(drawn);
    println!("FLOODGATE_HUNT_SEED={seed}");
    let hunt = Hunt::open(orders, seed);
    let (ends, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let (strikes, bought) = thread::scope(|scope| {
        let striker = scope.spawn(|| hunt.strike(&ends));
        let buyers: Vec<_> = (0..BUYERS_AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut bought = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= orders {
                            return bought;
                        }
                        if number == orders / 2 {
                            let gone = hunt.operate(&format!("sales/{GOES}/withdraw"), r#"{"orders":true}"#);
                            assert_eq!(gone.status, 200, "{gone:?}");
                        }
                        bought.extend(hunt.visit(number));
                    }
                })
            })
            .collect();
        let bought: Vec<Bought> =
            buyers.into_iter().flat_map(|buyer| buyer.join().expect("no panic")).collect();
        ends.store(true, Ordering::Relaxed);
        (striker.join().expect("no panic"), bought)
    });
    // What the provider still has to say, in whatever order.
    let silent = hunt.silent.lock().expect("whole").clone();
    for payment in hunt.sandbox.payments().iter().rev().filter(|payment| !silent.contains(&payment.id)) {
        hunt.tell(payment);
    }
    hunt.rest(orders);
    hunt.judge(&bought);
    println!("{} of {orders} orders were promised, {strikes} processes killed", bought.len());
    assert!(strikes > 0 && bought.len() as u64 > orders / 2);
}
