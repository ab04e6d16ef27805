//! The deployment's id, the ledger's epoch and the registry of instances, each of which is a log.

use queue::Opening;
use serde_json::json;
use stock::{DeploymentId, Owner, SaleId, Timestamp};

use super::{Database, DatabaseError, adapter};
use crate::journal::{Action, Author, Change};

/// [`Instance::engine`] of a directory of ours.
pub const ENGINE_DISK: &str = "disk";

/// A log: a directory, or a slot on a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The log's id.
    pub owner: Owner,
    /// Where it is, in words for an operator.
    pub place: String,
    /// When it was last registered.
    pub registered_at: Timestamp,
    /// The latest epoch of the ledger that holds what this log had promised before it; 0: none yet.
    pub merged_epoch: u64,
    /// What keeps it: `disk`, `rocketmq`.
    pub engine: String,
    /// Whether it may hold promises. A log that never does keeps no rebuild waiting.
    pub holds_promises: bool,
    /// The opening that log and row agree on; none where the log is not tied.
    pub opening: Option<Opening>,
    /// An operator went on without it, and it has not been back since: nobody waits for it, nobody drains it.
    pub left_out: bool,
}

impl Instance {
    /// Whether it counts: it may hold promises, and nobody has left it out.
    #[must_use]
    pub fn takes_part(&self) -> bool {
        self.holds_promises && !self.left_out
    }

    /// Whether the ledger of `epoch` may lack promises of this log.
    #[must_use]
    pub fn is_awaited(&self, epoch: u64) -> bool {
        self.takes_part() && self.merged_epoch < epoch
    }
}

/// As the two columns of a row have it: no nonce is no opening.
pub(super) fn opening(generation: u64, nonce: &str) -> Result<Option<Opening>, DatabaseError> {
    if nonce.is_empty() {
        return Ok(None);
    }
    let nonce = u64::from_str_radix(nonce, 16)
        .map_err(|_| DatabaseError::Broken(format!("an instance has the nonce {nonce:?}")))?;
    Ok(Some(Opening { generation, nonce }))
}

/// The column's text.
pub(super) fn nonce(opening: Opening) -> String {
    format!("{:016x}", opening.nonce)
}

/// Why an operator begins a new life of the ledger.
#[derive(Debug, Clone)]
pub enum LedgerChange {
    /// The present one is not trusted.
    Rebuild,
    /// This log is out of reach for good: its instance is marked as left out with the life that waits for it, so that it is known
    /// should it come back.
    Forget(Owner),
    /// These sales were another deployment's.
    Adopt(Vec<SaleId>),
}

impl LedgerChange {
    /// What the journal says of it; `place` is the left-out log's.
    pub(super) fn entry(&self, before: u64, after: u64, place: Option<String>) -> Change {
        let (action, subject) = match self {
            Self::Rebuild => (Action::LedgerRebuild, "ledger".to_owned()),
            Self::Forget(owner) => (Action::LedgerForget, owner.to_string()),
            Self::Adopt(_) => (Action::LedgerAdopt, "ledger".to_owned()),
        };
        let mut now = json!({ "epoch": after });
        if let Self::Adopt(sales) = self {
            now["sales"] = sales.iter().map(ToString::to_string).collect();
        }
        let mut was = json!({ "epoch": before });
        if let Some(place) = place {
            was["place"] = place.into();
        }
        Change { action, subject, before: Some(was), after: Some(now) }
    }
}

/// What the journal says of a log without promises that was forgotten.
pub(super) fn log_forgotten(owner: Owner, place: String) -> Change {
    let was = json!({ "place": place, "holds_promises": false });
    Change { action: Action::LedgerForget, subject: owner.to_string(), before: Some(was), after: None }
}

