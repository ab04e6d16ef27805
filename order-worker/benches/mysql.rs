//! Rows a second into MariaDB, settled by the adapter, against the same rows inserted barely: `cargo bench -p order-worker --features mysql --bench mysql`.
//!
//! The bare loop is what nobody could do without and still sell: one conditional stock update, one multi-row INSERT into the same table, COMMIT; no
//! duplicates told, no limit counted, no order rejected. Both take turns on one server, so that ratios travel; absolutes do not.
#![allow(clippy::unwrap_used, reason = "in a bench a panic is the report")]

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use order_worker::Database;
use stock::{OrderId, Reservation, SaleDefinition, SaleId, Timestamp};
use testbed::MariaDb;

const START_MS: u64 = 1_794_398_400_000;
/// One turn; each of both takes [`TURNS`] of them.
const TURN: Duration = Duration::from_millis(1_500);
const TURNS: u32 = 3;

fn main() {
    let server =
        MariaDb::start_with(&["--innodb-buffer-pool-size=512M", "--innodb-log-file-size=512M"]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("MariaDB, innodb_flush_log_at_trx_commit = 1; {TURNS} turns of {TURN:?} each");
    println!("{:>8} {:>7} {:>13} {:>13} {:>7}", "writers", "batch", "bare rows/s", "rows/s", "ratio");
    runtime.block_on(async {
        for writers in [1, 4] {
            for batch in [1, 100, 256, 500] {
                // An empty table each: both would slow down as it grows.
                let (mut bare, mut settled) = (0.0, 0.0);
                for turn in 0..TURNS {
                    bare += rows_a_second(
                        &server,
                        &format!("bare_{writers}_{batch}_{turn}"),
                        writers,
                        batch,
                        false,
                    )
                    .await;
                    settled += rows_a_second(
                        &server,
                        &format!("settle_{writers}_{batch}_{turn}"),
                        writers,
                        batch,
                        true,
                    )
                    .await;
                }
                let (bare, settled) = (bare / f64::from(TURNS), settled / f64::from(TURNS));
                println!("{writers:>8} {batch:>7} {bare:>13.0} {settled:>13.0} {:>7.2}", settled / bare);
            }
        }
    });
}

async fn rows_a_second(server: &MariaDb, name: &str, writers: u64, batch: u64, settle: bool) -> f64 {
    let url = server.url(name).unwrap();
    Database::migrate_mysql(&url).await.unwrap();
    let database = Database::open_mysql(&url).await.unwrap();
    database.publish(&definition()).await.unwrap();
    // Connections are there before the first turn is timed.
    for n in 0..writers {
        database.settle(vec![reservation(u64::MAX - n)]).await.unwrap();
    }
    let next = AtomicU64::new(0);
    let rows = AtomicU64::new(0);
    let begun = Instant::now();
    let write = async || {
        let mut connection = if settle { None } else { Some(connect(&url).await) };
        while begun.elapsed() < TURN {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            let orders: Arc<[Reservation]> = (first..first + batch).map(reservation).collect();
            match &mut connection {
                None => _ = database.settle(orders).await.unwrap(),
                Some(connection) => insert(connection, &orders).await,
            }
            rows.fetch_add(batch, Ordering::Relaxed);
        }
    };
    match writers {
        1 => write().await,
        _ => _ = tokio::join!(write(), write(), write(), write()),
    }
    let rate = rows.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    server.sql("", &format!("DROP DATABASE {name}")).unwrap();
    rate
}

async fn connect(url: &str) -> Conn {
    let opts = OptsBuilder::from_opts(mysql_async::Opts::from_url(url).unwrap()).prefer_socket(false);
    let mut connection = Conn::new(opts).await.unwrap();
    connection.query_drop("SET NAMES utf8mb4").await.unwrap();
    connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await.unwrap();
    connection
}

/// Four round trips, as anyone would write it.
async fn insert(connection: &mut Conn, orders: &[Reservation]) {
    let now = Timestamp(START_MS).to_string();
    let mut rows = String::new();
    for order in orders {
        let comma = if rows.is_empty() { "" } else { "," };
        write!(
            rows,
            "{comma}('{}','{}','{}',{},{},206640,'CNY','unpaid',NULL,NULL,'{now}','{now}','{now}',1)",
            order.order_id, order.sale, order.user, order.quantity, order.quantity
        )
        .unwrap();
    }
    let units = orders.len();
    connection.query_drop("START TRANSACTION").await.unwrap();
    let stock = format!(
        "UPDATE floodgate_sales SET sold = sold + {units} WHERE sale_id = 'bench' AND sold + {units} <= total"
    );
    connection.query_drop(stock).await.unwrap();
    assert_eq!(connection.affected_rows(), 1);
    let insert = format!(
        "INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason,
                                       metadata, created_at, updated_at, pay_by, version)
         VALUES {rows}"
    );
    connection.query_drop(insert).await.unwrap();
    connection.query_drop("COMMIT").await.unwrap();
}

fn definition() -> SaleDefinition {
    SaleDefinition {
        id: sale(),
        item_id: String::new(),
        title: String::new(),
        description: String::new(),
        currency: "CNY".into(),
        price: 206_640,
        list_price: 0,
        total: u32::MAX,
        per_user_limit: 1,
        passes_per_unit: 0,
        pay_within_s: 900,
        starts_at: Timestamp(START_MS - 1),
        ends_at: Timestamp(START_MS + 3_600_000),
        rehearsal: false,
        labels: [].into(),
    }
}

fn sale() -> SaleId {
    "bench".parse().unwrap()
}

/// Orders as a crowd makes them: ids close to time order, users at random.
fn reservation(n: u64) -> Reservation {
    let scattered = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Reservation {
        order_id: OrderId::new(START_MS + n / 64, &sale(), scattered),
        sale: sale(),
        user: format!("user-{scattered:016x}").parse().unwrap(),
        quantity: 1,
        metadata: None,
        reserved_at_ms: START_MS,
    }
}
