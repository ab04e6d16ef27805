//! What the configuration accepts, and what it says to mistakes.

use super::*;

fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("floodgate.toml");
    std::fs::write(&path, toml).expect("writable");
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(&path), environment).map_err(|e| e.to_string())
}

#[test]
fn nothing_at_all_is_the_demo() {
    let config = Config::load(None, std::iter::empty()).expect("defaults are valid");
    assert!(config.wants_demo_sale());
    assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:8080");
}

#[test]
fn a_file_without_demo_is_no_demo() {
    assert!(!load("", &[]).expect("valid").wants_demo_sale());
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let error = load("[gateway]\nlisen = \"127.0.0.1:1\"\n", &[]).expect_err("a typing error");
    assert!(
        error.contains("[gateway]")
            && error.contains("\"lisen\"")
            && error.contains("nearest known one is \"listen\""),
        "{error}"
    );
    let error = load("[gatway]\nlisten = \"127.0.0.1:1\"\n", &[]).expect_err("a typing error");
    assert!(error.contains("unknown section") && error.contains("\"gateway\""), "{error}");
}

#[test]
fn a_wrong_type_names_the_section() {
    let error = load("[drain]\norders_per_second_max = \"many\"\n", &[]).expect_err("a text is no number");
    assert!(error.contains("[drain]"), "{error}");
}

#[test]
fn the_environment_wins_and_keeps_types() {
    let config = load(
        "[limits]\nper_user_rps = 7\n[auth]\nhs256_secret = \"from-the-file-from-the-file-from-the\"\n",
        &[
            ("FLOODGATE_LIMITS__PER_USER_RPS", "9"),
            ("FLOODGATE_GATEWAY__LISTEN", "127.0.0.1:18080"),
            ("FLOODGATE_SEED", "not configuration"),
        ],
    )
    .expect("valid");
    assert_eq!(config.limits.per_user_rps, 9);
    assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:18080");
    let error = load("", &[("FLOODGATE_LIMITS__PER_USER_RSP", "9")]).expect_err("a typing error");
    assert!(error.contains("per_user_rps"), "{error}");
}

#[test]
fn secrets_come_from_files_and_are_never_printed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("secret");
    std::fs::write(&path, "correct-horse-battery-staple-correct\n").expect("writable");
    let toml = format!("[auth]\nhs256_secret_file = {path:?}\n");
    let config = load(&toml, &[]).expect("valid");
    let printed = config.print().expect("printable");
    assert!(
        !printed.contains("correct-horse") && !format!("{config:?}").contains("correct-horse"),
        "{printed}"
    );
    let error = load(&format!("{toml}hs256_secret = \"x\"\n"), &[]).expect_err("both");
    assert!(error.contains("keep one"), "{error}");
    let error = load("[auth]\nhs256_secret_file = \"/nowhere/at/all\"\n", &[]).expect_err("no such file");
    assert!(error.contains("hs256_secret_file") && error.contains("/nowhere/at/all"), "{error}");
}

#[test]
fn two_sales_of_one_id_are_refused() {
    let sale = "[[sale]]\nid = \"a\"\nprice = 1\ntotal = 1\nstarts_at = \"2030-01-01T00:00:00Z\"\nends_at = \"2030-01-01T01:00:00+00:00\"\n";
    assert!(load(sale, &[]).is_ok());
    let error = load(&format!("{sale}{sale}"), &[]).expect_err("twice");
    assert!(error.contains("stands twice"), "{error}");
}

#[test]
fn a_made_secret_is_kept_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("deep/made.secret");
    let first = data_directory::secret_at(&path).expect("made");
    assert_eq!(first.len(), 64);
    assert_eq!(data_directory::secret_at(&path).expect("kept"), first);
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    std::fs::write(&path, "").expect("writable");
    assert!(data_directory::secret_at(&path).expect_err("empty").to_string().contains("is empty"));
}
