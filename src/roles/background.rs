//! What follows promised orders: the drain, and beside it relay and reconciler, which keep ledger and database equal, what closes orders and
//! moves money unasked, and the membership, which keeps the ledger complete.

use std::future::Future;
use std::sync::Arc;

use order_worker::{Closing, DrainError, Member, Pace, Reconciler, Relay, WorkerMetrics};
use tokio::sync::watch;

use super::Foundation;

/// Runs all of them until `stopping`. The drain alone decides when it ends: one that has stopped must not go unnoticed
/// behind the others.
pub(super) async fn follow(
    foundation: Foundation,
    (pace, metrics): (Arc<Pace>, WorkerMetrics),
    (closing, money): (Arc<Closing>, impl Future<Output = ()>),
    mut member: Member,
    drain: impl Future<Output = Result<(), DrainError>>,
    stopping: watch::Receiver<bool>,
) -> Result<(), DrainError> {
    let Foundation { now, database, stock } = foundation;
    let relay = Relay::new(database.clone(), stock.clone(), metrics.clone());
    let reconciler = Reconciler::new(database, stock, pace, now, metrics);
    // Of its own: it gives its lease back after the drain has ended.
    let membership = tokio::spawn({
        let stopping = stopping.clone();
        async move { member.run(stopping).await }
    });
    let beside = async {
        let closing = closing.by_index(stopping.clone());
        tokio::join!(relay.run(stopping.clone()), reconciler.run(stopping), closing, money);
        std::future::pending().await
    };
    let drained: Result<(), DrainError> = tokio::select! {
        biased;
        drained = drain => drained,
        never = beside => never,
    };
    drained?;
    // It can only have ended, or panicked and said so.
    let _ = membership.await;
    Ok(())
}
