//! The binary from outside: what it says to mistakes, and one purchase from login to row and back.

mod clocks;
mod damage;
mod demo;
mod edits;
mod log;
mod money;
mod readme;
mod restore;
mod server;

use server::{Site, free_address};

fn sale(id: &str, total: u32, starts_in_s: i64) -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis()
            as i64;
    let at = |seconds: i64| stock::Timestamp((now + seconds * 1000) as u64);
    format!(
        "[[sale]]\nid = \"{id}\"\ntitle = \"{id}\"\nprice = 100\ntotal = {total}\nstarts_at = \"{}\"\nends_at = \"{}\"\n",
        at(starts_in_s),
        at(3600)
    )
}

fn fails_with(site: &Site, arguments: &[&str], exit: i32, words: &[&str]) {
    let output = site.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{arguments:?} said {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: {word:?} is not in {said:?}");
    }
}

#[test]
fn a_purchase_from_login_to_row_and_back() {
    let site = Site::new(&sale("s", 2, -1));
    let server = site.start();
    let (token, pass, order) = site.pass("s", "ann");
    let bearer = format!("Bearer {token}");
    let press = || site.press("s", &pass, "{\"quantity\":1,\"metadata\":\"gift\"}");
    let first = press();
    assert_eq!(first.status, 202, "{}", first.body);
    assert_eq!(first.json()["order_id"], order.as_str());
    assert_eq!(press().json()["order_id"], order.as_str(), "the same pass is the same order");

    let ask = || site.call("GET", &format!("/api/v1/orders/{order}"), &[("authorization", &bearer)], "");
    let unpaid = site
        .wait_for("unpaid", ask, |answer| answer.status == 200 && answer.json()["status"] == "unpaid")
        .json();
    assert_eq!((&unpaid["quantity"], &unpaid["amount"]), (&1.into(), &100.into()));

    let database = rusqlite::Connection::open(site.database()).expect("there");
    let row = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).expect(sql);
    assert_eq!(
        row(
            "SELECT count(*) FROM floodgate_orders WHERE user_id = 'ann' AND metadata = 'gift' AND units_held = 1"
        ),
        1
    );
    assert_eq!(row("SELECT sold FROM floodgate_sales WHERE sale_id = 's'"), 1);

    let cancel =
        site.call("POST", &format!("/api/v1/orders/{order}/cancel"), &[("authorization", &bearer)], "");
    assert_eq!(cancel.status, 200, "{}", cancel.body);
    let repeated =
        site.call("POST", &format!("/api/v1/orders/{order}/cancel"), &[("authorization", &bearer)], "");
    assert_eq!((repeated.status, repeated.json()), (200, cancel.json()));
    let books = || site.admin_call("GET", "/admin/v1/sales/s", "");
    let books =
        site.wait_for("rest", books, |a| a.json()["at_rest"] == true && a.json()["remaining"] == 2).json();
    assert_eq!((&books["confirmed"], &books["sold"]), (&0.into(), &0.into()));
    let again = press();
    assert_eq!(again.status, 409, "{}", again.body);
    assert!(again.body.contains("pass-used"), "{}", again.body);

    for (command, word) in [
        (&["sales", "list"][..], "s"),
        (&["sales", "show", "s", "--json"], "\"at_rest\": true"),
        (&["orders", "list", "s"], "closed"),
        (&["orders", "show", &order], "closed"),
        (&["audit"], "s"),
        (&["queue", "lag"], "floodgate-orders"),
        (&["queue", "topics"], "floodgate-orders"),
        (&["queue", "groups"], "order-worker"),
        (&["queue", "dump", "floodgate-orders"], &order),
        (&["queue", "dump", "floodgate-orders", "--json"], "\"metadata\":\"gift\""),
        (&["queue", "tail", "floodgate-orders", "--limit", "1"], &order),
        (&["queue", "verify"], "none"),
        (&["queue", "dead-letters", "floodgate-orders", "order-worker", "--json"], "[]"),
        (&["queue", "probe-disk", "--json"], "\"fdatasync_us\""),
        (&["migrate", "--check"], "schema"),
        (&["ledger", "show"], "s"),
    ] {
        let output = site.run(command);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains(word),
            "{command:?}: {said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    // The group is the running drain's; once it is gone the offset may be moved, and repeating changes nothing.
    let back = ["queue", "reset-offset", "floodgate-orders", "order-worker", "--oldest"];
    fails_with(&site, &back, 1, &["order-worker", "held by another consumer"]);
    fails_with(&site, &["queue", "dump", "nothing"], 1, &["no topic nothing", "queue topics"]);
    let nobodys = "01M7YMPT5MDHF5W669RCMTQ7B4";
    for wrong in [&["orders", "list", "no"][..], &["sales", "show", "no"], &["sales", "pause", "no"]] {
        fails_with(&site, wrong, 1, &["floodgate sales list"]);
    }
    fails_with(&site, &["orders", "cancel", nobodys], 1, &["floodgate orders list"]);
    let letter = ["queue", "dead-letters", "floodgate-orders", "order-worker", "--replay", "7"];
    fails_with(&site, &letter, 2, &["no letter 7"]);
    drop(server);
    // The ledger that knows what was promised is gone: nobody can tell.
    fails_with(&site, &["audit"], 1, &["the audit of s is incomplete", "start `floodgate`"]);
    assert!(site.run(&back).status.success());
    let forward = ["queue", "reset-offset", "floodgate-orders", "order-worker", "--newest"];
    fails_with(&site, &forward, 2, &["--skip-records"]);
    let skipped = site.run(&[&forward[..], &["--skip-records"]].concat());
    let said = String::from_utf8_lossy(&skipped.stdout);
    assert!(said.contains("promised orders") && said.contains("ledger rebuild"), "{said}");
    assert!(site.run(&back).status.success());
    let server = site.start();
    let books = || site.admin_call("GET", "/admin/v1/sales/s", "");
    let books = site.wait_for("rest", books, |a| a.json()["at_rest"] == true && a.json()["remaining"] == 2);
    assert_eq!(books.json()["sold"], 0, "{}", books.body);
    drop(server);
}

