//! Writes one step of an order's life: row, units, release and event, in the transaction that read the row.

use rusqlite::{Transaction, params};

use super::{DatabaseError, intake, signed};
use crate::database::transitions::{Transition, Units};

/// By compare-and-set, though the writer's turn is ours already: a step that was decided on another row must not pass.
pub(super) fn apply(transaction: &Transaction<'_>, step: &Transition) -> Result<(), DatabaseError> {
    let (before, after) = (&step.before, &step.after);
    let (order_id, now) = (after.order_id.to_string(), after.updated_at.to_string());
    let changed = transaction
        .prepare_cached(
            "UPDATE floodgate_orders
             SET status = ?4, reason = ?5, units_held = ?6, version = ?7, updated_at = ?8, paid_at = ?9, refunded_amount = ?10
             WHERE order_id = ?1 AND status = ?2 AND version = ?3",
        )?
        .execute(params![
            order_id,
            before.status.as_str(),
            signed(before.version),
            after.status.as_str(),
            after.reason,
            after.units_held,
            signed(after.version),
            now,
            after.paid_at.map(|at| at.to_string()),
            signed(after.refunded_amount),
        ])?;
    if changed != 1 {
        return Err(DatabaseError::Broken(format!("order {order_id} has changed under its own lock")));
    }
    if step.units != Units::Stay {
        transaction
            .prepare_cached(
                "UPDATE floodgate_sales SET sold = sold - ?2, updated_at = ?3 WHERE sale_id = ?1",
            )?
            .execute(params![after.sale_id.as_str(), step.units_back(), now])?;
    }
    if step.units == Units::Back {
        let (sale, user) = (after.sale_id.as_str(), after.user_id.as_str());
        intake::release(transaction, &order_id, sale, user, after.quantity, &now)?;
    }
    if let Some(event) = step.event()? {
        transaction
            .prepare_cached(
                "INSERT INTO floodgate_events (order_id, version, type, payload, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![order_id, signed(after.version), event.event_type, event.payload, now])?;
    }
    Ok(())
}
