//! One worker among several: drains the logs of the gateways on this machine into the database, and keeps ledger and
//! database equal. What it appends goes to a log of its own, whose trouble stops nothing. Sells nothing.

use std::future::ready;
use std::sync::Arc;

#[cfg(feature = "redis")]
use order_worker::{Auditor, AuditorMetrics};
use order_worker::{
    GetTopic, LogBacklogs, MemberRow, Sources, SourcesParts, TIMEOUTS_TOPIC, WorkerLog, WorkerLogMetrics,
    WorkerLogParts, WorkerMetrics,
};
use prometheus_client::registry::Registry;
use queue::Queue;
use tokio::sync::watch;

use super::probes::Probes;
use super::worker_thread::WorkerThread;
use super::{Foundation, StartError, background, closing, signals};
use crate::config::Config;
use crate::entropy::random;
use crate::{clock, engines, log, stdout};

pub(super) async fn run(config: Config) -> Result<(), StartError> {
    let now = clock::system();
    let mut registry = Registry::default();
    log::register(&mut registry);
    clock::register(&mut registry);

    // 1. What processes share.
    let database = engines::open_database(&config, now.clone()).await?;
    let deployment = engines::deployment(&database).await?;
    let stock =
        Arc::new(engines::open_stock(&config, deployment, now.clone(), random(), &mut registry).await?);
    let foundation = Foundation { now, database, stock };

    // 2. The drains and what follows them, on a thread of their own: their commits block.
    let metrics = WorkerMetrics::new(&mut registry);
    let watched = metrics.clone();
    #[cfg(feature = "redis")]
    tokio::spawn({
        let metrics = AuditorMetrics::new(&mut registry);
        Auditor::new(config.stock.clone(), foundation.database.clone(), metrics).run()
    });
    let (stop, stopping) = watch::channel(false);
    let row = MemberRow::default();
    let log = Arc::new(own_log(&config, &foundation, row.clone(), &mut registry));
    let timeouts = log.clone();
    let topic: GetTopic = Arc::new(move || timeouts.topic(TIMEOUTS_TOPIC));
    let (timeouts, closing) = closing::closing(&config, &foundation, topic, &metrics)?;
    let backlogs = LogBacklogs::default();
    registry.register_collector(Box::new(backlogs.clone()));
    let parts = SourcesParts {
        logs: config.queue.sources.clone(),
        now: foundation.now.clone(),
        database: foundation.database.clone(),
        stock: foundation.stock.clone(),
        drain: config.drain.clone(),
        timeouts,
        metrics: metrics.clone(),
        backlogs,
        life: random(),
    };
    let sources = Arc::new(Sources::new(parts, stopping.clone()));
    let drains = sources.clone().drain_all();
    // Known to the others by its own log's row, once there is one.
    let member = foundation.member(&config, (None, row), &mut registry);
    let money = closing::money(&config, &foundation, &metrics, stopping.clone())?;
    let money = closing::sharing(closing.clone(), Some(random()), stopping.clone(), money);
    let mut worker = WorkerThread::start(
        "worker",
        background::follow(
            foundation.clone(),
            (sources.pace(), metrics),
            (closing.clone(), money),
            member,
            drains,
            stopping.clone(),
        ),
    )?;
    let closer = closing::by_message(closing, stopping)?;

    // 3. Its own log, on a thread of its own: a disk that hangs holds up nothing else.
    let (end_log, log_ending) = watch::channel(false);
    let log_thread = WorkerThread::start("worker-log", {
        let log = log.clone();
        async move { log.run(log_ending).await }
    })?;

    // 4. Until the end.
    let registry = (Arc::new(registry), watched);
    let probes = Probes::start(&config, foundation, (sources.clone(), log), registry).await?;
    stdout::greet(format_args!(
        "floodgate worker: drains {sources}\n                  own log {}\n                  health and metrics http://{}/",
        config.queue.worker_directory.display(),
        probes.address()
    ));
    let ended = tokio::select! {
        biased;
        signal = signals::signal() => signal,
        stopped = worker.ended() => Err(StartError::Stopped(stopped)),
    };

    // 5. The end: each drain ends its batch; then nothing is appended any more.
    stop.send_replace(true);
    worker.join_drain().await;
    closer.join(closing::WAITS).await;
    end_log.send_replace(true);
    log_thread
        .join("the disk of this worker's own log does not answer: what it holds shows at the next start")
        .await;
    probes.stop();
    ended
}

/// The log in `queue.worker_directory`.
fn own_log(config: &Config, foundation: &Foundation, row: MemberRow, registry: &mut Registry) -> WorkerLog {
    let (own, now) = (config.queue.clone(), foundation.now.clone());
    let (beside, clock) = (config.queue.workers_log(), foundation.now.clone());
    WorkerLog::new(WorkerLogParts {
        log: config.queue.workers_log(),
        open: Arc::new(move || Box::pin(ready(engines::open_worker_queue(&own, now.clone())))),
        attach: Arc::new(move || {
            let (beside, clock) = (beside.clone(), clock.clone());
            Box::pin(async move { Queue::attach(&beside, clock).await })
        }),
        database: foundation.database.clone(),
        row,
        metrics: WorkerLogMetrics::new(registry),
    })
}
