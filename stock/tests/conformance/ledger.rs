//! What every stock ledger must do: see the contract in `stock::ledger`.

use std::time::{Duration, SystemTime};

use stock::ledger::{
    BATCH_MAX, GrantOutcome, GrantRequest, IdState, Ledger, ReserveAnswer, ReserveBatch, ReserveOutcome,
    ReserveRequest, Settlement, Snapshot,
};
use stock::{FlagState, LedgerError, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId};

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
            confirm_of_the_unknown_takes_units_even_below_zero,
            the_confirmed_quantity_counts,
            release_gives_units_back_once,
            released_is_final_even_before_the_reservation,
            states_follow_the_ids,
            pending_is_listed_by_id_owner_and_page,
            a_pushed_version_wins_only_if_newer,
            the_flag_counts_its_edges,
            the_gate_counts_live_unused_passes,
            a_used_pass_frees_its_place_but_a_repeat_of_its_grant_does_not_count,
            an_expired_pass_frees_its_place,
            no_gate_grants_while_stock_lasts,
            sales_do_not_touch_each_other,
            a_forgotten_sale_is_unknown,
        );
    };
}

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
        let now_ms = ledger.now_ms().await.unwrap();
        let version = SaleVersion {
            sale: format!("{name}-{nanos}").parse().unwrap(),
            version: 1,
            total,
            starts_at_ms: now_ms - HOUR_MS,
            ends_at_ms: now_ms + HOUR_MS,
            per_user_limit: 2,
            passes_per_unit: 0,
            paused: false,
        };
        Self { ledger, version, now_ms }
    }

    /// Installed at epoch 1 and open.
    async fn open(ledger: Ledger, name: &str, total: u32) -> Self {
        let sale = Self::named(ledger, name, total).await;
        sale.install_and_open().await;
        sale
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
        // A deadline far ahead, so that a slow test machine never meets it.
        let deadline_ms = self.now_ms + HOUR_MS;
        ReserveBatch { sale: self.id().clone(), epoch: 1, deadline_ms, owner: OWNER, requests }
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
        let request = GrantRequest { user: user_id(user), order_id: self.order(n), expires_at_ms };
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
    let request = GrantRequest { user: user_id("ann"), order_id: sale.order(1), expires_at_ms: u64::MAX };
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

// Reserving.

pub(crate) async fn reserve_takes_units_and_remembers_the_order(ledger: Ledger) {
    let sale = Sale::open(ledger, "take", 5).await;
    let mut request = sale.request(1, "ann", 2);
    request.metadata = Some("blue".into());
    let answer = sale.reserve_all(vec![request, sale.request(2, "bob", 1)]).await;
    assert_eq!(answer.outcomes.len(), 2);
    let ReserveOutcome::Pending { first: true, reservation } = &answer.outcomes[0] else {
        panic!("{answer:?}");
    };
    assert_eq!(reservation.order_id, sale.order(1));
    assert_eq!((&reservation.sale, reservation.quantity), (sale.id(), 2));
    assert_eq!(reservation.user, user_id("ann"));
    assert_eq!(reservation.metadata.as_deref(), Some("blue"));
    assert_eq!(reservation.reserved_at_ms, answer.now_ms);
    assert_eq!(sale.units().await, (2, 3, 0));
    assert_eq!(answer.flag, sale.snapshot().await.flag);
}

pub(crate) async fn the_same_id_gives_the_same_answer_whatever_changed(ledger: Ledger) {
    let mut sale = Sale::open(ledger, "same", 1).await;
    let both = sale.reserve_all(vec![sale.request(1, "ann", 1), sale.request(1, "ann", 2)]).await;
    let ReserveOutcome::Pending { first: true, reservation } = both.outcomes[0].clone() else {
        panic!("{both:?}");
    };
    let same = ReserveOutcome::Pending { first: false, reservation };
    assert_eq!(both.outcomes[1], same);
    let ended = sale.now_ms - 1;
    sale.push(|version| {
        version.paused = true;
        version.ends_at_ms = ended;
        version.per_user_limit = 1;
    })
    .await;
    assert_eq!(sale.reserve(1, "ann", 2).await, same);
    assert_eq!(sale.units().await, (0, 1, 0));
    sale.confirm(1, "ann", 1).await;
    assert_eq!(sale.reserve(1, "ann", 1).await, ReserveOutcome::Confirmed);
    sale.release(1, "ann", 1).await;
    assert_eq!(sale.reserve(1, "ann", 1).await, ReserveOutcome::PassUsed);
    assert_eq!(sale.units().await, (1, 0, 0));
}

pub(crate) async fn reserve_checks_in_order(ledger: Ledger) {
    let mut sale = Sale::named(ledger, "order", 1).await;
    let now_ms = sale.now_ms;
    sale.version.paused = true;
    sale.version.starts_at_ms = now_ms + HOUR_MS;
    sale.version.ends_at_ms = now_ms + 2 * HOUR_MS;
    sale.install_and_open().await;
    sale.confirm(9, "eve", 2).await;
    assert_eq!(sale.reserve(1, "ann", 3).await, ReserveOutcome::Paused);
    sale.push(|version| version.paused = false).await;
    assert_eq!(sale.reserve(1, "ann", 3).await, ReserveOutcome::NotStarted);
    sale.push(|version| (version.starts_at_ms, version.ends_at_ms) = (now_ms - 2, now_ms - 1)).await;
    assert_eq!(sale.reserve(1, "ann", 3).await, ReserveOutcome::Ended);
    sale.push(|version| version.ends_at_ms = now_ms + HOUR_MS).await;
    assert_eq!(sale.reserve(1, "ann", 3).await, ReserveOutcome::LimitReached);
    assert_eq!(sale.reserve(1, "ann", 2).await, ReserveOutcome::SoldOut);
}

pub(crate) async fn a_batch_past_its_deadline_takes_nothing(ledger: Ledger) {
    let sale = Sale::open(ledger, "late", 5).await;
    let mut batch = sale.batch(vec![sale.request(1, "ann", 1)]);
    batch.deadline_ms = sale.now_ms - 1;
    assert_eq!(sale.ledger.reserve(&batch).await.unwrap_err(), LedgerError::DeadlinePassed);
    assert_eq!(sale.units().await, (5, 0, 0));
    assert_eq!(sale.state(1).await, IdState::Absent);
}

pub(crate) async fn a_batch_of_another_epoch_takes_nothing(ledger: Ledger) {
    let sale = Sale::open(ledger, "epoch", 5).await;
    let mut batch = sale.batch(vec![sale.request(1, "ann", 1)]);
    for epoch in [0, 2] {
        batch.epoch = epoch;
        let wrong = LedgerError::WrongEpoch { current: 1 };
        assert_eq!(sale.ledger.reserve(&batch).await.unwrap_err(), wrong);
    }
    assert_eq!(sale.units().await, (5, 0, 0));
}

pub(crate) async fn an_invalid_batch_takes_nothing(ledger: Ledger) {
    let sale = Sale::open(ledger, "invalid", 5).await;
    let zero = sale.batch(vec![sale.request(1, "ann", 1), sale.request(2, "bob", 0)]);
    assert!(matches!(sale.ledger.reserve(&zero).await.unwrap_err(), LedgerError::Invalid(_)));
    let huge = (0..=BATCH_MAX as u64).map(|n| sale.request(n, "ann", 1)).collect();
    let huge = sale.ledger.reserve(&sale.batch(huge)).await;
    assert!(matches!(huge.unwrap_err(), LedgerError::Invalid(_)));
    assert_eq!(sale.units().await, (5, 0, 0));
    let full = (0..BATCH_MAX as u64).map(|n| sale.request(n, &format!("user-{n}"), 1)).collect();
    assert_eq!(sale.reserve_all(full).await.outcomes.len(), BATCH_MAX);
    assert_eq!(sale.units().await, (0, 5, 0));
}

pub(crate) async fn limits_count_pending_and_confirmed_units(ledger: Ledger) {
    let sale = Sale::open(ledger, "limit", 9).await;
    assert_eq!(sale.reserve(1, "ann", 3).await, ReserveOutcome::LimitReached);
    sale.take(2, "ann", 1).await;
    assert_eq!(sale.reserve(3, "ann", 2).await, ReserveOutcome::LimitReached);
    sale.confirm(2, "ann", 1).await;
    assert_eq!(sale.reserve(4, "ann", 2).await, ReserveOutcome::LimitReached);
    sale.take(5, "ann", 1).await;
    assert_eq!(sale.reserve(6, "ann", 1).await, ReserveOutcome::LimitReached);
    sale.release(2, "ann", 1).await;
    sale.take(7, "ann", 1).await;
    sale.take(8, "bob", 2).await;
}

pub(crate) async fn not_enough_tells_what_is_left(ledger: Ledger) {
    let sale = Sale::open(ledger, "enough", 3).await;
    let answer = sale.reserve_all(vec![
        sale.request(1, "ann", 2),
        sale.request(2, "bob", 2),
        sale.request(3, "eve", 1),
    ]);
    let outcomes = answer.await.outcomes;
    assert_eq!(outcomes[1], ReserveOutcome::NotEnough { remaining: 1 });
    assert!(matches!(outcomes[2], ReserveOutcome::Pending { first: true, .. }));
    assert_eq!(sale.reserve(4, "bob", 2).await, ReserveOutcome::SoldOut);
    assert_eq!(sale.units().await, (0, 3, 0));
}

// Settling.

pub(crate) async fn confirm_of_the_unknown_takes_units_even_below_zero(ledger: Ledger) {
    let sale = Sale::open(ledger, "below", 2).await;
    sale.take(1, "ann", 2).await;
    for _ in 0..2 {
        sale.confirm(2, "bob", 2).await;
        assert_eq!(sale.units().await, (-2, 2, 2));
    }
    assert_eq!(sale.reserve(3, "bob", 1).await, ReserveOutcome::LimitReached);
    assert_eq!(sale.reserve(4, "eve", 1).await, ReserveOutcome::SoldOut);
    sale.release(1, "ann", 2).await;
    assert_eq!(sale.reserve(5, "eve", 1).await, ReserveOutcome::SoldOut);
    assert_eq!(sale.units().await, (0, 0, 2));
}

pub(crate) async fn the_confirmed_quantity_counts(ledger: Ledger) {
    let sale = Sale::open(ledger, "quantity", 5).await;
    sale.take(1, "ann", 2).await;
    sale.confirm(1, "ann", 1).await;
    assert_eq!(sale.units().await, (4, 0, 1));
    sale.take(2, "ann", 1).await;
    sale.release(1, "ann", 2).await;
    assert_eq!(sale.units().await, (4, 1, 0));
}

pub(crate) async fn release_gives_units_back_once(ledger: Ledger) {
    let sale = Sale::open(ledger, "release", 5).await;
    sale.take(1, "ann", 2).await;
    sale.take(2, "bob", 2).await;
    sale.confirm(2, "bob", 2).await;
    for _ in 0..2 {
        sale.release(1, "ann", 2).await;
        sale.release(2, "bob", 2).await;
        assert_eq!(sale.units().await, (5, 0, 0));
    }
    assert_eq!(sale.reserve(1, "ann", 1).await, ReserveOutcome::PassUsed);
    sale.take(3, "ann", 2).await;
}

pub(crate) async fn released_is_final_even_before_the_reservation(ledger: Ledger) {
    let sale = Sale::open(ledger, "final", 5).await;
    sale.release(1, "ann", 2).await;
    assert_eq!(sale.units().await, (5, 0, 0));
    assert_eq!(sale.reserve(1, "ann", 2).await, ReserveOutcome::PassUsed);
    sale.confirm(1, "ann", 2).await;
    assert_eq!(sale.units().await, (5, 0, 0));
    assert_eq!(sale.state(1).await, IdState::Released);
}

pub(crate) async fn states_follow_the_ids(ledger: Ledger) {
    let sale = Sale::open(ledger, "states", 9).await;
    sale.take(1, "ann", 1).await;
    sale.take(2, "bob", 1).await;
    sale.confirm(2, "bob", 1).await;
    sale.confirm(3, "eve", 1).await;
    sale.release(4, "dan", 1).await;
    let ids = [5, 4, 3, 2, 1].map(|n| sale.order(n));
    use IdState::{Absent, Confirmed, Pending, Released};
    let states = sale.ledger.states(sale.id(), &ids).await.unwrap();
    assert_eq!(states, [Absent, Released, Confirmed, Confirmed, Pending]);
}

pub(crate) async fn pending_is_listed_by_id_owner_and_page(ledger: Ledger) {
    let sale = Sale::open(ledger, "pending", 9).await;
    for (n, user) in [(3, "ann"), (1, "bob"), (4, "eve"), (2, "dan")] {
        sale.take(n, user, 1).await;
    }
    let mut foreign = sale.batch(vec![sale.request(5, "zoe", 1)]);
    foreign.owner = Owner(7);
    sale.ledger.reserve(&foreign).await.unwrap();
    sale.confirm(1, "bob", 1).await;
    sale.release(4, "eve", 1).await;
    let page = async |owner, after: Option<u64>, limit| {
        let after = after.map(|n| sale.order(n));
        let page = sale.ledger.pending(sale.id(), owner, after, limit).await.unwrap();
        page.into_iter().map(|(owner, r)| (owner.0, r.order_id.0 as u64)).collect::<Vec<_>>()
    };
    assert_eq!(page(None, None, 10).await, [(0xF1, 2), (0xF1, 3), (7, 5)]);
    assert_eq!(page(Some(OWNER), None, 10).await, [(0xF1, 2), (0xF1, 3)]);
    assert_eq!(page(None, None, 1).await, [(0xF1, 2)]);
    assert_eq!(page(None, Some(2), 1).await, [(0xF1, 3)]);
    assert_eq!(page(Some(Owner(7)), Some(2), 1).await, [(7, 5)]);
    assert_eq!(page(None, Some(5), 10).await, []);
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

// The gate.

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
    let wrong = GrantRequest { user: user_id("zoe"), order_id: sale.order(5), expires_at_ms: later };
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
    let soon = sale.ledger.now_ms().await.unwrap() + 100;
    assert_eq!(sale.grant(1, "ann", soon).await, GrantOutcome::Granted);
    while sale.ledger.now_ms().await.unwrap() <= soon {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sale.grant(2, "bob", soon + HOUR_MS).await, GrantOutcome::Granted);
    assert_eq!(sale.grant(3, "ann", soon + HOUR_MS).await, GrantOutcome::GateFull);
}

pub(crate) async fn no_gate_grants_while_stock_lasts(ledger: Ledger) {
    let sale = Sale::open(ledger, "open-gate", 1).await;
    for n in 1..=5 {
        assert_eq!(sale.grant(n, "ann", u64::MAX >> 16).await, GrantOutcome::Granted);
    }
    sale.take(1, "ann", 1).await;
    assert_eq!(sale.grant(6, "ann", u64::MAX >> 16).await, GrantOutcome::SoldOut);
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
