//! What every stock ledger must do: see the contract in `stock::ledger`.

use std::time::SystemTime;

mod clocks;
mod foreign;
mod gate;
mod leases;
mod reserving;
mod settling;

use stock::ledger::{
    DEADLINE_AHEAD_MS_MAX, GrantOutcome, GrantRequest, IdState, Ledger, ReserveAnswer, ReserveBatch,
    ReserveOutcome, ReserveRequest, Settlement, Snapshot,
};
use stock::{FlagState, LedgerError, LedgerServer, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId};

/// Runs the whole suite on what the factory makes.
macro_rules! ledger_conformance {
    ($factory:ident) => {
        conformance_tests!(
            ledger,
            $factory,
            a_sale_is_unknown_until_installed,
            an_installed_sale_is_closed_until_opened,
            installing_again_at_the_same_epoch_changes_nothing,
            a_newer_epoch_starts_empty,
            an_older_epoch_is_refused,
            install_keeps_the_newer_sale_version,
            restore_holds_units_and_ends_with_open,
            reserve_takes_units_and_remembers_the_order,
            the_same_id_gives_the_same_answer_whatever_changed,
            reserve_checks_in_order,
            a_batch_past_its_deadline_takes_nothing,
            a_batch_of_another_epoch_takes_nothing,
            an_invalid_batch_takes_nothing,
            limits_count_pending_and_confirmed_units,
            not_enough_tells_what_is_left,
            a_batch_counts_what_it_took_itself,
            other_terms_refuse_what_is_new_and_a_record_names_its_version,
            confirm_of_the_unknown_takes_units_even_below_zero,
            the_confirmed_quantity_counts,
            release_gives_units_back_once,
            released_is_final_even_before_the_reservation,
            states_follow_the_ids,
            a_users_orders_are_remembered_while_they_hold_units,
            of_many_orders_the_newest_are_remembered,
            pending_is_listed_by_id_owner_and_page,
            a_pushed_version_wins_only_if_newer,
            the_flag_counts_its_edges,
            the_gate_counts_live_unused_passes,
            a_used_pass_frees_its_place_but_a_repeat_of_its_grant_does_not_count,
            an_expired_pass_frees_its_place,
            a_pass_that_counts_no_longer_frees_its_place_and_stays_its_users_only_one,
            no_gate_grants_while_stock_lasts,
            sales_do_not_touch_each_other,
            a_forgotten_sale_is_unknown,
            a_lease_lasts_as_long_as_it_was_renewed_for,
            a_lease_ends_by_itself_or_by_its_owner,
            a_sale_goes_by_the_clock_of_its_server,
            leases_go_by_the_clock_of_theirs,
            every_server_in_use_is_ready_and_keeps_its_number,
        );
    };
}

/// What a ledger must do besides that several deployments can reach: the factory makes two of them on one server.
macro_rules! shared_ledger_conformance {
    ($factory:ident) => {
        mod shared {
            conformance_tests!(
                ledger,
                $factory,
                another_deployments_sale_is_refused_everything,
                whoever_installs_first_has_the_sale,
                an_adopted_sale_is_a_lost_memory,
                nothing_is_adopted_that_is_not_anothers,
                all_connections_to_one_memory_see_one_name,
            );
            use super::$factory;
        }
    };
}

pub(crate) use clocks::*;
pub(crate) use foreign::*;
pub(crate) use gate::*;
pub(crate) use leases::*;
pub(crate) use reserving::*;
pub(crate) use settling::*;

const OWNER: Owner = Owner(0xF1);
const HOUR_MS: u64 = 3_600_000;

/// One sale on the ledger under test.
struct Sale {
    ledger: Ledger,
    version: SaleVersion,
    now_ms: u64,
}

impl Sale {
    /// Not installed: `total` units, limit 2, running from an hour ago to an hour ahead.
    async fn named(ledger: Ledger, name: &str, total: u32) -> Self {
        // Unique, since adapters may share a server between tests and runs.
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let id: SaleId = format!("{name}-{nanos}").parse().unwrap();
        let now_ms = ledger.now_ms(ledger.server_of(&id)).await.unwrap();
        let version = SaleVersion {
            sale: id,
            version: 1,
            total,
            starts_at_ms: now_ms - HOUR_MS,
            ends_at_ms: now_ms + HOUR_MS,
            per_user_limit: 2,
            passes_per_unit: 0,
            paused: false,
            terms_version: 1,
        };
        Self { ledger, version, now_ms }
    }

