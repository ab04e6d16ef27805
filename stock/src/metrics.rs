//! This crate's metrics.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::ledger::Snapshot;
use crate::{LedgerError, SaleId};

/// Where a sale's units are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum UnitState {
    #[allow(non_camel_case_types)]
    total,
    #[allow(non_camel_case_types)]
    remaining,
    #[allow(non_camel_case_types)]
    pending,
    #[allow(non_camel_case_types)]
    confirmed,
}

const UNIT_STATES: [UnitState; 4] =
    [UnitState::total, UnitState::remaining, UnitState::pending, UnitState::confirmed];

/// A call on the ledger, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LedgerCall {
    Now,
    Ready,
    Reserve,
    Grant,
    Confirm,
    Release,
    States,
    Pending,
    Mine,
    Snapshot,
    PushSale,
    Install,
    Restore,
    Open,
    Forget,
    Adopt,
    RenewLease,
    EndLease,
    Leases,
}

impl EncodeLabelValue for LedgerCall {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Now => "now",
            Self::Ready => "ready",
            Self::Reserve => "reserve",
            Self::Grant => "grant",
            Self::Confirm => "confirm",
            Self::Release => "release",
            Self::States => "states",
            Self::Pending => "pending",
            Self::Mine => "mine",
            Self::Snapshot => "snapshot",
            Self::PushSale => "push_sale",
            Self::Install => "install",
            Self::Restore => "restore",
            Self::Open => "open",
            Self::Forget => "forget",
            Self::Adopt => "adopt",
            Self::RenewLease => "renew_lease",
            Self::EndLease => "end_lease",
            Self::Leases => "leases",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnitLabels {
    sale: String,
    state: UnitState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SaleLabels {
    sale: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: LedgerCall,
    outcome: &'static str,
}

/// What became of a state that was to be written for other processes.
#[cfg(feature = "zookeeper")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagWrite {
    /// It stands there now.
    Written,
    /// Something newer stood there.
    Superseded,
    /// The sale is settled: nothing stands there.
    Removed,
    /// The store would not take it; it is tried again.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    outcome: &'static str,
}

/// What the flag's adapter counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlagMetrics {
    pub(crate) in_touch: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) sessions: Counter,
    pub(crate) unreadable: Counter,
    writes: Family<WriteLabels, Counter>,
}

impl FlagMetrics {
    /// In touch with everybody there is.
    pub(crate) fn of_one_process() -> Self {
        let metrics = Self::default();
        metrics.in_touch.set(1);
        metrics
    }

    #[cfg(feature = "zookeeper")]
    pub(crate) fn count(&self, write: FlagWrite) {
        let outcome = match write {
            FlagWrite::Written => "written",
            FlagWrite::Superseded => "superseded",
            FlagWrite::Removed => "removed",
            FlagWrite::Refused => "refused",
        };
        self.writes.get_or_create(&WriteLabels { outcome }).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "floodgate_flag_in_touch",
            "1 while sold-out flags of other processes are heard; at 0 every purchase asks the ledger",
            self.in_touch.clone(),
        );
        registry.register(
            "floodgate_flag_waiting",
            "Sales whose newest flag other processes have not been told",
            self.waiting.clone(),
        );
        registry.register(
            "floodgate_flag_sessions",
            "Sessions begun with the flag's store",
            self.sessions.clone(),
        );
        registry.register(
            "floodgate_flag_unreadable",
            "Flags read that a newer version wrote",
            self.unreadable.clone(),
        );
        registry.register(
            "floodgate_flag_writes",
            "Flags written to the store by outcome",
            self.writes.clone(),
        );
    }
}

/// What [`crate::Stock`] counts.
#[derive(Debug)]
pub(crate) struct StockMetrics {
    units: Family<UnitLabels, Gauge>,
    conservation_error: Family<SaleLabels, Gauge>,
    calls: Family<CallLabels, Counter>,
    pub(crate) batch_size: Histogram,
    pub(crate) flag_publish_errors: Counter,
    pub(crate) foreign_sales: Gauge,
}

impl StockMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            units: Family::default(),
            conservation_error: Family::default(),
            calls: Family::default(),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            flag_publish_errors: Counter::default(),
            foreign_sales: Gauge::default(),
        };
        registry.register(
            "floodgate_stock_units",
            "Units of a sale by where they are, as last seen",
            metrics.units.clone(),
        );
        registry.register(
            "floodgate_conservation_error_units",
            "total - remaining - pending - confirmed, as last seen; anything but 0 is a bug",
            metrics.conservation_error.clone(),
        );
        registry.register(
            "floodgate_ledger_batch_size",
            "Attempts in one call on the ledger",
            metrics.batch_size.clone(),
        );
        registry.register("floodgate_ledger_calls", "Calls on the ledger by outcome", metrics.calls.clone());
        registry.register(
            "floodgate_flag_publish_errors",
            "Sold-out flags that could not be published",
            metrics.flag_publish_errors.clone(),
        );
        registry.register(
            "floodgate_ledger_foreign_sales",
            "Sales whose books in the ledger belong to another orders database; anything but 0 wants an operator",
            metrics.foreign_sales.clone(),
        );
        metrics
    }

    /// Counts a call's outcome and hands it on.
    pub(crate) fn count<T>(
        &self,
        call: LedgerCall,
        answer: Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let outcome = match &answer {
            Ok(_) => "ok",
            Err(LedgerError::Unavailable(_)) => "unavailable",
            Err(LedgerError::Uncertain(_)) => "uncertain",
            Err(LedgerError::WrongEpoch { .. }) => "wrong_epoch",
            Err(LedgerError::DeadlinePassed) => "deadline_passed",
            Err(LedgerError::Closed) => "closed",
            Err(LedgerError::Open) => "open",
            Err(LedgerError::UnknownSale(_)) => "unknown_sale",
            Err(LedgerError::Amnesia) => "amnesia",
            Err(LedgerError::Foreign { .. }) => "foreign",
            Err(LedgerError::Invalid(_)) => "invalid",
        };
        self.calls.get_or_create(&CallLabels { call, outcome }).inc();
        answer
    }

    pub(crate) fn show(&self, sale: &SaleId, snapshot: &Snapshot) {
        let (pending, confirmed) = (snapshot.pending as i64, snapshot.confirmed as i64);
        let figures = [i64::from(snapshot.total), snapshot.remaining, pending, confirmed];
        for (state, figure) in UNIT_STATES.into_iter().zip(figures) {
            self.units.get_or_create(&UnitLabels { sale: sale.to_string(), state }).set(figure);
        }
        let error = i64::from(snapshot.total) - snapshot.remaining - pending - confirmed;
        self.conservation_error.get_or_create(&SaleLabels { sale: sale.to_string() }).set(error);
    }

    pub(crate) fn hide(&self, sale: &SaleId) {
        for state in UNIT_STATES {
            self.units.remove(&UnitLabels { sale: sale.to_string(), state });
        }
        self.conservation_error.remove(&SaleLabels { sale: sale.to_string() });
    }
}
