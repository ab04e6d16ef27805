//! What must hold at rest, whatever struck: what buyers were told against the rows and every gateway's figures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::crowd::Claim;
use crate::scene::Loses;

struct Row {
    user: String,
    units_held: u64,
    rejected: bool,
}

/// The rows of the one sale, and the ledger as each gateway shows it.
pub(crate) struct Books {
    total: u64,
    sold: u64,
    rows: BTreeMap<String, Row>,
    repeated: u64,
    figures: Vec<Value>,
}

impl Books {
    /// `sale` and `rows` as the database's client prints them: lines, columns between tabs.
    pub(crate) fn read(figures: &[Value], sale: &str, rows: &str) -> Self {
        let mut sale = sale.split('\t').map(|number| number.trim().parse::<u64>().unwrap());
        let mut books = Self {
            total: sale.next().unwrap(),
            sold: sale.next().unwrap(),
            rows: BTreeMap::new(),
            repeated: 0,
            figures: figures.to_vec(),
        };
        for line in rows.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let [order, user, units_held, status] = columns[..] else {
                panic!("a row of four columns: {line:?}")
            };
            let row = Row {
                user: user.to_owned(),
                units_held: units_held.parse().unwrap(),
                rejected: status == "rejected",
            };
            books.repeated += u64::from(books.rows.insert(order.to_owned(), row).is_some());
        }
        books
    }
}

/// Counts of what went wrong; all zero is good.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    promised: u64,
    held: u64,
    total: u64,
    lost: u64,
    rejected_after_202: u64,
    oversold: u64,
    beyond_limit: u64,
    repeated: u64,
    from_nothing: u64,
    contradicted: u64,
    unsold: u64,
    unequal: Vec<String>,
}

pub(crate) fn judge(claims: &[Claim], books: &Books) -> Verdict {
    let held: u64 = books.rows.values().map(|row| row.units_held).sum();
    let mut verdict = Verdict {
        promised: claims.iter().filter(|claim| claim.promised).count() as u64,
        held,
        total: books.total,
        oversold: held.max(books.sold).saturating_sub(books.total),
        repeated: books.repeated,
        ..Verdict::default()
    };
    let mut named = BTreeSet::new();
    let mut refused = 0;
    for claim in claims {
        named.insert(claim.order.as_str());
        refused += u64::from(claim.refused);
        let row = books.rows.get(&claim.order);
        verdict.lost += u64::from((claim.promised || claim.shown) && row.is_none());
        verdict.rejected_after_202 += u64::from(claim.promised && row.is_some_and(|row| row.rejected));
        verdict.contradicted += u64::from(claim.refused && row.is_some_and(|row| row.units_held > 0));
    }
    verdict.from_nothing = books.rows.keys().filter(|order| !named.contains(order.as_str())).count() as u64;
    let mut by_user: BTreeMap<&str, u64> = BTreeMap::new();
    for row in books.rows.values() {
        *by_user.entry(&row.user).or_default() += row.units_held;
    }
    verdict.beyond_limit = by_user.values().filter(|&&units| units > 1).count() as u64;
    if refused > 0 {
        // Somebody was sent away, so nothing may be left over.
        verdict.unsold = books.total.saturating_sub(held);
    }
    if books.sold != held {
        verdict.unequal.push(format!("sold {} in the sale's row, {held} in the orders", books.sold));
    }
    for figures in &books.figures {
        let of = |name: &str| figures[name].as_i64().unwrap_or(i64::MIN / 4);
        let conserved = of("total") == of("remaining") + of("pending") + of("confirmed");
        let (total, sold) = (books.total as i64, books.sold as i64);
        if !conserved || of("confirmed") != sold || of("total") != total || of("pending") != 0 {
            verdict.unequal.push(format!("{figures} against total {total}, sold {sold}"));
        }
    }
    verdict
}

impl Verdict {
    /// Panics with everything that is wrong beyond what the fault may cost.
    pub(crate) fn hold(&self, loses: Loses) {
        let may_reject = loses == Loses::BetweenAmnesiaAndNotice;
        let may_lose = loses == Loses::OneLog;
        let wrong = [
            (self.lost > 0 && !may_lose, "promised orders are lost"),
            (self.rejected_after_202 > 0 && !may_reject && !may_lose, "promised orders were rejected"),
            (self.oversold > 0, "units are oversold"),
            (self.beyond_limit > 0, "users hold more than the limit"),
            (self.repeated > 0, "an order id has two rows"),
            (self.from_nothing > 0, "rows come from no pass"),
            (self.contradicted > 0, "buyers were refused what they hold"),
            (self.unsold > 0, "units leaked"),
            (!self.unequal.is_empty(), "ledger and rows differ"),
        ];
        let wrong: Vec<&str> = wrong.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
        assert!(wrong.is_empty(), "{}: {self:?}", wrong.join(", "));
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} promised, {} of {} units held, lost {}, rejected_after_202 {}, oversold {}, unsold {}",
            self.promised,
            self.held,
            self.total,
            self.lost,
            self.rejected_after_202,
            self.oversold,
            self.unsold
        )
    }
}
