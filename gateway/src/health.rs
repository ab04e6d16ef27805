//! Whether a purchase could succeed here: looked at once a turn of the background, told by `/readyz`. Decides nothing about a purchase.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use queue::TopicState;
use serde::Serialize;
use stock::{LedgerError, LedgerServer, Stopped, Timestamp};
use tokio::time::timeout;

use crate::Gateway;
use crate::catalog::Offer;
use crate::conditions::{BACKLOG_PERCENT_MAX, Condition, Holding};

/// Longest wait for the orders when readiness is looked at.
const READY_ORDERS_MAX: Duration = Duration::from_secs(2);

/// Whether a purchase could succeed, as last seen.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// A server that holds a sale which has not ended told the time and takes writes; the leases' server, where there is no such
    /// sale.
    pub(crate) ledger_answers: AtomicBool,
    /// One does, and another that holds such a sale does not.
    pub(crate) ledger_in_part: AtomicBool,
    /// At least one sale that has not ended is open there, or there is none.
    pub(crate) ledger_open: AtomicBool,
    /// Orders can be written and read.
    pub(crate) orders_reachable: AtomicBool,
}

impl Gateway {
    /// Learns the times and whether ledger and orders would serve a purchase now.
    pub async fn look_at_health(&self) {
        let offer = self.catalog.offer_whole();
        let serving = self.ask_servers(&offer).await;
        let running: Vec<_> = offer.sales().iter().filter(|sale| sale.now_ms() < sale.ends_at_ms).collect();
        let is_serving = |server| serving.contains(&server);
        let needed = || running.iter().map(|sale| sale.clock.server());
        let answers = if running.is_empty() {
            is_serving(self.stock.leases_server())
        } else {
            needed().any(is_serving)
        };
        self.health.ledger_answers.store(answers, Ordering::Relaxed);
        self.health.ledger_in_part.store(answers && !needed().all(is_serving), Ordering::Relaxed);

        let mut open = None;
        for sale in running {
            match self.stock.snapshot(&sale.id).await {
                Ok(snapshot) => open = Some(open.unwrap_or(false) || snapshot.open),
                Err(LedgerError::UnknownSale(_)) => open = Some(open.unwrap_or(false)),
                Err(_) => open = Some(false),
            }
            if open == Some(true) {
                break;
            }
        }
        self.health.ledger_open.store(open.unwrap_or(true), Ordering::Relaxed);

        let reachable = matches!(timeout(READY_ORDERS_MAX, self.orders.reachable()).await, Ok(Ok(())));
        self.health.orders_reachable.store(reachable, Ordering::Relaxed);
        // A condition holds since it was seen, not since somebody asked.
        let _ = self.readiness();
    }

    /// Asks every server of the ledger that holds a sale or the leases for its time, and then lets each sale go by the clock of the
    /// server that it lives on now. Answers with those that told it and take writes.
    async fn ask_servers(&self, offer: &Offer) -> BTreeSet<LedgerServer> {
        let homes: Vec<_> = offer.sales().iter().map(|sale| self.stock.server_of(&sale.id)).collect();
        let servers: BTreeSet<_> = homes.iter().copied().chain([self.stock.leases_server()]).collect();
        let asked = servers.into_iter().map(async |server| {
            let tells_time = self.clocks.refresh(&self.stock, server).await.is_ok();
            (tells_time && self.stock.ready(server).await.is_ok()).then_some(server)
        });
        let serving = join_all(asked).await.into_iter().flatten().collect();
        for (sale, home) in offer.sales().iter().zip(homes) {
            sale.clock.follow(home);
        }
        serving
    }

    /// What holds at the moment.
    fn holding(&self) -> Vec<Condition> {
        let Health { ledger_answers, ledger_in_part, ledger_open, orders_reachable } = &self.health;
        let [answers, in_part, open, reachable] =
            [ledger_answers, ledger_in_part, ledger_open, orders_reachable]
                .map(|is| is.load(Ordering::Relaxed));
        let (log, elsewhere) = (self.parts.topic.state(), self.stock.is_elsewhere());
        let stopped = self.parts.epoch_gate.stopped();
        let is_foreign = !self.stock.foreign_sales().is_empty();
        let has_backlog = self.parts.topic.backlog_percent() >= BACKLOG_PERCENT_MAX;
        let holds = [
            (Condition::ShuttingDown, self.draining.load(Ordering::Relaxed)),
            (Condition::NoEpoch, self.parts.epoch_gate.offered() == 0),
            (Condition::OtherLedger, elsewhere),
            (Condition::OtherOpening, stopped == Some(Stopped::OtherOpening)),
            (Condition::OrdersLost, stopped == Some(Stopped::OrdersLost)),
            (Condition::LogFailed, matches!(log, TopicState::Poisoned | TopicState::Closed)),
            (Condition::LogFull, log == TopicState::Full),
            (Condition::LogStalled, log == TopicState::Stalled),
            (Condition::Backlog, has_backlog),
            (Condition::OrdersAway, !reachable),
            (Condition::LedgerSilent, !answers),
            (Condition::LedgerInPart, in_part),
            (Condition::LedgerRebuilding, answers && !open && !is_foreign && !elsewhere),
            (Condition::ForeignSales, is_foreign),
            (Condition::FlagOutOfTouch, !self.stock.flag().in_touch()),
            (Condition::LeaseFailing, !self.parts.epoch_gate.is_leased()),
            (Condition::LogLinesLost, self.loses_log_lines.is_some_and(|loses| loses())),
            (
                Condition::ClockJumped,
                self.clocks.has_jumped() || self.clock_has_jumped.is_some_and(|has| has()),
            ),
            (Condition::FewQuestions, self.challenges.as_ref().is_some_and(|c| !c.ready())),
        ];
        let of_worker = self.worker.get().map(|holding| holding()).unwrap_or_default();
        let own = holds.into_iter().filter(|(_, holds)| *holds).map(|(condition, _)| condition);
        own.chain(of_worker).collect()
    }

    /// Whether buyers should be sent here, and all that an operator should know.
    pub(crate) fn readiness(&self) -> Readiness {
        let holding = self.holding();
        let conditions = self.conditions.look(Timestamp(self.now_ms()), &holding);
        let sentences = |stopping| {
            let of_a_kind = holding.iter().filter(|condition| condition.stops_gateway() == stopping);
            of_a_kind.map(|condition| condition.sentence()).collect::<Vec<_>>()
        };
        let (lacks, notes) = (sentences(true), sentences(false));
        self.server_metrics.show_conditions(&holding);
        self.server_metrics.ready.set(i64::from(lacks.is_empty()));
        Readiness { ready: lacks.is_empty(), conditions, lacks, notes }
    }
}

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    conditions: Vec<Holding>,
    /// In sentences: what makes it unready.
    lacks: Vec<&'static str>,
    /// And all else.
    notes: Vec<&'static str>,
}
