//! A real MariaDB that is killed, frozen, crowded, cut off and deadlocked under the orders database's feet.
//!
//! After each: units held = sold ≤ total, nobody over the limit, every order one row, and what was answered is so.
#![cfg(feature = "mysql")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod samples;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use order_worker::database::{By, CancelOutcome, Outcome, Settled};
use order_worker::journal::verify_chain;
use order_worker::{Database, DatabaseError};
use parking_lot::Mutex;
use samples::{author, definition, journal_key, order_id, reservation, sale_id, user_id};
use stock::{OrderId, OrderStatus, Reservation};
use testbed::{MariaDb, Proxy};

/// Nothing here takes longer on a machine that is merely busy.
const PATIENCE: Duration = Duration::from_secs(60);

async fn orders_on(server: &MariaDb) -> (String, Database) {
    let url = server.url("orders").unwrap();
    Database::migrate_mysql(&url).await.unwrap();
    let database = Database::open_mysql(&url).await.unwrap();
    (url, database)
}

/// Waits until `reached` says so.
async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Repeats a call as the drain does: until the database takes it.
async fn insist<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, DatabaseError>) -> T {
    let insist = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(error) => assert!(error.is_retryable(), "{what}: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, insist).await.unwrap_or_else(|_| panic!("never taken: {what}"))
}

/// Sessions that wait for a row's lock. Not from `innodb_trx`, which shows nothing new to whoever asks more often than every 100 ms.
fn lock_waits(server: &MariaDb) -> u32 {
    let waiting = server.sql("", "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").unwrap();
    waiting.split_whitespace().last().unwrap().parse().unwrap()
}

/// What the server has counted since its start.
fn counted(server: &MariaDb, metric: &str) -> u64 {
    let count = format!("SELECT count FROM information_schema.innodb_metrics WHERE name = '{metric}'");
    server.sql("", &count).unwrap().trim().parse().unwrap()
}

async fn must_add_up(database: &Database, orders: u64) {
    let mut seen = 0;
    for books in insist("books", async || database.books(None).await).await {
        assert_eq!(books.sold, books.units_held, "{books:?}");
        assert!(books.sold <= u64::from(books.total.unwrap()), "{books:?}");
        assert_eq!(books.users_over_limit, 0, "{books:?}");
        seen += books.orders;
    }
    assert_eq!(seen, orders, "every order one row");
}

/// Orders that overlap in users and sales, so that limits and stock run out while they are fought over.
fn order(n: u64) -> Reservation {
    let sale = ["s", "t"][(n / 3 % 2) as usize];
    reservation(sale, n, &format!("user {}", n * 7 % 180), 1 + (n % 2) as u32)
}

const ORDERS: u64 = 1_200;

/// What the writers were told: of each order one thing only, whoever asked.
#[derive(Default)]
struct Told {
    settled: Mutex<HashMap<OrderId, Settled>>,
    cancelled: Mutex<Vec<OrderId>>,
}

impl Told {
    fn settled(&self, batch: Vec<Settled>) {
        let mut told = self.settled.lock();
        for settled in batch {
            if let Some(before) = told.insert(settled.order_id, settled.clone()) {
                let same = (before.status, before.units_held) == (settled.status, settled.units_held);
                let cancelled = settled.status == OrderStatus::Closed || before.status == OrderStatus::Closed;
                assert!(same || cancelled, "told {before:?}, then {settled:?}");
            }
        }
    }
}

/// Every order three times, in batches that begin elsewhere each time; every seventh is cancelled, too.
async fn write_all(database: Database, told: Arc<Told>, writer: u64) {
    for round in 0..3 {
        let mut first = 0;
        let length = 40 + 17 * writer + 29 * round;
        while first < ORDERS {
            let numbers: Vec<u64> = (first..(first + length).min(ORDERS)).collect();
            // Half of them walk backwards: the ranges cross.
            let mirrored = |n: &u64| if writer.is_multiple_of(2) { *n } else { ORDERS - 1 - n };
            let batch: Arc<[Reservation]> = numbers.iter().map(mirrored).map(order).collect();
            told.settled(insist("settle", async || database.settle(batch.clone()).await).await);
            for n in numbers.iter().map(mirrored).filter(|n| n % 7 == writer) {
                let outcome =
                    insist("cancel", async || database.cancel(order_id(n), By::Operator(&author())).await)
                        .await;
                if matches!(outcome, CancelOutcome::Cancelled(_)) {
                    told.cancelled.lock().push(order_id(n));
                }
            }
            first += length;
        }
    }
}

#[tokio::test]
async fn kills_in_the_middle_of_overlapping_batches_lose_and_double_nothing() {
    let server = Arc::new(MariaDb::start().unwrap());
    let (url, one) = orders_on(&server).await;
    let other = Database::open_mysql(&url).await.unwrap();
    one.publish(&definition("s", 400, 3), &author()).await.unwrap();
    one.publish(&definition("t", 350, 3), &author()).await.unwrap();
    let told = Arc::new(Told::default());
    // Each in a runtime of its own, as gateways and workers call.
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let database = if n < 2 { one.clone() } else { other.clone() };
            let told = told.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(write_all(database, told, n));
            })
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let chaos = {
        let (server, done) = (server.clone(), done.clone());
        let seed = std::process::id();
        println!("seed {seed}");
        tokio::task::spawn_blocking(move || {
            let (mut random, mut kills) = (u64::from(seed), 0);
            while !done.load(Ordering::SeqCst) && kills < 5 {
                random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                std::thread::sleep(Duration::from_millis(20 + (random >> 33) % 200));
                // A process crash takes the log's buffer with it, as an OS crash does: what was answered must be on disk.
                if random >> 40 & 1 == 0 || kills == 0 {
                    server.kill().unwrap();
                    server.restart().unwrap();
                } else {
                    let sessions =
                        "SELECT GROUP_CONCAT('KILL ', id SEPARATOR ';') FROM information_schema.processlist
                                    WHERE user = 'floodgate'";
                    let kill = server.sql("", sessions).unwrap();
                    // One that has gone meanwhile is an error that does not matter.
                    let _ = server.sql("", kill.trim());
                }
                kills += 1;
            }
            kills
        })
    };
    for writer in writers {
        tokio::task::spawn_blocking(|| writer.join()).await.unwrap().unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let kills = chaos.await.unwrap();
    println!("{kills} blows");
    assert!(kills >= 1, "the writers were faster than the first kill");

    must_add_up(&one, ORDERS).await;
    let told_settled = told.settled.lock().clone();
    let cancelled = told.cancelled.lock().clone();
    assert_eq!(told_settled.len() as u64, ORDERS);
    let mut released = 0;
    for (id, settled) in told_settled {
        let row = one.order(id).await.unwrap().unwrap();
        released += u64::from(row.units_held == 0);
        if row.status == OrderStatus::Closed {
            assert_eq!(row.version, 2, "cancelled once");
        } else {
            assert!(!cancelled.contains(&id), "it was told to be cancelled: {row:?}");
            assert_eq!((row.status, row.units_held), (settled.status, settled.units_held), "{row:?}");
        }
    }
    assert_eq!(one.releases_outstanding().await.unwrap(), released, "each that holds none has a release");
    assert!(one.releases_outstanding().await.unwrap() > 0, "nothing was fought over");

    // Each cancellation and its row in the journal are one, whatever was killed in between.
    let rows = one.journal(0, usize::MAX / 2).await.unwrap();
    verify_chain(&journal_key(), &rows, &[one.journal_head().await.unwrap().0]).unwrap();
    let mut closed: Vec<String> = Vec::new();
    for sale in ["s", "t"] {
        let page = one.orders(&sale_id(sale), None, ORDERS as usize).await.unwrap();
        let page = page.into_iter().filter(|row| row.status == OrderStatus::Closed);
        closed.extend(page.map(|row| row.order_id.to_string()));
    }
    let mut journalled: Vec<_> =
        rows.into_iter().filter(|row| row.action == "order cancel").map(|row| row.subject).collect();
    closed.sort();
    journalled.sort();
    assert_eq!(journalled, closed);
}

