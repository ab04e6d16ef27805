//! The names of this crate's metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use queue::{GroupWatch, Lag, LogAddress};

use crate::database::OpenRefunds;
use crate::reconcile::money::MoneyAudit;

/// Every metric of the worker's side. Clones count together.
#[derive(Clone)]
pub struct WorkerMetrics {
    /// Orders that became rows, rejected ones included.
    pub(crate) drained_orders: Counter,
    /// Messages whose order had a row already.
    pub(crate) duplicate_orders: Counter,
    /// Promised orders that the database would not take, by reason.
    pub(crate) rejected_orders: Family<Reason, Counter>,
    /// Messages moved to the dead letters.
    pub(crate) dead_letters: Counter,
    /// Tries that the database did not take.
    pub(crate) database_failures: Counter,
    /// 1 while the drain does not run.
    pub(crate) drain_stalled: Gauge,
    /// 1 while a log waits for a sale that the database lacks.
    pub(crate) drain_unknown_sale: Gauge,
    /// Logs that wait here and that are another database's.
    pub(crate) refused_logs: Gauge,
    /// What the process allows itself now.
    pub(crate) drain_rate: Gauge,
    /// Length of a settling transaction.
    pub(crate) settle_duration: Histogram,
    /// Confirmations left to the reconciler.
    pub(crate) confirms_left: Counter,
    /// Releases that the ledger has answered for.
    pub(crate) releases_relayed: Counter,
    /// Sales whose releases the ledger did not take at the last try.
    pub(crate) releases_refused: Gauge,
    /// Ids that the reconciler found different in ledger and database.
    pub(crate) reconciled: Family<Found, Counter>,
    /// Pending though they should be rows by now, as last looked up.
    pub(crate) without_row: Gauge,
    /// Deadlines that no log took.
    pub(crate) timeouts_left: Counter,
    /// Orders closed since nobody paid them, by what found them.
    pub(crate) closed_orders: Family<Found, Counter>,
    /// Tries to send money back, by how they ended.
    pub(crate) refund_tries: Family<Tried, Counter>,
    /// 1 while nothing is closed since clocks do not agree.
    pub(crate) clocks_apart: Gauge,
    /// Money by currency and what it has become, minor units.
    money: Family<Part, Gauge>,
    /// What does not add up of it, in sentences.
    money_faults: Gauge,
    /// Refunds that wait, by what for.
    open_refunds: Family<State, Gauge>,
}

/// Label of `floodgate_rejected_orders_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

/// Label of `floodgate_reconciled_orders_total` (`confirmed`, `released` or `absent`) and of
/// `floodgate_closed_orders_total` (`message`, `sweep` or `withdrawal`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Found {
    pub(crate) found: &'static str,
}

/// Labels of `floodgate_money_minor_units`: `part` is `captured`, `kept`, `refunded`, `requested`, `sent`, `stuck` or
/// `unmatched`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    currency: String,
    part: &'static str,
}

/// Label of `floodgate_open_refunds`: `due`, `overdue` or `stuck`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Label of `floodgate_refund_tries_total`: `succeeded`, `sent`, `again` or `stuck`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Tried {
    pub(crate) outcome: &'static str,
}

/// From a tenth of a millisecond to 6.5 s.
const DURATION_BUCKETS: [f64; 9] = [0.0001, 0.0004, 0.0016, 0.0064, 0.0256, 0.1024, 0.4096, 1.6384, 6.5536];

