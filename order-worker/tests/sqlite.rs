//! SQLite: the whole database contract on both executors, and what is its own (schema, errors, dropped callers).

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod conformance;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use conformance::schema::{self, FoundTable};
use conformance::{Fixture, START_MS, author, clock, journal_key, order_id, whole_journal};
use order_worker::database::{
    By, Database, DatabaseError, Executor, LedgerChange, SchemaState, SharedConnection, schema_sql,
};
use order_worker::journal::{Broken, HeadWatch, Seen, verify_chain};

fn open(executor: Executor) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("deep/orders.db").display());
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::open_sqlite(&url, executor, clock(&now)).unwrap();
    Fixture { database, now, keep: Box::new(directory) }
}

mod on_threads {
    use super::*;
    conformance::database_suite!(async || open(Executor::Thread));
}

mod inline {
    use super::*;
    conformance::database_suite!(async || open(Executor::Inline));
}

#[tokio::test]
async fn a_dropped_caller_breaks_no_transaction() {
    let fixture = open(Executor::Thread);
    fixture.publish("s", 1_000, 1_000).await;
    for n in 0..50u64 {
        let batch: Vec<_> = (0..4).map(|i| conformance::reservation("s", n * 4 + i, "u", 1)).collect();
        let settle = fixture.database.settle(batch);
        tokio::select! {
            biased;
            _ = settle => {}
            () = std::future::ready(()) => {}
        }
    }
    // The writer takes turns: once it answers this, the batches are behind it.
    fixture.database.next_epoch().await.unwrap();
    let books = fixture.database.books(None).await.unwrap();
    assert_eq!(books[0].sold, books[0].units_held);
    assert_eq!(books[0].orders % 4, 0, "half a batch was written");
    assert_eq!(books[0].orders, 200, "a batch that was handed over was not carried out");
}

#[tokio::test]
async fn the_inline_connection_outlives_the_database() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let first = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    assert_eq!(first.next_epoch().await.unwrap(), 1);
    drop(first);
    let second = Database::over_connection(connection, clock(&now)).unwrap();
    assert_eq!(second.epoch().await.unwrap(), 1);
}

#[tokio::test]
async fn every_commit_is_synced() {
    let directory = tempfile::tempdir().unwrap();
    let connection = SharedConnection::open(directory.path().join("orders.db")).unwrap();
    let pragma = |name: &str| {
        connection.with(|c| c.pragma_query_value(None, name, |row| row.get::<_, i64>(0))).unwrap()
    };
    assert_eq!(pragma("synchronous"), 2, "FULL");
    let mode = connection.with(|c| c.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0)));
    assert_eq!(mode.unwrap(), "wal");
}

#[tokio::test]
async fn migration_is_versioned_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("orders.db").display());
    assert_eq!(Database::check_sqlite(&url).unwrap(), SchemaState::Missing);
    assert!(!directory.path().join("orders.db").exists(), "a check made the file");
    assert_eq!(Database::migrate_sqlite(&url).unwrap(), [1]);
    assert_eq!(Database::migrate_sqlite(&url).unwrap(), [0u32; 0]);
    assert_eq!(Database::check_sqlite(&url).unwrap(), SchemaState::Current);
    assert!(schema_sql().contains("CREATE TABLE floodgate_orders"));

    let connection = SharedConnection::open(directory.path().join("orders.db")).unwrap();
    let record = |version: &str| {
        let update = "UPDATE floodgate_meta SET value = ?1 WHERE name = 'schema_version'";
        connection.with(|c| c.execute(update, [version])).unwrap();
    };
    let now = Arc::new(AtomicU64::new(START_MS));
    record("2");
    assert_eq!(Database::check_sqlite(&url).unwrap(), SchemaState::NewerByOne);
    assert!(Database::open_sqlite(&url, Executor::Inline, clock(&now)).is_ok());
    record("3");
    let refused = Database::open_sqlite(&url, Executor::Inline, clock(&now)).err();
    assert!(matches!(refused, Some(DatabaseError::Schema(_))), "{refused:?}");
}

