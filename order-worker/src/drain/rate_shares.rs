//! Equal shares of the limit among the workers that drain: each says every second that it lives, and hears what it may use.
//!
//! The heart of it is in [`crate::database::shares`]. At every moment the shares in use add up to the whole at most. A worker that is to use less goes down first and says so
//! afterwards; one that is to use more waits until the database says that it may. A worker that dies keeps its share until its time
//! is over, by the database's clock; by its own clock, counted from before it spoke, its time is over no later.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::pace::Pace;
use crate::database::{Beat, Database, DatabaseError, Share};

/// Between two beats …
const INTERVAL: Duration = Duration::from_secs(1);
/// … and while others still hold what is ours.
const INTERVAL_SHORT: Duration = Duration::from_millis(200);
/// How long a worker that says nothing keeps its share.
const TTL: Duration = Duration::from_secs(5);
/// Longest wait for the database's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Runs `drains` at this worker's share until they end, and gives it back.
pub async fn within<T>(
    drains: impl Future<Output = T>,
    (database, pace, worker): (Database, Arc<Pace>, u64),
    shutdown: watch::Receiver<bool>,
) -> T {
    let (sharing, mut drains) = (run(database, pace, worker, shutdown), std::pin::pin!(drains));
    tokio::select! {
        biased;
        ended = &mut drains => ended,
        // They end their batches.
        () = sharing => drains.await,
    }
}

/// Keeps `pace` at this worker's share until `shutdown`; from the call on it has none until the database's first answer. While it
/// has no drain it takes no share. `worker` is random.
pub fn run(
    database: Database,
    pace: Arc<Pace>,
    worker: u64,
    mut shutdown: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send {
    pace.set_share(0, Instant::now());
    async move {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|down| *down) => {}
            () = keep(&database, &pace, worker) => {}
        }
        give_up(&database, &pace, worker).await;
    }
}

async fn keep(database: &Database, pace: &Pace, worker: u64) {
    let mut drains = pace.drains();
    let mut reachable = true;
    loop {
        // A closed channel is impossible: the pace is ours.
        let _ = drains.wait_for(|drains| *drains > 0).await;
        let interval = match beat(database, pace, worker).await {
            Ok(share) => {
                if !std::mem::replace(&mut reachable, true) {
                    tracing::info!(workers = share.workers, "a share of the drain's limit again");
                }
                if share.is_less_than_equal() { INTERVAL_SHORT } else { INTERVAL }
            }
            Err(error) => {
                if std::mem::replace(&mut reachable, false) {
                    tracing::warn!(%error, "the share of the drain's limit cannot be renewed");
                }
                INTERVAL_SHORT
            }
        };
        let idle = async { _ = drains.wait_for(|drains| *drains == 0).await };
        if timeout(interval, idle).await.is_ok() {
            give_up(database, pace, worker).await;
        }
    }
}

/// One beat, or two where the first says to go down.
async fn beat(database: &Database, pace: &Pace, worker: u64) -> Result<Share, DatabaseError> {
    loop {
        let (spoken_at, holding_ppm) = (Instant::now(), pace.share_ppm());
        let ttl_ms = u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX);
        let answer = timeout(ANSWER_MAX, database.renew_share(Beat { worker, holding_ppm, ttl_ms })).await;
        let share = answer.map_err(|_| DatabaseError::Unavailable("no answer in time".into()))??;
        pace.set_share(share.ppm, spoken_at + TTL);
        if share.ppm >= holding_ppm {
            return Ok(share);
        }
    }
}

async fn give_up(database: &Database, pace: &Pace, worker: u64) {
    pace.set_share(0, Instant::now());
    // Unheard, the share comes free by itself.
    let _ = timeout(ANSWER_MAX, database.end_share(worker)).await;
}
