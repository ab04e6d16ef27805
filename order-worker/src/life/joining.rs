//! Payments that came before their order's row find it; those whose order never comes go back. The rules stand in the database's port:
//! this is when they are asked.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::database::{Database, DatabaseError};

/// Between two looks for rows that have come: half of what a buyer may wait.
const JOIN_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks for payments that have waited for too long.
const OVERDUE_INTERVAL: Duration = Duration::from_secs(60);
/// Payments at once.
const PAGE: usize = 64;

/// Joins until `shutdown` is true or its sender gone; what has been unmatched for `refund_after_ms` goes back.
pub async fn join_payments(database: Database, refund_after_ms: u64, mut shutdown: watch::Receiver<bool>) {
    let mut looked_at = None::<Instant>;
    loop {
        let is_time = looked_at.is_none_or(|at| at.elapsed() >= OVERDUE_INTERVAL);
        match pass(&database, is_time.then_some(refund_after_ms)).await {
            Ok(()) if is_time => looked_at = Some(Instant::now()),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "payments without an order cannot be looked at; they are tried again")
            }
        }
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => return,
            () = sleep(JOIN_INTERVAL) => {}
        }
    }
}

async fn pass(database: &Database, refund_after_ms: Option<u64>) -> Result<(), DatabaseError> {
    while database.join_unmatched(PAGE).await? == PAGE {}
    if let Some(refund_after_ms) = refund_after_ms {
        while database.refund_unmatched(refund_after_ms, PAGE).await? == PAGE {}
    }
    Ok(())
}
