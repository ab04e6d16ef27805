//! The 98 messages of `payments/` against our receivers: what each vendor's library said stands beside every case. No message here is
//! signed or encrypted by our own code.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use order_worker::life::payments::standard_webhooks::{StandardWebhooks, WebhookSecret};
use order_worker::life::payments::{Heard, Notice, Refusal, Signed};
use proptest::prelude::*;
use serde_json::Value;
use stock::Timestamp;

#[cfg(feature = "payments")]
mod vendors;

const WEBHOOKS: &str = include_str!("payments/webhooks.json");
/// The order that the vendors' messages name.
#[cfg(feature = "payments")]
const ORDER: &str = "01M7YMPT5MDHF5W669RCMTQ7B4";
const DAY_MS: u64 = 86_400_000;

/// A call as one of the files has it.
struct Message {
    name: String,
    accept: bool,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    case: Value,
}

impl Message {
    fn hear(&self, hear: impl Fn(Notice<'_>) -> Result<Signed, Refusal>) -> Result<Signed, Refusal> {
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        hear(Notice { headers: &headers, body: &self.body })
    }
}

/// All messages of a file, and the moment at which they were made.
fn messages(file: &str) -> (Vec<Message>, Timestamp) {
    let file: Value = serde_json::from_str(file).unwrap();
    let message = |case: &Value| Message {
        name: case["name"].as_str().unwrap().to_owned(),
        accept: case["accept"].as_bool().unwrap(),
        headers: case["headers"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().as_bytes().to_vec()))
            .collect(),
        body: match case["body_base64"].as_str() {
            Some(body) => STANDARD.decode(body).unwrap(),
            None => case["body"].as_str().unwrap().as_bytes().to_vec(),
        },
        case: case.clone(),
    };
    let made_at = Timestamp(file["made_at"].as_u64().unwrap() * 1_000);
    (file["cases"].as_array().unwrap().iter().map(message).collect(), made_at)
}

fn named(messages: Vec<Message>, name: &str) -> Message {
    messages.into_iter().find(|message| message.name == name).unwrap()
}

/// Whether a call is believed. What is signed and not what we need is another matter.
fn is_believed(heard: &Result<Heard, Refusal>) -> bool {
    !matches!(heard, Err(Refusal::Signature(_) | Refusal::Time))
}

fn secret_of(message: &Message) -> Result<WebhookSecret, &'static str> {
    WebhookSecret::parse(message.case["secret"].as_str().unwrap())
}

fn webhook(message: &Message, now: Timestamp) -> Result<Heard, Refusal> {
    let keys = StandardWebhooks::new(vec![secret_of(message).map_err(Refusal::Signature)?]);
    message.hear(|notice| keys.hear(notice))?.at(now)
}

#[test]
fn each_webhook_is_judged_as_the_vendors_libraries_judge_it() {
    let (messages, now) = messages(WEBHOOKS);
    assert_eq!(messages.len(), 45);
    for message in &messages {
        let heard = webhook(message, now);
        assert_eq!(is_believed(&heard), message.accept, "{}: {heard:?}", message.name);
    }
}

#[test]
fn a_webhook_with_one_byte_changed_is_refused() {
    let (messages, now) = messages(WEBHOOKS);
    for message in messages.iter().filter(|message| message.accept) {
        for at in 0..message.body.len() {
            let mut body = message.body.clone();
            body[at] ^= 1;
            let changed = Message {
                body,
                name: String::new(),
                headers: message.headers.clone(),
                case: message.case.clone(),
                accept: false,
            };
            assert!(!is_believed(&webhook(&changed, now)), "{}, byte {at}", message.name);
        }
    }
    // Each byte of the one signature, of the id and of the time.
    let plain = named(messages, "plain");
    for header in 0..plain.headers.len() {
        for at in 0..plain.headers[header].1.len() {
            let mut headers = plain.headers.clone();
            headers[header].1[at] ^= 1;
            let name = format!("{} {at}", headers[header].0);
            let changed =
                Message { body: plain.body.clone(), name, headers, case: plain.case.clone(), accept: false };
            assert!(!is_believed(&webhook(&changed, now)), "{}", changed.name);
        }
    }
}

#[test]
fn a_webhook_counts_for_five_minutes() {
    let (messages, now) = messages(WEBHOOKS);
    let plain = named(messages, "plain");
    for (off_ms, is_in_time) in [(0, true), (300_000, true), (300_001, false), (DAY_MS, false)] {
        for at in [now.0 + off_ms, now.0 - off_ms] {
            assert_eq!(is_believed(&webhook(&plain, Timestamp(at))), is_in_time, "{off_ms}");
        }
    }
}

#[test]
fn a_secret_can_be_rotated() {
    let (messages, now) = messages(WEBHOOKS);
    let [old, new] =
        ["secret-24", "plain"].map(|name| messages.iter().find(|message| message.name == name).unwrap());
    let both = StandardWebhooks::new(vec![secret_of(new).unwrap(), secret_of(old).unwrap()]);
    let only_new = StandardWebhooks::new(vec![secret_of(new).unwrap()]);
    let hear = |keys: &StandardWebhooks, message: &Message| {
        message.hear(|notice| keys.hear(notice)).and_then(|signed| signed.at(now))
    };
    assert!(is_believed(&hear(&both, old)) && is_believed(&hear(&both, new)));
    assert!(!is_believed(&hear(&only_new, old)) && is_believed(&hear(&only_new, new)));
}

#[test]
fn what_is_signed_and_no_payment_is_told_apart() {
    let (messages, now) = messages(WEBHOOKS);
    for message in messages.iter().filter(|message| message.accept) {
        let heard = webhook(message, now);
        let is_event = message.body.starts_with(b"{\"type\":\"order.paid\"");
        // An event of another type changes nothing; whatever else these messages hold is no payment.
        assert_eq!(matches!(heard, Ok(Heard::Nothing(_))), is_event, "{}: {heard:?}", message.name);
        assert_eq!(matches!(heard, Err(Refusal::Malformed(_))), !is_event, "{}: {heard:?}", message.name);
    }
}

#[test]
fn secrets_do_not_show() {
    let secret = WebhookSecret::parse("whsec_W/+tXC37i7ggthGcuo/4h5auWwXygKaM").unwrap();
    let keys = format!("{secret:?} {:?}", StandardWebhooks::new(vec![secret.clone()]));
    assert_eq!(keys, "*** StandardWebhooks([***])");
}

proptest! {
    #[test]
    fn no_bytes_make_the_callback_panic(
        headers in prop::collection::vec(
            ("(webhook-(id|timestamp|signature)|x)", prop_oneof!["[0-9]{1,12}", "v1,[A-Za-z0-9+/=, ]{0,60}", ".{0,20}"]), 0..5),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let keys = StandardWebhooks::new(vec![WebhookSecret::parse("whsec_W/+tXC37i7ggthGcuo/4h5auWwXygKaM").unwrap()]);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let heard = keys.hear(Notice { headers: &headers, body: &body });
        prop_assert!(heard.is_err());
    }
}
