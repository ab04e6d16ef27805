//! What buyers were told, kept outside of every process: the rows are judged by it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use stock::{OrderId, SaleId, UserId};
use tokio::time::Instant;

/// All that was said about one order id.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) sale: SaleId,
    pub(crate) user: UserId,
    /// Quantities that its pass was pressed with.
    pub(crate) asked: BTreeSet<u32>,
    /// A 202 was heard, or that the database has it.
    pub(crate) promised: bool,
    /// When that was heard first.
    pub(crate) promised_at: Option<Instant>,
    /// A status was heard: in some process's view the order existed, in the ledger of this epoch.
    pub(crate) seen: Option<u64>,
    /// Presses of which nothing certain was heard since it was last known not to exist.
    pub(crate) open_presses: u32,
    /// A cancellation was confirmed.
    pub(crate) cancelled: bool,
    /// In the ledger of which epoch.
    pub(crate) cancelled_in: u64,
    /// A cancellation was asked for.
    pub(crate) cancel_asked: bool,
    /// Machines on which its pass was pressed.
    pub(crate) pressed_on: BTreeSet<usize>,
    /// It may have been promised by a log that is lost, before an amnesia: the operator goes on without it.
    pub(crate) at_risk: bool,
}

impl Claim {
    /// Every press was refused for certain, or absence was heard after the last one could still have taken anything.
    pub(crate) fn lost(&self) -> bool {
        !self.promised && self.open_presses == 0
    }
}

/// By order id.
#[derive(Default)]
pub(crate) struct Claims(RefCell<BTreeMap<OrderId, Claim>>);

impl Claims {
    /// A pass is pressed; nothing is known of the outcome until one of the others says so.
    pub(crate) fn pressed(
        &self,
        order_id: OrderId,
        sale: &SaleId,
        user: &UserId,
        quantity: u32,
        machine: usize,
    ) {
        let mut claims = self.0.borrow_mut();
        let claim = claims.entry(order_id).or_insert_with(|| Claim {
            sale: sale.clone(),
            user: user.clone(),
            asked: BTreeSet::new(),
            promised: false,
            promised_at: None,
            seen: None,
            open_presses: 0,
            cancelled: false,
            cancelled_in: 0,
            cancel_asked: false,
            pressed_on: BTreeSet::new(),
            at_risk: false,
        });
        claim.pressed_on.insert(machine);
        claim.asked.insert(quantity);
        claim.open_presses += 1;
    }

    /// 202.
    pub(crate) fn promised(&self, order_id: OrderId) {
        self.with(order_id, |claim| {
            claim.promised = true;
            claim.promised_at.get_or_insert_with(Instant::now);
            claim.open_presses -= 1;
        });
    }

    /// One press was refused for certain.
    pub(crate) fn refused(&self, order_id: OrderId) {
        self.with(order_id, |claim| claim.open_presses -= 1);
    }

    /// `GET` shows the order, in the ledger of `epoch`.
    pub(crate) fn seen(&self, order_id: OrderId, epoch: u64) {
        self.with(order_id, |claim| claim.seen = Some(epoch));
    }

    /// `GET` shows no order, after everything pressed could have been carried out.
    pub(crate) fn absent(&self, order_id: OrderId) {
        self.with(order_id, |claim| claim.open_presses = 0);
    }

    pub(crate) fn cancel_asked(&self, order_id: OrderId) {
        self.with(order_id, |claim| claim.cancel_asked = true);
    }

    pub(crate) fn cancelled(&self, order_id: OrderId, epoch: u64) {
        self.with(order_id, |claim| {
            claim.cancelled = true;
            claim.cancelled_in = epoch;
        });
    }

    /// The log of this machine is out of reach for good.
    pub(crate) fn log_lost(&self, machine: usize) {
        for claim in self.0.borrow_mut().values_mut() {
            claim.at_risk |= claim.pressed_on.contains(&machine);
        }
    }

    /// Promised until then, and not by a log that is lost.
    pub(crate) fn promised_until(&self, then: Instant) -> Vec<(OrderId, Claim)> {
        let claims = self.0.borrow();
        let is_due = |claim: &Claim| !claim.at_risk && claim.promised_at.is_some_and(|at| at <= then);
        claims.iter().filter(|(_, claim)| is_due(claim)).map(|(id, claim)| (*id, claim.clone())).collect()
    }

    pub(crate) fn get(&self, order_id: OrderId) -> Option<Claim> {
        self.0.borrow().get(&order_id).cloned()
    }

    pub(crate) fn all(&self) -> BTreeMap<OrderId, Claim> {
        self.0.borrow().clone()
    }

    fn with(&self, order_id: OrderId, change: impl FnOnce(&mut Claim)) {
        if let Some(claim) = self.0.borrow_mut().get_mut(&order_id) {
            change(claim);
        }
    }
}
