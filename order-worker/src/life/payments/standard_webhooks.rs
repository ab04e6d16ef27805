//! Standard Webhooks: the shop's own calls, signed with a secret that both know. Reads and signs; never sends, never asks a clock.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;
use stock::Timestamp;

use super::{Heard, Notice, Provider, Refusal, Sent, Signed, captured, malformed, order_of, seconds};
use crate::database::{Capture, RefundOutcome, RefundTold};

/// How far a time stamp may be off, either way, milliseconds.
const LEEWAY_MS: u64 = 300_000;
/// Shortest key, bytes: the standard's own rule.
const KEY_BYTES_MIN: usize = 24;

/// Secrets come padded or not. The alphabet is the standard one: one that was made URL-safe would be another key elsewhere.
const SECRET: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A secret of both sides, as a key. Never shows.
#[derive(Clone)]
pub struct WebhookSecret(Hmac<Sha256>);

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl WebhookSecret {
    /// From `whsec_BASE64`, the prefix being optional and white space around it of no meaning.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence that names the key; the secret does not show.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let key = SECRET.decode(text.strip_prefix("whsec_").unwrap_or(text)).map_err(
            |_| "is no base64 of the standard alphabet (A-Z a-z 0-9 + /): write whsec_ and what `openssl rand -base64 32` gives",
        )?;
        if key.len() < KEY_BYTES_MIN {
            return Err("is shorter than 24 bytes: write whsec_ and what `openssl rand -base64 32` gives");
        }
        // HMAC takes keys of any length.
        Hmac::new_from_slice(&key).map(Self).map_err(|_| "cannot be used as a key")
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac
    }

    /// One entry of a signature: `v1,BASE64`.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp_s: u64, body: &[u8]) -> String {
        let mac = self.mac(id, &timestamp_s.to_string(), body).finalize().into_bytes();
        format!("v1,{}", STANDARD.encode(mac))
    }
}

/// The receiver of the callback. Every secret counts, so that one can be rotated.
#[derive(Debug)]
pub struct StandardWebhooks(Vec<WebhookSecret>);

impl StandardWebhooks {
    /// With these secrets.
    #[must_use]
    pub fn new(secrets: Vec<WebhookSecret>) -> Self {
        Self(secrets)
    }

    /// Checks the signature and reads what is signed.
    ///
    /// # Errors
    /// [`Refusal::Signature`].
    pub fn hear(&self, notice: Notice<'_>) -> Result<Signed, Refusal> {
        let at_s = self.verify(notice)?;
        Ok(Signed { sent: Some(Sent { at_s, leeway_ms: LEEWAY_MS }), said: said(notice.body) })
    }

    /// The time that a good signature covers.
    fn verify(&self, notice: Notice<'_>) -> Result<u64, Refusal> {
        let missing = Refusal::Signature("webhook-id, webhook-timestamp or webhook-signature is missing");
        let id = notice.header("webhook-id").filter(|id| !id.is_empty() && !id.contains(' '));
        let timestamp = notice.header("webhook-timestamp");
        let (Some(id), Some(timestamp)) = (id, timestamp) else { return Err(missing) };
        let at_s =
            seconds(timestamp).ok_or(Refusal::Signature("webhook-timestamp is no number of seconds"))?;
        let macs: Vec<_> = self.0.iter().map(|secret| secret.mac(id, timestamp, notice.body)).collect();
        let mut given = notice
            .headers("webhook-signature")
            .flat_map(|header| header.split(|byte| *byte == b' '))
            .filter_map(signature);
        // `verify_slice` compares in constant time.
        let is_good = given.any(|given| macs.iter().any(|mac| mac.clone().verify_slice(&given).is_ok()));
        if is_good {
            Ok(at_s)
        } else {
            Err(Refusal::Signature("no signature is of a secret that is known here"))
        }
    }

    /// The three headers of a call of our own.
    pub(in crate::life) fn sign(&self, id: &str, at_s: u64, body: &[u8]) -> [(&'static str, String); 3] {
        // One space between two entries and nothing else: the Python library fails on more.
        let entries: Vec<_> = self.0.iter().map(|secret| secret.sign(id, at_s, body)).collect();
        [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at_s.to_string()),
            ("webhook-signature", entries.join(" ")),
        ]
    }
}

/// The bytes of a `v1` entry. What follows a second comma is left out: a proxy that joins two header lines writes one.
fn signature(entry: &[u8]) -> Option<Vec<u8>> {
    let mut parts = entry.split(|byte| *byte == b',');
    parts.next().filter(|version| *version == b"v1")?;
    STANDARD.decode(parts.next()?).ok()
}