#[test]
fn sold_out_pause_restock_and_a_restart() {
    let site = Site::new(&sale("s", 1, -1));
    let server = site.start();
    let buy = |user: &str| {
        let (_, pass, _) = site.pass("s", user);
        site.press("s", &pass, "{}")
    };
    let (_, late_pass, _) = site.pass("s", "late");
    assert_eq!(buy("ann").status, 202);
    let late = || site.call("POST", "/api/v1/sales/s/orders", &[("floodgate-pass", &late_pass)], "{}");
    let refused = site.press("s", &late_pass, "{}");
    assert_eq!((refused.status, refused.body.contains("sold-out")), (410, true), "{}", refused.body);

    let restock = || site.run(&["sales", "restock", "s", "1", "--restock-id", "more"]);
    assert!(restock().status.success());
    assert!(restock().status.success(), "the same restock again changes nothing");
    assert!(site.run(&["sales", "pause", "s"]).status.success());
    let paused = site.wait_for("pause", late, |answer| answer.status == 503);
    assert!(paused.body.contains("paused"), "{}", paused.body);

    // An operator's pause and a restock outlive the process; the books are rebuilt.
    server.signal("-KILL");
    server.wait();
    let server = site.start();
    let books = site.admin_call("GET", "/admin/v1/sales/s", "").json();
    assert_eq!((&books["total"], &books["remaining"]), (&2.into(), &1.into()), "{books}");
    assert!(site.run(&["sales", "resume", "s"]).status.success());
    assert_eq!(site.wait_for("resumption", late, |answer| answer.status != 503).status, 202);

    server.signal("-TERM");
    assert!(server.wait().success(), "a clean shutdown: {}", site.log());
    let log = site.path().join("data/orders.db-wal");
    assert_eq!(log.metadata().map_or(0, |log| log.len()), 0, "the database's log is in the database");
}