    /// Installed at epoch 1 and open.
    async fn open(ledger: Ledger, name: &str, total: u32) -> Self {
        let sale = Self::named(ledger, name, total).await;
        sale.install_and_open().await;
        sale
    }

    /// By the server that holds it.
    async fn now_ms(&self) -> u64 {
        self.ledger.now_ms(self.ledger.server_of(self.id())).await.unwrap()
    }

    async fn install_and_open(&self) {
        self.ledger.install(&self.version, 1).await.unwrap();
        self.ledger.open(self.id(), 1).await.unwrap();
    }

    fn id(&self) -> &SaleId {
        &self.version.sale
    }

    fn order(&self, n: u64) -> OrderId {
        OrderId::new(self.now_ms, self.id(), n)
    }

    fn request(&self, n: u64, user: &str, quantity: u32) -> ReserveRequest {
        ReserveRequest { order_id: self.order(n), user: user_id(user), quantity, metadata: None }
    }

    fn batch(&self, requests: Vec<ReserveRequest>) -> ReserveBatch {
        // A deadline far ahead, so that a slow test machine does not meet it.
        let deadline_ms = self.now_ms + DEADLINE_AHEAD_MS_MAX;
        ReserveBatch {
            sale: self.id().clone(),
            epoch: 1,
            deadline_ms,
            terms_version: 1,
            owner: OWNER,
            requests,
        }
    }

    async fn reserve_all(&self, requests: Vec<ReserveRequest>) -> ReserveAnswer {
        self.ledger.reserve(&self.batch(requests)).await.unwrap()
    }

    async fn reserve(&self, n: u64, user: &str, quantity: u32) -> ReserveOutcome {
        self.reserve_all(vec![self.request(n, user, quantity)]).await.outcomes.remove(0)
    }

    async fn take(&self, n: u64, user: &str, quantity: u32) {
        let outcome = self.reserve(n, user, quantity).await;
        assert!(matches!(outcome, ReserveOutcome::Pending { first: true, .. }), "{outcome:?}");
    }

    fn settlement(&self, n: u64, user: &str, quantity: u32) -> Settlement {
        Settlement { order_id: self.order(n), user: user_id(user), quantity }
    }

    async fn confirm(&self, n: u64, user: &str, quantity: u32) -> FlagState {
        self.ledger.confirm(self.id(), &[self.settlement(n, user, quantity)]).await.unwrap()
    }

    async fn release(&self, n: u64, user: &str, quantity: u32) -> FlagState {
        self.ledger.release(self.id(), &[self.settlement(n, user, quantity)]).await.unwrap()
    }

    async fn state(&self, n: u64) -> IdState {
        self.ledger.states(self.id(), &[self.order(n)]).await.unwrap()[0]
    }

    /// Which of the user's orders hold units, and whether each is pending.
    async fn mine(&self, user: &str) -> Vec<(u64, bool)> {
        let mine = self.ledger.mine(self.id(), &user_id(user)).await.unwrap();
        mine.into_iter().map(|mine| (mine.order_id.0 as u64, mine.pending.is_some())).collect()
    }

    async fn snapshot(&self) -> Snapshot {
        let snapshot = self.ledger.snapshot(self.id()).await.unwrap();
        let held = snapshot.pending as i64 + snapshot.confirmed as i64;
        assert_eq!(i64::from(snapshot.total), snapshot.remaining + held, "{snapshot:?}");
        assert_eq!(snapshot.flag.sold_out, snapshot.remaining <= 0, "{snapshot:?}");
        snapshot
    }

    /// `(remaining, pending, confirmed)`.
    async fn units(&self) -> (i64, u64, u64) {
        let snapshot = self.snapshot().await;
        (snapshot.remaining, snapshot.pending, snapshot.confirmed)
    }

    async fn push(&mut self, change: impl FnOnce(&mut SaleVersion)) -> FlagState {
        self.version.version += 1;
        change(&mut self.version);
        self.ledger.push_sale(&self.version).await.unwrap()
    }

    async fn grant(&self, n: u64, user: &str, expires_at_ms: u64) -> GrantOutcome {
        self.grant_that_counts_until(n, user, (expires_at_ms, expires_at_ms)).await
    }

    async fn grant_that_counts_until(
        &self,
        n: u64,
        user: &str,
        (counts_until_ms, expires_at_ms): (u64, u64),
    ) -> GrantOutcome {
        let request =
            GrantRequest { user: user_id(user), order_id: self.order(n), expires_at_ms, counts_until_ms };
        self.ledger.grant(self.id(), 1, &request).await.unwrap().0
    }

