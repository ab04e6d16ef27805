//! Which ledger the present life was built on, which one each member sees, and the rule by which a member may begin the next life.
//!
//! Two processes of one database whose configurations name two servers, or that a partition leaves on two primaries, each find
//! the sales missing where they look. If each began a life then, they would do so against each other for ever. So a
//! life is recorded with the ledger that it is built on, every member writes each second which ledger it sees, and another
//! ledger takes over only once nobody has seen the recorded one for 5 s. Who saw it and now sees another has moved on, and is not waited
//! for: after an honest restart all do. A member that sees none repeats its last word for a minute, since the recorded ledger may just be
//! restarting. Of several other ledgers the one that most members see takes over: after an outage one member that names another server
//! does not take the sales away from the rest.

use std::collections::BTreeMap;

use stock::{LedgerIdentity, LedgerSight, Owner, SaleId, Timestamp};

use super::{Database, DatabaseError, adapter};

/// For so long, by the database's clock, a member's word counts after it was written. What is further ahead than this was written
/// before the clock was put back, and counts no more.
pub const WITNESS_MAX_MS: u64 = 5_000;

/// The present life of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// 0 before the first.
    pub epoch: u64,
    /// What it was built on; `None`: one in a process's memory, or unknown.
    pub ledger: Option<LedgerIdentity>,
}

/// A member, and what it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Whose row in the registry says so; `None`: it has none, and is nobody's witness.
    pub member: Option<Owner>,
    /// `None`: a ledger in its own memory.
    pub ledger: Option<LedgerSight>,
}

impl Sight {
    /// What its row is to say from now on; `None`: its last word stays, and ends by itself.
    pub(super) fn word(&self) -> Option<(Owner, &LedgerIdentity)> {
        let sight = self.ledger.as_ref().filter(|sight| sight.is_witness)?;
        Some((self.member?, &sight.ledger))
    }

    /// What a life that it begins is built on.
    pub(super) fn seen(&self) -> Option<&LedgerIdentity> {
        self.ledger.as_ref().map(|sight| &sight.ledger)
    }
}

/// What the ledger has of a sale whose row was put back to an older state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// The row's goes above it.
    pub version: u64,
    /// An operator paused the sale, and the row may not know.
    pub paused: bool,
}

/// Why a member must not begin a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Of the present life, or the one that most members see.
    pub ledger: LedgerIdentity,
    /// Who sees it.
    pub by: Owner,
    /// Where that member's log is.
    pub place: String,
}

/// What became of a wish for the next life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The epoch in force: the wish's own, or somebody else's.
    Epoch(u64),
    /// Another member sees the ledger that the sales live in, or more members see a third one. Nothing was begun.
    Refused(Witness),
}

/// Between which times a member's word was written, if it counts at `now`.
pub(super) fn fresh(now: Timestamp) -> [Timestamp; 2] {
    [Timestamp(now.0.saturating_sub(WITNESS_MAX_MS)), Timestamp(now.0.saturating_add(WITNESS_MAX_MS))]
}

/// A member's word that counts.
pub(super) struct Word {
    pub(super) by: Owner,
    pub(super) place: String,
    pub(super) ledger: LedgerIdentity,
}

/// Who keeps a member with this sight from beginning a life on another ledger than the recorded one. `words` are in the order of ids, so
/// that of several witnesses every member hears the same name.
pub(super) fn refusal(recorded: &LedgerIdentity, words: Vec<Word>, sight: &Sight) -> Option<Witness> {
    let mut by_ledger: BTreeMap<&LedgerIdentity, Vec<&Word>> = BTreeMap::new();
    // Its own row may still have an older word.
    for word in words.iter().filter(|word| Some(word.by) != sight.member) {
        by_ledger.entry(&word.ledger).or_default().push(word);
    }
    let ours = sight.seen().and_then(|seen| by_ledger.get(seen)).map_or(0, Vec::len);
    let ours = ours + usize::from(sight.word().is_some());
    let witnesses = by_ledger.get(recorded).or_else(|| {
        let others = by_ledger.iter().filter(|(ledger, _)| Some(**ledger) != sight.seen());
        others.map(|(_, words)| words).find(|words| words.len() > ours)
    });
    let first = witnesses?.first()?;
    Some(Witness { ledger: first.ledger.clone(), by: first.by, place: first.place.clone() })
}

impl Database {
    /// The ledger's present life.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn life(&self) -> Result<Life, DatabaseError> {
        adapter!(self, database => database.life().await)
    }

    /// Writes which ledger a member sees, and when, in place of what it saw before. One that is not registered is no witness. May be
    /// repeated.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn bear_witness(&self, member: Owner, ledger: LedgerIdentity) -> Result<(), DatabaseError> {
        adapter!(self, database => database.bear_witness(member, ledger).await)
    }

    /// Begins a new life of the ledger, on the one that is seen, if the present life is `current`, no other member has seen the
    /// recorded ledger within [`WITNESS_MAX_MS`], and no third ledger is seen by more members than this one; the recorded one itself may
    /// always begin another life. The word of the member that asks
    /// is written in the same transaction, whatever comes of it. Of several that find the same life lost, one begins the next. May
    /// be repeated.
    ///
    /// The life begins with the version of each sale in `above` raised above the one given there, where it is not, and what the sale
    /// offers as it was: the ledger, which keeps what is newer, then believes the row. Such a row that the ledger has paused is paused, since no
    /// rebuild lifts an operator's pause; and it was opened before, whatever it says. All of it is one transaction.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn next_epoch_after(
        &self,
        current: u64,
        above: &[(SaleId, Ahead)],
        sight: Sight,
    ) -> Result<Begun, DatabaseError> {
        // In the order of their ids, as all who lock several sales.
        let above: BTreeMap<SaleId, Ahead> = above.iter().cloned().collect();
        adapter!(self, database => database.next_epoch_after(current, above, sight).await)
    }
}
