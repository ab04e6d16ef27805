//! One server: killed, frozen, flushed, full, made a replica, behind a network that swallows answers.

use testbed::Proxy;

use super::*;

/// Nothing was carried out, and the caller knows.
fn unavailable<T: std::fmt::Debug>(answer: Result<T, LedgerError>) -> bool {
    matches!(answer, Err(LedgerError::Unavailable(_)))
}

#[tokio::test]
async fn a_restart_that_kept_the_data_is_amnesia_before_the_first_batch() {
    let server = redis(AppendFsync::Always);
    let sale = Sale::open(&connect(&server.url()).await, 5).await;
    assert_eq!(sale.take([1, 2]).await, 2);
    server.kill().unwrap();
    let answer = sale.reserve([3]).await;
    assert!(matches!(answer, Err(LedgerError::Uncertain(_) | LedgerError::Unavailable(_))), "{answer:?}");
    server.restart().unwrap();
    until("the ledger is back", async || sale.ledger.now_ms(LedgerServer::FIRST).await.ok()).await;
    let amnesia = LedgerError::Amnesia;
    assert_eq!(sale.reserve([4]).await.unwrap_err(), amnesia);
    assert_eq!(sale.reserve([4, 5]).await.unwrap_err(), amnesia);
    assert_eq!(sale.ledger.confirm(sale.id(), &sale.settlements([1])).await.unwrap_err(), amnesia);
    assert_eq!(sale.state(1).await.unwrap_err(), amnesia);
    assert_eq!(sale.snapshot().await.unwrap_err(), amnesia);
    assert_eq!(sale.ledger.pending(sale.id(), None, None, 10).await.unwrap_err(), amnesia);
    assert_eq!(sale.ledger.push_sale(&sale.version).await.unwrap_err(), amnesia);
    assert_eq!(sale.ledger.open(sale.id(), 1).await.unwrap_err(), amnesia);
    assert_eq!(sale.ledger.forget(sale.id()).await.unwrap_err(), amnesia);
    assert_eq!(sale.install(1).await.unwrap_err(), amnesia, "this epoch lived elsewhere");
    // The rebuild: a newer epoch replaces what is there.
    sale.install(2).await.unwrap();
    assert_eq!(sale.units().await, (5, 0, 0));
    sale.ledger.restore(sale.id(), 2, OWNER, &sale.reservations([1, 2])).await.unwrap();
    sale.ledger.open(sale.id(), 2).await.unwrap();
    assert_eq!(sale.units().await, (3, 2, 0));
    let old = sale.reserve([3]).await;
    assert_eq!(old.unwrap_err(), LedgerError::WrongEpoch { current: 2 });
}

#[tokio::test]
async fn a_restart_that_forgot_knows_no_sale() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect(&server.url()).await, 5).await;
    server.restart().unwrap();
    let unknown = LedgerError::UnknownSale(sale.id().clone());
    let error =
        until("the ledger is back", async || sale.reserve([1]).await.err().filter(|error| *error == unknown));
    error.await;
    sale.install(2).await.unwrap();
    assert_eq!(sale.units().await, (5, 0, 0));
}

#[tokio::test]
async fn flushed_scripts_heal_and_a_flushed_sale_is_unknown() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect(&server.url()).await, 5).await;
    assert_eq!(sale.take([1]).await, 1);
    server.command(&["SCRIPT", "FLUSH"]).unwrap();
    assert_eq!(sale.take([2]).await, 1, "the single script");
    assert_eq!(sale.take([3, 4]).await, 2, "the batch script");
    assert_eq!(sale.units().await, (1, 4, 0));
    server.command(&["FLUSHALL"]).unwrap();
    assert_eq!(sale.reserve([5]).await.unwrap_err(), LedgerError::UnknownSale(sale.id().clone()));
}

#[tokio::test]
async fn late_scripts_of_a_frozen_server_take_nothing_past_their_deadline() {
    let server = redis(AppendFsync::Off);
    let ledger = connect(&server.url()).await;
    let sale = Sale::open(&ledger, 1_000).await;
    let others = [connect(&server.url()).await, connect(&server.url()).await];
    let calls_before = calls_of(&server, "evalsha");
    server.freeze().unwrap();
    // What was sent stays in the server's socket and is carried out when it thaws.
    let now_ms = ledger_time();
    // All at once, before any keeper notices by itself.
    let call = async |n: u64, ledger: &Ledger| {
        let mut batch = sale.batch(100 * n..100 * n + 50);
        batch.deadline_ms = now_ms + 900;
        let lost = ledger.reserve(&batch).await;
        // The breaker is open now: nothing more is sent.
        assert!(unavailable(ledger.reserve(&batch).await));
        lost
    };
    let lost: [_; 3] = tokio::join!(call(0, &ledger), call(1, &others[0]), call(2, &others[1])).into();
    let uncertain = lost.iter().all(|answer| matches!(answer, Err(LedgerError::Uncertain(_))));
    assert!(uncertain, "a frozen server's answers are uncertain: {lost:?}");
    until("the deadline has passed", async || (ledger_time() > now_ms + 900).then_some(())).await;
    server.thaw().unwrap();
    // Carried out late, not merely dropped.
    until("the late scripts ran", async || (calls_of(&server, "evalsha") >= calls_before + 3).then_some(()))
        .await;
    until("the ledger is back", async || ledger.now_ms(LedgerServer::FIRST).await.ok()).await;
    assert_eq!(sale.units().await, (1_000, 0, 0), "nothing is taken past the deadline");
}

