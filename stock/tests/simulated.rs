//! Each fault of the simulated ledger does what it says.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::time::Duration;

use stock::ledger::{FaultPlan, IdState, Ledger, Settlement, SimulatedServer};
use stock::{LedgerError, OrderId, SaleVersion};
use tokio::time::{Instant, sleep};

/// A server with one open sale of 5 units, and a call that takes one of them.
async fn server() -> (SimulatedServer, Ledger, SaleVersion, Settlement) {
    let started = Instant::now();
    let now = Arc::new(move || started.elapsed().as_millis() as u64);
    let server = SimulatedServer::new(7, now, FaultPlan::default());
    let (ledger, version, settlement) = opened(&server).await;
    (server, ledger, version, settlement)
}

async fn opened(server: &SimulatedServer) -> (Ledger, SaleVersion, Settlement) {
    let ledger = Ledger::Simulated(server.connect());
    let version = SaleVersion {
        sale: "demo".parse().unwrap(),
        version: 1,
        total: 5,
        starts_at_ms: 0,
        ends_at_ms: u64::MAX,
        per_user_limit: 1,
        passes_per_unit: 0,
        paused: false,
    };
    ledger.install(&version, 1).await.unwrap();
    ledger.open(&version.sale, 1).await.unwrap();
    let order_id = OrderId::new(0, &version.sale, 1);
    (ledger, version, Settlement { order_id, user: "ann".parse().unwrap(), quantity: 1 })
}

