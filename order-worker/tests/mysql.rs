//! MySQL: the whole database contract on a real server, and what is its own (schema, statements, errors, collations).
#![cfg(feature = "mysql")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod conformance;
#[path = "mysql/plans.rs"]
mod plans;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use conformance::schema::{self, FoundTable};
use conformance::{Fixture, START_MS, author, clock, journal_key, order_id, reservation, sale_id, user_id};
use order_worker::Database;
use order_worker::database::{By, DatabaseError, Outcome, RejectReason, SchemaState, mysql_schema_sql};
use order_worker::journal::{Broken, verify_chain};
use stock::Reservation;
use testbed::MariaDb;

/// One for all tests, each in a database of its own.
static SERVER: LazyLock<MariaDb> = LazyLock::new(|| MariaDb::start().expect("a MariaDB"));

/// An empty database of one's own: its name and its address.
fn empty() -> (String, String) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("orders_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let url = SERVER.url(&name).unwrap();
    (name, url)
}

async fn open() -> Fixture {
    let (name, url) = empty();
    Database::migrate_mysql(&url).await.unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::open_mysql_at(&url, clock(&now)).await.unwrap();
    Fixture { database, now, keep: Box::new(name) }
}

/// The name of the fixture's database.
fn name(fixture: &Fixture) -> &str {
    fixture.keep.downcast_ref::<String>().unwrap()
}

mod on_mariadb {
    use super::*;
    conformance::database_suite!(open);
}

#[tokio::test]
async fn migration_is_asked_for_versioned_and_checked() {
    let (name, url) = empty();
    SERVER
        .sql(&name, "CREATE TABLE customers (id INT PRIMARY KEY); INSERT INTO customers VALUES (1)")
        .unwrap();
    assert_eq!(Database::check_mysql(&url).await.unwrap(), SchemaState::Missing);
    let refused = Database::open_mysql(&url).await.err().unwrap();
    assert!(matches!(refused, DatabaseError::Schema(_)), "{refused:?}");
    assert_eq!(SERVER.sql(&name, "SHOW TABLES").unwrap().trim(), "customers", "a start changed the schema");

    assert_eq!(Database::migrate_mysql(&url).await.unwrap(), [1]);
    assert_eq!(Database::migrate_mysql(&url).await.unwrap(), [0u32; 0]);
    assert_eq!(Database::check_mysql(&url).await.unwrap(), SchemaState::Current);
    let tables = SERVER.sql(&name, "SHOW TABLES").unwrap();
    assert!(tables.lines().all(|table| table == "customers" || table.starts_with("floodgate_")), "{tables}");
    assert_eq!(SERVER.sql(&name, "SELECT * FROM customers").unwrap().trim(), "1");
    assert!(mysql_schema_sql().contains("CREATE TABLE IF NOT EXISTS floodgate_orders"));

    for (version, state) in
        [("2", SchemaState::NewerByOne), ("3", SchemaState::TooNew { found: 3, wanted: 1 })]
    {
        let record = format!("UPDATE floodgate_meta SET value = '{version}' WHERE name = 'schema_version'");
        SERVER.sql(&name, &record).unwrap();
        assert_eq!(Database::check_mysql(&url).await.unwrap(), state);
        assert_eq!(Database::open_mysql(&url).await.is_ok(), state.is_usable());
    }
    let refused = Database::migrate_mysql(&url).await.unwrap_err();
    assert!(matches!(refused, DatabaseError::Schema(_)), "{refused:?}");
}

#[tokio::test]
async fn tables_of_an_untagged_build_are_refused_and_left_alone() {
    let (name, url) = empty();
    let old = "CREATE TABLE floodgate_meta (name VARCHAR(64) PRIMARY KEY, value VARCHAR(255) NOT NULL);
               INSERT INTO floodgate_meta VALUES ('schema_version', '1')";
    SERVER.sql(&name, old).unwrap();
    assert_eq!(Database::check_mysql(&url).await.unwrap(), SchemaState::Untagged);
    for refused in
        [Database::open_mysql(&url).await.err().unwrap(), Database::migrate_mysql(&url).await.unwrap_err()]
    {
        assert!(matches!(refused, DatabaseError::Schema(_)), "{refused:?}");
        assert!(refused.to_string().contains("orders.database_url"), "{refused}");
    }
    assert_eq!(SERVER.sql(&name, "SHOW TABLES").unwrap().trim(), "floodgate_meta");
}

