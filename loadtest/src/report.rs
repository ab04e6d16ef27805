//! The report: JSON as the interface fixes it (with additions), and the same as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::api::{Figures, Refusal};
use crate::audit::{Audit, Drain};
use crate::tally::{Counts, Slice};

/// Milliseconds from the intended time of a press to its answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latency {
    /// From microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Self {
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: histogram.max() as f64 / 1_000.0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Latencies {
    pub(crate) accepted: Latency,
    pub(crate) sold_out: Latency,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Passes {
    pub(crate) asked: u64,
    pub(crate) granted: u64,
    pub(crate) refused: BTreeMap<&'static str, u64>,
    pub(crate) errors: u64,
}

/// One spike. `attempts = accepted + accepted_again + sold_out + limited + refused + errors + uncertain + hung_up`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) arrival: &'static str,
    pub(crate) seed: u64,
    pub(crate) sale: String,
    pub(crate) users: u32,
    pub(crate) bots: u32,
    pub(crate) units: u32,
    /// From the first press to the last answer.
    pub(crate) duration_s: f64,
    /// Presses of the button; a pass refused at the opening is a refused press.
    pub(crate) attempts: u64,
    /// Orders promised: first 202 of each.
    pub(crate) accepted: u64,
    /// Further 202 for the same orders.
    pub(crate) accepted_again: u64,
    pub(crate) sold_out: u64,
    /// `limit-reached`, `not-enough`, `slow-down`, `gate-full`.
    pub(crate) limited: u64,
    /// Every other refusal.
    pub(crate) refused: u64,
    /// Broken answers and attempts without one, but for those on which the crowd hung up itself.
    pub(crate) errors: u64,
    /// Of the errors: no connection.
    pub(crate) not_sent: u64,
    pub(crate) uncertain: u64,
    pub(crate) hung_up: u64,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    pub(crate) passes: Passes,
    pub(crate) status_calls: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) latency_ms: Latencies,
    pub(crate) drain: Drain,
    pub(crate) audit: Audit,
    pub(crate) at_rest: bool,
    pub(crate) ledger: Option<Figures>,
    /// CPU that the server of this run used, in seconds, and its memory at the end.
    pub(crate) server_cpu_s: Option<f64>,
    pub(crate) server_resident_bytes: Option<u64>,
    pub(crate) strange: Vec<String>,
    /// What broke, in words.
    pub(crate) broken: Vec<String>,
    /// `good` or `broken`.
    pub(crate) verdict: &'static str,
    #[serde(skip)]
    pub(crate) slices: Vec<Slice>,
    /// Rows per slice, on the same axis.
    #[serde(skip)]
    pub(crate) drained: Vec<u32>,
}

/// Counts under the interface's words.
pub(crate) fn words(refusals: &BTreeMap<Refusal, u64>) -> BTreeMap<&'static str, u64> {
    refusals.iter().map(|(refusal, count)| (refusal.word(), *count)).collect()
}

