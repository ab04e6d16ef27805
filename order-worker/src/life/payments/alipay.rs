//! Alipay's asynchronous notifications: a form whose parameters are signed as bytes. Reads only; makes no call to Alipay.
//!
//! The signed bytes are in the notification's own charset (UTF-8 or GBK). Nothing is made a text before the signature is checked, and
//! afterwards only what is ASCII by its meaning.

use std::collections::BTreeMap;
use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stock::Timestamp;

use super::config::AlipayConfig;
use super::public_key::PublicKey;
use super::{Heard, Notice, Provider, Refusal, Signed, captured, malformed, order_of};
use crate::database::{Capture, RefundOutcome, RefundTold};

/// RSA with SHA-256. The algorithm is ours to choose: what a message names is compared with it.
const SIGN_TYPE: &[u8] = b"RSA2";
/// Parameters of one notification: Alipay sends some thirty, and sorting is paid for before the signature is known to be good.
const PARAMETERS_MAX: usize = 256;

/// A merchant's receiver.
#[derive(Debug)]
pub struct Alipay {
    app_id: String,
    seller_id: String,
    key: PublicKey,
}

/// Decoded once, by name in the order of their bytes.
struct Parameters(BTreeMap<Vec<u8>, Vec<u8>>);

impl Alipay {
    /// With the key that the configuration names.
    ///
    /// # Errors
    /// A sentence that names the key of the configuration.
    pub fn new(config: &AlipayConfig) -> Result<Self, String> {
        let text = config.public_key.as_deref().unwrap_or_default();
        let key = PublicKey::parse(text).map_err(|wrong| format!("payment.alipay.public_key {wrong}"))?;
        Ok(Self { app_id: config.app_id.clone(), seller_id: config.seller_id.clone(), key })
    }

    /// Checks the signature and reads what is signed. Nothing signed limits a notification's age: a repeat is known by trade and state.
    ///
    /// # Errors
    /// [`Refusal::Signature`].
    pub fn hear(&self, notice: Notice<'_>) -> Result<Signed, Refusal> {
        let parameters = self.verify(notice.body)?;
        Ok(Signed { sent: None, said: self.said(&parameters) })
    }

    fn verify(&self, body: &[u8]) -> Result<Parameters, Refusal> {
        let parameters = Parameters::parse(body)
            .ok_or(Refusal::Signature("the body is no form, or names a parameter twice"))?;
        if parameters.bytes("sign_type").is_some_and(|given| given != SIGN_TYPE) {
            return Err(Refusal::Signature("sign_type is not RSA2"));
        }
        let signature = parameters.bytes("sign").and_then(|sign| STANDARD.decode(sign).ok());
        let signature = signature.ok_or(Refusal::Signature("sign is missing or no base64"))?;
        // Alipay's own libraries differ on whether an empty value is signed.
        if [false, true]
            .into_iter()
            .any(|empty| self.key.verifies(&parameters.signed_text(empty), &signature))
        {
            return Ok(parameters);
        }
        Err(Refusal::Signature("the signature is not of payment.alipay.public_key"))
    }

    fn said(&self, parameters: &Parameters) -> Result<Heard, Refusal> {
        if parameters.text("app_id") != Some(&self.app_id) {
            return Err(Refusal::NotOurs("app_id is not payment.alipay.app_id"));
        }
        if parameters.text("seller_id") != Some(&self.seller_id) {
            return Err(Refusal::NotOurs("seller_id is not payment.alipay.seller_id"));
        }
        let Some(status) = parameters.text("trade_status") else {
            return malformed("trade_status is missing");
        };
        // A refund comes as the same type of notification, and is no second payment. `refund_fee` does not tell it: payments
        // may carry it as 0.00.
        let is_refund = parameters.text("gmt_refund").is_some();
        match (status, is_refund) {
            ("TRADE_SUCCESS" | "TRADE_CLOSED" | "TRADE_FINISHED", true) => {
                match parameters.text("out_biz_no") {
                    Some(refund) => Ok(Heard::Refund(RefundTold {
                        refund_id: refund.to_owned(),
                        outcome: RefundOutcome::Succeeded,
                        provider_refund_id: None,
                    })),
                    None => Ok(Heard::Nothing("a refund without out_biz_no, so none of ours".to_owned())),
                }
            }
            ("TRADE_SUCCESS" | "TRADE_FINISHED", false) => payment(parameters),
            _ => Ok(Heard::Nothing(format!("trade_status {status:?}"))),
        }
    }
}

fn payment(parameters: &Parameters) -> Result<Heard, Refusal> {
    let (Some(trade), Some(reference)) = (parameters.text("trade_no"), parameters.text("out_trade_no"))
    else {
        return malformed("trade_no or out_trade_no is missing");
    };
    let Some(amount) = parameters.text("total_amount").and_then(fen) else {
        return malformed("total_amount is no amount in yuan with at most two decimals");
    };
    captured(Capture {
        provider: Provider::Alipay.as_str().to_owned(),
        payment_id: trade.to_owned(),
        order_id: order_of(reference),
        trade_ref: reference.to_owned(),
        amount,
        currency: "CNY".to_owned(),
        paid_at: parameters.text("gmt_payment").and_then(beijing),
    })
}

