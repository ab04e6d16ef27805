//! A provider's statement beside the payments: what it has captured and floodgate does not know, and the other way
//! round. Reads the CSV that docs/payments.md describes; knows no database.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead};

use stock::Timestamp;

use super::money::Faults;
use crate::database::money::MoneyRow;
use crate::database::{PaymentRow, RefundRow, RefundState};

/// The columns, in any order; others are left alone.
const COLUMNS: [&str; 8] =
    ["kind", "provider", "payment_id", "refund_id", "reference", "amount", "currency", "at"];
/// Movements in one statement.
const MOVEMENTS_MAX: usize = 5_000_000;
/// Longest line, bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// So near to the statement's first and last movement, what is not in it may be in the one beside it: clocks differ.
const EDGE_MS: u64 = 300_000;

/// Why a statement cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The file's.
    #[error("the statement cannot be read: {0}")]
    Read(#[from] io::Error),
    /// What stands in it.
    #[error("line {line} of the statement: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// One movement of money, as the provider has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Movement {
    provider: String,
    payment_id: String,
    reference: String,
    amount: u64,
    currency: String,
    at: Timestamp,
}

/// The movements that no row has been found for yet.
#[derive(Debug, Default)]
pub struct Statement {
    payments: BTreeMap<(String, String), Movement>,
    /// By our refund's id.
    refunds: BTreeMap<String, Movement>,
    providers: BTreeSet<String>,
    period: Option<(Timestamp, Timestamp)>,
    faults: Faults,
}

