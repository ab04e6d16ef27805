//! Rows a second into MariaDB, by the adapter and by the whole drain, against the same rows inserted barely:
//! `cargo bench -p order-worker --features mysql --bench mysql [-- settle|drain|paced]`.
//!
//! Bare is one multi-row INSERT a batch into the same table, committed by itself: nothing counted, nothing locked, nothing told apart. Beside it, for
//! what more writers cost, the least that still sells: a conditional update of the sale's `sold` before the INSERT, and COMMIT. All take
//! turns on one server, each on an empty table, and the ratio is of the medians: ratios travel, absolutes do not.
#![allow(clippy::unwrap_used, reason = "in a bench a panic is the report")]

mod crowd;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crowd::{NO_LIMIT, START_MS, author, definition, reservation, sale};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use order_worker::Database;
use stock::{Reservation, SaleId, Timestamp};
use testbed::MariaDb;

/// One turn; each contestant takes [`TURNS`] of them.
const TURN: Duration = Duration::from_millis(600);
const TURNS: usize = 5;
/// Orders that wait when a drain without limit begins.
const WAITING: u64 = 60_000;
/// How long a drain under a limit is looked at.
const PACED: Duration = Duration::from_secs(12);

fn main() {
    let asked = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let is_asked = |part: &str| asked.as_deref().is_none_or(|asked| asked == part);
    let server =
        MariaDb::start_with(&["--innodb-buffer-pool-size=512M", "--innodb-log-file-size=512M"]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("MariaDB, innodb_flush_log_at_trx_commit = 1; medians of {TURNS} turns");
    runtime.block_on(async {
        if is_asked("settle") {
            settle(&server).await;
        }
        if is_asked("drain") {
            drain(&server).await;
        }
        if is_asked("paced") {
            paced(&server).await;
        }
    });
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Bare,
    /// With the stock taken.
    Least,
    Adapter,
}

async fn settle(server: &MariaDb) {
    println!("\nsettle; CPU: microseconds a row, the client's + the server's");
    println!(
        "{:>8} {:>6} {:>11} {:>11} {:>11} {:>8} {:>8} {:>13} {:>13} {:>13}",
        "writers",
        "batch",
        "bare/s",
        "least/s",
        "rows/s",
        "to bare",
        "to least",
        "bare CPU",
        "least CPU",
        "CPU"
    );
    for writers in [1, 4] {
        for batch in [1, 100, 256, 500] {
            let contestants = [By::Bare, By::Least, By::Adapter];
            let mut turns = [vec![], vec![], vec![]];
            for _ in 0..TURNS {
                for (turns, by) in turns.iter_mut().zip(contestants) {
                    turns.push(turn(server, writers, batch, by).await);
                }
            }
            let rates = turns.each_ref().map(|turns| median(turns.iter().map(Turn::rate)));
            let [bare, least, adapter] = rates;
            let [bare_cpu, least_cpu, cpu] = turns.each_ref().map(|turns| {
                let of = |cpu: fn(&Turn) -> Duration| {
                    median(turns.iter().map(|turn| cpu(turn).as_secs_f64() * 1e6 / turn.rows as f64))
                };
                format!("{:.1} + {:.1}", of(|turn| turn.client), of(|turn| turn.server))
            });
            println!(
                "{writers:>8} {batch:>6} {bare:>11.0} {least:>11.0} {adapter:>11.0} {:>8.2} {:>8.2} {bare_cpu:>13} {least_cpu:>13} {cpu:>13}",
                adapter / bare,
                adapter / least,
            );
        }
    }
}

async fn drain(server: &MariaDb) {
    println!(
        "\ndrain without limit (disk log → settle → offset → ledger), {WAITING} orders waiting, one log"
    );
    println!("{:>6} {:>11} {:>11} {:>8}", "batch", "bare/s", "orders/s", "to bare");
    for batch in [256, 500] {
        let (mut bare, mut drained) = (vec![], vec![]);
        for _ in 0..TURNS {
            bare.push(turn(server, 1, batch, By::Bare).await.rate());
            let orders = Orders::new(server).await;
            let all = Duration::from_secs(20);
            let size = u32::try_from(batch).unwrap();
            drained.push(crowd::drain(orders.database.clone(), NO_LIMIT, size, WAITING, all).await.rate);
        }
        let (bare, drained) = (median(bare), median(drained));
        println!("{batch:>6} {bare:>11.0} {drained:>11.0} {:>8.2}", drained / bare);
    }
}

/// Rows count when they are committed, which the pace does not decide: it decides when a batch begins. So a second may hold more than the
/// limit and a batch, and at most a tenth more than the limit is what the pace allows to be under way.
async fn paced(server: &MariaDb) {
    println!("\ndrain under a limit, {PACED:?} from the start, the warm-up in it");
    println!(
        "{:>8} {:>11} {:>9} {:>20} {:>16} {:>16}",
        "limit", "orders/s", "off", "most in one second", "limit + a batch", "limit + a tenth"
    );
    for limit in [2_000, 5_000] {
        let orders = Orders::new(server).await;
        let waiting = u64::from(limit) * (PACED.as_secs() + 2);
        let drained = crowd::drain(orders.database.clone(), limit, 256, waiting, PACED).await;
        println!(
            "{limit:>8} {:>11.0} {:>8.2}% {:>20} {:>16} {:>16}",
            drained.rate,
            (drained.rate / f64::from(limit) - 1.0) * 100.0,
            drained.most_in_a_second,
            limit as usize + drained.batch_max,
            limit + limit / 10,
        );
    }
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// An empty database with the sale published; gone when dropped.
struct Orders<'s> {
    server: &'s MariaDb,
    name: String,
    url: String,
    database: Database,
}

impl<'s> Orders<'s> {
    async fn new(server: &'s MariaDb) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("orders_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let url = server.url(&name).unwrap();
        Database::migrate_mysql(&url).await.unwrap();
        let database = Database::open_mysql(&url).await.unwrap();
        database.publish(&definition(), &author()).await.unwrap();
        Self { server, name, url, database }
    }
}

impl Drop for Orders<'_> {
    fn drop(&mut self) {
        self.server.sql("", &format!("DROP DATABASE {}", self.name)).unwrap();
    }
}

