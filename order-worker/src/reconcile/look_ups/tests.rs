//! Which ids are chosen, and that no second sees more of them than is said.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::config::DrainConfig;

const LOG: Owner = Owner(1);
const ELSEWHERE: Owner = Owner(2);
const NOW_MS: u64 = 1_000_000;

fn pace() -> Arc<Pace> {
    Arc::new(Pace::new(&DrainConfig::default()))
}

fn sale() -> SaleId {
    "s".parse().unwrap()
}

fn pending(ids: std::ops::Range<u128>, owner: Owner, reserved_at_ms: u64) -> Vec<(Owner, Reservation)> {
    let user = || "u".parse().unwrap();
    let reservation = |id| Reservation {
        order_id: OrderId(id),
        sale: sale(),
        user: user(),
        quantity: 1,
        metadata: None,
        reserved_at_ms,
        sale_version: None,
    };
    ids.map(|id| (owner, reservation(id))).collect()
}

impl LookUps {
    /// Shows the one page that there is, and answers for all that was asked about.
    fn whole(&mut self, pending: &[(Owner, Reservation)], is_row: bool) -> usize {
        let sale = sale();
        let page = Page { sale: &sale, after: None, pending, is_last: true, now_ms: NOW_MS };
        let asked = self.choose(&page).asked;
        let count = asked.len();
        self.answered(&sale, asked.into_iter().map(|asked| (asked, is_row)).collect());
        count
    }

    fn next_pass(&mut self) {
        self.begin_pass(|_| true);
    }
}

#[test]
fn of_a_log_drained_here_what_is_behind_the_last_row_is_asked_about() {
    let (pace, old) = (pace(), NOW_MS - 60_000);
    let drain = pace.enter(LOG);
    let mut look_ups = LookUps::new(pace);
    let mut asked = || {
        look_ups.next_pass();
        look_ups.whole(&pending(0..10, LOG, old), true)
    };
    assert_eq!(asked(), 0, "nothing is known of it yet");
    drain.has_settled_through(old + GRACE_MS - 1);
    assert_eq!(asked(), 0, "it may be a little out of order");
    drain.has_settled_through(old + GRACE_MS);
    assert_eq!(asked(), 10);
    drain.has_settled_through(0);
    assert_eq!(asked(), 0);
    drain.has_settled_everything();
    assert_eq!(asked(), 10);
    look_ups.next_pass();
    assert_eq!(look_ups.whole(&pending(0..10, LOG, NOW_MS - GRACE_MS + 1), true), 0, "young");
    assert_eq!(look_ups.whole(&pending(0..10, LOG, NOW_MS + 3_600_000), true), 10, "the clock was put back");
}

#[test]
fn a_log_drained_elsewhere_is_asked_about_a_little_and_less_and_less() {
    let mut look_ups = LookUps::new(pace());
    let backlog = pending(0..512, ELSEWHERE, 0);
    let mut asked_in = Vec::new();
    for pass in 1..=70 {
        look_ups.next_pass();
        let asked = look_ups.whole(&backlog, false);
        if asked > 0 {
            assert_eq!(asked, STRANGERS_FEW);
            asked_in.push(pass);
        }
    }
    assert_eq!(asked_in, [1, 3, 7, 15, 31, 47, 63]);
    assert_eq!(look_ups.absent(), 0);
    let mut asked = Vec::new();
    for _ in 71..=84 {
        look_ups.next_pass();
        asked.push(look_ups.whole(&backlog, true));
    }
    assert_eq!(asked[8..], [64, 128, 256, 512, 512, 512], "rows among them");
}

#[test]
fn what_is_absent_is_asked_about_again_after_growing_waits() {
    let pace = pace();
    let drain = pace.enter(LOG);
    drain.has_settled_everything();
    let mut look_ups = LookUps::new(pace);
    let held = pending(0..3, LOG, 0);
    look_ups.next_pass();
    assert_eq!(look_ups.whole(&held, false), 3);
    let mut again_in = Vec::new();
    for pass in 2..=50 {
        look_ups.next_pass();
        assert_eq!(look_ups.whole(&held, false), 0);
        for (of, asked) in look_ups.again() {
            again_in.push((pass, asked.len()));
            look_ups.answered_again(&of, asked.iter().map(|asked| (asked.order_id, false)));
        }
    }
    assert_eq!(again_in, [2, 4, 8, 16, 32, 48].map(|pass| (pass, 3)));
    assert_eq!(look_ups.absent(), 3);
    // One became a row, one is pending no more.
    look_ups.answered_again(&sale(), [(OrderId(0), true)].into_iter());
    assert_eq!(look_ups.whole(&held[2..], false), 0);
    assert_eq!(look_ups.absent(), 1);
    look_ups.nothing_is_pending(&sale());
    assert_eq!(look_ups.absent(), 0);
}

