//! What this process has heard of sales that belong to another deployment. It decides nothing: the ledger does.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::SaleId;

/// If another deployment owned this sale in the last 10 s, do not reinstall it: its owner is about to.
const LOST_BY_ITS_OWN: Duration = Duration::from_secs(10);

/// The sales, whose they are, and when that was last heard.
#[derive(Debug, Default)]
pub(crate) struct Foreign(Mutex<BTreeMap<SaleId, (Box<str>, Instant)>>);

impl Foreign {
    /// Answers whether it is news.
    pub(crate) fn heard(&self, sale: &SaleId, by: &str) -> bool {
        self.0.lock().insert(sale.clone(), (by.into(), Instant::now())).is_none()
    }

    /// The ledger said something that it says of our own sales only.
    pub(crate) fn is_ours(&self, sale: &SaleId) {
        self.0.lock().remove(sale);
    }

    /// Whose the sale was a moment ago.
    pub(crate) fn lately(&self, sale: &SaleId) -> Option<Box<str>> {
        let known = self.0.lock();
        let (by, heard) = known.get(sale)?;
        (heard.elapsed() < LOST_BY_ITS_OWN).then(|| by.clone())
    }

    pub(crate) fn sales(&self) -> Vec<SaleId> {
        self.0.lock().keys().cloned().collect()
    }
}