#[tokio::test]
async fn tables_of_an_untagged_build_are_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.db");
    let url = path.display().to_string();
    let now = Arc::new(AtomicU64::new(START_MS));
    let old = SharedConnection::open(&path).unwrap();
    old.with(|c| {
        c.execute_batch(
            "CREATE TABLE floodgate_meta (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
             INSERT INTO floodgate_meta VALUES ('schema_version', '2');
             CREATE TABLE floodgate_orders (order_id TEXT NOT NULL PRIMARY KEY)",
        )
        .unwrap();
    });
    assert_eq!(Database::check_sqlite(&url).unwrap(), SchemaState::Untagged);
    for refused in [
        Database::open_sqlite(&url, Executor::Thread, clock(&now)).err().unwrap(),
        Database::migrate_sqlite(&url).unwrap_err(),
    ] {
        assert!(matches!(refused, DatabaseError::Schema(_)), "{refused:?}");
        assert!(refused.to_string().contains("orders.database_url"), "{refused}");
    }
    let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table'";
    assert_eq!(old.with(|c| c.query_row(tables, [], |row| row.get::<_, u32>(0))).unwrap(), 2);
}

/// A change, its version and its row in the journal: killed before the commit there is none of them, after it all, and the
/// repetition adds nothing.
#[tokio::test]
async fn an_operators_change_is_never_half() {
    for (killed_at, is_made) in
        [("database.begin", false), ("database.commit", false), ("database.committed", true)]
    {
        let fixture = open(Executor::Inline);
        let id = fixture.publish("s", 10, 1).await.id;
        fixture.settle_one(conformance::reservation("s", 1, "u", 1)).await;
        let database = &fixture.database;
        let change = async |n: usize| match n {
            0 => database.restock(&id, "r", 5, &author()).await.map(|_| ()),
            1 => database.pause(&id, "alice", &author()).await.map(|_| ()),
            2 => database.resume(&id, &author()).await.map(|_| ()),
            3 => database.cancel(order_id(1), By::Operator(&author())).await.map(|_| ()),
            4 => database.change_ledger(0, LedgerChange::Rebuild, &author()).await.map(|_| ()),
            5 => database.publish(&conformance::definition("t", 1, 1), &author()).await.map(|_| ()),
            _ => database.end_now(&id, &author()).await.map(|_| ()),
        };
        let state = async || {
            let versions = match database.sale(&id).await.unwrap() {
                Some(row) => database.sale_version(&id, row.version).await.unwrap(),
                None => None,
            };
            let (sales, order) =
                (database.sales().await.unwrap(), database.order(order_id(1)).await.unwrap());
            (sales, order, versions, database.epoch().await.unwrap(), whole_journal(database).await)
        };
        for n in 0..7 {
            let before = state().await;
            queue::failpoint::set_hook(Some(Box::new(move |hit| hit == killed_at)));
            let killed = change(n).await;
            queue::failpoint::set_hook(None);
            assert!(killed.unwrap_err().is_retryable());
            assert_eq!(state().await == before, !is_made, "change {n} killed at {killed_at}");
            change(n).await.unwrap();
            let after = state().await;
            assert_eq!(after.4.len(), before.4.len() + 1, "change {n} killed at {killed_at}");
            change(n).await.unwrap();
            assert_eq!(state().await, after);
        }
    }
}

