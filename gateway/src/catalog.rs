//! The sales that this gateway offers, in memory: what a purchase is judged by before the ledger is asked, and what buyers may
//! read of them, rendered when it changes and never for a request.
//!
//! A purchase takes no lock here and shares no counter. Only [`Catalog::replace`] writes, with everything at once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::Serialize;
use stock::{FlagCell, FlagState, RefundPolicy, SaleDefinition, SaleId, Stock, Timestamp, currency_digits};
use tokio::sync::watch;

mod list;

use list::List;

use crate::clock::{LedgerClocks, SaleClock};
use crate::config::ChallengeKind;
use crate::metrics::{Outcome, PurchaseMetrics, SaleCounters};

/// How long a full gate is believed to stay full.
const GATE_FULL_MS: u64 = 500;

/// A sale as the operator's port hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogSale {
    /// With `ends_at` as it is now, should the sale have been ended early.
    pub definition: SaleDefinition,
    /// Of the sale's row.
    pub version: u64,
    /// The version since which price, currency, limit and pay time are as they are.
    pub terms_version: u64,
    /// Units on offer now, restocks included.
    pub total: u32,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// The ledger life that reserve batches name.
    pub epoch: u64,
}

/// A sale, ready for the hot path.
#[derive(Debug)]
pub struct Sale {
    /// Names it.
    pub id: SaleId,
    /// As handed over.
    pub definition: SaleDefinition,
    /// Of the sale's row.
    version: u64,
    /// The version since which price, currency, limit and pay time are as they are.
    pub terms_version: u64,
    /// Nobody may buy.
    pub paused: bool,
    /// The ledger life that reserve batches name.
    pub epoch: u64,
    /// First instant (by [`Self::now_ms`]) at which units may be taken.
    pub starts_at_ms: u64,
    /// First instant at which they no longer may.
    pub ends_at_ms: u64,
    /// Narrows an order id down to its sale.
    pub tag: u16,
    /// That of the server that holds it.
    pub(crate) clock: SaleClock,
    flag: Arc<FlagCell>,
    counters: Arc<SaleCounters>,
    /// Until when, by the sale's clock, the gate is taken to be full; a hint, so relaxed.
    gate_full_until_ms: AtomicU64,
    total: u32,
    hints: PageHints,
    /// What buyers see while it is not known to be sold out, and while it is.
    documents: [Document; 2],
}

/// A rendered JSON document and its validator.
#[derive(Debug, Clone)]
pub struct Document {
    /// JSON.
    pub body: Bytes,
    /// Changes with the body.
    pub etag: HeaderValue,
}

impl Document {
    /// Gives `body` its validator.
    #[must_use]
    pub fn new(body: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let etag = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()))
            .unwrap_or_else(|_| HeaderValue::from_static("\"0\""));
        Self { body, etag }
    }
}

impl Sale {
    /// The time by which the ledger judges this sale: milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The flag as last heard of; `None` is unknown.
    #[must_use]
    pub fn flag(&self) -> Option<FlagState> {
        self.flag.read()
    }

    /// Whether the flag says sold out.
    #[must_use]
    pub fn sold_out(&self) -> bool {
        self.flag.read().is_some_and(|state| state.sold_out)
    }

    /// What buyers may see of it.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.documents[usize::from(self.sold_out())]
    }

    /// The same without its description.
    fn short(&self) -> Vec<u8> {
        public((&self.definition, self.version, self.total), self.paused, self.sold_out(), self.hints, "")
    }

    /// Whether it is what `sale` says, and listens to the flag that is the sale's now: one that was forgotten is another.
    fn is(&self, sale: &CatalogSale, flag: &Arc<FlagCell>) -> bool {
        let shown = (&self.definition, self.version, self.total, self.paused, self.epoch);
        shown == (&sale.definition, sale.version, sale.total, sale.paused_by.is_some(), sale.epoch)
            && Arc::ptr_eq(&self.flag, flag)
    }

    /// Whether the gate was found full a moment ago: then nobody is asked a question for nothing.
    #[must_use]
    pub fn gate_full(&self, now_ms: u64) -> bool {
        now_ms < self.gate_full_until_ms.load(Ordering::Relaxed)
    }

    /// The ledger has just called the gate full.
    pub fn remember_gate_full(&self, now_ms: u64) {
        self.gate_full_until_ms.store(now_ms + GATE_FULL_MS, Ordering::Relaxed);
    }

    /// Counts one answer to a purchase.
    pub(crate) fn count(&self, outcome: Outcome) {
        self.counters.count(outcome);
    }
}

/// What buyers may see of a sale, beside the `[[sale]]` fields hints for the page.
#[derive(Serialize)]
struct PublicSale<'a> {
    id: &'a SaleId,
    item_id: &'a str,
    title: &'a str,
    description: &'a str,
    currency: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency_digits: Option<u8>,
    price: u64,
    list_price: u64,
    total: u32,
    per_user_limit: u32,
    pay_within_s: u32,
    refund: RefundPolicy,
    starts_at: Timestamp,
    ends_at: Timestamp,
    rehearsal: bool,
    labels: &'a std::collections::BTreeMap<String, String>,
    version: u64,
    sold_out: bool,
    paused: bool,
    opens_before_s: u64,
    challenge: ChallengeKind,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    demo: bool,
}