#[test]
fn wrong_configuration_names_the_key() {
    let site = Site::new("");
    site.configure("[queue]\ndirectroy = \"x\"\n");
    fails_with(&site, &[], 2, &["[queue]", "directroy", "\"directory\""]);
    site.configure("[stock]\nbackend = \"redis\"\n");
    fails_with(&site, &[], 2, &["stock.", "redis"]);
    site.configure("[[sale]]\nid = \"a b\"\nprice = 1\ntotal = 1\nstarts_at = \"2030-01-01T00:00:00Z\"\nends_at = \"2030-01-02T00:00:00Z\"\n");
    fails_with(&site, &[], 2, &["[sale]", "sale id"]);
    site.configure("[[sale]]\nid = \"a\"\nprice = 1\ntotal = 1\nstarts_at = \"2030-01-02T00:00:00Z\"\nends_at = \"2030-01-01T00:00:00Z\"\n");
    fails_with(&site, &[], 2, &["[[sale]]", "ends_at"]);
    site.configure("");
    fails_with(&site, &["gateway"], 2, &["stock.backend"]);
    fails_with(&site, &["sales", "frobnicate"], 2, &["frobnicate"]);
    fails_with(&site, &["sales", "list"], 1, &["orders.db", "start `floodgate` once"]);
    fails_with(&site, &["sales", "pause", "s"], 1, &["admin"]);
    fails_with(&site, &["sales", "restock", "s", "0", "--restock-id", "r"], 2, &["UNITS"]);
    fails_with(&site, &["sales", "publish", "floodgate.toml"], 2, &["floodgate.toml"]);
    fails_with(&site, &["queue", "lag"], 1, &["no queue in data/queue", "start `floodgate` once"]);
    fails_with(&site, &["ledger", "rebuild"], 2, &["rebuilt at each start"]);
    fails_with(&site, &["worker"], 2, &["stock.backend"]);
    let order = "01M7YMPT5MDHF5W669RCMTQ7B4";
    fails_with(&site, &["orders", "close", order], 1, &["admin"]);
    site.configure("[drain]\norders_per_second_max = 0\n");
    fails_with(&site, &[], 2, &["drain.orders_per_second_max"]);
    site.configure("[orders]\ndatabase_url = \"mysql://u:secret@h/d\"\n");
    fails_with(&site, &[], 2, &["orders.database_url", "sqlite://"]);
    site.configure("[gateway]\n");
    fails_with(&site, &[], 2, &["floodgate.toml, line", "duplicate key"]);
    assert!(!site.path().join("data").exists(), "a wrong configuration makes nothing");
}

#[test]
fn a_changed_definition_stops_the_start_and_shows_the_difference() {
    let definition = sale("s", 5, -1);
    let site = Site::new(&definition);
    drop(site.start());
    site.configure(&definition.replace("price = 100", "price = 99"));
    fails_with(&site, &[], 2, &["price", "100", "99"]);
    site.configure(&definition);
    drop(site.start());
}

#[test]
fn a_taken_port_and_a_taken_directory_say_what_to_do() {
    let site = Site::new("");
    let server = site.start();
    let mut second = Site::new("");
    let listener = std::net::TcpListener::bind(free_address()).expect("free");
    second.buyers = listener.local_addr().expect("bound");
    second.configure("");
    fails_with(&second, &[], 1, &["gateway.listen", &second.buyers.port().to_string()]);
    let admin = site.admin;
    second.buyers = free_address();
    second.admin = free_address();
    second.configure(&format!("[queue]\ndirectory = {:?}\n", site.path().join("data/queue")));
    fails_with(&second, &[], 1, &["data/queue"]);
    second.admin = admin;
    second.configure("");
    fails_with(&second, &[], 1, &["admin.listen"]);
    std::fs::write(second.path().join("file"), "no directory").expect("writable");
    second.admin = free_address();
    second.configure("[queue]\ndirectory = \"file/queue\"\n");
    fails_with(&second, &[], 2, &["file"]);
    drop(server);
}

#[test]
fn one_database_has_one_ledger_and_one_log() {
    let site = Site::new(&sale("s", 2, -1));
    let server = site.start();
    let (_, pass, _) = site.pass("s", "ann");
    let press = || site.press("s", &pass, "{}");
    assert_eq!(press().status, 202);
    site.wait_for(
        "a drained log",
        || site.admin_call("GET", "/admin/v1/sales/s", ""),
        |answer| answer.json()["at_rest"] == true,
    );
    // Another queue, but the same stock: each would promise both units.
    let second = Site::new(&format!("[orders]\ndatabase_url = {:?}\n", site.database()));
    fails_with(&second, &[], 1, &["orders.db.lock", "orders.database_url"]);
    assert_eq!(site.run(&["sales", "list"]).status.code(), Some(0), "reading needs no claim");
    drop(server);

    // The same queue, but a database that knows none of its orders.
    for file in ["orders.db", "orders.db-wal", "orders.db-shm"] {
        let _ = std::fs::rename(site.path().join("data").join(file), site.path().join(file));
    }
    fails_with(&site, &[], 1, &["orders.db", "data/queue", "belongs to deployment"]);
    for file in ["orders.db", "orders.db-wal", "orders.db-shm"] {
        let _ = std::fs::remove_file(site.path().join("data").join(file));
        let _ = std::fs::rename(site.path().join(file), site.path().join("data").join(file));
    }
    let _server = site.start();
    assert_eq!(press().status, 202, "the old database is taken again, and the order with it");
}

