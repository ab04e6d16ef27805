//! From the ledger call to the answer. Attempts on one sale gather while the last batch is under way; the batcher owns them,
//! so that no connection's end can come between a taken unit and its record in the log.
//!
//! What a crash leaves behind, step by step:
//! - before the ledger call: nothing. The permits vanish with the process.
//! - after it, before the append: units pending for this owner that its log lacks. Recovery appends them at the next start.
//! - after the append, before it is durable: the same, or a record that is there after all. Appending again is harmless.
//! - durable, before the answer: an order that nobody was told of. The same pass, or `GET /orders/{id}`, finds it.
//!
//! A batch enters the epoch gate before the ledger call and leaves it when each of its records is durable, or certain never
//! to be: the log is not merged into a new life of the ledger in between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use queue::failpoint::hit;
use queue::{Append, AppendError, NewRecord, Permit};
use stock::ledger::{BATCH_MAX, ReserveAnswer, ReserveBatch, ReserveOutcome, ReserveRequest};
use stock::{LedgerError, OrderId, Reservation, SaleId, UnderWay};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::held::Asking;
use super::progress::Kept;
use super::{BATCH_DEADLINE_MS, PurchaseAnswer, PurchaseParts, Purchases, Slot};
use crate::catalog::Sale;

/// Ledger calls under way for one sale and thread.
const UNDER_WAY_MAX: usize = 2;
/// Longest wait for the ledger's answer: twice the deadline, so that a late answer is still heard.
const LEDGER_ANSWER_MAX: Duration = Duration::from_millis(2 * BATCH_DEADLINE_MS);

/// One attempt on its way through ledger and queue.
pub(super) struct Waiting {
    pub(super) request: ReserveRequest,
    /// What its buyer was told to be shown: see [`Sale::terms_version`].
    pub(super) terms_version: u64,
    pub(super) permit: Permit,
    pub(super) payload_bytes: usize,
    pub(super) slot: Slot,
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<PurchaseAnswer>,
}

/// What waits, by sale. Only this thread's purchases and its batcher lock it.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: Mutex<BTreeMap<SaleId, Lane>>,
    wake: Notify,
}

struct Lane {
    sale: Arc<Sale>,
    waiting: VecDeque<Waiting>,
    under_way: usize,
}

impl Lanes {
    /// Queues an attempt; bounded by the slots.
    pub(super) fn join(&self, sale: &Arc<Sale>, waiting: Waiting) {
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry(sale.id.clone()).or_insert_with(|| Lane {
            sale: sale.clone(),
            waiting: VecDeque::new(),
            under_way: 0,
        });
        // The newest version of the sale carries the newest epoch.
        if !Arc::ptr_eq(&lane.sale, sale) {
            lane.sale = sale.clone();
        }
        lane.waiting.push_back(waiting);
        drop(lanes);
        self.wake.notify_one();
    }

    /// Everything that gathered on a sale that may have another call under way.
    fn next_batch(&self) -> Option<(Arc<Sale>, Vec<Waiting>)> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.values_mut().find(|l| !l.waiting.is_empty() && l.under_way < UNDER_WAY_MAX)?;
        lane.under_way += 1;
        let size = lane.waiting.len().min(BATCH_MAX);
        Some((lane.sale.clone(), lane.waiting.drain(..size).collect()))
    }

    fn finished(&self, sale: &SaleId) {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get_mut(sale) {
            lane.under_way -= 1;
            if lane.under_way == 0 && lane.waiting.is_empty() {
                lanes.remove(sale);
            }
        }
    }
}

/// An attempt during the ledger call, its request being the batch's.
struct Asked {
    order_id: OrderId,
    permit: Permit,
    payload_bytes: usize,
    told: Told,
}

/// Whoever waits for an answer.
struct Told {
    sale: Arc<Sale>,
    answer: oneshot::Sender<PurchaseAnswer>,
    since: Instant,
    _slot: Slot,
}

/// A batch after the ledger call.
struct Reserved<'a> {
    /// The recovery leaves these orders alone until it is decided what becomes of them.
    asking: Asking<'a>,
    sale: Arc<Sale>,
    deadline_ms: u64,
    asked: Vec<Asked>,
    result: Result<ReserveAnswer, LedgerError>,
    /// `None`: the barrier let nothing of its epoch begin.
    under_way: Option<UnderWay>,
}

/// An attempt whose record is in the log's ring.
struct Promised {
    order_id: OrderId,
    append: Appending,
    told: Told,
    repeated: bool,
}

/// A record in the log's ring.
pub(super) struct Appending {
    append: Append,
    /// Whether its end will be believed; the record is there or not all the same.
    heard: bool,
}

impl Appending {
    /// Its position once it is durable. `None`: that will not be known, and it must be appended again. When this is ready,
    /// nothing of it can reach the log any more, or `under_way` has been told so.
    pub(super) async fn durable(self, under_way: &mut Option<UnderWay>) -> Option<queue::Position> {
        match self.append.await {
            Ok(position) => self.heard.then_some(position),
            // A failed sync: the record may be found after the next start, so this process must not merge its log.
            Err(AppendError::Uncertain) => {
                if let Some(under_way) = under_way.take() {
                    under_way.never_ends();
                }
                None
            }
            Err(AppendError::Closed | AppendError::RecordSize) => None,
        }
    }
}

