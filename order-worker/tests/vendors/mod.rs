//! WeChat Pay's and Alipay's messages.

use order_worker::database::{Capture, RefundOutcome, RefundTold};
use order_worker::life::payments::alipay::Alipay;
use order_worker::life::payments::config::{AlipayConfig, PaymentSecret, WechatPayConfig, WechatPublicKey};
use order_worker::life::payments::wechat_pay::WechatPay;

use super::*;

const WECHAT_PAY: &str = include_str!("../payments/wechat-pay.json");
const ALIPAY: &str = include_str!("../payments/alipay.json");
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/payments/keys");

fn wechat_pay_config() -> WechatPayConfig {
    let file: Value = serde_json::from_str(WECHAT_PAY).unwrap();
    let key = |id: &str, name: &str| WechatPublicKey {
        id: file[id].as_str().unwrap().to_owned(),
        file: format!("{KEYS}/{name}").into(),
    };
    WechatPayConfig {
        mch_id: "1900000001".into(),
        app_ids: vec!["wx0000000000000002".into(), "wx0000000000000001".into()],
        api_v3_key: Some(PaymentSecret::new(file["apiv3_key"].as_str().unwrap())),
        public_keys: vec![
            key("certificate_serial", "wechat-platform-cert.cert.pem"),
            key("public_key_id", "wechat-public-key.pub.pem"),
        ],
    }
}

fn wechat_pay(config: &WechatPayConfig, message: &Message, now: Timestamp) -> Result<Heard, Refusal> {
    message.hear(|notice| WechatPay::new(config).unwrap().hear(notice))?.at(now)
}

fn alipay_config(message: &Message) -> AlipayConfig {
    let key = format!("{KEYS}/{}.pub.pem", message.case["key"].as_str().unwrap());
    AlipayConfig {
        app_id: "2021000000000001".into(),
        seller_id: "2088000000000001".into(),
        public_key: Some(std::fs::read_to_string(key).unwrap()),
    }
}

fn alipay(config: &AlipayConfig, message: &Message) -> Result<Heard, Refusal> {
    let signed = message.hear(|notice| Alipay::new(config).unwrap().hear(notice))?;
    assert!(!signed.is_dated());
    signed.at(Timestamp(0))
}

fn changed(message: &Message, at: usize) -> Message {
    let mut body = message.body.clone();
    body[at] ^= 1;
    Message {
        body,
        name: String::new(),
        headers: message.headers.clone(),
        case: message.case.clone(),
        accept: false,
    }
}

fn paid(provider: &str, payment_id: &str, amount: u64, paid_at: &str) -> Result<Heard, Refusal> {
    Ok(Heard::Captured(Capture {
        provider: provider.into(),
        payment_id: payment_id.into(),
        order_id: Some(ORDER.parse().unwrap()),
        trade_ref: ORDER.into(),
        amount,
        currency: "CNY".into(),
        paid_at: Some(paid_at.parse().unwrap()),
    }))
}

#[test]
fn each_call_of_wechat_pay_is_judged_as_decided() {
    let (messages, now) = messages(WECHAT_PAY);
    assert_eq!(messages.len(), 28);
    for message in &messages {
        let heard = wechat_pay(&wechat_pay_config(), message, now);
        assert_eq!(heard.is_ok(), message.accept, "{}: {heard:?}", message.name);
    }
}

#[test]
fn wechat_pays_calls_say_what_they_mean() {
    let (messages, now) = messages(WECHAT_PAY);
    let heard = |name: &str| {
        let message = messages.iter().find(|message| message.name == name).unwrap();
        wechat_pay(&wechat_pay_config(), message, now)
    };
    let whole =
        |amount| paid("wechat-pay", "4200000000202611280000000001", amount, "2026-11-28T12:00:00+08:00");
    for name in [
        "cert",
        "public-key",
        "aad-absent",
        "coupon-payer-total-less",
        "unknown-trade-type",
        "chinese-attach",
    ] {
        assert_eq!(heard(name), whole(206_640), "{name}");
    }
    let Ok(Heard::Captured(large)) = heard("amount-beyond-int32") else { panic!("a payment") };
    assert!(large.amount > i32::MAX as u64, "{large:?}");
    assert!(matches!(heard("unknown-trade-state"), Ok(Heard::Nothing(_))));
    assert!(matches!(heard("amount-as-float"), Err(Refusal::Malformed(_))));
    for (name, is_back) in [("refund-success", true), ("refund-abnormal", false), ("refund-closed", false)] {
        let Ok(Heard::Refund(RefundTold { refund_id, outcome, provider_refund_id })) = heard(name) else {
            panic!("{name}")
        };
        assert_eq!(
            (refund_id.as_str(), provider_refund_id.as_deref()),
            ("r-1", Some("50000000000000000001"))
        );
        assert_eq!(outcome == RefundOutcome::Succeeded, is_back, "{name}: {outcome:?}");
        assert_eq!(matches!(outcome, RefundOutcome::Failed(_)), !is_back, "{name}: {outcome:?}");
    }
}