#[derive(Deserialize)]
struct Call {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Payment {
    payment_id: String,
    order_id: String,
    amount: u64,
    currency: String,
    paid_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Refund {
    refund_id: String,
    provider_refund_id: Option<String>,
    reason: Option<String>,
}

fn said(body: &[u8]) -> Result<Heard, Refusal> {
    // serde would take a list of the members for the object.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return malformed("send a JSON object");
    }
    match read::<Call>(body)?.kind.as_deref() {
        None | Some("payment.succeeded") => {
            let payment: Payment = read(body)?;
            captured(Capture {
                provider: Provider::StandardWebhooks.as_str().to_owned(),
                payment_id: payment.payment_id,
                order_id: order_of(&payment.order_id),
                trade_ref: payment.order_id,
                amount: payment.amount,
                currency: payment.currency,
                paid_at: payment.paid_at,
            })
        }
        Some(kind @ ("refund.succeeded" | "refund.failed")) => {
            let refund: Refund = read(body)?;
            let outcome = match kind {
                "refund.succeeded" => RefundOutcome::Succeeded,
                _ => RefundOutcome::Failed(
                    refund.reason.unwrap_or_else(|| "the shop said that it failed".into()),
                ),
            };
            Ok(Heard::Refund(RefundTold {
                refund_id: refund.refund_id,
                outcome,
                provider_refund_id: refund.provider_refund_id,
            }))
        }
        Some(other) => Ok(Heard::Nothing(format!("type {other:?}"))),
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::Malformed(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDER: &str = "01M7YMPT5MDHF5W669RCMTQ7B4";

    #[test]
    fn a_payment_is_read_exactly_or_not_at_all() {
        let whole = format!(
            r#"{{"payment_id":"p","order_id":"{ORDER}-2","amount":206640,"currency":"CNY","paid_at":"2026-11-28T12:00:00+08:00","new":[1]}}"#
        );
        let Ok(Heard::Captured(capture)) = said(whole.as_bytes()) else { panic!("a payment") };
        assert_eq!((capture.amount, capture.order_id), (206_640, ORDER.parse().ok()));
        assert_eq!((capture.trade_ref, capture.payment_id), (format!("{ORDER}-2"), "p".to_owned()));
        let named = |kind: &str| said(whole.replacen('{', &format!("{{\"type\":\"{kind}\","), 1).as_bytes());
        assert!(matches!(named("payment.succeeded"), Ok(Heard::Captured(_))));
        assert!(matches!(named("payment.created"), Ok(Heard::Nothing(_))));
        for (right, wrong) in [
            ("206640", "206640.0"),
            ("206640", "-1"),
            ("206640", "\"206640\""),
            ("206640", "9223372036854775808"),
            ("\"CNY\"", "\"\""),
            ("\"CNY\"", "\"C Y\""),
            ("\"p\"", "\"\""),
            ("\"p\"", "\"\\u0000\""),
            ("\"payment_id\":\"p\",", ""),
            ("\"new\":[1]", "\"amount\":1"),
            ("2026-11-28T12:00:00+08:00", "yesterday"),
        ] {
            assert!(whole.contains(right), "{right}");
            let heard = said(whole.replacen(right, wrong, 1).as_bytes());
            assert!(matches!(heard, Err(Refusal::Malformed(_))), "{wrong}: {heard:?}");
        }
        // A reference that names no order is money all the same.
        let lost = said(whole.replace(ORDER, "what").as_bytes());
        assert!(matches!(lost, Ok(Heard::Captured(Capture { order_id: None, .. }))), "{lost:?}");
    }

    #[test]
    fn a_refund_is_told_by_its_type() {
        let told = |kind: &str| {
            said(format!(r#"{{"type":"refund.{kind}","refund_id":"r","reason":"no account"}}"#).as_bytes())
        };
        let refund = |outcome| {
            Ok(Heard::Refund(RefundTold { refund_id: "r".into(), outcome, provider_refund_id: None }))
        };
        assert_eq!(told("succeeded"), refund(RefundOutcome::Succeeded));
        assert_eq!(told("failed"), refund(RefundOutcome::Failed("no account".into())));
    }

    proptest! {
        #[test]
        fn no_signed_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200),
            json in "\\{(\"(type|payment_id|order_id|amount|currency|paid_at|refund_id)\":(\"[ -~]{0,30}\"|[0-9.e-]{1,22}|null|\\[\\]),?){0,8}\\}?") {
            let _ = said(&bytes);
            let _ = said(json.as_bytes());
        }
    }
}