#[tokio::test]
async fn what_is_done_to_the_journal_by_hand_shows() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    let mut watch = HeadWatch::new(fixture.database.clone(), clock(&fixture.now));
    for sale in ["a", "b", "c", "d"] {
        fixture.publish(sale, 1, 1).await;
    }
    let by_hand = |sql: &str| connection.with(|c| c.execute_batch(sql)).unwrap();
    let (head, _) = fixture.database.journal_head().await.unwrap();
    let judged = async || {
        let rows = fixture.database.journal(0, 10).await.unwrap();
        verify_chain(&journal_key(), &rows, &[head])
    };
    assert_eq!((judged().await, watch.look().await), (Ok(head), Ok(Seen::Head(head))));
    let look_later = async |watch: &mut HeadWatch| {
        fixture.advance(3_600_000);
        watch.look().await.unwrap()
    };
    by_hand("UPDATE floodgate_journal SET subject = 'x' WHERE seq = 2");
    assert_eq!(judged().await, Err(Broken::Changed { seq: 2 }));
    by_hand("UPDATE floodgate_journal SET subject = 'b' WHERE seq = 2");
    assert_eq!(judged().await, Ok(head));
    by_hand("DELETE FROM floodgate_journal WHERE seq = 4");
    assert_eq!(judged().await, Err(Broken::CutOff { found: 3, known: 4 }));
    assert_eq!(look_later(&mut watch).await, Seen::Damaged(head), "the end is kept, the row is gone");
    by_hand(
        "UPDATE floodgate_meta SET value = (SELECT seq || ' ' || hash FROM floodgate_journal WHERE seq = 3)
                                         || substr(value, -17) WHERE name = 'journal'",
    );
    let (cut_off, _) = fixture.database.journal_head().await.unwrap();
    assert_eq!(cut_off.seq, 3);
    assert_eq!(look_later(&mut watch).await, Seen::Damaged(cut_off), "it had been further");
    by_hand("UPDATE floodgate_meta SET value = 'nonsense' WHERE name = 'journal'");
    let refused = fixture.database.pause(&conformance::sale_id("a"), "me", &author()).await.unwrap_err();
    assert!(refused.to_string().contains("docs/mysql.md"), "{refused}");
}

/// The rows that a query about the schema has, each column as text.
fn texts(connection: &SharedConnection, query: &str, of: &str) -> Vec<Vec<String>> {
    connection.with(|c| {
        let mut statement = c.prepare(query).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([of], |row| (0..columns).map(|n| row.get(n)).collect()).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    })
}

#[test]
fn the_schema_is_the_list() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let _database = Database::over_connection(connection.clone(), Arc::new(|| START_MS)).unwrap();
    let mut found = BTreeMap::new();
    let names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE ?1";
    for table in texts(&connection, names, "floodgate%").concat() {
        let mut columns = BTreeSet::new();
        let mut primary = BTreeMap::new();
        let info = "SELECT name, CAST([notnull] AS TEXT), CAST(pk AS TEXT) FROM pragma_table_info(?1)";
        for column in texts(&connection, info, &table) {
            let [name, not_null, place] = column.try_into().unwrap();
            if place != "0" {
                primary.insert(place, name.clone());
            }
            columns.insert(if not_null == "1" { name } else { format!("{name}?") });
        }
        let primary: Vec<String> = primary.into_values().collect();
        let mut indices = BTreeSet::from([schema::index("primary", true, &primary)]);
        let list = "SELECT name, CAST([unique] AS TEXT) FROM pragma_index_list(?1) WHERE origin <> 'pk'";
        for index in texts(&connection, list, &table) {
            let columns = "SELECT name FROM pragma_index_info(?1) ORDER BY seqno";
            let columns = texts(&connection, columns, &index[0]).concat();
            indices.insert(schema::index(&index[0], index[1] == "1", &columns));
        }
        found.insert(table, FoundTable { columns, indices });
    }
    schema::must_be_the_schema(found);
}

#[tokio::test]
async fn errors_say_whether_to_repeat_to_search_or_to_look() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    fixture.publish("s", 10, 1).await;
    connection.with(|c| {
        c.execute_batch(
            "CREATE TRIGGER poison BEFORE INSERT ON floodgate_orders WHEN NEW.user_id = 'poison'
             BEGIN SELECT RAISE(ABORT, 'poison'); END",
        )
        .unwrap();
    });
    let batch = vec![conformance::reservation("s", 1, "a", 1), conformance::reservation("s", 2, "poison", 1)];
    let error = fixture.database.settle(batch).await.unwrap_err();
    assert!(error.is_of_the_record() && !error.is_retryable(), "{error:?}");
    assert_eq!(fixture.database.books(None).await.unwrap()[0].orders, 0, "half a batch was written");

    connection.with(|c| c.execute_batch("DROP TABLE floodgate_orders").unwrap());
    let batch = vec![conformance::reservation("s", 1, "a", 1)];
    let error = fixture.database.settle(batch).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Schema(_)), "{error:?}");
    assert!(!error.is_of_the_record() && !error.is_retryable());

    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.db");
    std::fs::write(&garbage, vec![b'x'; 8192]).unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let error =
        Database::open_sqlite(garbage.to_str().unwrap(), Executor::Inline, clock(&now)).err().unwrap();
    assert!(matches!(error, DatabaseError::Broken(_)), "{error:?}");
    let error = Database::open_sqlite("sqlite::memory:", Executor::Thread, clock(&now)).err().unwrap();
    assert!(matches!(error, DatabaseError::Broken(_)), "{error:?}");
}

