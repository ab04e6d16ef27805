//! The way of one purchase: [`Purchases::purchase`] is the whole of it, in numbered stages, each refusing for its own reason.
//!
//! Stages 1 to 9 look at memory only: a refusal there costs no I/O, no lock that others want, and no log line. Room in the
//! queue is held before the ledger is asked, so that nothing is taken that could not be written down. From the ledger call
//! to the answer the batcher ([`Purchases::run`]) owns everything: a buyer who hangs up cancels nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use queue::Topic;
use queue::failpoint::hit;
use stock::ledger::ReserveRequest;
use stock::{EpochGate, OrderId, OrderStatus, Owner, Stock};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::admission::limits::Limits;
use crate::admission::pass::PassKeys;
use crate::catalog::Catalog;
use crate::clock::LedgerClocks;
use crate::metrics::{Outcome, PurchaseMetrics};
use crate::ports::{Orders, in_time};

mod batch;
mod held;
pub mod progress;
pub mod recovery;

use batch::{Lanes, Waiting};
use progress::{Estimate, Progress};
use recovery::Recovery;

/// Longest metadata, bytes.
pub const METADATA_BYTES_MAX: usize = 1_024;
/// How far ahead of the batch's start its deadline lies, by the sale's clock. After it absence is final.
pub const BATCH_DEADLINE_MS: u64 = 1_000;
/// Longest wait of a buyer for ledger and queue. A disk that hangs would hold connections for as long otherwise.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// One press of the button, as plain data.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// As it stands in the path.
    pub sale: &'a str,
    /// As it came, if it came.
    pub pass: Option<&'a str>,
    /// Units wanted.
    pub quantity: u32,
    /// The buyer's own.
    pub metadata: Option<&'a str>,
    /// The sale's version that the buyer was shown, if it came.
    pub sale_version: Option<u64>,
    /// The buyer's address, where it is to be limited.
    pub address: Option<IpAddr>,
}

/// What becomes of a press. The refusals stand in the order in which they are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PurchaseAnswer {
    /// Promised: this instance's log holds the order durably.
    Accepted {
        /// Which order.
        order_id: OrderId,
        /// Where it stands.
        estimate: Estimate,
        /// It was promised, or could have been, before.
        repeated: bool,
    },
    /// The database has had the order before.
    Settled {
        /// Which order.
        order_id: OrderId,
        /// As its row says; none where the row could not be read in time.
        status: Option<OrderStatus>,
    },
    /// The request makes no sense.
    BadRequest(&'static str),
    /// The metadata is longer than [`METADATA_BYTES_MAX`].
    TooLarge,
    /// No such sale.
    UnknownSale,
    /// No unit is left.
    SoldOut,
    /// The operator has paused the sale.
    Paused,
    /// The window has not begun.
    NotStarted {
        /// Until it does.
        wait_ms: u64,
    },
    /// The window is over.
    Ended,
    /// No pass, or not one for this sale, or too old.
    PassInvalid,
    /// The buyer was shown another price, currency, limit or pay time.
    SaleChanged,
    /// Too many attempts of this user or address.
    SlowDown {
        /// Until the next one counts.
        wait_ms: u64,
    },
    /// No room, or the ledger cannot be asked. Nothing was taken.
    Busy,
    /// This pass's order is over: a new pass is needed.
    PassUsed {
        /// The order it became.
        order_id: OrderId,
    },
    /// The user would hold more than the limit.
    LimitReached {
        /// What the user holds already: the newest, oldest first.
        order_ids: Vec<OrderId>,
    },
    /// Fewer are left than asked for.
    NotEnough {
        /// How many are.
        remaining: u32,
    },
    /// It may or may not have been taken: the same pass again, or `GET /orders/{id}`, tells.
    Uncertain {
        /// Which order.
        order_id: OrderId,
    },
}

impl PurchaseAnswer {
    /// As counted.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Accepted { repeated: false, .. } => Outcome::Accepted,
            Self::Accepted { repeated: true, .. } | Self::Settled { .. } => Outcome::Repeated,
            Self::BadRequest(_) => Outcome::BadRequest,
            Self::TooLarge => Outcome::TooLarge,
            Self::UnknownSale => Outcome::UnknownSale,
            Self::SoldOut => Outcome::SoldOut,
            Self::Paused => Outcome::Paused,
            Self::NotStarted { .. } => Outcome::NotStarted,
            Self::Ended => Outcome::Ended,
            Self::PassInvalid => Outcome::PassInvalid,
            Self::SaleChanged => Outcome::SaleChanged,
            Self::SlowDown { .. } => Outcome::SlowDown,
            Self::Busy => Outcome::Busy,
            Self::PassUsed { .. } => Outcome::PassUsed,
            Self::LimitReached { .. } => Outcome::LimitReached,
            Self::NotEnough { .. } => Outcome::NotEnough,
            Self::Uncertain { .. } => Outcome::Uncertain,
        }
    }
}