#[test]
fn a_call_of_wechat_pay_with_one_byte_changed_or_a_day_old_is_refused() {
    let (messages, now) = messages(WECHAT_PAY);
    let keys = WechatPay::new(&wechat_pay_config()).unwrap();
    for message in messages.iter().filter(|message| message.accept) {
        let heard =
            |message: &Message, at| message.hear(|notice| keys.hear(notice)).and_then(|signed| signed.at(at));
        for at in (0..message.body.len()).step_by(5) {
            assert!(!is_believed(&heard(&changed(message, at), now)), "{}, byte {at}", message.name);
        }
        for header in 0..message.headers.len() {
            for at in 0..message.headers[header].1.len() {
                let mut other = changed(message, 0);
                other.body.clone_from(&message.body);
                other.headers[header].1[at] ^= 1;
                assert!(
                    !is_believed(&heard(&other, now)),
                    "{}, {} {at}",
                    message.name,
                    other.headers[header].0
                );
            }
        }
        for day in [now.0 + DAY_MS, now.0 - DAY_MS] {
            assert_eq!(heard(message, Timestamp(day)), Err(Refusal::Time), "{}", message.name);
        }
    }
    // As wechatpay-go: from exactly 300 s on.
    let plain = named(messages, "cert");
    let at = |ms| plain.hear(|notice| keys.hear(notice)).unwrap().at(Timestamp(ms));
    assert!(at(now.0 + 299_999).is_ok() && at(now.0 + 300_000) == Err(Refusal::Time));
}

#[test]
fn wechat_pays_keys_merchant_and_app_are_ours_or_it_is_refused() {
    let (messages, now) = messages(WECHAT_PAY);
    let message = |name: &str| messages.iter().find(|message| message.name == name).unwrap();
    let heard = |change: fn(&mut WechatPayConfig), name: &str| {
        let mut config = wechat_pay_config();
        change(&mut config);
        wechat_pay(&config, message(name), now)
    };
    let other_key = |config: &mut WechatPayConfig| {
        config.api_v3_key = Some(PaymentSecret::new("another-api-v3-key-of-32-bytes--"));
    };
    assert!(matches!(heard(other_key, "cert"), Err(Refusal::OurKey(_))));
    for name in ["cert", "refund-success"] {
        assert!(matches!(
            heard(|config| config.mch_id = "1900000002".into(), name),
            Err(Refusal::NotOurs(_))
        ));
    }
    assert!(matches!(heard(|config| config.app_ids.truncate(1), "cert"), Err(Refusal::NotOurs(_))));
    // While a merchant moves from a certificate to a public key both arrive; a key that is taken out counts no more.
    assert!(heard(|config| config.public_keys.truncate(1), "cert").is_ok());
    assert!(!is_believed(&heard(|config| config.public_keys.truncate(1), "public-key")));
    assert!(heard(|config| drop(config.public_keys.remove(0)), "public-key").is_ok());
    // Another key under the right serial.
    let swapped =
        |config: &mut WechatPayConfig| config.public_keys[0].file = format!("{KEYS}/alipay.pub.pem").into();
    assert!(!is_believed(&heard(swapped, "cert")));
    let shown = format!("{:?} {:?}", WechatPay::new(&wechat_pay_config()), wechat_pay_config());
    assert!(!shown.contains("apiv3-key"), "{shown}");
}

#[test]
fn each_notification_of_alipay_is_judged_as_decided() {
    let (messages, _) = messages(ALIPAY);
    assert_eq!(messages.len(), 25);
    for message in &messages {
        let heard = alipay(&alipay_config(message), message);
        assert_eq!(heard.is_ok(), message.accept, "{}: {heard:?}", message.name);
    }
}

#[test]
fn alipays_notifications_say_what_they_mean() {
    let (messages, _) = messages(ALIPAY);
    let heard = |name: &str| {
        let message = messages.iter().find(|message| message.name == name).unwrap();
        alipay(&alipay_config(message), message)
    };
    let whole = |amount| paid("alipay", "2026112822000000000000000001", amount, "2026-11-28T12:00:01+08:00");
    for name in [
        "plain",
        "gbk",
        "trade-finished",
        "refund-fee-zero-on-a-payment",
        "plus-amp-equals-space",
        "certificate-mode",
    ] {
        assert_eq!(heard(name), whole(206_640), "{name}");
    }
    assert_eq!(heard("amount-one-digit"), whole(880));
    assert_eq!(heard("amount-no-digits"), whole(800));
    for name in ["wait-buyer-pay", "closed-unpaid"] {
        assert!(matches!(heard(name), Ok(Heard::Nothing(_))), "{name}");
    }
    for name in ["refund-partial", "refund-full"] {
        let told = RefundTold {
            refund_id: "r-1".into(),
            outcome: RefundOutcome::Succeeded,
            provider_refund_id: None,
        };
        assert_eq!(heard(name), Ok(Heard::Refund(told)), "{name}");
    }
}

