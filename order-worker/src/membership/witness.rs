//! A member's word on which ledger it sees, in its row of the registry once a second. See [`crate::database::witness`] for what it
//! is good for. It begins nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use stock::{LedgerIdentity, Owner, Stock};
use tokio::time::{Instant, sleep};

use crate::database::Database;

/// How often it is written: a word counts for 5 s.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether another ledger is seen. Costs no call.
const LOOK: Duration = Duration::from_millis(200);

/// Under which id the registry knows this process: by the log that it appends to. A worker's log may be opened late, lost and opened
/// anew under another id; without one the process is nobody's witness, and decides as everybody does.
#[derive(Debug, Clone, Default)]
pub struct MemberRow(Arc<Mutex<Option<Owner>>>);

impl MemberRow {
    /// Of a process whose log is open.
    #[must_use]
    pub fn of(owner: Owner) -> Self {
        Self(Arc::new(Mutex::new(Some(owner))))
    }

    /// The registry has a row of this log, or no longer one of ours.
    pub fn set(&self, owner: Option<Owner>) {
        *self.0.lock() = owner;
    }

    /// The row that is ours now.
    #[must_use]
    pub fn get(&self) -> Option<Owner> {
        *self.0.lock()
    }
}

/// Writes for ever. A ledger in this process's memory is seen by nobody else: there is nothing to bear witness to.
pub(super) async fn keep(database: Database, stock: Arc<Stock>, row: MemberRow) {
    let mut written: Option<(LedgerIdentity, Instant)> = None;
    loop {
        let seen = match stock.ledger().sight() {
            Ok(None) => std::future::pending().await,
            Ok(Some(sight)) => Some(sight.ledger).filter(|_| sight.is_witness),
            // Its last word stays: the ledger may just be restarting, and nobody is to take its place meanwhile.
            Err(_) => None,
        };
        let is_due = |ledger: &LedgerIdentity| match &written {
            // Another one at once: those that wait for this process to move on wait no longer.
            Some((last, at)) => last != ledger || at.elapsed() >= INTERVAL,
            None => true,
        };
        if let (Some(member), Some(ledger)) = (row.get(), seen.filter(is_due)) {
            // A crash before it leaves the last word, which ends by itself after 5 s.
            match database.bear_witness(member, ledger.clone()).await {
                Ok(()) => written = Some((ledger, Instant::now())),
                Err(error) => tracing::debug!(%error, "which ledger is seen could not be written"),
            }
        }
        sleep(LOOK).await;
    }
}
