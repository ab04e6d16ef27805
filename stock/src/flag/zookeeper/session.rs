//! One session with ZooKeeper, from the first full read to the first loss of its connection.
//!
//! A session is never carried over a reconnection: what the client sends again of its watches cannot be trusted to be
//! all, and everything must be read again anyway, since what was known is unknown from that moment. So a lost connection
//! ends the session here, and the supervisor begins another one. No watcher is dropped while its session lives: removing
//! one races with its event in the client.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use zookeeper_client::{Client, Error, EventType, SessionState, Stat};

use super::address::Address;
use super::outbox::Intent;
use super::{SALES_MAX, Shared, Timing, znode};
use crate::metrics::FlagWrite;
use crate::{FlagVersion, SaleId};

/// Rounds of read and conditional write before a sale's intent waits for a while: somebody else writes all the time.
const ROUNDS_MAX: usize = 16;
/// How long an intent that the store refused waits.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Longest full read. The client itself gives up on a server that says nothing at all.
const READ_MAX: Duration = Duration::from_secs(20);

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The client's state.
    #[error("the session is {0}")]
    State(SessionState),
    /// A call failed for a reason that the sale's data does not explain.
    #[error("{0}")]
    Failed(#[from] Error),
    /// What follows one sale broke.
    #[error("{0}")]
    Broke(#[from] JoinError),
    /// A call took longer than it may.
    #[error("no answer in time")]
    TimedOut,
}

struct Session {
    shared: Arc<Shared>,
    client: Client,
    address: Address,
    /// What stood in each sale's znode when it was last read or written in this session.
    seen: Mutex<BTreeMap<SaleId, Seen>>,
    /// The followed sales may not be all.
    adopt: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// None: another version's, see [`znode::decode`].
    state: Option<FlagVersion>,
    /// ZooKeeper's own version of the data, which a conditional write names.
    znode: i32,
    /// The transaction that made the znode.
    made: i64,
}

impl Seen {
    fn of(state: Option<FlagVersion>, stat: &Stat) -> Self {
        Self { state, znode: stat.version, made: stat.czxid }
    }
}

/// What became of an intent.
enum Carried {
    Out,
    Refused,
}

/// Lives as long as one connection; answers with what ended it.
pub(super) async fn run(shared: Arc<Shared>, address: Address, timing: Timing) -> Ended {
    match live(shared, address, timing).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn live(
    shared: Arc<Shared>,
    address: Address,
    timing: Timing,
) -> Result<std::convert::Infallible, Ended> {
    let connecting = address.connect(timing.session_timeout);
    let client = timeout(2 * timing.session_timeout, connecting).await.map_err(|_| Ended::TimedOut)??;
    shared.metrics.sessions.inc();
    let session = Arc::new(Session {
        shared,
        client: client.clone(),
        address,
        seen: Mutex::default(),
        adopt: Notify::new(),
    });
    tokio::select! {
        biased;
        ended = lost(&client) => Err(ended),
        ended = session.read(timing) => ended,
        ended = session.write() => ended,
    }
}

/// Waits until the client is anything but connected.
async fn lost(client: &Client) -> Ended {
    let mut states = client.state_watcher();
    let mut state = client.state();
    while state == SessionState::SyncConnected {
        state = states.changed().await;
    }
    Ended::State(state)
}

impl Session {
    // ## Reading

    /// Reads everything once, then follows every sale's znode and the list of them, and reads everything again now and then.
    async fn read(self: &Arc<Self>, timing: Timing) -> Result<std::convert::Infallible, Ended> {
        self.client.mkdir(self.address.folder(), &self.address.options()).await?;
        timeout(READ_MAX, self.read_all()).await.map_err(|_| Ended::TimedOut)??;
        self.shared.touch();
        let again = async {
            loop {
                sleep(self.shared.jitter(timing.reread_interval)).await;
                timeout(READ_MAX, self.read_all()).await.map_err(|_| Ended::TimedOut)??;
                self.adopt.notify_one();
            }
        };
        tokio::select! {
            ended = self.follow_all() => ended,
            ended = again => ended,
        }
    }

    /// The slow net under the watches, and the first look.
    async fn read_all(&self) -> Result<(), Ended> {
        let sales = self.sales().await?;
        for sale in &sales {
            match self.client.get_data(&self.address.znode(sale)).await {
                Ok((data, stat)) => self.heard(sale, &data, &stat),
                Err(Error::NoNode) => self.vanished(sale),
                Err(error) => return Err(error.into()),
            }
        }
        let gone: Vec<_> = self.seen.lock().keys().filter(|sale| !sales.contains(*sale)).cloned().collect();
        for sale in gone {
            // Made after the list was read, or gone for good: its own znode tells.
            if let Err(Error::NoNode) = self.client.get_data(&self.address.znode(&sale)).await {
                self.vanished(&sale);
            }
        }
        Ok(())
    }

    async fn sales(&self) -> Result<BTreeSet<SaleId>, Ended> {
        Ok(known_sales(self.client.list_children(self.address.folder()).await?))
    }

    async fn follow_all(self: &Arc<Self>) -> Result<std::convert::Infallible, Ended> {
        let mut followers = JoinSet::new();
        let mut followed = BTreeSet::new();
        loop {
            let (names, watcher) = self.client.list_and_watch_children(self.address.folder()).await?;
            let mut sales = known_sales(names);
            let mut changed = pin!(watcher.changed());
            loop {
                for sale in std::mem::take(&mut sales) {
                    if followed.len() < SALES_MAX && followed.insert(sale.clone()) {
                        followers.spawn(self.clone().follow(sale));
                    }
                }
                tokio::select! {
                    event = &mut changed => {
                        if event.event_type == EventType::Session {
                            return Err(Ended::State(event.session_state));
                        }
                        break;
                    }
                    Some(follower) = followers.join_next() => {
                        followed.remove(&follower??);
                        // Made again meanwhile, perhaps, when the list's watch had fired already.
                        sales = self.sales().await?;
                    }
                    () = self.adopt.notified() => sales = self.sales().await?,
                }
            }
        }
    }

    /// One-shot watches in a loop, each set by the read that it guards; ends when the znode is gone.
    async fn follow(self: Arc<Self>, sale: SaleId) -> Result<SaleId, Ended> {
        let path = self.address.znode(&sale);
        loop {
            let (data, stat, watcher) = match self.client.get_and_watch_data(&path).await {
                Ok(read) => read,
                Err(Error::NoNode) => {
                    self.vanished(&sale);
                    return Ok(sale);
                }
                Err(error) => return Err(error.into()),
            };
            self.heard(&sale, &data, &stat);
            let event = watcher.changed().await;
            if event.event_type == EventType::Session {
                return Err(Ended::State(event.session_state));
            }
        }
    }

    fn heard(&self, sale: &SaleId, data: &[u8], stat: &Stat) {
        let state = znode::decode(data);
        let seen = Seen::of(state.map(|state| state.version), stat);
        let before = self.seen.lock().get(sale).copied();
        if before.is_some_and(|before| before.made != seen.made) {
            // It was gone in between, faster than its watch was followed.
            self.vanished(sale);
        }
        self.seen.lock().insert(sale.clone(), seen);
        let Some(state) = state else {
            self.shared.metrics.unreadable.inc();
            return;
        };
        self.shared.cells.publish(sale, state);
        // This process knows better: a write of ours was lost, or the store forgot it.
        if let Some(held) = self.shared.cells.cell(sale).read()
            && held.version > state.version
        {
            self.shared.outbox.put(sale, Intent::Write(held));
        }
    }

    fn vanished(&self, sale: &SaleId) {
        self.seen.lock().remove(sale);
        // A state that waits is on its way to a znode of its own.
        if !self.shared.outbox.holds_state(sale) {
            self.shared.cells.forget_state(sale);
        }
    }

    // ## Writing

    /// Carries intents out as they come. One that the store refuses stays and is tried again, without holding the others.
    async fn write(&self) -> Result<std::convert::Infallible, Ended> {
        loop {
            let mut refused = false;
            for (sale, intent) in self.shared.outbox.all() {
                match self.carry_out(&sale, intent).await? {
                    Carried::Out => self.shared.outbox.done(&sale, intent),
                    Carried::Refused => refused = true,
                }
            }
            if refused {
                let _ = timeout(REFUSED_FOR, self.shared.outbox.changed()).await;
            } else {
                self.shared.outbox.changed().await;
            }
        }
    }

    /// A process that dies here leaves either state behind. Both heal: a stale "open" sends buyers to the ledger, and who
    /// holds a stale "sold out" asks the ledger and publishes what it says. A write whose answer is lost ends the session;
    /// its intent stays, and the next session begins with reading.
    async fn carry_out(&self, sale: &SaleId, intent: Intent) -> Result<Carried, Ended> {
        let path = self.address.znode(sale);
        if let Intent::Remove | Intent::Renew(_) = intent {
            match self.client.delete(&path, None).await {
                Ok(()) | Err(Error::NoNode) => _ = self.seen.lock().remove(sale),
                Err(error) => return self.refused(sale, error),
            }
        }
        let state = match intent {
            Intent::Remove => return Ok(self.carried(FlagWrite::Removed)),
            Intent::Write(state) => state,
            Intent::Renew(state) => {
                // It may have been read again meanwhile.
                self.shared.cells.forget_state(sale);
                self.shared.cells.publish(sale, state);
                state
            }
        };
        for _ in 0..ROUNDS_MAX {
            let seen = self.seen.lock().get(sale).copied();
            let written = match seen {
                Some(Seen { state: None, .. }) => return Ok(self.carried(FlagWrite::Refused)),
                Some(Seen { state: Some(version), .. }) if version >= state.version => {
                    return Ok(self.carried(FlagWrite::Superseded));
                }
                Some(Seen { znode, .. }) => {
                    self.client.set_data(&path, &znode::encode(state), Some(znode)).await
                }
                None => match self.client.get_data(&path).await {
                    Ok((data, stat)) => {
                        self.heard(sale, &data, &stat);
                        continue;
                    }
                    Err(Error::NoNode) => {
                        let options = self.address.options();
                        self.client.create(&path, &znode::encode(state), &options).await.map(|(stat, _)| stat)
                    }
                    Err(error) => return self.refused(sale, error),
                },
            };
            match written {
                Ok(stat) => {
                    self.seen.lock().insert(sale.clone(), Seen::of(Some(state.version), &stat));
                    return Ok(self.carried(FlagWrite::Written));
                }
                // Somebody was quicker: read, and judge anew.
                Err(Error::BadVersion | Error::NodeExists) => _ = self.seen.lock().remove(sale),
                // The znode is gone, or the folder with it.
                Err(Error::NoNode) => {
                    self.seen.lock().remove(sale);
                    self.client.mkdir(self.address.folder(), &self.address.options()).await?;
                }
                Err(error) => return self.refused(sale, error),
            }
        }
        Ok(self.carried(FlagWrite::Refused))
    }

    fn carried(&self, write: FlagWrite) -> Carried {
        self.shared.metrics.count(write);
        if write == FlagWrite::Refused { Carried::Refused } else { Carried::Out }
    }

    /// An error of this sale's znode keeps the intent; any other one ends the session.
    fn refused(&self, sale: &SaleId, error: Error) -> Result<Carried, Ended> {
        match error {
            Error::NoAuth | Error::InvalidAcl | Error::QuotaExceeded | Error::Throttled | Error::NotEmpty => {
                tracing::warn!(%sale, %error, "ZooKeeper refuses the sold-out flag of a sale: check the login, ACL and quota");
                Ok(self.carried(FlagWrite::Refused))
            }
            error => Err(error.into()),
        }
    }
}

/// Names that are no sale are somebody else's znodes. Of too many sales the first ones by name are followed.
fn known_sales(names: Vec<String>) -> BTreeSet<SaleId> {
    let mut sales: BTreeSet<SaleId> = names.iter().filter_map(|name| name.parse().ok()).collect();
    while sales.len() > SALES_MAX {
        sales.pop_last();
    }
    sales
}
