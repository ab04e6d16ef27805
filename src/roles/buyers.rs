//! The buyers' side of a process: the gateway, what fills its ports, and the catalog that follows the database.

use std::sync::Arc;
use std::time::Duration;

use gateway::server::Running;
use gateway::{Gateway, GatewayParts};
use order_worker::life::payments::Receivers;
use order_worker::life::payments::inbox::PaymentInbox;
use order_worker::{Instance, JournalKey, WorkerMetrics};
use prometheus_client::registry::Registry;
use stock::{EpochGate, SaleId};
use tokio::task::JoinHandle;

use super::probes::of_closing_and_money;
use super::{Foundation, StartError};
use crate::config::{Config, ConfigError};
use crate::entropy::random;
use crate::gateway_ports::{RootOperator, RootOrders, RootPayments};
use crate::{clock, log, stdout};

/// The journal's name for the holder of the operator's token.
const OPERATOR: &str = "admin";
/// How often the gateway's memory of the sales is compared with their rows.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);

/// A gateway with everything that it stands on.
pub(super) struct Buyers {
    gateway: Arc<Gateway>,
    /// Keeps the catalog; ends with the process.
    catalog: JoinHandle<()>,
}

impl Buyers {
    /// Puts the gateway together and offers the sales of the database; nobody is served yet. `worker`: of one in the same process.
    pub(super) async fn new(
        config: &Config,
        foundation: &Foundation,
        instance: &Instance,
        (journal, worker): (&JournalKey, Option<WorkerMetrics>),
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let Foundation { now, database, stock } = foundation.clone();
        let (orders, epoch_gate) = (instance.orders.clone(), instance.epoch_gate.clone());
        let rows = Arc::new(RootOrders(database.clone()));
        let receivers = Receivers::new(&config.payment).map_err(ConfigError)?;
        let payments = Arc::new(RootPayments(PaymentInbox::new(receivers, database.clone())));
        let author = journal.operator(OPERATOR);
        let operator =
            Arc::new(RootOperator::new(database, stock.clone(), orders, epoch_gate.clone(), author));
        let parts = GatewayParts {
            gateway: config.gateway.clone(),
            admin: config.admin.clone(),
            auth: config.auth.clone(),
            gate: config.gate.clone(),
            limits: config.limits.clone(),
            stock,
            topic: instance.orders.clone(),
            owner: instance.owner,
            epoch_gate: epoch_gate.clone(),
            drained: instance.drained.clone(),
            drain_rate_hint: Some(config.drain.orders_per_second_max),
            orders: rows,
            payments,
            operator: operator.clone(),
            now,
            random: Arc::new(random),
        };
        let gateway = Gateway::new(parts, registry).map_err(|e| ConfigError(e.to_string()))?;
        log::register(registry);
        clock::register(registry);
        let gateway = Arc::new(gateway.with_log(log::loses_lines).with_clock(clock::has_jumped));
        if let Some(metrics) = worker {
            gateway.show_worker(Box::new(move || of_closing_and_money(&metrics)));
        }
        operator.offer_through(gateway.catalog().clone());
        operator.refresh_catalog().await?;
        // Before the first buyer: deadlines made by this machine's own clock would let a late batch through.
        gateway.look_at_health().await;
        let catalog = tokio::spawn(keep_catalog(operator, epoch_gate));
        Ok(Self { gateway, catalog })
    }

    /// Serves from now on. `registry` is what `/metrics` shows.
    pub(super) fn start(&self, registry: Registry) -> Result<Running, StartError> {
        Ok(self.gateway.start(Arc::new(registry))?)
    }

    /// Lets go of the buyers. Whether everything that was reserved is in the log, and nothing more will be: what is not is recovered
    /// by the next start, or by a neighbour.
    pub(super) async fn finish(&self, running: Running) -> bool {
        let finished = running.shutdown().await;
        self.catalog.abort();
        if !finished {
            tracing::warn!(
                "not everything was finished within gateway.shutdown_max_s; the next start recovers it"
            );
        }
        finished && self.gateway.owes_nothing()
    }

    pub(super) fn greet(&self, config: &Config, running: &Running, demo_sale: Option<&SaleId>) {
        let token_file = config.admin.token_file.as_ref();
        let token = token_file.map_or_else(|| "admin.token".to_owned(), |path| path.display().to_string());
        // Each line may be the only one that somebody reads.
        let demo = if config.has_configured_demo() {
            tracing::warn!(
                "auth.demo = true: anybody who reaches this listener from this machine is given any user's token; not for a shop"
            );
            "  [auth.demo = true: anybody here may be any user]"
        } else {
            ""
        };
        let lines = [
            format!("floodgate: buyers   http://{}/", running.address()),
            format!("           operator http://{}/console  (token: {token})", running.admin_address()),
            format!("           orders   {}", config.orders.database_url),
        ];
        let demo_sale =
            demo_sale.map(|sale| format!("           the demo sale {sale} opens 20 s from now; Ctrl-C ends"));
        for line in lines.into_iter().chain(demo_sale) {
            stdout::greet(format_args!("{line}{demo}"));
        }
    }
}

/// Follows the rows, and at once an epoch that purchases may name.
async fn keep_catalog(operator: Arc<RootOperator>, epoch_gate: Arc<EpochGate>) {
    let mut offers = epoch_gate.offers();
    loop {
        // The gate is held here: its offers never end.
        let _ = tokio::time::timeout(CATALOG_INTERVAL, offers.changed()).await;
        if let Err(error) = operator.refresh_catalog().await {
            tracing::warn!(%error, "the sales could not be read again; those in memory stay");
        }
    }
}
