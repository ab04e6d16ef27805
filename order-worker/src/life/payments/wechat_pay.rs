//! WeChat Pay v3 notifications: RSA over the call, AES-256-GCM over what it says. Reads only; makes no call to WeChat Pay.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Deserialize;

use super::config::WechatPayConfig;
use super::public_key::PublicKey;
use super::{Heard, Notice, Provider, Refusal, Sent, Signed, captured, malformed, order_of, seconds};
use crate::database::{Capture, RefundOutcome, RefundTold};

/// How far a time stamp may be off, either way, milliseconds: under 300 s, as wechatpay-go has it.
const LEEWAY_MS: u64 = 299_999;
/// The only way of signing that is believed, also where the call does not name it.
const SIGNATURE_TYPE: &str = "WECHATPAY2-SHA256-RSA2048";
const ALGORITHM: &str = "AEAD_AES_256_GCM";
/// Of public keys that are no certificates'.
const NAMED_KEY: &str = "PUB_KEY_ID_";

/// Which of WeChat Pay's keys: they are told apart by this alone, and several are in use while a merchant moves to a new one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyId {
    /// `PUB_KEY_ID_…`.
    Named(String),
    /// A certificate's serial: hexadecimal digits without zeros in front, since both spellings occur.
    Serial(String),
}

impl KeyId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with(NAMED_KEY) {
            return Some(Self::Named(text.to_owned()));
        }
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_number.then(|| Self::Serial(text.trim_start_matches('0').to_ascii_uppercase()))
    }
}

/// A merchant's receiver.
pub struct WechatPay {
    mch_id: String,
    app_ids: Vec<String>,
    api_v3_key: LessSafeKey,
    keys: Vec<(KeyId, PublicKey)>,
}

impl fmt::Debug for WechatPay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WechatPay")
            .field("mch_id", &self.mch_id)
            .field("app_ids", &self.app_ids)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Envelope {
    event_type: String,
    resource: Resource,
}

#[derive(Deserialize)]
struct Resource {
    algorithm: String,
    ciphertext: String,
    nonce: String,
    /// Absent, null and "" all mean empty.
    associated_data: Option<String>,
}

#[derive(Deserialize)]
struct Transaction {
    mchid: String,
    appid: String,
    out_trade_no: String,
    transaction_id: String,
    /// A text and no enum: a state that is new is none of our business.
    trade_state: String,
    success_time: Option<String>,
    amount: Option<Amount>,
}

#[derive(Deserialize)]
struct Amount {
    /// What the buyer owed: `payer_total` is less where a coupon paid a part.
    total: u64,
    /// WeChat Pay's default is CNY.
    currency: Option<String>,
}

#[derive(Deserialize)]
struct Refund {
    mchid: String,
    out_refund_no: String,
    refund_id: String,
    refund_status: String,
}

