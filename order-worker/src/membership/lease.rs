//! The lease, and who is taken for dead.
//!
//! A lease guards nothing: whoever is taken for dead and is not appends what others append as well, which is harmless. It only
//! says whose reservations somebody else should look after.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stock::{Owner, Stock};
use tokio::time::{Instant, sleep};

use super::OwnLog;
use super::merge::RebuildError;
use crate::database::{Database, Instance};
use crate::metrics::MembershipMetrics;

/// How long a lease lasts by the ledger's clock.
pub(super) const LEASE_MS: u64 = 5_000;
/// How often it is renewed.
const INTERVAL: Duration = Duration::from_millis(LEASE_MS / 3);

/// Renews the lease of `own` and tells its epoch gate whose reservations to look after, for ever.
pub(super) async fn keep(
    database: Database,
    stock: Arc<Stock>,
    own: Option<OwnLog>,
    metrics: MembershipMetrics,
    forgotten: Arc<AtomicBool>,
) {
    let Some(own) = own else { return std::future::pending().await };
    let (mut absent, mut is_failing) = (BTreeMap::new(), false);
    loop {
        let looked = look(&database, &stock, &own, &mut absent).await;
        note_outcome(looked.as_ref().err(), &mut is_failing, &own, &metrics);
        match looked {
            Ok(Some(orphans)) => {
                metrics.orphans(orphans.len());
                own.epoch_gate.look_after(&orphans);
            }
            Ok(None) => forgotten.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        sleep(INTERVAL).await;
    }
}

/// Says the first failure of several, and their end; `/readyz` notes it meanwhile.
fn note_outcome(
    error: Option<&RebuildError>,
    is_failing: &mut bool,
    own: &OwnLog,
    metrics: &MembershipMetrics,
) {
    match error {
        Some(error) => {
            metrics.lease_failed();
            if !*is_failing {
                tracing::warn!(%error, "the lease could not be renewed: without it others take this instance for dead");
            }
        }
        None if *is_failing => tracing::info!("the lease is renewed again"),
        None => {}
    }
    *is_failing = error.is_some();
    own.epoch_gate.note_lease(!*is_failing);
}

/// Renews, and answers whose reservations are ours to look after; `None`: the registry lacks our log, or has another opening of it.
async fn look(
    database: &Database,
    stock: &Stock,
    own: &OwnLog,
    absent: &mut BTreeMap<Owner, Instant>,
) -> Result<Option<Vec<Owner>>, RebuildError> {
    stock.renew_lease(own.owner, LEASE_MS).await?;
    let (_, leases) = stock.leases().await?;
    let is_leased = |owner: Owner| leases.iter().any(|(leased, _)| *leased == owner);
    // A log without promises belongs to nobody who reserves, one that was left out to nobody who is waited for: neither has a lease, and
    // nothing of it is to be looked after.
    let registered = database.instances().await?.into_iter().filter(Instance::takes_part);
    let (registered, openings): (Vec<Owner>, Vec<_>) =
        registered.map(|instance| (instance.owner, instance.opening)).unzip();
    let ours = registered.iter().position(|owner| *owner == own.owner).and_then(|at| openings[at]);
    if ours != Some(own.opening) {
        return Ok(None);
    }
    // A ledger that forgot everything forgot all leases: whoever lives renews long before this.
    absent.retain(|owner, _| registered.contains(owner) && !is_leased(*owner));
    for owner in registered.iter().filter(|owner| !is_leased(**owner)) {
        absent.entry(*owner).or_insert_with(Instant::now);
    }
    // One after the other, so that usually one alone does it.
    let rank = registered.iter().filter(|owner| is_leased(**owner) && **owner < own.owner).count();
    let patience = Duration::from_millis(LEASE_MS) * (1 + u32::try_from(rank).unwrap_or(u32::MAX - 1));
    let orphans = absent.iter().filter(|(owner, since)| **owner != own.owner && since.elapsed() >= patience);
    Ok(Some(orphans.map(|(owner, _)| *owner).collect()))
}
