//! Whole processes over real servers: two gateways, two workers, Redis, ZooKeeper, MariaDB, a crowd, and one fault at a time.
//!
//! Each fault is a line of the table below: what the scene is made of, what strikes it, and how much may be lost by that. What
//! is checked is the same for all (`verdict.rs`). Nothing here asserts how long anything took; the times are printed.
//! Faults marked `ignore` take minutes together: `./test --long`, or `-- --include-ignored`.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod crowd;
mod ledgers;
mod scene;
mod strikes;
mod verdict;

use scene::{Fault, Layout, Loses};

/// One test a fault, each with the machine to itself.
macro_rules! faults {
    ($($(#[$attribute:meta])? $name:ident: $layout:expr, $loses:expr, $strike:expr;)+) => {
        $(
            #[test]
            $(#[$attribute])?
            fn $name() {
                Fault {
                    name: stringify!($name),
                    layout: $layout,
                    loses: $loses,
                    strike: $strike,
                }
                .play();
            }
        )+
    };
}

faults! {
    nothing_at_all: Layout::default(), Loses::Nothing, strikes::nothing;
    redis_killed: Layout::default(), Loses::Nothing, strikes::redis_killed;
    #[ignore] redis_killed_again_in_its_rebuild: Layout::default(), Loses::Nothing, strikes::redis_killed_again_in_its_rebuild;
    #[ignore] redis_killed_without_a_file: Layout::forgetful(), Loses::BetweenAmnesiaAndNotice, strikes::redis_killed;
    #[ignore] redis_frozen_for_10_s: Layout::default(), Loses::Nothing, strikes::redis_frozen;
    redis_failed_over: Layout::sentinel(), Loses::BetweenAmnesiaAndNotice, strikes::redis_failed_over;
    #[ignore] lagging_replica_promoted: Layout::sentinel(), Loses::BetweenAmnesiaAndNotice, strikes::lagging_replica_promoted;
    redis_flushed: Layout::default(), Loses::BetweenAmnesiaAndNotice, strikes::redis_flushed;
    redis_out_of_memory: Layout::default(), Loses::Nothing, strikes::redis_out_of_memory;
    #[ignore] redis_read_only: Layout::default(), Loses::BetweenAmnesiaAndNotice, strikes::redis_read_only;
    redis_cut_off: Layout::default(), Loses::Nothing, strikes::redis_cut_off;
    #[ignore] redis_answers_lost: Layout::default(), Loses::Nothing, strikes::redis_answers_lost;
    a_gateway_names_another_redis: Layout::default(), Loses::Nothing, ledgers::a_gateway_names_another_redis;
    #[ignore] old_primary_cut_off_with_a_gateway: Layout::sentinel(), Loses::BetweenAmnesiaAndNotice,
        ledgers::old_primary_cut_off_with_a_gateway;
    zookeeper_killed: Layout::default(), Loses::Nothing, strikes::zookeeper_killed;
    #[ignore] zookeeper_sessions_expired: Layout::default(), Loses::Nothing, strikes::zookeeper_sessions_expired;
    #[ignore] zookeeper_leader_killed: Layout::ensemble(), Loses::Nothing, strikes::zookeeper_leader_killed;
    #[ignore] zookeeper_cut_off: Layout::default(), Loses::Nothing, strikes::zookeeper_cut_off;
    mariadb_killed: Layout::default(), Loses::Nothing, strikes::mariadb_killed;
    mariadb_answers_lost: Layout::default(), Loses::Nothing, strikes::mariadb_answers_lost;
    #[ignore] mariadb_frozen: Layout::default(), Loses::Nothing, strikes::mariadb_frozen;
    worker_killed: Layout::default(), Loses::Nothing, strikes::worker_killed;
    #[ignore] workers_killed_in_turn: Layout::default(), Loses::Nothing, strikes::workers_killed_in_turn;
    #[ignore] gateway_killed_and_back: Layout::default(), Loses::Nothing, strikes::gateway_killed_and_back;
    #[ignore] gateway_frozen_beyond_its_lease: Layout::default(), Loses::Nothing, strikes::gateway_frozen_beyond_its_lease;
    #[ignore] gateways_clock_is_5_minutes_slow: Layout::default(), Loses::Nothing, strikes::gateways_clock_is_slow;
    gateway_killed_for_good: Layout::default(), Loses::Nothing, strikes::gateway_killed_for_good;
    #[ignore] gateway_killed_for_good_and_its_disk_deleted: Layout::default(), Loses::OneLog,
        strikes::gateway_killed_for_good_and_its_disk_deleted;
    #[ignore] flushed_with_a_log_out_of_reach: Layout::default(), Loses::OneLog, strikes::flushed_with_a_log_out_of_reach;
    nginx_killed: Layout::behind_nginx(), Loses::Nothing, strikes::nginx_killed;
    restocked_and_rebuilt: Layout::default(), Loses::Nothing, strikes::restocked_and_rebuilt;
    #[ignore] everything_killed: Layout::default(), Loses::Nothing, strikes::everything_killed;
    #[ignore] a_pass_used_again_after_cancel: Layout::default(), Loses::Nothing, strikes::pass_used_again_after_cancel;
}
