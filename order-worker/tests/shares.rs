//! Several workers on one database, in paused time: each gets an equal part, together never more than the limit, whoever comes,
//! goes, dies or freezes.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use order_worker::database::{Database, SharedConnection, Work};
use order_worker::drain::rate_shares;
use order_worker::{DrainConfig, Pace};
use parking_lot::Mutex;
use stock::{Now, Owner};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const LIMIT: u32 = 3_000;

/// When, by whom, how many.
type Written = Arc<Mutex<Vec<(Duration, u64, usize)>>>;

struct World {
    database: Database,
    begun: Instant,
    written: Written,
    lives: AtomicU64,
}

struct Process {
    log: u64,
    pace: Arc<Pace>,
    shutdown: watch::Sender<bool>,
    sharing: JoinHandle<()>,
    draining: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let begun = Instant::now();
        let now: Now = Arc::new(move || 1_794_398_400_000 + begun.elapsed().as_millis() as u64);
        let connection = SharedConnection::open(":memory:").unwrap();
        Self {
            database: Database::over_connection(connection, now).unwrap(),
            begun,
            written: Written::default(),
            lives: AtomicU64::new(1_000),
        }
    }

    /// A worker of one log with a backlog that never ends. It has got the log's group: what drained it before is dead.
    fn start(&self, worker: u64) -> Process {
        let config = DrainConfig { orders_per_second_max: LIMIT, ..DrainConfig::default() };
        let pace = Arc::new(Pace::new(&config));
        let (shutdown, down) = watch::channel(false);
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let sharing =
            tokio::spawn(rate_shares::run(self.database.clone(), pace.clone(), (Work::Drain, life), down));
        let draining = tokio::spawn({
            let (pace, written, begun) = (pace.clone(), self.written.clone(), self.begun);
            async move {
                let _place = pace.enter(Owner(worker));
                loop {
                    let orders = pace.batch_max();
                    pace.take(orders).await;
                    let took = Duration::from_millis(3 + worker);
                    sleep(took).await;
                    pace.committed(took, orders);
                    written.lock().push((begun.elapsed(), worker, orders));
                }
            }
        });
        Process { log: worker, pace, shutdown, sharing, draining }
    }

    /// Orders a second of one worker in whole seconds since the beginning.
    fn rate(&self, worker: u64, from: u64, to: u64) -> f64 {
        let written = self.written.lock();
        let of_worker = written.iter().filter(|(_, by, _)| *by == worker);
        let orders: usize =
            of_worker.filter(|(at, ..)| (from..to).contains(&at.as_secs())).map(|w| w.2).sum();
        orders as f64 / (to - from) as f64
    }

    fn most_in_a_second(&self) -> usize {
        let written = self.written.lock();
        let window = |from: usize| -> usize {
            let end = written[from].0 + Duration::from_secs(1);
            written[from..].iter().take_while(|(at, ..)| *at < end).map(|(.., orders)| orders).sum()
        };
        (0..written.len()).map(window).max().unwrap_or(0)
    }
}

impl Process {
    /// As `kill -9` does.
    fn die(&self) {
        self.sharing.abort();
        self.draining.abort();
    }

    async fn stop(self) {
        self.shutdown.send_replace(true);
        self.sharing.await.unwrap();
        self.draining.abort();
    }
}

fn near(rate: f64, expected: u32) -> bool {
    (rate / f64::from(expected) - 1.0).abs() < 0.03
}