#[tokio::test]
async fn the_schema_is_the_list() {
    let (name, url) = empty();
    Database::migrate_mysql(&url).await.unwrap();
    let mut found: BTreeMap<String, FoundTable> = BTreeMap::new();
    let columns = "SELECT table_name, column_name, is_nullable FROM information_schema.columns WHERE table_schema = DATABASE()";
    for line in SERVER.sql(&name, columns).unwrap().lines() {
        let [table, column, nullable] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let column = if nullable == "YES" { format!("{column}?") } else { column.to_owned() };
        found.entry(table.to_owned()).or_default().columns.insert(column);
    }
    let indices = "SELECT table_name, LOWER(index_name), 1 - MIN(non_unique), GROUP_CONCAT(column_name ORDER BY seq_in_index)
                   FROM information_schema.statistics WHERE table_schema = DATABASE() GROUP BY table_name, index_name";
    for line in SERVER.sql(&name, indices).unwrap().lines() {
        let [table, index, unique, columns] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let columns: Vec<String> = columns.split(',').map(str::to_owned).collect();
        let index = schema::index(index, unique == "1", &columns);
        found.entry(table.to_owned()).or_default().indices.insert(index);
    }
    schema::must_be_the_schema(found);
}

#[tokio::test]
async fn what_is_done_to_the_journal_by_hand_shows() {
    let fixture = open().await;
    for sale in ["a", "b", "c", "d"] {
        fixture.publish(sale, 1, 1).await;
    }
    let by_hand = |sql: &str| SERVER.sql(name(&fixture), sql).unwrap();
    let (head, _) = fixture.database.journal_head().await.unwrap();
    let judged = async || {
        let rows = fixture.database.journal(0, 10).await.unwrap();
        verify_chain(&journal_key(), &rows, &[head])
    };
    assert_eq!(judged().await, Ok(head));
    by_hand("UPDATE floodgate_journal SET `before` = '' WHERE seq = 1");
    assert_eq!(judged().await, Err(Broken::Changed { seq: 1 }));
    by_hand("UPDATE floodgate_journal SET `before` = NULL WHERE seq = 1");
    by_hand("DELETE FROM floodgate_journal WHERE seq = 3");
    assert_eq!(judged().await, Err(Broken::Missing { expected: 3, found: 4 }));
    by_hand("DELETE FROM floodgate_journal WHERE seq = 4");
    assert_eq!(judged().await, Err(Broken::CutOff { found: 2, known: 4 }));
    let (kept, last_row) = fixture.database.journal_head().await.unwrap();
    assert_eq!((kept, last_row.seq), (head, 2));
}

/// DDL is no transaction: whatever a crash leaves, the next migration ends well, and keeps what is there.
#[tokio::test]
async fn a_migration_that_crashed_anywhere_is_repeated() {
    let statements = mysql_schema_sql();
    let statements: Vec<&str> = statements.split_inclusive(";\n").collect();
    for crashed_after in 0..statements.len() {
        let (name, url) = empty();
        SERVER.sql(&name, &statements[..crashed_after].concat()).unwrap();
        assert_eq!(Database::check_mysql(&url).await.unwrap(), SchemaState::Missing);
        assert_eq!(Database::migrate_mysql(&url).await.unwrap(), [1], "crashed after {crashed_after}");
        assert!(Database::open_mysql(&url).await.is_ok());
    }
    let (_, url) = empty();
    let at_once = tokio::join!(Database::migrate_mysql(&url), Database::migrate_mysql(&url));
    let mut applied = [at_once.0.unwrap(), at_once.1.unwrap()];
    applied.sort();
    assert_eq!(applied, [vec![], vec![1]], "two at once: one applies, the other finds it done");
}

