//! Leases of instances.

use std::time::Duration;

use super::*;

/// An owner that no other test or run has: adapters may share a server.
pub(super) fn fresh_owner() -> Owner {
    Owner(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64)
}

async fn lease_of(ledger: &Ledger, owner: Owner) -> Option<u64> {
    let (now_ms, leases) = ledger.leases().await.unwrap();
    assert!(leases.iter().all(|(_, until_ms)| *until_ms > now_ms), "an ended lease is shown: {leases:?}");
    assert!(leases.is_sorted_by_key(|(owner, _)| *owner), "not by owner: {leases:?}");
    leases.into_iter().find(|(held_by, _)| *held_by == owner).map(|(_, until_ms)| until_ms)
}

pub(crate) async fn a_lease_lasts_as_long_as_it_was_renewed_for(ledger: Ledger) {
    let owner = fresh_owner();
    assert_eq!(lease_of(&ledger, owner).await, None);
    let before_ms = ledger.now_ms(ledger.leases_server()).await.unwrap();
    let at_ms = ledger.renew_lease(owner, HOUR_MS).await.unwrap();
    assert!(at_ms >= before_ms, "the ledger's own time is answered");
    assert_eq!(lease_of(&ledger, owner).await, Some(at_ms + HOUR_MS));
    let at_ms = ledger.renew_lease(owner, 2 * HOUR_MS).await.unwrap();
    assert_eq!(lease_of(&ledger, owner).await, Some(at_ms + 2 * HOUR_MS));
    let at_ms = ledger.renew_lease(owner, HOUR_MS).await.unwrap();
    assert_eq!(lease_of(&ledger, owner).await, Some(at_ms + HOUR_MS), "the last renewal decides");
    let other = Owner(owner.0 + 1);
    ledger.renew_lease(other, HOUR_MS).await.unwrap();
    ledger.end_lease(owner).await.unwrap();
    assert_eq!(lease_of(&ledger, owner).await, None);
    assert!(lease_of(&ledger, other).await.is_some(), "another's lease is untouched");
    ledger.end_lease(other).await.unwrap();
}

pub(crate) async fn a_lease_ends_by_itself_or_by_its_owner(ledger: Ledger) {
    let owner = fresh_owner();
    let at_ms = ledger.renew_lease(owner, 20).await.unwrap();
    while ledger.now_ms(ledger.leases_server()).await.unwrap() < at_ms + 20 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(lease_of(&ledger, owner).await, None);
    ledger.renew_lease(owner, HOUR_MS).await.unwrap();
    assert!(lease_of(&ledger, owner).await.is_some(), "an ended lease can be renewed");
    for _ in 0..2 {
        ledger.end_lease(owner).await.unwrap();
        assert_eq!(lease_of(&ledger, owner).await, None);
    }
}