impl WorkerMetrics {
    /// Registers them all.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            drained_orders: Counter::default(),
            duplicate_orders: Counter::default(),
            rejected_orders: Family::default(),
            dead_letters: Counter::default(),
            database_failures: Counter::default(),
            drain_stalled: Gauge::default(),
            drain_unknown_sale: Gauge::default(),
            refused_logs: Gauge::default(),
            drain_rate: Gauge::default(),
            settle_duration: Histogram::new(DURATION_BUCKETS),
            confirms_left: Counter::default(),
            releases_relayed: Counter::default(),
            releases_refused: Gauge::default(),
            reconciled: Family::default(),
            without_row: Gauge::default(),
            timeouts_left: Counter::default(),
            closed_orders: Family::default(),
            refund_tries: Family::default(),
            clocks_apart: Gauge::default(),
            money: Family::default(),
            money_faults: Gauge::default(),
            open_refunds: Family::default(),
        };
        registry.register(
            "floodgate_drained_orders",
            "Promised orders that became rows, rejected ones included",
            metrics.drained_orders.clone(),
        );
        registry.register(
            "floodgate_duplicate_orders",
            "Messages whose order had a row already",
            metrics.duplicate_orders.clone(),
        );
        registry.register(
            "floodgate_rejected_orders",
            "Promised orders that the database would not take",
            metrics.rejected_orders.clone(),
        );
        registry.register(
            "floodgate_order_dead_letters",
            "Messages that could not even become a rejected row",
            metrics.dead_letters.clone(),
        );
        registry.register(
            "floodgate_drain_database_failures",
            "Tries that the orders database did not take",
            metrics.database_failures.clone(),
        );
        registry.register(
            "floodgate_drain_stalled",
            "1 while the queue does not become rows",
            metrics.drain_stalled.clone(),
        );
        registry.register(
            "floodgate_drain_unknown_sale",
            "1 while a log waits, since the orders database has no row of the sale that its next order is of",
            metrics.drain_unknown_sale.clone(),
        );
        registry.register(
            "floodgate_drain_refused_logs",
            "Logs of queue.sources that are not drained, since they do not belong to this process's orders database",
            metrics.refused_logs.clone(),
        );
        registry.register(
            "floodgate_drain_rate_orders",
            "Orders a second that this process allows itself now: its share of the limit, less while the database suffers",
            metrics.drain_rate.clone(),
        );
        registry.register_with_unit(
            "floodgate_settle_duration",
            "Length of a settling transaction",
            Unit::Seconds,
            metrics.settle_duration.clone(),
        );
        registry.register(
            "floodgate_confirms_left",
            "Confirmations that the ledger did not take, left to the reconciler",
            metrics.confirms_left.clone(),
        );
        registry.register(
            "floodgate_releases_relayed",
            "Releases that the ledger has answered for",
            metrics.releases_relayed.clone(),
        );
        registry.register(
            "floodgate_releases_refused_sales",
            "Sales whose releases the ledger did not take at the last try",
            metrics.releases_refused.clone(),
        );
        registry.register(
            "floodgate_reconciled_orders",
            "Orders pending though they should be rows by now that the reconciler looked up, by what it found",
            metrics.reconciled.clone(),
        );
        registry.register(
            "floodgate_pending_orders_without_row",
            "Should be rows by now and are not, of the logs drained here: dead letters, where it stays",
            metrics.without_row.clone(),
        );
        registry.register(
            "floodgate_timeouts_left",
            "Payment deadlines that this worker's log did not take: those orders are closed by the index",
            metrics.timeouts_left.clone(),
        );
        registry.register(
            "floodgate_closed_orders",
            "Orders closed since nobody paid them in time, by what found them: the deadline's message, or the sweep through the index, which finds none while no log was lost",
            metrics.closed_orders.clone(),
        );
        registry.register(
            "floodgate_refund_tries",
            "Calls on the shop's service for a refund, by what they came to: succeeded, sent, again or stuck",
            metrics.refund_tries.clone(),
        );
        registry.register(
            "floodgate_clocks_apart",
            "1 while no order is closed since the clocks of database, ledger and process differ by more than 5 s",
            metrics.clocks_apart.clone(),
        );
        registry.register(
            "floodgate_money_minor_units",
            "Captured money and what it has become, as last audited: captured is the sum of the others",
            metrics.money.clone(),
        );
        registry.register(
            "floodgate_money_faults",
            "What does not add up between payments, refunds and orders, as last audited: anything but 0 is a bug or a changed row",
            metrics.money_faults.clone(),
        );
        registry.register(
            "floodgate_open_refunds",
            "Refunds that wait, as last counted: due (their time to be sent has come), overdue (for a minute, so that nobody sends them), stuck (a final no)",
            metrics.open_refunds.clone(),
        );
        metrics
    }

    /// What an audit of money found.
    pub(crate) fn money(&self, audit: &MoneyAudit) {
        for sums in &audit.currencies {
            for (part, minor) in sums.parts() {
                let label = Part { currency: sums.currency.clone(), part };
                self.money.get_or_create(&label).set(i64::try_from(minor).unwrap_or(i64::MAX));
            }
        }
        self.money_faults.set(i64::try_from(audit.broken.len()).unwrap_or(i64::MAX));
    }

    /// Whether nothing is closed since clocks do not agree, or the database does not answer.
    #[must_use]
    pub fn are_clocks_apart(&self) -> bool {
        self.clocks_apart.get() != 0
    }

    /// Whether refunds wait that nobody sends, or that somebody has to look at, as last counted.
    #[must_use]
    pub fn are_refunds_stuck(&self) -> bool {
        ["overdue", "stuck"].into_iter().any(|state| self.refunds(state).get() != 0)
    }

    pub(crate) fn refunds_wait(&self, open: OpenRefunds) {
        let OpenRefunds { due, overdue, stuck } = open;
        for (state, refunds) in [("due", due), ("overdue", overdue), ("stuck", stuck)] {
            self.refunds(state).set(i64::try_from(refunds).unwrap_or(i64::MAX));
        }
    }

    fn refunds(&self, state: &'static str) -> Gauge {
        self.open_refunds.get_or_create_owned(&State { state })
    }
}

