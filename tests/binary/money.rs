//! Money from outside: paid by the sandbox provider, sent back by the shop's service through an outage, and every
//! command that looks at it or moves it.

use std::sync::Arc;

use serde_json::Value;
use testbed::{How, Mood, Sandbox};

use crate::server::{Answer, Site};
use crate::{fails_with, sale};

const SECRET: &str = "whsec_MTIzNDU2NzgxMjM0NTY3ODEyMzQ1Njc4";
const PRICE: (u64, &str) = (100, "CNY");

/// A configuration whose refunds go to the service at `port`.
fn configured(port: u16) -> String {
    format!(
        "[payment]\ncallback_secret = \"{SECRET}\"\nrefund_url = \"http://127.0.0.1:{port}/refund\"\n{}{}unit_returns_on_refund = false\n",
        sale("s", 9, -1),
        sale("t", 9, -1)
    )
}

struct Order {
    id: String,
    bearer: String,
}

struct Shop {
    site: Site,
    sandbox: Arc<Sandbox>,
}

impl Shop {
    fn ask(&self, order: &Order) -> Answer {
        let path = format!("/api/v1/orders/{}", order.id);
        self.site.call("GET", &path, &[("authorization", &order.bearer)], "")
    }

    fn await_status(&self, order: &Order, status: &str) {
        let is_so = |answer: &Answer| answer.status == 200 && answer.json()["status"] == status;
        self.site.wait_for(status, || self.ask(order), is_so);
    }

    /// An order of the sale that is unpaid, or paid.
    fn order(&self, sale: &str, user: &str, how: Option<How>) -> Order {
        let (token, pass, id) = self.site.pass(sale, user);
        assert_eq!(self.site.press(sale, &pass, "{}").status, 202);
        let order = Order { id, bearer: format!("Bearer {token}") };
        self.await_status(&order, "unpaid");
        if let Some(how) = how {
            self.sandbox.pay("bank", &order.id, PRICE, how).expect("an answer");
            if how == How::Plain {
                self.await_status(&order, "paid");
            }
        }
        order
    }

    /// A command that must succeed, and the JSON that it prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.site.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
    }

    fn refund(&self, order: &Order) -> Answer {
        let path = format!("/api/v1/orders/{}/refund", order.id);
        self.site.call("POST", &path, &[("authorization", &order.bearer)], "{}")
    }
}

