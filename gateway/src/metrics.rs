//! This crate's metrics. Requests touch plain counters that were looked up once, when their sale came on offer.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::conditions::Condition;
use crate::ports::PaymentProvider;

macro_rules! outcomes {
    ($(#[$doc:meta])* $of:ident: $($name:ident = $word:literal),* $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $of {
            $(#[doc = concat!("`", $word, "`")] $name,)*
        }

        impl $of {
            const ALL: &[Self] = &[$(Self::$name),*];

            /// The label's value.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

outcomes! {
    /// How a purchase was answered; the label `outcome`.
    Outcome:
    Accepted = "accepted",
    Repeated = "repeated",
    BadRequest = "bad-request",
    TooLarge = "too-large",
    UnknownSale = "unknown-sale",
    SoldOut = "sold-out",
    Paused = "paused",
    NotStarted = "not-started",
    Ended = "ended",
    PassInvalid = "pass-invalid",
    SlowDown = "slow-down",
    Busy = "busy",
    PassUsed = "pass-used",
    SaleChanged = "sale-changed",
    LimitReached = "limit-reached",
    NotEnough = "not-enough",
    Uncertain = "uncertain",
}

outcomes! {
    /// How a payment provider's call was answered; the label `outcome`.
    PaymentOutcome:
    Received = "received",
    AmountMismatch = "amount-mismatch",
    BadRequest = "bad-request",
    Unsigned = "unsigned",
    NotOurs = "not-ours",
    OurFault = "our-fault",
    Busy = "busy",
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PaymentLabels {
    provider: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PurchaseLabels {
    sale: String,
    outcome: &'static str,
}

impl PaymentLabels {
    fn of(provider: PaymentProvider, outcome: PaymentOutcome) -> Self {
        Self { provider: provider.path(), outcome: outcome.as_str() }
    }
}

/// One sale's counters, one for each [`Outcome`].
#[derive(Debug)]
pub struct SaleCounters(Vec<Counter<u64, AtomicU64>>);

impl SaleCounters {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].inc();
    }
}

/// What the purchase path counts.
#[derive(Debug, Clone)]
pub struct PurchaseMetrics {
    purchases: Family<PurchaseLabels, Counter<u64, AtomicU64>>,
    /// Attempts that belong to no sale.
    nowhere: Arc<SaleCounters>,
    duration: Histogram,
    /// Reservations appended by the owner's recovery.
    pub(crate) recovered: Counter,
    /// Times that the list of all sales was made anew.
    pub(crate) lists_rendered: Counter,
}

impl PurchaseMetrics {
    /// Registers them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let purchases = Family::default();
        let nowhere = Arc::new(counters(&purchases, ""));
        let metrics = Self {
            purchases,
            nowhere,
            duration: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            recovered: Counter::default(),
            lists_rendered: Counter::default(),
        };
        registry.register(
            "floodgate_purchases",
            "Purchase attempts by how they were answered",
            metrics.purchases.clone(),
        );
        registry.register(
            "floodgate_purchase_duration_seconds",
            "From the permit to the answer, for attempts that reached the ledger",
            metrics.duration.clone(),
        );
        registry.register(
            "floodgate_recovered_reservations",
            "Pending reservations that this instance's log lacked and that were appended again",
            metrics.recovered.clone(),
        );
        registry.register(
            "floodgate_sales_lists_rendered",
            "Times that the list of all sales was made anew",
            metrics.lists_rendered.clone(),
        );
        metrics
    }

    pub(crate) fn of_sale(&self, sale: &str) -> Arc<SaleCounters> {
        Arc::new(counters(&self.purchases, sale))
    }

    pub(crate) fn count_nowhere(&self, outcome: Outcome) {
        self.nowhere.count(outcome);
    }

    pub(crate) fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }
}

fn counters(family: &Family<PurchaseLabels, Counter<u64, AtomicU64>>, sale: &str) -> SaleCounters {
    let counter = |outcome: &Outcome| {
        family.get_or_create(&PurchaseLabels { sale: sale.to_owned(), outcome: outcome.as_str() }).clone()
    };
    SaleCounters(Outcome::ALL.iter().map(counter).collect())
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabel {
    word: &'static str,
}

/// What the listeners count.
#[derive(Debug, Clone, Default)]
pub struct ServerMetrics {
    /// Connections of the public listener.
    pub connections: Gauge,
    /// Connections closed for slowness or idleness.
    pub connections_expired: Counter,
    /// Connections closed because somebody new came and every place was taken.
    pub connections_displaced: Counter,
    /// Times that accepting paused for want of file descriptors or memory.
    pub accept_pauses: Counter,
    /// Event streams open now.
    pub event_streams: Gauge,
    /// 1 while `/readyz` says yes.
    pub ready: Gauge,
    conditions: Family<ConditionLabel, Gauge>,
    /// Payment providers' calls: every label stands from the start, so that a call costs a look-up.
    payments: Family<PaymentLabels, Counter>,
}

impl ServerMetrics {
    /// Registers them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "floodgate_connections",
            "Connections of the public listener",
            metrics.connections.clone(),
        );
        registry.register(
            "floodgate_connections_expired",
            "Connections closed because a head, a body or a reader was too slow, or idle for too long",
            metrics.connections_expired.clone(),
        );
        registry.register(
            "floodgate_connections_displaced",
            "Connections closed because somebody new came and every place was taken",
            metrics.connections_displaced.clone(),
        );
        registry.register(
            "floodgate_accept_pauses",
            "Times that accepting paused for want of file descriptors or memory",
            metrics.accept_pauses.clone(),
        );
        registry.register("floodgate_event_streams", "Event streams open now", metrics.event_streams.clone());
        registry.register(
            "floodgate_gateway_ready",
            "1 while buyers should be sent here",
            metrics.ready.clone(),
        );
        registry.register(
            "floodgate_gateway_condition",
            "1 while a condition of /readyz holds, by its word",
            metrics.conditions.clone(),
        );
        metrics.show_conditions(&[]);
        registry.register(
            "floodgate_payment_calls",
            "Calls of payment providers, by how they were answered",
            metrics.payments.clone(),
        );
        for (provider, outcome) in
            PaymentProvider::ALL.iter().flat_map(|p| PaymentOutcome::ALL.iter().map(|o| (*p, *o)))
        {
            drop(metrics.payments.get_or_create(&PaymentLabels::of(provider, outcome)));
        }
        metrics
    }

    /// These hold, and no others.
    pub(crate) fn show_conditions(&self, holding: &[Condition]) {
        for condition in Condition::ALL {
            let label = ConditionLabel { word: condition.word() };
            self.conditions.get_or_create(&label).set(i64::from(holding.contains(&condition)));
        }
    }

    pub(crate) fn payment(&self, provider: PaymentProvider, outcome: PaymentOutcome) {
        self.payments.get_or_create(&PaymentLabels::of(provider, outcome)).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_show_under_their_labels() {
        let mut registry = Registry::default();
        let metrics = PurchaseMetrics::register(&mut registry);
        let _ = ServerMetrics::register(&mut registry);
        metrics.of_sale("demo").count(Outcome::Uncertain);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        assert!(text.contains("floodgate_purchases_total{sale=\"demo\",outcome=\"uncertain\"} 1"), "{text}");
        assert_eq!(Outcome::ALL.len(), Outcome::Uncertain as usize + 1);
    }
}
