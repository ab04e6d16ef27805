//! Wires what closes orders that nobody paid, and what moves money unasked. A thread of its own reads the deadlines:
//! their log's disk may hang.

use std::sync::Arc;

use order_worker::life::outward::Service;
use order_worker::life::payments::config::ServiceUrl;
use order_worker::life::payments::standard_webhooks::StandardWebhooks;
use order_worker::life::refunds::{Refunds, watch_refunds};
use order_worker::{
    Closing, ClosingParts, GetTopic, Shop, Timeouts, WorkerMetrics, join_payments, watch_money,
};
use tokio::sync::watch;

use super::worker_thread::WorkerThread;
use super::{Foundation, StartError};
use crate::config::{Config, ConfigError};

/// Where drains leave deadlines in what `topic` finds, and what closes by them.
pub(super) fn closing(
    config: &Config,
    foundation: &Foundation,
    topic: GetTopic,
    metrics: &WorkerMetrics,
) -> Result<(Timeouts, Arc<Closing>), StartError> {
    let service = |url: &Option<ServiceUrl>| url.as_ref().map(|url| service(config, url)).transpose();
    let shop = Shop::new(service(&config.payment.check_url)?, service(&config.payment.close_url)?);
    let timeouts = Timeouts::new(topic, config.payment.grace_s * 1_000, metrics);
    let closing = Closing::new(ClosingParts {
        database: foundation.database.clone(),
        stock: foundation.stock.clone(),
        timeouts: timeouts.clone(),
        shop,
        budget: config.drain.clone(),
        now: foundation.now.clone(),
        metrics: metrics.clone(),
    });
    Ok((timeouts, Arc::new(closing)))
}

/// Joins payments that came before their order's row, sends back those whose order never comes, asks the shop's service
/// for what is to be refunded, if there is one, and audits it all.
pub(super) fn money(
    config: &Config,
    foundation: &Foundation,
    metrics: &WorkerMetrics,
    stopping: watch::Receiver<bool>,
) -> Result<impl Future<Output = ()> + Send + use<>, StartError> {
    let (payment, database) = (&config.payment, foundation.database.clone());
    let joining = join_payments(database.clone(), payment.unmatched_refund_s * 1_000, stopping.clone());
    let auditing = watch_money(database.clone(), metrics.clone(), stopping.clone());
    let waiting =
        watch_refunds(database.clone(), metrics.clone(), payment.refund_url.is_some(), stopping.clone());
    let refunds = match &payment.refund_url {
        Some(url) => Some(Refunds::new(database, service(config, url)?, metrics.clone())),
        None => None,
    };
    let refunding = async move {
        if let Some(refunds) = refunds {
            refunds.run(stopping).await;
        }
    };
    Ok(async move {
        tokio::join!(joining, refunding, auditing, waiting);
    })
}

/// `beside`, and where several processes close orders of one database this one held to its share of the limit, under the name of its
/// random `life`.
pub(super) async fn sharing(
    closing: Arc<Closing>,
    life: Option<u64>,
    stopping: watch::Receiver<bool>,
    beside: impl Future<Output = ()>,
) {
    let shared = async {
        if let Some(life) = life {
            closing.share(life, stopping).await;
        }
    };
    tokio::join!(shared, beside);
}

/// One address of the shop's, which knows our calls by the callback's secrets.
fn service(config: &Config, url: &ServiceUrl) -> Result<Service, ConfigError> {
    let webhooks = StandardWebhooks::new(config.payment.secrets().map_err(ConfigError)?);
    Service::new(url, webhooks).map_err(ConfigError)
}

/// Starts the thread that closes by the messages of the log.
pub(super) fn by_message(
    closing: Arc<Closing>,
    stopping: watch::Receiver<bool>,
) -> std::io::Result<WorkerThread<()>> {
    WorkerThread::start("closing", async move { closing.by_message(stopping).await })
}

/// What is said where the thread does not end.
pub(super) const WAITS: &str = "what closes unpaid orders still waits for its log or its database and is left behind; the next start closes them";
