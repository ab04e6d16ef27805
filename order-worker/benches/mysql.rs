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
const TURN: Duration = Duration::from_millis(1_000);
const TURNS: u32 = 3;

fn main() {
    let server =
        MariaDb::start_with(&["--innodb-buffer-pool-size=512M", "--innodb-log-file-size=512M"]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("MariaDB, innodb_flush_log_at_trx_commit = 1; {TURNS} turns of {TURN:?} each");
    println!(
        "CPU: microseconds a row, the client's and the server's; a busy machine changes them less than the rates"
    );
    println!(
        "{:>8} {:>7} {:>13} {:>13} {:>7} {:>14} {:>14}",
        "writers", "batch", "bare rows/s", "rows/s", "ratio", "bare CPU", "CPU"
    );
    runtime.block_on(async {
        for writers in [1, 4] {
            for batch in [1, 100, 256, 500] {
                // An empty table each: both would slow down as it grows.
                let (mut bare, mut settled) = (Measured::default(), Measured::default());
                for turn in 0..TURNS {
                    let name = format!("orders_{writers}_{batch}_{turn}");
                    bare.add(measure(&server, &name, writers, batch, false).await);
                    settled.add(measure(&server, &name, writers, batch, true).await);
                }
                let ratio = settled.rate() / bare.rate();
                println!(
                    "{writers:>8} {batch:>7} {:>13.0} {:>13.0} {ratio:>7.2} {:>14} {:>14}",
                    bare.rate(),
                    settled.rate(),
                    bare.cpu(),
                    settled.cpu(),
                );
            }
        }
    });
}

#[derive(Default)]
struct Measured {
    rows: u64,
    took: Duration,
    client: Duration,
    server: Duration,
}

impl Measured {
    fn add(&mut self, turn: Self) {
        self.rows += turn.rows;
        self.took += turn.took;
        self.client += turn.client;
        self.server += turn.server;
    }

    fn rate(&self) -> f64 {
        self.rows as f64 / self.took.as_secs_f64()
    }

    fn cpu(&self) -> String {
        let a_row = |cpu: Duration| cpu.as_secs_f64() * 1e6 / self.rows as f64;
        format!("{:.1} + {:.1}", a_row(self.client), a_row(self.server))
    }
}

/// One turn on an empty table: both would slow down as it grows.
async fn measure(server: &MariaDb, name: &str, writers: u64, batch: u64, settle: bool) -> Measured {
    let url = server.url(name).unwrap();
    Database::migrate_mysql(&url).await.unwrap();
    let database = Database::open_mysql(&url).await.unwrap();
    database.publish(&definition()).await.unwrap();
    // Connections are there before it is timed.
    for n in 0..writers {
        database.settle(vec![reservation(u64::MAX - n)]).await.unwrap();
    }
    let mut connections = Vec::new();
    for _ in 0..writers {
        connections.push(connect(&url).await);
    }
    let next = AtomicU64::new(0);
    let (client, on_server) = (own_cpu(), server.cpu());
    let begun = Instant::now();
    let write = async |mut connection: Conn| {
        while begun.elapsed() < TURN {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            let orders: Arc<[Reservation]> = (first..first + batch).map(reservation).collect();
            if settle {
                database.settle(orders).await.unwrap();
            } else {
                insert(&mut connection, &orders).await;
            }
        }
    };
    let mut connections = connections.into_iter();
    let mut writer = || connections.next().map(&write);
    match (writer(), writer(), writer(), writer()) {
        (Some(one), None, ..) => one.await,
        (Some(one), Some(two), Some(three), Some(four)) => _ = tokio::join!(one, two, three, four),
        _ => unreachable!("one writer or four"),
    }
    let took = begun.elapsed();
    let (client, on_server) = (own_cpu() - client, server.cpu() - on_server);
    server.sql("", &format!("DROP DATABASE {name}")).unwrap();
    Measured { rows: next.into_inner(), took, client, server: on_server }
}

/// Processor time of this process, to 10 ms.
fn own_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
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
