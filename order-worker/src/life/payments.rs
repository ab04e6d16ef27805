//! Payments in: a provider's call becomes a verified capture, a word about a refund, or a refusal.
//!
//! Pure functions over the call as it came: no clock, no database, no socket. A call is read in two steps, so that a forged one costs
//! no look at the database's clock: [`Receivers::hear`] checks the signature, [`Signed::at`] the time. Nothing here writes, and no
//! secret shows in `Debug` or in an error.

#[cfg(feature = "payments")]
pub mod alipay;
pub mod config;
pub mod inbox;
#[cfg(feature = "payments")]
mod public_key;
pub mod standard_webhooks;
#[cfg(feature = "payments")]
pub mod wechat_pay;

use std::str;

use serde::{Deserialize, Serialize};
use stock::{OrderId, Timestamp};

use crate::database::{Capture, RefundTold};
use config::PaymentConfig;
use standard_webhooks::StandardWebhooks;

/// Most digits behind `ORDER-`: the shop counts its tries to pay one order.
const TRY_DIGITS_MAX: usize = 6;
/// Longest id of a provider's transaction, and longest reference of the shop, bytes: as the rows have it.
const REFERENCE_BYTES_MAX: usize = 128;
/// Longest currency, bytes: a wrong one is kept as it was given, and refunded.
const CURRENCY_BYTES_MAX: usize = 16;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// The shop's own service, in whatever way it is paid.
    StandardWebhooks,
    /// WeChat Pay v3 itself.
    WechatPay,
    /// Alipay itself.
    Alipay,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::StandardWebhooks, Self::WechatPay, Self::Alipay];

    /// As the rows and the configuration have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StandardWebhooks => "standard-webhooks",
            Self::WechatPay => "wechat-pay",
            Self::Alipay => "alipay",
        }
    }
}

/// One call of a provider, as it came.
#[derive(Clone, Copy)]
pub struct Notice<'a> {
    /// Names in any case; a name that came twice stands twice.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Not decoded in any way: the signature is over these bytes.
    pub body: &'a [u8],
}

impl<'a> Notice<'a> {
    /// All values of a header.
    fn headers(&self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// The one value of a header, in visible ASCII and spaces; none if it is absent, not that, or there twice.
    fn header(&self, name: &'a str) -> Option<&'a str> {
        let mut values = self.headers(name);
        let value = values.next().filter(|_| values.next().is_none())?;
        str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
    }
}

/// What a provider says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Money came in.
    Captured(Capture),
    /// How a refund ended.
    Refund(RefundTold),
    /// Signed and ours, and it changes nothing: what it was.
    Nothing(String),
}

/// Why a call is not believed or cannot be used. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No good signature by a key that we have.
    #[error("{0}")]
    Signature(&'static str),
    /// Signed too long ago, or for a time that is yet to come.
    #[error("the time stamp is more than 5 minutes off")]
    Time,
    /// Signed, and not what its provider sends.
    #[error("{0}")]
    Malformed(String),
    /// Signed, and of another merchant or app.
    #[error("{0}")]
    NotOurs(&'static str),
    /// Signed, and a key of ours does not fit: the provider has to send it again when that is mended.
    #[error("{0}")]
    OurKey(&'static str),
}

fn malformed<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Malformed(what.into()))
}

/// A call with a good signature. What it says is told against a clock only.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Signed {
    sent: Option<Sent>,
    said: Result<Heard, Refusal>,
}

/// When a call was signed, as it says itself under its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    at_s: u64,
    /// How far it may be off, either way.
    leeway_ms: u64,
}

impl Signed {
    /// Whether its provider signs the time; where it does not, [`Self::at`] takes any.
    #[must_use]
    pub fn is_dated(&self) -> bool {
        self.sent.is_some()
    }

    /// What it says, if it was sent about `now`, which is the database's clock.
    ///
    /// # Errors
    /// [`Refusal::Time`], or why what is signed cannot be used.
    pub fn at(self, now: Timestamp) -> Result<Heard, Refusal> {
        match self.sent {
            Some(sent) if sent.at_s.saturating_mul(1_000).abs_diff(now.0) > sent.leeway_ms => {
                Err(Refusal::Time)
            }
            _ => self.said,
        }
    }
}