impl Statement {
    /// Reads all of it.
    ///
    /// # Errors
    /// [`StatementError`], which names the line.
    pub fn read(mut input: impl BufRead) -> Result<Self, StatementError> {
        let mut statement = Self::default();
        let mut places: Option<[usize; COLUMNS.len()]> = None;
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            io::Read::take(&mut input, LINE_BYTES_MAX).read_line(&mut text)?;
            if text.is_empty() {
                break;
            }
            let wrong = |problem: String| StatementError::Line { line, problem };
            let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']);
            if text.is_empty() {
                continue;
            }
            let fields = fields(text).ok_or_else(|| wrong("a quote is not closed".into()))?;
            let Some(places) = &places else {
                places = Some(head(&fields).map_err(wrong)?);
                continue;
            };
            if line > MOVEMENTS_MAX {
                return Err(wrong(format!("a statement has at most {MOVEMENTS_MAX} lines: split it")));
            }
            statement.add(&fields, places).map_err(wrong)?;
        }
        if places.is_none() {
            return Err(StatementError::Line { line: 1, problem: columns_missing() });
        }
        Ok(statement)
    }

    fn add(&mut self, fields: &[String], places: &[usize; COLUMNS.len()]) -> Result<(), String> {
        let field = |column: usize| fields.get(places[column]).map_or("", |field| field.trim());
        let [kind, provider, payment_id, refund_id, reference, amount, currency, at] =
            std::array::from_fn(field);
        let amount = amount.parse().map_err(|_| {
            format!("amount {amount:?} must be minor units, in digits alone: 206640, not 2066.40")
        })?;
        let at = at.parse().map_err(|_| {
            format!("at {at:?} must be RFC 3339 with a zone, such as 2026-11-11T20:00:00+08:00")
        })?;
        let movement = Movement {
            provider: provider.to_owned(),
            payment_id: payment_id.to_owned(),
            reference: reference.to_owned(),
            amount,
            currency: currency.to_owned(),
            at,
        };
        if provider.is_empty() || payment_id.is_empty() || currency.is_empty() {
            return Err("provider, payment_id and currency must not be empty".into());
        }
        self.providers.insert(movement.provider.clone());
        self.period = Some(match self.period {
            Some((first, last)) => (first.min(at), last.max(at)),
            None => (at, at),
        });
        match (kind, refund_id) {
            ("payment", _) => {
                let id = (movement.provider.clone(), movement.payment_id.clone());
                if let Some(first) = self.payments.insert(id, movement) {
                    let Movement { provider, payment_id, .. } = first;
                    self.faults.add(format!("payment {payment_id} of {provider} is twice in the statement"));
                }
            }
            ("refund", "") => self.faults.add(format!(
                "{} sent back {} {} of payment {} under no id of floodgate's: it was done at the provider itself",
                movement.provider, movement.amount, movement.currency, movement.payment_id
            )),
            ("refund", id) => {
                if let Some(first) = self.refunds.insert(id.to_owned(), movement) {
                    self.faults.add(format!(
                        "refund {id} is twice in the statement: {} {} of payment {} may have gone back twice",
                        first.amount, first.currency, first.payment_id
                    ));
                }
            }
            (other, _) => return Err(format!("kind {other:?} must be payment or refund")),
        }
        Ok(())
    }

    /// Whether something of this moment must be in the statement.
    fn covers(&self, provider: &str, at: Timestamp) -> bool {
        let is_within = |(first, last): (Timestamp, Timestamp)| {
            first.0.saturating_add(EDGE_MS) <= at.0 && at.0.saturating_add(EDGE_MS) <= last.0
        };
        self.providers.contains(provider) && self.period.is_some_and(is_within)
    }

    /// Compares one payment and its refunds with what the provider has of them.
    pub(super) fn compare(&mut self, row: &MoneyRow) {
        let payment = &row.payment;
        let id = (payment.provider.clone(), payment.payment_id.clone());
        match self.payments.remove(&id) {
            Some(movement) => self.same_payment(payment, &movement),
            None if self.covers(&payment.provider, payment.paid_at.unwrap_or(payment.received_at)) => {
                self.faults.add(format!(
                    "payment {} of {} ({} {}) is not in the statement, though floodgate has it as captured",
                    payment.payment_id, payment.provider, payment.amount, payment.currency
                ));
            }
            None => {}
        }
        for refund in &row.refunds {
            match self.refunds.remove(&refund.refund_id) {
                Some(movement) => self.same_refund(payment, refund, &movement),
                None if refund.state == RefundState::Succeeded
                    && self.covers(&refund.provider, refund.updated_at) =>
                {
                    self.faults.add(format!(
                        "refund {} ({} {} of payment {}) is not in the statement, though floodgate has it as sent back",
                        refund.refund_id, refund.amount, payment.currency, refund.payment_id
                    ));
                }
                None => {}
            }
        }
    }

    fn same_payment(&mut self, payment: &PaymentRow, movement: &Movement) {
        if (payment.amount, &payment.currency) != (movement.amount, &movement.currency) {
            self.faults.add(format!(
                "payment {} of {}: the provider captured {} {}, floodgate has {} {}",
                payment.payment_id,
                payment.provider,
                movement.amount,
                movement.currency,
                payment.amount,
                payment.currency
            ));
        }
    }

    fn same_refund(&mut self, payment: &PaymentRow, refund: &RefundRow, movement: &Movement) {
        let of = (&refund.provider, &refund.payment_id, refund.amount);
        if of != (&movement.provider, &movement.payment_id, movement.amount) {
            self.faults.add(format!(
                "refund {}: the provider sent back {} {} of payment {}, floodgate asked for {} {} of payment {}",
                refund.refund_id,
                movement.amount,
                movement.currency,
                movement.payment_id,
                refund.amount,
                payment.currency,
                refund.payment_id
            ));
        } else if refund.state == RefundState::Stuck {
            self.faults.add(format!(
                "refund {} is stuck here, and the provider has sent it: `floodgate refunds retry {}` has it asked again, under the same id",
                refund.refund_id, refund.refund_id
            ));
        }
    }

    /// What no row was found for, and all that was found before.
    pub(super) fn finish(&mut self) -> Vec<String> {
        let mut faults = std::mem::take(&mut self.faults);
        for Movement { provider, payment_id, reference, amount, currency, at } in
            std::mem::take(&mut self.payments).into_values()
        {
            faults.add(format!(
                "{provider} captured {amount} {currency} for {reference:?} at {at} (payment {payment_id}), and floodgate never heard of it: \
                 have its notification sent again"
            ));
        }
        for (id, Movement { provider, payment_id, amount, currency, .. }) in std::mem::take(&mut self.refunds)
        {
            faults.add(format!(
                "{provider} sent back {amount} {currency} of payment {payment_id} under the id {id}, which is no refund of floodgate's"
            ));
        }
        faults.told("differences from the statement")
    }
}