    fn reservation(&self, n: u64, user: &str, quantity: u32) -> Reservation {
        Reservation {
            order_id: self.order(n),
            sale: self.id().clone(),
            user: user_id(user),
            quantity,
            metadata: Some("gift".into()),
            reserved_at_ms: self.now_ms,
            sale_version: None,
        }
    }
}

fn user_id(user: &str) -> UserId {
    user.parse().unwrap()
}

// Lives of a sale.

pub(crate) async fn a_sale_is_unknown_until_installed(ledger: Ledger) {
    let sale = Sale::named(ledger, "unknown", 1).await;
    let unknown = LedgerError::UnknownSale(sale.id().clone());
    assert_eq!(sale.ledger.snapshot(sale.id()).await.unwrap_err(), unknown);
    assert_eq!(sale.ledger.push_sale(&sale.version).await.unwrap_err(), unknown);
    assert_eq!(sale.ledger.confirm(sale.id(), &[]).await.unwrap_err(), unknown);
    assert_eq!(sale.ledger.states(sale.id(), &[]).await.unwrap_err(), unknown);
    let batch = sale.batch(vec![sale.request(1, "ann", 1)]);
    assert_eq!(sale.ledger.reserve(&batch).await.unwrap_err(), unknown);
}

pub(crate) async fn an_installed_sale_is_closed_until_opened(ledger: Ledger) {
    let sale = Sale::named(ledger, "closed", 5).await;
    sale.ledger.install(&sale.version, 1).await.unwrap();
    let batch = sale.batch(vec![sale.request(1, "ann", 1)]);
    assert_eq!(sale.ledger.reserve(&batch).await.unwrap_err(), LedgerError::Closed);
    assert_eq!(sale.ledger.states(sale.id(), &[sale.order(1)]).await.unwrap_err(), LedgerError::Closed);
    let (expires_at_ms, counts_until_ms) = (u64::MAX, u64::MAX);
    let request =
        GrantRequest { user: user_id("ann"), order_id: sale.order(1), expires_at_ms, counts_until_ms };
    assert_eq!(sale.ledger.grant(sale.id(), 1, &request).await.unwrap_err(), LedgerError::Closed);
    sale.confirm(2, "bob", 1).await;
    sale.release(3, "eve", 1).await;
    assert!(!sale.snapshot().await.open);
    assert_eq!(sale.units().await, (4, 0, 1));
    sale.ledger.open(sale.id(), 1).await.unwrap();
    assert!(sale.snapshot().await.open);
    assert_eq!(sale.reserve(2, "bob", 1).await, ReserveOutcome::Confirmed);
    assert_eq!(sale.reserve(3, "eve", 1).await, ReserveOutcome::PassUsed);
    sale.take(1, "ann", 1).await;
}

pub(crate) async fn installing_again_at_the_same_epoch_changes_nothing(ledger: Ledger) {
    let sale = Sale::open(ledger, "again", 5).await;
    sale.take(1, "ann", 2).await;
    sale.install_and_open().await;
    assert!(sale.snapshot().await.open);
    assert_eq!(sale.units().await, (3, 2, 0));
}

pub(crate) async fn a_newer_epoch_starts_empty(ledger: Ledger) {
    let sale = Sale::open(ledger, "newer", 5).await;
    sale.take(1, "ann", 2).await;
    sale.ledger.install(&sale.version, 2).await.unwrap();
    let snapshot = sale.snapshot().await;
    assert_eq!((snapshot.epoch, snapshot.open, snapshot.remaining), (2, false, 5));
    assert!(snapshot.flag.version.epoch == 2);
    sale.ledger.open(sale.id(), 2).await.unwrap();
    assert_eq!(sale.state(1).await, IdState::Absent);
}

pub(crate) async fn an_older_epoch_is_refused(ledger: Ledger) {
    let sale = Sale::named(ledger, "older", 5).await;
    sale.ledger.install(&sale.version, 7).await.unwrap();
    let wrong = LedgerError::WrongEpoch { current: 7 };
    assert_eq!(sale.ledger.install(&sale.version, 6).await.unwrap_err(), wrong);
    assert_eq!(sale.ledger.open(sale.id(), 6).await.unwrap_err(), wrong);
    assert_eq!(sale.ledger.open(sale.id(), 8).await.unwrap_err(), wrong);
    let lost = [sale.reservation(1, "ann", 1)];
    assert_eq!(sale.ledger.restore(sale.id(), 6, OWNER, &lost).await.unwrap_err(), wrong);
    assert_eq!(sale.units().await, (5, 0, 0));
}