#[tokio::test]
async fn a_frozen_server_is_given_up_and_what_it_does_late_is_found() {
    let server = MariaDb::start().unwrap();
    let (url, database) = orders_on(&server).await;
    database.publish(&definition("s", 10, 1), &author()).await.unwrap();
    database.settle(vec![reservation("s", 1, "a", 1)]).await.unwrap();
    assert!(database.order(order_id(1)).await.unwrap().is_some());
    server.freeze().unwrap();
    let batch = || vec![reservation("s", 2, "b", 1), reservation("s", 3, "c", 1)];
    let (settled, read, opened) =
        tokio::join!(database.settle(batch()), database.order(order_id(1)), Database::open_mysql(&url));
    assert!(settled.unwrap_err().is_retryable() && read.unwrap_err().is_retryable());
    assert!(opened.err().unwrap().is_retryable());
    server.thaw().unwrap();
    // It carries out now what it had been sent; nobody waits for that.
    let settled = insist("settle", async || database.settle(batch()).await).await;
    assert!(settled.iter().all(|settled| settled.status == OrderStatus::Unpaid), "{settled:?}");
    must_add_up(&database, 3).await;
}

#[tokio::test]
async fn a_deadlock_is_repeated_as_a_whole_batch() {
    let server = MariaDb::start().unwrap();
    let (url, database) = orders_on(&server).await;
    database.publish(&definition("s", 10, 1), &author()).await.unwrap();
    database.publish(&definition("t", 10, 1), &author()).await.unwrap();
    // The heavier of two transactions survives: this one has written more.
    let mut other = Conn::from_url(&url).await.unwrap();
    other.query_drop("CREATE TABLE weight (n INT PRIMARY KEY)").await.unwrap();
    other.query_drop("BEGIN").await.unwrap();
    other.query_drop("INSERT INTO weight WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1000) SELECT n FROM s").await.unwrap();
    other.query_drop("SELECT * FROM floodgate_sales WHERE sale_id = 't' FOR UPDATE").await.unwrap();
    let before = counted(&server, "lock_deadlocks");
    let settle = tokio::spawn({
        let database = database.clone();
        async move { database.settle(vec![reservation("t", 1, "a", 1), reservation("s", 2, "a", 1)]).await }
    });
    until("it has s and waits for t", async || lock_waits(&server) == 1).await;
    other.query_drop("SELECT * FROM floodgate_sales WHERE sale_id = 's' FOR UPDATE").await.unwrap();
    until("a deadlock", async || counted(&server, "lock_deadlocks") > before).await;
    other.query_drop("ROLLBACK").await.unwrap();
    let settled = settle.await.unwrap().unwrap();
    assert!(settled.iter().all(|settled| settled.outcome == Outcome::Inserted), "{settled:?}");
    must_add_up(&database, 2).await;
}

