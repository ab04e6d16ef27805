//! What the gateway does without being asked: learns the time, looks whether a purchase could succeed, follows the drain,
//! doubts "sold out", recovers. One future, owned by whoever owns the process; bounded work at each turn.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use queue::TopicState;
use serde::Serialize;
use stock::{LedgerError, LedgerServer, Timestamp};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::catalog::Offer;
use crate::clock::REFRESH_INTERVAL;
use crate::conditions::{BACKLOG_PERCENT_MAX, Condition, Holding};
use crate::purchase::{progress, recovery};
use crate::{Gateway, READY_ORDERS_MAX};

/// How often a held "sold out" is doubted.
const DOUBT_INTERVAL: Duration = Duration::from_secs(2);

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
    /// Runs until `closing` says true.
    pub async fn background(&self, mut closing: watch::Receiver<bool>) {
        let recovery = recovery::run(self.parts.clone(), closing.clone());
        let work = async {
            tokio::join!(
                self.watch_health(),
                self.follow_drain(),
                self.doubt_sold_out(),
                self.draw_questions()
            )
        };
        tokio::join!(recovery, async {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => {}
                _ = work => {}
            }
        });
    }

    async fn watch_health(&self) {
        loop {
            self.look_at_health().await;
            sleep(REFRESH_INTERVAL).await;
        }
    }

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

    async fn follow_drain(&self) {
        loop {
            self.progress.refresh().await;
            if let Some(through) = self.progress.drained_through() {
                self.streams.drained(through);
            }
            sleep(progress::REFRESH_INTERVAL).await;
        }
    }

    /// A flag that says sold out may be stale: the ledger's answer is published if it is newer.
    async fn doubt_sold_out(&self) {
        loop {
            sleep(DOUBT_INTERVAL).await;
            let offer = self.catalog.offer_whole();
            for sale in offer.sales().iter().filter(|sale| sale.sold_out()) {
                let held = sale.flag();
                // Out of reach: the flag stays, and the next turn asks again.
                let Ok(snapshot) = self.stock.snapshot(&sale.id).await else { continue };
                // A life that the ledger, asked afterwards, has not reached: somebody's who is gone (the database was put back or
                // made anew, the flag's store was not). Nothing newer would ever lift it.
                if held.is_some_and(|held| held.version.epoch > snapshot.epoch) {
                    tracing::warn!(sale = %sale.id, epoch = snapshot.epoch, "a sold-out flag of a life that the ledger has never had is dropped");
                    self.stock.flag().forget(&sale.id);
                }
            }
        }
    }

    async fn draw_questions(&self) {
        match &self.challenges {
            Some(challenges) => challenges.run().await,
            None => std::future::pending().await,
        }
    }

    /// What holds at the moment.
    fn holding(&self) -> Vec<Condition> {
        let Health { ledger_answers, ledger_in_part, ledger_open, orders_reachable } = &self.health;
        let [answers, in_part, open, reachable] =
            [ledger_answers, ledger_in_part, ledger_open, orders_reachable]
                .map(|is| is.load(Ordering::Relaxed));
        let (log, elsewhere) = (self.parts.topic.state(), self.stock.is_elsewhere());
        let is_foreign = !self.stock.foreign_sales().is_empty();
        let has_backlog = self.parts.topic.backlog_percent() >= BACKLOG_PERCENT_MAX;
        let holds = [
            (Condition::ShuttingDown, self.draining.load(Ordering::Relaxed)),
            (Condition::NoEpoch, self.parts.seat.offered() == 0),
            (Condition::OtherLedger, elsewhere),
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
            (Condition::FewQuestions, self.challenges.as_ref().is_some_and(|c| !c.ready())),
        ];
        holds.into_iter().filter(|(_, holds)| *holds).map(|(condition, _)| condition).collect()
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