/// Seconds since 1970 as providers write them: digits alone, without a zero in front.
fn seconds(text: &str) -> Option<u64> {
    let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

/// The order that a reference names: `ORDER`, or `ORDER-N` where one order was tried to be paid more than once. None if it names none.
#[must_use]
pub fn order_of(trade_ref: &str) -> Option<OrderId> {
    let (order, number) = trade_ref.split_once('-').unwrap_or((trade_ref, "1"));
    let is_number =
        (1..=TRY_DIGITS_MAX).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    order.parse().ok().filter(|_| is_number)
}

/// A capture whose row can be written; or which of its parts no provider sends.
fn captured(capture: Capture) -> Result<Heard, Refusal> {
    let fits = |text: &str, bytes_max: usize| {
        !text.is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control)
    };
    if !fits(&capture.payment_id, REFERENCE_BYTES_MAX) {
        return malformed("the payment's id must have 1 to 128 bytes");
    }
    if !fits(&capture.trade_ref, REFERENCE_BYTES_MAX) {
        return malformed("the order's id must have 1 to 128 bytes");
    }
    let is_visible = capture.currency.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || !fits(&capture.currency, CURRENCY_BYTES_MAX) {
        return malformed("the currency must have 1 to 16 visible characters");
    }
    if i64::try_from(capture.amount).is_err() {
        return malformed("the amount is beyond all money");
    }
    Ok(Heard::Captured(capture))
}

/// Every provider that is configured, with its keys.
pub struct Receivers {
    callback: Option<StandardWebhooks>,
    #[cfg(feature = "payments")]
    wechat_pay: Option<wechat_pay::WechatPay>,
    #[cfg(feature = "payments")]
    alipay: Option<alipay::Alipay>,
}

impl Receivers {
    /// Reads the keys. The callback without a secret is not taken.
    ///
    /// # Errors
    /// A sentence that names the key of the configuration.
    pub fn new(config: &PaymentConfig) -> Result<Self, String> {
        config.validate()?;
        let has = |provider| config.providers.contains(&provider);
        let secrets = config.secrets()?;
        Ok(Self {
            callback: (has(Provider::StandardWebhooks) && !secrets.is_empty())
                .then(|| StandardWebhooks::new(secrets)),
            #[cfg(feature = "payments")]
            wechat_pay: has(Provider::WechatPay)
                .then(|| wechat_pay::WechatPay::new(&config.wechat_pay))
                .transpose()?,
            #[cfg(feature = "payments")]
            alipay: has(Provider::Alipay).then(|| alipay::Alipay::new(&config.alipay)).transpose()?,
        })
    }

    /// Whether calls of this provider are taken at all.
    #[must_use]
    pub fn takes(&self, provider: Provider) -> bool {
        match provider {
            Provider::StandardWebhooks => self.callback.is_some(),
            #[cfg(feature = "payments")]
            Provider::WechatPay => self.wechat_pay.is_some(),
            #[cfg(feature = "payments")]
            Provider::Alipay => self.alipay.is_some(),
            #[cfg(not(feature = "payments"))]
            Provider::WechatPay | Provider::Alipay => false,
        }
    }

    /// Checks a call's signature.
    ///
    /// # Errors
    /// [`Refusal::Signature`], also for a provider whose calls are not taken.
    pub fn hear(&self, provider: Provider, notice: Notice<'_>) -> Result<Signed, Refusal> {
        let heard = match provider {
            Provider::StandardWebhooks => self.callback.as_ref().map(|keys| keys.hear(notice)),
            #[cfg(feature = "payments")]
            Provider::WechatPay => self.wechat_pay.as_ref().map(|keys| keys.hear(notice)),
            #[cfg(feature = "payments")]
            Provider::Alipay => self.alipay.as_ref().map(|keys| keys.hear(notice)),
            #[cfg(not(feature = "payments"))]
            Provider::WechatPay | Provider::Alipay => None,
        };
        heard.unwrap_or(Err(Refusal::Signature("this provider's calls are not taken")))
    }

    /// The three headers of a callback that this same value accepts; none where it takes none. For the demo's payments.
    #[must_use]
    pub fn sign_callback(&self, id: &str, at: Timestamp, body: &[u8]) -> Option<[(&'static str, String); 3]> {
        self.callback.as_ref().map(|keys| keys.sign(id, at.0 / 1_000, body))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_its_order_alone_or_with_a_number() {
        let id = "01M7YMPT5MDHF5W669RCMTQ7B4";
        for good in [id.to_owned(), format!("{id}-1"), format!("{id}-000042")] {
            assert_eq!(order_of(&good), Some(id.parse().unwrap()), "{good}");
        }
        for wrong in ["", "-", "-1", &id[1..], &format!("{id}-"), &format!("{id}-x"), &format!("{id}-1-2")] {
            assert_eq!(order_of(wrong), None, "{wrong}");
        }
        assert_eq!(order_of(&format!("{id}-1234567")), None);
        assert_eq!(order_of(&id.to_lowercase()), None);
    }

    #[test]
    fn a_time_is_digits_alone() {
        assert_eq!(seconds("1795842536"), Some(1_795_842_536));
        for wrong in ["", "0", "01", "+1", "-1", "1.5", "1 ", "１", "99999999999999999999"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
