//! What is put back from a backup: the orders database, which gets what it lacks from the records that the queue keeps (the restore
//! drill), and the queue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::server::{Server, Site};
use crate::{fails_with, sale};

/// Buyers that press at the same time.
const BUYERS_AT_ONCE: u32 = 8;

/// Orders after the backup; `FLOODGATE_DRILL_ORDERS` sets another number.
fn orders_after_the_backup() -> u32 {
    std::env::var("FLOODGATE_DRILL_ORDERS").ok().and_then(|number| number.parse().ok()).unwrap_or(600)
}

/// Sells one unit to each of `buyers`; of each order the buyer, once it was promised with 202.
fn sell(site: &Site, buyers: std::ops::Range<u32>) -> BTreeMap<String, String> {
    let (next, promised) = (AtomicU32::new(buyers.start), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..BUYERS_AT_ONCE {
            scope.spawn(|| {
                loop {
                    let buyer = next.fetch_add(1, Ordering::Relaxed);
                    if buyer >= buyers.end {
                        return;
                    }
                    let user = format!("buyer-{buyer}");
                    let (_, pass, order) = site.pass("s", &user);
                    let answer = site.press("s", &pass, "{}");
                    assert_eq!(answer.status, 202, "{}", answer.body);
                    promised.lock().insert(order, user);
                }
            });
        }
    });
    promised.into_inner()
}

fn wait_for_rest(site: &Site, sold: usize) {
    let figures = || site.admin_call("GET", "/admin/v1/sales/s", "");
    site.wait_for("rest", figures, |a| a.json()["at_rest"] == true && a.json()["sold"] == sold);
}

fn killed(server: Server) {
    drop(server);
}

#[test]
fn a_restored_database_gets_back_what_the_queue_keeps() {
    let later = orders_after_the_backup();
    let earlier = later / 4;
    let site = Site::new(&sale("s", earlier + later + 10, -1));
    let server = site.start();

    let mut promised = sell(&site, 0..earlier);
    wait_for_rest(&site, promised.len());
    let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let before = stock::Timestamp(before).to_string();
    let backup = site.path().join("backup.db");
    let database = rusqlite::Connection::open(site.database()).expect("there");
    database.execute("VACUUM INTO ?1", [backup.to_str().expect("UTF-8")]).expect("copied");
    drop(database);
    // Openings that the backup knows nothing of.
    killed(server);
    killed(site.start());
    let server = site.start();

    promised.extend(sell(&site, earlier..earlier + later));
    wait_for_rest(&site, promised.len());
    killed(server);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", site.database().display()));
    }
    std::fs::copy(&backup, site.database()).expect("copied");

    // A log that is ahead of its row stops the start, with the way out; so does what it has handed over and the database lacks.
    fails_with(&site, &[], 1, &["was put back", "queue accept", "queue reset-offset", "--before"]);
    let said = String::from_utf8_lossy(&site.run(&[]).stderr).into_owned();
    let (_, log) = said.split_once("(log ").expect("its id");
    let accepted = site.run(&["queue", "accept", &log[..16]]);
    let words = String::from_utf8_lossy(&accepted.stdout).into_owned();
    assert!(accepted.status.success() && words.contains("queue reset-offset"), "{words}");
    fails_with(&site, &[], 1, &["lacks order", "queue reset-offset", "--before"]);
    let reset = site.run(&["queue", "reset-offset", "floodgate-orders", "order-worker", "--before", &before]);
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    let words = String::from_utf8_lossy(&reset.stdout).into_owned();
    assert!(
        words.contains("Payments") && words.contains("payment.check_url"),
        "what the log does not give back: {words}"
    );

    let server = site.start();
    wait_for_rest(&site, promised.len());
    let database = rusqlite::Connection::open(site.database()).expect("there");
    for (order, user) in &promised {
        let row = database.query_row(
            "SELECT user_id, status, units_held FROM floodgate_orders WHERE order_id = ?1",
            [order],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u32>(2)?)),
        );
        assert_eq!(row, Ok((user.clone(), "unpaid".to_owned(), 1)), "order {order}");
    }
    let rows: u32 =
        database.query_row("SELECT count(*) FROM floodgate_orders", [], |row| row.get(0)).expect("counted");
    assert_eq!(rows, earlier + later, "a row each");
    let audit = site.run(&["audit"]);
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    // What is left is sold as if nothing had happened.
    assert_eq!(sell(&site, earlier + later..earlier + later + 10).len(), 10);
    wait_for_rest(&site, promised.len() + 10);
    println!("restored: {later} orders after the backup, {} promised, each with its row", promised.len());
    drop(server);
}

#[test]
fn a_copy_of_a_log_is_not_opened_until_it_is_accepted() {
    let site = Site::new(&sale("s", 4, -1));
    let (queue, aside, copy) =
        (site.path().join("data/queue"), site.path().join("newest"), site.path().join("copy"));
    let visit = || {
        let server = site.start();
        server.signal("-KILL");
        server.wait();
    };
    visit();
    let copied = std::process::Command::new("cp").arg("-a").args([&queue, &copy]).status().expect("cp");
    assert!(copied.success());
    visit();
    std::fs::rename(&queue, &aside).expect("moved");
    std::fs::rename(&copy, &queue).expect("moved");
    fails_with(&site, &[], 1, &["is a copy", "Put the newest log back", "queue accept"]);

    let said = String::from_utf8_lossy(&site.run(&[]).stderr).into_owned();
    let (_, log) = said.split_once("(log ").expect("its id");
    let log = &log[..16];
    fails_with(&site, &["queue", "accept", "1"], 2, &[log]);
    let accepted = site.run(&["queue", "accept", log]);
    let words = String::from_utf8_lossy(&accepted.stdout).into_owned();
    assert!(accepted.status.success() && words.contains("lost"), "{words}");
    assert!(
        String::from_utf8_lossy(&site.run(&["queue", "accept", log]).stdout).contains("nothing is changed")
    );
    let server = site.start();
    let running = site.run(&["queue", "accept", log]);
    assert!(String::from_utf8_lossy(&running.stdout).contains("nothing is changed"), "it fits");
    drop(server);

    // The other one is the copy from now on.
    std::fs::rename(&queue, &copy).expect("moved");
    std::fs::rename(&aside, &queue).expect("moved");
    fails_with(&site, &[], 1, &["is a copy"]);
}
