//! What the configuration accepts, and what it says to mistakes.

use super::*;

mod payments;

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
fn a_wrong_type_names_the_key() {
    let error = load("[drain]\norders_per_second_max = \"many\"\n", &[]).expect_err("a text is no number");
    assert!(error.contains("drain.orders_per_second_max") && error.contains("whole number"), "{error}");
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
fn what_is_printed_is_a_configuration_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("secret");
    std::fs::write(&path, "correct-horse-battery-staple-correct\n").expect("writable");
    let files = format!(
        "[auth]\nhs256_secret_file = {path:?}\n[gate]\npass_secrets = [{{ id = \"k1\", secret_file = {path:?} }}]\n{SALE}"
    );
    for toml in ["", &files] {
        let printed = load(toml, &[]).expect("valid").print().expect("printable");
        let again = load(&printed, &[]).expect("what was printed is valid");
        assert_eq!(again.print().expect("printable"), printed);
        assert_eq!(again.auth.hs256_secret.is_some(), !toml.is_empty(), "the secret is read again");
    }
    let demo = Config::load(None, std::iter::empty()).expect("valid").print().expect("printable");
    assert!(load(&demo, &[]).expect("valid").wants_demo_sale());
}

#[test]
fn a_hidden_secret_is_none() {
    const SECRET: &str = "correct-horse-battery-staple-correct";
    for (toml, key) in [
        (format!("[auth]\nhs256_secret = \"{SECRET}\"\n"), "hs256_secret"),
        (format!("[gate]\npass_secrets = [{{ id = \"k1\", secret = \"{SECRET}\" }}]\n"), "secret"),
        ("[admin]\ntoken = \"open\"\n".to_owned(), "token"),
        (format!("[admin]\njournal_secret = \"{SECRET}\"\n"), "journal_secret"),
        ("[sold_out]\nzookeeper = \"me:word@127.0.0.1:2181/f\"\n".to_owned(), "zookeeper"),
        ("[stock]\nredis_urls = [\"redis://me:word@127.0.0.1:6379\"]\n".to_owned(), "redis_urls"),
    ] {
        let printed = load(&toml, &[]).expect(&toml).print().expect("printable");
        let error = load(&printed, &[]).expect_err(&printed);
        assert!(error.contains(key) && error.contains("hidden") && error.contains("_file"), "{error}");
    }
    let printed = load(&format!("[auth]\nhs256_secret = \"{SECRET}\"\n"), &[]).expect("valid").print();
    assert!(load(&printed.expect("printable"), &[("FLOODGATE_AUTH__HS256_SECRET", SECRET)]).is_ok());
}

#[test]
fn a_secret_in_the_environment_goes_before_its_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("secret");
    std::fs::write(&path, "\n").expect("writable");
    let path = path.to_str().expect("a text");
    let file = format!("[auth]\nhs256_secret_file = {path:?}\n");
    let error = load(&file, &[]).expect_err("nothing in it");
    assert!(error.contains("hs256_secret_file") && error.contains("is empty"), "{error}");
    let environment = ("FLOODGATE_AUTH__HS256_SECRET", "correct-horse-battery-staple-correct");
    assert!(load(&file, &[environment]).is_ok());
    let error = load("", &[environment, ("FLOODGATE_AUTH__HS256_SECRET_FILE", path)]).expect_err("both");
    assert!(error.contains("keep one"), "{error}");
    let error = load("[auth]\nhs256_secret_file = \"\"\n", &[]).expect_err("no name");
    assert!(error.contains("name of a file"), "{error}");
}

