//! Log and orders database belong together: nobody drains a log into another database, and a copy of a log or an older state of the
//! database is not opened.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use order_worker::membership::operator::{begin_rebuild, forget_instance, status};
use order_worker::membership::tie::{Misfit, TieError, accept, tie};
use order_worker::{
    DRAIN_GROUP, DrainConfig, LogBacklogs, ORDERS_TOPIC, OpenLog, SourceState, Sources, SourcesParts,
    Timeouts,
};
use prometheus_client::registry::Registry;
use queue::{DiskOptions, LogAddress, NewRecord, Opening, Queue, QueueError, StartAt};
use stock::{DeploymentId, OrderStatus, Owner, SaleId};
use tokio::sync::watch;
use world::process::Process;
use world::{World, author, crash, order_id};

/// Longest wait on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

fn sources(world: &World, directory: &Path, stopping: watch::Receiver<bool>) -> Arc<Sources> {
    let parts = SourcesParts {
        logs: vec![LogAddress::Disk(directory.join("queue"))],
        now: world.now(),
        database: world.database.clone(),
        stock: world.stock.clone(),
        drain: DrainConfig::default(),
        timeouts: Timeouts::new(Arc::new(|| None), 0, &world.metrics),
        metrics: world.metrics.clone(),
        backlogs: LogBacklogs::default(),
        life: 1,
    };
    Arc::new(Sources::new(parts, stopping))
}

fn state(sources: &Sources) -> SourceState {
    sources.report().remove(0).state
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let come = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Does `body` while a worker drains.
async fn beside(sources: &Arc<Sources>, body: impl Future<Output = ()>) {
    tokio::select! {
        ended = sources.clone().drain_all() => panic!("the worker ended: {ended:?}"),
        () = body => {}
    }
}

/// A gateway with three promises in its log.
async fn gateway(directory: &Path) -> (Process, SaleId) {
    let world = World::new();
    let sale = world.publish("s", 10, 10).await;
    let process = Process::start(world, directory).await;
    for n in 0..3 {
        process.promise(&sale, n, "u", 1).await.unwrap();
    }
    (process, sale)
}

async fn lag(process: &Process) -> u64 {
    match process.topic.lag(DRAIN_GROUP).await {
        Ok(lag) => lag.records,
        Err(QueueError::UnknownGroup { .. }) => 3,
        Err(error) => panic!("{error}"),
    }
}

async fn are_unpaid(process: &Process) {
    for n in 0..3 {
        assert_eq!(process.status(n).await, Some((OrderStatus::Unpaid, None)), "order {n}");
    }
}

#[tokio::test]
async fn a_worker_of_another_database_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (process, _) = gateway(directory.path()).await;
    let other = World::new();
    // Of the same shop: nothing in the record tells them apart.
    other.publish("s", 10, 10).await;
    other.database.deployment(DeploymentId(2)).await.unwrap();
    let (stop, stopping) = watch::channel(false);
    let wrong = sources(&other, directory.path(), stopping.clone());
    beside(&wrong, async {
        let decided = async || matches!(state(&wrong), SourceState::Refused(_)) || lag(&process).await == 0;
        until("a verdict", decided).await;
        assert_eq!(lag(&process).await, 3, "promises became rows of another database");
        for n in 0..3 {
            assert_eq!(other.database.order(order_id(n)).await.unwrap(), None);
        }
        assert!((other.metric("floodgate_drain_refused_logs") - 1.0).abs() < 0.1);

        // Nobody holds the group: the right one drains at once.
        let right = sources(&process.world, directory.path(), stopping);
        beside(&right, until("a drained log", async || lag(&process).await == 0)).await;
        are_unpaid(&process).await;
    })
    .await;
    stop.send_replace(true);
    process.end().await;
}

