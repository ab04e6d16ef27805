//! The invariants of design, *What must hold after any crash, at rest*: checked from what buyers were told, from the rows and
//! from the ledger, not from what the process says of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use order_worker::DRAIN_GROUP;
use order_worker::database::OrderRow;
use stock::ledger::{IdState, Snapshot};
use stock::{LedgerError, OrderId, OrderStatus, SaleId, UserId};
use tokio::time::{Instant, sleep};

use crate::census::PROMISES_MERGED;
use crate::claims::Claims;
use crate::machine::Machine;
use crate::money;
use crate::process::Inside;
use crate::world::{Mode, World};

/// Design: not at rest 60 s after the last answer counts as broken.
const REST_MAX: Duration = Duration::from_secs(60);
/// The same where deadlines were left to the index, or their log is lost: a minute more until they count as that, and a minute until they
/// are looked for.
const REST_MAX_UNPAID: Duration = Duration::from_secs(240);
/// Late calls arrive within this; rest has to last that long.
const QUIET: Duration = Duration::from_secs(5);

/// Waits until nothing is outstanding anywhere, and stays so.
pub(crate) async fn wait_for_rest(world: &World, machines: &[Machine]) {
    let begun = Instant::now();
    let mut quiet_since = None;
    loop {
        let unrest = unrest(world, machines).await;
        match (&unrest, quiet_since) {
            (None, None) => quiet_since = Some(Instant::now()),
            (None, Some(since)) if since.elapsed() >= QUIET => return,
            (None, Some(_)) => {}
            (Some(_), _) => quiet_since = None,
        }
        assert!(
            begun.elapsed() < QUIET + if world.pays { REST_MAX_UNPAID } else { REST_MAX },
            "not at rest in time: {}",
            unrest.unwrap_or_else(|| "it comes and goes".into())
        );
        sleep(Duration::from_millis(250)).await;
    }
}

/// What is still outstanding.
async fn unrest(world: &World, machines: &[Machine]) -> Option<String> {
    world.settle_servers();
    for machine in machines {
        if machine.is_gone() {
            continue;
        }
        let Some(inside) = machine.inside() else { return Some("a process is down".into()) };
        if machine.is_frozen() {
            return Some("a process stands still".into());
        }
        if let Some(unrest) = unrest_of(&inside).await {
            return Some(unrest);
        }
        if world.pays && world.clocks_agree() {
            let orders = inside.database.orders(&world.sale.id, None, 1_000).await.expect("the orders");
            if let Some(due) = orders.iter().find(|order| order.status == OrderStatus::Unpaid) {
                return Some(format!("order {} is neither paid nor closed", due.order_id));
            }
        }
    }
    None
}

async fn unrest_of(inside: &Inside) -> Option<String> {
    let in_flight = inside.in_flight();
    if in_flight > 0 {
        return Some(format!("{in_flight} purchases in flight"));
    }
    if !inside.recovered() {
        return Some("recovery is not idle".into());
    }
    let lag = inside.topic.lag(DRAIN_GROUP).await.expect("the drain's lag");
    if lag.records > 0 {
        return Some(format!("{} records to drain", lag.records));
    }
    let releases = inside.database.releases_outstanding().await.expect("the outbox");
    if releases > 0 {
        return Some(format!("{releases} releases outstanding"));
    }
    for row in inside.database.sales().await.expect("the sales").into_iter().filter(|row| !row.settled) {
        let sale = row.definition.id.clone();
        match inside.stock.ledger().snapshot(&sale).await {
            Err(LedgerError::UnknownSale(_)) if is_settled(inside, &sale).await => {}
            Err(error) => return Some(format!("the ledger does not show sale {sale}: {error}")),
            Ok(snapshot) if !snapshot.open => return Some(format!("sale {sale} is closed")),
            Ok(snapshot) if snapshot.pending > 0 => {
                return Some(format!("{} units of sale {sale} pending", snapshot.pending));
            }
            Ok(snapshot) if snapshot.version != row.version => {
                return Some(format!("sale {sale} is at version {} in the ledger", snapshot.version));
            }
            Ok(_) => {}
        }
    }
    None
}

