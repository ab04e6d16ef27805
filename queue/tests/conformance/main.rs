//! The port's conformance suite, written once and run by every adapter and storage.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod fixture;
mod suite;

use fixture::{Fixture, Kind};

/// The one list of what every adapter has to pass.
macro_rules! conformance {
    ($($adapter:ident => $kind:expr),* $(,)?) => { $( conformance!(@list $adapter, $kind,
        appends_are_read_back_in_order,
        records_survive_a_reopen,
        a_record_keeps_key_tag_payload_and_times,
        sizes_are_checked_and_cost_nothing,
        a_dropped_permit_gives_its_room_back,
        the_ring_refuses_when_full_and_recovers,
        the_backlog_bound_refuses_and_a_commit_lifts_it,
        every_send_mode_delivers,
        a_group_continues_behind_its_commit,
        a_rewind_delivers_again,
        a_group_is_held_once,
        two_groups_are_independent,
        pull_waits_for_an_append,
        pull_gives_up_after_its_wait,
        single_acknowledgements_survive_a_reopen,
        commit_leaves_the_delayed_unfinished,
        deliver_at_holds_a_record_back,
        nack_delivers_again_later_with_a_higher_attempt,
        a_nack_survives_a_reopen,
        many_nacks_have_each_their_delay,
        a_dead_letter_is_kept_and_replayed,
        push_retries_and_gives_up,
        push_has_at_most_so_many_under_way,
        lag_counts_records,
        a_watch_remembers_how_a_group_stood,
        the_last_records_are_read_in_order,
        a_group_begins_where_its_creator_says,
        reset_goes_back_and_forth,
        reset_by_time_finds_the_batch,
        a_dropped_group_begins_anew,
        finished_segments_are_used_again,
        the_slowest_group_holds_records,
        drained_records_stay_for_a_while,
        drained_records_go_early_when_they_are_too_many,
        a_group_goes_back_to_what_is_drained,
        a_time_before_what_is_kept_is_told,
        a_clock_that_is_put_lets_nothing_go_early,
        a_group_too_far_behind_is_cut_off_and_told,
        a_cut_is_told_again_after_a_reopen,
        a_cut_takes_all_that_was_known_of_its_records,
        a_group_too_old_is_cut_off,
        a_group_without_a_bound_is_never_cut_off,
        a_reset_goes_behind_a_cut,
        a_lifted_bound_leaves_its_cut_told,
        a_place_that_is_not_kept_is_told,
        after_shutdown_nothing_is_taken,
        names_are_checked,
        a_second_owner_is_refused,
        a_log_says_to_whom_it_belongs,
        nothing_is_promised_before_the_log_is_tied,
        a_log_is_taken_on_an_operators_word,
        a_clock_that_jumps_back_loses_nothing,
        a_clock_that_is_put_back_delivers_nothing_early,
    ); )* };
    (@list $adapter:ident, $kind:expr, $($test:ident),* $(,)?) => {
        mod $adapter {
            use super::*;
            $(
                #[test]
                fn $test() {
                    Fixture::run($kind, suite::$test);
                }
            )*
        }
    };
}

conformance! {
    disk_with_threads => Kind::RealThread,
    disk_driven => Kind::RealDriven,
    disk_simulated => Kind::Simulated,
}
