//! What an operator sees of the instances and the ledger's life, and may do: begin a new one, with or without a log, or on what another
//! deployment left.

use queue::{Position, Topic};
use serde::Serialize;
use stock::ledger::BATCH_MAX;
use stock::{LedgerError, Owner, SaleId, Stock};

use super::merge::RebuildError;
use crate::database::{Database, LedgerChange};
use crate::journal::Author;
use crate::topics::DRAIN_GROUP;

/// The ledger's life and everybody's part in it.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// In force.
    pub epoch: u64,
    /// Of every sale that is not settled.
    pub sales: Vec<SaleStatus>,
    /// Everybody registered.
    pub instances: Vec<InstanceStatus>,
    /// Ids of the instances whose log a rebuild still waits for.
    pub waiting_for: Vec<String>,
}

/// One sale.
#[derive(Debug, Clone, Serialize)]
pub struct SaleStatus {
    /// Which.
    pub sale: SaleId,
    /// The epoch at which somebody took the right to install it.
    pub installed_epoch: Option<u64>,
    /// The latest epoch whose ledger was complete for it.
    pub opened_epoch: Option<u64>,
    /// `open`, `closed`, `absent`, `amnesia`, `foreign` or `unreachable`.
    pub ledger: &'static str,
    /// The ledger's, where it has one.
    pub ledger_epoch: Option<u64>,
}

/// One instance.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceStatus {
    /// The log's id, 16 hexadecimal digits.
    pub owner: String,
    /// Where its log is.
    pub place: String,
    /// The latest epoch that holds what it promised before.
    pub merged_epoch: u64,
    /// Whether it may hold promises. A log that never does is never waited for.
    pub holds_promises: bool,
    /// Whether an operator went on without it, and it has not been back since.
    pub left_out: bool,
    /// Until its lease ends; `None`: it has none, or the ledger cannot be asked.
    pub lease_left_ms: Option<u64>,
}

/// Everybody's standing. Without a ledger only what the database knows.
///
/// # Errors
/// The database's.
pub async fn status(database: &Database, stock: Option<&Stock>) -> Result<Status, RebuildError> {
    let epoch = database.epoch().await?;
    let mut sales = Vec::new();
    for row in database.unsettled_sales().await? {
        let sale = row.definition.id;
        let (ledger, ledger_epoch) = match stock {
            None => ("unreachable", None),
            Some(stock) => match stock.ledger().snapshot(&sale).await {
                Ok(snapshot) => (if snapshot.open { "open" } else { "closed" }, Some(snapshot.epoch)),
                Err(LedgerError::UnknownSale(_)) => ("absent", None),
                Err(LedgerError::Amnesia) => ("amnesia", None),
                Err(LedgerError::Foreign { .. }) => ("foreign", None),
                Err(_) => ("unreachable", None),
            },
        };
        let (installed_epoch, opened_epoch) = (row.installed_epoch, row.opened_epoch);
        sales.push(SaleStatus { sale, installed_epoch, opened_epoch, ledger, ledger_epoch });
    }
    let leases = match stock {
        Some(stock) => stock.ledger().leases().await.ok(),
        None => None,
    };
    let lease_left_ms = |owner: Owner| {
        let (now_ms, leases) = leases.as_ref()?;
        let (_, until_ms) = leases.iter().find(|(leased, _)| *leased == owner)?;
        Some(until_ms.saturating_sub(*now_ms))
    };
    let registered = database.instances().await?;
    let awaited = registered.iter().filter(|instance| instance.is_awaited(epoch));
    let waiting_for = awaited.map(|instance| instance.owner.to_string()).collect();
    let instances = registered.into_iter().map(|instance| InstanceStatus {
        lease_left_ms: lease_left_ms(instance.owner),
        owner: instance.owner.to_string(),
        place: instance.place,
        merged_epoch: instance.merged_epoch,
        holds_promises: instance.holds_promises,
        left_out: instance.left_out,
    });
    let instances = instances.collect();
    Ok(Status { epoch, sales, instances, waiting_for })
}

/// Begins a new life of the ledger: the running processes notice within a second and rebuild it. Answers with its epoch.
///
/// # Errors
/// The database's.
pub async fn begin_rebuild(database: &Database, author: &Author) -> Result<u64, RebuildError> {
    let epoch = database.epoch().await?;
    Ok(database.change_ledger(epoch, LedgerChange::Rebuild, author).await?)
}

/// Has a log hand over again what it has behind `through`, to a database that was put back, and begins a new life of the ledger:
/// one that outlived its processes remembers what those rows no longer say. Answers with its epoch.
///
/// A crash between the two leaves a ledger that is not the rows' any more: a repeat begins the life.
///
/// # Errors
/// `GroupHeld` while a worker drains the log; `NotKept`; the log's, the database's.
pub async fn hand_over_again(
    database: &Database,
    orders: &Topic,
    through: Option<Position>,
    author: &Author,
) -> Result<u64, RebuildError> {
    queue::operator::reset_to_position(orders, DRAIN_GROUP, through).await?;
    begin_rebuild(database, author).await
}

/// What is given up with an instance's log. `None`: unknown, since the ledger has forgotten it or cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AtRisk {
    /// Orders that may have been promised and are not rows.
    pub orders: Option<u64>,
    /// Their units.
    pub units: Option<u64>,
}