#[test]
fn the_journals_secret_is_made_once_beside_the_operators_token() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (token, queue) = (directory.path().join("deep/admin.token"), directory.path().join("queue"));
    let toml = format!("[admin]\ntoken_file = {token:?}\n[queue]\ndirectory = {queue:?}\n");
    let made = load(&toml, &[]).expect("valid").journal_key().expect("made");
    let other_log = load(&toml.replace("queue\"", "other\""), &[]).expect("valid");
    assert_eq!(other_log.journal_key().expect("kept").id(), made.id(), "who shares the token shares it");
    let mut running = load(&toml, &[]).expect("valid");
    running.complete_secrets().expect("made");
    assert_eq!(running.journal_key().expect("kept").id(), made.id(), "a command has the process's");
    let no_file = load(&toml.replace("token_file", "token"), &[]).expect("valid");
    assert_ne!(no_file.journal_key().expect("made").id(), made.id());
    assert!(directory.path().join("journal.secret").exists(), "beside the log");
    let kept = std::fs::read_to_string(directory.path().join("deep/journal.secret")).expect("there");
    let same = load(&format!("[admin]\njournal_secret = {kept:?}\n"), &[]).expect("valid");
    assert_eq!(same.journal_key().expect("given").id(), made.id());
    let printed = same.print().expect("printable");
    assert!(!printed.contains(&kept) && !format!("{same:?}{made:?}").contains(&kept), "{printed}");
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

const SALE: &str = "[[sale]]\nid = \"a\"\nprice = 1\ntotal = 1\nstarts_at = \"2030-01-01T00:00:00Z\"\nends_at = \"2030-01-01T01:00:00Z\"\n";

