//! What every sold-out flag must do: see the contract in `stock::flag`.

use std::time::{Duration, SystemTime};

use stock::{Flag, FlagState, FlagVersion, SaleId};

/// Runs the whole suite on what the factory makes.
macro_rules! flag_conformance {
    ($factory:ident) => {
        conformance_tests!(
            flag,
            $factory,
            unheard_of_is_unknown,
            a_published_state_is_read_at_once,
            only_newer_states_are_applied,
            a_newer_epoch_wins_over_any_counter,
            the_feed_holds_known_sales_alone,
            the_feed_version_rises_with_applied_changes_alone,
            a_long_poll_wakes,
            a_forgotten_sale_is_unknown_through_old_cells,
        );
    };
}

fn sale(name: &str) -> SaleId {
    // Unique, since adapters may share a server between tests and runs.
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    format!("{name}-{nanos}").parse().unwrap()
}

fn state(sold_out: bool, epoch: u64, counter: u64) -> FlagState {
    FlagState { sold_out, version: FlagVersion { epoch, counter } }
}

pub(crate) async fn unheard_of_is_unknown(flag: Flag) {
    assert_eq!(flag.cell(&sale("quiet")).read(), None);
}

pub(crate) async fn a_published_state_is_read_at_once(flag: Flag) {
    let sale = sale("shown");
    let cell = flag.cell(&sale);
    flag.publish(&sale, state(true, 1, 1)).await.unwrap();
    assert_eq!(cell.read(), Some(state(true, 1, 1)));
    let other_thread = std::thread::spawn(move || cell.read()).join().unwrap();
    assert_eq!(other_thread, Some(state(true, 1, 1)));
    assert_eq!(flag.cell(&sale).read(), Some(state(true, 1, 1)));
}

pub(crate) async fn only_newer_states_are_applied(flag: Flag) {
    let sale = sale("newer");
    let cell = flag.cell(&sale);
    flag.publish(&sale, state(true, 3, 5)).await.unwrap();
    for stale in [state(false, 3, 5), state(false, 3, 4), state(false, 2, 9)] {
        flag.publish(&sale, stale).await.unwrap();
        assert_eq!(cell.read(), Some(state(true, 3, 5)), "{stale:?} must not win");
    }
    flag.publish(&sale, state(false, 3, 6)).await.unwrap();
    assert_eq!(cell.read(), Some(state(false, 3, 6)));
}

pub(crate) async fn a_newer_epoch_wins_over_any_counter(flag: Flag) {
    let sale = sale("epoch");
    flag.publish(&sale, state(true, 1, 1_000)).await.unwrap();
    flag.publish(&sale, state(false, 2, 0)).await.unwrap();
    assert_eq!(flag.cell(&sale).read(), Some(state(false, 2, 0)));
}

pub(crate) async fn the_feed_holds_known_sales_alone(flag: Flag) {
    let (known, unknown) = (sale("known"), sale("unknown"));
    let _ = flag.cell(&unknown);
    flag.publish(&known, state(true, 1, 1)).await.unwrap();
    let feed = flag.feed();
    assert_eq!(feed.sales.get(&known), Some(&state(true, 1, 1)));
    assert!(!feed.sales.contains_key(&unknown));
    assert_eq!(feed.instance, flag.feed().instance);
}

pub(crate) async fn the_feed_version_rises_with_applied_changes_alone(flag: Flag) {
    let sale = sale("version");
    let before = flag.feed().version;
    flag.publish(&sale, state(true, 1, 1)).await.unwrap();
    let after = flag.feed().version;
    assert!(after > before);
    flag.publish(&sale, state(false, 1, 0)).await.unwrap();
    assert_eq!(flag.feed().version, after);
}

pub(crate) async fn a_long_poll_wakes(flag: Flag) {
    let sale = sale("poll");
    let mut versions = flag.subscribe();
    let known = *versions.borrow_and_update();
    let poll = async {
        versions.wait_for(|version| *version > known).await.unwrap();
        flag.feed()
    };
    let publish = async {
        tokio::task::yield_now().await;
        flag.publish(&sale, state(true, 1, 1)).await.unwrap();
    };
    let (feed, ()) = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(poll, publish) })
        .await
        .expect("a waiting poll must wake");
    assert_eq!(feed.sales.get(&sale), Some(&state(true, 1, 1)));
}

pub(crate) async fn a_forgotten_sale_is_unknown_through_old_cells(flag: Flag) {
    let sale = sale("forgotten");
    let cell = flag.cell(&sale);
    flag.publish(&sale, state(true, 1, 1)).await.unwrap();
    let before = flag.feed().version;
    flag.forget(&sale);
    assert_eq!(cell.read(), None);
    assert!(!flag.feed().sales.contains_key(&sale));
    assert!(flag.feed().version > before);
}
