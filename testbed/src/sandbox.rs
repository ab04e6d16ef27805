//! A payment provider with the habits of real ones: it pays, refuses, delays, repeats, loses, swaps, and is used twice for one order.
//! It tells of its money by Standard Webhooks, signed by code of its own, and keeps an outside book. It moves no money.

mod service;

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

pub use service::{Mood, Service};

use crate::deployment::moment;
use crate::http::{Answer, Client};

/// Longest wait for an answer to a call.
const WITHIN: Duration = Duration::from_secs(10);
/// Calls that are kept back at once; beyond it the oldest goes out.
const KEPT_BACK_MAX: usize = 1_024;

/// How a payment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Captured, and told of at once.
    Plain,
    /// Not captured: the buyer's bank says no.
    Refused,
    /// Captured, and told of by [`Sandbox::deliver`].
    Delayed,
    /// Captured, and told of so often.
    Repeated(u32),
    /// Captured, and never told of.
    Lost,
    /// Captured, and told of after the next one.
    Swapped,
}

/// Money that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// The sandbox's own transaction.
    pub id: String,
    /// The shop's reference.
    pub reference: String,
    /// Minor units.
    pub amount: u64,
    /// ISO 4217.
    pub currency: String,
    /// When, RFC 3339.
    pub at: String,
}

/// Money that went back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refund {
    id: String,
    payment: Payment,
    amount: u64,
    at: String,
}

#[derive(Debug, Default)]
struct Book {
    payments: Vec<Payment>,
    refunds: Vec<Refund>,
    kept_back: Vec<Payment>,
    swapped: Vec<Payment>,
}

impl Book {
    fn capture(&mut self, channel: &str, reference: &str, (amount, currency): (u64, &str)) -> Payment {
        let payment = Payment {
            id: format!("{channel}-{:06}", self.payments.len() + 1),
            reference: reference.to_owned(),
            amount,
            currency: currency.to_owned(),
            at: moment(0),
        };
        self.payments.push(payment.clone());
        payment
    }
}

/// See the module.
#[derive(Debug)]
pub struct Sandbox {
    secret: Vec<u8>,
    port: AtomicU16,
    book: Mutex<Book>,
}

impl Sandbox {
    /// Tells the gateway at `port` of loopback, under `secret` (`whsec_BASE64`).
    ///
    /// # Panics
    /// For a secret that is no base64.
    pub fn new(secret: &str, port: u16) -> Self {
        let secret = STANDARD.decode(secret.trim_start_matches("whsec_")).expect("whsec_ and padded base64");
        Self { secret, port: AtomicU16::new(port), book: Mutex::default() }
    }

    /// From now on it calls the gateway at this port.
    pub fn tell_at_port(&self, port: u16) {
        // A lone number that guards nothing else: relaxed serves.
        self.port.store(port, Ordering::Relaxed);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pays an order by a channel, and what the shop answered to each call that went out, the last one last. Two channels know
    /// nothing of each other: one order can be paid by both.
    ///
    /// # Errors
    /// No answer; the money is captured all the same.
    pub fn pay(
        &self,
        channel: &str,
        reference: &str,
        (amount, currency): (u64, &str),
        how: How,
    ) -> io::Result<Vec<Answer>> {
        if how == How::Refused {
            return Ok(Vec::new());
        }
        let (payment, before) = {
            let mut book = self.book();
            let payment = book.capture(channel, reference, (amount, currency));
            match how {
                How::Delayed => book.kept_back.push(payment.clone()),
                How::Swapped => book.swapped.push(payment.clone()),
                _ => {}
            }
            let overfull = book.kept_back.len().saturating_sub(KEPT_BACK_MAX);
            let mut before: Vec<_> = book.kept_back.drain(..overfull).collect();
            if how == How::Plain {
                before.append(&mut book.swapped);
            }
            (payment, before)
        };
        let times = match how {
            How::Plain => 1,
            How::Repeated(times) => times,
            How::Refused | How::Delayed | How::Lost | How::Swapped => 0,
        };
        let mut answers = Vec::new();
        for _ in 0..times {
            answers.push(self.tell(&payment)?);
        }
        for earlier in before {
            answers.push(self.tell(&earlier)?);
        }
        Ok(answers)
    }

    /// Captures money and tells nobody: the caller does, by [`Self::tell`], or does not.
    pub fn capture(&self, channel: &str, reference: &str, price: (u64, &str)) -> Payment {
        self.book().capture(channel, reference, price)
    }

    /// Each payment, and how much of it has gone back.
    pub fn balances(&self) -> Vec<(Payment, u64)> {
        let book = self.book();
        let back = |payment: &Payment| {
            let of_it = book.refunds.iter().filter(|refund| refund.payment.id == payment.id);
            of_it.map(|refund| refund.amount).sum()
        };
        book.payments.iter().map(|payment| (payment.clone(), back(payment))).collect()
    }

    /// Tells of all that was kept back, the latest first.
    ///
    /// # Errors
    /// No answer; what was not told of yet never is.
    pub fn deliver(&self) -> io::Result<Vec<Answer>> {
        let kept_back = {
            let mut book = self.book();
            let swapped = std::mem::take(&mut book.swapped);
            book.kept_back.extend(swapped);
            std::mem::take(&mut book.kept_back)
        };
        kept_back.iter().rev().map(|payment| self.tell(payment)).collect()
    }

    /// One call about a payment, stamped now.
    ///
    /// # Errors
    /// No answer.
    pub fn tell(&self, payment: &Payment) -> io::Result<Answer> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.tell_at(payment, now.as_secs())
    }