#[tokio::test]
async fn a_row_with_an_unknown_status_is_named() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    conformance::a_row_with_another_word_is_an_error_that_names_it(&fixture, |word| {
        let write = "UPDATE floodgate_orders SET status = ?1";
        connection.with(|c| assert_eq!(c.execute(write, [word]).unwrap(), 1));
    })
    .await;
}

#[tokio::test]
async fn money_that_does_not_add_up_is_named() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    let write = |statement: &str| connection.with(|c| assert!(c.execute(statement, []).unwrap() > 0));
    conformance::money_that_does_not_add_up_is_named(&fixture, write).await;
}

#[tokio::test]
async fn each_change_of_an_order_has_its_event() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    conformance::each_version_behind_the_first_has_one_event(&fixture, |order| {
        let events =
            "SELECT version, type, payload FROM floodgate_events WHERE order_id = ?1 ORDER BY version";
        connection.with(|c| {
            let mut events = c.prepare(events).unwrap();
            let events = events.query_map([order.to_string()], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?))
            });
            events.unwrap().collect::<Result<Vec<_>, _>>().unwrap()
        })
    })
    .await;
}

#[tokio::test]
async fn another_process_holding_the_database_is_worth_a_repeat() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.db");
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::open_sqlite(path.to_str().unwrap(), Executor::Thread, clock(&now)).unwrap();
    let other = SharedConnection::open(&path).unwrap();
    other.with(|c| c.execute_batch("BEGIN IMMEDIATE").unwrap());
    assert!(database.next_epoch().await.unwrap_err().is_retryable());
    assert_eq!(database.epoch().await.unwrap(), 0, "readers are not held up");
    other.with(|c| c.execute_batch("COMMIT").unwrap());
    assert_eq!(database.next_epoch().await.unwrap(), 1);
}

#[tokio::test]
async fn the_public_tables_read_as_documented() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    let fixture = Fixture { database, now, keep: Box::new(()) };
    fixture.publish("s", 10, 5).await;
    fixture.settle_one(conformance::reservation("s", 1, "小明", 2)).await;
    let text = |sql: &str| connection.with(|c| c.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap());
    assert_eq!(text("SELECT sale_id || ' ' || total || ' ' || sold FROM floodgate_sales"), "s 10 2");
    let order = text(
        "SELECT order_id || ' ' || sale_id || ' ' || user_id || ' ' || quantity || ' ' || units_held || ' ' || amount
         || ' ' || currency || ' ' || status || ' ' || metadata || ' ' || created_at || ' ' || pay_by
         FROM floodgate_orders",
    );
    let id = conformance::order_id(1);
    let times = "2026-11-11T12:00:00.000Z 2026-11-11T12:15:00.000Z";
    assert_eq!(order, format!("{id} s 小明 2 2 413280 CNY unpaid {{\"gift\":true}} {times}"));
}