#[tokio::test]
async fn addresses_that_cannot_work_say_so_and_hide_the_password() {
    let port = SERVER.port();
    let (_, url) = empty();
    let stranger = url.replace("floodgate:floodgate@", "floodgate:s3cret@");
    for (bad, retryable) in [
        (format!("mysql://floodgate:s3cret@127.0.0.1:{port}"), false),
        ("mysql://u:s3cret@:x/".to_owned(), false),
        ("postgres://u:s3cret@h/d".to_owned(), false),
        ("mysql://u:s3cret@127.0.0.1:1/d?s3cret=1".to_owned(), false),
        (stranger, false),
        (url.replace("/orders_", "/absent_"), false),
        ("mysql://u:s3cret@127.0.0.1:1/d".to_owned(), true),
    ] {
        let error = Database::open_mysql(&bad).await.err().unwrap();
        assert_eq!(error.is_retryable(), retryable, "{error:?}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn errors_say_whether_to_repeat_to_search_or_to_look() {
    let fixture = open().await;
    fixture.publish("s", 10, 1).await;
    let poison = "DELIMITER //\nCREATE TRIGGER poison BEFORE INSERT ON floodgate_orders FOR EACH ROW
                  IF NEW.user_id = 'poison' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'poison'; END IF //\n";
    SERVER.sql(name(&fixture), poison).unwrap();
    let mut long = reservation("s", 2, "b", 1);
    long.metadata = Some("x".repeat(70_000).into());
    for bad in [reservation("s", 2, "poison", 1), long] {
        let batch = vec![reservation("s", 1, "a", 1), bad];
        let error = fixture.database.settle(batch).await.unwrap_err();
        assert!(error.is_of_the_record() && !error.is_retryable(), "{error:?}");
        assert_eq!(fixture.database.books(None).await.unwrap()[0].orders, 0, "half a batch was written");
    }
    // Without the buyer's own it can be written.
    let bare = fixture.database.reject(&reservation("s", 2, "b", 1), RejectReason::Unwritable).await.unwrap();
    assert_eq!(bare.outcome, Outcome::Rejected(RejectReason::Unwritable));

    // The sessions are strict whatever the server is: what does not fit a table that somebody has narrowed is not cut off.
    for (narrowed, bad) in [
        ("user_id VARCHAR(4) NOT NULL", reservation("s", 3, "12345", 1)),
        (
            "metadata TEXT CHARACTER SET latin1",
            Reservation { metadata: Some("小明".into()), ..reservation("s", 3, "u", 1) },
        ),
        ("amount SMALLINT UNSIGNED NOT NULL", reservation("s", 3, "u", 1)),
    ] {
        SERVER.sql(name(&fixture), &format!("ALTER TABLE floodgate_orders MODIFY {narrowed}")).unwrap();
        let error = fixture.database.settle(vec![bad]).await.unwrap_err();
        assert!(error.is_of_the_record(), "{narrowed}: {error:?}");
    }

    SERVER.sql(name(&fixture), "DROP TABLE floodgate_orders").unwrap();
    let error = fixture.database.settle(vec![reservation("s", 1, "a", 1)]).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Schema(_)), "{error:?}");
    assert!(!error.is_of_the_record() && !error.is_retryable());
    assert_eq!(fixture.database.sale(&sale_id("s")).await.unwrap().unwrap().sold, 0);
}

