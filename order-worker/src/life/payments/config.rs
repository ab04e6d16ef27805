//! Section `[payment]`: who may tell of payments, and where the shop's own service hears of them. Keys are read, never shown.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};

use super::Provider;
use super::standard_webhooks::WebhookSecret;

/// Longest wait after `pay_by` before an unpaid order is closed, seconds: a day.
const GRACE_S_MAX: u64 = 86_400;
/// Shortest and longest wait of a payment without an order, seconds: a minute, a month.
const UNMATCHED_REFUND_S: std::ops::RangeInclusive<u64> = 60..=2_592_000;
/// Secrets, apps or public keys at once: they change one at a time.
const AT_ONCE_MAX: usize = 16;

/// A text that never shows in logs, in `--print-config` or in errors.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct PaymentSecret(String);

impl PaymentSecret {
    /// Keeps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for a key.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PaymentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for PaymentSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// An address of the shop's own service. A password in it never shows.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ServiceUrl(String);

impl ServiceUrl {
    /// The whole address, password included: for connecting, never for showing.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&stock::config::without_password(&self.0))
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for ServiceUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Section `[payment]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaymentConfig {
    /// Whose calls are taken.
    pub providers: Vec<Provider>,
    /// How long after `pay_by` an unpaid order is closed, seconds.
    pub grace_s: u64,
    /// Asked whether an order is paid before it is closed.
    pub check_url: Option<ServiceUrl>,
    /// Told of an order that was closed.
    pub close_url: Option<ServiceUrl>,
    /// Asked to send money back.
    pub refund_url: Option<ServiceUrl>,
    /// After how long a payment whose order never came goes back, seconds.
    pub unmatched_refund_s: u64,
    /// Of the callback. Made at the first start where none is configured.
    pub callback_secret: Option<PaymentSecret>,
    /// More of them: each counts, so that one can be rotated.
    pub callback_secrets: Vec<PaymentSecret>,
    /// `[payment.wechat_pay]`.
    pub wechat_pay: WechatPayConfig,
    /// `[payment.alipay]`.
    pub alipay: AlipayConfig,
}

impl Default for PaymentConfig {
    fn default() -> Self {
        Self {
            providers: vec![Provider::StandardWebhooks],
            grace_s: 0,
            check_url: None,
            close_url: None,
            refund_url: None,
            unmatched_refund_s: 86_400,
            callback_secret: None,
            callback_secrets: Vec::new(),
            wechat_pay: WechatPayConfig::default(),
            alipay: AlipayConfig::default(),
        }
    }
}

/// `[payment.wechat_pay]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WechatPayConfig {
    /// The merchant.
    pub mch_id: String,
    /// Its apps: a payment through any other is not ours.
    pub app_ids: Vec<String>,
    /// What WeChat Pay encrypts with: 32 bytes.
    pub api_v3_key: Option<PaymentSecret>,
    /// WeChat Pay's own keys; several while a merchant moves from a certificate to a public key.
    pub public_keys: Vec<WechatPublicKey>,
}

/// One of WeChat Pay's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WechatPublicKey {
    /// `PUB_KEY_ID_…`, or a certificate's serial in hexadecimal digits.
    pub id: String,
    /// A public key or a certificate, as PEM.
    pub file: PathBuf,
}

impl WechatPayConfig {
    /// Each key's id and the text of its file.
    #[cfg(feature = "payments")]
    pub(super) fn public_keys(&self) -> Result<Vec<(String, String)>, String> {
        let read = |key: &WechatPublicKey| {
            let text = std::fs::read_to_string(&key.file).map_err(|error| {
                format!(
                    "payment.wechat_pay.public_keys: {:?}: cannot read {}: {error}",
                    key.id,
                    key.file.display()
                )
            })?;
            Ok((key.id.clone(), text))
        };
        self.public_keys.iter().map(read).collect()
    }
}

/// `[payment.alipay]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlipayConfig {
    /// The app: another's notifications are not ours.
    pub app_id: String,
    /// The merchant's own account, 2088….
    pub seller_id: String,
    /// Alipay's public key (not the merchant's own), or its certificate.
    pub public_key: Option<String>,
}

fn missing(key: &str, what: &str) -> String {
    format!("{key} is missing: {what}")
}

