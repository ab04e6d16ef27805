//! The flag between processes, through real ZooKeeper servers.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod faults;
mod travels;

use std::sync::LazyLock;
use std::time::Duration;

use stock::flag::zookeeper::Timing;
use stock::{Flag, FlagState, FlagVersion, SaleId, SoldOutConfig, ZooKeeperFlag};
use testbed::ZooKeeper;
use tokio::time::timeout;
use zookeeper_client::Client;

/// Far beyond anything that should be needed, on the slowest machine.
const AT_LAST: Duration = Duration::from_secs(90);

static SERVER: LazyLock<ZooKeeper> = LazyLock::new(|| ZooKeeper::start().unwrap_or_else(|e| panic!("{e}")));

/// No reading again: what arrives has come by watches. A busy machine is no silent server.
fn by_watches_alone() -> Timing {
    Timing {
        session_timeout: Duration::from_secs(20),
        reread_interval: Duration::from_secs(3_600),
        first_read_max: Duration::from_millis(100),
    }
}

/// Silence is noticed within 0.8 s.
fn impatient() -> Timing {
    Timing { session_timeout: Duration::from_secs(2), ..by_watches_alone() }
}

fn config(zookeeper: String) -> SoldOutConfig {
    SoldOutConfig { zookeeper: zookeeper.into(), ..SoldOutConfig::default() }
}

/// A process, as far as the flag goes.
struct Peer {
    store: ZooKeeperFlag,
    flag: Flag,
}

impl Peer {
    async fn start(zookeeper: String) -> Self {
        let peer = Self::start_with(zookeeper, by_watches_alone()).await;
        peer.in_touch(true).await;
        peer
    }

    async fn start_impatient(zookeeper: String) -> Self {
        let peer = Self::start_with(zookeeper, impatient()).await;
        peer.in_touch(true).await;
        peer
    }

    async fn start_with(zookeeper: String, timing: Timing) -> Self {
        let store = ZooKeeperFlag::connect_with(&config(zookeeper), 7, timing).await.unwrap();
        Self { flag: Flag::ZooKeeper(store.clone()), store }
    }

    async fn in_touch(&self, expected: bool) {
        let mut touch = self.store.touch();
        let arrived = timeout(AT_LAST, touch.wait_for(|touch| *touch == expected)).await;
        arrived.unwrap_or_else(|_| panic!("in touch should become {expected}")).unwrap();
    }

    /// In touch or not: it is kept.
    async fn publish(&self, sale: &SaleId, state: FlagState) {
        let _ = self.flag.publish(sale, state).await;
    }

    async fn hears(&self, sale: &SaleId, expected: Option<FlagState>) {
        let cell = self.flag.cell(sale);
        let mut changes = self.flag.subscribe();
        let heard = timeout(AT_LAST, changes.wait_for(|_| cell.read() == expected)).await;
        heard.unwrap_or_else(|_| panic!("should hear {expected:?}, holds {:?}", cell.read())).unwrap();
    }

    /// Nothing is left to be told.
    async fn told_all(&self) {
        let told = async {
            while self.store.waiting() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(AT_LAST, told).await.expect("everything should be written at last");
    }
}

fn sale(name: &str) -> SaleId {
    name.parse().unwrap()
}

fn sold_out(epoch: u64, counter: u64) -> FlagState {
    FlagState { sold_out: true, version: FlagVersion { epoch, counter } }
}

fn open(epoch: u64, counter: u64) -> FlagState {
    FlagState { sold_out: false, version: FlagVersion { epoch, counter } }
}

/// A plain client, to look behind the adapter's back.
async fn by_hand(server: &ZooKeeper) -> Client {
    timeout(AT_LAST, Client::connect(&server.connect_string())).await.expect("the server runs").unwrap()
}