/// What is written, and two texts that the sentence must hold.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("[auth]\nuser_claim = 5", "auth.user_claim", "a text, in quotes"),
    ("[auth]\nhs256_secret = 12345678", "auth.hs256_secret", "a text, in quotes"),
    ("[auth]\nhs256_secret = \"short\"", "auth.hs256_secret", "32 bytes"),
    ("[auth]\ndemo = \"yes\"", "auth.demo", "true or false"),
    ("[auth]\nmode = \"trusted-header\"\ndemo = true", "auth.demo", "jwt"),
    ("[drain]\norders_per_second_max = 2.5", "drain.orders_per_second_max", "2.5"),
    ("[drain]\norders_per_second_max = 0", "drain.orders_per_second_max", "1 to"),
    ("[drain]\nbatch_size_max = 100000", "drain.batch_size_max", "1 to"),
    ("[gate]\npass_ttl_s = -1", "gate.pass_ttl_s", "0 or more"),
    ("[gate]\npow_bits = 300", "gate.pow_bits", "255"),
    ("[gate]\npow_bits = 99", "gate.pow_bits", "between 1 and 32"),
    ("[gate]\nchallenge = \"captcha\"", "gate.challenge", "proof-of-work"),
    ("[gate]\npass_secrets = [{ id = \"k1\" }]", "gate.pass_secrets", "k1"),
    ("[gate]\npass_secrets = [{ id = \"k1\", sekret = \"x\" }]", "gate.pass_secrets", "\"secret\""),
    ("[limits]\nper_user_rps = 99999999999", "limits.per_user_rps", "4294967295"),
    ("[limits]\nper_user_rps = 99999999999999999999999", "line 2", "99999999999999999999999"),
    ("[gateway]\nlisten = \"localhost:8080\"", "gateway.listen", "127.0.0.1:8080"),
    ("[gateway]\nlisten = \"127.0.0.1:8081\"", "gateway.listen", "admin.listen"),
    ("[gateway]\ntrusted_proxies = [\"10.0.0.0/99\"]", "gateway.trusted_proxies", "10.0.0.0/99"),
    ("[gateway]\ntrusted_proxies = \"10.0.0.0/8\"", "gateway.trusted_proxies", "in brackets"),
    ("[gateway]\nthreads = 1\nthreads = 2", "line 3", "duplicate key"),
    ("[gateway\nthreads = 1", "line 1", "unclosed"),
    ("listen = \"127.0.0.1:1\"", "listen", "below [admin] or [gateway]"),
    ("gateway = 1", "gateway is a section", "[gateway]"),
    ("[queue]\nbackend = \"rocketmq\"", "queue.backend", "feature `rocketmq`"),
    ("[queue]\nsources = [\"a\", \"b\", \"a\"]", "queue.sources", "a stands twice"),
    ("[admin]\ntoken = 12345678", "admin.token", "a text, in quotes"),
    ("[orders]\ndatabase_url = 12345678", "orders.database_url", "a text, in quotes"),
    ("[orders]\ndatabase_url = \"mysql://u:pw@h/d\"", "orders.database_url", "orders.backend = \"mysql\""),
    ("[stock]\nredis_urls = { \"redis://u:pw@h\" = 1 }", "stock.redis_urls", "in brackets"),
    ("[queue]\ntopic_prefix = \"x-\"", "queue.topic_prefix", "floodgate-"),
    ("[orders]\nbackend = \"external\"", "orders.backend", "external"),
    ("[gateway]\nshutdown_max_s = 99999999999", "gateway.shutdown_max_s", "3600"),
    ("[gateway]\nevent_streams_max = 99999999999", "gateway.event_streams_max", "at most"),
    ("[gateway]\nlisten = 8080", "gateway.listen", "127.0.0.1:8080"),
    ("[admin]\ntoken = \"\"", "admin.token", "is empty"),
    ("[admin]\njournal_secret = 12345678", "admin.journal_secret", "a text, in quotes"),
    ("[admin]\njournal_secret = \"short\"", "admin.journal_secret", "32 bytes"),
    ("[admin]\ntoken_file = \"\"", "admin.token_file", "is empty"),
    ("[auth]\nmode = 1", "auth.mode", "a text, in quotes"),
    ("[auth]\nmode = {}", "auth.mode", "a text, in quotes"),
    ("[auth]\nissuer = \"\"", "auth.issuer", "is empty"),
    ("[auth]\naudience = \"\"", "auth.audience", "is empty"),
    ("[gate]\npass_secrets = [1]", "gate.pass_secrets", "secret = "),
    ("[queue]\ndirectory = 1", "queue.directory", "a text, in quotes"),
    ("[queue]\ndirectory = \"\"", "queue.directory", "is empty"),
    ("[queue]\nsources = [\"\"]", "queue.sources", "the path of a log's directory"),
    ("[queue]\nsources = [\"carrier-pigeon://coop\"]", "queue.sources", "names no log"),
    ("[queue]\nworker_directory = \"\"", "queue.worker_directory", "is empty"),
    ("[queue]\nbacklog_max = 0", "queue.backlog_max", "at least 1"),
    ("[orders]\ndatabase_url = \"postgres://u:pw@h/d\"", "orders.database_url", "u:***@h"),
    ("[sale]\nid = \"a\"", "[[sale]]", "double brackets"),
    ("[[sale]]\nprice = 1", "[[sale]] number 1", "id is missing"),
];

/// Each backend that is not in this binary names its feature and the command that builds it; one that is, what it needs.
const BACKENDS: &[(&str, &str, &str)] = &[
    #[cfg(not(feature = "redis"))]
    ("[stock]\nbackend = \"redis\"", "feature `redis`", "cargo build --release --features redis"),
    #[cfg(not(feature = "zookeeper"))]
    (
        "[sold_out]\nbackend = \"zookeeper\"",
        "feature `zookeeper`",
        "cargo build --release --features zookeeper",
    ),
    #[cfg(not(feature = "mysql"))]
    ("[orders]\nbackend = \"mysql\"", "feature `mysql`", "cargo build --release --features mysql"),
    #[cfg(not(feature = "payments"))]
    (
        "[payment]\nproviders = [\"wechat-pay\"]",
        "feature `payments`",
        "cargo build --release --features payments",
    ),
    #[cfg(feature = "redis")]
    ("[stock]\nbackend = \"redis\"", "stock.redis_urls", "redis://127.0.0.1:6379"),
    #[cfg(feature = "zookeeper")]
    ("[sold_out]\nbackend = \"zookeeper\"\nzookeeper = \"h\"", "sold_out.zookeeper", "127.0.0.1:2181"),
    #[cfg(feature = "mysql")]
    ("[orders]\nbackend = \"mysql\"", "orders.database_url", "mysql://USER:PASSWORD@HOST:PORT/DATABASE"),
];