#[test]
fn a_database_put_back_or_exchanged_stops_the_start() {
    const FILES: [&str; 3] = ["orders.db", "orders.db-wal", "orders.db-shm"];
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        std::fs::create_dir_all(to).expect("writable");
        for file in FILES {
            let _ = std::fs::remove_file(to.join(file));
            let _ = std::fs::copy(from.join(file), to.join(file));
        }
    };
    let site = Site::new(&sale("s", 4, -1));
    let (data, backup) = (site.path().join("data"), site.path().join("backup"));
    let buy = |user: &str| {
        let (_, pass, order) = site.pass("s", user);
        assert_eq!(site.press("s", &pass, "{}").status, 202);
        (pass, order)
    };
    let rest = || {
        let books = || site.admin_call("GET", "/admin/v1/sales/s", "");
        site.wait_for("rest", books, |answer| answer.json()["at_rest"] == true).json()
    };
    let server = site.start();
    buy("ann");
    rest();
    server.signal("-TERM");
    assert!(server.wait().success());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let backup_begins = stock::Timestamp(now.as_millis() as u64).to_string();
    copy(&data, &backup);
    let server = site.start();
    let (pass, order) = buy("bob");
    rest();
    server.signal("-TERM");
    assert!(server.wait().success());

    // An older copy: Bob's unit would be sold again.
    copy(&data, &site.path().join("newest"));
    copy(&backup, &data);
    fails_with(&site, &[], 1, &["orders.db", "lacks order", &order, "reset-offset"]);
    // What the log still keeps is written again: of what was drained since the backup began, Bob's order.
    let back = ["queue", "reset-offset", "floodgate-orders", "order-worker", "--before", &backup_begins];
    assert!(site.run(&back).status.success());
    let lag = site.run(&["queue", "lag", "--json"]);
    assert!(String::from_utf8_lossy(&lag.stdout).contains("\"records\": 1,"), "one order");
    assert!(String::from_utf8_lossy(&site.run(&back).stdout).contains("stays there"), "never forward");
    let server = site.start();
    assert_eq!(rest()["sold"], 2);
    assert_eq!(site.press("s", &pass, "{}").json()["order_id"], order.as_str());
    buy("cem");
    rest();
    server.signal("-TERM");
    assert!(server.wait().success());

    // Another deployment's: what this log has promised would be rejected there.
    let other = Site::new(&sale("other", 4, -1));
    drop(other.start());
    copy(&other.path().join("data"), &data);
    fails_with(&site, &[], 1, &["orders.db", "belongs to deployment", "orders.database_url", "queue accept"]);

    // Nor what waits, of a log that has handed over nothing yet.
    let site = Site::new(&sale("s", 4, -1));
    let server = site.start();
    let mut connection = rusqlite::Connection::open(site.database()).expect("there");
    let held =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).expect("a turn");
    let (_, pass, _) = site.pass("s", "dan");
    assert_eq!(site.press("s", &pass, "{}").status, 202);
    server.signal("-KILL");
    server.wait();
    drop(held);
    copy(&other.path().join("data"), &site.path().join("data"));
    fails_with(&site, &[], 1, &["orders.db", "belongs to deployment"]);
}

#[test]
fn a_log_that_is_gone_stops_the_start_until_it_is_left_out() {
    let site = Site::new(&sale("s", 2, -1));
    let server = site.start();
    let (_, pass, _) = site.pass("s", "ann");
    let press = |pass: &str| site.press("s", pass, "{}").status;
    assert_eq!(press(&pass), 202);
    fails_with(&site, &["ledger", "rebuild", "--without", "1"], 1, &["orders.db.lock"]);
    drop(server);
    std::fs::remove_dir_all(site.path().join("data/queue")).unwrap();

    fails_with(&site, &[], 1, &["data/queue", "ledger rebuild --without"]);
    let instances = site.run(&["ledger", "instances", "--json"]).stdout;
    let instances: serde_json::Value = serde_json::from_slice(&instances).unwrap();
    let awaited = instances.as_array().unwrap().iter().find(|instance| instance["awaited"] == true).unwrap();
    let gone = awaited["instance"].as_str().unwrap();
    fails_with(&site, &["ledger", "rebuild", "--without", "1"], 1, &["0000000000000001"]);
    assert_eq!(site.run(&["ledger", "rebuild", "--without", gone]).status.code(), Some(0));

    let _server = site.start();
    let (_, pass, _) = site.pass("s", "bob");
    assert_eq!(press(&pass), 202);
}

