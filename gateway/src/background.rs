//! What the gateway does without being asked: learns the time, looks whether a purchase could succeed, follows the drain,
//! doubts "sold out", recovers. One future, owned by whoever owns the process; bounded work at each turn.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use stock::{LedgerError, LedgerServer};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::catalog::Offer;
use crate::clock::REFRESH_INTERVAL;
use crate::purchase::{progress, recovery};
use crate::{Gateway, READY_ORDERS_MAX};

/// How often a held "sold out" is doubted.
const DOUBT_INTERVAL: Duration = Duration::from_secs(2);

/// What `/readyz` says of sales that another orders database holds in the ledger.
pub const FOREIGN_SALES: &str = "sales of ours belong to another orders database in the stock ledger: give this deployment a stock.key_prefix or a \
     Redis of its own; if the other database is gone for good, `floodgate ledger adopt`";

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
        self.server_metrics.ready.set(i64::from(self.not_ready().is_empty()));
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

    /// What keeps a purchase from succeeding at the moment; empty means ready.
    #[must_use]
    pub fn not_ready(&self) -> Vec<&'static str> {
        let (open, foreign) = (self.health.ledger_open.load(Ordering::Relaxed), self.has_foreign_sales());
        let lacks = [
            (self.draining.load(Ordering::Relaxed), "shutting down"),
            (self.parts.topic.state() != queue::TopicState::Writable, "the queue takes no records"),
            (!self.health.ledger_answers.load(Ordering::Relaxed), "the stock ledger does not answer"),
            (!open && !foreign, "the stock ledger is being rebuilt"),
            (!open && foreign, FOREIGN_SALES),
            (!self.health.orders_reachable.load(Ordering::Relaxed), "the orders are out of reach"),
            (self.challenges.as_ref().is_some_and(|c| !c.ready()), "too few questions are ready"),
        ];
        lacks.iter().filter(|(lacking, _)| *lacking).map(|(_, what)| *what).collect()
    }

    fn has_foreign_sales(&self) -> bool {
        !self.stock.foreign_sales().is_empty()
    }

    /// What an operator should know although purchases succeed.
    #[must_use]
    pub fn ready_notes(&self) -> Vec<&'static str> {
        let open = self.health.ledger_open.load(Ordering::Relaxed);
        let notes = [
            (
                !self.stock.flag().in_touch(),
                "the sold-out flag's store is out of touch: purchases of sold-out sales ask the stock ledger",
            ),
            (open && self.has_foreign_sales(), FOREIGN_SALES),
            (
                !self.parts.seat.is_leased(),
                "this instance's lease in the stock ledger cannot be renewed: others take it for dead",
            ),
            (
                self.health.ledger_in_part.load(Ordering::Relaxed),
                "a server of the stock ledger does not answer: the sales that it holds cannot be bought",
            ),
        ];
        let own = notes.iter().filter(|(applies, _)| *applies).map(|(_, what)| *what);
        own.chain(self.process_note.and_then(|note| note())).collect()
    }
}
