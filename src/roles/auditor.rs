//! The continuous audit of a shared ledger: every so often each sale is counted, by another client than the one that sells,
//! and what does not add up becomes a metric. It changes nothing.

use std::time::Duration;

use order_worker::Database;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use stock::StockConfig;
use stock::ledger::redis::{RedisAudit, SaleAudit};
use tokio::time::sleep;

/// A count reads every order of a sale, so it must not be frequent.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SaleLabel {
    sale: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// See the module.
pub(super) struct Auditor {
    config: StockConfig,
    database: Database,
    error_units: Family<SaleLabel, Gauge>,
    audits: Family<OutcomeLabel, Counter>,
}

impl Auditor {
    pub(super) fn new(config: &StockConfig, database: &Database, registry: &mut Registry) -> Self {
        let (error_units, audits) = (Family::default(), Family::default());
        registry.register(
            "floodgate_audit_error_units",
            "Units that an independent count of the shared ledger finds missing or too many; anything but 0 is a bug",
            error_units.clone(),
        );
        registry.register(
            "floodgate_audits",
            "Counts of a sale: good, broken, moving (proves nothing), foreign (another orders database's), failed",
            audits.clone(),
        );
        Self { config: config.clone(), database: database.clone(), error_units, audits }
    }

    /// Audits until dropped.
    pub(super) async fn run(self) {
        let mut connection = None;
        loop {
            sleep(INTERVAL).await;
            // A connection that failed is given up: the next round makes another.
            connection = match self.round(connection.take()).await {
                Ok(connection) => Some(connection),
                Err(error) => {
                    self.count("failed");
                    tracing::debug!(%error, "the shared ledger is audited later");
                    None
                }
            };
        }
    }

    async fn round(
        &self,
        connection: Option<RedisAudit>,
    ) -> Result<RedisAudit, Box<dyn std::error::Error + Send + Sync>> {
        let ledger = match connection {
            Some(ledger) => ledger,
            None => RedisAudit::connect(&self.config).await?,
        };
        let ours = self.database.known_deployment().await?.map(|ours| ours.to_string());
        for row in self.database.sales().await?.into_iter().filter(|row| !row.settled) {
            let sale = &row.definition.id;
            let Some(audit) = ledger.sale(sale).await? else { continue };
            if audit.deployment.is_none() || audit.deployment != ours {
                self.count("foreign");
                continue;
            }
            let Some(conserved) = audit.conserved() else {
                self.count("moving");
                continue;
            };
            let error_units = error_units(&audit, conserved);
            let label = SaleLabel { sale: sale.to_string() };
            self.error_units.get_or_create(&label).set(error_units);
            self.count(if error_units == 0 { "good" } else { "broken" });
            if error_units != 0 {
                tracing::error!(%sale, error_units, findings = ?audit.findings, "the shared ledger does not add up");
            }
        }
        Ok(ledger)
    }

    fn count(&self, outcome: &'static str) {
        self.audits.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// The largest difference, in units; at least 1 where something is wrong that is no number of units.
fn error_units(audit: &SaleAudit, conserved: bool) -> i64 {
    let counted = |kept: i64, counted: u64| (kept - i64::try_from(counted).unwrap_or(i64::MAX)).abs();
    let largest = audit
        .error_units()
        .abs()
        .max(counted(audit.pending, audit.counted.pending_units))
        .max(counted(audit.confirmed, audit.counted.confirmed_units));
    if conserved { audit.error_units().abs() } else { largest.max(1) }
}
