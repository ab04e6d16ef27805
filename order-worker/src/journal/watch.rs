//! Says every hour where the journal ends, so that an end that is cut off later shows against the process's log. Changes nothing.

use stock::Now;

use super::Head;
use crate::database::{Database, DatabaseError};

/// How often the head is logged.
const INTERVAL_MS: u64 = 3_600_000;

/// Looks at the journal's head when it is time.
pub struct HeadWatch {
    database: Database,
    now: Now,
    /// When it was last logged, and what.
    last: Option<(u64, Head)>,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was not time.
    Nothing,
    /// Logged.
    Head(Head),
    /// Logged as an error: it is not where it was, or not where the last row is.
    Damaged(Head),
}

impl HeadWatch {
    /// Starts nothing yet; the first look is due at once.
    #[must_use]
    pub fn new(database: Database, now: Now) -> Self {
        Self { database, now, last: None }
    }

    /// Logs the head if an hour has passed since the last time, or the clock was set back.
    ///
    /// # Errors
    /// See [`DatabaseError`]; the next call looks again.
    pub async fn look(&mut self) -> Result<Seen, DatabaseError> {
        let now_ms = (self.now)();
        let is_due = |last_ms: u64| !(last_ms..last_ms + INTERVAL_MS).contains(&now_ms);
        if self.last.is_some_and(|(last_ms, _)| !is_due(last_ms)) {
            return Ok(Seen::Nothing);
        }
        let (head, last_row) = self.database.journal_head().await?;
        let before = self.last.replace((now_ms, head)).map(|(_, head)| head);
        let is_cut_off = before.is_some_and(|before| {
            head.seq < before.seq || head.seq == before.seq && head.hash != before.hash
        });
        if head != last_row || is_cut_off {
            tracing::error!(
                %head,
                %last_row,
                before = before.map(|before| before.to_string()),
                "the journal's end is not what was written: rows were changed or cut off by hand"
            );
            return Ok(Seen::Damaged(head));
        }
        tracing::info!(%head, "the journal's head: keep it, an end that is cut off shows against it alone");
        Ok(Seen::Head(head))
    }
}
