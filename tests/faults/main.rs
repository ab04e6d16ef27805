//! Whole processes over real servers: two gateways, two workers, Redis, ZooKeeper, MariaDB, a crowd, and one fault at a time.
//!
//! Each fault is a line of the table below: what the scene is made of, what strikes it, and how much may be lost by that. What
//! is checked is the same for all (`verdict.rs`). Nothing here asserts how long anything took; the times are printed.
//! Faults marked `long` run with FLOODGATE_LONG=1 (`./test --long`) only.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod crowd;
mod scene;
mod strikes;
mod verdict;

use scene::{Fault, Layout, Loses};

/// One test a fault, each with the machine to itself.
macro_rules! faults {
    ($($(#[$long:ident])? $name:ident: $layout:expr, $loses:expr, $strike:expr;)+) => {
        $(
            #[test]
            fn $name() {
                Fault {
                    name: stringify!($name),
                    long: [$(stringify!($long))?].contains(&"long"),
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
    #[long] redis_killed_again_in_its_rebuild: Layout::default(), Loses::Nothing, strikes::redis_killed_again_in_its_rebuild;
    #[long] redis_killed_without_a_file: Layout::forgetful(), Loses::BetweenAmnesiaAndNotice, strikes::redis_killed;
    #[long] redis_frozen_for_10_s: Layout::default(), Loses::Nothing, strikes::redis_frozen;
    redis_failed_over: Layout::sentinel(), Loses::BetweenAmnesiaAndNotice, strikes::redis_failed_over;
    #[long] lagging_replica_promoted: Layout::sentinel(), Loses::BetweenAmnesiaAndNotice, strikes::lagging_replica_promoted;
    redis_flushed: Layout::default(), Loses::BetweenAmnesiaAndNotice, strikes::redis_flushed;
    redis_out_of_memory: Layout::default(), Loses::Nothing, strikes::redis_out_of_memory;
    #[long] redis_read_only: Layout::default(), Loses::BetweenAmnesiaAndNotice, strikes::redis_read_only;
    redis_cut_off: Layout::default(), Loses::Nothing, strikes::redis_cut_off;
    #[long] redis_answers_lost: Layout::default(), Loses::Nothing, strikes::redis_answers_lost;
    zookeeper_killed: Layout::default(), Loses::Nothing, strikes::zookeeper_killed;
    #[long] zookeeper_sessions_expired: Layout::default(), Loses::Nothing, strikes::zookeeper_sessions_expired;
    #[long] zookeeper_leader_killed: Layout::ensemble(), Loses::Nothing, strikes::zookeeper_leader_killed;
    #[long] zookeeper_cut_off: Layout::default(), Loses::Nothing, strikes::zookeeper_cut_off;
    mariadb_killed: Layout::default(), Loses::Nothing, strikes::mariadb_killed;
    mariadb_answers_lost: Layout::default(), Loses::Nothing, strikes::mariadb_answers_lost;
    #[long] mariadb_frozen: Layout::default(), Loses::Nothing, strikes::mariadb_frozen;
    worker_killed: Layout::default(), Loses::Nothing, strikes::worker_killed;
    #[long] workers_killed_in_turn: Layout::default(), Loses::Nothing, strikes::workers_killed_in_turn;
    #[long] gateway_killed_and_back: Layout::default(), Loses::Nothing, strikes::gateway_killed_and_back;
    #[long] gateway_frozen_beyond_its_lease: Layout::default(), Loses::Nothing, strikes::gateway_frozen_beyond_its_lease;
    #[long] gateways_clock_is_5_minutes_slow: Layout::default(), Loses::Nothing, strikes::gateways_clock_is_slow;
    gateway_killed_for_good: Layout::default(), Loses::Nothing, strikes::gateway_killed_for_good;
    #[long] gateway_killed_for_good_and_its_disk_deleted: Layout::default(), Loses::OneLog,
        strikes::gateway_killed_for_good_and_its_disk_deleted;
    #[long] flushed_with_a_log_out_of_reach: Layout::default(), Loses::OneLog, strikes::flushed_with_a_log_out_of_reach;
    restocked_and_rebuilt: Layout::default(), Loses::Nothing, strikes::restocked_and_rebuilt;
    #[long] everything_killed: Layout::default(), Loses::Nothing, strikes::everything_killed;
    #[long] a_pass_used_again_after_cancel: Layout::default(), Loses::Nothing, strikes::pass_used_again_after_cancel;
}