/// An open ledger knows every promise: judged at each opening by what had been promised until then, rest or not.
pub(crate) fn check_openings(world: &World, claims: &Claims) {
    for opening in world.server.take_openings() {
        let promised = claims.promised_until(opening.at);
        let of_sale = promised.into_iter().filter(|(_, claim)| claim.sale == opening.sale);
        for (order_id, claim) in of_sale {
            world.census.saw(PROMISES_MERGED);
            assert!(
                opening.known.contains(&order_id),
                "the ledger was opened at epoch {} without the promised order {order_id}: {claim:?}",
                opening.epoch
            );
        }
    }
}

/// The same at the moment of a promise.
pub(crate) fn check_promise(world: &World, sale: &SaleId, order_id: OrderId) {
    if let Some(state) = world.living_server().state_of(sale, order_id) {
        assert!(state != IdState::Absent, "the open ledger does not know the promised order {order_id}");
    }
}

/// Checks everything, at rest. `sold_out`: demand was enough to sell every unit.
pub(crate) async fn check(world: &World, inside: &Inside, claims: &Claims, sold_out: bool) {
    let rows = all_rows(inside).await;
    check_promises(world, &rows, claims);
    money::check(world, &inside.database, &rows).await;
    for row in inside.database.sales().await.expect("the sales") {
        let sale = row.definition.id.clone();
        let of_sale: Vec<&OrderRow> = rows.values().filter(|order| order.sale_id == sale).collect();
        let held: u64 = of_sale.iter().map(|order| u64::from(order.units_held)).sum();
        assert_eq!(u64::from(row.sold), held, "sold of sale {sale} is not what its orders hold");
        assert!(held <= u64::from(row.total), "sale {sale} is oversold: {held} of {}", row.total);
        check_limits(&of_sale, row.definition.per_user_limit);
        if sale == world.sale.id && sold_out {
            assert_eq!(held, u64::from(row.total), "units leaked: the crowd could not buy everything");
        }
        match inside.stock.ledger().snapshot(&sale).await {
            Ok(snapshot) => {
                check_ledger(&snapshot, row.total, held);
                check_flag(world, inside, &sale, &snapshot);
                check_ids(inside, &sale, &of_sale, claims).await;
            }
            // It may have been settled since its row was read. A replica that lacked its removal holds it under another memory, closed.
            Err(LedgerError::UnknownSale(_) | LedgerError::Amnesia) if is_settled(inside, &sale).await => {}
            Err(error) => panic!("the ledger does not show sale {sale}: {error}"),
        }
    }
}

async fn is_settled(inside: &Inside, sale: &SaleId) -> bool {
    inside.database.sale(sale).await.expect("the sale").is_none_or(|row| row.settled)
}

async fn all_rows(inside: &Inside) -> BTreeMap<OrderId, OrderRow> {
    let mut rows = BTreeMap::new();
    for sale in inside.database.sales().await.expect("the sales") {
        let mut after = None;
        loop {
            let page = inside.database.orders(&sale.definition.id, after, 100).await.expect("the orders");
            let Some(last) = page.last() else { break };
            after = Some(last.order_id);
            for row in page {
                let twice = rows.insert(row.order_id, row);
                assert!(twice.is_none(), "an order id has two rows: {twice:?}");
            }
        }
    }
    rows
}