#[tokio::test]
async fn a_batch_that_was_carried_out_late_and_repeated_takes_each_id_once() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect(&server.url()).await, 1_000).await;
    server.freeze().unwrap();
    let first = sale.reserve(0..64).await;
    assert!(matches!(first, Err(LedgerError::Uncertain(_))), "{first:?}");
    server.thaw().unwrap();
    let again = until("the ledger is back", async || sale.reserve(0..64).await.ok()).await;
    assert!(again.iter().all(|outcome| matches!(outcome, ReserveOutcome::Pending { .. })), "{again:?}");
    assert_eq!(sale.units().await, (936, 64, 0));
    let third = sale.reserve(0..64).await.unwrap();
    assert!(third.iter().all(|outcome| matches!(outcome, ReserveOutcome::Pending { first: false, .. })));
    assert_eq!(sale.units().await, (936, 64, 0));
}

#[tokio::test]
async fn a_lost_answer_is_uncertain_and_the_same_ids_get_the_same_answer() {
    let server = redis(AppendFsync::Off);
    let proxy = Proxy::start(server.port()).unwrap();
    let near = Sale::open(&connect(&server.url()).await, 10).await;
    let sale = near.through(&connect(&format!("redis://127.0.0.1:{}", proxy.port())).await);
    assert_eq!(sale.take([1]).await, 1);
    loop {
        proxy.drop_replies(true);
        match sale.reserve([2, 3]).await {
            Err(LedgerError::Uncertain(_)) if near.state(2).await != Ok(IdState::Absent) => break,
            // The keeper's own check met it first, and the call was not sent, or not far enough.
            Err(LedgerError::Unavailable(_) | LedgerError::Uncertain(_)) => {}
            answer => panic!("{answer:?}"),
        }
        proxy.drop_replies(false);
        until("the ledger is back", async || sale.ledger.now_ms(LedgerServer::FIRST).await.ok()).await;
    }
    assert_eq!(near.units().await, (7, 3, 0), "it was carried out");
    assert!(unavailable(sale.reserve([4]).await), "the connection is not used again");
    proxy.drop_replies(false);
    let again = until("the ledger is back", async || sale.reserve([2, 3]).await.ok()).await;
    assert!(again.iter().all(|outcome| matches!(outcome, ReserveOutcome::Pending { first: false, .. })));
    assert_eq!(sale.units().await, (7, 3, 0));
    // Refused connections say for certain that nothing happened.
    proxy.cut().unwrap();
    until("the cut is noticed", async || unavailable(sale.reserve([5]).await).then_some(())).await;
    assert_eq!(near.state(5).await, Ok(IdState::Absent));
    proxy.heal().unwrap();
    until("the ledger is back", async || sale.reserve([5]).await.ok()).await;
}

#[tokio::test]
async fn a_stalled_network_opens_the_breaker_until_it_heals() {
    let server = redis(AppendFsync::Off);
    let proxy = Proxy::start(server.port()).unwrap();
    let sale = Sale::open(&connect(&format!("redis://127.0.0.1:{}", proxy.port())).await, 10).await;
    proxy.stall();
    let lost = sale.reserve([1]).await;
    assert!(matches!(lost, Err(LedgerError::Uncertain(_))), "{lost:?}");
    for _ in 0..100 {
        assert!(unavailable(sale.reserve([1]).await), "told at once while the breaker is open");
    }
    proxy.heal().unwrap();
    until("the ledger is back", async || sale.reserve([1]).await.ok()).await;
    assert_eq!(sale.units().await, (9, 1, 0));
}