impl Database {
    /// The id of this database, which ties a shared ledger to it: `candidate`, if it has none yet. Of several that ask at once one
    /// decides. May be repeated.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn deployment(&self, candidate: DeploymentId) -> Result<DeploymentId, DatabaseError> {
        adapter!(self, database => database.deployment(candidate).await)
    }

    /// The same, without making one: a database that no process has used yet has none.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn known_deployment(&self) -> Result<Option<DeploymentId>, DatabaseError> {
        adapter!(self, database => database.known_deployment().await)
    }

    /// At the end of the process that is its only user: where it is a file, its log goes into it and is emptied. A crash before or in
    /// the middle of it leaves a log that the next start reads.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(database) => database.close().await,
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => {}
        }
    }

    /// The ledger's present epoch; 0 before the first.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn epoch(&self) -> Result<u64, DatabaseError> {
        adapter!(self, database => database.epoch().await)
    }

    /// Begins a new life of the ledger and answers with its epoch. Repeated after a lost answer it skips one, harmlessly.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn next_epoch(&self) -> Result<u64, DatabaseError> {
        adapter!(self, database => database.next_epoch().await)
    }

    /// Begins, on an operator's word, a life of the ledger beyond `beyond`, unless the present one is beyond it already, and answers
    /// with the epoch that is in force afterwards. What the change forgets goes in the same transaction. May be repeated.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn change_ledger(
        &self,
        beyond: u64,
        change: LedgerChange,
        author: &Author,
    ) -> Result<u64, DatabaseError> {
        adapter!(self, database => database.change_ledger(beyond, change, author.clone()).await)
    }

    /// Registers an instance before its log takes the first record; again with a new place after a move. What it merged stays
    /// recorded; place, engine and whether it holds promises are those given last.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn register_instance(
        &self,
        instance: u64,
        place: &str,
        engine: &str,
        holds_promises: bool,
    ) -> Result<(), DatabaseError> {
        let (place, engine) = (place.to_owned(), engine.to_owned());
        adapter!(self, database => database.register_instance(Owner(instance), place, engine, holds_promises).await)
    }

    /// Registers a log that may hold promises with an opening of it, if its row says `before` (`None`: that nobody has tied it) or there
    /// is none, and answers whether the row says `opening` afterwards. One that was left out takes part again, as one that has
    /// merged nothing. May be repeated.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn register_opening(
        &self,
        instance: Owner,
        (place, engine): (&str, &str),
        before: Option<Opening>,
        opening: Opening,
    ) -> Result<bool, DatabaseError> {
        let (place, engine) = (place.to_owned(), engine.to_owned());
        adapter!(self, database => database.register_opening(instance, place, engine, before, opening).await)
    }

    /// Records that the ledger of `epoch` holds what this log had promised before it. An older epoch, or an instance that is
    /// not registered, changes nothing.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn report_merged(&self, instance: u64, epoch: u64) -> Result<(), DatabaseError> {
        adapter!(self, database => database.report_merged(Owner(instance), epoch).await)
    }

    /// Forgets an instance whose log is drained and which has stopped cleanly.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn deregister_instance(&self, instance: u64) -> Result<(), DatabaseError> {
        adapter!(self, database => database.deregister_instance(Owner(instance)).await)
    }

    /// Marks an instance as left out once more, whose start was refused after its registration had lifted the mark: the ledger lives
    /// on, since it has promised nothing meanwhile. One that is left out, or not registered, changes nothing.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn leave_out_again(&self, instance: Owner) -> Result<(), DatabaseError> {
        adapter!(self, database => database.leave_out_again(instance).await)
    }

    /// Forgets, on an operator's word, an instance whose log holds no promises; the ledger lives on. One that holds some, or that
    /// is not registered, changes nothing.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn forget_log(&self, instance: Owner, author: &Author) -> Result<(), DatabaseError> {
        adapter!(self, database => database.forget_log(instance, author.clone()).await)
    }

    /// All registered instances, by id.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn instances(&self) -> Result<Vec<Instance>, DatabaseError> {
        adapter!(self, database => database.instances().await)
    }
}