#[tokio::test]
async fn a_lock_that_is_held_too_long_is_waited_for_again_and_given_up_at_last() {
    let server = MariaDb::start().unwrap();
    let (url, database) = orders_on(&server).await;
    database.publish(&definition("s", 10, 1), &author()).await.unwrap();
    database.publish(&definition("t", 10, 1), &author()).await.unwrap();
    let mut other = Conn::from_url(&url).await.unwrap();
    let hold = "BEGIN; SELECT * FROM floodgate_sales WHERE sale_id = 's' FOR UPDATE";
    other.query_drop(hold).await.unwrap();
    let settle = |n| {
        let database = database.clone();
        tokio::spawn(async move { database.settle(vec![reservation("s", n, &format!("u{n}"), 1)]).await })
    };
    // More than there are connections for writing.
    let waiting: Vec<_> = (0..6).map(settle).collect();
    until("they wait", async || lock_waits(&server) == 4).await;
    assert!(database.sale(&sale_id("s")).await.unwrap().is_some(), "reads have connections of their own");
    until("1205", async || counted(&server, "lock_timeouts") > 4).await;
    other.query_drop("ROLLBACK").await.unwrap();
    let (mut settled, mut refused) = (0, 0);
    for settle in waiting {
        match settle.await.unwrap() {
            Ok(rows) => settled += u64::from(rows[0].outcome == Outcome::Inserted),
            // Behind the others it may have waited too long for a connection.
            Err(error) => refused += u64::from(error.is_retryable()),
        }
    }
    assert_eq!((settled >= 4, settled + refused), (true, 6));
    must_add_up(&database, settled).await;

    other.query_drop(hold).await.unwrap();
    let given_up = settle(10).await.unwrap().unwrap_err();
    assert!(given_up.is_retryable(), "{given_up:?}");
    other.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(settle(10).await.unwrap().unwrap()[0].outcome, Outcome::Inserted);
    must_add_up(&database, settled + 1).await;
}

