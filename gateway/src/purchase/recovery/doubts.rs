//! The orders of which this process knows that it does not know: the ledger may have taken them, or may still, and the log may
//! lack them. Remembers ids, asks nobody.
//!
//! That the ledger has an order not is believed late and never at once: a call whose sender gave it up may still run, whatever
//! its deadline was, where the ledger's clock steps back. So an absent one is looked for again and again, [`LOOKS_MAX`] times.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use stock::{OrderId, SaleId};

/// Orders that are remembered, over all sales: about 3 MiB.
const DOUBTS_MAX: usize = 1 << 16;
/// Later looks that find an order absent before it is forgotten: 5 minutes, if the ledger answers. The kernel drops what the ledger's
/// server has not acknowledged after seconds, and what that had received runs before it answers a later look.
pub(super) const LOOKS_MAX: u32 = 20;

/// See the module.
#[derive(Default)]
pub(super) struct Doubts(Mutex<BySale>);

#[derive(Default)]
struct BySale {
    /// How often each was found absent.
    sales: BTreeMap<SaleId, BTreeMap<OrderId, u32>>,
    orders: usize,
}

impl Doubts {
    /// Doubts these from now on. False: there was no room for all of them.
    #[must_use]
    pub(super) fn add(&self, sale: &SaleId, ids: &[OrderId]) -> bool {
        let BySale { sales, orders } = &mut *self.0.lock();
        let doubted = sales.entry(sale.clone()).or_default();
        for id in ids {
            if *orders >= DOUBTS_MAX && !doubted.contains_key(id) {
                if doubted.is_empty() {
                    sales.remove(sale);
                }
                return false;
            }
            *orders += usize::from(doubted.insert(*id, 0).is_none());
        }
        true
    }

    /// All of a sale.
    pub(super) fn of(&self, sale: &SaleId) -> Vec<OrderId> {
        self.0.lock().sales.get(sale).map_or(Vec::new(), |doubted| doubted.keys().copied().collect())
    }

    /// The sales that have any.
    pub(super) fn sales(&self) -> Vec<SaleId> {
        self.0.lock().sales.keys().cloned().collect()
    }

    /// Whether this order is doubted.
    pub(super) fn has(&self, sale: &SaleId, order_id: OrderId) -> bool {
        self.0.lock().sales.get(sale).is_some_and(|doubted| doubted.contains_key(&order_id))
    }

    /// It is known what became of these.
    pub(super) fn settle(&self, sale: &SaleId, ids: &[OrderId]) {
        self.0.lock().update(sale, ids, |_| false);
    }

    /// A later look found these absent.
    pub(super) fn absent(&self, sale: &SaleId, ids: &[OrderId]) {
        self.0.lock().update(sale, ids, |looks| {
            *looks += 1;
            *looks < LOOKS_MAX
        });
    }
}

impl BySale {
    fn update(&mut self, sale: &SaleId, ids: &[OrderId], mut stays: impl FnMut(&mut u32) -> bool) {
        let Some(doubted) = self.sales.get_mut(sale) else { return };
        for id in ids {
            if doubted.get_mut(id).is_some_and(|looks| !stays(looks)) {
                doubted.remove(id);
                self.orders -= 1;
            }
        }
        if doubted.is_empty() {
            self.sales.remove(sale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_looked_for_again_and_what_is_known_is_not() {
        let (doubts, sale): (_, SaleId) = (Doubts::default(), "demo".parse().unwrap());
        let (first, second) = (OrderId(1), OrderId(2));
        assert!(doubts.add(&sale, &[second, first]));
        doubts.settle(&sale, &[second, OrderId(3)]);
        for _ in 1..LOOKS_MAX {
            doubts.absent(&sale, &[first]);
        }
        assert!(doubts.has(&sale, first) && !doubts.has(&sale, second));
        // Unsure once more: from the beginning.
        assert!(doubts.add(&sale, &[first]));
        for _ in 1..LOOKS_MAX {
            doubts.absent(&sale, &[first]);
        }
        assert_eq!(doubts.of(&sale), [first]);
        doubts.absent(&sale, &[first]);
        assert!(doubts.of(&sale).is_empty() && doubts.sales().is_empty());
        assert_eq!(doubts.0.lock().orders, 0);
    }

    #[test]
    fn it_says_when_there_is_no_room() {
        let (doubts, sale): (_, SaleId) = (Doubts::default(), "demo".parse().unwrap());
        let all: Vec<_> = (0..DOUBTS_MAX as u128).map(OrderId).collect();
        assert!(doubts.add(&sale, &all));
        assert!(doubts.add(&sale, &all[7..9]), "known ones need no room");
        assert!(!doubts.add(&"other".parse().unwrap(), &[OrderId(1)]));
        doubts.settle(&sale, &all[..1]);
        assert!(doubts.add(&"other".parse().unwrap(), &[OrderId(1)]));
    }
}
