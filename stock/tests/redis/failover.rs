//! Sentinel: a replica is promoted, up to date or lagging.

use testbed::{Proxy, Sentinel};

use super::*;

async fn through_sentinels(sentinel: &Sentinel) -> Ledger {
    let config = sentinel_config(&sentinel.sentinel_urls(), sentinel.master_name());
    Ledger::Redis(RedisLedger::connect_with(&config, DEPLOYMENT, PATIENCE).await.unwrap())
}

/// Every replica has what the primary had when this was asked.
fn wait_for_replicas(sentinel: &Sentinel) {
    let replicas = sentinel.replicas().len().to_string();
    assert_eq!(sentinel.primary().command(&["WAIT", &replicas, "10000"]).unwrap().trim(), replicas);
}

/// A server that is cut off with some of the Sentinels may be one of two primaries: it serves, but nobody vouches for it.
#[tokio::test]
async fn nobody_vouches_for_a_primary_that_no_majority_names() {
    let sentinel = Sentinel::start(1).unwrap();
    let proxies: Vec<_> =
        sentinel.sentinels().iter().map(|sentinel| Proxy::start(sentinel.port()).unwrap()).collect();
    let urls: Vec<_> = proxies.iter().map(|proxy| format!("redis://127.0.0.1:{}", proxy.port())).collect();
    let config = sentinel_config(&urls, sentinel.master_name());
    let ledger = Ledger::Redis(RedisLedger::connect_with(&config, DEPLOYMENT, PATIENCE).await.unwrap());
    let sale = Sale::open(&ledger, 10).await;
    let sight = || ledger.sight().unwrap().unwrap();
    let first = sight();
    let vouched = async |is: bool| {
        until("the Sentinels are counted", async || (sight().is_witness == is).then_some(())).await;
    };
    vouched(true).await;
    proxies[0].cut().unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(sight().is_witness, "two of three are a majority");
    proxies[1].cut().unwrap();
    vouched(false).await;
    assert_eq!(sale.take([1]).await, 1, "it is the only one that is known here");
    proxies[2].cut().unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!((sight().is_witness, sale.take([2]).await), (false, 1));
    proxies.iter().for_each(|proxy| proxy.heal().unwrap());
    vouched(true).await;
    assert_eq!(sight().ledger, first.ledger, "the same memory has one name");
}

async fn back_as_amnesia(sale: &Sale) {
    let amnesia = async || (sale.snapshot().await == Err(LedgerError::Amnesia)).then_some(());
    until("the promoted server is found", amnesia).await;
}

#[tokio::test]
async fn a_promoted_replica_is_found_and_is_another_memory() {
    let sentinel = Sentinel::start(1).unwrap();
    let sale = Sale::open(&through_sentinels(&sentinel).await, 10).await;
    assert_eq!(sale.take([1, 2]).await, 2);
    let before = sale.ledger.sight().unwrap();
    wait_for_replicas(&sentinel);
    sentinel.primary().kill().unwrap();
    sentinel.wait_for_other_primary(sentinel.primary()).unwrap();
    back_as_amnesia(&sale).await;
    assert_eq!(sale.reserve([3]).await.unwrap_err(), LedgerError::Amnesia);
    assert_ne!(sale.ledger.sight().unwrap(), before, "another memory has another name");
    sale.install(2).await.unwrap();
    sale.ledger.restore(sale.id(), 2, OWNER, &sale.reservations([1, 2])).await.unwrap();
    sale.ledger.open(sale.id(), 2).await.unwrap();
    assert_eq!(sale.units().await, (8, 2, 0));
}

#[tokio::test]
async fn a_start_waits_for_sentinels_that_still_name_a_demoted_primary() {
    let sentinel = Sentinel::start(1).unwrap();
    let (primary, other) = (sentinel.primary(), redis(AppendFsync::Off));
    // As after a failover of which the Sentinels have not heard.
    primary.command(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]).unwrap();
    // Nobody else logs in there, so that this is counted: the second login is that of a second try.
    primary.command(&["ACL", "SETUSER", "waits", "on", ">pw", "~*", "&*", "+@all"]).unwrap();
    let urls: Vec<_> = sentinel.sentinel_urls().iter().map(|url| url.replace("//", "//waits:pw@")).collect();
    let config = sentinel_config(&urls, sentinel.master_name());
    let logins =
        || primary.info("cmdstat_auth").map_or(0, |stat| stat["calls=".len()..][..1].parse().unwrap());
    let connecting = async { RedisLedger::connect_with(&config, DEPLOYMENT, PATIENCE).await.unwrap() };
    let promoting = async {
        until("it tries again", async || (logins() >= 2).then_some(())).await;
        primary.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    };
    let (ledger, ()) = tokio::join!(connecting, promoting);
    assert_eq!(Sale::open(&Ledger::Redis(ledger), 2).await.take([1]).await, 1);
}

#[tokio::test]
async fn a_lagging_replica_never_serves_what_it_has() {
    let sentinel = Sentinel::start(1).unwrap();
    let primary = sentinel.primary();
    let ledger = through_sentinels(&sentinel).await;
    let sale = Sale::open(&ledger, 3).await;
    assert_eq!(sale.take([1]).await, 1);
    wait_for_replicas(&sentinel);
    // From here on the replica may not follow: it loses its link and gets no other one.
    primary.command(&["ACL", "SETUSER", "default", "-psync", "-sync"]).unwrap();
    primary.command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    let followers = || primary.info("connected_slaves").unwrap();
    until("the replica has lost its link", async || (followers() == "0").then_some(())).await;
    assert_eq!(sale.take([2, 3]).await, 2, "promised, and only the primary knows");
    primary.kill().unwrap();
    let promoted = sentinel.wait_for_other_primary(primary).unwrap();
    back_as_amnesia(&sale).await;
    let books = format!("{{fg:{}}}:books", sale.id());
    let left = promoted.command(&["HGET", &books, "remaining"]).unwrap();
    assert_eq!(left.trim(), "2", "it lags: it would sell these two again");
    assert_eq!(sale.reserve([4]).await.unwrap_err(), LedgerError::Amnesia);
    assert_eq!(sale.reserve([4, 5]).await.unwrap_err(), LedgerError::Amnesia);
    sale.install(2).await.unwrap();
    sale.ledger.restore(sale.id(), 2, OWNER, &sale.reservations([1, 2, 3])).await.unwrap();
    sale.ledger.open(sale.id(), 2).await.unwrap();
    assert_eq!(sale.units().await, (0, 3, 0));
}
