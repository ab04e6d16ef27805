//! "Now" of the gateway: the time of each of the ledger's servers, carried on by this process's monotonic clock.
//!
//! A machine whose wall clock is wrong must not open a sale early: between two answers of the ledger only elapsed time counts. A
//! sale goes by the clock of the server that holds it ([`SaleClock`]), what belongs to no sale by that of the leases' server; a
//! time of one is never compared with a time of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use stock::{LedgerServer, SaleId, Stock};
use tokio::time::Instant;

/// How often the ledger is asked for its time.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Further from what was expected, a server's clock has not drifted but jumped.
const JUMP_MS: u64 = 5_000;
/// How long a jump stays a note in `/readyz`.
const NOTED_FOR: Duration = Duration::from_secs(600);

/// Never told.
const UNKNOWN: u64 = 0;

/// The time of each server of the ledger. Reading it costs one clock call and one atomic load.
#[derive(Debug)]
pub struct LedgerClocks {
    /// By server: its time at `anchor`, ms, or [`UNKNOWN`]. Written by [`Self::learn`] alone, read by everybody; the one word is
    /// the whole state, so relaxed ordering serves.
    at_anchor_ms: [AtomicU64; LedgerServer::COUNT_MAX],
    /// What counts for a server that was never asked.
    guess_ms: u64,
    anchor: Instant,
    jumps: Counter,
    jumped_at: Mutex<Option<Instant>>,
}

impl LedgerClocks {
    /// All servers start from a first guess, until they have been asked.
    #[must_use]
    pub fn new(guess_ms: u64) -> Self {
        let at_anchor_ms = std::array::from_fn(|_| AtomicU64::new(UNKNOWN));
        let (jumps, jumped_at) = (Counter::default(), Mutex::new(None));
        Self { at_anchor_ms, guess_ms, anchor: Instant::now(), jumps, jumped_at }
    }

    /// Shows the jumps in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Jumps of a ledger server's clock against this process's monotonic clock";
        registry.register("floodgate_ledger_clock_jumps", help, self.jumps.clone());
    }

    /// Whether a server's clock has jumped lately.
    #[must_use]
    pub(crate) fn has_jumped(&self) -> bool {
        self.jumped_at.lock().is_some_and(|at| at.elapsed() < NOTED_FOR)
    }

    /// The time of `server` in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self, server: LedgerServer) -> u64 {
        let at_anchor_ms = match self.at_anchor_ms(server).load(Ordering::Relaxed) {
            UNKNOWN => self.guess_ms,
            told_ms => told_ms,
        };
        at_anchor_ms + ms(self.anchor.elapsed())
    }

    /// Whether `server` has told its time.
    #[must_use]
    pub fn knows(&self, server: LedgerServer) -> bool {
        self.at_anchor_ms(server).load(Ordering::Relaxed) != UNKNOWN
    }

    /// Takes over what a server said: its clock stood at `told_ms` halfway between `asked` and now.
    pub fn learn(&self, server: LedgerServer, asked: Instant, told_ms: u64) {
        let way = asked.elapsed();
        let way_back = way / 2;
        let expected_ms = self.knows(server).then(|| self.now_ms(server).saturating_sub(ms(way_back)));
        if let Some(expected_ms) =
            expected_ms.filter(|expected| expected.abs_diff(told_ms) > JUMP_MS + ms(way))
        {
            self.jumps.inc();
            *self.jumped_at.lock() = Some(Instant::now());
            let jump_s = (told_ms as f64 - expected_ms as f64) / 1e3;
            tracing::error!(
                jump_s,
                server = server.number(),
                "the clock of a server of the stock ledger has jumped: windows and deadlines of its sales go by it; see to its time \
                 server"
            );
        }
        let since_anchor = ms(self.anchor.elapsed().saturating_sub(way_back));
        let at_anchor_ms = told_ms.saturating_sub(since_anchor).max(UNKNOWN + 1);
        self.at_anchor_ms(server).store(at_anchor_ms, Ordering::Relaxed);
    }

    /// Asks a server once, and answers what it said. One out of reach leaves its clock as it is.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn refresh(&self, stock: &Stock, server: LedgerServer) -> Result<u64, stock::LedgerError> {
        let asked = Instant::now();
        let told_ms = stock.now_ms(server).await?;
        self.learn(server, asked, told_ms);
        Ok(told_ms)
    }

    fn at_anchor_ms(&self, server: LedgerServer) -> &AtomicU64 {
        &self.at_anchor_ms[usize::from(server.number())]
    }
}

/// The clock of one sale: which server's it is was looked up once, not at each press.
#[derive(Debug)]
pub struct SaleClock {
    clocks: Arc<LedgerClocks>,
    /// The number of the server that holds the sale. Written when it has moved; a batch that reads the old one a moment longer is
    /// judged by the new server's clock all the same, so relaxed ordering serves.
    server: AtomicU8,
}

impl SaleClock {
    /// That of `sale`, wherever it lives now.
    #[must_use]
    pub fn of(sale: &SaleId, stock: &Stock, clocks: Arc<LedgerClocks>) -> Self {
        Self { clocks, server: AtomicU8::new(stock.server_of(sale).number()) }
    }

    /// The time of the sale's server in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clocks.now_ms(self.server())
    }

    /// Whose time it is.
    #[must_use]
    pub fn server(&self) -> LedgerServer {
        LedgerServer::numbered(self.server.load(Ordering::Relaxed))
    }

    /// The sale lives on `server` from now on.
    pub fn follow(&self, server: LedgerServer) {
        self.server.store(server.number(), Ordering::Relaxed);
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_between_two_answers_of_the_ledger() {
        let clocks = LedgerClocks::new(5_000);
        let (server, other) = (LedgerServer::FIRST, LedgerServer::numbered(255));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!((clocks.now_ms(server), clocks.knows(server)), (5_250, false));
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        clocks.learn(server, asked, 9_000);
        assert_eq!(clocks.now_ms(server), 9_050, "the answer was 50 ms on its way");
        tokio::time::advance(Duration::from_millis(1_000)).await;
        assert_eq!(clocks.now_ms(server), 10_050);
        assert_eq!(
            (clocks.now_ms(other), clocks.knows(other)),
            (6_350, false),
            "another server's is its own"
        );
        clocks.learn(other, Instant::now(), 1);
        assert_eq!((clocks.now_ms(other), clocks.knows(other)), (1_351, true));
        assert!(!clocks.has_jumped(), "the first word of a server, and a few seconds more or less, are none");
        clocks.learn(server, Instant::now(), 10_050 + 3_600_000);
        assert_eq!((clocks.now_ms(server), clocks.jumps.get()), (3_610_050, 1));
        clocks.learn(server, Instant::now(), 10_050);
        assert_eq!((clocks.now_ms(server), clocks.jumps.get(), clocks.has_jumped()), (10_050, 2, true));
    }
}
