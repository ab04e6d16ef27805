//! The audit from outside: what the crowd was told, against the rows and the ledger's figures.
//!
//! Pure judgement. Trusts nothing that the target says about itself but the figures, and those only where they must agree
//! with the rows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::api::Figures;
use crate::claim::Claim;
use crate::database::{Books, Row};

/// Everything that the judgement looks at.
pub(crate) struct Evidence<'a> {
    pub(crate) claims: &'a [Claim],
    pub(crate) books: &'a Books,
    /// The ledger's figures once at rest; `None` without an admin listener.
    pub(crate) figures: Option<&'a Figures>,
    pub(crate) per_user_limit: u32,
    /// Nobody else buys at this target: a row that no pass of ours names is an order from nothing.
    pub(crate) alone: bool,
}

/// The judgement, in units or orders.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Audit {
    /// Rows that hold units.
    pub(crate) orders: u64,
    pub(crate) total: u64,
    /// Units held or sold beyond the total.
    pub(crate) oversold: u64,
    /// Orders promised by 202, or shown to their buyer, without a row.
    pub(crate) lost: u64,
    /// Rows beyond the first of an order id, and passes that became another order than they name.
    pub(crate) duplicated: u64,
    /// Units that neither stock nor buyers have: see [`leaked`].
    pub(crate) leaked: u64,
    pub(crate) rejected_after_202: u64,
    /// Users that hold more than the limit.
    pub(crate) per_user_violations: u64,
    /// Answers that the rows or later answers contradict: a row for a pass that heard only definite refusals, or 404 after 202.
    pub(crate) contradicted: u64,
    /// Rows that no pass of the crowd names.
    pub(crate) from_nothing: u64,
    pub(crate) rejected_rows: u64,
    /// Passes whose holders surely tried and surely know the end, counted as demand.
    pub(crate) demand: u64,
    /// Orders that their buyers learned of by asking, having lost the answer to the press.
    pub(crate) learned: u64,
    /// Passes whose holder never got a definite answer and no 404 either.
    pub(crate) unresolved: u64,
}

impl Audit {
    /// What broke, in words; empty when everything holds.
    pub(crate) fn broken(&self, at_rest: bool) -> Vec<String> {
        let counts = [
            (self.oversold, "units oversold"),
            (self.lost, "promised orders lost"),
            (self.duplicated, "orders duplicated"),
            (self.leaked, "units leaked"),
            (self.rejected_after_202, "orders rejected after 202"),
            (self.per_user_violations, "users above the limit"),
            (self.contradicted, "answers contradicted"),
            (self.from_nothing, "orders from nothing"),
        ];
        let mut broken: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !at_rest {
            broken.push("not at rest in time".into());
        }
        broken
    }
}

/// Judges the evidence. Pure.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Audit {
    let Evidence { claims, books, .. } = *evidence;
    let mut rows: BTreeMap<&str, &Row> = BTreeMap::new();
    let mut repeated = 0;
    for row in &books.rows {
        repeated += u64::from(rows.insert(&row.order_id, row).is_some());
    }
    let held: i64 = books.rows.iter().map(|row| row.units_held).sum();
    let mut audit = Audit {
        orders: books.rows.iter().filter(|row| row.units_held > 0).count() as u64,
        total: books.total.max(0) as u64,
        oversold: (held.max(books.sold) - books.total).max(0) as u64,
        duplicated: repeated,
        rejected_rows: books.rows.iter().filter(|row| row.status == "rejected").count() as u64,
        per_user_violations: users_above_limit(&books.rows, evidence.per_user_limit),
        ..Audit::default()
    };
    for claim in claims {
        let row = rows.get(claim.order_id.as_str());
        audit.lost += u64::from(row.is_none() && (claim.promised || claim.shown));
        audit.duplicated += u64::from(claim.renamed.is_some());
        audit.rejected_after_202 +=
            u64::from(claim.promised && row.is_some_and(|row| row.status == "rejected"));
        let sold_after_no = claim.is_surely_refused() && row.is_some_and(|row| row.units_held > 0);
        audit.contradicted += u64::from(sold_after_no || claim.denied_after_202);
        audit.demand += u64::from(claim.is_demand && claim.is_settled());
        audit.learned += u64::from(claim.shown && !claim.promised);
        audit.unresolved += u64::from(claim.in_doubt && !claim.is_settled());
    }
    if evidence.alone {
        let named: BTreeSet<&str> = claims.iter().map(|claim| claim.order_id.as_str()).collect();
        audit.from_nothing = rows.keys().filter(|order_id| !named.contains(*order_id)).count() as u64;
    }
    audit.leaked = leaked(evidence, held, audit.demand);
    audit
}

/// Units that went nowhere: what `total = remaining + pending + confirmed` and `confirmed = sold = Σ units_held` miss at rest, or,
/// if that is more, units left over though at least as many people as there are units wanted one and were sent away.
fn leaked(evidence: &Evidence<'_>, held: i64, demand: u64) -> u64 {
    let books = evidence.books;
    let mut missing = books.sold.abs_diff(held);
    if let Some(figures) = evidence.figures {
        missing += figures.total.abs_diff(figures.remaining + figures.pending + figures.confirmed);
        missing += figures.pending.unsigned_abs();
        missing += figures.confirmed.abs_diff(books.sold);
        missing += figures.total.abs_diff(books.total);
    }
    let unsold = (books.total - held).max(0) as u64;
    if demand >= books.total.max(0) as u64 { missing.max(unsold) } else { missing }
}

fn users_above_limit(rows: &[Row], limit: u32) -> u64 {
    let mut held: BTreeMap<&str, i64> = BTreeMap::new();
    for row in rows {
        *held.entry(&row.user_id).or_default() += row.units_held;
    }
    held.values().filter(|units| **units > i64::from(limit)).count() as u64
}

/// How the rows came into the database.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// Rows after those of the first instant, over the time from the first to the last.
    pub(crate) orders_per_second: f64,
    /// What the target was told not to exceed; `null` where it was not said.
    pub(crate) limit: Option<u32>,
    /// The most rows in any one second, wherever it begins.
    pub(crate) max_in_one_second: u64,
    pub(crate) backlog_max: u64,
    pub(crate) seconds: f64,
}

/// Measures the drain by the rows' `created_at` (Unix milliseconds).
pub(crate) fn drain(created_at_ms: &[u64], limit: Option<u32>, backlog_max: u64) -> Drain {
    let mut times = created_at_ms.to_vec();
    times.sort_unstable();
    let mut max_in_one_second = 0;
    let mut start = 0;
    for end in 0..times.len() {
        while times[end] - times[start] >= 1_000 {
            start += 1;
        }
        max_in_one_second = max_in_one_second.max(end - start + 1);
    }
    let seconds = match (times.first(), times.last()) {
        (Some(first), Some(last)) => (last - first) as f64 / 1_000.0,
        _ => 0.0,
    };
    // What came with the first instant took none of the time that is measured.
    let first = times.partition_point(|time| Some(time) == times.first());
    let orders_per_second = if seconds > 0.0 { (times.len() - first) as f64 / seconds } else { 0.0 };
    Drain { orders_per_second, limit, max_in_one_second: max_in_one_second as u64, backlog_max, seconds }
}

#[cfg(test)]
mod tests;
