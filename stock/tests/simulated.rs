//! Each fault of the simulated ledger does what it says.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stock::ledger::{
    FaultPlan, IdState, Ledger, ReserveBatch, ReserveOutcome, ReserveRequest, Settlement, SimulatedLedger,
    SimulatedServer,
};
use stock::{LedgerError, OrderId, Owner, SaleVersion};
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
        terms_version: 1,
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

const MINUTE_MS: u64 = 60_000;
const NOON_MS: u64 = 1_800_000_000_000;

/// A server whose clock is in the test's hand.
fn server_by_hand(now_ms: u64) -> (SimulatedServer, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(now_ms));
    let hand = clock.clone();
    let now = Arc::new(move || clock.load(Ordering::Relaxed));
    (SimulatedServer::new(7, now, FaultPlan::default()), hand)
}

/// Leases on the first server, the sale on the second, five minutes behind; it opens in a minute by its own clock.
async fn two_servers() -> (Ledger, [SimulatedServer; 2], [Arc<AtomicU64>; 2], SaleVersion) {
    let (leases, leases_hand) = server_by_hand(NOON_MS);
    let (sales, sales_hand) = server_by_hand(NOON_MS - 5 * MINUTE_MS);
    let servers = [leases, sales];
    let ledger = Ledger::Simulated(SimulatedLedger::of_several(&servers, Arc::new(|_| 1)));
    let (_, version, _) = opened(&SimulatedServer::new(7, Arc::new(|| 0), FaultPlan::default())).await;
    let opens_ms = NOON_MS - 4 * MINUTE_MS;
    let version = SaleVersion {
        starts_at_ms: opens_ms,
        ends_at_ms: opens_ms + MINUTE_MS,
        per_user_limit: 5,
        ..version
    };
    ledger.install(&version, 1).await.unwrap();
    ledger.open(&version.sale, 1).await.unwrap();
    (ledger, servers, [leases_hand, sales_hand], version)
}

async fn press(ledger: &Ledger, sale: &SaleVersion, deadline_ms: u64) -> Result<ReserveOutcome, LedgerError> {
    let order_id = OrderId::new(0, &sale.sale, deadline_ms);
    let request = ReserveRequest { order_id, user: "ann".parse().unwrap(), quantity: 1, metadata: None };
    let batch = ReserveBatch {
        sale: sale.sale.clone(),
        epoch: 1,
        deadline_ms,
        terms_version: 1,
        owner: Owner(1),
        requests: vec![request],
    };
    ledger.reserve(&batch).await.map(|mut answer| answer.outcomes.remove(0))
}

#[tokio::test(start_paused = true)]
async fn a_sale_opens_and_ends_by_the_clock_of_its_server() {
    let (ledger, _, [leases_hand, sales_hand], sale) = two_servers().await;
    let server = ledger.server_of(&sale.sale);
    assert_ne!(server, ledger.leases_server());
    let press_now = async || press(&ledger, &sale, ledger.now_ms(server).await.unwrap() + 1_000).await;
    assert_eq!(press_now().await, Ok(ReserveOutcome::NotStarted), "by the other clock it would be over");
    leases_hand.store(sale.starts_at_ms, Ordering::Relaxed);
    assert_eq!(press_now().await, Ok(ReserveOutcome::NotStarted), "by the other clock it would be open");
    sales_hand.store(sale.starts_at_ms, Ordering::Relaxed);
    leases_hand.store(NOON_MS, Ordering::Relaxed);
    assert!(matches!(press_now().await, Ok(ReserveOutcome::Pending { first: true, .. })));
    leases_hand.store(sale.starts_at_ms, Ordering::Relaxed);
    sales_hand.store(sale.ends_at_ms, Ordering::Relaxed);
    assert_eq!(press_now().await, Ok(ReserveOutcome::Ended), "by the other clock it would be open");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_by_the_clock_of_the_sales_server() {
    let (ledger, _, [leases_hand, sales_hand], sale) = two_servers().await;
    sales_hand.store(sale.starts_at_ms, Ordering::Relaxed);
    leases_hand.store(sale.starts_at_ms - 5 * MINUTE_MS, Ordering::Relaxed);
    let of = async |server| ledger.now_ms(server).await.unwrap() + 1_000;
    let wrong = of(ledger.leases_server()).await;
    assert_eq!(press(&ledger, &sale, wrong).await, Err(LedgerError::DeadlinePassed));
    let right = of(ledger.server_of(&sale.sale)).await;
    assert!(matches!(press(&ledger, &sale, right).await, Ok(ReserveOutcome::Pending { .. })));
}

#[tokio::test(start_paused = true)]
async fn leases_know_nothing_of_the_clocks_and_lives_of_other_servers() {
    let (ledger, servers, [leases_hand, sales_hand], sale) = two_servers().await;
    let owner = Owner(9);
    ledger.renew_lease(owner, 5_000).await.unwrap();
    sales_hand.fetch_add(60 * MINUTE_MS, Ordering::Relaxed);
    assert_eq!(ledger.leases().await.unwrap(), (NOON_MS, vec![(owner, NOON_MS + 5_000)]));
    servers[1].wipe();
    assert!(servers[0].is_leased(owner) && !servers[1].is_open(&sale.sale));
    assert_eq!(
        ledger.snapshot(&sale.sale).await.unwrap_err(),
        LedgerError::UnknownSale(sale.sale.clone()),
        "the server of the sale has forgotten it, and no other knows it"
    );
    leases_hand.fetch_add(5_000, Ordering::Relaxed);
    assert_eq!(ledger.leases().await.unwrap().1, []);
}