async fn remaining(server: &SimulatedServer, version: &SaleVersion) -> i64 {
    server.set_plan(FaultPlan::default());
    server.settle();
    Ledger::Simulated(server.connect()).snapshot(&version.sale).await.unwrap().remaining
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_never_executes() {
    let (server, ledger, version, settlement) = server().await;
    server.set_plan(FaultPlan { refused: 1_000, ..FaultPlan::default() });
    let error = ledger.confirm(&version.sale, &[settlement]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unavailable(_)) && error.took_nothing());
    sleep(Duration::from_secs(10)).await;
    assert_eq!(remaining(&server, &version).await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_answer_is_lost_has_executed() {
    let (server, ledger, version, settlement) = server().await;
    server.set_plan(FaultPlan { answer_lost: 1_000, ..FaultPlan::default() });
    let error = ledger.confirm(&version.sale, &[settlement]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Uncertain(_)) && !error.took_nothing());
    assert_eq!(remaining(&server, &version).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_late_call_executes_after_its_caller_gave_up() {
    let (server, ledger, version, settlement) = server().await;
    server.set_plan(FaultPlan { late: 1_000, ..FaultPlan::default() });
    let error = ledger.confirm(&version.sale, &[settlement]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Uncertain(_)));
    assert_eq!(remaining(&server, &version).await, 5);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(remaining(&server, &version).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_changes_nothing_the_second_time() {
    let (server, ledger, version, settlement) = server().await;
    server.set_plan(FaultPlan { repeated: 1_000, ..FaultPlan::default() });
    ledger.confirm(&version.sale, std::slice::from_ref(&settlement)).await.unwrap();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(remaining(&server, &version).await, 4);
    let states = ledger.states(&version.sale, &[settlement.order_id]).await.unwrap();
    assert_eq!(states, [IdState::Confirmed]);
}

#[tokio::test(start_paused = true)]
async fn a_call_outlives_its_sender() {
    let (server, ledger, version, settlement) = server().await;
    server.set_plan(FaultPlan { slow: 1_000, ..FaultPlan::default() });
    let call = ledger.confirm(&version.sale, std::slice::from_ref(&settlement));
    assert!(tokio::time::timeout(Duration::ZERO, call).await.is_err());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(remaining(&server, &version).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_server_knows_nothing() {
    let (server, ledger, version, _) = server().await;
    server.wipe();
    let error = ledger.snapshot(&version.sale).await.unwrap_err();
    assert_eq!(error, LedgerError::UnknownSale(version.sale.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_promoted_replica_lacks_the_last_writes_and_is_amnesia_until_a_newer_epoch() {
    let started = Instant::now();
    let now = Arc::new(move || started.elapsed().as_millis() as u64);
    let server = SimulatedServer::with_replica(7, now, FaultPlan::default(), 3);
    let (ledger, version, settlement) = opened(&server).await;
    ledger.confirm(&version.sale, &[settlement]).await.unwrap();
    server.fail_over(1);
    assert_eq!(ledger.snapshot(&version.sale).await.unwrap_err(), LedgerError::Amnesia);
    assert_eq!(ledger.pending(&version.sale, None, None, 9).await.unwrap_err(), LedgerError::Amnesia);
    assert_eq!(ledger.install(&version, 1).await.unwrap_err(), LedgerError::Amnesia, "not at its own epoch");
    assert!(LedgerError::Amnesia.is_retryable() && LedgerError::Amnesia.took_nothing());
    ledger.install(&version, 2).await.unwrap();
    let snapshot = ledger.snapshot(&version.sale).await.unwrap();
    assert_eq!((snapshot.epoch, snapshot.open, snapshot.remaining), (2, false, 5));
    ledger.open(&version.sale, 2).await.unwrap();
    server.fail_over(100);
    assert_eq!(
        ledger.snapshot(&version.sale).await.unwrap_err(),
        LedgerError::Amnesia,
        "the same at the second time"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_dies_with_its_connection_but_outlives_a_flush() {
    let (server, ledger, version, settlement) = server().await;
    let settlement = std::slice::from_ref(&settlement);
    for (end, expected) in [(SimulatedServer::flush as fn(&SimulatedServer), 4), (SimulatedServer::wipe, 5)] {
        server.set_plan(FaultPlan { late: 1_000, ..FaultPlan::default() });
        ledger.confirm(&version.sale, settlement).await.unwrap_err();
        server.set_plan(FaultPlan::default());
        end(&server);
        ledger.install(&version, 9).await.unwrap();
        sleep(Duration::from_secs(4)).await;
        assert_eq!(remaining(&server, &version).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_on_the_wire_arrives_though_its_sender_stands_still() {
    let (server, ledger, version, settlement) = server().await;
    let mut arrived = 0;
    for n in 0..20 {
        let order_id = OrderId::new(0, &version.sale, 100 + n);
        let settled = [Settlement { order_id, ..settlement.clone() }];
        let mut call = std::pin::pin!(ledger.confirm(&version.sale, &settled));
        assert!(tokio::time::timeout(Duration::ZERO, call.as_mut()).await.is_err());
        sleep(Duration::from_secs(1)).await;
        server.settle();
        arrived += u32::from(server.state_of(&version.sale, order_id) == Some(IdState::Confirmed));
        call.await.unwrap();
        assert_eq!(server.state_of(&version.sale, order_id), Some(IdState::Confirmed));
    }
    assert!((1..20).contains(&arrived), "{arrived} of 20 did not wait for their sender");
}

#[tokio::test(start_paused = true)]
async fn an_opening_tells_what_was_known_then() {
    let (server, ledger, version, settlement) = server().await;
    assert!(server.take_openings()[0].known.is_empty());
    let order_id = settlement.order_id;
    server.flush();
    assert!(!server.is_open(&version.sale) && server.state_of(&version.sale, order_id).is_none());
    ledger.install(&version, 2).await.unwrap();
    ledger.confirm(&version.sale, &[settlement]).await.unwrap();
    ledger.open(&version.sale, 2).await.unwrap();
    ledger.open(&version.sale, 2).await.unwrap();
    let openings = server.take_openings();
    assert_eq!(openings.len(), 1, "the second changed nothing: {openings:?}");
    assert_eq!((openings[0].epoch, openings[0].known.iter().collect::<Vec<_>>()), (2, vec![&order_id]));
}

#[tokio::test(start_paused = true)]
async fn a_late_install_finds_whatever_there_is_by_then() {
    let (server, ledger, version, _) = server().await;
    server.set_late_installs(1_000);
    assert!(matches!(ledger.install(&version, 2).await, Err(LedgerError::Uncertain(_))));
    server.set_late_installs(0);
    ledger.install(&version, 3).await.unwrap();
    sleep(Duration::from_secs(4)).await;
    server.settle();
    assert_eq!(ledger.snapshot(&version.sale).await.unwrap().epoch, 3);
    assert_eq!((server.happened().late_installs, server.happened().late_installs_refused), (0, 1));
}