impl PaymentConfig {
    /// What is wrong with the section, naming the key; keys in files are looked at by [`super::Receivers::new`].
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn validate(&self) -> Result<(), String> {
        for (at, provider) in self.providers.iter().enumerate() {
            if self.providers[..at].contains(provider) {
                return Err(format!("payment.providers: \"{}\" stands twice", provider.as_str()));
            }
            if *provider != Provider::StandardWebhooks && !cfg!(feature = "payments") {
                return Err(format!(
                    "payment.providers: \"{}\" is not compiled into this binary: it needs the cargo feature `payments`; build it \
                     with `cargo build --release --features payments`, or leave it out",
                    provider.as_str()
                ));
            }
        }
        self.secrets()?;
        self.check_used()?;
        if self.grace_s > GRACE_S_MAX {
            return Err(format!("payment.grace_s: at most {GRACE_S_MAX} seconds, a day"));
        }
        if !UNMATCHED_REFUND_S.contains(&self.unmatched_refund_s) {
            return Err("payment.unmatched_refund_s: between 60 and 2592000 seconds, a month".to_owned());
        }
        let urls = [
            ("payment.check_url", &self.check_url),
            ("payment.close_url", &self.close_url),
            ("payment.refund_url", &self.refund_url),
        ];
        for (key, url) in urls {
            let host = url.as_ref().map(|url| url.reveal().strip_prefix("http://").unwrap_or_default());
            if host.is_some_and(|host| host.is_empty() || host.starts_with('/')) {
                return Err(format!(
                    "{key} must be the address of your own service, http://HOST:PORT/PATH; for https:// put a proxy beside this process"
                ));
            }
        }
        Ok(())
    }

    /// Every secret of the callback, as a key.
    ///
    /// # Errors
    /// A sentence that names the key, never the secret.
    pub fn secrets(&self) -> Result<Vec<WebhookSecret>, String> {
        let one = self.callback_secret.iter().map(|secret| ("payment.callback_secret", secret));
        let more = self.callback_secrets.iter().map(|secret| ("payment.callback_secrets", secret));
        if self.callback_secrets.len() > AT_ONCE_MAX {
            return Err(format!("payment.callback_secrets: at most {AT_ONCE_MAX}"));
        }
        let parse = |(key, secret): (&str, &PaymentSecret)| {
            WebhookSecret::parse(secret.expose()).map_err(|wrong| format!("{key} {wrong}"))
        };
        one.chain(more).map(parse).collect()
    }

    /// Every provider has what it needs, and what is written is used.
    fn check_used(&self) -> Result<(), String> {
        let has = |provider| self.providers.contains(&provider);
        let unused = |key: &str, provider: Provider| {
            let name = provider.as_str();
            Err(format!(
                "{key} is configured, and payment.providers does not name \"{name}\": add it there, or remove the keys"
            ))
        };
        let is_secret = self.callback_secret.is_some() || !self.callback_secrets.is_empty();
        if is_secret && !has(Provider::StandardWebhooks) {
            return unused("payment.callback_secret", Provider::StandardWebhooks);
        }
        let wechat_pay = &self.wechat_pay;
        if !has(Provider::WechatPay) && *wechat_pay != WechatPayConfig::default() {
            return unused("[payment.wechat_pay]", Provider::WechatPay);
        }
        if has(Provider::WechatPay) {
            if wechat_pay.mch_id.is_empty() {
                return Err(missing(
                    "payment.wechat_pay.mch_id",
                    "the merchant's number, such as \"1900000001\"",
                ));
            }
            if wechat_pay.app_ids.is_empty() || wechat_pay.app_ids.len() > AT_ONCE_MAX {
                return Err(missing(
                    "payment.wechat_pay.app_ids",
                    "1 to 16 app ids, such as [\"wx0000000000000001\"]",
                ));
            }
            if wechat_pay.api_v3_key.is_none() {
                return Err(missing(
                    "payment.wechat_pay.api_v3_key",
                    "the 32 bytes that the merchant platform has, here or in api_v3_key_file",
                ));
            }
            if wechat_pay.public_keys.is_empty() || wechat_pay.public_keys.len() > AT_ONCE_MAX {
                return Err(missing(
                    "payment.wechat_pay.public_keys",
                    "1 to 16 of [{ id = \"PUB_KEY_ID_…\", file = \"FILE\" }]",
                ));
            }
        }
        let alipay = &self.alipay;
        if !has(Provider::Alipay) && *alipay != AlipayConfig::default() {
            return unused("[payment.alipay]", Provider::Alipay);
        }
        if has(Provider::Alipay) {
            if alipay.app_id.is_empty() {
                return Err(missing(
                    "payment.alipay.app_id",
                    "the app's number, such as \"2021000000000001\"",
                ));
            }
            if alipay.seller_id.is_empty() {
                return Err(missing(
                    "payment.alipay.seller_id",
                    "your own account's number, such as \"2088000000000001\"",
                ));
            }
            if alipay.public_key.is_none() {
                return Err(missing(
                    "payment.alipay.public_key",
                    "Alipay's public key or certificate, here or in public_key_file",
                ));
            }
        }
        Ok(())
    }
}
