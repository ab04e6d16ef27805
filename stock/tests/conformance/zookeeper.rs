//! The flag through a real ZooKeeper, one server for the whole suite.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stock::flag::zookeeper::Timing;
use stock::{Flag, SoldOutConfig, ZooKeeperFlag};
use testbed::ZooKeeper;

static SERVER: LazyLock<ZooKeeper> = LazyLock::new(|| ZooKeeper::start().unwrap_or_else(|e| panic!("{e}")));

async fn zookeeper_flag() -> Flag {
    static ROOTS: AtomicU64 = AtomicU64::new(0);
    let root = ROOTS.fetch_add(1, Ordering::Relaxed);
    let zookeeper = format!("{}/test-{root}", SERVER.connect_string()).into();
    let config = SoldOutConfig { zookeeper, ..SoldOutConfig::default() };
    // A busy machine is no silent server.
    let timing = Timing { session_timeout: Duration::from_secs(30), ..Timing::default() };
    let flag = ZooKeeperFlag::connect_with(&config, root, timing).await.unwrap();
    let mut touch = flag.touch();
    let in_touch = tokio::time::timeout(Duration::from_secs(60), touch.wait_for(|touch| *touch));
    in_touch.await.expect("in touch within a minute").unwrap();
    Flag::ZooKeeper(flag)
}

flag_conformance!(zookeeper_flag);
