//! Corrections of a published sale, and by which of its terms an order is judged. Reads and writes no row.

use stock::{SaleDefinition, SaleEdit, Timestamp};

use super::SaleRow;
use crate::database::DatabaseError;

/// How long before its start a sale may be postponed or shortened for the last time: until then every gateway knows.
const FIXED_BEFORE_START_MS: u64 = 10_000;

/// The row after an edit, or `None` where nothing changes. Its version is the next one.
pub(in crate::database) fn edited(
    row: &SaleRow,
    edit: &SaleEdit,
    now: Timestamp,
) -> Result<Option<SaleRow>, DatabaseError> {
    let before = &row.definition;
    let after = edit.of(before);
    if after == *before {
        return Ok(None);
    }
    let sale = &before.id;
    let invalid = |why: String| Err(DatabaseError::Invalid(format!("sale {sale}: {why}")));
    if row.withdrawn_at.is_some() {
        return invalid("it is withdrawn: publish a new one".into());
    }
    if let Err(fault) = after.validate() {
        return invalid(fault.to_string());
    }
    let is_about_to_start = now.0 + FIXED_BEFORE_START_MS > before.starts_at.0;
    if after.starts_at != before.starts_at {
        if is_about_to_start {
            return invalid(
                "starts_at can be changed until 10 s before the start: `floodgate sales pause` holds it up"
                    .into(),
            );
        }
        if after.starts_at.0 < now.0 + FIXED_BEFORE_START_MS {
            return invalid("starts_at must be 10 s ahead at least".into());
        }
    }
    if after.ends_at < before.ends_at {
        if is_about_to_start && now < before.starts_at {
            return invalid(
                "ends_at can be brought forward until 10 s before the start, and after it".into(),
            );
        }
        if after.ends_at <= now {
            return invalid("ends_at must lie ahead: `floodgate sales pause` ends it at once".into());
        }
    }
    let version = row.version + 1;
    let has_other_terms = Terms::of(&after) != Terms::of(before);
    let terms_version = if has_other_terms { version } else { row.terms_version };
    // One that is settled and ends later now is lifted by the reconciler.
    Ok(Some(SaleRow { version, terms_version, ends_at: after.ends_at, definition: after, ..row.clone() }))
}

/// What an order is judged by: of the version under which it was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::database) struct Terms {
    pub(in crate::database) price: u64,
    pub(in crate::database) currency: String,
    pub(in crate::database) per_user_limit: u32,
    pub(in crate::database) pay_within_s: u32,
}

impl Terms {
    pub(in crate::database) fn of(definition: &SaleDefinition) -> Self {
        Self {
            price: definition.price,
            currency: definition.currency.clone(),
            per_user_limit: definition.per_user_limit,
            pay_within_s: definition.pay_within_s,
        }
    }

    /// Minor units, for so many. Always there for what fits: a checked definition's price times its limit does.
    pub(in crate::database) fn amount(&self, quantity: u32) -> Option<i64> {
        let amount = self.price.checked_mul(u64::from(quantity))?;
        i64::try_from(amount).ok()
    }

    pub(in crate::database) fn pay_by(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0 + u64::from(self.pay_within_s) * 1_000)
    }
}

/// The version whose terms a reservation was made under, where they are not the row's. A record that names none was made before a
/// first edit; one that names a version that is not there, before the database was put back: the row's terms are all there is.
pub(in crate::database) fn older_terms(row: &SaleRow, sale_version: Option<u64>) -> Option<u64> {
    sale_version.filter(|version| *version < row.terms_version)
}