/// What the purchase paths of one process share.
pub struct PurchaseParts {
    /// Ledger and flag.
    pub stock: Arc<Stock>,
    /// Asked for the status of an order that is settled.
    pub orders: Arc<dyn Orders>,
    /// This instance's log of orders.
    pub topic: Topic,
    /// This instance.
    pub owner: Owner,
    /// All that may lead to a record enters it first.
    pub epoch_gate: Arc<EpochGate>,
    /// The sales on offer.
    pub catalog: Arc<Catalog>,
    /// Checks passes.
    pub passes: PassKeys,
    /// Per user and per address.
    pub limits: Arc<Limits>,
    /// The time of each of the ledger's servers.
    pub clocks: Arc<LedgerClocks>,
    /// Own appends.
    pub progress: Arc<Progress>,
    /// Told of every batch whose end is not known.
    pub recovery: Arc<Recovery>,
    /// Counters.
    pub metrics: PurchaseMetrics,
    /// Most purchases between permit and answer.
    pub in_flight_max: usize,
    /// Purchases between permit and answer; only purchases that got that far touch it.
    pub in_flight: Arc<AtomicUsize>,
}

/// The purchase path of one thread. Its batcher, [`Self::run`], must be polled on that thread.
pub struct Purchases {
    parts: Arc<PurchaseParts>,
    lanes: Lanes,
}

impl Purchases {
    /// A path of its own over what the process shares.
    #[must_use]
    pub fn new(parts: Arc<PurchaseParts>) -> Self {
        Self { parts, lanes: Lanes::default() }
    }

    /// What the process shares.
    #[must_use]
    pub fn parts(&self) -> &Arc<PurchaseParts> {
        &self.parts
    }

    /// One press of the button, from plain data to its answer. Dropping the future after stage 9 cancels nothing.
    pub async fn purchase(&self, attempt: Attempt<'_>) -> PurchaseAnswer {
        let parts = &*self.parts;

        // 1. A request that makes sense.
        if let Err(refusal) = well_formed(&attempt) {
            parts.metrics.count_nowhere(refusal.outcome());
            return refusal;
        }

        // 2. A sale that is on offer. The guard is let go before anything is awaited.
        let Some(sale) = parts.catalog.offer().sale(attempt.sale).cloned() else {
            parts.metrics.count_nowhere(Outcome::UnknownSale);
            return PurchaseAnswer::UnknownSale;
        };
        let refuse = |answer: PurchaseAnswer| {
            sale.count(answer.outcome());
            answer
        };

        // 3. The sold-out flag: where most of a spike ends. Unknown goes on to the ledger.
        if sale.sold_out() {
            return refuse(PurchaseAnswer::SoldOut);
        }

        // 4. The operator's pause.
        if sale.paused {
            return refuse(PurchaseAnswer::Paused);
        }

        // 5. The window, by the clock of the sale's server.
        let now_ms = sale.now_ms();
        if now_ms < sale.starts_at_ms {
            return refuse(PurchaseAnswer::NotStarted { wait_ms: sale.starts_at_ms - now_ms });
        }
        if now_ms >= sale.ends_at_ms {
            return refuse(PurchaseAnswer::Ended);
        }

        // 6. The pass: one MAC. It names the user and the one order that this can become.
        let pass = match attempt.pass.map(|text| parts.passes.verify(text)) {
            Some(Ok(pass)) if pass.sale == sale.id && !pass.expired(now_ms) => pass,
            _ => return refuse(PurchaseAnswer::PassInvalid),
        };

        // 7. What the buyer was shown is what it costs. The ledger looks once more, at what this process believes.
        if attempt.sale_version.is_some_and(|shown| shown < sale.terms_version) {
            return refuse(PurchaseAnswer::SaleChanged);
        }

        // 8. The limits.
        let address = attempt.address.map_or(Ok(()), |address| parts.limits.check_address(address));
        if let Err(fast) = address.and_then(|()| parts.limits.check_user(&pass.user)) {
            let wait_ms = u64::try_from(fast.retry_after.as_millis()).unwrap_or(u64::MAX);
            return refuse(PurchaseAnswer::SlowDown { wait_ms });
        }

        // 9. Room: among the purchases under way, and in the queue for the order that may come of it.
        let Some(slot) = Slot::take(&parts.in_flight, parts.in_flight_max) else {
            return refuse(PurchaseAnswer::Busy);
        };
        let payload_bytes = payload_bytes_max(sale.id.as_str(), pass.user.as_str(), attempt.metadata);
        let Ok(permit) = parts.topic.try_permit(payload_bytes) else {
            return refuse(PurchaseAnswer::Busy);
        };
        if hit("gateway.permitted") {
            return refuse(PurchaseAnswer::Busy);
        }

        // 10. Ledger, then queue: the batcher's, see `batch`. Its end comes as one message.
        let order_id = pass.order_id;
        let request = ReserveRequest {
            order_id,
            user: pass.user,
            quantity: attempt.quantity,
            metadata: attempt.metadata.map(Into::into),
        };
        let (answer, answered) = oneshot::channel();
        let since = Instant::now();
        let terms_version = sale.terms_version;
        let waiting = Waiting { request, terms_version, permit, payload_bytes, slot, since, answer };
        self.lanes.join(&sale, waiting);

        // 11. The answer. Without one (the process is going down) nobody can tell.
        let answer = match timeout(ANSWER_MAX, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => refuse(PurchaseAnswer::Uncertain { order_id }),
            // Still under way: the batcher counts what becomes of it.
            Err(_) => PurchaseAnswer::Uncertain { order_id },
        };

        // 12. A settled order's status: the one read of the database, bounded in time, and only for a pass used again.
        match answer {
            PurchaseAnswer::Settled { order_id, .. } => {
                let row = in_time(parts.orders.order(order_id)).await;
                let status = row.ok().flatten().map(|order| order.status);
                PurchaseAnswer::Settled { order_id, status }
            }
            answer => answer,
        }
    }
}

