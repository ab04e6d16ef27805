//! Passes.

use std::time::Duration;

use stock::LedgerError;
use stock::ledger::{GrantOutcome, GrantRequest, Ledger};

use super::{HOUR_MS, Sale, user_id};

pub(crate) async fn the_gate_counts_live_unused_passes(ledger: Ledger) {
    let mut sale = Sale::named(ledger, "gate", 2).await;
    sale.version.passes_per_unit = 2;
    sale.install_and_open().await;
    let later = sale.now_ms + HOUR_MS;
    for (n, user) in [(1, "ann"), (2, "bob"), (3, "eve"), (4, "dan")] {
        assert_eq!(sale.grant(n, user, later).await, GrantOutcome::Granted);
    }
    assert_eq!(sale.grant(5, "zoe", later).await, GrantOutcome::GateFull);
    let existing = GrantOutcome::Existing { order_id: sale.order(1), expires_at_ms: later };
    assert_eq!(sale.grant(6, "ann", later + 1).await, existing);
    sale.take(1, "ann", 1).await;
    assert_eq!(sale.grant(5, "zoe", later).await, GrantOutcome::GateFull, "3 live passes on 1 unit");
    sale.take(2, "bob", 1).await;
    assert_eq!(sale.grant(5, "zoe", later).await, GrantOutcome::SoldOut);
    let (user, order_id) = (user_id("zoe"), sale.order(5));
    let wrong = GrantRequest { user, order_id, expires_at_ms: later, counts_until_ms: later };
    let answer = sale.ledger.grant(sale.id(), 2, &wrong).await;
    assert_eq!(answer.unwrap_err(), LedgerError::WrongEpoch { current: 1 });
}

pub(crate) async fn a_used_pass_frees_its_place_but_a_repeat_of_its_grant_does_not_count(ledger: Ledger) {
    let mut sale = Sale::named(ledger, "used", 2).await;
    sale.version.passes_per_unit = 1;
    sale.install_and_open().await;
    let later = sale.now_ms + HOUR_MS;
    assert_eq!(sale.grant(1, "ann", later).await, GrantOutcome::Granted);
    sale.take(1, "ann", 1).await;
    assert_eq!(sale.grant(1, "ann", later).await, GrantOutcome::Granted, "a late repeat");
    assert_eq!(sale.grant(2, "ann", later).await, GrantOutcome::Granted);
    assert_eq!(sale.grant(3, "bob", later).await, GrantOutcome::GateFull);
    sale.release(2, "ann", 1).await;
    assert_eq!(sale.grant(3, "bob", later).await, GrantOutcome::Granted, "released unseen is used, too");
}

pub(crate) async fn an_expired_pass_frees_its_place(ledger: Ledger) {
    let mut sale = Sale::named(ledger, "expired", 1).await;
    sale.version.passes_per_unit = 1;
    sale.install_and_open().await;
    let soon = sale.now_ms().await + 100;
    assert_eq!(sale.grant(1, "ann", soon).await, GrantOutcome::Granted);
    while sale.now_ms().await <= soon {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sale.grant(2, "bob", soon + HOUR_MS).await, GrantOutcome::Granted);
    assert_eq!(sale.grant(3, "ann", soon + HOUR_MS).await, GrantOutcome::GateFull);
}

pub(crate) async fn a_pass_that_counts_no_longer_frees_its_place_and_stays_its_users_only_one(
    ledger: Ledger,
) {
    let mut sale = Sale::named(ledger, "counts", 2).await;
    sale.version.passes_per_unit = 1;
    sale.install_and_open().await;
    let later = sale.now_ms + HOUR_MS;
    let soon = sale.now_ms().await + 100;
    assert_eq!(sale.grant_that_counts_until(1, "ann", (soon, later)).await, GrantOutcome::Granted);
    assert_eq!(sale.grant_that_counts_until(2, "bob", (later, later)).await, GrantOutcome::Granted);
    while sale.now_ms().await <= soon {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sale.grant(3, "eve", later).await, GrantOutcome::Granted, "in ann's place");
    assert_eq!(sale.grant(4, "dan", later).await, GrantOutcome::GateFull);
    let existing = GrantOutcome::Existing { order_id: sale.order(1), expires_at_ms: later };
    assert_eq!(sale.grant(5, "ann", later).await, existing);
    sale.take(1, "ann", 1).await;
    assert_eq!(sale.grant(4, "dan", later).await, GrantOutcome::GateFull, "2 count for 1 unit");
    sale.take(3, "eve", 1).await;
    assert_eq!(sale.grant(4, "dan", later).await, GrantOutcome::SoldOut);
}

pub(crate) async fn no_gate_grants_while_stock_lasts(ledger: Ledger) {
    let sale = Sale::open(ledger, "open-gate", 1).await;
    for n in 1..=5 {
        assert_eq!(sale.grant(n, "ann", u64::MAX >> 16).await, GrantOutcome::Granted);
    }
    sale.take(1, "ann", 1).await;
    assert_eq!(sale.grant(6, "ann", u64::MAX >> 16).await, GrantOutcome::SoldOut);
}
