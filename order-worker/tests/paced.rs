//! The pace from queue to row, in paused time: log, drain and database in one thread, to the millisecond.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use order_worker::database::{Database, SharedConnection};
use order_worker::{
    DRAIN_GROUP, DrainConfig, DrainStats, Member, MemberParts, MemberRow, MembershipMetrics, ORDERS_TOPIC,
    OwnLog, Pace, Timeouts, Worker, WorkerMetrics, WorkerParts,
};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, Driver, Faults, NewRecord, Queue, SimulatedDisk, StartAt, Storage, Topic};
use stock::{EmbeddedFlag, EmbeddedLedger, Flag, Ledger, Now, Owner, Reservation, Stock, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use world::{START_MS, author, definition, order_id, sale_id};

/// How long a standing backlog is drained.
const SECONDS: u64 = 15;

#[tokio::test(start_paused = true)]
async fn the_average_is_within_2_percent_and_a_second_within_one_batch() {
    for (limit, batch_size_max) in [(2_000, 256), (1_333, 256), (5_000, 250), (90, 9)] {
        let written = drain(limit, batch_size_max).await;
        let orders: u32 = written.iter().map(|(_, orders)| orders).sum();
        let (first, last) = (written[0].0, written[written.len() - 1].0);
        let rate = f64::from(orders) * 1_000.0 / (last - first) as f64;
        let off = rate / f64::from(limit) - 1.0;
        assert!(off.abs() < 0.02, "{rate} orders a second at a limit of {limit}");
        let window = |from: usize| -> u32 {
            let end = written[from].0 + 1_000;
            written[from..].iter().take_while(|(at, _)| *at < end).map(|(_, orders)| orders).sum()
        };
        let most = (0..written.len()).map(window).max().unwrap();
        assert!(most <= limit + batch_size_max, "{most} in one second at a limit of {limit}");
    }
}

/// When (by the database's clock) how many rows were written.
async fn drain(limit: u32, batch_size_max: u32) -> Vec<(u64, u32)> {
    let begun = Instant::now();
    let now: Now = Arc::new(move || START_MS + begun.elapsed().as_millis() as u64);
    let connection = SharedConnection::open(":memory:").unwrap();
    let database = Database::over_connection(connection.clone(), now.clone()).unwrap();
    database.publish(&definition("s", 1_000_000, 1), &author()).await.unwrap();
    let mut registry = Registry::default();
    let mut options = DiskOptions::new("queue", now.clone());
    options.storage = Storage::Simulated(SimulatedDisk::new(1, Faults::default()));
    options.driver = Driver::Driven;
    options.random = Arc::new(|| 7);
    let queue = Queue::open_disk(options, &mut registry).unwrap();
    let committers = tokio::spawn(queue.run());
    let topic = queue.topic(ORDERS_TOPIC).await.unwrap();
    let ledger = Ledger::Embedded(EmbeddedLedger::new(now));
    let stock = Arc::new(Stock::new(ledger, Flag::Embedded(EmbeddedFlag::new(1)), &mut registry));
    promise(&topic, u64::from(limit) * SECONDS).await;
    let own = OwnLog {
        topic: topic.clone(),
        owner: Owner(queue.instance()),
        opening: queue.tie_to(1, 1).await.unwrap(),
        place: "here".into(),
        epoch_gate: Arc::default(),
    };
    let member = MemberParts {
        database: database.clone(),
        stock: stock.clone(),
        row: MemberRow::of(own.owner),
        own: Some(own),
        logs: Arc::new(|_| Box::pin(async { None })),
        outliving: false,
        metrics: MembershipMetrics::new(&mut registry),
    };
    Member::new(member).start().await.unwrap();
    let (shutdown, down) = watch::channel(false);
    let metrics = WorkerMetrics::new(&mut registry);
    let parts = WorkerParts {
        database,
        stock,
        group: topic.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap(),
        log: Owner(queue.instance()),
        pace: Arc::new(Pace::new(&DrainConfig {
            orders_per_second_max: limit,
            batch_size_max,
            adaptive: true,
        })),
        timeouts: Timeouts::new(Arc::new(|| None), 0, &metrics),
        metrics,
        stats: Arc::new(DrainStats::new(limit)),
    };
    let worker = tokio::spawn(Worker::new(parts, down).run());
    tokio::time::sleep(Duration::from_secs(SECONDS * 2)).await;
    assert_eq!(topic.lag(DRAIN_GROUP).await.unwrap().records, 0);
    shutdown.send_replace(true);
    worker.await.unwrap().unwrap();
    queue.shutdown().await;
    committers.await.unwrap();
    connection.with(|c| {
        let by_time =
            "SELECT created_at, count(*) FROM floodgate_orders GROUP BY created_at ORDER BY created_at";
        let mut statement = c.prepare(by_time).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).unwrap();
        rows.map(|row| row.map(|(at, orders)| (at.parse::<Timestamp>().unwrap().0, orders)).unwrap())
            .collect()
    })
}

async fn promise(topic: &Topic, orders: u64) {
    for n in 0..orders {
        let reservation = Reservation {
            order_id: order_id(n),
            sale: sale_id("s"),
            user: format!("u{n}").parse().unwrap(),
            quantity: 1,
            metadata: None,
            reserved_at_ms: START_MS,
            sale_version: None,
        };
        let payload = reservation.encode().unwrap();
        let permit = loop {
            match topic.try_permit(payload.len()) {
                Err(refused) if refused.is_retryable() => tokio::time::sleep(Duration::from_millis(1)).await,
                permit => break permit.unwrap(),
            }
        };
        let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload: &payload };
        let append = topic.append(permit, record);
        if n + 1 == orders {
            append.await.unwrap();
        }
    }
}