    /// The same, stamped with a time of the caller's: a replay.
    ///
    /// # Errors
    /// No answer.
    pub fn tell_at(&self, payment: &Payment, timestamp_s: u64) -> io::Result<Answer> {
        let Payment { id, reference, amount, currency, at } = payment;
        let body = serde_json::json!({
            "payment_id": id, "order_id": reference, "amount": amount, "currency": currency, "paid_at": at,
        });
        self.send(&format!("msg_{id}"), timestamp_s, &body.to_string())
    }

    fn send(&self, id: &str, timestamp_s: u64, body: &str) -> io::Result<Answer> {
        let timestamp = timestamp_s.to_string();
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).map_err(io::Error::other)?;
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        let headers = [
            ("Content-Type", "application/json"),
            ("webhook-id", id),
            ("webhook-timestamp", timestamp.as_str()),
            ("webhook-signature", signature.as_str()),
        ];
        Client::new(self.port.load(Ordering::Relaxed), WITHIN).request(
            "POST",
            "/api/v1/payments/callback",
            &headers,
            body,
        )
    }

    /// All that was captured, told of or not.
    pub fn payments(&self) -> Vec<Payment> {
        self.book().payments.clone()
    }

    /// Sends money back, once for each refund id; `false` where there is no such payment, or not so much is left of it.
    pub fn refund(&self, refund_id: &str, payment_id: &str, amount: u64) -> bool {
        let mut book = self.book();
        if let Some(known) = book.refunds.iter().find(|refund| refund.id == refund_id) {
            return (known.payment.id.as_str(), known.amount) == (payment_id, amount);
        }
        let Some(payment) = book.payments.iter().find(|payment| payment.id == payment_id).cloned() else {
            return false;
        };
        let of_it = book.refunds.iter().filter(|refund| refund.payment.id == payment_id);
        let gone: u64 = of_it.map(|refund| refund.amount).sum();
        if amount > payment.amount.saturating_sub(gone) {
            return false;
        }
        book.refunds.push(Refund { id: refund_id.to_owned(), payment, amount, at: moment(0) });
        true
    }

    /// The statement as docs/payments.md describes it: a line for each movement of money, first what came in.
    pub fn statement(&self) -> String {
        let book = self.book();
        let mut lines = vec!["kind,provider,payment_id,refund_id,reference,amount,currency,at".to_owned()];
        for Payment { id, reference, amount, currency, at } in &book.payments {
            lines.push(format!("payment,standard-webhooks,{id},,{reference},{amount},{currency},{at}"));
        }
        for Refund { id: refund, payment: Payment { id, reference, currency, .. }, amount, at } in
            &book.refunds
        {
            lines
                .push(format!("refund,standard-webhooks,{id},{refund},{reference},{amount},{currency},{at}"));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_keeps_what_nobody_was_told_of_and_refunds_once() {
        let sandbox = Sandbox::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 1);
        let price = (500, "CNY");
        for how in [How::Lost, How::Delayed, How::Refused] {
            assert!(sandbox.pay("bank", "ORDER", price, how).is_ok_and(|answers| answers.is_empty()));
        }
        let payments = sandbox.payments();
        assert_eq!(payments.len(), 2);
        let first = &payments[0].id;
        assert!(
            sandbox.refund("r1", first, 300) && sandbox.refund("r1", first, 300),
            "a repeat is the same refund"
        );
        assert!(!sandbox.refund("r1", first, 200), "one id, one amount");
        assert!(!sandbox.refund("r2", first, 201), "more than is left");
        assert!(sandbox.refund("r2", first, 200) && !sandbox.refund("r3", "none", 1));
        let statement = sandbox.statement();
        let lines: Vec<_> =
            statement.lines().map(|line| line.rsplit_once(',').map_or(line, |(rest, _)| rest)).collect();
        assert_eq!(
            lines[1..],
            [
                "payment,standard-webhooks,bank-000001,,ORDER,500,CNY",
                "payment,standard-webhooks,bank-000002,,ORDER,500,CNY",
                "refund,standard-webhooks,bank-000001,r1,ORDER,300,CNY",
                "refund,standard-webhooks,bank-000001,r2,ORDER,200,CNY",
            ]
        );
    }
}