#[test]
fn each_mistake_is_one_sentence_that_names_the_key() {
    for (toml, key, words) in MISTAKES.iter().chain(BACKENDS) {
        let error = load(toml, &[]).expect_err(toml);
        assert!(error.contains(key) && error.contains(words), "{toml:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains("12345678") && !error.contains("pw@"), "a secret shows: {error}");
    }
}

#[test]
fn each_mistake_in_a_sale_names_sale_and_key() {
    for (right, wrong, words) in [
        ("price = 1", "price = 66.40", "price: invalid type"),
        ("price = 1", "", "price is missing"),
        ("price = 1", "prize = 1", "nearest known one is \"price\""),
        ("total = 1", "total = 5000000000", "total: invalid value"),
        ("total = 1", "total = 0", "total must be at least 1"),
        ("2030-01-01T00:00:00Z", "2030-01-01T00:00:00", "starts_at: a time is RFC 3339"),
        ("2030-01-01T01", "2029-01-01T01", "ends_at"),
    ] {
        let error = load(&SALE.replace(right, wrong), &[]).expect_err(wrong);
        assert!(
            error.contains("[[sale]] ") && error.contains('a') && error.contains(words),
            "{wrong:?}: {error}"
        );
    }
    let error = load(&SALE.replace("\"a\"", "\"a b\""), &[]).expect_err("a space");
    assert!(error.contains("[[sale]] \"a b\": id: a sale id is"), "{error}");
}

#[test]
fn mistakes_in_the_environment_name_the_variable_or_the_key() {
    for (name, value, words) in [
        ("FLOODGATE_GATEWAY_LISTEN", "127.0.0.1:9", "FLOODGATE_GATEWAY__LISTEN"),
        ("FLOODGATE_GATEWAY__LISTEN", "", "gateway.listen"),
        ("FLOODGATE_LIMITS__PER_USER_RPS", "abc", "limits.per_user_rps"),
        ("FLOODGATE_LIMTS__PER_USER_RPS", "3", "\"limits\""),
        ("FLOODGATE_SALE__TITLE", "x", "[[sale]]"),
        ("FLOODGATE___X", "1", "FLOODGATE_SECTION__KEY"),
        ("FLOODGATE_GATE__PASS_SECRETS", "k1", "gate.pass_secrets"),
    ] {
        let error = load("", &[(name, value)]).expect_err(name);
        assert!(error.contains(words), "{name}={value:?}: {error}");
    }
}

#[test]
fn texts_from_the_environment_stay_texts_and_foreign_names_are_left_alone() {
    let config = load(
        "\u{feff}[limits]\nper_user_rps = 7\n",
        &[
            ("FLOODGATE_AUTH__ISSUER", "123"),
            ("FLOODGATE_AUTH__AUDIENCE", "\"quoted\""),
            ("FLOODGATE_GATEWAY__TRUSTED_PROXIES", "[\"10.0.0.0/8\"]"),
            ("FLOODGATE_GATEWAY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ],
    )
    .expect("valid");
    assert_eq!(config.auth.issuer.as_deref(), Some("123"));
    assert_eq!(config.auth.audience.as_deref(), Some("quoted"));
    assert_eq!((config.gateway.trusted_proxies.len(), config.limits.per_user_rps), (1, 7));
}

#[test]
fn a_role_of_its_own_needs_what_processes_share() {
    let config = load("", &[]).expect("valid");
    assert!(config.check_role(Role::AllInOne).is_ok());
    for role in [Role::Gateway, Role::Worker] {
        let error = config.check_role(role).expect_err("an embedded ledger").to_string();
        assert!(error.contains("stock.backend = \"redis\"") && error.contains("sell it twice"), "{error}");
    }
    let config = load("[queue]\nsources = [\"elsewhere\"]", &[]).expect("valid");
    let error = config.check_role(Role::AllInOne).expect_err("sources").to_string();
    assert!(error.contains("queue.sources") && error.contains("floodgate worker"), "{error}");
}

#[cfg(feature = "redis")]
#[test]
fn gateways_share_redis_mysql_and_secrets() {
    let redis = "[stock]\nbackend = \"redis\"\nredis_urls = [\"redis://u:pw@h:1\"]\n";
    let config = load(redis, &[]).expect("valid");
    assert!(config.check_role(Role::AllInOne).is_ok());
    let error = config.check_role(Role::Worker).expect_err("SQLite").to_string();
    assert!(error.contains("orders.backend = \"mysql\""), "{error}");
    let printed = config.print().expect("printable");
    assert!(printed.contains("redis://u:***@h:1") && !printed.contains("pw"), "{printed}");
    assert!(!format!("{config:?}").contains("pw@"));
}

#[cfg(all(feature = "redis", feature = "mysql"))]
#[test]
fn a_gateway_does_not_make_secrets_that_others_lack() {
    let shared = "[stock]\nbackend = \"redis\"\nredis_urls = \"redis://h:1\"\n\
        [orders]\nbackend = \"mysql\"\ndatabase_url = \"mysql://u:pw@h/d\"\n";
    let config = load(shared, &[]).expect("valid");
    let error = config.check_role(Role::Worker).expect_err("no sources").to_string();
    assert!(error.contains("queue.sources") && error.contains("sources = ["), "{error}");
    let told = |queue: &str| load(&format!("{shared}[queue]\n{queue}\n"), &[]).expect("valid");
    assert!(told("sources = [\"q\"]").check_role(Role::Worker).is_ok(), "a worker signs nothing");
    let own = told("sources = [\"a\", \"./w\"]\nworker_directory = \"w\"");
    let error = own.check_role(Role::Worker).expect_err("its own log is no source").to_string();
    assert!(error.contains("queue.worker_directory") && error.contains("queue.sources"), "{error}");
    let error = config.check_role(Role::Gateway).expect_err("no pass secret").to_string();
    assert!(error.contains("gate.pass_secrets") && error.contains("every gateway"), "{error}");
    let secret = "0123456789abcdef0123456789abcdef";
    let passes = format!("{shared}[gate]\npass_secrets = [{{ id = \"k1\", secret = \"{secret}\" }}]\n");
    let error =
        load(&passes, &[]).expect("valid").check_role(Role::Gateway).expect_err("no login").to_string();
    assert!(error.contains("auth.hs256_secret"), "{error}");
    let whole = format!("{passes}[auth]\nhs256_secret = \"{secret}\"\n");
    assert!(load(&whole, &[]).expect("valid").check_role(Role::Gateway).is_ok());
}

#[test]
fn addresses_of_redis_come_from_a_file_one_a_line_or_from_the_environment() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("redis");
    std::fs::write(&path, "redis://:pw@a:1\nredis://:pw@b:2\n\n").expect("writable");
    let config = load(&format!("[stock]\nredis_urls_file = {path:?}\n"), &[]).expect("valid");
    let revealed: Vec<_> = config.stock.redis_urls.iter().map(stock::ServerUrl::reveal).collect();
    assert_eq!(revealed, ["redis://:pw@a:1", "redis://:pw@b:2"]);
    for (value, count) in [("redis://h:1", 1), ("[\"redis://h:1\", \"redis://h:2\"]", 2)] {
        let config = load("", &[("FLOODGATE_STOCK__REDIS_URLS", value)]).expect("valid");
        assert_eq!(config.stock.redis_urls.len(), count, "{value}");
    }
}
