//! Many clients at once that repeat, settle and die at random, on a server that is killed or frozen now and then: nothing may be
//! sold twice and nothing may leak.

use std::collections::BTreeMap;

use stock::ledger::redis::RedisAudit;

use super::*;

/// A small deterministic source of choices, so that a failure can be repeated by its seed.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// What one client was told, by id.
#[derive(Default)]
struct Told {
    taken_first: BTreeMap<u64, u32>,
}

/// Sends random calls over overlapping ids until `calls` are done; now and then it gives up on a call in its middle.
async fn client(sale: Sale, seed: u64, calls: u32) -> Told {
    let mut choices = Choices(seed);
    let mut told = Told::default();
    for _ in 0..calls {
        let (from, size) = (choices.below(400), 1 + choices.below(24));
        let ids = from..from + size;
        let patience = Duration::from_micros(match choices.below(8) {
            0 => 50 + choices.below(400),
            _ => 10_000_000,
        });
        match choices.below(10) {
            0..7 => {
                let answer = tokio::time::timeout(patience, sale.reserve(ids.clone())).await;
                if let Ok(Ok(outcomes)) = answer {
                    for (id, outcome) in ids.zip(outcomes) {
                        if matches!(outcome, ReserveOutcome::Pending { first: true, .. }) {
                            *told.taken_first.entry(id).or_default() += 1;
                        }
                    }
                }
            }
            7..9 => {
                let settled = sale.settlements(ids);
                let _ = tokio::time::timeout(patience, sale.ledger.confirm(sale.id(), &settled)).await;
            }
            _ => {
                let settled = sale.settlements(ids.take(2));
                let _ = tokio::time::timeout(patience, sale.ledger.release(sale.id(), &settled)).await;
            }
        }
    }
    told
}

async fn check(server: &Redis, sale: &Sale, told: &[Told]) {
    let audit = RedisAudit::connect(&config(&server.url())).await.unwrap();
    let settled = until("late calls are done", async || {
        let found = audit.sale(sale.id()).await.ok().flatten()?;
        (!found.moving).then_some(found)
    });
    let found = settled.await;
    assert_eq!(found.conserved(), Some(true), "{found:?}");
    let mut winners = BTreeMap::<u64, u32>::new();
    for (id, times) in told.iter().flat_map(|told| &told.taken_first) {
        *winners.entry(*id).or_default() += times;
    }
    let twice: Vec<_> = winners.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "told twice that this call took it: {twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_die_in_mid_call_oversell_and_leak_nothing() {
    let server = redis(AppendFsync::Off);
    for seed in 0..4u64 {
        let ledgers = [connect(&server.url()).await, connect(&server.url()).await];
        let sale = Sale::open(&ledgers[0], 150).await;
        let clients: Vec<_> = (0..6u64)
            .map(|n| {
                let sale = sale.through(&ledgers[n as usize % 2]);
                tokio::spawn(client(sale, 1_000 * seed + n, 150))
            })
            .collect();
        let mut told = Vec::new();
        for client in clients {
            told.push(client.await.unwrap());
        }
        check(&server, &sale, &told).await;
        let snapshot = sale.snapshot().await.unwrap();
        assert!(snapshot.confirmed > 0, "seed {seed}: {snapshot:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_now_and_then_oversells_and_leaks_nothing() {
    let server = redis(AppendFsync::Off);
    let ledgers = [connect_as_shipped(&server.url()).await, connect_as_shipped(&server.url()).await];
    let sale = Sale::open(&connect(&server.url()).await, 150).await;
    let clients: Vec<_> = (0..4u64)
        .map(|n| tokio::spawn(client(sale.through(&ledgers[n as usize % 2]), 77 + n, 400)))
        .collect();
    for pause_ms in [20, 350, 700] {
        tokio::time::sleep(Duration::from_millis(30)).await;
        server.freeze().unwrap();
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        server.thaw().unwrap();
    }
    let mut told = Vec::new();
    for client in clients {
        told.push(client.await.unwrap());
    }
    check(&server, &sale, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_acknowledged_with_sync_is_all_there() {
    let server = redis(AppendFsync::Always);
    let sale = Sale::open(&connect(&server.url()).await, 100_000).await;
    let buying = tokio::spawn({
        let sale = sale.through(&sale.ledger);
        async move {
            let mut acknowledged = Vec::new();
            for from in (0..100_000u64).step_by(20) {
                match sale.reserve(from..from + 20).await {
                    Ok(_) => acknowledged.extend(from..from + 20),
                    Err(_) => return acknowledged,
                }
            }
            acknowledged
        }
    });
    until("some were taken", async || (sale.units().await.1 > 500).then_some(())).await;
    server.kill().unwrap();
    let acknowledged = buying.await.unwrap();
    server.restart().unwrap();
    until("the ledger is back", async || (sale.snapshot().await == Err(LedgerError::Amnesia)).then_some(()))
        .await;
    let audit = RedisAudit::connect(&config(&server.url())).await.unwrap();
    let found = audit.sale(sale.id()).await.unwrap().unwrap();
    assert_eq!(found.conserved(), Some(true), "{found:?}");
    let (kept, told) = (found.counted.pending_orders, acknowledged.len() as u64);
    assert!(
        kept == told || kept == told + 20,
        "{told} were acknowledged, {kept} are there: whole batches only"
    );
}

#[tokio::test]
async fn what_is_pending_is_listed_however_it_came_and_whoever_files_it() {
    let ledger = connect_patiently(&SHARED.url()).await;
    let sale = Sale::open(&ledger, 1_000_000).await;
    // More entries than a step files, some of one id and some of many.
    for n in 0..300 {
        assert_eq!(sale.take([n]).await, 1);
    }
    for from in (1_000..5_000).step_by(500) {
        assert_eq!(sale.take(from..from + 500).await, 500);
    }
    let mut foreign = sale.batch(10_000..10_400);
    foreign.owner = Owner(7);
    ledger.reserve(&foreign).await.unwrap();
    sale.ledger.confirm(sale.id(), &sale.settlements((0..300).step_by(3))).await.unwrap();
    let list = async |owner: Option<Owner>| {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = ledger.pending(sale.id(), owner, after, 100).await.unwrap();
            all.extend(page.iter().map(|(_, reservation)| reservation.order_id.0 as u64));
            match page.last() {
                Some((_, last)) if page.len() == 100 => after = Some(last.order_id),
                _ => return all,
            }
        }
    };
    let ours: Vec<u64> = (0..300).filter(|n| n % 3 != 0).chain(1_000..5_000).collect();
    let all: Vec<u64> = ours.iter().copied().chain(10_000..10_400).collect();
    // Several list at once: each files some.
    let (by_owner, foreign, everybody) = tokio::join!(list(Some(OWNER)), list(Some(Owner(7))), list(None));
    assert_eq!(by_owner, ours);
    assert_eq!(foreign, (10_000..10_400).collect::<Vec<_>>());
    assert_eq!(everybody, all);
    sale.ledger.release(sale.id(), &sale.settlements(1_000..1_500)).await.unwrap();
    assert_eq!(list(None).await.len(), all.len() - 500, "what was filed leaves the index when it is settled");
}
