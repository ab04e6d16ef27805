//! The sold-out flag within one process: cells that the hot path reads, and the feed that the edge polls.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{EdgeFeed, FlagCell, FlagState};
use crate::SaleId;

/// See the module. Clones share the same cells.
#[derive(Debug, Clone)]
pub struct EmbeddedFlag {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    instance: u64,
    cells: RwLock<BTreeMap<SaleId, Arc<FlagCell>>>,
    version: watch::Sender<u64>,
}

impl EmbeddedFlag {
    /// Knows nothing yet. `instance` tells one life of this process from the next: give it random bits.
    #[must_use]
    pub fn new(instance: u64) -> Self {
        Self {
            shared: Arc::new(Shared { instance, cells: RwLock::default(), version: watch::Sender::new(0) }),
        }
    }

    pub(super) fn cell(&self, sale: &SaleId) -> Arc<FlagCell> {
        if let Some(cell) = self.shared.cells.read().get(sale) {
            return cell.clone();
        }
        self.shared.cells.write().entry(sale.clone()).or_default().clone()
    }

    pub(super) fn publish(&self, sale: &SaleId, state: FlagState) {
        if self.cell(sale).apply(state) {
            self.bump();
        }
    }

    pub(super) fn forget(&self, sale: &SaleId) {
        let cell = self.shared.cells.write().remove(sale);
        if cell.is_some_and(|cell| cell.clear()) {
            self.bump();
        }
    }

    /// Unknown from now on; the cell stays the sale's.
    #[cfg(feature = "zookeeper")]
    pub(super) fn forget_state(&self, sale: &SaleId) {
        let cell = self.shared.cells.read().get(sale).cloned();
        if cell.is_some_and(|cell| cell.clear()) {
            self.bump();
        }
    }

    /// Every sale is unknown from now on, in one change.
    #[cfg(feature = "zookeeper")]
    pub(super) fn forget_states(&self) {
        let known = self.shared.cells.read().values().filter(|cell| cell.clear()).count();
        if known > 0 {
            self.bump();
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    pub(super) fn feed(&self) -> EdgeFeed {
        // The version first: a state that is applied meanwhile is then in the snapshot and announced again, never missed.
        let version = *self.shared.version.borrow();
        let cells = self.shared.cells.read();
        let sales = cells.iter().filter_map(|(sale, cell)| Some((sale.clone(), cell.read()?))).collect();
        EdgeFeed { instance: self.shared.instance, version, sales }
    }

    fn bump(&self) {
        self.shared.version.send_modify(|version| *version += 1);
    }
}
