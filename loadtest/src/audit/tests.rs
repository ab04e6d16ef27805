//! Each violation is planted in a prepared SQLite file and must be found, alone.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::api::{Press, Refusal};
use crate::database::Auditor;

const UNITS: i64 = 4;

/// A sale of four units, sold to u0…u3 as A0…A3, one unit each; u4 and u5 were sent away.
struct Scene {
    directory: tempfile::TempDir,
    claims: Vec<Claim>,
    figures: Figures,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let scene = Scene {
        directory,
        claims: (0..6).map(|user| claim(user, user < 4)).collect(),
        figures: Figures {
            total: UNITS,
            remaining: 0,
            pending: 0,
            confirmed: UNITS,
            sold: UNITS,
            backlog: 0,
            at_rest: true,
            epoch: 1,
        },
    };
    scene.sql(
        "CREATE TABLE floodgate_sales (sale_id TEXT, total INTEGER, sold INTEGER);
         CREATE TABLE floodgate_orders (order_id TEXT, sale_id TEXT, user_id TEXT, quantity INTEGER, units_held INTEGER,
             amount INTEGER, currency TEXT, status TEXT, metadata TEXT, created_at TEXT, pay_by TEXT);
         INSERT INTO floodgate_sales VALUES ('s', 4, 4), ('other', 9, 1);
         INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, status, created_at) VALUES
             ('A0', 's', 'u0', 1, 1, 'unpaid', '2026-01-01T00:00:00Z'),
             ('A1', 's', 'u1', 1, 1, 'unpaid', '2026-01-01T00:00:00.5Z'),
             ('A2', 's', 'u2', 1, 1, 'unpaid', '2026-01-01T00:00:00.9Z'),
             ('A3', 's', 'u3', 1, 1, 'unpaid', '2026-01-01T00:00:02Z'),
             ('Z9', 'other', 'u0', 1, 1, 'unpaid', '2026-01-01T00:00:00Z');",
    );
    scene
}

fn claim(user: u32, won: bool) -> Claim {
    let mut claim = Claim::new(&format!("u{user}"), format!("A{user}"), true);
    claim.hear(&if won {
        Press::Accepted { order_id: format!("A{user}"), poll_after: Duration::ZERO }
    } else {
        Press::Refused(Refusal::SoldOut, None)
    });
    claim
}

impl Scene {
    fn path(&self) -> PathBuf {
        self.directory.path().join("orders.db")
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.path()).expect("open").execute_batch(sql).expect("sql");
    }

    fn books(&self) -> Books {
        let auditor = Auditor::new(&format!("sqlite://{}", self.path().display())).expect("url");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(auditor.read("s")).expect("books")
    }

    fn judge(&self) -> Audit {
        judge(&Evidence {
            claims: &self.claims,
            books: &self.books(),
            figures: Some(&self.figures),
            per_user_limit: 1,
            alone: true,
        })
    }

    /// The judgement, which must find something in the named field and nothing anywhere else.
    fn only(&self, field: &str, count: u64) {
        let audit = serde_json::to_value(self.judge()).expect("json");
        for name in [
            "oversold",
            "lost",
            "duplicated",
            "leaked",
            "rejected_after_202",
            "per_user_violations",
            "contradicted",
            "from_nothing",
        ] {
            let expected = if name == field { count } else { 0 };
            assert_eq!(audit[name], expected, "{name} in {audit}");
        }
        assert_eq!(self.judge().broken(true).len(), usize::from(count > 0));
    }
}

#[test]
fn a_sound_sale_is_found_sound() {
    let scene = scene();
    scene.only("", 0);
    let audit = scene.judge();
    assert_eq!((audit.orders, audit.total, audit.demand, audit.unresolved), (4, 4, 6, 0));
    assert_eq!(audit.broken(false), ["not at rest in time"]);
}

#[test]
fn oversold_is_found_even_when_all_figures_agree() {
    let mut scene = scene();
    scene.sql("UPDATE floodgate_sales SET sold = 5 WHERE sale_id = 's'");
    scene.sql("INSERT INTO floodgate_orders (order_id, sale_id, user_id, units_held, status) VALUES ('A4','s','u4',1,'unpaid')");
    scene.claims[4] = claim(4, true);
    (scene.figures.confirmed, scene.figures.sold, scene.figures.remaining) = (5, 5, -1);
    scene.only("oversold", 1);
}

#[test]
fn a_promise_without_a_row_is_lost() {
    let mut scene = scene();
    scene.claims[4] = claim(4, true);
    scene.only("lost", 1);
}

#[test]
fn an_order_once_shown_to_its_buyer_must_have_a_row() {
    let mut scene = scene();
    scene.claims[4] = Claim::new("u4", "A4".into(), true);
    scene.claims[4].see();
    scene.only("lost", 1);
    assert_eq!(scene.judge().learned, 1);
}