/// A copy of the database knows the log as it was, until the log is opened the next time.
#[tokio::test]
async fn a_worker_lets_go_of_a_log_whose_row_goes_or_is_another() {
    let directory = tempfile::tempdir().unwrap();
    let (process, _) = gateway(directory.path()).await;
    let log = Owner(process.queue.instance());
    let database = process.world.database.clone();
    let (_stop, stopping) = watch::channel(false);
    let worker = sources(&process.world, directory.path(), stopping);
    beside(&worker, async {
        until("a drained log", async || lag(&process).await == 0).await;
        assert_eq!(state(&worker), SourceState::Draining);
        assert!(process.topic.group(DRAIN_GROUP, StartAt::Oldest).await.is_err(), "it holds the group");

        // The row goes: the group is free, and nothing is loud, for nothing waits.
        database.deregister_instance(log.0).await.unwrap();
        until("no drain", async || matches!(state(&worker), SourceState::Waiting(_))).await;
        let group = process.topic.group(DRAIN_GROUP, StartAt::Oldest).await.unwrap();
        drop(group);
        let sale = database.sales().await.unwrap().remove(0).definition.id;
        process.promise(&sale, 3, "u", 1).await.unwrap();
        until("a word on what waits", async || matches!(state(&worker), SourceState::Refused(_))).await;

        // Back, at another opening than the log has: an older state of the database.
        let at = ("here", "disk");
        let older = Opening { generation: process.opening.generation, nonce: process.opening.nonce ^ 1 };
        assert!(database.register_opening(log, at, None, older).await.unwrap());
        until(
            "another word",
            async || matches!(state(&worker), SourceState::Refused(why) if why.contains("copy")),
        )
        .await;
        assert_eq!(process.status(3).await, None);
        assert!(database.register_opening(log, at, Some(older), process.opening).await.unwrap());
        until("the last row", async || process.status(3).await.is_some()).await;
    })
    .await;
    process.end().await;
}

/// A sale's row is there before its first promise: an order of an unknown one is no reason to break a promise.
#[tokio::test]
async fn an_order_of_an_unknown_sale_holds_the_log_until_the_sale_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (process, _) = gateway(directory.path()).await;
    let sql = |sql: &str| process.world.connection.with(|connection| connection.execute_batch(sql)).unwrap();
    sql("CREATE TEMP TABLE kept AS SELECT * FROM floodgate_sales; DELETE FROM floodgate_sales;");
    let worker = process.drain().await;
    let metric = || process.world.metric("floodgate_drain_unknown_sale") > 0.5;
    until("a stall", async || metric() || lag(&process).await == 0).await;
    assert_eq!(lag(&process).await, 3, "the offset went past a promise that is no row");
    let order_worker::DrainState::Stalled(why) = process.stats.state() else { panic!("it says nothing") };
    assert!(why.contains("no sale s"), "{why}");
    assert_eq!(process.status(0).await, None, "no promise is rejected");
    sql("INSERT INTO floodgate_sales SELECT * FROM kept;");
    until("a drained log", async || lag(&process).await == 0).await;
    assert!(!metric());
    are_unpaid(&process).await;
    process.stop(worker).await;
}

