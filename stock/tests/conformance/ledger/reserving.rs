//! Taking units.

use stock::LedgerError;
use stock::ledger::{BATCH_MAX, IdState, Ledger, ReserveOutcome};

use super::{HOUR_MS, Sale, user_id};

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
    assert_eq!(sale.reserve(1, "ann", 3).await, limit_reached(&sale, []));
    assert_eq!(sale.reserve(1, "ann", 2).await, ReserveOutcome::SoldOut);
}

pub(crate) async fn a_batch_past_its_deadline_takes_nothing(ledger: Ledger) {
    let sale = Sale::open(ledger, "late", 5).await;
    let mut batch = sale.batch(vec![sale.request(1, "ann", 1)]);
    // Over, and of a clock that was put back by an hour since.
    for deadline_ms in [sale.now_ms - 1, sale.now_ms + HOUR_MS] {
        batch.deadline_ms = deadline_ms;
        assert_eq!(sale.ledger.reserve(&batch).await.unwrap_err(), LedgerError::DeadlinePassed);
    }
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
    assert_eq!(sale.reserve(1, "ann", 3).await, limit_reached(&sale, []));
    sale.take(2, "ann", 1).await;
    assert_eq!(sale.reserve(3, "ann", 2).await, limit_reached(&sale, [2]));
    sale.confirm(2, "ann", 1).await;
    assert_eq!(sale.reserve(4, "ann", 2).await, limit_reached(&sale, [2]));
    sale.take(5, "ann", 1).await;
    assert_eq!(sale.reserve(6, "ann", 1).await, limit_reached(&sale, [2, 5]));
    sale.release(2, "ann", 1).await;
    sale.take(7, "ann", 1).await;
    sale.take(8, "bob", 2).await;
}

fn limit_reached(sale: &Sale, held: impl IntoIterator<Item = u64>) -> ReserveOutcome {
    ReserveOutcome::LimitReached { order_ids: held.into_iter().map(|n| sale.order(n)).collect() }
}

pub(crate) async fn a_batch_counts_what_it_took_itself(ledger: Ledger) {
    let sale = Sale::open(ledger, "counts", 9).await;
    sale.take(1, "ann", 1).await;
    let answer = sale.reserve_all(vec![
        sale.request(2, "ann", 1),
        sale.request(3, "ann", 1),
        sale.request(4, "bob", 2),
        sale.request(5, "bob", 1),
    ]);
    let outcomes = answer.await.outcomes;
    assert_eq!(outcomes[1], limit_reached(&sale, [1, 2]));
    assert_eq!(outcomes[3], limit_reached(&sale, [4]));
    assert_eq!(sale.mine("ann").await, [(1, true), (2, true)]);
}

pub(crate) async fn other_terms_refuse_what_is_new_and_a_record_names_its_version(ledger: Ledger) {
    let mut sale = Sale::open(ledger, "terms", 9).await;
    let before = sale.reserve(1, "ann", 1).await;
    let ReserveOutcome::Pending { reservation, .. } = &before else { panic!("{before:?}") };
    assert_eq!(reservation.sale_version, Some(1));
    // A restock changes no terms.
    sale.push(|version| version.total = 10).await;
    let outcome = sale.reserve(2, "bob", 1).await;
    let ReserveOutcome::Pending { reservation, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(reservation.sale_version, Some(2));
    sale.push(|version| (version.terms_version, version.paused) = (version.version, true)).await;
    for n in [3, 4] {
        let outcomes = sale.reserve_all((3..=n).map(|n| sale.request(n, "eve", 1)).collect()).await.outcomes;
        assert!(outcomes.iter().all(|outcome| *outcome == ReserveOutcome::TermsDiffer), "{outcomes:?}");
    }
    // What was taken before keeps its answer, and its version.
    let again = sale.reserve(1, "ann", 1).await;
    let ReserveOutcome::Pending { first: false, reservation } = &again else { panic!("{again:?}") };
    assert_eq!(reservation.sale_version, Some(1));
    sale.push(|version| version.paused = false).await;
    let mut batch = sale.batch(vec![sale.request(5, "eve", 1)]);
    batch.terms_version = 3;
    let outcome = sale.ledger.reserve(&batch).await.unwrap().outcomes.remove(0);
    let ReserveOutcome::Pending { reservation, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(reservation.sale_version, Some(4));
    assert_eq!(sale.units().await, (7, 3, 0));
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