impl Purchases {
    /// The batcher. Ends once `closing` says true and nothing is left to answer; until then it has to be polled.
    pub async fn run(&self, mut closing: watch::Receiver<bool>) {
        let mut calls = FuturesUnordered::new();
        let mut promises = FuturesUnordered::new();
        let mut is_closing = false;
        loop {
            while let Some((sale, batch)) = self.lanes.next_batch() {
                calls.push(reserve(&self.parts, sale, batch));
            }
            if is_closing && calls.is_empty() && promises.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                Some(reserved) = calls.next() => {
                    self.lanes.finished(&reserved.sale.id);
                    let sale = reserved.sale.clone();
                    let (promised, under_way) = decide(&self.parts, reserved);
                    if !promised.is_empty() {
                        promises.push(keep(&self.parts, sale, promised, under_way));
                    }
                }
                Some(()) = promises.next() => {}
                () = self.lanes.wake.notified() => {}
                // An owner that is gone closes as well.
                _ = closing.wait_for(|closing| *closing), if !is_closing => is_closing = true,
            }
        }
    }
}

/// One ledger call for all of `batch`.
async fn reserve(parts: &PurchaseParts, sale: Arc<Sale>, batch: Vec<Waiting>) -> Reserved<'_> {
    let mut requests = Vec::with_capacity(batch.len());
    let mut asked = Vec::with_capacity(batch.len());
    for Waiting { request, terms_version, permit, payload_bytes, slot, since, answer } in batch {
        let told = Told { sale: sale.clone(), answer, since, _slot: slot };
        // Judged by what the sale was a moment ago.
        if terms_version != sale.terms_version {
            told.tell(parts, PurchaseAnswer::Busy);
            continue;
        }
        asked.push(Asked { order_id: request.order_id, permit, payload_bytes, told });
        requests.push(request);
    }
    let asking = parts.progress.ask(requests.iter().map(|request| request.order_id));
    let under_way = parts.epoch_gate.enter(sale.epoch);
    // A server that never told its time has no deadlines: one by a guess would lie anywhere.
    let server = sale.clock.server();
    let knows_time = parts.clocks.knows(server) || parts.clocks.refresh(&parts.stock, server).await.is_ok();
    let deadline_ms = sale.now_ms() + BATCH_DEADLINE_MS;
    let batch = ReserveBatch {
        sale: sale.id.clone(),
        epoch: sale.epoch,
        deadline_ms,
        owner: parts.owner,
        terms_version: sale.terms_version,
        requests,
    };
    let result = if under_way.is_none() {
        // A newer life has begun, and the catalog will name it in a moment.
        Err(LedgerError::Closed)
    } else if !knows_time {
        Err(LedgerError::Unavailable("it does not tell the time".into()))
    } else if hit("gateway.reserving") {
        Err(LedgerError::Unavailable("failpoint".into()))
    } else {
        match timeout(LEDGER_ANSWER_MAX, parts.stock.reserve(&batch)).await {
            Ok(_) if hit("gateway.reserved") => Err(LedgerError::Uncertain("failpoint".into())),
            Ok(result) => result,
            Err(_) => Err(LedgerError::Uncertain("no answer in time".into())),
        }
    };
    Reserved { asking, sale, deadline_ms, asked, result, under_way }
}

