//! A sale, its orders and a clock in the test's hand, the same in every test program.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use order_worker::database::Sight;
use order_worker::{Author, JournalKey};
use stock::{Now, OrderId, RefundPolicy, Reservation, SaleDefinition, SaleId, Timestamp, UserId};

/// 2026-11-11T12:00:00Z: when every test's clock starts, and its sales have begun.
pub(crate) const START_MS: u64 = 1_794_398_400_000;

pub(crate) fn clock(now_ms: &Arc<AtomicU64>) -> Now {
    let now_ms = now_ms.clone();
    Arc::new(move || now_ms.load(Ordering::SeqCst))
}

pub(crate) fn definition(id: &str, total: u32, per_user_limit: u32) -> SaleDefinition {
    SaleDefinition {
        id: sale_id(id),
        item_id: "item".into(),
        title: "红包".into(),
        description: String::new(),
        currency: "CNY".into(),
        price: 206_640,
        list_price: 688_800,
        total,
        per_user_limit,
        passes_per_unit: 0,
        pay_within_s: 900,
        starts_at: Timestamp(START_MS - 1_000),
        ends_at: Timestamp(START_MS + 3_600_000),
        rehearsal: false,
        refund: RefundPolicy::Buyer,
        unit_returns_on_refund: true,
        labels: [("colour".to_owned(), "red".to_owned())].into(),
    }
}

/// A member that nobody knows of, with a ledger in its own memory.
pub(crate) const UNSEEN: Sight = Sight { member: None, ledger: None };

/// The secret that every process on a test's database has.
pub(crate) fn journal_key() -> JournalKey {
    JournalKey::new(&[7; 32])
}

/// In whose name tests change things.
pub(crate) fn author() -> Author {
    journal_key().operator("小明")
}

pub(crate) fn sale_id(id: &str) -> SaleId {
    id.parse().unwrap()
}

pub(crate) fn user_id(id: &str) -> UserId {
    id.parse().unwrap()
}

/// The `n`-th order id.
pub(crate) fn order_id(n: u64) -> OrderId {
    OrderId::new(START_MS, &sale_id("any"), n)
}

pub(crate) fn reservation(sale: &str, n: u64, user: &str, quantity: u32) -> Reservation {
    Reservation {
        order_id: order_id(n),
        sale: sale_id(sale),
        user: user_id(user),
        quantity,
        metadata: Some("{\"gift\":true}".into()),
        reserved_at_ms: START_MS,
        sale_version: None,
    }
}
