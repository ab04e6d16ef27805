//! What the gateway does without being asked: learns the time, looks whether a purchase could succeed, follows the drain,
//! doubts "sold out", recovers. One future, owned by whoever owns the process; bounded work at each turn.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::Gateway;
use crate::clock::REFRESH_INTERVAL;
use crate::purchase::{progress, recovery};

/// How often a held "sold out" is doubted.
const DOUBT_INTERVAL: Duration = Duration::from_secs(2);

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
}