#[test]
fn a_page_forgets_only_what_it_covers() {
    let pace = pace();
    let drain = pace.enter(LOG);
    drain.has_settled_everything();
    let mut look_ups = LookUps::new(pace);
    look_ups.next_pass();
    assert_eq!(look_ups.whole(&pending(0..100, LOG, 0), false), 100);
    let sale = sale();
    let held = pending(20..40, LOG, 0);
    let page = Page { sale: &sale, after: Some(OrderId(9)), pending: &held, is_last: false, now_ms: NOW_MS };
    assert_eq!(look_ups.choose(&page).asked.len(), 0);
    assert_eq!(look_ups.absent(), 90, "those from 10 to 19 are pending no more");
    look_ups.begin_pass(|_| false);
    assert_eq!(look_ups.absent(), 0, "of a sale that is over");
}

#[test]
fn the_budget_is_the_share_of_the_limit() {
    let pace = pace();
    let drain = pace.enter(LOG);
    drain.has_settled_everything();
    let mut look_ups = LookUps::new(pace.clone());
    let backlog = pending(0..5_000, LOG, 0);
    let mut budget = || {
        look_ups.next_pass();
        look_ups.whole(&backlog, true)
    };
    assert_eq!(budget(), LOOK_UPS_PER_SECOND_MAX);
    pace.share();
    assert_eq!(budget(), LOOK_UPS_PER_SECOND_MIN);
    pace.set_share(LOG, WHOLE_PPM / 4, Instant::now() + Duration::from_secs(60));
    assert_eq!(budget(), LOOK_UPS_PER_SECOND_MAX / 4);
    // Where it ends the next page begins.
    look_ups.next_pass();
    let sale = sale();
    let page = Page { sale: &sale, after: None, pending: &backlog, is_last: true, now_ms: NOW_MS };
    let chosen = look_ups.choose(&page);
    assert_eq!(chosen.cut_at, Some(chosen.asked.last().unwrap().1.order_id));
    assert!(!look_ups.has_budget());
}

/// The figures of docs/mysql.md.
#[test]
fn a_backlog_of_a_million_is_asked_about_within_the_budget() {
    const BACKLOG: u128 = 1_000_000;
    const PASSES: usize = 130;
    // (its log, found to be rows, at most in a second, at most in all)
    for (owner, is_row, most, most_in_all) in [
        (LOG, false, 0, 0),
        (ELSEWHERE, false, STRANGERS_FEW, STRANGERS_FEW * (4 + PASSES / WAIT_PASSES_MAX as usize)),
        (ELSEWHERE, true, LOOK_UPS_PER_SECOND_MAX, LOOK_UPS_PER_SECOND_MAX * PASSES),
        (Owner(3), false, LOOK_UPS_PER_SECOND_MAX, LOOK_UPS_PER_SECOND_MAX * PASSES),
    ] {
        let pace = pace();
        let (stands, idle) = (pace.enter(LOG), pace.enter(Owner(3)));
        stands.has_settled_through(5);
        idle.has_settled_everything();
        let mut look_ups = LookUps::new(pace);
        let (sale, mut next, mut in_all) = (sale(), 0, 0);
        for pass in 0..PASSES {
            look_ups.next_pass();
            let mut asked = 0;
            for (of, again) in look_ups.again() {
                asked += again.len();
                look_ups.answered_again(&of, again.iter().map(|again| (again.order_id, is_row)));
            }
            for _ in 0..16 {
                if !look_ups.has_budget() {
                    break;
                }
                let end = (next + BATCH_MAX as u128).min(BACKLOG);
                let held = pending(next..end, owner, 5);
                let after = next.checked_sub(1).map(OrderId);
                let page =
                    Page { sale: &sale, after, pending: &held, is_last: end == BACKLOG, now_ms: NOW_MS };
                let chosen = look_ups.choose(&page);
                asked += chosen.asked.len();
                look_ups.answered(&sale, chosen.asked.into_iter().map(|asked| (asked, is_row)).collect());
                next = chosen.cut_at.map_or(end, |cut_at| cut_at.0 + 1) % BACKLOG;
            }
            assert!(asked <= most, "{asked} look-ups of {owner} in pass {pass}");
            assert!(look_ups.absent() <= ABSENT_MAX);
            in_all += asked;
        }
        assert!(in_all <= most_in_all, "{in_all} look-ups of {owner}");
    }
}