struct Turn {
    rows: u64,
    took: Duration,
    client: Duration,
    server: Duration,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.rows as f64 / self.took.as_secs_f64()
    }
}

async fn turn(server: &MariaDb, writers: u64, batch: u64, by: By) -> Turn {
    let orders = Orders::new(server).await;
    let (database, sale) = (&orders.database, sale());
    // Connections are there before it is timed.
    let warm_up = |n: u64| database.settle(vec![reservation(&sale, u64::MAX - n)]);
    let _ = tokio::join!(warm_up(0), warm_up(1), warm_up(2), warm_up(3));
    let mut connections = Vec::new();
    for _ in 0..writers {
        connections.push(connect(&orders.url).await);
    }
    let next = AtomicU64::new(0);
    let (client, on_server) = (own_cpu(), server.cpu());
    let begun = Instant::now();
    let write = async |mut connection: Conn| {
        while begun.elapsed() < TURN {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            let batch: Arc<[Reservation]> = (first..first + batch).map(|n| reservation(&sale, n)).collect();
            match by {
                By::Adapter => _ = database.settle(batch).await.unwrap(),
                By::Bare => connection.query_drop(insert(&batch)).await.unwrap(),
                By::Least => take_and_insert(&mut connection, &batch, &sale).await,
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
    Turn { rows: next.into_inner(), took, client, server: on_server }
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

fn insert(orders: &[Reservation]) -> String {
    let now = Timestamp(START_MS).to_string();
    let mut insert = String::from(
        "INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason,
                                       metadata, created_at, updated_at, pay_by, version)
         VALUES ",
    );
    for (index, order) in orders.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(
            insert,
            "{comma}('{}','{}','{}',{},{},206640,'CNY','unpaid',NULL,NULL,'{now}','{now}','{now}',1)",
            order.order_id, order.sale, order.user, order.quantity, order.quantity
        )
        .unwrap();
    }
    insert
}

/// Four round trips, as anyone would write it.
async fn take_and_insert(connection: &mut Conn, orders: &[Reservation], sale: &SaleId) {
    let units = orders.len();
    connection.query_drop("START TRANSACTION").await.unwrap();
    let stock = format!(
        "UPDATE floodgate_sales SET sold = sold + {units} WHERE sale_id = '{sale}' AND sold + {units} <= total"
    );
    connection.query_drop(stock).await.unwrap();
    assert_eq!(connection.affected_rows(), 1);
    connection.query_drop(insert(orders)).await.unwrap();
    connection.query_drop("COMMIT").await.unwrap();
}
