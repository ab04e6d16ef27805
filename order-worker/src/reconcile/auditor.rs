//! The continuous audit of a shared ledger: every so often each sale is counted, by another client than the one that sells,
//! and what does not add up becomes a metric. It changes nothing.

use std::time::Duration;

use stock::StockConfig;
use stock::ledger::redis::{RedisAudit, SaleAudit};
use tokio::time::sleep;

use crate::database::Database;
use crate::metrics::AuditorMetrics;

/// A count reads every order of a sale, so it must not be frequent.
const INTERVAL: Duration = Duration::from_secs(10);

/// See the module. The owner of the process drives [`Auditor::run`].
pub struct Auditor {
    ledger: StockConfig,
    database: Database,
    metrics: AuditorMetrics,
}

impl Auditor {
    /// Starts nothing yet. `ledger` says where the shared ledger is: the audit has a connection of its own.
    #[must_use]
    pub fn new(ledger: StockConfig, database: Database, metrics: AuditorMetrics) -> Self {
        Self { ledger, database, metrics }
    }

    /// Audits until dropped.
    pub async fn run(self) {
        let mut connection = None;
        loop {
            sleep(INTERVAL).await;
            // A connection that failed is given up: the next round makes another.
            connection = match self.round(connection.take()).await {
                Ok(connection) => Some(connection),
                Err(error) => {
                    self.metrics.audited("failed");
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
            None => RedisAudit::connect(&self.ledger).await?,
        };
        let ours = self.database.known_deployment().await?.map(|ours| ours.to_string());
        for row in self.database.unsettled_sales().await? {
            let sale = &row.definition.id;
            let Some(audit) = ledger.sale(sale).await? else { continue };
            if audit.deployment.is_none() || audit.deployment != ours {
                self.metrics.audited("foreign");
                continue;
            }
            let Some(conserved) = audit.conserved() else {
                self.metrics.audited("moving");
                continue;
            };
            let error_units = error_units(&audit, conserved);
            self.metrics.error_units(sale, error_units);
            self.metrics.audited(if error_units == 0 { "good" } else { "broken" });
            if error_units != 0 {
                tracing::error!(%sale, error_units, findings = ?audit.findings, "the shared ledger does not add up");
            }
        }
        Ok(ledger)
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