// 1. Every 202 has exactly one row, and it is not rejected; nobody has an order that was denied to them.
fn check_promises(world: &World, rows: &BTreeMap<OrderId, OrderRow>, claims: &Claims) {
    for (order_id, row) in rows {
        let Some(claim) = claims.get(*order_id) else { panic!("nobody ever pressed for {row:?}") };
        assert_eq!(claim.user, row.user_id, "the order of somebody else: {row:?}");
        assert_eq!(claim.sale, row.sale_id, "the order of another sale: {row:?}");
        assert!(claim.asked.contains(&row.quantity), "a quantity that nobody asked for: {row:?}, {claim:?}");
        assert!(row.status != OrderStatus::Rejected, "a promised order was rejected: {row:?}, {claim:?}");
        assert!(!claim.lost(), "an order that was refused or absent for good: {row:?}, {claim:?}");
        if claim.cancelled {
            assert_eq!(row.status, OrderStatus::Closed, "a cancelled order lives: {row:?}");
        }
        let is_closed = row.status == OrderStatus::Closed;
        if is_closed && row.reason.as_deref() != Some("lapsed") {
            assert!(claim.cancel_asked, "nobody cancelled {row:?}");
        }
        let held = if is_closed { 0 } else { row.quantity };
        assert_eq!(row.units_held, held, "units do not fit the status: {row:?}");
    }
    for (order_id, claim) in claims.all() {
        let exists = rows.contains_key(&order_id);
        if claim.at_risk {
            continue;
        }
        assert!(exists || !claim.promised, "the promised order {order_id} was lost: {claim:?}");
        // What was pending and never promised may be in no log, and a rebuild takes it back. Who owns all that is pending shows
        // only what its log has kept.
        let seen = claim.seen.is_some_and(|epoch| epoch == world.epoch() || world.machines() == 1);
        assert!(exists || !seen, "the order {order_id} was shown by GET and is lost: {claim:?}");
    }
}

// 2. Units held per user.
fn check_limits(orders: &[&OrderRow], limit: u32) {
    let mut by_user: BTreeMap<&UserId, u32> = BTreeMap::new();
    for order in orders {
        *by_user.entry(&order.user_id).or_default() += order.units_held;
    }
    for (user, held) in by_user {
        assert!(held <= limit, "{user} holds {held} units, the limit is {limit}");
    }
}

// 3. total = remaining + pending + confirmed, confirmed = sold, pending empty.
fn check_ledger(snapshot: &Snapshot, total: u32, held: u64) {
    let Snapshot { remaining, pending, confirmed, .. } = *snapshot;
    assert_eq!(snapshot.total, total, "the ledger offers another total: {snapshot:?}");
    assert_eq!(
        i64::from(total),
        remaining + pending as i64 + confirmed as i64,
        "units are not conserved: {snapshot:?}"
    );
    assert_eq!(confirmed, held, "the ledger confirmed other units than are sold: {snapshot:?}");
    assert_eq!(pending, 0, "pending units are left: {snapshot:?}");
}

// The flag is a hint: "open" may be stale where answers get lost, "sold out" must heal.
fn check_flag(world: &World, inside: &Inside, sale: &SaleId, snapshot: &Snapshot) {
    let flag = inside.stock.flag().cell(sale).read();
    let says_sold_out = flag.is_some_and(|flag| flag.sold_out);
    if says_sold_out || world.mode == Mode::Embedded && flag.is_some() {
        assert_eq!(says_sold_out, snapshot.remaining <= 0, "{flag:?} does not fit {snapshot:?}");
    }
}

/// Every id stands in the ledger as its row says.
async fn check_ids(inside: &Inside, sale: &SaleId, orders: &[&OrderRow], claims: &Claims) {
    for order in orders {
        let states = inside.stock.ledger().states(sale, &[order.order_id]).await.expect("the ledger is open");
        let expected = if order.units_held > 0 { IdState::Confirmed } else { IdState::Released };
        assert_eq!(states, [expected], "the ledger does not know where {order:?} stands");
    }
    for (order_id, claim) in claims.all() {
        if claim.sale == *sale && !orders.iter().any(|order| order.order_id == order_id) {
            let states = inside.stock.ledger().states(sale, &[order_id]).await.expect("the ledger is open");
            assert_eq!(
                states,
                [IdState::Absent],
                "the ledger remembers {order_id}, which has no row: {claim:?}"
            );
        }
    }
}