#[tokio::test]
async fn too_many_connections_are_worth_a_repeat() {
    let server = MariaDb::start_with(&["--max-connections=10"]).unwrap();
    let (url, database) = orders_on(&server).await;
    server.sql("", "REVOKE /*M!100502 CONNECTION ADMIN, */ SUPER /*!80000 , CONNECTION_ADMIN */ ON *.* FROM floodgate@127.0.0.1").unwrap();
    database.publish(&definition("s", 10, 1), &author()).await.unwrap();
    let mut crowd = Vec::new();
    // One that had ended before may have left its place a moment later.
    until("the crowd holds every place", async || {
        while let Ok(connection) = Conn::from_url(&url).await {
            crowd.push(connection);
        }
        let held = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'floodgate'";
        server.sql("", held).unwrap().trim() == "10"
    })
    .await;
    // Its connection for writing is there; those for reading are not.
    database.settle(vec![reservation("s", 1, "a", 1)]).await.unwrap();
    let refused = database.order(order_id(1)).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("1040"), "{refused:?}");
    assert!(Database::open_mysql(&url).await.err().unwrap().is_retryable());
    for connection in crowd {
        connection.disconnect().await.unwrap();
    }
    insist("order", async || database.order(order_id(1)).await).await.unwrap();
    must_add_up(&database, 1).await;
}

/// Every change: carried out, the answer swallowed; repeated, it has happened once.
#[tokio::test]
async fn a_lost_answer_is_resolved_by_the_repetition() {
    let server = MariaDb::start().unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (url, direct) = orders_on(&server).await;
    let url = url.replace(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()));
    let database = Database::open_mysql(&url).await.unwrap();
    let s = sale_id("s");
    direct.publish(&definition("s", 10, 1), &author()).await.unwrap();
    let slow = "CREATE TRIGGER slow BEFORE UPDATE ON floodgate_sales FOR EACH ROW SET @slept = SLEEP(0.3)";
    server.sql("orders", slow).unwrap();
    let swallowed = AtomicU32::new(0);
    // While the server carries it out, the way back closes; then it opens again, and the call is repeated.
    let lose = async |call: std::pin::Pin<Box<dyn Future<Output = Result<String, DatabaseError>>>>| {
        let close = async {
            until("the change is under way", async || {
                let sleeping =
                    "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User sleep'";
                server.sql("", sleeping).unwrap().trim() == "1"
            })
            .await;
            proxy.drop_replies(true);
        };
        let (lost, ()) = tokio::join!(call, close);
        proxy.drop_replies(false);
        assert!(lost.as_ref().is_err_and(DatabaseError::is_retryable), "{lost:?}");
        swallowed.fetch_add(1, Ordering::SeqCst);
    };

    let order = || vec![reservation("s", 1, "a", 1)];
    lose(Box::pin({
        let database = database.clone();
        async move { database.settle(order()).await.map(|settled| format!("{settled:?}")) }
    }))
    .await;
    let again = insist("settle", async || database.settle(order()).await).await;
    assert_eq!((again[0].outcome, again[0].units_held), (Outcome::Duplicate, 1), "it had been carried out");

    // This time it is the packet with COMMIT that is slow.
    let slow_journal =
        slow.replace("slow BEFORE UPDATE ON floodgate_sales", "slow BEFORE INSERT ON floodgate_journal");
    server.sql("orders", &format!("DROP TRIGGER slow; {slow_journal}")).unwrap();
    lose(Box::pin({
        let (database, s) = (database.clone(), s.clone());
        async move { database.restock(&s, "r", 5, &author()).await.map(|row| format!("{row:?}")) }
    }))
    .await;
    let row = insist("restock", async || database.restock(&s, "r", 5, &author()).await).await;
    assert_eq!((row.total, row.version), (15, 2), "once");
    let rows = direct.journal(0, 10).await.unwrap();
    assert_eq!(verify_chain(&journal_key(), &rows, &[]).unwrap().seq, 2, "once, like its version");
    assert!(direct.sale_version(&s, 2).await.unwrap().is_some());
    server.sql("orders", &format!("DROP TRIGGER slow; {slow}")).unwrap();

    lose(Box::pin({
        let (database, s) = (database.clone(), s.clone());
        async move { database.claim_install(&s, 3).await.map(|claimed| claimed.to_string()) }
    }))
    .await;
    let claimed = insist("claim", async || database.claim_install(&s, 3).await).await;
    assert!(!claimed, "the right may have been taken, so nobody is given it again");

    lose(Box::pin({
        let database = database.clone();
        async move {
            database.cancel(order_id(1), By::User(&user_id("a"))).await.map(|outcome| format!("{outcome:?}"))
        }
    }))
    .await;
    let outcome =
        insist("cancel", async || database.cancel(order_id(1), By::User(&user_id("a"))).await).await;
    assert!(matches!(outcome, CancelOutcome::Cancelled(row) if row.version == 2), "once");
    assert_eq!(direct.releases_outstanding().await.unwrap(), 1);
    assert!(proxy.swallowed() >= u64::from(swallowed.load(Ordering::SeqCst)), "an answer came through");
    must_add_up(&direct, 1).await;
}