#[tokio::test(start_paused = true)]
async fn workers_share_equally_whoever_comes_and_goes() {
    let world = World::new();
    let first = world.start(1);
    sleep(Duration::from_secs(10)).await;
    let second = world.start(2);
    sleep(Duration::from_secs(10)).await;
    let third = world.start(3);
    sleep(Duration::from_secs(10)).await;
    second.stop().await;
    sleep(Duration::from_secs(10)).await;
    third.die();
    sleep(Duration::from_secs(20)).await;
    for (worker, from, to, expected) in [
        (1, 2, 10, LIMIT),
        (1, 14, 20, LIMIT / 2),
        (2, 14, 20, LIMIT / 2),
        (1, 24, 30, LIMIT / 3),
        (2, 24, 30, LIMIT / 3),
        (3, 24, 30, LIMIT / 3),
        (1, 34, 40, LIMIT / 2),
        (3, 34, 40, LIMIT / 2),
        // Its lease is over at the latest at 45 s; a second later the first one has everything.
        (1, 48, 60, LIMIT),
    ] {
        let rate = world.rate(worker, from, to);
        assert!(near(rate, expected), "{rate} orders a second of worker {worker} from {from} s to {to} s");
    }
    assert!(world.rate(1, 40, 44) < f64::from(LIMIT) * 0.55, "a dead worker's share is not free at once");
    let most = world.most_in_a_second();
    assert!(most <= (LIMIT + LIMIT / 10) as usize, "{most} in one second, all workers together");
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_shares_in_use_never_exceed_the_whole() {
    let world = World::new();
    let mut random = 7u64;
    let mut running: Vec<Process> = Vec::new();
    for step in 0..600u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match random >> 60 {
            // A log that is free: of a dead worker, of one that has left, or a new one.
            0..=2 if running.len() < 5 => {
                let free = |log: &u64| running.iter().all(|process| process.log != *log);
                let log = (0..8).map(|n| (step + n) % 8).find(free).unwrap();
                running.push(world.start(log));
            }
            3 | 4 if !running.is_empty() => running.swap_remove(step as usize % running.len()).die(),
            5 if running.len() > 1 => running.swap_remove(0).stop().await,
            _ => {}
        }
        // A dead worker's pace is gone with it, and what it may still have had in use with its lease.
        let held: u32 = running.iter().map(|process| process.pace.share_ppm()).sum();
        assert!(held <= 1_000_000, "{held} millionths are in use in step {step}");
        sleep(Duration::from_millis(50 + (random >> 32) % 400)).await;
    }
    let most = world.most_in_a_second();
    assert!(most <= (LIMIT + LIMIT / 10) as usize, "{most} in one second, all workers together");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hears_nothing_stops_before_its_share_is_given_away() {
    let world = World::new();
    let frozen = world.start(1);
    sleep(Duration::from_secs(5)).await;
    // Its drain goes on, its beats do not.
    frozen.sharing.abort();
    let other = world.start(2);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(frozen.pace.share_ppm(), 0);
    assert_eq!(other.pace.share_ppm(), 1_000_000);
    assert!(world.rate(1, 11, 15) < 1.0);
    let most = world.most_in_a_second();
    assert!(most <= (LIMIT + LIMIT / 10) as usize, "{most} in one second, both together");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_killed_twice_a_second_drains_in_each_of_its_lives() {
    let world = World::new();
    let mut written_before = 0;
    for life in 1..=20 {
        let worker = world.start(1);
        sleep(Duration::from_millis(300)).await;
        worker.die();
        let written = world.written.lock().len();
        assert!(written > written_before, "nothing became a row in life {life}");
        written_before = written;
        sleep(Duration::from_millis(200)).await;
    }
    let most = world.most_in_a_second();
    assert!(most <= (LIMIT + LIMIT / 10) as usize, "{most} in one second, all lives together");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_killed_again_and_again_keeps_its_part_beside_another() {
    let world = World::new();
    let other = world.start(1);
    sleep(Duration::from_secs(3)).await;
    let killed = world.start(2);
    sleep(Duration::from_millis(100)).await;
    killed.die();
    // The other one has gone down for it meanwhile.
    sleep(Duration::from_millis(1_500)).await;
    for _ in 0..20 {
        let killed = world.start(2);
        sleep(Duration::from_millis(400)).await;
        let (of_killed, of_other) = (killed.pace.share_ppm(), other.pace.share_ppm());
        assert_eq!((of_killed, of_other), (500_000, 500_000), "of the killed and of the other one");
        killed.die();
        sleep(Duration::from_millis(100)).await;
    }
    // Its lease has never ended, yet the limit holds.
    let most = world.most_in_a_second();
    assert!(most <= (LIMIT + LIMIT / 10) as usize, "{most} in one second, all lives together");
}

#[tokio::test(start_paused = true)]
async fn two_copies_of_a_log_share_like_two_logs() {
    let world = World::new();
    let one = world.start(1);
    sleep(Duration::from_secs(3)).await;
    let copy = world.start(1);
    sleep(Duration::from_secs(10)).await;
    assert_eq!((one.pace.share_ppm(), copy.pace.share_ppm()), (500_000, 500_000));
    sleep(Duration::from_secs(10)).await;
    assert_eq!((one.pace.share_ppm(), copy.pace.share_ppm()), (500_000, 500_000), "for good");
}
