//! Two deployments that name the same sale on one ledger.

use super::*;

/// The same sale, as the other deployment would have it: published there, too, with another total.
fn as_of(ledger: Ledger, sale: &Sale, total: u32) -> Sale {
    Sale { ledger, version: SaleVersion { total, ..sale.version.clone() }, now_ms: sale.now_ms }
}

fn is_foreign<T: std::fmt::Debug>(what: &str, answer: Result<T, LedgerError>, sale: &Sale) {
    match answer {
        Err(error @ LedgerError::Foreign { .. }) => {
            let said = error.to_string();
            assert!(said.contains(sale.id().as_str()) && said.contains("floodgate ledger adopt"), "{said}");
            assert!(error.took_nothing() && !error.is_retryable(), "{what}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

pub(crate) async fn another_deployments_sale_is_refused_everything((first, second): (Ledger, Ledger)) {
    let ours = Sale::open(first, "foreign", 10).await;
    ours.take(1, "a", 1).await;
    ours.take(2, "b", 2).await;
    ours.confirm(1, "a", 1).await;
    let before = ours.snapshot().await;

    let theirs = as_of(second, &ours, 3);
    let (ledger, sale) = (&theirs.ledger, theirs.id());
    is_foreign("snapshot", ledger.snapshot(sale).await, &theirs);
    is_foreign("one", ledger.reserve(&theirs.batch(vec![theirs.request(3, "c", 1)])).await, &theirs);
    let many = vec![theirs.request(3, "c", 1), theirs.request(4, "d", 1)];
    is_foreign("many", ledger.reserve(&theirs.batch(many)).await, &theirs);
    let (user, order_id) = (user_id("c"), theirs.order(3));
    let expires_at_ms = theirs.now_ms + HOUR_MS;
    let request = GrantRequest { user, order_id, expires_at_ms, counts_until_ms: expires_at_ms };
    is_foreign("grant", ledger.grant(sale, 1, &request).await, &theirs);
    is_foreign("confirm", ledger.confirm(sale, &[theirs.settlement(2, "b", 2)]).await, &theirs);
    is_foreign("release", ledger.release(sale, &[theirs.settlement(2, "b", 2)]).await, &theirs);
    is_foreign("states", ledger.states(sale, &[theirs.order(2)]).await, &theirs);
    is_foreign("pending", ledger.pending(sale, None, None, 10).await, &theirs);
    let newer = SaleVersion { version: 9, paused: true, ..theirs.version.clone() };
    is_foreign("push", ledger.push_sale(&newer).await, &theirs);
    for epoch in [1, 2, 9] {
        is_foreign("install", ledger.install(&newer, epoch).await, &theirs);
        is_foreign("open", ledger.open(sale, epoch).await, &theirs);
        is_foreign("restore", ledger.restore(sale, epoch, OWNER, &[]).await, &theirs);
    }
    is_foreign("forget", ledger.forget(sale).await, &theirs);

    assert_eq!(ours.snapshot().await, before, "nothing of it moved");
    ours.take(3, "c", 1).await;
}

pub(crate) async fn all_connections_to_one_memory_see_one_name((first, second): (Ledger, Ledger)) {
    let [first, second] = [first, second].map(|ledger| ledger.sight().unwrap().unwrap());
    assert_eq!(first.ledger, second.ledger);
    assert!(first.is_witness && first.ledger.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
}

pub(crate) async fn whoever_installs_first_has_the_sale((first, second): (Ledger, Ledger)) {
    let ours = Sale::named(first, "first", 10).await;
    let theirs = as_of(second, &ours, 3);
    assert!(matches!(theirs.ledger.snapshot(theirs.id()).await, Err(LedgerError::UnknownSale(_))));
    theirs.ledger.install(&theirs.version, 1).await.unwrap();
    is_foreign("closed", ours.ledger.install(&ours.version, 2).await, &ours);
    theirs.ledger.open(theirs.id(), 1).await.unwrap();
    is_foreign("open", ours.ledger.install(&ours.version, 2).await, &ours);

    // Settled there and forgotten, it is nobody's.
    theirs.ledger.forget(theirs.id()).await.unwrap();
    ours.install_and_open().await;
    is_foreign("afterwards", theirs.ledger.install(&theirs.version, 2).await, &theirs);
}

pub(crate) async fn an_adopted_sale_is_a_lost_memory((first, second): (Ledger, Ledger)) {
    let old = Sale::named(first, "adopted", 10).await;
    let newer = SaleVersion { version: 7, ..old.version.clone() };
    old.ledger.install(&newer, 5).await.unwrap();
    old.ledger.open(old.id(), 5).await.unwrap();

    let new = as_of(second, &old, 3);
    let (ledger, sale) = (&new.ledger, new.id());
    assert_eq!(ledger.adopt(sale).await, Ok(Some(5)), "the epoch that it had");
    assert_eq!(ledger.snapshot(sale).await, Err(LedgerError::Amnesia));
    let batch = new.batch(vec![new.request(1, "a", 1)]);
    assert_eq!(ledger.reserve(&batch).await.map(|_| ()), Err(LedgerError::Amnesia));
    assert_eq!(ledger.open(sale, 5).await, Err(LedgerError::Amnesia));
    assert_eq!(ledger.adopt(sale).await, Ok(None), "once");
    is_foreign("the one it was taken from", old.ledger.snapshot(sale).await, &old);
    is_foreign("its late install", old.ledger.install(&newer, 6).await, &old);

    // Rebuilt at whatever epoch this deployment has, from what it knows.
    new.install_and_open().await;
    let snapshot = new.snapshot().await;
    assert_eq!((snapshot.epoch, snapshot.version, snapshot.total, snapshot.remaining), (1, 1, 3, 3));
    new.take(1, "a", 1).await;
}

pub(crate) async fn nothing_is_adopted_that_is_not_anothers((first, second): (Ledger, Ledger)) {
    let ours = Sale::named(first, "kept", 10).await;
    let theirs = as_of(second, &ours, 3);
    assert_eq!(theirs.ledger.adopt(theirs.id()).await, Ok(None), "what nobody installed");
    assert!(matches!(theirs.ledger.snapshot(theirs.id()).await, Err(LedgerError::UnknownSale(_))));
    ours.install_and_open().await;
    ours.take(1, "a", 2).await;
    let before = ours.snapshot().await;
    assert_eq!(ours.ledger.adopt(ours.id()).await, Ok(None), "what is one's own");
    assert_eq!(ours.snapshot().await, before);
}