pub(crate) async fn install_keeps_the_newer_sale_version(ledger: Ledger) {
    let mut sale = Sale::open(ledger, "kept", 5).await;
    let old = sale.version.clone();
    sale.push(|version| version.total = 9).await;
    sale.ledger.install(&old, 2).await.unwrap();
    let snapshot = sale.snapshot().await;
    assert_eq!((snapshot.version, snapshot.total, snapshot.remaining), (2, 9, 9));
}

pub(crate) async fn restore_holds_units_and_ends_with_open(ledger: Ledger) {
    let sale = Sale::named(ledger, "restore", 5).await;
    sale.ledger.install(&sale.version, 1).await.unwrap();
    sale.confirm(2, "bob", 1).await;
    let log = [sale.reservation(1, "ann", 2), sale.reservation(2, "bob", 1), sale.reservation(1, "ann", 2)];
    for _ in 0..2 {
        sale.ledger.restore(sale.id(), 1, OWNER, &log).await.unwrap();
        assert_eq!(sale.units().await, (2, 2, 1));
    }
    sale.ledger.open(sale.id(), 1).await.unwrap();
    let late = [sale.reservation(3, "eve", 1)];
    assert_eq!(sale.ledger.restore(sale.id(), 1, OWNER, &late).await.unwrap_err(), LedgerError::Open);
    let again = sale.reserve(1, "ann", 2).await;
    assert_eq!(
        again,
        ReserveOutcome::Pending { first: false, reservation: sale.reservation(1, "ann", 2) },
        "the whole reservation is remembered"
    );
    assert_eq!(sale.state(3).await, IdState::Absent);
}

// The sale's row and the flag.

pub(crate) async fn a_pushed_version_wins_only_if_newer(ledger: Ledger) {
    let mut sale = Sale::open(ledger, "push", 3).await;
    sale.take(1, "ann", 2).await;
    sale.push(|version| version.total = 10).await;
    assert_eq!(sale.units().await, (8, 2, 0));
    let mut stale = sale.version.clone();
    stale.total = 100;
    sale.ledger.push_sale(&stale).await.unwrap();
    stale.version = 1;
    sale.ledger.push_sale(&stale).await.unwrap();
    assert_eq!(sale.units().await, (8, 2, 0));
    sale.push(|version| version.paused = true).await;
    let snapshot = sale.snapshot().await;
    assert_eq!((snapshot.version, snapshot.paused), (3, true));
    assert_eq!(sale.reserve(2, "bob", 1).await, ReserveOutcome::Paused);
}

pub(crate) async fn the_flag_counts_its_edges(ledger: Ledger) {
    let mut sale = Sale::open(ledger, "edges", 2).await;
    let open = sale.snapshot().await.flag;
    assert!(!open.sold_out);
    sale.take(1, "ann", 1).await;
    assert_eq!(sale.snapshot().await.flag, open, "no edge, no bump");
    sale.take(2, "bob", 1).await;
    let sold_out = sale.snapshot().await.flag;
    assert!(sold_out.sold_out && sold_out.version > open.version);
    let below = sale.confirm(3, "eve", 1).await;
    assert_eq!(below, sold_out, "already at or below 0");
    let released = sale.release(2, "bob", 1).await;
    assert_eq!(released, sold_out, "0 is still sold out");
    let lifted = sale.push(|version| version.total = 3).await;
    assert!(!lifted.sold_out && lifted.version > sold_out.version);
    let taken = sale.confirm(4, "dan", 1).await;
    assert!(taken.sold_out && taken.version > lifted.version);
    assert_eq!(taken.version.epoch, 1);
}

// Several sales.

pub(crate) async fn sales_do_not_touch_each_other(ledger: Ledger) {
    let one = Sale::open(ledger.clone(), "one", 5).await;
    let two = Sale::open(ledger, "two", 5).await;
    one.take(1, "ann", 2).await;
    two.take(1, "ann", 2).await;
    let order = one.order(1);
    let settled = Settlement { order_id: order, user: user_id("ann"), quantity: 2 };
    two.ledger.release(two.id(), &[settled]).await.unwrap();
    assert_eq!(one.units().await, (3, 2, 0));
    assert_eq!(two.units().await, (3, 2, 0));
}

pub(crate) async fn a_forgotten_sale_is_unknown(ledger: Ledger) {
    let sale = Sale::open(ledger, "forget", 5).await;
    for _ in 0..2 {
        sale.ledger.forget(sale.id()).await.unwrap();
    }
    let unknown = LedgerError::UnknownSale(sale.id().clone());
    assert_eq!(sale.ledger.snapshot(sale.id()).await.unwrap_err(), unknown);
}
