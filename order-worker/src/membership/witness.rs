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
/// For so long a member that is connected to no ledger repeats its last word: a server that restarts within it keeps the sales, though
/// another member sees another server. Afterwards the word ends as that of a dead process does.
const REPEATED_MAX: Duration = Duration::from_secs(60);
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

/// What this process has said last.
#[derive(Debug, Default)]
struct Said(Option<Word>);

#[derive(Debug)]
struct Word {
    ledger: LedgerIdentity,
    seen_at: Instant,
    written_at: Option<Instant>,
}

impl Said {
    /// What is to be written at `now`, if anything is.
    fn due(&mut self, now: Instant, sight: Result<Option<LedgerIdentity>, ()>) -> Option<LedgerIdentity> {
        match (sight, &mut self.0) {
            (Ok(Some(seen)), Some(word)) if seen == word.ledger => word.seen_at = now,
            // Another one at once: those that wait for this process to move on wait no longer.
            (Ok(Some(seen)), word) => *word = Some(Word { ledger: seen, seen_at: now, written_at: None }),
            // It may not vouch for what it sees: its last word ends by itself.
            (Ok(None), _) => return None,
            (Err(()), Some(word)) if now - word.seen_at < REPEATED_MAX => {}
            (Err(()), _) => return None,
        }
        let word = self.0.as_ref()?;
        word.written_at.is_none_or(|at| now - at >= INTERVAL).then(|| word.ledger.clone())
    }

    fn written(&mut self, now: Instant) {
        if let Some(word) = &mut self.0 {
            word.written_at = Some(now);
        }
    }
}

/// Writes for ever. A ledger in this process's memory is seen by nobody else: there is nothing to bear witness to.
pub(super) async fn keep(database: Database, stock: Arc<Stock>, row: MemberRow) {
    let mut said = Said::default();
    loop {
        let sight = match stock.ledger().sight() {
            Ok(None) => std::future::pending().await,
            Ok(Some(sight)) => Ok(sight.is_witness.then_some(sight.ledger)),
            Err(_) => Err(()),
        };
        let now = Instant::now();
        if let Some(ledger) = said.due(now, sight)
            && let Some(member) = row.get()
        {
            // A crash before it leaves the last word, which ends by itself after 5 s.
            match database.bear_witness(member, ledger).await {
                Ok(()) => said.written(now),
                Err(error) => tracing::debug!(%error, "which ledger is seen could not be written"),
            }
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_a_connection_repeats_its_last_word_for_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let seen = |name: &str| Ok(Some(LedgerIdentity::new(name)));
        let one = Some(LedgerIdentity::new("one"));
        let mut said = Said::default();
        assert_eq!(said.due(at(0), Err(())), None, "it has seen nothing yet");
        assert_eq!(said.due(at(0), seen("one")), one);
        assert_eq!(said.due(at(0), seen("one")), one, "that was not written");
        said.written(at(0));
        assert_eq!(said.due(at(0), seen("one")), None, "once a second");
        for second in 1..60 {
            assert_eq!(said.due(at(second), Err(())), one, "after {second} s");
            said.written(at(second));
        }
        assert_eq!(said.due(at(60), Err(())), None, "it ends");
        assert_eq!(said.due(at(61), seen("one")), one);
        said.written(at(61));
        assert_eq!(said.due(at(63), Ok(None)), None, "nor does one that is in doubt repeat it");
        assert_eq!(said.due(at(63), seen("two")), Some(LedgerIdentity::new("two")), "the new one at once");
    }
}
