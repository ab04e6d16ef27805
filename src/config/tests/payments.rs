//! Section `[payment]` and the two within it.

use super::load;

/// What is written, and two texts that the sentence must hold.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("[payment]\nrefund_urls = \"http://127.0.0.1\"", "[payment]", "\"refund_url\""),
    ("[payment]\nrefund_url = \"https://127.0.0.1\"", "payment.refund_url", "http://HOST:PORT/PATH"),
    ("[payment]\ncheck_url = \"http:///check\"", "payment.check_url", "http://HOST:PORT/PATH"),
    ("[payment]\nclose_url = 5", "payment.close_url", "a text, in quotes"),
    ("[payment]\nproviders = [\"stripe\"]", "payment.providers", "standard-webhooks"),
    ("[payment]\nproviders = \"alipay\"", "payment.providers", "in brackets"),
    (
        "[payment]\nproviders = [\"standard-webhooks\", \"standard-webhooks\"]",
        "payment.providers",
        "stands twice",
    ),
    (
        "[payment]\nproviders = []\ncallback_secret = \"whsec_MTIzNDU2NzgxMjM0NTY3ODEyMzQ1Njc4\"",
        "payment.callback_secret",
        "does not name",
    ),
    ("[payment]\ncallback_secret = 12345678", "payment.callback_secret", "a text, in quotes"),
    ("[payment]\ncallback_secret = \"whsec_12345678\"", "payment.callback_secret", "24 bytes"),
    ("[payment]\ncallback_secret = \"whsec_\"", "payment.callback_secret", "24 bytes"),
    (
        "[payment]\ncallback_secrets = [\"whsec__oDUCqOd-5JJ9Aw-432WFEXIBvWMfPISffqJT5KW_PM=\"]",
        "payment.callback_secrets",
        "alphabet",
    ),
    ("[payment]\ncallback_secret_file = \"/nowhere/at/all\"", "callback_secret_file", "cannot read"),
    ("[payment]\ncallback_secret = \"***\"", "callback_secret", "is hidden"),
    ("[payment]\nunmatched_refund_s = 1", "payment.unmatched_refund_s", "between 60"),
    ("[payment]\ngrace_s = 90000", "payment.grace_s", "86400"),
    ("[payment]\ngrace_s = -1", "payment.grace_s", "0 or more"),
    ("[payment.wechat_pay]\nmch_id = \"1\"", "[payment.wechat_pay]", "does not name \"wechat-pay\""),
    ("[payment.wechat_pay]\nmchid = \"1\"", "[payment.wechat_pay]", "\"mch_id\""),
    ("[payment.wechat_pay]\napi_v3_key = 12345678", "payment.wechat_pay.api_v3_key", "a text, in quotes"),
    ("[payment.wechat_pay]\napi_v3_key_file = \"\"", "api_v3_key_file", "name of a file"),
    ("[payment.wechat_pay]\napp_ids = \"wx1\"", "payment.wechat_pay.app_ids", "in brackets"),
    ("[payment.wechat_pay]\npublic_keys = [\"k\"]", "payment.wechat_pay.public_keys", "PUB_KEY_ID_…"),
    ("[payment.alipay]\nseller_id = \"1\"", "[payment.alipay]", "does not name \"alipay\""),
    ("[payment.alipay]\nseller_id = 1", "payment.alipay.seller_id", "a text, in quotes"),
];

