//! Rounds over sales that come again and again, for each of the ledger's servers by itself: one that is dead or slow holds up no sale of
//! another. Decides nothing of what is looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use stock::ledger::LedgerServer;
use stock::{SaleId, Stock};
use tokio::time::{Instant, sleep};

use super::look::Unfinished;

/// How often it is looked whether a round is due.
const STEP: Duration = Duration::from_millis(500);

/// What the next rounds are about.
pub(super) struct Plan {
    pub(super) sales: Vec<SaleId>,
    /// Every server's round is due now. One that is under way goes on: a look asks what is wanted at its own time.
    pub(super) at_once: bool,
}

/// From the end of a server's round to its next one.
pub(super) struct Pauses {
    pub(super) good: Duration,
    /// After a round in which a look failed.
    pub(super) failed: Duration,
}

/// Looks at the planned sales for ever, one round of a server at a time. A round ends early where its server does not answer.
pub(super) async fn run<F>(
    stock: &Stock,
    pauses: &Pauses,
    mut plan: impl FnMut() -> Plan,
    look: impl Fn(SaleId) -> F,
) where
    F: Future<Output = Result<(), Unfinished>>,
{
    let mut under_way = FuturesUnordered::new();
    // When each server's next round begins; none while one is under way.
    let mut due: BTreeMap<LedgerServer, Option<Instant>> = BTreeMap::new();
    let first = Instant::now() + pauses.good;
    loop {
        let now = Instant::now();
        let Plan { sales, at_once } = plan();
        let mut rounds: BTreeMap<LedgerServer, Vec<SaleId>> = BTreeMap::new();
        for sale in sales {
            rounds.entry(stock.server_of(&sale)).or_default().push(sale);
        }
        for (server, sales) in rounds {
            let next = due.entry(server).or_insert(Some(first));
            if next.is_some_and(|next| next <= now || at_once) {
                *next = None;
                under_way.push(round(server, sales, &look));
            }
        }
        tokio::select! {
            biased;
            Some((server, is_good)) = under_way.next() => {
                let pause = if is_good { pauses.good } else { pauses.failed };
                due.insert(server, Some(Instant::now() + pause));
            }
            () = sleep(STEP) => {}
        }
    }
}

/// Answers whether every look was good.
async fn round<F>(
    server: LedgerServer,
    sales: Vec<SaleId>,
    look: impl Fn(SaleId) -> F,
) -> (LedgerServer, bool)
where
    F: Future<Output = Result<(), Unfinished>>,
{
    let mut is_good = true;
    for sale in sales {
        if let Err(error) = look(sale).await {
            is_good = false;
            if error.is_of_the_server() {
                break;
            }
        }
    }
    (server, is_good)
}
