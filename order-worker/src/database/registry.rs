//! The ledger's epoch and the registry of instances whose logs may hold promises.

use stock::{Owner, Timestamp};

use super::{Database, DatabaseError, adapter};

/// A log directory that may hold promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The log's id.
    pub owner: Owner,
    /// Where it is, in words for an operator.
    pub place: String,
    /// When it was last registered.
    pub registered_at: Timestamp,
}

impl Database {
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

    /// Registers an instance before its log takes the first promise; again with a new place after a move.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn register_instance(&self, instance: u64, place: &str) -> Result<(), DatabaseError> {
        adapter!(self, database => database.register_instance(Owner(instance), place.to_owned()).await)
    }

    /// Forgets an instance whose log is drained and which has stopped cleanly.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn deregister_instance(&self, instance: u64) -> Result<(), DatabaseError> {
        adapter!(self, database => database.deregister_instance(Owner(instance)).await)
    }

    /// All registered instances, by id.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn instances(&self) -> Result<Vec<Instance>, DatabaseError> {
        adapter!(self, database => database.instances().await)
    }
}