#[tokio::test]
async fn full_memory_refuses_reservations_but_not_what_frees_memory() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect(&server.url()).await, 10).await;
    assert_eq!(sale.take([1, 2]).await, 2);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert!(unavailable(sale.reserve([3]).await));
    assert!(unavailable(sale.reserve([3, 4]).await));
    assert!(unavailable(sale.ledger.ready(LedgerServer::FIRST).await), "not ready");
    assert!(sale.ledger.now_ms(LedgerServer::FIRST).await.is_ok(), "but it tells the time");
    sale.ledger.confirm(sale.id(), &sale.settlements([1])).await.unwrap();
    sale.ledger.release(sale.id(), &sale.settlements([2])).await.unwrap();
    let paused = SaleVersion { version: 2, paused: true, ..sale.version.clone() };
    sale.ledger.push_sale(&paused).await.unwrap();
    sale.ledger.renew_lease(OWNER, 1_000).await.unwrap();
    assert_eq!(sale.units().await, (9, 0, 1));
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    sale.ledger.ready(LedgerServer::FIRST).await.unwrap();
    assert_eq!(sale.reserve([3]).await, Ok(vec![ReserveOutcome::Paused]));
}

#[tokio::test]
async fn a_failing_disk_refuses_reservations() {
    // Redis stops taking writes when it cannot save snapshots.
    let lines = vec![("save".into(), "3600 1".into()), ("enable-protected-configs".into(), "yes".into())];
    let server =
        Redis::start(RedisOptions { config: lines, appendfsync: AppendFsync::Off, port: None }).unwrap();
    let sale = Sale::open(&connect(&server.url()).await, 10).await;
    server.command(&["CONFIG", "SET", "dir", "/proc/self"]).unwrap();
    server.command(&["BGSAVE"]).unwrap();
    let status = || server.info("rdb_last_bgsave_status").unwrap();
    until("the snapshot failed", async || (status() == "err").then_some(())).await;
    assert!(unavailable(sale.reserve([1]).await));
    assert!(unavailable(sale.ledger.ready(LedgerServer::FIRST).await));
    assert_eq!(sale.state(1).await, Ok(IdState::Absent));
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_and_back_has_another_history() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect(&server.url()).await, 10).await;
    assert_eq!(sale.take([1]).await, 1);
    // Of a server that is not there: it keeps its data and waits.
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    assert!(unavailable(sale.reserve([2]).await), "read-only");
    assert!(unavailable(sale.reserve([2, 3]).await), "and no longer asked");
    server.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let error = until("the ledger is back", async || {
        sale.reserve([2]).await.err().filter(|error| !matches!(error, LedgerError::Unavailable(_)))
    });
    assert_eq!(error.await, LedgerError::Amnesia);
}

#[tokio::test]
async fn a_history_that_changed_behind_an_idle_connection_is_noticed() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect(&server.url()).await, 10).await;
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    server.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    // No call met the replica: the keeper's own check has to see it.
    let amnesia = async || (sale.snapshot().await == Err(LedgerError::Amnesia)).then_some(());
    until("the keeper notices", amnesia).await;
}

#[tokio::test]
async fn a_script_that_runs_too_long_makes_calls_unavailable_not_uncertain() {
    let server = redis(AppendFsync::Off);
    let lines = ["CONFIG", "SET", "busy-reply-threshold", "10"];
    server.command(&lines).unwrap();
    let ledger = connect(&server.url()).await;
    let sale = Sale::open(&ledger, 10).await;
    let url = server.url();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let busy = std::thread::spawn(move || {
        let endless = ["-p", &port, "EVAL", "while true do end", "0"].map(str::to_owned);
        std::process::Command::new("redis-cli").args(endless).output().unwrap()
    });
    let told = until("Redis says that it is busy", async || match sale.reserve([1]).await {
        Err(LedgerError::Unavailable(reason)) if reason.contains("BUSY") => Some(()),
        _ => None,
    });
    told.await;
    server.command(&["SCRIPT", "KILL"]).unwrap();
    busy.join().unwrap();
    until("the ledger is back", async || sale.reserve([1]).await.ok()).await;
    assert_eq!(sale.units().await, (9, 1, 0));
}

fn ledger_time() -> u64 {
    // The server is on this machine: one clock.
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn calls_of(server: &Redis, command: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
}

#[tokio::test]
async fn a_server_that_is_told_to_evict_is_given_up_until_it_is_told_otherwise() {
    let server = redis(AppendFsync::Off);
    let sale = Sale::open(&connect_patiently(&server.url()).await, 5).await;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).unwrap();
    let refused = async || match sale.reserve([1]).await {
        Err(LedgerError::Unavailable(why)) if why.contains("noeviction") => Some(()),
        _ => None,
    };
    until("nothing is taken any more, and why is told", refused).await;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).unwrap();
    until("it serves again", async || sale.reserve([2]).await.ok()).await;
}
