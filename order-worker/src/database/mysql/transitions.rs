//! Writes steps of orders' lives: rows, units, releases and events, in the transaction that read the rows under their locks.

use std::collections::BTreeMap;
use std::fmt::Write;

use stock::{OrderId, SaleId};

use super::intake;
use super::sales;
use super::sql::{Text, TextOrNull, ids};
use crate::database::DatabaseError;
use crate::database::transitions::{Transition, Units};

/// Statements that write all of `steps`, each of another order, decided at one time. The orders are locked by the caller, and so are the sales of
/// those that give units back.
pub(super) fn apply(steps: &[Transition]) -> Result<String, DatabaseError> {
    // What many steps have in common is one statement.
    let mut changes: BTreeMap<(String, &'static str), Vec<&OrderId>> = BTreeMap::new();
    let mut units: BTreeMap<&SaleId, (u64, String)> = BTreeMap::new();
    let (mut releases, mut events) = (String::new(), String::new());
    for step in steps {
        let after = &step.after;
        let now = after.updated_at.to_string();
        let set = format!(
            "status = '{}', reason = {}, units_held = {}, version = version + 1, updated_at = '{now}', paid_at = {}, refunded_amount = {}",
            after.status,
            TextOrNull(after.reason.as_deref()),
            after.units_held,
            TextOrNull(after.paid_at.map(|at| at.to_string()).as_deref()),
            after.refunded_amount,
        );
        changes.entry((set, step.before.status.as_str())).or_default().push(&after.order_id);
        if step.units != Units::Stay {
            units.entry(&after.sale_id).or_insert((0, now.clone())).0 += u64::from(step.units_back());
        }
        // Writing into a String does not fail, here and below.
        if step.units == Units::Back {
            let _ = write!(
                releases,
                "{}('{}', {}, {}, {}, '{now}')",
                if releases.is_empty() { "" } else { "," },
                after.order_id,
                Text(after.sale_id.as_str()),
                Text(after.user_id.as_str()),
                after.quantity,
            );
        }
        if let Some(event) = step.event()? {
            let _ = write!(
                events,
                "{}('{}', {}, '{}', {}, '{now}')",
                if events.is_empty() { "" } else { "," },
                after.order_id,
                after.version,
                event.event_type,
                Text(&event.payload),
            );
        }
    }
    let mut statements = String::new();
    for ((set, before), orders) in changes {
        let orders = ids(orders);
        let _ = write!(
            statements,
            "UPDATE floodgate_orders SET {set} WHERE order_id IN ({orders}) AND status = '{before}';"
        );
    }
    if !releases.is_empty() {
        statements += &intake::release(&releases);
    }
    if !events.is_empty() {
        let _ = write!(
            statements,
            "INSERT INTO floodgate_events (order_id, version, type, payload, created_at) VALUES {events};"
        );
    }
    for (sale, (units, now)) in units {
        statements += &sales::update(sale, &now, &format!("sold = sold - {units}"));
    }
    Ok(statements)
}