fn columns_missing() -> String {
    format!("the first line must name the columns {}", COLUMNS.join(","))
}

/// Where each column stands.
fn head(fields: &[String]) -> Result<[usize; COLUMNS.len()], String> {
    let mut places = [0; COLUMNS.len()];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let found = fields.iter().position(|field| field.trim() == column);
        *place = found.ok_or_else(|| format!("there is no column {column}: {}", columns_missing()))?;
    }
    Ok(places)
}

/// The fields of a line (RFC 4180, but that a field ends with its line); none where a quote is not closed.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let (mut characters, mut quoted) = (line.chars().peekable(), false);
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields.last_mut()?.push(other),
        }
    }
    (!quoted).then_some(fields)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::*;
    use crate::database::{Disposition, RefundReason};

    const HEAD: &str = "kind,provider,payment_id,refund_id,reference,amount,currency,at\n";

    fn read(lines: &str) -> Statement {
        Statement::read(format!("{HEAD}{lines}").as_bytes()).unwrap()
    }

    fn at(minute: u64) -> Timestamp {
        Timestamp(1_794_398_400_000 + minute * 60_000)
    }

    fn row(id: &str, minute: u64, refunds: &[(&str, RefundState)]) -> MoneyRow {
        let payment = PaymentRow {
            provider: "sandbox".into(),
            payment_id: id.into(),
            order_id: None,
            trade_ref: "ORDER".into(),
            amount: 500,
            currency: "CNY".into(),
            paid_at: Some(at(minute)),
            received_at: at(minute),
            disposition: Disposition::Refund(RefundReason::Late),
        };
        let refund = |(refund_id, state): &(&str, RefundState)| RefundRow {
            refund_id: (*refund_id).into(),
            provider: "sandbox".into(),
            payment_id: id.into(),
            order_id: None,
            amount: 500,
            whole: true,
            reason: None,
            requested_by: "floodgate".into(),
            state: *state,
            attempts: 1,
            next_try_at: None,
            provider_refund_id: None,
            last_error: None,
            created_at: at(minute),
            updated_at: at(minute),
        };
        MoneyRow { refunds: refunds.iter().map(refund).collect(), payment, order: None }
    }

    fn compared(lines: &str, rows: &[MoneyRow]) -> Vec<String> {
        let mut statement = read(lines);
        rows.iter().for_each(|row| statement.compare(row));
        statement.finish()
    }

    fn line(kind: &str, id: &str, refund: &str, amount: u64, minute: u64) -> String {
        format!("{kind},sandbox,{id},{refund},ORDER,{amount},CNY,{}\n", at(minute))
    }

    #[test]
    fn what_both_have_is_no_fault_and_the_edges_are_the_neighbours() {
        let lines = line("payment", "a", "", 500, 0)
            + &line("refund", "a", "r", 500, 5)
            + &line("payment", "z", "", 500, 60);
        let both = [row("a", 0, &[("r", RefundState::Succeeded)]), row("z", 60, &[])];
        assert_eq!(compared(&lines, &both), Vec::<String>::new());
        for on_its_way in [RefundState::Requested, RefundState::Sent] {
            let rows = [row("a", 0, &[("r", on_its_way)]), row("z", 60, &[])];
            assert_eq!(compared(&lines, &rows), Vec::<String>::new(), "its word is on its way");
        }
        let beside = [row("b", 1, &[]), row("c", 59, &[]), row("d", 120, &[])];
        let rows: Vec<_> = both.into_iter().chain(beside).collect();
        assert_eq!(compared(&lines, &rows), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_named() {
        let ends = line("payment", "a", "", 500, 0) + &line("payment", "z", "", 500, 60);
        let both = [row("a", 0, &[]), row("z", 60, &[])];
        let cases = [
            ("", vec![row("lost", 30, &[])], "payment lost of sandbox (500 CNY) is not in the statement"),
            (&*line("payment", "new", "", 500, 30), vec![], "never heard of it"),
            (
                &*line("payment", "m", "", 499, 30),
                vec![row("m", 30, &[])],
                "captured 499 CNY, floodgate has 500",
            ),
            (&*line("payment", "a", "", 500, 30), vec![], "payment a of sandbox is twice"),
            (&*line("refund", "a", "", 500, 30), vec![], "under no id of floodgate's"),
            (&*line("refund", "a", "r9", 500, 30), vec![], "no refund of floodgate's"),
            (
                &*(line("refund", "a", "r", 500, 30) + &line("refund", "a", "r", 500, 31)),
                vec![],
                "gone back twice",
            ),
            (
                &*line("payment", "m", "", 500, 30),
                vec![row("m", 30, &[("r", RefundState::Succeeded)])],
                "floodgate has it as sent back",
            ),
            (
                &*(line("payment", "m", "", 500, 30) + &line("refund", "m", "r", 400, 30)),
                vec![row("m", 30, &[("r", RefundState::Sent)])],
                "sent back 400 CNY of payment m, floodgate asked for 500",
            ),
            (
                &*(line("payment", "m", "", 500, 30) + &line("refund", "m", "r", 500, 30)),
                vec![row("m", 30, &[("r", RefundState::Stuck)])],
                "`floodgate refunds retry r`",
            ),
        ];
        for (lines, rows, fault) in cases {
            let rows: Vec<_> = both.iter().cloned().chain(rows).collect();
            let faults = compared(&(ends.clone() + lines), &rows);
            assert!(faults.iter().any(|found| found.contains(fault)), "{fault}: {faults:?}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused_by_its_line() {
        let error = |text: &str| Statement::read(text.as_bytes()).unwrap_err().to_string();
        assert!(error("").contains("line 1 of the statement: the first line must name the columns"));
        assert!(error("kind,amount\n").contains("no column provider"));
        let bad = [
            ("payment,p,a,,o,20.66,CNY,2026-11-11T12:00:00Z", "206640, not 2066.40"),
            ("payment,p,a,,o,5,CNY,yesterday", "RFC 3339"),
            ("chargeback,p,a,,o,5,CNY,2026-11-11T12:00:00Z", "payment or refund"),
            ("payment,,a,,o,5,CNY,2026-11-11T12:00:00Z", "must not be empty"),
            ("payment,\"p,a", "a quote is not closed"),
        ];
        for (line, problem) in bad {
            let error = error(&format!("{HEAD}{line}\n"));
            assert!(error.contains("line 2") && error.contains(problem), "{error}");
        }
        let quoted = "\u{feff}at,kind,provider,payment_id,refund_id,reference,amount,currency,note\r\n\
                      2026-11-11T20:00:00+08:00,payment,\"a,\"\"p\",x,,o,5,CNY,n\r\n\r\n";
        let statement = Statement::read(quoted.as_bytes()).unwrap();
        assert!(statement.payments.contains_key(&("a,\"p".to_owned(), "x".to_owned())));
    }

    #[test]
    fn more_differences_than_are_named_are_counted() {
        let lines: String = (0..30).map(|n| line("payment", &format!("p{n}"), "", 1, n)).collect();
        let faults = compared(&lines, &[]);
        assert_eq!((faults.len(), faults[20].as_str()), (21, "and 10 more differences from the statement"));
    }
}