fn open(directory: &Path, world: &World) -> Queue {
    let mut options = DiskOptions::new(directory, world.now());
    options.tied = true;
    // Threads of the process that crashed may hold the lock for another moment.
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        match Queue::open_disk(options.clone(), &mut Registry::default()) {
            Err(QueueError::InUse { .. }) if std::time::Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

const DEPLOYMENT: DeploymentId = DeploymentId(1);

async fn opening(queue: &Queue, world: &World) -> Result<Opening, Misfit> {
    tie(queue, &world.database, DEPLOYMENT, "here").await.map_err(|error| match error {
        TieError::Misfit(misfit) => misfit,
        error => panic!("{error}"),
    })
}

/// Opens and ties once, and lets go.
async fn visit(directory: &Path, world: &World) -> Result<Opening, Misfit> {
    let queue = open(directory, world);
    let opening = opening(&queue, world).await;
    queue.shutdown().await;
    opening
}

async fn append(queue: &Queue) {
    let topic = queue.topic(ORDERS_TOPIC).await.unwrap();
    let permit = topic.try_permit(1).unwrap();
    let record = NewRecord { key: b"key", tag: "order", deliver_at_ms: None, payload: b"x" };
    topic.append(permit, record).await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if from.is_dir() { copy(&from, &to) } else { _ = std::fs::copy(&from, &to).unwrap() }
    }
}

async fn taken(directory: &Path, world: &World) -> Option<Misfit> {
    let log = LogAddress::Disk(directory.to_owned());
    let beside = Queue::attach(&log, world.now()).await.unwrap();
    accept(&beside, &log, &world.database, DEPLOYMENT, world.now()).await.unwrap()
}

struct Site {
    world: World,
    directory: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let world = World::new();
        assert_eq!(world.database.deployment(DEPLOYMENT).await.unwrap(), DEPLOYMENT);
        Self { world, directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[tokio::test]
async fn each_opening_moves_log_and_row() {
    let site = Site::new().await;
    let log = site.path("log");
    for generation in 1..=3 {
        let opening = visit(&log, &site.world).await.unwrap();
        assert_eq!(opening.generation, generation);
        let rows = site.world.database.instances().await.unwrap();
        assert_eq!((rows.len(), rows[0].opening, rows[0].left_out), (1, Some(opening), false));
    }
    // A clean stop takes the row; the log still says whose it is.
    let owner = site.world.database.instances().await.unwrap()[0].owner;
    site.world.database.deregister_instance(owner.0).await.unwrap();
    assert_eq!(visit(&log, &site.world).await.unwrap().generation, 4);
    assert_eq!(taken(&log, &site.world).await, None, "what fits needs nobody's word");
}

#[tokio::test]
async fn a_crash_between_log_and_row_keeps_nobody_from_the_next_start() {
    for point in ["tie.written", "tie.registered"] {
        let site = Site::new().await;
        let log = site.path("log");
        for _ in 0..3 {
            let _hooked = crash(point, 1);
            let (database, queue) = (site.world.database.clone(), open(&log, &site.world));
            let crashed =
                tokio::spawn(async move { tie(&queue, &database, DEPLOYMENT, "here").await.is_ok() });
            assert!(crashed.await.unwrap_err().is_panic(), "{point}");
        }
        let opening = visit(&log, &site.world).await.unwrap();
        assert_eq!(site.world.database.instances().await.unwrap()[0].opening, Some(opening), "{point}");
    }
}

#[tokio::test]
async fn a_copy_of_a_log_is_not_opened_until_somebody_answers_for_it() {
    let site = Site::new().await;
    let (log, backup) = (site.path("log"), site.path("backup"));
    let first = visit(&log, &site.world).await.unwrap();
    copy(&log, &backup);
    let second = visit(&log, &site.world).await.unwrap();
    let misfit = Misfit::Copy { log: Some(first), row: second };
    assert_eq!(visit(&backup, &site.world).await, Err(misfit.clone()));

    // Nor one that was opened as often: its nonce is another.
    let twin = site.path("twin");
    copy(&log, &twin);
    let third = visit(&log, &site.world).await.unwrap();
    let queue = open(&twin, &site.world);
    let drawn = queue.tie_to(DEPLOYMENT.0, third.generation).await.unwrap();
    queue.shutdown().await;
    let refused = visit(&twin, &site.world).await;
    assert_eq!(refused, Err(Misfit::Copy { log: Some(drawn), row: third }));

    assert_eq!(taken(&backup, &site.world).await, Some(Misfit::Copy { log: Some(first), row: third }));
    let fourth = visit(&backup, &site.world).await.unwrap();
    assert_eq!(fourth.generation, third.generation + 1);
    assert_eq!(visit(&log, &site.world).await, Err(Misfit::Copy { log: Some(third), row: fourth }));
}

#[tokio::test]
async fn a_log_ahead_of_its_row_tells_that_the_database_was_put_back() {
    let site = Site::new().await;
    let log = site.path("log");
    let backup = visit(&log, &site.world).await.unwrap();
    let mut last = backup;
    for _ in 0..2 {
        last = visit(&log, &site.world).await.unwrap();
    }
    let owner = site.world.database.instances().await.unwrap()[0].owner;
    let put_back = site.world.database.register_opening(owner, ("here", "disk"), Some(last), backup).await;
    assert!(put_back.unwrap());
    let misfit = Misfit::Ahead { log: last, row: backup };
    assert_eq!(visit(&log, &site.world).await, Err(misfit.clone()));
    assert_eq!(taken(&log, &site.world).await, Some(misfit));
    assert_eq!(visit(&log, &site.world).await.unwrap().generation, backup.generation + 1);
}

#[tokio::test]
async fn a_log_of_another_deployment_or_of_nobody_is_not_opened() {
    let site = Site::new().await;
    let elsewhere = World::new();
    let other = elsewhere.database.deployment(DeploymentId(9)).await.unwrap();
    let log = site.path("log");
    let queue = open(&log, &elsewhere);
    tie(&queue, &elsewhere.database, other, "here").await.unwrap();
    append(&queue).await;
    queue.shutdown().await;
    let misfit = Misfit::Elsewhere { log: other, database: DEPLOYMENT };
    assert_eq!(visit(&log, &site.world).await, Err(misfit.clone()));
    assert!(site.world.database.instances().await.unwrap().is_empty());
    assert_eq!(taken(&log, &site.world).await, Some(misfit));
    visit(&log, &site.world).await.unwrap();

    // Records that nobody is named for; without any, a log is new.
    let (nobodys, new) = (site.path("nobodys"), site.path("new"));
    let options = |directory: &Path| DiskOptions::new(directory, site.world.now());
    let queue = Queue::open_disk(options(&nobodys), &mut Registry::default()).unwrap();
    append(&queue).await;
    queue.shutdown().await;
    assert_eq!(visit(&nobodys, &site.world).await, Err(Misfit::Untied));
    let queue = Queue::open_disk(options(&new), &mut Registry::default()).unwrap();
    queue.topic(ORDERS_TOPIC).await.unwrap();
    queue.shutdown().await;
    assert_eq!(visit(&new, &site.world).await.unwrap().generation, 1);
    assert_eq!(taken(&nobodys, &site.world).await, Some(Misfit::Untied));
    assert_eq!(visit(&nobodys, &site.world).await.unwrap().generation, 1);
}

#[tokio::test]
async fn two_who_open_copies_at_once_are_told_apart() {
    let site = Site::new().await;
    let (log, twin) = (site.path("log"), site.path("twin"));
    visit(&log, &site.world).await.unwrap();
    copy(&log, &twin);
    let (one, other) = (open(&log, &site.world), open(&twin, &site.world));
    let (first, second) = tokio::join!(opening(&one, &site.world), opening(&other, &site.world));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    tokio::join!(one.shutdown(), other.shutdown());
}

/// The row stays when a log is left out, so that an older copy of it is still refused and the newest is known.
#[tokio::test]
async fn a_log_that_was_left_out_is_known_when_it_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    world.publish("s", 10, 10).await;
    let gone = Process::start_closed(world.neighbour(), directory.path()).await;
    assert_eq!(gone.member(true).start().await.unwrap(), 1);
    let (log, opening) = (Owner(gone.queue.instance()), gone.opening);
    gone.end().await;
    let backup = directory.path().join("backup");
    copy(&directory.path().join("queue"), &backup);
    let newest = visit(&directory.path().join("queue"), &world).await.unwrap();
    forget_instance(&world.database, None, log, &author()).await.unwrap();
    let rows = world.database.instances().await.unwrap();
    let row = &rows[0];
    assert_eq!((row.owner, row.opening, row.left_out), (log, Some(newest), true));
    assert!(!row.takes_part() && !row.is_awaited(2), "nobody waits for it");
    assert!(forget_instance(&world.database, None, log, &author()).await.is_err(), "once is enough");

    let refused = visit(&backup, &world).await;
    assert_eq!(refused, Err(Misfit::Copy { log: Some(opening), row: newest }));
    let back = Process::start_closed(world.neighbour(), directory.path()).await;
    let row = world.database.instances().await.unwrap().remove(0);
    assert_eq!((row.left_out, row.merged_epoch), (false, 0), "as one that has merged nothing");
    assert_eq!(back.member(true).start().await.unwrap(), 2);
    back.end().await;
}

/// An older copy at a dead instance's place lacks promises: the rebuild waits for the newest log.
#[tokio::test]
async fn a_rebuild_does_not_take_a_copy_for_the_log_of_a_dead_instance() {
    let site = Site::new().await;
    let sale = site.world.publish("s", 10, 10).await;
    let (log, backup) = (site.path("gone/queue"), site.path("backup"));
    visit(&log, &site.world).await.unwrap();
    copy(&log, &backup);
    let gone = Process::start_closed(site.world.neighbour(), &site.path("gone")).await;
    assert_eq!(gone.member(true).start().await.unwrap(), 1);
    gone.promise(&sale, 1, "u", 3).await.unwrap();
    let owner = Owner(gone.queue.instance());
    gone.end().await;
    site.world.stock.ledger().end_lease(owner).await.unwrap();

    let at_its_place = Arc::new(parking_lot::Mutex::new(backup));
    let looks = Arc::new(AtomicU64::new(0));
    let logs: OpenLog = {
        let (at_its_place, looks, now) = (at_its_place.clone(), looks.clone(), site.world.now());
        Arc::new(move |_| {
            looks.fetch_add(1, Ordering::Relaxed);
            let options = DiskOptions::new(at_its_place.lock().clone(), now.clone());
            let queue = Queue::open_disk(options, &mut Registry::default()).ok();
            Box::pin(std::future::ready(queue))
        })
    };
    let stays = Process::start_closed(site.world.neighbour(), &site.path("stays")).await;
    let mut member = stays.member_beside(Arc::default(), true, logs);
    begin_rebuild(&site.world.database, &author()).await.unwrap();
    let (_shutdown, down) = watch::channel(false);
    let running = tokio::spawn(async move { member.run(down).await });
    until("two looks at the copy", async || looks.load(Ordering::Relaxed) > 1).await;
    let shown = status(&site.world.database, Some(&site.world.stock)).await.unwrap();
    assert_eq!(shown.waiting_for, [owner.to_string()], "the copy was taken for the log");
    *at_its_place.lock() = log;
    let opened =
        async || site.world.snapshot(&sale).await.open && site.world.snapshot(&sale).await.epoch == 2;
    until("an open ledger", opened).await;
    assert_eq!(site.world.units(&sale).await, (7, 3, 0), "every promise is known");
    running.abort();
    stays.end().await;
}
