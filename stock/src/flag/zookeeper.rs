//! The sold-out flag through ZooKeeper: one znode a sale, read by every process, written by whoever hears of it first.
//!
//! A thread of its own, with a runtime of its own, owns the session, so that callers of any runtime neither wait for
//! ZooKeeper nor keep it alive. Reads go to the cells of this process, as with the embedded flag. A publication is in
//! the cell at once and waits in a bounded outbox for the thread. While the store is out of touch every cell is unknown,
//! but for what this very process heard from the ledger since.

pub(crate) mod address;
mod outbox;
mod session;
mod znode;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{EdgeFeed, EmbeddedFlag, FlagCell, FlagError, FlagState};
use crate::SaleId;
use crate::config::SoldOutConfig;
use crate::metrics::FlagMetrics;
use address::Address;
use outbox::{Intent, Outbox};

/// Sales that are followed, and sales that can wait to be written.
const SALES_MAX: usize = 4_096;
/// Between two sessions, doubled up to the maximum as long as none lasts.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A session that was in touch for this long was no failure.
const LASTING: Duration = Duration::from_secs(5);

/// How long things take. The default serves; tests are in more of a hurry.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Asked of the server, which may raise it. A server that says nothing for two fifths of it is given up.
    pub session_timeout: Duration,
    /// Between two full reads, give or take a quarter: the net under the watches.
    pub reread_interval: Duration,
    /// How long [`ZooKeeperFlag::connect`] waits for the first full read.
    pub first_read_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_secs(6),
            reread_interval: Duration::from_secs(30),
            first_read_max: Duration::from_secs(3),
        }
    }
}

/// See the module. Clones share one session, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct ZooKeeperFlag {
    shared: Arc<Shared>,
    /// Its end is the thread's.
    _running: watch::Sender<()>,
}

/// What callers and the thread share.
#[derive(Debug)]
struct Shared {
    cells: EmbeddedFlag,
    outbox: Outbox,
    in_touch: watch::Sender<bool>,
    metrics: FlagMetrics,
    /// The state of a generator of jitter; a lone number, so relaxed.
    random: AtomicU64,
}

impl ZooKeeperFlag {
    /// Begins to keep in touch, and waits a moment for the first full read. A store that cannot be reached is no error: the
    /// flags are unknown then, the ledger is asked, and the thread keeps trying. `life` is random, see [`EmbeddedFlag::new`].
    ///
    /// # Errors
    /// [`FlagError::Unavailable`]: the address makes no sense, or the system gives no thread.
    pub async fn connect(config: &SoldOutConfig, life: u64) -> Result<Self, FlagError> {
        Self::connect_with(config, life, Timing::default()).await
    }

    /// The same, in another hurry.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_with(config: &SoldOutConfig, life: u64, timing: Timing) -> Result<Self, FlagError> {
        let address = Address::parse(config.zookeeper.reveal())
            .map_err(|problem| FlagError::Unavailable(format!("sold_out.zookeeper: {problem}")))?;
        let metrics = FlagMetrics::default();
        let shared = Arc::new(Shared {
            cells: EmbeddedFlag::new(life),
            outbox: Outbox::new(metrics.waiting.clone()),
            in_touch: watch::Sender::new(false),
            metrics,
            random: AtomicU64::new(life),
        });
        let (running, ending) = watch::channel(());
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("zookeeper".into())
            .spawn(move || serve(&of_thread, address, timing, ending))
            .map_err(|error| FlagError::Unavailable(format!("no thread for its session: {error}")))?;
        let flag = Self { shared, _running: running };
        let mut touch = flag.touch();
        if tokio::time::timeout(timing.first_read_max, touch.wait_for(|touch| *touch)).await.is_err() {
            tracing::warn!(
                zookeeper = %config.zookeeper,
                "ZooKeeper does not answer yet: until it does, every purchase asks the ledger"
            );
        }
        Ok(flag)
    }

    /// Whether the store is in touch, with everything read at least once since it was last lost.
    #[must_use]
    pub fn touch(&self) -> watch::Receiver<bool> {
        self.shared.in_touch.subscribe()
    }

    /// Publications and removals that the store has not heard of yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.outbox.all().len()
    }

    pub(super) fn cell(&self, sale: &SaleId) -> Arc<FlagCell> {
        self.shared.cells.cell(sale)
    }

    pub(super) fn publish(&self, sale: &SaleId, state: FlagState) -> Result<(), FlagError> {
        self.shared.cells.publish(sale, state);
        if !self.shared.outbox.put(sale, Intent::Write(state)) {
            return Err(FlagError::Unavailable("too many sales wait to be written".into()));
        }
        if !*self.shared.in_touch.borrow() {
            return Err(FlagError::Unavailable("ZooKeeper is out of touch; the state is kept for it".into()));
        }
        Ok(())
    }

    pub(super) fn forget(&self, sale: &SaleId) {
        self.shared.cells.forget(sale);
        // Without room the znode stays: a hint about a sale that nobody offers.
        self.shared.outbox.put(sale, Intent::Remove);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.cells.subscribe()
    }

    pub(super) fn feed(&self) -> EdgeFeed {
        self.shared.cells.feed()
    }

    pub(super) fn metrics(&self) -> &FlagMetrics {
        &self.shared.metrics
    }
}

impl Shared {
    // ## OutOfTouch => InTouch
    fn touch(&self) {
        self.metrics.in_touch.set(1);
        if !self.in_touch.send_replace(true) {
            tracing::info!("in touch with ZooKeeper: sold-out flags travel");
        }
    }

    // ## InTouch => OutOfTouch. Nobody may believe what nobody would correct.
    fn lose_touch(&self) -> bool {
        self.metrics.in_touch.set(0);
        let was = self.in_touch.send_replace(false);
        self.cells.forget_states();
        was
    }

    /// Three to five quarters of `time`, so that gateways do not all do the same at once. (splitmix64)
    fn jitter(&self, time: Duration) -> Duration {
        let mut z = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let part = (z >> 40) as f64 / (1u64 << 24) as f64;
        time.mul_f64(0.75 + part / 2.0)
    }
}

/// The thread: sessions, one after the other, until nobody holds the flag any more.
fn serve(shared: &Arc<Shared>, address: Address, timing: Timing, mut ending: watch::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime for ZooKeeper: every purchase asks the ledger");
            return;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            // Nothing is ever sent: it ends with the last sender.
            _ = ending.changed() => {}
            () = supervise(shared, address, timing) => {}
        }
    });
    shared.lose_touch();
}

async fn supervise(shared: &Arc<Shared>, address: Address, timing: Timing) {
    let mut backoff = BACKOFF_MIN;
    let mut told = String::new();
    loop {
        let begun = Instant::now();
        // In a task of its own: a client that panics is a lost session, not a lost thread.
        let session = tokio::spawn(session::run(shared.clone(), address.clone(), timing)).await;
        let reason = match &session {
            Ok(ended) => ended.to_string(),
            Err(error) => error.to_string(),
        };
        let was_in_touch = shared.lose_touch();
        if was_in_touch {
            tracing::warn!(
                reason,
                "out of touch with ZooKeeper: until it is back, every purchase asks the ledger"
            );
        } else if reason != told {
            // Once, not at each try: a login or an ACL that does not fit is not cured by waiting.
            tracing::warn!(
                reason,
                "no session with ZooKeeper: until there is one, every purchase asks the ledger"
            );
        }
        told = reason;
        let lasted = was_in_touch && begun.elapsed() >= LASTING;
        backoff = if lasted { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
        sleep(shared.jitter(backoff)).await;
    }
}