#[test]
fn money_goes_in_and_back_and_adds_up() {
    let site = Site::new("");
    let sandbox = Arc::new(Sandbox::new(SECRET, site.buyers.port()));
    let service = sandbox.serve().expect("a port");
    site.configure(&configured(service.port()));
    let server = site.start();
    let shop = Shop { site, sandbox };

    // The buyer's refund survives an outage in which the service sends the money and says that it did not.
    service.set_mood(Mood::FailsAfterwards);
    let back = shop.order("s", "ann", Some(How::Plain));
    assert_eq!(shop.refund(&back).status, 202);
    let tried = || {
        let shown = shop.json(&["payments", "show", &back.id, "--json"]);
        Answer { status: 200, body: shown[0]["refunds"][0]["attempts"].to_string() }
    };
    shop.site.wait_for("try", tried, |answer| answer.body.parse::<u32>().is_ok_and(|tries| tries > 0));
    service.set_mood(Mood::Well);
    shop.await_status(&back, "refunded");
    assert_eq!(shop.refund(&back).status, 200);

    // Part of another: twice under one id, and each mistake is named.
    let part = shop.order("s", "bob", Some(How::Plain));
    let refund =
        ["orders", "refund", &part.id, "--amount", "30", "--request-id", "a", "--reason", "late", "--json"];
    let first = shop.json(&refund);
    assert_eq!((&first["order"]["status"], &first["refund"]["reason"]), (&"paid".into(), &"late".into()));
    assert_eq!(shop.json(&refund)["refund"]["refund_id"], first["refund"]["refund_id"]);
    fails_with(&shop.site, &["orders", "refund", &part.id, "--amount", "1"], 2, &["--request-id"]);
    let too_much = ["orders", "refund", &part.id, "--amount", "71", "--request-id", "b"];
    fails_with(&shop.site, &too_much, 1, &["70 minor units are left"]);
    let other = ["orders", "refund", &part.id, "--amount", "31", "--request-id", "a"];
    fails_with(&shop.site, &other, 1, &["use a new request id"]);
    fails_with(&shop.site, &["orders", "close", &part.id], 1, &["floodgate orders refund"]);

    // Closed by an operator; what was paid for it late goes back.
    let late = shop.order("s", "cat", Some(How::Delayed));
    let closed = shop.json(&["orders", "close", &late.id, "--reason", "a test", "--json"]);
    assert_eq!(closed["status"], "closed");
    fails_with(&shop.site, &["orders", "refund", &late.id], 1, &["floodgate orders show"]);
    assert!(shop.sandbox.deliver().expect("answers").iter().all(|answer| answer.status == 200));

    // The other sale is withdrawn with its orders; its units do not return.
    let (paid, unpaid) = (shop.order("t", "dan", Some(How::Plain)), shop.order("t", "eve", None));
    let withdrawn = shop.json(&["sales", "withdraw", "t", "--orders", "--json"]);
    assert!(withdrawn["withdrawn_at"].is_string(), "{withdrawn}");
    shop.await_status(&unpaid, "closed");
    shop.await_status(&paid, "refunded");
    let row = shop.json(&["orders", "show", &paid.id, "--json"]);
    assert_eq!((&row["units_held"], &row["refunded_amount"]), (&1.into(), &100.into()));
    let row = shop.json(&["orders", "show", &unpaid.id, "--json"]);
    assert_eq!((&row["reason"], &row["units_held"]), (&"withdrawn".into(), &0.into()));

    // All money comes to rest: 70 are kept, and the provider's statement says the same.
    let at_rest = || {
        let audit = shop.json(&["audit", "--money", "--json"]);
        Answer { status: 200, body: audit.to_string() }
    };
    let audit = shop.site.wait_for("rest", at_rest, |answer| answer.json()["at_rest"] == true).json();
    let sums = &audit["currencies"][0];
    let figures = ["captured", "kept", "refunded", "stuck", "unmatched"].map(|part| sums[part].as_u64());
    assert_eq!(figures, [400, 70, 330, 0, 0].map(Some));
    let statement = shop.site.path().join("statement.csv");
    std::fs::write(&statement, shop.sandbox.statement()).expect("writable");
    let compare = ["audit", "--statement", statement.to_str().expect("a path")];
    let good = shop.site.run(&compare);
    let said = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success() && said.contains("CAPTURED") && said.contains("4.00 CNY"), "{said}");
    let books = rusqlite::Connection::open(shop.site.database()).expect("there");
    let changes = "SELECT count(*) FROM floodgate_journal WHERE action = ?1";
    let changes =
        |action: &str| books.query_row(changes, [action], |row| row.get::<_, i64>(0)).expect("a count");
    assert_eq!(["order refund", "order close", "sale withdraw"].map(changes), [1, 1, 1]);

    // A notification that was lost shows in the statement alone.
    shop.order("s", "fay", Some(How::Lost));
    std::fs::write(&statement, shop.sandbox.statement()).expect("writable");
    fails_with(&shop.site, &compare, 1, &["never heard of it", "have its notification sent again"]);
    fails_with(&shop.site, &["audit", "--statement", "nowhere.csv"], 2, &["cannot read the statement"]);

    // What is not there, and what is not stuck.
    assert_eq!(shop.json(&["refunds", "list", "--json"]), Value::Array(Vec::new()));
    let done = shop.json(&["refunds", "list", "--state", "succeeded", "--json"]);
    assert_eq!(done.as_array().map(Vec::len), Some(4));
    let id = done[0]["refund_id"].as_str().expect("an id").to_owned();
    assert_eq!(shop.json(&["refunds", "retry", &id, "--json"])["state"], "succeeded");
    fails_with(&shop.site, &["refunds", "retry", "f00"], 1, &["floodgate refunds list"]);
    fails_with(&shop.site, &["refunds", "retry", "a/b"], 2, &["letters and digits"]);
    fails_with(&shop.site, &["refunds", "list", "--state", "lost"], 2, &["requested, sent, succeeded"]);
    fails_with(&shop.site, &["payments", "show", "nobody"], 1, &["--statement"]);
    fails_with(&shop.site, &["sales", "withdraw", "nowhere"], 1, &["floodgate sales list"]);
    drop(server);
}
