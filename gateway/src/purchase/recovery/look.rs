//! One look of the recovery at one sale: what the ledger holds and this instance's log may lack gets its record. Decides nothing of when.
//!
//! It never appends what a new life of the ledger may not know: it enters the barrier with an epoch before it sees that the ledger
//! lives in that one. What the ledger holds then is known to that life, and a newer one waits for the appends.

use queue::failpoint::hit;
use queue::{QueueError, Refused};
use stock::ledger::{BATCH_MAX, IdState};
use stock::{LedgerError, OrderId, Owner, Reservation, SaleId, UnderWay};
use tokio::time::Instant;

use super::super::{PurchaseParts, batch, payload_bytes_max};

/// Why a look has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfinished {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Permit(#[from] Refused),
    #[error(transparent)]
    Log(#[from] QueueError),
    #[error("an append's end is not known")]
    Append,
    #[error("the ledger is being rebuilt")]
    Rebuilding,
}

impl Unfinished {
    /// Whether the sale's server does not answer: then no other sale of it can be looked at.
    pub(super) fn is_of_the_server(&self) -> bool {
        matches!(self, Self::Ledger(LedgerError::Unavailable(_) | LedgerError::Uncertain(_)))
    }
}

/// How fast a look goes through a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Page after page.
    Full,
    /// Rests between two pages for as long as the last one took: nobody waits for what it finds.
    Half,
}

/// Appends every reservation that the ledger holds for `owner` and the log does not.
pub(super) async fn at_all(
    parts: &PurchaseParts,
    sale: &SaleId,
    owner: Owner,
    pace: Pace,
) -> Result<(), Unfinished> {
    let mut after = None;
    loop {
        let begun = Instant::now();
        let Some(under_way) = enter(parts, sale).await? else { return Ok(()) };
        let page = parts.stock.pending(sale, Some(owner), after, BATCH_MAX).await?;
        let is_last = page.len() < BATCH_MAX;
        let page: Vec<Reservation> = page.into_iter().map(|(_, reservation)| reservation).collect();
        after = page.last().map(|last| last.order_id);
        append(parts, under_way, owner, &page).await?;
        if is_last {
            return Ok(());
        }
        if pace == Pace::Half {
            tokio::time::sleep(begun.elapsed()).await;
        }
    }
}

/// Appends those of the doubted orders that the ledger holds and the log does not. `is_later`: after the time at which nothing
/// more of them should run.
pub(super) async fn at_doubts(
    parts: &PurchaseParts,
    sale: &SaleId,
    is_later: bool,
) -> Result<(), Unfinished> {
    let doubts = &parts.recovery.doubts;
    for ids in doubts.of(sale).chunks(BATCH_MAX) {
        let Some(under_way) = enter(parts, sale).await? else {
            doubts.settle(sale, ids);
            continue;
        };
        let states = parts.stock.states(sale, ids).await?;
        let (mut known, mut absent, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for (id, state) in ids.iter().copied().zip(states) {
            match state {
                IdState::Absent => absent.push(id),
                IdState::Confirmed | IdState::Released => known.push(id),
                IdState::Pending if parts.progress.holds(id) => known.push(id),
                // The append that is under way doubts it again if it fails.
                IdState::Pending if parts.progress.is_seen_to(id) => {}
                IdState::Pending => taken.push(id),
            }
        }
        let mut lacking = Vec::with_capacity(taken.len());
        for id in taken {
            match reservation_of(parts, sale, id).await? {
                Some((owner, reservation)) if owner == parts.owner => lacking.push(reservation),
                // It was taken through another instance, whose own it is; or it has moved on.
                _ => known.push(id),
            }
        }
        append(parts, under_way, parts.owner, &lacking).await?;
        known.extend(lacking.iter().map(|reservation| reservation.order_id));
        doubts.settle(sale, &known);
        if is_later {
            doubts.absent(sale, &absent);
        }
    }
    Ok(())
}

/// What the ledger holds pending of one order.
async fn reservation_of(
    parts: &PurchaseParts,
    sale: &SaleId,
    order_id: OrderId,
) -> Result<Option<(Owner, Reservation)>, LedgerError> {
    let before = order_id.0.checked_sub(1).map(OrderId);
    let page = parts.stock.pending(sale, None, before, 1).await?;
    Ok(page.into_iter().find(|(_, reservation)| reservation.order_id == order_id))
}

/// The right to append what the ledger holds from now on. `None`: it does not know the sale, or another deployment has it there: it
/// holds nothing of ours.
async fn enter(parts: &PurchaseParts, sale: &SaleId) -> Result<Option<UnderWay>, Unfinished> {
    let epoch = parts.epoch_gate.offered();
    let under_way = parts.epoch_gate.enter(epoch).ok_or(Unfinished::Rebuilding)?;
    match parts.stock.snapshot(sale).await {
        Ok(snapshot) if snapshot.epoch == epoch => Ok(Some(under_way)),
        Ok(_) => Err(Unfinished::Rebuilding),
        Err(LedgerError::UnknownSale(_) | LedgerError::Foreign { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Appends what nobody sees to. A crash leaves some of it in the log: the next start finds it there.
async fn append(
    parts: &PurchaseParts,
    under_way: UnderWay,
    owner: Owner,
    reservations: &[Reservation],
) -> Result<(), Unfinished> {
    // A dead letter is none of the log's records any more, and reading the letters reads all of them: only for what lacks a record.
    if reservations.iter().any(|reservation| !parts.progress.is_seen_to(reservation.order_id)) {
        parts.progress.load_letters().await?;
    }
    let mut under_way = Some(under_way);
    let mut appends = Vec::new();
    let mut refused = None;
    for reservation in reservations {
        let order_id = reservation.order_id;
        if parts.progress.is_seen_to(order_id) {
            continue;
        }
        let payload_bytes = payload_bytes_max(
            reservation.sale.as_str(),
            reservation.user.as_str(),
            reservation.metadata.as_deref(),
        );
        let append = parts.topic.try_permit(payload_bytes).map_err(Unfinished::from).and_then(|permit| {
            batch::append(parts, permit, payload_bytes, reservation).ok_or(Unfinished::Append)
        });
        match append {
            Ok(append) => appends.push((order_id, append)),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let appended = appends.len();
    // To the last one, whatever becomes of the first: none may be left as if on its way.
    for (order_id, append) in appends {
        let durable = append.durable(&mut under_way).await;
        parts.progress.end(order_id, durable);
        match durable {
            Some(_) => _ = parts.metrics.recovered.inc(),
            None => refused = Some(Unfinished::Append),
        }
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    let failpoint = if owner == parts.owner { "gateway.recovered" } else { "gateway.adopted" };
    if appended > 0 && hit(failpoint) {
        return Err(Unfinished::Append);
    }
    Ok(())
}
