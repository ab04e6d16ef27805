//! What is on offer: a sale as published, and the part of it that the ledger must know.

mod check;
mod currency;
mod edit;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use check::SaleError;
pub use currency::currency_digits;
pub use edit::SaleEdit;

use crate::{SaleId, Timestamp};

/// One `[[sale]]` of the configuration, or the body of `PUT /admin/v1/sales`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaleDefinition {
    /// Names the sale everywhere.
    pub id: SaleId,
    /// The operator's own name of the item.
    #[serde(default)]
    pub item_id: String,
    /// Shown to buyers.
    #[serde(default)]
    pub title: String,
    /// Shown to buyers.
    #[serde(default)]
    pub description: String,
    /// ISO 4217.
    #[serde(default = "currency_default")]
    pub currency: String,
    /// Minor units, for one unit.
    pub price: u64,
    /// Minor units; what it costs elsewhere. 0 hides it.
    #[serde(default)]
    pub list_price: u64,
    /// Units on offer when first published; restocks raise the row's total, not this.
    pub total: u32,
    /// Units one user may hold.
    #[serde(default = "per_user_limit_default")]
    pub per_user_limit: u32,
    /// At most this many live passes per remaining unit; 0 = no gate.
    #[serde(default)]
    pub passes_per_unit: u32,
    /// An order unpaid for this long is closed.
    #[serde(default = "pay_within_s_default")]
    pub pay_within_s: u32,
    /// First instant at which units may be taken.
    pub starts_at: Timestamp,
    /// First instant at which they no longer may.
    pub ends_at: Timestamp,
    /// A practice run: marked as such wherever it shows.
    #[serde(default)]
    pub rehearsal: bool,
    /// On whose word a paid order's money goes back.
    #[serde(default)]
    pub refund: RefundPolicy,
    /// Whether the units of an order that is refunded whole are on sale again.
    #[serde(default = "unit_returns_on_refund_default")]
    pub unit_returns_on_refund: bool,
    /// The operator's own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// On whose word a paid order's money goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefundPolicy {
    /// The buyer's, at any time, and an operator's.
    #[default]
    Buyer,
    /// An operator's alone.
    Operator,
}

fn currency_default() -> String {
    "CNY".into()
}

fn per_user_limit_default() -> u32 {
    1
}

fn pay_within_s_default() -> u32 {
    900
}

fn unit_returns_on_refund_default() -> bool {
    true
}

/// The versioned part of a sale's row that the ledger must know. Newer wins; see [`crate::ledger`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleVersion {
    /// Names the sale.
    pub sale: SaleId,
    /// Rises with every change of the row's definition (publish, restock, pause, resume, edit).
    pub version: u64,
    /// The version since which price, currency, limit and pay time are as they are.
    pub terms_version: u64,
    /// Units on offer now.
    pub total: u32,
    /// Ledger time, milliseconds since the Unix epoch; inclusive.
    pub starts_at_ms: u64,
    /// Ledger time, milliseconds since the Unix epoch; exclusive.
    pub ends_at_ms: u64,
    /// Units one user may hold.
    pub per_user_limit: u32,
    /// At most this many live passes per remaining unit; 0 = no gate.
    pub passes_per_unit: u32,
    /// Refuse everybody until resumed.
    pub paused: bool,
}