/// A form's parameters as Alipay means them: decoded, in order, without empty ones.
fn meaning(body: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut pairs = Vec::new();
    for pair in body.split(|byte| *byte == b'&') {
        let mut parts = pair.splitn(2, |byte| *byte == b'=').map(|part| {
            let mut text = String::new();
            for byte in part {
                text.push(if *byte == b'+' { ' ' } else { char::from(*byte) });
            }
            let mut bytes = Vec::new();
            let mut rest = text.as_str();
            while let Some(first) = rest.chars().next() {
                if first == '%' {
                    bytes.push(u8::from_str_radix(rest.get(1..3)?, 16).ok()?);
                    rest = &rest[3..];
                } else {
                    bytes.push(u8::try_from(first).ok()?);
                    rest = &rest[first.len_utf8()..];
                }
            }
            Some(bytes)
        });
        let (name, value) = (parts.next()??, parts.next().unwrap_or(Some(Vec::new()))?);
        if !value.is_empty() {
            pairs.push((name, value));
        }
    }
    pairs.sort();
    Some(pairs)
}

#[test]
fn a_notification_of_alipay_with_one_byte_changed_is_refused() {
    let (messages, _) = messages(ALIPAY);
    for message in messages.iter().filter(|message| message.accept) {
        let keys = Alipay::new(&alipay_config(message)).unwrap();
        let mut refused = 0;
        for at in 0..message.body.len() {
            let other = changed(message, at);
            // A percent sign may be followed by either case, and the name of an empty value is not signed: the same message then.
            if meaning(&other.body).is_some_and(|other| Some(other) == meaning(&message.body)) {
                continue;
            }
            let heard = other.hear(|notice| keys.hear(notice));
            assert!(heard.is_err(), "{}, byte {at}: {}", message.name, String::from_utf8_lossy(&other.body));
            refused += 1;
        }
        assert!(refused > 500, "{}: {refused}", message.name);
    }
}

#[test]
fn another_seller_or_app_of_alipay_is_not_ours_and_another_key_counts_nothing() {
    let (messages, _) = messages(ALIPAY);
    let plain = named(messages, "plain");
    let config = alipay_config(&plain);
    let app = AlipayConfig { app_id: "2021000000000002".into(), ..config.clone() };
    let seller = AlipayConfig { seller_id: "2088000000000002".into(), ..config.clone() };
    for other in [app, seller] {
        assert!(matches!(alipay(&other, &plain), Err(Refusal::NotOurs(_))));
    }
    let key = std::fs::read_to_string(format!("{KEYS}/alipay-cert.pub.pem")).unwrap();
    let key = AlipayConfig { public_key: Some(key), ..config.clone() };
    assert!(!is_believed(&alipay(&key, &plain)));
    // Twice the same name would leave open which of them was signed.
    let mut twice = changed(&plain, 0);
    twice.body = [&plain.body[..], b"&total_amount=0.01"].concat();
    assert!(!is_believed(&alipay(&config, &twice)));
    twice.body = [&b"total_amount=0.01&"[..], &plain.body].concat();
    assert!(!is_believed(&alipay(&config, &twice)));
}

proptest! {
    #[test]
    fn no_bytes_make_the_vendors_receivers_panic(
        headers in prop::collection::vec(
            ("wechatpay-(serial|timestamp|nonce|signature|signature-type)",
             prop_oneof!["PUB_KEY_ID_0100000000012026112800000000000001", "[0-9A-F]{0,40}", "[A-Za-z0-9+/]{0,40}={0,2}", ".{0,20}"]), 0..7),
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "([a-z_]{0,8}=[%a-f0-9+&=]{0,20}&){0,6}sign=[A-Za-z0-9%+/=]{0,40}".prop_map(String::into_bytes),
        ],
    ) {
        let (mut all, _) = messages(ALIPAY);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let notice = Notice { headers: &headers, body: &body };
        let wechat_pay = WechatPay::new(&wechat_pay_config()).unwrap().hear(notice);
        let alipay = Alipay::new(&alipay_config(&all.remove(0))).unwrap().hear(notice);
        prop_assert!(wechat_pay.is_err() && alipay.is_err());
    }
}
