//! One worker among several: drains the logs of the gateways on this machine into the database, and keeps ledger and
//! database equal. Sells nothing.

use std::sync::Arc;

#[cfg(feature = "redis")]
use order_worker::{Auditor, AuditorMetrics};
use order_worker::{LogBacklogs, Sources, SourcesParts, WorkerMetrics};
use prometheus_client::registry::Registry;
use queue::LogAddress;
use tokio::sync::watch;

use super::probes::Probes;
use super::worker_thread::WorkerThread;
use super::{Foundation, StartError, background, signals};
use crate::config::Config;
use crate::entropy::random;
use crate::{clock, engines, stdout};

pub(super) async fn run(config: Config) -> Result<(), StartError> {
    let now = clock::system();
    let mut registry = Registry::default();

    // 1. What processes share.
    let database = engines::open_database(&config, now.clone()).await?;
    let deployment = engines::deployment(&database).await?;
    let stock =
        Arc::new(engines::open_stock(&config, deployment, now.clone(), random(), &mut registry).await?);
    let foundation = Foundation { now, database, stock };

    // 2. The drains and what follows them, on a thread of their own: their commits block.
    let metrics = WorkerMetrics::new(&mut registry);
    #[cfg(feature = "redis")]
    tokio::spawn({
        let metrics = AuditorMetrics::new(&mut registry);
        Auditor::new(config.stock.clone(), foundation.database.clone(), metrics).run()
    });
    let (stop, stopping) = watch::channel(false);
    let backlogs = LogBacklogs::default();
    registry.register_collector(Box::new(backlogs.clone()));
    let parts = SourcesParts {
        logs: logs(&config),
        now: foundation.now.clone(),
        database: foundation.database.clone(),
        stock: foundation.stock.clone(),
        drain: config.drain.clone(),
        metrics: metrics.clone(),
        backlogs,
        life: random(),
    };
    let sources = Arc::new(Sources::new(parts, stopping.clone()));
    let drains = sources.clone().drain_all();
    let member = foundation.member(&config, None, &mut registry);
    let mut worker = WorkerThread::start(background::follow(
        foundation.clone(),
        (sources.pace(), metrics),
        member,
        drains,
        stopping,
    ))?;

    // 3. Until the end.
    let probes = Probes::start(&config, foundation, sources.clone(), Arc::new(registry)).await?;
    stdout::greet(format_args!(
        "floodgate worker: drains {sources}\n                  health and metrics http://{}/",
        probes.address()
    ));
    let ended = tokio::select! {
        biased;
        signal = signals::signal() => signal,
        stopped = worker.ended() => Err(StartError::Stopped(stopped)),
    };

    // 4. The end: each drain ends its batch.
    stop.send_replace(true);
    worker.join().await;
    probes.stop();
    ended
}

fn logs(config: &Config) -> Vec<LogAddress> {
    match config.queue.sources.as_slice() {
        [] => vec![config.queue.own_log()],
        sources => sources.to_vec(),
    }
}