#[test]
fn figures_at_rest_are_of_one_moment() {
    let site = Site::new(&sale("s", 1_000, -1));
    let _server = site.start();
    let buying = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..60 {
                let (_, pass, _) = site.pass("s", &format!("user-{n}"));
                site.call("POST", "/api/v1/sales/s/orders", &[("floodgate-pass", &pass)], "{}");
            }
            buying.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        while buying.load(std::sync::atomic::Ordering::Relaxed) {
            let figures = site.admin_call("GET", "/admin/v1/sales/s", "").json();
            assert!(figures["at_rest"] != true || figures["sold"] == figures["confirmed"], "{figures}");
        }
    });
}

#[test]
fn a_settled_sale_still_answers_the_operator() {
    let site = Site::new(&sale("s", 1, -1));
    let _server = site.start();
    let past = r#"{"id":"past","item_id":"i","title":"t","price":1,"total":5,"per_user_limit":1,"currency":"CNY",
        "pay_within_s":900,"starts_at":"2020-01-01T00:00:00Z","ends_at":"2020-01-02T00:00:00Z"}"#;
    assert_eq!(site.admin_call("PUT", "/admin/v1/sales", past).status, 200);
    let public = || site.call("GET", "/api/v1/sales/past", &[], "");
    site.wait_for("settled", public, |answer| answer.status == 404);
    for (method, path, body) in [
        ("PUT", "/admin/v1/sales", past),
        ("POST", "/admin/v1/sales/past/pause", "{}"),
        ("POST", "/admin/v1/sales/past/resume", "{}"),
    ] {
        let answer = site.admin_call(method, path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_bug() {
    use std::process::Stdio;
    let site = Site::new("");
    for arguments in [&["migrate", "--print"][..], &["--print-config"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = site.command(arguments);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("the binary starts");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]), "{arguments:?}");
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let output =
            site.command(arguments).stdout(full).stderr(Stdio::piped()).output().expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("standard output"), "{said}");
    }
}

#[test]
fn a_crowd_of_sockets_leaves_descriptors_to_the_log_and_the_operator() {
    let site = Site::new(&sale("s", 2, -1));
    let server = site.start_with_files(160);
    assert!(site.log().contains("limits.in_flight_max"), "{}", site.log());
    let silent: Vec<_> =
        (0..200).map(|_| std::net::TcpStream::connect(site.buyers).expect("the kernel takes it")).collect();
    let probe = || site.admin_call("GET", "/readyz", "");
    site.wait_for("readiness", probe, |answer| answer.status == 200);
    let (_, pass, _) = site.pass("s", "ann");
    let accepted = site.press("s", &pass, "{}");
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let metrics = site.admin_call("GET", "/metrics", "").body;
    assert!(metrics.contains("floodgate_accept_pauses_total 0\n"), "{metrics}");
    drop((silent, server));
}

#[test]
fn every_command_has_help() {
    let site = Site::new("");
    for arguments in [
        &["--help"][..],
        &["sales", "--help"],
        &["sales", "publish", "--help"],
        &["sales", "restock", "--help"],
        &["orders", "--help"],
        &["orders", "list", "--help"],
        &["audit", "--help"],
        &["ledger", "--help"],
        &["ledger", "rebuild", "--help"],
        &["stock", "deploy-scripts", "--help"],
        &["gateway", "--help"],
        &["worker", "--help"],
        &["migrate", "--help"],
        &["queue", "--help"],
        &["queue", "dump", "--help"],
        &["queue", "tail", "--help"],
        &["queue", "verify", "--help"],
        &["queue", "reset-offset", "--help"],
        &["queue", "dead-letters", "--help"],
        &["queue", "probe-disk", "--help"],
    ] {
        let output = site.run(arguments);
        assert!(output.status.success(), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage:"), "{arguments:?}");
    }
    let printed = site.run(&["--print-config"]);
    assert!(String::from_utf8_lossy(&printed.stdout).contains("orders_per_second_max"));
}
