//! What is refused at the start, and what deploying the scripts does.

use stock::ledger::redis::{RedisStartError, deploy_scripts};

use super::*;

async fn refusal(url: &str) -> RedisStartError {
    RedisLedger::connect(&config(url), DEPLOYMENT).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    let lines = vec![("maxmemory-policy".into(), "allkeys-lru".into())];
    let server = Redis::start(RedisOptions { config: lines, ..Default::default() }).unwrap();
    let error = refusal(&server.url()).await;
    assert!(matches!(&error, RedisStartError::Evicting { policy, .. } if policy == "allkeys-lru"), "{error}");
    assert!(error.to_string().contains("noeviction"), "{error}");
}

#[tokio::test]
async fn a_replica_is_refused() {
    let primary = redis(AppendFsync::Off);
    let lines = vec![("replicaof".into(), format!("127.0.0.1 {}", primary.port()))];
    let replica = Redis::start(RedisOptions { config: lines, ..Default::default() }).unwrap();
    let error = refusal(&replica.url()).await;
    assert!(matches!(error, RedisStartError::Replica { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_named_but_not_shown() {
    let server = redis(AppendFsync::Off);
    server.command(&["CONFIG", "SET", "requirepass", "r1ght"]).unwrap();
    for login in ["", ":wr0ng@", "nobody:wr0ng@"] {
        let error = refusal(&format!("redis://{login}127.0.0.1:{}", server.port())).await;
        assert!(matches!(error, RedisStartError::Login { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error}");
    }
    let good = format!("redis://:r1ght@127.0.0.1:{}/3", server.port());
    assert_eq!(Sale::open(&connect_patiently(&good).await, 2).await.take([1]).await, 1);
}

#[tokio::test]
async fn deploying_loads_every_script_and_changes_nothing() {
    let server = redis(AppendFsync::Off);
    let keys_before = server.command(&["DBSIZE"]).unwrap();
    let deployed = deploy_scripts(&config(&server.url())).await.unwrap();
    assert_eq!(deployed.scripts.len(), 20);
    for script in &deployed.scripts {
        assert_eq!(server.command(&["SCRIPT", "EXISTS", &script.sha]).unwrap().trim(), "1", "{script:?}");
    }
    assert_eq!(server.command(&["DBSIZE"]).unwrap(), keys_before);
    deploy_scripts(&config(&server.url())).await.unwrap();
}

#[tokio::test]
async fn the_ledger_serves_several_runtimes_and_outlives_each() {
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Blocking on another runtime needs a thread that has none.
    let ledger = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let ledger = first.block_on(connect_patiently(&SHARED.url()));
                drop(first);
                ledger
            })
            .join()
            .unwrap()
    });
    let sale = Sale::open(&ledger, 100).await;
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let sale = sale.through(&ledger);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let mut taken = 0;
                        for call in 0..20 {
                            let from = 1_000 * thread + 10 * call;
                            taken += sale.take(from..from + 1 + call % 3).await;
                        }
                        taken
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(taken, 100);
    assert_eq!(sale.units().await, (0, 100, 0));
}