/// The statements of a commit travel in one packet: the last one's failure must be heard, and undo the first.
#[tokio::test]
async fn a_failure_of_any_statement_of_a_batch_undoes_all_of_it() {
    for (event, table) in
        [("INSERT", "orders"), ("INSERT", "releases"), ("UPDATE", "sales"), ("UPDATE", "meta")]
    {
        let fixture = open().await;
        fixture.publish("s", 1, 1).await;
        fixture.settle_one(reservation("s", 9, "z", 1)).await;
        fixture.database.cancel(order_id(9), By::Operator(&author())).await.unwrap();
        let before = fixture.database.books(None).await.unwrap();
        let refuse = format!(
            "CREATE TRIGGER refuse BEFORE {event} ON floodgate_{table} FOR EACH ROW
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'"
        );
        SERVER.sql(name(&fixture), &refuse).unwrap();
        let batch = vec![reservation("s", 1, "a", 1), reservation("s", 2, "b", 1)];
        let batch = if table == "meta" { vec![reservation("s", 9, "z", 1)] } else { batch };
        let error = fixture.database.settle(batch).await.unwrap_err();
        assert!(error.is_of_the_record() && error.to_string().contains("refused"), "{table}: {error:?}");
        assert_eq!(fixture.database.books(None).await.unwrap(), before, "{table}");
    }
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_worth_a_repeat() {
    let server = MariaDb::start().unwrap();
    let url = server.url("orders").unwrap();
    Database::migrate_mysql(&url).await.unwrap();
    // Who may write all the same does not notice.
    server.sql("", "REVOKE /*M!100502 READ ONLY ADMIN, */ SUPER /*!80000 , CONNECTION_ADMIN */ ON *.* FROM floodgate@127.0.0.1").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::open_mysql_at(&url, clock(&now)).await.unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    fixture.publish("s", 10, 1).await;
    server.sql("", "SET GLOBAL read_only = 1").unwrap();
    let error = fixture.database.settle(vec![reservation("s", 1, "a", 1)]).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(fixture.database.sale(&sale_id("s")).await.unwrap().is_some(), "reading goes on");
    server.sql("", "SET GLOBAL read_only = 0").unwrap();
    fixture.settle_one(reservation("s", 1, "a", 1)).await;
}

/// What a collation that is not binary, pads, or has three bytes only would throw together, cut off or refuse.
#[tokio::test]
async fn what_people_name_is_compared_byte_for_byte() {
    let fixture = open().await;
    fixture.publish("s", 100, 1).await;
    fixture.publish("S", 100, 1).await;
    let users =
        ["a", "A", "a ", "a  ", "á", "a\u{301}", "ß", "ss", "👩‍👩‍👧", "👩", " a", "%", "_", "a\\", "'", "''"];
    let batch: Vec<_> = (0..).zip(users).map(|(n, user)| reservation("s", n, user, 1)).collect();
    let settled = fixture.database.settle(batch).await.unwrap();
    assert!(settled.iter().all(|settled| settled.outcome == Outcome::Inserted), "{settled:?}");
    for (n, user) in (100..).zip(users) {
        let again = fixture.settle_one(reservation("s", n, user, 1)).await;
        assert_eq!(again.outcome, Outcome::Rejected(RejectReason::LimitReached), "{user:?}");
        assert_eq!(fixture.database.order(order_id(n)).await.unwrap().unwrap().user_id, user_id(user));
    }
    assert_eq!(fixture.settle_one(reservation("S", 50, "a", 1)).await.outcome, Outcome::Inserted);
    let books = fixture.database.books(None).await.unwrap();
    assert_eq!((books[0].sale.as_str(), books[0].sold, books[1].sold), ("S", 1, users.len() as u64));
    assert_eq!(books[1].users_over_limit, 0);

    let s = sale_id("s");
    for id in ["r", "R", "r ", "r\0", "ŕ"] {
        fixture.database.restock(&s, id, 1, &author()).await.unwrap();
        fixture.database.restock(&s, id, 1, &author()).await.unwrap();
    }
    assert_eq!(fixture.database.sale(&s).await.unwrap().unwrap().total, 105);
}

#[tokio::test]
async fn the_public_tables_read_as_documented() {
    let fixture = open().await;
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(reservation("s", 1, "小明", 2)).await;
    let sale = SERVER.sql(name(&fixture), "SELECT sale_id, total, sold FROM floodgate_sales").unwrap();
    assert_eq!(sale.trim(), "s\t10\t2");
    let order = SERVER.sql(
        name(&fixture),
        "SELECT order_id, sale_id, user_id, quantity, units_held, amount, currency, status, metadata, created_at, pay_by
         FROM floodgate_orders",
    );
    let id = order_id(1);
    let times = "2026-11-11T12:00:00.000Z\t2026-11-11T12:15:00.000Z";
    let expected = format!("{id}\ts\t小明\t2\t2\t413280\tCNY\tunpaid\t{{\"gift\":true}}\t{times}");
    assert_eq!(order.unwrap().trim(), expected);
}

#[tokio::test]
async fn a_row_with_an_unknown_status_is_named() {
    let fixture = open().await;
    conformance::a_row_with_another_word_is_an_error_that_names_it(&fixture, |word| {
        SERVER.sql(name(&fixture), &format!("UPDATE floodgate_orders SET status = '{word}'")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn money_that_does_not_add_up_is_named() {
    let fixture = open().await;
    let write = |statement: &str| drop(SERVER.sql(name(&fixture), statement).unwrap());
    conformance::money_that_does_not_add_up_is_named(&fixture, write).await;
}

#[tokio::test]
async fn each_change_of_an_order_has_its_event() {
    let fixture = open().await;
    conformance::each_version_behind_the_first_has_one_event(&fixture, |order| {
        let events = format!(
            "SELECT version, type, HEX(payload) FROM floodgate_events WHERE order_id = '{order}' ORDER BY version"
        );
        let events = SERVER.sql(name(&fixture), &events).unwrap();
        let event = |line: &str| {
            let columns: Vec<_> = line.split('\t').collect();
            let bytes = (0..columns[2].len() / 2).map(|n| u8::from_str_radix(&columns[2][2 * n..2 * n + 2], 16).unwrap());
            let payload = String::from_utf8(bytes.collect()).unwrap();
            (columns[0].parse().unwrap(), columns[1].to_owned(), payload)
        };
        events.lines().map(event).collect()
    })
    .await;
}

/// What is remembered of a sale is only good for the row that it was learned from.
#[tokio::test]
async fn a_sale_published_anew_has_its_own_terms() {
    let fixture = open().await;
    let mut definition = fixture.publish("s", 10, 1).await;
    fixture.settle_one(reservation("s", 1, "a", 1)).await;
    let forget = "DELETE FROM floodgate_orders; DELETE FROM floodgate_sales";
    SERVER.sql(name(&fixture), forget).unwrap();
    let gone = fixture.database.settle(vec![reservation("s", 2, "a", 1)]).await;
    assert_eq!(gone, Err(DatabaseError::UnknownSale(definition.id.clone())));

    fixture.database.publish(&definition, &author()).await.unwrap();
    fixture.settle_one(reservation("s", 3, "a", 1)).await;
    SERVER.sql(name(&fixture), forget).unwrap();
    fixture.advance(1);
    (definition.price, definition.per_user_limit) = (7, 2);
    fixture.database.publish(&definition, &author()).await.unwrap();
    for n in [4, 5] {
        assert_eq!(fixture.settle_one(reservation("s", n, "a", 1)).await.outcome, Outcome::Inserted);
        assert_eq!(fixture.database.order(order_id(n)).await.unwrap().unwrap().amount, 7);
    }
}

/// Batches that meet under the sale's row, each of which would fit alone.
#[tokio::test]
async fn of_batches_at_once_one_serves_a_user() {
    for limit in [1, 2] {
        let fixture = open().await;
        fixture.publish("s", 1_000, limit).await;
        for round in 0..10u64 {
            let batch = |writer: u64| {
                let own = reservation("s", round * 100 + writer * 10, &format!("{round} {writer}"), limit);
                let fought_over = reservation("s", round * 100 + writer * 10 + 1, &format!("{round}"), limit);
                let database = fixture.database.clone();
                tokio::spawn(async move { database.settle(vec![own, fought_over]).await })
            };
            let batches: Vec<_> = (0..6).map(batch).collect();
            let (mut own, mut fought_over) = (0, 0);
            for batch in batches {
                let settled = batch.await.unwrap().unwrap();
                own += u64::from(settled[0].outcome == Outcome::Inserted);
                fought_over += u64::from(settled[1].outcome == Outcome::Inserted);
            }
            assert_eq!((own, fought_over), (6, 1), "round {round} at a limit of {limit}");
        }
        let books = fixture.database.books(None).await.unwrap();
        assert_eq!((books[0].sold, books[0].units_held), (u64::from(limit) * 70, u64::from(limit) * 70));
        assert_eq!((books[0].users_over_limit, books[0].orders), (0, 120));
    }
}

/// What buyers write does not pass through the database's own character set.
#[tokio::test]
async fn any_text_comes_back_from_a_database_in_latin1() {
    let (name, url) = empty();
    SERVER.sql("", &format!("ALTER DATABASE {name} CHARACTER SET latin1")).unwrap();
    Database::migrate_mysql(&url).await.unwrap();
    let database = Database::open_mysql(&url).await.unwrap();
    database.publish(&conformance::definition("s", 10, 1), &author()).await.unwrap();
    for (n, text) in (0..).zip(["小明 👩‍👩‍👧", "\\u0041\"'\\", "\0\u{1}\t\n\u{7f}", "[\"x\",null]", "a "])
    {
        let order = Reservation {
            metadata: Some(text.into()),
            ..reservation("s", n, &format!("u{n}{}", text.replace(char::is_control, "")), 1)
        };
        let settled = database.settle(vec![order.clone()]).await.unwrap();
        assert_eq!(settled[0].outcome, Outcome::Inserted, "{text:?}");
        let row = database.order(order_id(n)).await.unwrap().unwrap();
        assert_eq!((row.user_id, row.metadata), (order.user, order.metadata));
    }
}

/// Without a test's clock, times are the server's own, whatever zone it lives in.
#[tokio::test]
async fn times_are_the_servers() {
    let (name, url) = empty();
    Database::migrate_mysql(&url).await.unwrap();
    let database = Database::open_mysql(&url).await.unwrap();
    database.publish(&conformance::definition("s", 1, 1), &author()).await.unwrap();
    let off =
        "SELECT ABS(TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), REPLACE(REPLACE(created_at, 'T', ' '), 'Z', '')))
               FROM floodgate_sales";
    let off: u32 = SERVER.sql(&name, off).unwrap().trim().parse().unwrap();
    assert!(off < 600, "{off} s");
}
