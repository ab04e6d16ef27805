//! Everything in one process, whichever the backends.

use std::sync::Arc;

use order_worker::drain::rate_shares;
use order_worker::{DRAIN_GROUP, DrainStats, GetTopic, Pace, Worker, WorkerMetrics, WorkerParts};
use prometheus_client::registry::Registry;
use queue::StartAt;
use tokio::sync::watch;

use super::buyers::Buyers;
use super::signals;
use super::worker_thread::WorkerThread;
use super::{Foundation, StartError, background, closing, open_instance, publish};
use crate::config::Config;
use crate::entropy::random;
use crate::{clock, engines};

pub(super) async fn run(mut config: Config) -> Result<(), StartError> {
    config.complete_secrets()?;
    config.complete_callback_secret()?;
    let now = clock::system();
    let mut registry = Registry::default();

    // 1. What outlives the process.
    let _claim = engines::claim_database(&config)?;
    let database = engines::open_database(&config, now.clone()).await?;
    let deployment = engines::deployment(&database).await?;
    let instance = open_instance(&config, &now, (&database, deployment), &mut registry).await?;
    let group = instance.orders.group(DRAIN_GROUP, StartAt::Oldest).await?;
    let journal = publish::journal(&config, &database).await?;
    let demo_sale = publish::configured_sales(&config, &database, &journal.config(), Some(now())).await?;

    // 2. The ledger, complete: kept if it has outlived the last process, rebuilt otherwise.
    let stock =
        Arc::new(engines::open_stock(&config, deployment, now.clone(), random(), &mut registry).await?);
    let foundation = Foundation { now, database, stock };
    let mut member = foundation.member(&config, instance.member(), &mut registry);
    member.start().await?;

    // 3. The drain and what follows it, on a thread of their own: its commits block.
    let metrics = WorkerMetrics::new(&mut registry);
    let worker = (&journal, Some(metrics.clone()));
    let buyers = Buyers::new(&config, &foundation, &instance, worker, &mut registry).await?;
    let (stop, stopping) = watch::channel(false);
    let pace = Arc::new(Pace::new(&config.drain));
    let topic = instance.timeouts().await?;
    let topic: GetTopic = Arc::new(move || Some(topic.clone()));
    let (timeouts, closing) = closing::closing(&config, &foundation, topic, &metrics)?;
    let worker = WorkerParts {
        database: foundation.database.clone(),
        stock: foundation.stock.clone(),
        group,
        log: instance.own_log().owner,
        pace: pace.clone(),
        timeouts,
        metrics: metrics.clone(),
        stats: Arc::new(DrainStats::new(config.drain.orders_per_second_max)),
    };
    let drain = Worker::new(worker, stopping.clone()).run();
    let (database, stopping_too) = (foundation.database.clone(), stopping.clone());
    let sharing = pace.clone();
    let is_shared = engines::is_shared(&config);
    let drain = async move {
        match is_shared {
            true => rate_shares::within(drain, (database, sharing, random()), stopping_too).await,
            false => drain.await,
        }
    };
    let money = closing::money(&config, &foundation, &metrics, stopping.clone())?;
    let money = closing::sharing(closing.clone(), is_shared.then(random), stopping.clone(), money);
    let mut worker = WorkerThread::start(
        "worker",
        background::follow(
            foundation.clone(),
            (pace, metrics),
            (closing.clone(), money),
            member,
            drain,
            stopping.clone(),
        ),
    )?;
    let closer = closing::by_message(closing, stopping)?;

    // 4. The buyers.
    let running = buyers.start(registry)?;
    buyers.greet(&config, &running, demo_sale.as_ref());
    let ended = tokio::select! {
        biased;
        signal = signals::signal() => signal,
        stopped = worker.ended() => Err(StartError::Stopped(stopped)),
        poisoned = signals::poisoned(&instance.orders) => Err(poisoned),
    };

    // 5. The end.
    let finished = buyers.finish(running).await;
    stop.send_replace(true);
    let drained = worker.join_drain().await;
    let closed = closer.join(closing::WAITS).await;
    instance.leave(ended.is_ok() && finished && drained && closed).await;
    if drained && closed {
        foundation.database.close().await;
    }
    ended
}