#[tokio::test]
async fn connections_that_died_while_idle_are_not_noticed() {
    let server = MariaDb::start().unwrap();
    let (_, database) = orders_on(&server).await;
    database.publish(&definition("s", 100, 100), &author()).await.unwrap();
    let all_at_once = async |first: u64| {
        let batches: Vec<_> = (first..first + 8)
            .map(|n| {
                let database = database.clone();
                tokio::spawn(async move { database.settle(vec![reservation("s", n, "u", 1)]).await })
            })
            .collect();
        for batch in batches {
            batch.await.unwrap().unwrap();
        }
    };
    all_at_once(0).await;
    assert!(database.order(order_id(0)).await.unwrap().is_some());
    server.restart().unwrap();
    all_at_once(8).await;
    assert!(database.order(order_id(0)).await.unwrap().is_some());
    must_add_up(&database, 16).await;
}

#[tokio::test]
async fn no_crash_takes_back_a_release_that_was_handed_out() {
    let server = MariaDb::start_with(&["--innodb-flush-log-at-timeout=2700"]).unwrap();
    let (_, database) = orders_on(&server).await;
    database.publish(&definition("s", 10, 1), &author()).await.unwrap();
    database.settle(vec![reservation("s", 1, "a", 1)]).await.unwrap();
    // A commit is seen a moment before it is on disk: here the moment lasts.
    server.sql("", "SET GLOBAL innodb_flush_log_at_trx_commit = 0").unwrap();
    assert!(matches!(
        database.cancel(order_id(1), By::Operator(&author())).await.unwrap(),
        CancelOutcome::Cancelled(_)
    ));
    server.sql("", "SET GLOBAL innodb_flush_log_at_trx_commit = 1").unwrap();
    assert_eq!(database.releases(None, &[], 10).await.unwrap().len(), 1);
    // The ledger hears of it now, and sells the unit again.
    server.kill().unwrap();
    server.restart().unwrap();
    let row = insist("order", async || database.order(order_id(1)).await).await.unwrap();
    assert_eq!((row.status, row.units_held), (OrderStatus::Closed, 0));
    must_add_up(&database, 1).await;
}

#[tokio::test]
async fn a_dropped_caller_breaks_no_transaction_and_spoils_no_connection() {
    let server = MariaDb::start().unwrap();
    let (_, database) = orders_on(&server).await;
    database.publish(&definition("s", 10_000, 10_000), &author()).await.unwrap();
    let batch = |n: u64| (0..4).map(|i| reservation("s", n * 4 + i, "u", 1)).collect::<Vec<_>>();
    for n in 0..50 {
        let settle = database.settle(batch(n));
        tokio::select! {
            biased;
            _ = settle => {}
            () = std::future::ready(()) => {}
        }
    }
    let orders = async || database.books(None).await.unwrap()[0].orders;
    until("all that was handed over is carried out", async || orders().await == 200).await;

    let mut callers = Vec::new();
    for n in 50..150 {
        let database = database.clone();
        callers.push(tokio::spawn(async move { database.settle(batch(n)).await }));
        tokio::time::sleep(Duration::from_micros(n * 20)).await;
        // Some have been answered, some are under way, some have not begun.
        callers[(n as usize - 50) / 2].abort();
    }
    for caller in callers {
        if let Ok(settled) = caller.await {
            assert_eq!(settled.unwrap().len(), 4);
        }
    }
    let whole = async || orders().await % 4 == 0;
    assert!(whole().await, "half a batch was written");
    for n in 0..150 {
        database.settle(batch(n)).await.unwrap();
    }
    must_add_up(&database, 600).await;
}