#[test]
fn an_order_id_twice_is_duplicated() {
    let scene = scene();
    scene.sql("INSERT INTO floodgate_orders (order_id, sale_id, user_id, units_held, status) VALUES ('A0','s','u0',0,'closed')");
    scene.only("duplicated", 1);
}

#[test]
fn a_pass_that_becomes_another_order_is_duplicated() {
    let mut scene = scene();
    scene.claims[0].hear(&Press::Accepted { order_id: "B0".into(), poll_after: Duration::ZERO });
    scene.only("duplicated", 1);
}

#[test]
fn units_left_over_though_people_were_sent_away_have_leaked() {
    let mut scene = scene();
    scene.sql("DELETE FROM floodgate_orders WHERE order_id = 'A3'");
    scene.sql("UPDATE floodgate_sales SET sold = 3 WHERE sale_id = 's'");
    scene.claims[3] = claim(3, false);
    (scene.figures.confirmed, scene.figures.sold, scene.figures.remaining) = (3, 3, 1);
    scene.only("leaked", 1);
    // With too little demand, the same figures are sound.
    scene.claims.truncate(3);
    scene.only("", 0);
}

#[test]
fn units_that_the_ledger_has_lost_have_leaked() {
    let mut scene = scene();
    scene.claims.truncate(3);
    scene.sql("DELETE FROM floodgate_orders WHERE order_id = 'A3'");
    scene.sql("UPDATE floodgate_sales SET sold = 3 WHERE sale_id = 's'");
    (scene.figures.confirmed, scene.figures.sold, scene.figures.remaining) = (3, 3, 0);
    scene.only("leaked", 1);
}

#[test]
fn units_that_stay_pending_have_leaked() {
    let mut scene = scene();
    scene.figures.pending = 1;
    scene.figures.remaining = -1;
    scene.only("leaked", 1);
}

#[test]
fn a_sold_count_that_is_not_what_the_rows_hold_has_leaked() {
    let scene = scene();
    scene.sql("UPDATE floodgate_orders SET units_held = 0, status = 'closed' WHERE order_id = 'A3'");
    scene.only("leaked", 1);
}

#[test]
fn rejected_after_202_is_found() {
    let mut scene = scene();
    scene.sql("INSERT INTO floodgate_orders (order_id, sale_id, user_id, units_held, status) VALUES ('A4','s','u4',0,'rejected')");
    scene.claims[4] = claim(4, true);
    scene.only("rejected_after_202", 1);
    // Never promised: an order that was uncertain may be rejected.
    scene.claims[4] = Claim::new("u4", "A4".into(), true);
    scene.claims[4].hear(&Press::Uncertain { order_id: None, retry_after_s: None });
    scene.only("", 0);
}

#[test]
fn a_user_above_the_limit_is_found() {
    let scene = scene();
    scene.sql("UPDATE floodgate_orders SET user_id = 'u0' WHERE order_id IN ('A0', 'A1', 'A2')");
    scene.only("per_user_violations", 1);
}

#[test]
fn a_row_for_somebody_who_was_surely_refused_is_a_contradiction() {
    let mut scene = scene();
    scene.claims[3] = claim(3, false);
    scene.only("contradicted", 1);
    scene.claims[3].hang_up();
    scene.only("", 0);
}

#[test]
fn a_404_after_a_202_is_a_contradiction() {
    let mut scene = scene();
    scene.claims[0].see_absent();
    scene.only("contradicted", 1);
}

#[test]
fn a_row_that_nobody_asked_for_is_from_nothing() {
    let mut scene = scene();
    scene.claims.remove(0);
    scene.only("from_nothing", 1);
}

#[test]
fn doubts_that_nobody_resolved_are_counted() {
    let mut scene = scene();
    scene.claims[5] = Claim::new("u5", "A5".into(), true);
    scene.claims[5].hear(&Press::Lost(crate::http::Lost::Unanswered("x".into())));
    assert_eq!(scene.judge().unresolved, 1);
}

#[test]
fn the_busiest_second_is_found_wherever_it_begins() {
    let scene = scene();
    let times: Vec<u64> = scene.books().rows.iter().filter_map(|row| row.created_at_ms).collect();
    let drained = drain(&times, Some(2_000), 7);
    assert_eq!((drained.max_in_one_second, drained.backlog_max, drained.limit), (3, 7, Some(2_000)));
    assert!((drained.seconds - 2.0).abs() < 1e-9 && (drained.orders_per_second - 1.5).abs() < 1e-9);
    // Four batches of 100, one every 50 ms, are 2,000 a second and not 2,667.
    let batches: Vec<u64> = (0..400).map(|row| 1_000 + row / 100 * 50).collect();
    assert!((drain(&batches, None, 0).orders_per_second - 2_000.0).abs() < 1e-9);
    // 5 rows that lie in two calendar seconds, yet within one second.
    assert_eq!(drain(&[1_900, 1_950, 2_000, 2_500, 2_899, 2_900], None, 0).max_in_one_second, 5);
    assert_eq!(drain(&[], None, 0).max_in_one_second, 0);
}