impl Parameters {
    /// None for what is no form as Alipay sends it (a name without `=`), names one twice, or names too many.
    fn parse(body: &[u8]) -> Option<Self> {
        let mut parameters = BTreeMap::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let end = pair.iter().position(|byte| *byte == b'=')?;
            let is_double = parameters.insert(decoded(&pair[..end])?, decoded(&pair[end + 1..])?).is_some();
            if is_double || parameters.len() > PARAMETERS_MAX {
                return None;
            }
        }
        Some(Self(parameters))
    }

    /// What is signed, with or without empty values.
    fn signed_text(&self, with_empty: bool) -> Vec<u8> {
        let mut text = Vec::new();
        for (name, value) in &self.0 {
            if name == b"sign" || name == b"sign_type" || value.is_empty() && !with_empty {
                continue;
            }
            if !text.is_empty() {
                text.push(b'&');
            }
            text.extend_from_slice(name);
            text.push(b'=');
            text.extend_from_slice(value);
        }
        text
    }

    /// An empty value is as good as none.
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// One that is ASCII in every charset.
    fn text(&self, name: &str) -> Option<&str> {
        self.bytes(name).filter(|value| value.is_ascii()).and_then(|value| str::from_utf8(value).ok())
    }
}

/// Percent-decoded once, to bytes; a plus is a space.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (&[high, low], behind) = rest.split_first_chunk::<2>()?;
                rest = behind;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(high)? << 4 | digit(low)?).ok()?
            }
            other => other,
        });
    }
    Some(bytes)
}

/// Yuan as decimal text, digit by digit into fen: `8`, `8.8` and `8.80` are one amount. More than two decimals, a sign, an exponent
/// or a missing digit is no amount.
fn fen(text: &str) -> Option<u64> {
    let (yuan, decimals) = text.split_once('.').unwrap_or((text, "00"));
    if yuan.is_empty() || !matches!(decimals.len(), 1 | 2) {
        return None;
    }
    let tens = if decimals.len() == 1 { "0" } else { "" };
    [yuan, decimals, tens]
        .into_iter()
        .flat_map(str::chars)
        .try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit.to_digit(10)?)))
}

/// Alipay's times are Beijing's, without a zone.
fn beijing(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(' ')?;
    format!("{date}T{time}+08:00").parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn yuan_become_fen_digit_by_digit() {
        for (text, amount) in
            [("8", 800), ("8.8", 880), ("8.80", 880), ("0.01", 1), ("2066.40", 206_640), ("0008", 800)]
        {
            assert_eq!(fen(text), Some(amount), "{text}");
        }
        // Where a binary fraction would be off by one.
        assert_eq!(fen("1.15"), Some(115));
        assert_eq!(fen("184467440737095516.15"), Some(u64::MAX));
        for wrong in [
            "",
            ".",
            "8.",
            ".8",
            "8.800",
            "-8",
            "+8",
            "8e2",
            "8,80",
            " 8",
            "8 ",
            "８",
            "1.-1",
            "184467440737095516.16",
        ] {
            assert_eq!(fen(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn forms_are_decoded_once_and_to_bytes() {
        assert_eq!(decoded(b"a+b%2B%d6%D0%25"), Some(b"a b+\xd6\xd0%".to_vec()));
        for wrong in [&b"%"[..], b"%2", b"%zz", b"%+1"] {
            assert_eq!(decoded(wrong), None, "{wrong:?}");
        }
        assert!(Parameters::parse(b"a=1&b").is_none());
        let so_many = |count: usize| (0..count).map(|n| format!("p{n}=1&")).collect::<String>();
        assert!(Parameters::parse(so_many(PARAMETERS_MAX).as_bytes()).is_some());
        assert!(Parameters::parse(so_many(PARAMETERS_MAX + 1).as_bytes()).is_none());
        assert!(Parameters::parse(b"a=1&a=1").is_none());
        assert!(Parameters::parse(b"a=1&%61=2").is_none(), "the same name, written otherwise");
    }

    proptest! {
        #[test]
        fn no_signed_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), amount in "[0-9.+e-]{0,24}", time in ".{0,24}") {
            let form = format!("trade_no=1&out_trade_no=x-1&total_amount={amount}&gmt_payment={time}");
            for body in [&bytes[..], form.as_bytes()] {
                if let Some(parameters) = Parameters::parse(body) {
                    let _ = (payment(&parameters), parameters.signed_text(true));
                }
            }
            let _ = (fen(&amount), beijing(&time));
        }
    }
}