impl Report {
    /// The part that the tally knows.
    pub(crate) fn of(counts: &Counts) -> Self {
        let duration_s = match (counts.first, counts.last) {
            (Some(first), Some(last)) => last.saturating_duration_since(first).as_secs_f64(),
            _ => 0.0,
        };
        Self {
            scenario: "spike",
            arrival: "",
            seed: 0,
            sale: String::new(),
            users: 0,
            bots: 0,
            units: 0,
            duration_s,
            attempts: counts.attempts,
            accepted: counts.accepted,
            accepted_again: counts.accepted_again,
            sold_out: counts.refused(Refusal::SoldOut),
            limited: counts.limited(),
            refused: counts.refused_otherwise(),
            errors: counts.errors,
            not_sent: counts.not_sent,
            uncertain: counts.uncertain,
            hung_up: counts.hung_up,
            refusals: words(&counts.refusals),
            passes: Passes {
                asked: counts.passes_asked,
                granted: counts.passes_granted,
                refused: words(&counts.pass_refusals),
                errors: counts.pass_errors,
            },
            status_calls: counts.status_calls,
            requests_per_second: counts.attempts as f64 / duration_s.max(0.001),
            latency_ms: Latencies {
                accepted: Latency::of(&counts.accepted_latency_us),
                sold_out: Latency::of(&counts.sold_out_latency_us),
            },
            drain: Drain::default(),
            audit: Audit::default(),
            at_rest: false,
            ledger: None,
            server_cpu_s: None,
            server_resident_bytes: None,
            strange: counts.strange.clone(),
            broken: Vec::new(),
            verdict: "broken",
            slices: counts.slices.clone(),
            drained: Vec::new(),
        }
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        let mut row = |name: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(table, "  {name:<22}{value}");
        };
        let crowd =
            format!("{} users, {} bots, {} units, {}", self.users, self.bots, self.units, self.arrival);
        row("crowd", format!("{crowd}, seed {}", self.seed));
        row(
            "passes",
            format!(
                "{} granted of {} asked{}",
                self.passes.granted,
                self.passes.asked,
                listed(&self.passes.refused)
            ),
        );
        row(
            "presses",
            format!("{} in {:.1} s ({:.0}/s)", self.attempts, self.duration_s, self.requests_per_second),
        );
        row(
            "  accepted",
            format!(
                "{} (+ {} again, same order; {} orders learned of by asking)",
                self.accepted, self.accepted_again, self.audit.learned
            ),
        );
        row(
            "  refused",
            format!("{}{}", self.sold_out + self.limited + self.refused, listed(&self.refusals)),
        );
        row("  uncertain", self.uncertain.to_string());
        row(
            "  errors",
            format!("{} ({} not sent); {} hung up by the crowd", self.errors, self.not_sent, self.hung_up),
        );
        for (name, latency) in
            [("accepted", &self.latency_ms.accepted), ("sold out", &self.latency_ms.sold_out)]
        {
            let Latency { p50, p90, p99, p999, max } = latency;
            row(
                &format!("latency {name}"),
                format!("p50 {p50:.1} ms · p90 {p90:.1} · p99 {p99:.1} · p99.9 {p999:.1} · max {max:.1}"),
            );
        }
        let Drain { orders_per_second, limit, max_in_one_second, backlog_max, seconds } = &self.drain;
        let above = limit.is_some_and(|limit| *max_in_one_second > u64::from(limit));
        let limit = limit.map_or("unknown".to_owned(), |limit| limit.to_string());
        row(
            "drain",
            format!(
                "{orders_per_second:.0} orders/s over {seconds:.2} s · limit {limit} · busiest second {max_in_one_second} · \
                 backlog at most {backlog_max}{}",
                if above { " · ABOVE THE LIMIT" } else { "" }
            ),
        );
        if let (Some(cpu), Some(memory)) = (self.server_cpu_s, self.server_resident_bytes) {
            row("server", format!("{cpu:.1} s of CPU, {} MiB resident", memory >> 20));
        }
        if let Some(Figures { total, remaining, pending, confirmed, sold, .. }) = &self.ledger {
            row(
                "ledger",
                format!(
                    "total {total} = remaining {remaining} + pending {pending} + confirmed {confirmed}; sold {sold}"
                ),
            );
        }
        let audit = &self.audit;
        row(
            "orders",
            format!("{} of {} units, {} rejected rows", audit.orders, audit.total, audit.rejected_rows),
        );
        for (name, count) in [
            ("oversold", audit.oversold),
            ("lost", audit.lost),
            ("duplicated", audit.duplicated),
            ("leaked", audit.leaked),
            ("rejected after 202", audit.rejected_after_202),
            ("per-user violations", audit.per_user_violations),
            ("contradicted", audit.contradicted),
            ("from nothing", audit.from_nothing),
            ("unresolved", audit.unresolved),
        ] {
            row(&format!("  {name}"), count.to_string());
        }
        for strange in &self.strange {
            row("strange answer", strange.clone());
        }
        let why =
            if self.broken.is_empty() { String::new() } else { format!(": {}", self.broken.join(", ")) };
        row("verdict", format!("{}{why}", self.verdict));
        table
    }
}

fn listed(counts: &BTreeMap<&'static str, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let listed: Vec<String> = counts.iter().map(|(word, count)| format!("{word} {count}")).collect();
    format!(" ({})", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    #[tokio::test(start_paused = true)]
    async fn the_json_has_every_field_of_the_interface() {
        let json = serde_json::to_value(Report::of(&Tally::new().counts())).expect("json");
        for field in
            "scenario users bots duration_s attempts accepted sold_out limited refused errors uncertain \
                      requests_per_second latency_ms drain audit verdict"
                .split_whitespace()
        {
            assert!(!json[field].is_null(), "{field}");
        }
        for kind in ["accepted", "sold_out"] {
            for field in ["p50", "p90", "p99", "p999", "max"] {
                assert!(json["latency_ms"][kind][field].is_number(), "{kind} {field}");
            }
        }
        for field in ["orders_per_second", "limit", "max_in_one_second", "backlog_max", "seconds"] {
            assert!(json["drain"].get(field).is_some(), "{field}");
        }
        for field in
            "orders total oversold lost duplicated leaked rejected_after_202 per_user_violations".split(' ')
        {
            assert!(json["audit"][field].is_number(), "{field}");
        }
    }

    #[test]
    fn quantiles_are_told_in_milliseconds() {
        let mut histogram = Histogram::new_with_bounds(1, 120_000_000, 3).expect("bounds");
        (1..=1000u64).for_each(|n| histogram.record(n * 1_000).expect("in range"));
        let latency = Latency::of(&histogram);
        for (told, expected) in [
            (latency.p50, 500.0),
            (latency.p90, 900.0),
            (latency.p99, 990.0),
            (latency.p999, 999.0),
            (latency.max, 1000.0),
        ] {
            assert!((told - expected).abs() / expected < 0.002, "{told} instead of {expected}");
        }
        assert_eq!(Latency::of(&Histogram::new_with_bounds(1, 10, 3).expect("bounds")), Latency::default());
    }
}