impl WechatPay {
    /// With the keys that the configuration names.
    ///
    /// # Errors
    /// A sentence that names the key of the configuration.
    pub fn new(config: &WechatPayConfig) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (name, text) in config.public_keys()? {
            let place = format!("payment.wechat_pay.public_keys: {name:?}");
            let id = KeyId::parse(&name).ok_or_else(|| {
                format!("{place} is neither a PUB_KEY_ID_… nor a certificate's serial in hexadecimal digits")
            })?;
            if keys.iter().any(|(other, _)| *other == id) {
                return Err(format!("{place} stands twice"));
            }
            keys.push((id, PublicKey::parse(&text).map_err(|wrong| format!("{place}: its file {wrong}"))?));
        }
        let secret = config.api_v3_key.as_ref().map_or("", |secret| secret.expose());
        let api_v3_key =
            UnboundKey::new(&AES_256_GCM, secret.as_bytes()).map(LessSafeKey::new).map_err(|_| {
                "payment.wechat_pay.api_v3_key must have exactly 32 bytes, as the merchant platform has it"
                    .to_owned()
            })?;
        Ok(Self { mch_id: config.mch_id.clone(), app_ids: config.app_ids.clone(), api_v3_key, keys })
    }

    /// Checks the signature and reads what is signed.
    ///
    /// # Errors
    /// [`Refusal::Signature`].
    pub fn hear(&self, notice: Notice<'_>) -> Result<Signed, Refusal> {
        let at_s = self.verify(notice)?;
        Ok(Signed { sent: Some(Sent { at_s, leeway_ms: LEEWAY_MS }), said: self.said(notice.body) })
    }

    /// The time that a good signature covers.
    fn verify(&self, notice: Notice<'_>) -> Result<u64, Refusal> {
        let is_given = notice.headers("wechatpay-signature-type").next().is_some();
        if is_given && notice.header("wechatpay-signature-type") != Some(SIGNATURE_TYPE) {
            return Err(Refusal::Signature("Wechatpay-Signature-Type is not WECHATPAY2-SHA256-RSA2048"));
        }
        let header =
            |name| notice.header(name).ok_or(Refusal::Signature("a Wechatpay- header is missing or doubled"));
        let serial = KeyId::parse(header("wechatpay-serial")?);
        let (timestamp, nonce) = (header("wechatpay-timestamp")?, header("wechatpay-nonce")?);
        let at_s =
            seconds(timestamp).ok_or(Refusal::Signature("Wechatpay-Timestamp is no number of seconds"))?;
        let known = self.keys.iter().find(|(id, _)| Some(id) == serial.as_ref());
        let Some((_, key)) = known else {
            return Err(Refusal::Signature(
                "Wechatpay-Serial names no key of payment.wechat_pay.public_keys",
            ));
        };
        let signed = [timestamp.as_bytes(), b"\n", nonce.as_bytes(), b"\n", notice.body, b"\n"].concat();
        let signature = STANDARD.decode(header("wechatpay-signature")?).unwrap_or_default();
        if key.verifies(&signed, &signature) {
            Ok(at_s)
        } else {
            Err(Refusal::Signature("the signature is not this key's"))
        }
    }

    fn said(&self, body: &[u8]) -> Result<Heard, Refusal> {
        let call: Envelope = read(body)?;
        match call.event_type.as_str() {
            "TRANSACTION.SUCCESS" => self.transaction(&self.decrypt(call.resource)?),
            "REFUND.SUCCESS" | "REFUND.ABNORMAL" | "REFUND.CLOSED" => {
                self.refund(&self.decrypt(call.resource)?)
            }
            other => Ok(Heard::Nothing(format!("event_type {other:?}"))),
        }
    }

    fn decrypt(&self, resource: Resource) -> Result<Vec<u8>, Refusal> {
        let Ok(mut text) = STANDARD.decode(&resource.ciphertext) else {
            return malformed("resource.ciphertext is no base64");
        };
        let nonce = resource.nonce.as_bytes();
        if resource.algorithm != ALGORITHM || nonce.len() != NONCE_LEN || text.len() < AES_256_GCM.tag_len() {
            return malformed("resource is not AEAD_AES_256_GCM with a nonce of 12 bytes and a tag of 16");
        }
        let Ok(nonce) = Nonce::try_assume_unique_for_key(nonce) else {
            return malformed("resource.nonce has not 12 bytes");
        };
        let known = Aad::from(resource.associated_data.unwrap_or_default());
        let length = self
            .api_v3_key
            .open_in_place(nonce, known, &mut text)
            .map(|plain| plain.len())
            // It is signed, so it is WeChat Pay's: then it is our key that is wrong.
            .map_err(|_| {
                Refusal::OurKey("payment.wechat_pay.api_v3_key is not the one that WeChat Pay encrypts with")
            })?;
        text.truncate(length);
        Ok(text)
    }

    fn transaction(&self, plain: &[u8]) -> Result<Heard, Refusal> {
        let transaction: Transaction = read(plain)?;
        if transaction.mchid != self.mch_id {
            return Err(Refusal::NotOurs("mchid is not payment.wechat_pay.mch_id"));
        }
        if !self.app_ids.contains(&transaction.appid) {
            return Err(Refusal::NotOurs("appid is none of payment.wechat_pay.app_ids"));
        }
        if transaction.trade_state != "SUCCESS" {
            return Ok(Heard::Nothing(format!("trade_state {:?}", transaction.trade_state)));
        }
        let Some(amount) = transaction.amount else { return malformed("amount is missing") };
        captured(Capture {
            provider: Provider::WechatPay.as_str().to_owned(),
            payment_id: transaction.transaction_id,
            order_id: order_of(&transaction.out_trade_no),
            trade_ref: transaction.out_trade_no,
            amount: amount.total,
            currency: amount.currency.unwrap_or_else(|| "CNY".to_owned()),
            paid_at: transaction.success_time.and_then(|time| time.parse().ok()),
        })
    }

    fn refund(&self, plain: &[u8]) -> Result<Heard, Refusal> {
        let refund: Refund = read(plain)?;
        if refund.mchid != self.mch_id {
            return Err(Refusal::NotOurs("mchid is not payment.wechat_pay.mch_id"));
        }
        let outcome = match refund.refund_status.as_str() {
            "SUCCESS" => RefundOutcome::Succeeded,
            "ABNORMAL" => RefundOutcome::Failed(
                "ABNORMAL: the buyer's account does not take it; see the merchant platform".into(),
            ),
            "CLOSED" => RefundOutcome::Failed("CLOSED: WeChat Pay closed the refund".into()),
            other => return Ok(Heard::Nothing(format!("refund_status {other:?}"))),
        };
        let provider_refund_id = Some(refund.refund_id);
        Ok(Heard::Refund(RefundTold { refund_id: refund.out_refund_no, outcome, provider_refund_id }))
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(json).map_err(|error| Refusal::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::config::{PaymentSecret, WechatPublicKey};
    use super::*;

    #[test]
    fn a_serial_is_a_number_in_any_spelling() {
        let serial = KeyId::parse("b5e1c0ffee0a");
        assert_eq!(KeyId::parse("0B5E1C0FFEE0A"), serial);
        assert_eq!(KeyId::parse("000B5E1C0FFEE0A"), serial);
        assert_ne!(KeyId::parse("B5E1C0FFEE0"), serial);
        assert_ne!(KeyId::parse("PUB_KEY_ID_1"), KeyId::parse("PUB_KEY_ID_01"));
        for wrong in ["", "B5G", "PUB_KEY", "-1", " B5"] {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_signed_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), nonce in "[ -~]{0,16}", text in "[A-Za-z0-9+/]{0,40}={0,2}") {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/payments/keys/wechat-public-key.pub.pem").into();
            let keys = WechatPay::new(&WechatPayConfig {
                mch_id: "1".into(),
                app_ids: vec!["wx".into()],
                api_v3_key: Some(PaymentSecret::new("-".repeat(32))),
                public_keys: vec![WechatPublicKey { id: "PUB_KEY_ID_1".into(), file }],
            });
            let keys = keys.map_err(TestCaseError::fail)?;
            let call = serde_json::json!({
                "event_type": "TRANSACTION.SUCCESS",
                "resource": { "algorithm": ALGORITHM, "ciphertext": text, "nonce": nonce, "associated_data": null },
            });
            prop_assert!(keys.said(call.to_string().as_bytes()).is_err());
            let _ = (keys.said(&bytes), keys.transaction(&bytes), keys.refund(&bytes));
        }
    }
}
