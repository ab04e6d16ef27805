//! The database ports' contract as one list of cases that every adapter runs: `database_suite!(open)`.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod intake;
mod journal;
mod life;
mod money;
mod payments;
mod refunds;
mod sales;
#[path = "../samples/mod.rs"]
mod samples;
pub(crate) mod schema;
mod shares;
mod withdrawal;
mod witness;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use order_worker::Database;
use order_worker::database::{Published, Settled};
use stock::{Reservation, SaleDefinition};

pub(crate) use intake::*;
pub(crate) use journal::*;
pub(crate) use life::*;
pub(crate) use money::*;
pub(crate) use payments::*;
pub(crate) use refunds::*;
pub(crate) use sales::*;
pub(crate) use samples::*;
pub(crate) use shares::*;
pub(crate) use withdrawal::*;
pub(crate) use witness::*;

/// An empty database with its clock in the test's hand.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) now: Arc<AtomicU64>,
    pub(crate) keep: Box<dyn Any + Send>,
}

impl Fixture {
    pub(crate) async fn publish(&self, id: &str, total: u32, per_user_limit: u32) -> SaleDefinition {
        let definition = definition(id, total, per_user_limit);
        assert_eq!(self.database.publish(&definition, &author()).await.unwrap(), Published::New);
        definition
    }

    pub(crate) async fn settle_one(&self, reservation: Reservation) -> Settled {
        self.database.settle(vec![reservation]).await.unwrap().remove(0)
    }

    pub(crate) fn advance(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    pub(crate) fn go_back(&self, ms: u64) {
        self.now.fetch_sub(ms, Ordering::SeqCst);
    }
}

/// The list. `$open` is an `async` closure that makes an empty [`Fixture`].
macro_rules! database_suite {
    ($open:expr) => {
        $crate::conformance::database_suite!(@cases $open,
            publish_is_insert_if_absent,
            publish_compares_with_the_first_definition,
            publish_refuses_what_can_never_work,
            sale_changes_bump_the_version,
            restock_is_idempotent_by_its_id,
            restock_is_bounded,
            end_now_moves_the_window,
            opened_and_settled_are_remembered,
            a_sale_settles_only_when_nothing_is_outstanding,
            settled_is_lifted_when_the_end_lies_ahead_again,
            an_edit_is_a_version_with_terms_of_its_own,
            a_window_is_moved_only_while_everybody_can_hear_of_it,
            a_database_is_one_deployment,
            epochs_rise,
            a_lost_life_is_followed_by_one_next,
            a_life_is_recorded_with_its_ledger,
            another_ledger_waits_for_those_that_see_the_recorded_one,
            of_other_ledgers_the_one_that_most_see_takes_over,
            words_that_do_not_count,
            of_several_ledgers_one_takes_over,
            instances_are_registered_by_id,
            an_opening_is_registered_over_the_one_before,
            a_log_whose_start_was_refused_is_left_out_again,
            a_log_that_was_left_out_keeps_its_row,
            a_life_begins_above_the_versions_of_the_ledger,
            what_a_log_has_merged_is_remembered,
            one_caller_may_install_a_sale_at_an_epoch,
            shares_are_equal_and_never_more_than_the_whole,
            what_drains_and_what_closes_share_nothing,
            only_a_live_drain_tells_that_its_log_is_drained,
            a_dead_workers_share_comes_free,
            a_share_is_taken_over_by_name,
            each_log_of_a_process_has_a_share,
            beats_race_without_exceeding_the_whole,
            unknown_sales_are_named,
            settle_writes_the_whole_row,
            rows_of_a_rehearsal_are_marked,
            settle_tells_inserts_from_duplicates,
            settle_fits_first_in_log_order,
            settle_keeps_the_per_user_limit_over_batches,
            settle_writes_nothing_of_an_unknown_sale,
            settle_writes_the_largest_amount,
            settle_spans_sales,
            an_order_is_judged_by_the_version_under_which_it_was_promised,
            settle_of_nothing_is_nothing,
            a_duplicate_is_never_written_again,
            reject_writes_a_bare_row_once,
            concurrent_batches_never_oversell,
            restocks_race_with_intake,
            any_text_comes_back_as_it_was,
            cancel_gives_units_back_once,
            cancel_minds_its_owner,
            cancel_of_a_rejected_order_is_refused,
            a_cancelled_unit_can_be_sold_again,
            concurrent_cancels_release_once,
            orders_come_in_pages,
            a_users_orders_come_newest_first,
            statuses_answer_in_order,
            releases_come_in_pages_until_done,
            a_written_release_wakes_the_relay,
            books_sum_the_orders,
            a_capture_pays_its_order_once,
            a_capture_that_finds_its_order_otherwise_goes_back,
            a_repeat_that_says_something_else_changes_nothing,
            what_no_row_can_hold_is_refused,
            a_payment_before_its_row_is_joined_or_goes_back,
            captures_at_once_are_kept_once,
            what_nobody_paid_is_closed_at_its_time,
            closing_races_with_payment,
            a_whole_refund_gives_the_units_back,
            an_order_is_refunded_once_all_of_its_money_is_back,
            refunds_that_wait_are_counted,
            a_refund_is_tried_under_one_id_until_it_is_over,
            refunds_at_once_never_exceed_the_payment,
            a_sale_settles_though_refunds_are_on_their_way,
            a_sale_says_whose_word_refunds_and_whether_units_return,
            an_order_that_costs_nothing_is_refunded_at_once,
            an_operator_closes_what_is_unpaid,
            a_withdrawn_sale_ends_and_keeps_its_orders,
            a_sale_withdrawn_with_its_orders_closes_and_refunds_them,
            what_is_still_in_a_log_is_closed_with_its_row,
            a_withdrawal_races_with_intake_and_payments,
            captured_money_is_accounted_for,
            money_comes_in_pages,
            a_statement_shows_what_nobody_was_told,
            the_clock_is_the_databases,
            every_version_is_kept_as_it_was_offered,
            a_change_has_its_row_in_the_journal_and_no_change_none,
            changes_of_the_ledger_are_in_the_journal,
            another_secret_forks_no_chain,
            changers_at_once_write_one_chain,
            the_head_is_looked_at_every_hour,
        );
    };
    (@cases $open:expr, $($case:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $case() {
            $crate::conformance::$case(($open)().await).await;
        }
    )*};
}
pub(crate) use database_suite;
