//! The sold-out flag's port: a versioned hint that ends requests before they reach the ledger.
//!
//! Every adapter
//! - MUST apply a state only if its version is newer than the one it holds (compare epoch, then counter);
//! - MUST answer *unknown* for a sale it has heard nothing of, and for every sale from the moment it is out of touch, but for
//!   what this very process publishes from then on;
//! - MUST make a published state visible to `read` on every thread of the process before `publish` returns;
//! - MUST NOT let `publish` wait for a store: what the store has not heard yet is kept, the latest state of each sale, and
//!   written as soon as it is in touch, unless something newer stands there;
//! - MUST never block, allocate or lock in [`FlagCell::read`];
//! - MUST raise the feed's version after each applied change, never before it can be read, and wake the subscribers;
//! - MUST answer *unknown* again for a forgotten sale, also through cells handed out before.
//!
//! Stale "open" is harmless. A stale "sold out" heals: whoever holds one asks the ledger every 2 s.

mod cell;
mod embedded;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use prometheus_client::registry::Registry;

pub use cell::FlagCell;
pub use embedded::EmbeddedFlag;
#[cfg(feature = "zookeeper")]
pub use zookeeper::ZooKeeperFlag;

use crate::SaleId;
use crate::metrics::FlagMetrics;

/// The adapters.
#[derive(Debug, Clone)]
pub enum Flag {
    /// Within this process.
    Embedded(EmbeddedFlag),
    /// Through ZooKeeper.
    #[cfg(feature = "zookeeper")]
    ZooKeeper(ZooKeeperFlag),
}

impl Flag {
    /// One sale's cell, which the hot path keeps. Made if absent, so ask for sales that exist: they are bounded, names are not.
    #[must_use]
    pub fn cell(&self, sale: &SaleId) -> Arc<FlagCell> {
        match self {
            Self::Embedded(flag) => flag.cell(sale),
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => flag.cell(sale),
        }
    }

    /// Makes a state known: in this process before it returns, to the others as soon as the store has taken it, which is not
    /// waited for. Newer wins, an older or equal one changes nothing.
    ///
    /// # Errors
    /// [`FlagError`]: this process knows it all the same; others may not until the store is back in touch, or the ledger
    /// tells them.
    pub async fn publish(&self, sale: &SaleId, state: FlagState) -> Result<(), FlagError> {
        match self {
            Self::Embedded(flag) => {
                flag.publish(sale, state);
                Ok(())
            }
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => flag.publish(sale, state),
        }
    }

    /// Forgets a settled sale: in this process at once, in the store as soon as it is in touch, and then in the others.
    pub fn forget(&self, sale: &SaleId) {
        match self {
            Self::Embedded(flag) => flag.forget(sale),
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => flag.forget(sale),
        }
    }

    /// The feed's version, for long polls: wait until it exceeds the version that the poller knows, then take [`Self::feed`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        match self {
            Self::Embedded(flag) => flag.subscribe(),
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => flag.subscribe(),
        }
    }

    /// Every known state: a whole snapshot, which *replaces* what the edge held.
    #[must_use]
    pub fn feed(&self) -> EdgeFeed {
        match self {
            Self::Embedded(flag) => flag.feed(),
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => flag.feed(),
        }
    }

    /// Whether other processes' states are heard now. Out of touch nothing is lost but speed: unknown asks the ledger.
    #[must_use]
    pub fn in_touch(&self) -> bool {
        match self {
            Self::Embedded(_) => true,
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => *flag.touch().borrow(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        match self {
            Self::Embedded(_) => FlagMetrics::of_one_process().register(registry),
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(flag) => flag.metrics().register(registry),
        }
    }
}

/// What `GET /internal/v1/edge` answers from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeFeed {
    /// Another one than before means that versions started anew.
    pub instance: u64,
    /// Rises with each change within one instance. The snapshot is at least as new as it says.
    pub version: u64,
    /// Sales whose flag is known.
    pub sales: BTreeMap<SaleId, FlagState>,
}

/// What publishing can meet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Nobody else heard it.
    #[error("the sold-out flag's store is out of reach: {0}")]
    Unavailable(String),
    /// Others may or may not have heard it.
    #[error("the sold-out flag's store did not answer: {0}")]
    Uncertain(String),
}

impl FlagError {
    /// Whether publishing again may succeed: always, and it is harmless.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Uncertain(_) => true,
        }
    }
}

/// Orders two states of one sale's flag: a newer ledger life wins, then the ledger's own counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FlagVersion {
    /// The life of the ledger's memory that spoke.
    pub epoch: u64,
    /// Bumped by the ledger in the step that makes `remaining` ≤ 0 or > 0.
    pub counter: u64,
}

/// What the ledger says of one sale's stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagState {
    /// No unit is left.
    pub sold_out: bool,
    /// Newer wins.
    pub version: FlagVersion,
}