/// What a rebuild without `owner`'s log would give up.
///
/// # Errors
/// The database's.
pub async fn at_risk(
    database: &Database,
    stock: Option<&Stock>,
    owner: Owner,
) -> Result<AtRisk, RebuildError> {
    let unknown = AtRisk { orders: None, units: None };
    let Some(stock) = stock else { return Ok(unknown) };
    let (mut orders, mut units) = (0, 0);
    for row in database.unsettled_sales().await? {
        let sale = &row.definition.id;
        // Only an open ledger remembers every promise; a closed one may lack just this log's.
        match stock.ledger().snapshot(sale).await {
            Ok(snapshot) if snapshot.open => {}
            Err(LedgerError::UnknownSale(_)) if !row.was_opened() => continue,
            Ok(_) | Err(_) => return Ok(unknown),
        }
        let mut after = None;
        loop {
            let Ok(page) = stock.ledger().pending(sale, Some(owner), after, BATCH_MAX).await else {
                return Ok(unknown);
            };
            orders += page.len() as u64;
            units += page.iter().map(|(_, reservation)| u64::from(reservation.quantity)).sum::<u64>();
            match page.last() {
                Some((_, last)) if page.len() == BATCH_MAX => after = Some(last.order_id),
                _ => break,
            }
        }
    }
    Ok(AtRisk { orders: Some(orders), units: Some(units) })
}

/// Leaves out an instance whose log is out of reach, and begins a new life of the ledger without it. What its log promised and
/// nobody drained may be sold again. Its row stays, marked, so that the log is known should it come back: the newest is then merged like
/// any other, an older copy is refused. One that holds no promises leaves the registry, and the ledger lives on: nothing is at risk. `stock` is
/// none where the ledger is in a process that does not run: such a process drains its own log, which the database knows of.
///
/// The new epoch, the mark and the journal's row are one transaction: a crash leaves all of them or none.
///
/// # Errors
/// [`RebuildError::Alive`] while its lease lasts, [`RebuildError::Drains`] while it drains, [`RebuildError::LeaseUnknown`] while the ledger cannot be asked for it;
/// [`RebuildError::LeftOut`]; [`RebuildError::UnknownInstance`]; the database's.
pub async fn forget_instance(
    database: &Database,
    stock: Option<&Stock>,
    owner: Owner,
    author: &Author,
) -> Result<AtRisk, RebuildError> {
    let registered = database.instances().await?;
    let Some(instance) = registered.iter().find(|instance| instance.owner == owner) else {
        return Err(RebuildError::UnknownInstance(owner));
    };
    if let Some(stock) = stock {
        // Without an answer nobody knows whether it sells at this moment.
        let leases = stock.ledger().leases().await;
        let (_, leases) = leases.map_err(|error| RebuildError::LeaseUnknown(owner, error))?;
        if leases.iter().any(|(leased, _)| *leased == owner) {
            return Err(RebuildError::Alive(owner));
        }
    } else if database.is_drained(owner).await? {
        return Err(RebuildError::Drains(owner));
    }
    if !instance.holds_promises {
        database.forget_log(owner, author).await?;
        return Ok(AtRisk { orders: Some(0), units: Some(0) });
    }
    if instance.left_out {
        return Err(RebuildError::LeftOut(owner));
    }
    let at_risk = at_risk(database, stock, owner).await?;
    let epoch = database.epoch().await?;
    database.change_ledger(epoch, LedgerChange::Forget(owner), author).await?;
    Ok(at_risk)
}

/// What was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adopted {
    /// Sales that were another deployment's.
    pub sales: Vec<SaleId>,
    /// In force afterwards.
    pub epoch: u64,
}

/// Takes over every sale of this database that is another deployment's in the ledger; running processes then find that the ledger has
/// lost its memory, and rebuild it from rows and logs.
///
/// A crash between two sales leaves the others to a repeat. One before the epoch leaves a life that is below the other deployment's:
/// its flags may say sold out until they are doubted.
///
/// # Errors
/// [`RebuildError::OtherAlive`] while an instance that this database does not know has a lease; the database's; the ledger's.
pub async fn adopt(database: &Database, stock: &Stock, author: &Author) -> Result<Adopted, RebuildError> {
    let registered = database.instances().await?;
    let is_ours = |owner: Owner| registered.iter().any(|instance| instance.owner == owner);
    let (_, leases) = stock.leases().await?;
    if let Some((other, _)) = leases.into_iter().find(|(owner, _)| !is_ours(*owner)) {
        return Err(RebuildError::OtherAlive(other));
    }
    let (mut sales, mut highest) = (Vec::new(), 0);
    for row in database.unsettled_sales().await? {
        let sale = row.definition.id;
        if let Some(epoch) = stock.adopt(&sale).await? {
            tracing::warn!(%sale, epoch, "the sale is taken over from another deployment");
            highest = highest.max(epoch);
            sales.push(sale);
        }
    }
    let mut epoch = database.epoch().await?;
    if !sales.is_empty() {
        // Beyond every life that the ledger has had: its flags carry them.
        let change = LedgerChange::Adopt(sales.clone());
        epoch = database.change_ledger(highest.max(epoch), change, author).await?;
    }
    Ok(Adopted { sales, epoch })
}