/// A section that is whole but for what a case leaves out or spoils.
#[cfg(feature = "payments")]
const PAYMENTS: &str = "[payment]
providers = [\"alipay\", \"wechat-pay\"]
[payment.wechat_pay]
mch_id = \"1900000001\"
app_ids = [\"wx0000000000000001\"]
api_v3_key_file = \"KEYS/apiv3.txt\"
public_keys = [{ id = \"0B5E1C0FF\", file = \"KEYS/wechat-platform-cert.cert.pem\" }]
[payment.alipay]
app_id = \"2021000000000001\"
seller_id = \"2088000000000001\"
public_key_file = \"KEYS/alipay.pub.pem\"
";

/// What is taken out, what is put there, and two texts that the sentence must hold.
#[cfg(feature = "payments")]
const PAYMENT_MISTAKES: &[(&str, &str, &str, &str)] = &[
    ("mch_id = \"1900000001\"", "", "payment.wechat_pay.mch_id", "is missing"),
    ("\"wx0000000000000001\"", "", "payment.wechat_pay.app_ids", "is missing"),
    ("api_v3_key_file = \"KEYS/apiv3.txt\"", "", "payment.wechat_pay.api_v3_key", "is missing"),
    (
        "api_v3_key_file = \"KEYS/apiv3.txt\"",
        "api_v3_key = \"12345678\"",
        "payment.wechat_pay.api_v3_key",
        "exactly 32 bytes",
    ),
    (
        "{ id = \"0B5E1C0FF\", file = \"KEYS/wechat-platform-cert.cert.pem\" }",
        "",
        "payment.wechat_pay.public_keys",
        "is missing",
    ),
    ("\"0B5E1C0FF\"", "\"my key\"", "payment.wechat_pay.public_keys: \"my key\"", "serial in hexadecimal"),
    (
        "KEYS/wechat-platform-cert.cert.pem",
        "/nowhere.pem",
        "payment.wechat_pay.public_keys: \"0B5E1C0FF\"",
        "cannot read",
    ),
    (
        "KEYS/wechat-platform-cert.cert.pem",
        "KEYS/apiv3.txt",
        "payment.wechat_pay.public_keys: \"0B5E1C0FF\"",
        "no PEM",
    ),
    (
        "public_keys = [",
        "public_keys = [{ id = \"b5e1c0ff\", file = \"KEYS/alipay.pub.pem\" }, ",
        "payment.wechat_pay.public_keys",
        "stands twice",
    ),
    ("app_id = \"2021000000000001\"", "", "payment.alipay.app_id", "is missing"),
    ("seller_id = \"2088000000000001\"", "", "payment.alipay.seller_id", "is missing"),
    ("public_key_file = \"KEYS/alipay.pub.pem\"", "", "payment.alipay.public_key", "is missing"),
    (
        "public_key_file = \"KEYS/alipay.pub.pem\"",
        "public_key = \"-----BEGIN PRIVATE KEY-----\"",
        "payment.alipay.public_key",
        "private key",
    ),
    ("[\"alipay\", ", "[", "[payment.alipay]", "does not name"),
];

#[test]
fn each_mistake_in_the_section_is_one_sentence_that_names_the_key() {
    for (toml, key, words) in MISTAKES {
        let error = load(toml, &[]).expect_err(toml);
        assert!(error.contains(key) && error.contains(words), "{toml:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains("12345678"), "a secret shows: {error}");
    }
}

#[cfg(feature = "payments")]
#[test]
fn each_mistake_of_a_providers_section_names_the_key() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/order-worker/tests/payments/keys");
    let whole = PAYMENTS.replace("KEYS", keys);
    let config = load(&whole, &[]).expect("valid");
    let printed = config.print().expect("printable");
    assert!(printed.contains("api_v3_key_file") && printed.contains("public_key_file"), "{printed}");
    assert!(!format!("{printed}{config:?}").contains("floodgate-test-apiv3-key"), "{printed}");
    assert!(load(&printed, &[]).is_ok(), "{printed}");
    for (right, wrong, key, words) in PAYMENT_MISTAKES {
        assert!(PAYMENTS.contains(right), "{right}");
        let error = load(&PAYMENTS.replacen(right, wrong, 1).replace("KEYS", keys), &[]).expect_err(wrong);
        assert!(error.contains(key) && error.contains(words), "{right:?}: {error}");
        assert!(!error.contains("12345678"), "a secret shows: {error}");
    }
}

#[test]
fn the_callbacks_secrets_come_from_files_one_a_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("secrets");
    let made = "/oDUCqOd+5JJ9Aw+432WFEXIBvWMfPISffqJT5KW/PM=";
    std::fs::write(&path, format!("whsec_{made}\n{made}\n")).expect("writable");
    let config = load(&format!("[payment]\ncallback_secrets_file = {path:?}\n"), &[]).expect("valid");
    assert_eq!(config.payment.secrets().map(|secrets| secrets.len()), Ok(2));
    assert!(!format!("{config:?}").contains(made));
    assert!(!config.lacks_callback_secret());
    // One is made where none is configured, and is good enough to count as one.
    let queue = directory.path().join("queue");
    let mut config = load(&format!("[queue]\ndirectory = {queue:?}\n"), &[]).expect("valid");
    config.complete_callback_secret().expect("made");
    assert_eq!(config.payment.secrets().map(|secrets| secrets.len()), Ok(1));
    assert!(directory.path().join("payment.secret").exists());
}
