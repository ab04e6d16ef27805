//! The journal port: who changed what. Its rows are written by the changes themselves, which name their [`Author`]; here they are
//! read, and a secret is tied to the chain.
//!
//! Every adapter
//! - MUST write the row of an author's change in the change's own transaction, and none where nothing was changed;
//! - MUST chain rows under the lock of one row that keeps the chain's end, taken after every other lock of the transaction: so
//!   `seq` has no gap, and changers only ever wait for each other one way;
//! - MUST refuse a change whose author's secret is not the one that the chain is tied to;
//! - MUST NOT keep a secret.
//!
//! [`Author`]: crate::journal::Author

use super::{Database, DatabaseError, adapter};
use crate::journal::{ForeignKey, Head, JournalKey, NoHash, Record};

impl Database {
    /// Ties the chain to this secret if it is tied to none. Of several that ask at once one decides; may be repeated.
    ///
    /// # Errors
    /// [`DatabaseError::Broken`] when it is tied to another one, in words for an operator.
    pub async fn tie_journal(&self, key: &JournalKey) -> Result<(), DatabaseError> {
        adapter!(self, database => database.tie_journal(key.clone()).await)
    }

    /// A page of rows by `seq`, those behind `after`; fewer than `limit` means that it was the last. Not judged: see
    /// [`crate::journal::Chain`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn journal(&self, after: u64, limit: usize) -> Result<Vec<Record>, DatabaseError> {
        adapter!(self, database => database.journal(after, limit).await)
    }

    /// The chain's end as it is kept, and as the last row has it, of one moment. They differ where somebody has changed one by hand.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn journal_head(&self) -> Result<(Head, Head), DatabaseError> {
        adapter!(self, database => database.journal_head().await)
    }
}

impl From<ForeignKey> for DatabaseError {
    fn from(error: ForeignKey) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<NoHash> for DatabaseError {
    fn from(_: NoHash) -> Self {
        Self::Broken(
            "the journal's end in floodgate_meta was changed by hand: see \"The journal\" in docs/mysql.md"
                .into(),
        )
    }
}

/// The last row's place, from what may have been changed by hand: a text that is no hash counts as none.
pub(super) fn last_row(row: Option<(u64, String)>) -> Head {
    row.map(|(seq, hash)| Head { seq, hash: hash.parse().unwrap_or_default() }).unwrap_or_default()
}
