//! Every table, column and index of the orders database, in one list for both adapters.

use std::collections::{BTreeMap, BTreeSet};

/// A table's name; its columns, those that may be NULL with `?`; its primary key and indices as `name(columns)`, unique ones with `!`.
type Table = (&'static str, &'static str, &'static [&'static str]);

/// What design.md promises to outsiders and to the next version, and nothing else.
const TABLES: &[Table] = &[
    ("dead_letters", "subscriber event_id payload reason attempts at", &["!primary(subscriber,event_id)"]),
    (
        "draws",
        "sale_id units entries? chain round root? block_hashes? committed_at? beacon? seed? drawn_at? next_place state version",
        &["!primary(sale_id)"],
    ),
    (
        "events",
        "order_id version type payload created_at relayed_log? relayed_at?",
        &["!primary(order_id,version)", "events_age(relayed_at)", "events_log(relayed_log,order_id,version)"],
    ),
    (
        "instances",
        "instance_id place registered_at merged_epoch engine holds_promises generation nonce left_out_at? seen_ledger? seen_at?",
        &["!primary(instance_id)"],
    ),
    (
        "journal",
        "seq at operator role action subject before? after? reason? prev_hash hash",
        &["!primary(seq)"],
    ),
    ("meta", "name value", &["!primary(name)"]),
    (
        "order_keys",
        "order_id limit_key sale_id",
        &["!primary(order_id,limit_key)", "order_keys_sale(sale_id,limit_key)"],
    ),
    (
        "orders",
        "order_id sale_id user_id quantity units_held amount currency status reason? metadata? created_at updated_at pay_by? \
         version sale_version? origin rehearsal refunded_amount paid_at?",
        &[
            "!primary(order_id)",
            "orders_due(status,pay_by)",
            "orders_sale(sale_id,order_id)",
            "orders_user(sale_id,user_id)",
        ],
    ),
    (
        "outbox",
        "id kind order_id sale_id payload? created_at",
        &["!outbox_order(kind,order_id)", "!primary(id)", "outbox_sale(sale_id,kind)"],
    ),
    (
        "payments",
        "provider payment_id order_id? trade_ref amount currency paid_at? received_at disposition reason? updated_at",
        &[
            "!primary(provider,payment_id)",
            "payments_disposition(disposition,received_at)",
            "payments_order(order_id)",
        ],
    ),
    (
        "refunds",
        "refund_id provider payment_id order_id? amount whole reason? requested_by state attempts next_try_at? \
         provider_refund_id? last_error? created_at updated_at",
        &[
            "!primary(refund_id)",
            "refunds_due(next_try_at)",
            "refunds_order(order_id)",
            "refunds_payment(provider,payment_id)",
            "refunds_state(state,refund_id)",
        ],
    ),
    ("releases", "order_id sale_id user_id quantity created_at", &["!primary(order_id)"]),
    ("restocks", "sale_id restock_id units created_at", &["!primary(sale_id,restock_id)"]),
    ("sale_versions", "sale_id version definition by_whom at reason?", &["!primary(sale_id,version)"]),
    (
        "sales",
        "sale_id total sold version definition terms_version starts_at ends_at paused_by? opened_epoch? installed_epoch? settled \
         withdrawn_at? withdrawing gather_key? created_at updated_at",
        &[
            "!primary(sale_id)",
            "sales_ends(settled,ends_at)",
            "sales_settled(settled,sale_id)",
            "sales_withdrawing(withdrawing,sale_id)",
        ],
    ),
    ("settings", "name value version", &["!primary(name)"]),
    (
        "waiting",
        "sale_id user_id place order_id quantity metadata? salt? state joined_at",
        &["!primary(sale_id,user_id)", "!waiting_place(sale_id,place)", "waiting_head(sale_id,state,place)"],
    ),
    ("workers", "log_id life share_ppm expires_at work", &["!primary(work,log_id)"]),
];

/// A table as it was found: its columns with `?` where they may be NULL, and its indices as the list writes them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FoundTable {
    pub(crate) columns: BTreeSet<String>,
    pub(crate) indices: BTreeSet<String>,
}

/// Compares what was found, by the tables' whole names, with the list.
pub(crate) fn must_be_the_schema(mut found: BTreeMap<String, FoundTable>) {
    for (table, columns, indices) in TABLES {
        let name = format!("floodgate_{table}");
        let found = found.remove(&name).unwrap_or_else(|| panic!("{name} is missing"));
        let listed = FoundTable {
            columns: columns.split_whitespace().map(str::to_owned).collect(),
            indices: indices.iter().map(|index| (*index).to_owned()).collect(),
        };
        assert_eq!(found, listed, "{name}: found is left, listed is right");
    }
    assert!(found.is_empty(), "not in the list: {:?}", found.keys());
}

/// An index as the list writes it.
pub(crate) fn index(name: &str, is_unique: bool, columns: &[String]) -> String {
    let name = name.strip_prefix("floodgate_").unwrap_or(name);
    format!("{}{name}({})", if is_unique { "!" } else { "" }, columns.join(","))
}
