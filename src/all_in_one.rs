//! Everything in one process: start in the order in which one part stands on another, run, shut down in the reverse order.
//!
//! Start: database → queue → sales published → ledger rebuilt → worker → gateway. Nobody is answered before the ledger is
//! rebuilt, so nobody is answered from half a memory. Shutdown: the gateway lets go of its buyers and finishes what it
//! reserved, then the drain ends its batch, then the log is settled and closed.

use std::sync::Arc;
use std::time::Duration;

use gateway::server::Running;
use gateway::{Gateway, GatewayParts};
use order_worker::{
    BacklogMetrics, DRAIN_GROUP, DrainStats, ORDERS_TOPIC, Reconciler, Relay, Worker, WorkerMetrics,
    WorkerParts, rebuild,
};
use prometheus_client::registry::Registry;
use queue::{Topic, TopicState};
use stock::{Owner, SaleId};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

mod publish;
mod start_error;
mod worker_thread;

use crate::books::RootBooks;
use crate::config::Config;
use crate::{clock, engines};
pub(crate) use start_error::StartError;
use worker_thread::WorkerThread;

/// How often the gateway's memory of the sales is compared with their rows.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);

/// How often the log is asked whether a failed sync has poisoned it.
const POISON_LOOK: Duration = Duration::from_millis(500);

/// Runs until SIGTERM or SIGINT, or until a part that nothing works without has stopped.
pub(crate) async fn run(mut config: Config) -> Result<(), StartError> {
    config.complete_secrets()?;
    engines::raise_open_files_limit();
    let now = clock::system();
    let mut registry = Registry::default();

    // 1. What outlives the process.
    let _claim = engines::claim_database(&config)?;
    let database = engines::open_database(&config, now.clone())?;
    let queue = engines::open_queue(&config, now.clone(), &mut registry)?;
    let orders = queue.topic(ORDERS_TOPIC)?;
    let group = orders.group(DRAIN_GROUP)?;
    let owner = Owner(queue.instance());
    if database.epoch().await? == 0 && orders.committed(DRAIN_GROUP)?.is_some() {
        return Err(StartError::ForeignDatabase {
            database: config.orders.database_url.to_string(),
            queue: config.queue.directory.display().to_string(),
        });
    }
    database.register_instance(owner.0, &config.queue.directory.display().to_string()).await?;
    let demo_sale = publish::configured_sales(&config, &database, now()).await?;

    // 2. The ledger's memory, from what outlived the last process.
    let stock = Arc::new(engines::open_stock(now.clone(), random(), &mut registry));
    let epoch = rebuild(&database, &stock, &orders, owner).await?;

    // 3. The drain and what follows it, on a thread of their own: its commits block.
    let metrics = WorkerMetrics::new(&mut registry);
    registry.register_collector(Box::new(BacklogMetrics(orders.clone())));
    let books = Arc::new(RootBooks::new(database.clone(), stock.clone(), orders.clone(), epoch));
    let gateway = Arc::new(
        Gateway::new(
            GatewayParts {
                gateway: config.gateway.clone(),
                admin: config.admin.clone(),
                auth: config.auth.clone(),
                gate: config.gate.clone(),
                limits: config.limits.clone(),
                stock: stock.clone(),
                topic: orders.clone(),
                owner,
                drain_group: DRAIN_GROUP.to_owned(),
                drain_rate_hint: Some(config.drain.orders_per_second_max),
                books: books.clone(),
                now: now.clone(),
                random: Arc::new(random),
            },
            &mut registry,
        )
        .map_err(|e| crate::config::ConfigError(e.to_string()))?,
    );
    books.offer_through(gateway.catalog().clone());
    books.refresh_catalog().await?;

    let (stop_worker, stopping) = watch::channel(false);
    let stats = Arc::new(DrainStats::new(config.drain.orders_per_second_max));
    let parts = WorkerParts {
        database: database.clone(),
        stock: stock.clone(),
        group,
        config: config.drain.clone(),
        metrics: metrics.clone(),
        stats,
    };
    let worker = Worker::new(parts, stopping.clone());
    let relay = Relay::new(database.clone(), stock.clone(), metrics.clone());
    let reconciler = Reconciler::new(database.clone(), stock, now, metrics);
    let mut worker_thread = WorkerThread::start(async move {
        let beside = async {
            tokio::join!(
                relay.run(stopping.clone()),
                reconciler.run(stopping.clone()),
                keep_catalog(&books, stopping)
            );
            std::future::pending().await
        };
        // The drain alone decides when this thread ends: one that has stopped must not go unnoticed behind the others.
        tokio::select! {
            biased;
            drained = worker.run() => drained,
            never = beside => never,
        }
    })?;

    // 4. The buyers.
    let running = gateway.start(Arc::new(registry))?;
    greet(&config, &running, demo_sale.as_ref());
    let ended = tokio::select! {
        biased;
        signal = wait_for_signal() => signal.map(|name| tracing::info!("{name}: shutting down")).map_err(StartError::from),
        stopped = worker_thread.ended() => Err(StartError::Stopped(stopped)),
        () = poisoned(&orders) => Err(StartError::Stopped(
            "a write to the queue's disk failed, and nobody can tell what it holds: look at the disk, then start again".into(),
        )),
    };

    let finished = running.shutdown().await;
    stop_worker.send_replace(true);
    worker_thread.join().await;
    if ended.is_ok() && finished && orders.lag(DRAIN_GROUP).is_ok_and(|lag| lag.records == 0) {
        // Nothing that this log promised is outstanding: nobody has to look for it.
        if let Err(error) = database.deregister_instance(owner.0).await {
            tracing::warn!(%error, "the instance stays registered, which harms nothing");
        }
    }
    queue.shutdown().await;
    if !finished {
        tracing::warn!(
            "not everything was finished within gateway.shutdown_max_s; the next start recovers it"
        );
    }
    ended
}

async fn keep_catalog(books: &RootBooks, mut stopping: watch::Receiver<bool>) {
    let refresh = async {
        loop {
            tokio::time::sleep(CATALOG_INTERVAL).await;
            if let Err(error) = books.refresh_catalog().await {
                tracing::warn!(%error, "the sales could not be read again; those in memory stay");
            }
        }
    };
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stop| *stop) => {}
        () = refresh => {}
    }
}

/// Waits until the log accepts nothing any more: only a new process can find out what is durable.
async fn poisoned(orders: &Topic) {
    while orders.state() != TopicState::Poisoned {
        tokio::time::sleep(POISON_LOOK).await;
    }
}

async fn wait_for_signal() -> std::io::Result<&'static str> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

fn random() -> u64 {
    getrandom::u64()
        .unwrap_or_else(|e| panic!("the kernel gives no randomness, without which no pass is safe: {e}"))
}

fn greet(config: &Config, running: &Running, demo_sale: Option<&SaleId>) {
    println!("floodgate: buyers   http://{}/", running.address());
    println!(
        "           operator http://{}/console  (token: {})",
        running.admin_address(),
        match &config.admin.token_file {
            Some(path) => path.display().to_string(),
            None => "admin.token".to_owned(),
        }
    );
    println!("           orders   {}", config.orders.database_url);
    if let Some(sale) = demo_sale {
        println!("           the demo sale {sale} opens 20 s from now; Ctrl-C ends");
    }
}