/// The metric of a worker's own log. Clones count together.
#[derive(Clone)]
pub struct WorkerLogMetrics {
    unusable: Gauge,
}

impl WorkerLogMetrics {
    /// Registers it.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self { unusable: Gauge::default() };
        registry.register(
            "floodgate_worker_log_unusable",
            "1 while the worker's own log takes no records: it is full, lost, damaged, another process's or not open",
            metrics.unusable.clone(),
        );
        metrics
    }

    pub(crate) fn unusable(&self, unusable: bool) {
        self.unusable.set(i64::from(unusable));
    }
}

/// Every metric of the membership. Clones count together.
#[derive(Clone)]
pub struct MembershipMetrics {
    epoch: Gauge,
    rebuild_duration: Histogram,
    waiting_logs: Gauge,
    orphaned_instances: Gauge,
    lease_failures: Counter,
    elsewhere: Gauge,
}

impl MembershipMetrics {
    /// Registers them all.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            epoch: Gauge::default(),
            rebuild_duration: Histogram::new(DURATION_BUCKETS),
            waiting_logs: Gauge::default(),
            orphaned_instances: Gauge::default(),
            lease_failures: Counter::default(),
            elsewhere: Gauge::default(),
        };
        registry.register(
            "floodgate_lease_failures",
            "Renewals of this instance's lease in the stock ledger that failed",
            metrics.lease_failures.clone(),
        );
        registry.register(
            "floodgate_ledger_epoch",
            "Life of the stock ledger, as last seen",
            metrics.epoch.clone(),
        );
        registry.register_with_unit(
            "floodgate_ledger_rebuild_duration",
            "From the notice of a lost or incomplete stock ledger until it was open",
            Unit::Seconds,
            metrics.rebuild_duration.clone(),
        );
        registry.register(
            "floodgate_ledger_waiting_logs",
            "Logs that a rebuild of the stock ledger waited for, as last seen",
            metrics.waiting_logs.clone(),
        );
        registry.register(
            "floodgate_orphaned_instances",
            "Instances taken for dead, whose reservations this one looks after",
            metrics.orphaned_instances.clone(),
        );
        registry.register(
            "floodgate_ledger_elsewhere",
            "1 while others see the stock ledger that the sales live in, and this process another one",
            metrics.elsewhere.clone(),
        );
        metrics
    }

    pub(crate) fn epoch(&self, epoch: u64) {
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }

    pub(crate) fn rebuilt(&self, took: Duration) {
        self.rebuild_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn waiting(&self, logs: usize) {
        self.waiting_logs.set(i64::try_from(logs).unwrap_or(i64::MAX));
    }

    pub(crate) fn lease_failed(&self) {
        self.lease_failures.inc();
    }

    pub(crate) fn elsewhere(&self, elsewhere: bool) {
        self.elsewhere.set(i64::from(elsewhere));
    }

    pub(crate) fn orphans(&self, instances: usize) {
        self.orphaned_instances.set(i64::try_from(instances).unwrap_or(i64::MAX));
    }
}