fn public(
    (definition, version, total): (&SaleDefinition, u64, u32),
    paused: bool,
    sold_out: bool,
    hints: PageHints,
    description: &str,
) -> Vec<u8> {
    let public = PublicSale {
        id: &definition.id,
        item_id: &definition.item_id,
        title: &definition.title,
        description,
        currency: &definition.currency,
        currency_digits: currency_digits(&definition.currency),
        price: definition.price,
        list_price: definition.list_price,
        total,
        per_user_limit: definition.per_user_limit,
        pay_within_s: definition.pay_within_s,
        refund: definition.refund,
        starts_at: definition.starts_at,
        ends_at: definition.ends_at,
        rehearsal: definition.rehearsal,
        labels: &definition.labels,
        version,
        sold_out,
        paused,
        opens_before_s: hints.opens_before_s,
        challenge: hints.challenge,
        demo: hints.demo,
    };
    // Every field has a JSON form, and the map's keys are texts.
    serde_json::to_vec(&public).unwrap_or_default()
}

/// What the page must know beside the sale itself.
#[derive(Debug, Clone, Copy)]
pub struct PageHints {
    /// Questions are asked this long before the opening.
    pub opens_before_s: u64,
    /// Which.
    pub challenge: ChallengeKind,
    /// The demo login answers.
    pub demo: bool,
}

/// Sales by id, and in the order in which they were handed over.
#[derive(Debug, Default)]
pub struct Offer {
    by_id: HashMap<Box<str>, Arc<Sale>>,
    in_order: Vec<Arc<Sale>>,
    list: List,
}

impl Offer {
    /// The sale of this id.
    #[must_use]
    pub fn sale(&self, id: &str) -> Option<&Arc<Sale>> {
        self.by_id.get(id)
    }

    /// All sales, in the order in which they were handed over.
    #[must_use]
    pub fn sales(&self) -> &[Arc<Sale>] {
        &self.in_order
    }
}

/// See the module.
pub struct Catalog {
    offer: ArcSwap<Offer>,
    changes: watch::Sender<u64>,
    /// Rises with every change of a sold-out flag.
    flags: watch::Receiver<u64>,
    stock: Arc<Stock>,
    clocks: Arc<LedgerClocks>,
    metrics: PurchaseMetrics,
    hints: PageHints,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("offer", &self.offer).finish_non_exhaustive()
    }
}

impl Catalog {
    /// An empty one.
    #[must_use]
    pub fn new(
        stock: Arc<Stock>,
        clocks: Arc<LedgerClocks>,
        metrics: PurchaseMetrics,
        hints: PageHints,
    ) -> Self {
        let flags = stock.flag().subscribe();
        Self {
            offer: ArcSwap::default(),
            changes: watch::Sender::new(0),
            flags,
            stock,
            clocks,
            metrics,
            hints,
        }
    }

    /// Offers exactly these sales from now on. Purchases under way keep the sale as they found it. What has not changed is not
    /// rendered again.
    pub fn replace(&self, sales: Vec<CatalogSale>) {
        let before = self.offer.load_full();
        let in_order: Vec<_> = sales
            .into_iter()
            .map(|sale| {
                let flag = self.stock.flag().cell(&sale.definition.id);
                match before.sale(sale.definition.id.as_str()) {
                    Some(held) if held.is(&sale, &flag) => held.clone(),
                    _ => Arc::new(self.prepare(sale, flag)),
                }
            })
            .collect();
        let is_same = in_order.len() == before.in_order.len()
            && in_order.iter().zip(&before.in_order).all(|(new, old)| Arc::ptr_eq(new, old));
        if !is_same {
            let by_id = in_order.iter().map(|sale| (sale.id.as_str().into(), sale.clone())).collect();
            let offer = Offer { by_id, in_order, list: List::default() };
            // Before anybody asks for it.
            self.list_of(&offer);
            self.offer.store(Arc::new(offer));
        }
        self.changes.send_modify(|version| *version += 1);
    }

    /// All sales as `GET /api/v1/sales` gives them.
    #[must_use]
    pub fn list(&self) -> Document {
        self.list_of(&self.offer.load())
    }

    fn list_of(&self, offer: &Offer) -> Document {
        // Before the flags are read: a change that comes meanwhile is in the text, or renders it again.
        let flags = *self.flags.borrow();
        offer.list.document(&offer.in_order, flags, &self.metrics.lists_rendered)
    }

    /// What is on offer now.
    #[must_use]
    pub fn offer(&self) -> Guard<Arc<Offer>> {
        self.offer.load()
    }

    /// What is on offer now, to be kept while something is awaited.
    #[must_use]
    pub fn offer_whole(&self) -> Arc<Offer> {
        self.offer.load_full()
    }

    /// Tells of every [`Self::replace`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn prepare(&self, sale: CatalogSale, flag: Arc<FlagCell>) -> Sale {
        let CatalogSale { definition, version, terms_version, total, paused_by, epoch } = sale;
        let id = definition.id.clone();
        let (paused, hints) = (paused_by.is_some(), self.hints);
        let document = |sold_out| {
            let text =
                public((&definition, version, total), paused, sold_out, hints, &definition.description);
            Document::new(text.into())
        };
        let documents = [document(false), document(true)];
        Sale {
            tag: id.tag(),
            clock: SaleClock::of(&id, &self.stock, self.clocks.clone()),
            gate_full_until_ms: AtomicU64::new(0),
            flag,
            counters: self.metrics.of_sale(id.as_str()),
            version,
            terms_version,
            paused,
            epoch,
            total,
            hints,
            starts_at_ms: definition.starts_at.0,
            ends_at_ms: definition.ends_at.0,
            documents,
            id,
            definition,
        }
    }
}