/// Answers what is decided, and appends what was taken: when this returns, every taken unit's record is in the log's ring, or the
/// recovery knows of it.
fn decide(parts: &PurchaseParts, reserved: Reserved<'_>) -> (Vec<Promised>, Option<UnderWay>) {
    let Reserved { asking: _until_decided, sale, deadline_ms, asked, result, under_way } = reserved;
    let outcomes = match result {
        Ok(answer) if answer.outcomes.len() == asked.len() => answer.outcomes,
        Ok(answer) => {
            tracing::error!(sale = %sale.id, asked = asked.len(), answered = answer.outcomes.len(),
                "the ledger answered for another number of attempts than it was asked for");
            all_uncertain(parts, &sale, deadline_ms, asked);
            return (Vec::new(), under_way);
        }
        Err(LedgerError::Uncertain(_)) => {
            all_uncertain(parts, &sale, deadline_ms, asked);
            return (Vec::new(), under_way);
        }
        // Nothing was taken: out of reach, rebuilding, another life, too late, another's. Any of these may be over soon.
        Err(
            LedgerError::Unavailable(_)
            | LedgerError::WrongEpoch { .. }
            | LedgerError::DeadlinePassed
            | LedgerError::Closed
            | LedgerError::Amnesia
            | LedgerError::Foreign { .. }
            | LedgerError::UnknownSale(_),
        ) => {
            for attempt in asked {
                attempt.told.tell(parts, PurchaseAnswer::Busy);
            }
            return (Vec::new(), under_way);
        }
        Err(error @ (LedgerError::Invalid(_) | LedgerError::Open)) => {
            tracing::error!(sale = %sale.id, %error, "the ledger does not take our batch: this is a bug");
            for attempt in asked {
                attempt.told.tell(parts, PurchaseAnswer::Busy);
            }
            return (Vec::new(), under_way);
        }
    };

    let mut promised = Vec::new();
    for (attempt, outcome) in asked.into_iter().zip(outcomes) {
        let order_id = attempt.order_id;
        let answer = match outcome {
            ReserveOutcome::Pending { first, reservation } => {
                // A repeat that this very log holds already needs no second record. Otherwise we are unsure, and append again.
                match parts.progress.kept(order_id).filter(|_| !first) {
                    Some(Kept::Waiting) => {
                        let estimate = parts.progress.estimate(order_id);
                        PurchaseAnswer::Accepted { order_id, estimate, repeated: true }
                    }
                    // Only its row tells that it is none of the dead letters, of which nothing may be promised.
                    Some(Kept::Drained) => PurchaseAnswer::Settled { order_id, status: None },
                    Some(Kept::Letter) => PurchaseAnswer::Uncertain { order_id },
                    None => match append(parts, attempt.permit, attempt.payload_bytes, &reservation) {
                        Some(append) => {
                            promised.push(Promised {
                                order_id,
                                append,
                                told: attempt.told,
                                repeated: !first,
                            });
                            continue;
                        }
                        None => {
                            parts.recovery.doubt(&sale.id, &[order_id], 0);
                            PurchaseAnswer::Uncertain { order_id }
                        }
                    },
                }
            }
            ReserveOutcome::Confirmed => PurchaseAnswer::Settled { order_id, status: None },
            ReserveOutcome::PassUsed => PurchaseAnswer::PassUsed { order_id },
            // Ledger and catalog will agree in a moment.
            ReserveOutcome::TermsDiffer => PurchaseAnswer::Busy,
            ReserveOutcome::Paused => PurchaseAnswer::Paused,
            ReserveOutcome::NotStarted => {
                PurchaseAnswer::NotStarted { wait_ms: sale.starts_at_ms.saturating_sub(sale.now_ms()) }
            }
            ReserveOutcome::Ended => PurchaseAnswer::Ended,
            ReserveOutcome::LimitReached { order_ids } => PurchaseAnswer::LimitReached { order_ids },
            ReserveOutcome::NotEnough { remaining } => PurchaseAnswer::NotEnough { remaining },
            ReserveOutcome::SoldOut => PurchaseAnswer::SoldOut,
        };
        attempt.told.tell(parts, answer);
    }
    (promised, under_way)
}

fn all_uncertain(parts: &PurchaseParts, sale: &Sale, deadline_ms: u64, asked: Vec<Asked>) {
    // Only after the deadline is it certain that nothing more of the batch will be taken.
    let ids: Vec<OrderId> = asked.iter().map(|attempt| attempt.order_id).collect();
    parts.recovery.doubt(&sale.id, &ids, deadline_ms + 1);
    for attempt in asked {
        let order_id = attempt.order_id;
        attempt.told.tell(parts, PurchaseAnswer::Uncertain { order_id });
    }
}

/// Puts the reservation into the log's ring. `None`: it could not be, and recovery has to.
pub(super) fn append(
    parts: &PurchaseParts,
    permit: Permit,
    payload_bytes: usize,
    reservation: &Reservation,
) -> Option<Appending> {
    let payload = reservation.encode().ok()?;
    // What is remembered of a first attempt may be longer than this one's.
    let permit =
        if payload.len() <= payload_bytes { permit } else { parts.topic.try_permit(payload.len()).ok()? };
    if hit("gateway.appending") {
        return None;
    }
    let key = reservation.order_id.to_string();
    let record = NewRecord { key: key.as_bytes(), tag: "order", deliver_at_ms: None, payload: &payload };
    let append = parts.topic.append(permit, record);
    let heard = !hit("gateway.appended");
    parts.progress.begin(reservation.order_id);
    Some(Appending { append, heard })
}

/// Waits until each record is durable, in log order, and only then answers. The barrier is passed when all have ended.
async fn keep(
    parts: &PurchaseParts,
    sale: Arc<Sale>,
    promised: Vec<Promised>,
    mut under_way: Option<UnderWay>,
) {
    for Promised { order_id, append, told, repeated } in promised {
        let durable = append.durable(&mut under_way).await;
        if durable.is_none() {
            parts.recovery.doubt(&sale.id, &[order_id], 0);
        }
        parts.progress.end(order_id, durable);
        let answer = if durable.is_some() && !hit("gateway.durable") {
            let estimate = parts.progress.estimate(order_id);
            PurchaseAnswer::Accepted { order_id, estimate, repeated }
        } else {
            PurchaseAnswer::Uncertain { order_id }
        };
        told.tell(parts, answer);
    }
}

impl Told {
    fn tell(self, parts: &PurchaseParts, answer: PurchaseAnswer) {
        self.sale.count(answer.outcome());
        parts.metrics.took(self.since.elapsed());
        // A buyer who hung up hears nothing; what was taken stays taken.
        let _ = self.answer.send(answer);
        hit("gateway.answered");
    }
}