/// Every metric of the continuous audit. Clones count together.
#[cfg(feature = "redis")]
#[derive(Clone)]
pub struct AuditorMetrics {
    error_units: Family<SaleLabel, Gauge>,
    audits: Family<OutcomeLabel, Counter>,
}

#[cfg(feature = "redis")]
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SaleLabel {
    sale: String,
}

#[cfg(feature = "redis")]
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[cfg(feature = "redis")]
impl AuditorMetrics {
    /// Registers them all.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self { error_units: Family::default(), audits: Family::default() };
        registry.register(
            "floodgate_audit_error_units",
            "Units that an independent count of the shared ledger finds missing or too many; anything but 0 is a bug",
            metrics.error_units.clone(),
        );
        registry.register(
            "floodgate_audits",
            "Counts of a sale: good, broken, moving (proves nothing), foreign (another orders database's), failed",
            metrics.audits.clone(),
        );
        metrics
    }

    pub(crate) fn error_units(&self, sale: &stock::SaleId, units: i64) {
        self.error_units.get_or_create(&SaleLabel { sale: sale.to_string() }).set(units);
    }

    pub(crate) fn audited(&self, outcome: &'static str) {
        self.audits.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// `floodgate_backlog_orders` and `floodgate_backlog_age_seconds` of the process's own log, as its watch last saw them:
/// a scrape waits for no engine. No figure is better than a stale one: where the watch knows nothing, nothing is shown.
#[derive(Debug)]
pub struct BacklogMetrics(
    /// Of the drain's group, refreshed by the process's owner.
    pub Arc<GroupWatch>,
);

impl Collector for BacklogMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(lag) = self.0.lag() else { return Ok(()) };
        encode_backlogs(encoder, &[(None, lag)])
    }
}

/// The same of every log that a worker drains or stands by for, `{log}` being its address. Clones show the same logs.
#[derive(Debug, Clone, Default)]
pub struct LogBacklogs(Arc<Mutex<BTreeMap<LogAddress, Arc<GroupWatch>>>>);

impl LogBacklogs {
    /// Shows what `watch` sees of the log at `address`, instead of what was shown for it.
    pub fn show(&self, address: &LogAddress, watch: Arc<GroupWatch>) {
        self.0.lock().insert(address.clone(), watch);
    }
}

impl Collector for LogBacklogs {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lag = |(log, watch): (&LogAddress, &Arc<GroupWatch>)| Some((Some(log.to_string()), watch.lag()?));
        let lags: Vec<_> = self.0.lock().iter().filter_map(lag).collect();
        encode_backlogs(encoder, &lags)
    }
}

/// Of each log, with its label where there may be several.
fn encode_backlogs(
    mut encoder: DescriptorEncoder<'_>,
    lags: &[(Option<String>, Lag)],
) -> Result<(), std::fmt::Error> {
    if lags.is_empty() {
        return Ok(());
    }
    let help = "Promised orders that are not rows yet";
    let metric = encoder.encode_descriptor("floodgate_backlog_orders", help, None, MetricType::Gauge)?;
    encode_each(metric, lags, |lag| ConstGauge::new(i64::try_from(lag.records).unwrap_or(i64::MAX)))?;
    let (help, unit) = ("Age of the oldest of them", Some(&Unit::Seconds));
    let metric = encoder.encode_descriptor("floodgate_backlog_age", help, unit, MetricType::Gauge)?;
    encode_each(metric, lags, |lag| ConstGauge::new(lag.age_ms as f64 / 1_000.0))
}

fn encode_each<G: EncodeMetric>(
    mut metric: MetricEncoder<'_>,
    lags: &[(Option<String>, Lag)],
    gauge: impl Fn(&Lag) -> G,
) -> Result<(), std::fmt::Error> {
    for (log, lag) in lags {
        match log {
            Some(log) => gauge(lag).encode(metric.encode_family(&[("log", log.as_str())])?)?,
            // The only one: a metric without labels is written once.
            None => return gauge(lag).encode(metric),
        }
    }
    Ok(())
}