fn well_formed(attempt: &Attempt<'_>) -> Result<(), PurchaseAnswer> {
    if attempt.quantity == 0 {
        return Err(PurchaseAnswer::BadRequest("quantity is at least 1"));
    }
    match attempt.metadata {
        Some(text) if text.contains('\0') => Err(PurchaseAnswer::BadRequest("metadata holds a NUL")),
        Some(text) if text.len() > METADATA_BYTES_MAX => Err(PurchaseAnswer::TooLarge),
        _ => Ok(()),
    }
}

/// At least the length of the message that a reservation of these becomes: every fixed part, and each text as JSON writes it.
fn payload_bytes_max(sale: &str, user: &str, metadata: Option<&str>) -> usize {
    const FIXED: usize = 184;
    FIXED + escaped(sale) + escaped(user) + metadata.map_or(0, escaped)
}

fn escaped(text: &str) -> usize {
    text.bytes().map(|b| if b < 0x20 { 6 } else { 1 + usize::from(b == b'"' || b == b'\\') }).sum()
}

/// A place among the purchases under way; given back when dropped.
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(in_flight: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        // A lone count that guards nothing else: relaxed serves. It may be passed by one per thread for a moment.
        if in_flight.fetch_add(1, Ordering::Relaxed) >= max {
            in_flight.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(in_flight.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stock::{Reservation, SaleId};

    #[test]
    fn the_permit_is_never_smaller_than_the_message() {
        let sale: SaleId = "s".repeat(64).parse().expect("a sale");
        for text in ["plain", "\"\\\"", "\u{1}\u{1f}\n\t", "汉字 \u{2028} 🎉", ""] {
            let reservation = Reservation {
                order_id: OrderId(u128::MAX),
                sale: sale.clone(),
                user: "u\"\\".repeat(42).parse().expect("a user"),
                quantity: u32::MAX,
                metadata: Some(text.repeat(40).into()),
                reserved_at_ms: u64::MAX,
                sale_version: Some(u64::MAX),
            };
            let length = reservation.encode().expect("json").len();
            let bound =
                payload_bytes_max(sale.as_str(), reservation.user.as_str(), reservation.metadata.as_deref());
            assert!(length <= bound && bound <= 2 * length + 200, "{length} {bound} {text:?}");
        }
    }

    #[test]
    fn slots_come_back() {
        let in_flight = Arc::new(AtomicUsize::new(0));
        let first = Slot::take(&in_flight, 1).expect("free");
        assert!(Slot::take(&in_flight, 1).is_none());
        drop(first);
        assert!(Slot::take(&in_flight, 1).is_some());
    }
}