#[tokio::test]
async fn each_index_serves_a_query_and_no_query_scans() {
    let connection = SharedConnection::open(":memory:").unwrap();
    let now = Arc::new(AtomicU64::new(START_MS));
    let _database = Database::over_connection(connection.clone(), clock(&now)).unwrap();
    for (query, index) in [
        (
            "SELECT sum(units_held) FROM floodgate_orders WHERE sale_id = ? AND user_id = ?",
            "floodgate_orders_user",
        ),
        (
            "SELECT * FROM floodgate_orders WHERE sale_id = ? AND order_id > ? ORDER BY order_id LIMIT 9",
            "floodgate_orders_sale",
        ),
        ("SELECT * FROM floodgate_orders WHERE order_id = ?", "sqlite_autoindex_floodgate_orders_1"),
        (
            "SELECT * FROM floodgate_orders WHERE status = 'unpaid' AND pay_by < ? ORDER BY pay_by LIMIT 9",
            "floodgate_orders_due",
        ),
        (
            "SELECT * FROM floodgate_events WHERE relayed_log IS NULL ORDER BY order_id, version LIMIT 9",
            "floodgate_events_log",
        ),
        (
            "SELECT * FROM floodgate_outbox WHERE kind = 'timeout' ORDER BY order_id LIMIT 9",
            "floodgate_outbox_order",
        ),
        (
            "SELECT * FROM floodgate_outbox WHERE sale_id = ? AND kind IN ('swap', 'confirm')",
            "floodgate_outbox_sale",
        ),
        ("SELECT * FROM floodgate_payments WHERE order_id = ?", "floodgate_payments_order"),
        (
            "SELECT * FROM floodgate_payments WHERE disposition = 'unmatched' AND received_at < ? ORDER BY received_at LIMIT 9",
            "floodgate_payments_disposition",
        ),
        (
            "SELECT p.provider, p.payment_id FROM floodgate_payments AS p INDEXED BY floodgate_payments_disposition
             CROSS JOIN floodgate_orders AS o ON o.order_id = p.order_id
             WHERE p.disposition = 'unmatched' ORDER BY p.received_at LIMIT 9",
            "floodgate_payments_disposition",
        ),
        ("SELECT sale_id FROM floodgate_sales WHERE withdrawing = 1", "floodgate_sales_withdrawing"),
        (
            "SELECT * FROM floodgate_refunds WHERE state = 'stuck' AND refund_id > ? ORDER BY refund_id LIMIT 9",
            "floodgate_refunds_state",
        ),
        (
            "SELECT * FROM floodgate_refunds WHERE next_try_at < ? ORDER BY next_try_at LIMIT 9",
            "floodgate_refunds_due",
        ),
        (
            "SELECT sum(amount) FROM floodgate_refunds WHERE provider = ? AND payment_id = ?",
            "floodgate_refunds_payment",
        ),
        (
            "SELECT * FROM floodgate_waiting WHERE sale_id = ? AND state = 'waiting' ORDER BY place LIMIT 9",
            "floodgate_waiting_head",
        ),
        (
            "SELECT * FROM floodgate_order_keys WHERE sale_id = ? AND limit_key = ?",
            "floodgate_order_keys_sale",
        ),
    ] {
        let plan = connection.with(|c| {
            let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let steps = statement.raw_query();
            let steps: Vec<String> = steps.mapped(|row| row.get(3)).collect::<Result<_, _>>().unwrap();
            steps.join("; ")
        });
        assert!(plan.starts_with("SEARCH") && plan.contains(index) && !plan.contains("B-TREE"), "{plan}");
    }
}

#[test]
fn a_file_that_is_no_database_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(&path, "not a database at all, but long enough to be looked at as one: 0123456789")
        .unwrap();
    let now: stock::Now = Arc::new(|| 1);
    for error in [
        Database::open_sqlite(&path.display().to_string(), Executor::Inline, now).err().unwrap(),
        Database::check_sqlite(&path.display().to_string()).err().unwrap(),
    ] {
        let error = error.to_string();
        assert!(error.contains("notes.txt") && error.contains("orders.database_url"), "{error}");
    }
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"), "left as it was");
}

#[tokio::test]
async fn nothing_goes_into_a_file_that_is_no_longer_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (place, elsewhere) = (directory.path().join("orders.db"), directory.path().join("elsewhere"));
    let now = clock(&Arc::new(AtomicU64::new(START_MS)));
    let database = Database::open_sqlite(place.to_str().unwrap(), Executor::Thread, now).unwrap();
    assert_eq!(database.next_epoch().await.unwrap(), 1);
    let refused =
        |error: DatabaseError| error.is_retryable() && error.to_string().contains("orders.db was moved");

    std::fs::rename(&place, &elsewhere).unwrap();
    assert!(refused(database.next_epoch().await.unwrap_err()));
    std::fs::write(&place, "another file").unwrap();
    assert!(refused(database.epoch().await.unwrap_err()));

    std::fs::rename(&elsewhere, &place).unwrap();
    assert_eq!(database.next_epoch().await.unwrap(), 2, "it was put back");
}
