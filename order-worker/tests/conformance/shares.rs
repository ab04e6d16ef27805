//! Shares of the drain's limit.

use order_worker::database::{Beat, LogBeat, Renewed, Share, Work};
use stock::Owner;

use super::Fixture;

const TTL_MS: u64 = 5_000;

async fn renew(fixture: &Fixture, life: u64, log: u64, holding_ppm: u32, takes_over: Option<u64>) -> Renewed {
    let logs = vec![LogBeat { log: Owner(log), holding_ppm, takes_over }];
    let renewed =
        fixture.database.renew_shares(Beat { work: Work::Drain, life, ttl_ms: TTL_MS, logs }).await.unwrap();
    assert_eq!(renewed.len(), 1);
    renewed[0]
}

pub(crate) async fn what_drains_and_what_closes_share_nothing(fixture: Fixture) {
    let close = async |life: u64, holding_ppm| {
        let logs = vec![LogBeat { log: Owner(life), holding_ppm, takes_over: None }];
        let beat = Beat { work: Work::Close, life, ttl_ms: TTL_MS, logs };
        match fixture.database.renew_shares(beat).await.unwrap().remove(0) {
            Renewed::Share(share) => share,
            held => panic!("{held:?}"),
        }
    };
    assert_eq!(beat(&fixture, 1, 0).await, share(1_000_000, 1));
    // Of the same id, too.
    assert_eq!(close(1, 0).await, share(1_000_000, 1));
    assert_eq!(close(2, 0).await, share(0, 2));
    assert_eq!(close(1, 500_000).await, share(500_000, 2));
    assert_eq!(close(2, 0).await, share(500_000, 2), "two that close have the limit together");
    assert_eq!(beat(&fixture, 1, 1_000_000).await, share(1_000_000, 1), "the drain has all of its own");
    fixture.advance(TTL_MS);
    assert_eq!(close(2, 500_000).await, share(1_000_000, 1));
}

pub(crate) async fn only_a_live_drain_tells_that_its_log_is_drained(fixture: Fixture) {
    let is_drained = async |log| fixture.database.is_drained(Owner(log)).await.unwrap();
    assert!(!is_drained(1).await);
    beat(&fixture, 1, 0).await;
    assert!(is_drained(1).await && !is_drained(2).await);
    fixture.advance(TTL_MS);
    assert!(!is_drained(1).await, "its time is over");
    beat(&fixture, 1, 0).await;
    fixture.database.end_shares(1, vec![Owner(1)]).await.unwrap();
    assert!(!is_drained(1).await, "it has ended");
}

/// Of a worker with one log.
async fn beat(fixture: &Fixture, worker: u64, holding_ppm: u32) -> Share {
    match renew(fixture, worker, worker, holding_ppm, None).await {
        Renewed::Share(share) => share,
        held => panic!("{held:?}"),
    }
}

fn share(ppm: u32, drains: u32) -> Share {
    Share { ppm, drains }
}

pub(crate) async fn shares_are_equal_and_never_more_than_the_whole(fixture: Fixture) {
    assert_eq!(beat(&fixture, 1, 0).await, share(1_000_000, 1));
    assert_eq!(beat(&fixture, 1, 1_000_000).await, share(1_000_000, 1));
    // A newcomer waits until the first one has gone down and said so.
    assert_eq!(beat(&fixture, 2, 0).await, share(0, 2));
    assert_eq!(beat(&fixture, 1, 1_000_000).await, share(500_000, 2));
    assert_eq!(beat(&fixture, 2, 0).await, share(0, 2), "the first one may not have heard yet");
    assert_eq!(beat(&fixture, 1, 500_000).await, share(500_000, 2));
    assert_eq!(beat(&fixture, 2, 0).await, share(500_000, 2));
    // A third.
    assert_eq!(beat(&fixture, 3, 0).await, share(0, 3));
    assert_eq!(beat(&fixture, 1, 500_000).await, share(333_333, 3));
    assert_eq!(beat(&fixture, 1, 333_333).await, share(333_333, 3));
    assert_eq!(beat(&fixture, 3, 0).await, share(166_667, 3));
    assert_eq!(beat(&fixture, 2, 500_000).await, share(333_333, 3));
    assert_eq!(beat(&fixture, 2, 333_333).await, share(333_333, 3));
    assert_eq!(beat(&fixture, 3, 166_667).await, share(333_333, 3));
    // One leaves.
    fixture.database.end_shares(2, vec![Owner(2)]).await.unwrap();
    fixture.database.end_shares(2, vec![Owner(2)]).await.unwrap();
    assert_eq!(beat(&fixture, 1, 333_333).await, share(500_000, 2));
    assert_eq!(beat(&fixture, 3, 333_333).await, share(500_000, 2));
}

pub(crate) async fn a_dead_workers_share_comes_free(fixture: Fixture) {
    beat(&fixture, 1, 0).await;
    beat(&fixture, 2, 0).await;
    beat(&fixture, 1, 500_000).await;
    assert_eq!(beat(&fixture, 2, 0).await, share(500_000, 2));
    fixture.advance(TTL_MS - 1_000);
    assert_eq!(beat(&fixture, 1, 500_000).await, share(500_000, 2));
    fixture.advance(1_000);
    assert_eq!(beat(&fixture, 1, 500_000).await, share(1_000_000, 1));
    // It was only frozen: by its own clock its time is over, so it holds nothing, and begins like a newcomer.
    assert_eq!(beat(&fixture, 2, 0).await, share(0, 2));
}

pub(crate) async fn beats_race_without_exceeding_the_whole(fixture: Fixture) {
    let workers: Vec<_> = (1..=8u64)
        .map(|worker| {
            let database = fixture.database.clone();
            tokio::spawn(async move {
                let mut holding_ppm = 0;
                for _ in 0..12 {
                    let logs = vec![LogBeat { log: Owner(worker), holding_ppm, takes_over: None }];
                    let beat = Beat { work: Work::Drain, life: worker, ttl_ms: TTL_MS, logs };
                    let renewed = database.renew_shares(beat).await.unwrap();
                    let Renewed::Share(share) = renewed[0] else { panic!("{renewed:?}") };
                    holding_ppm = share.ppm;
                }
                holding_ppm
            })
        })
        .collect();
    let mut held = 0;
    for worker in workers {
        held += u64::from(worker.await.unwrap());
    }
    assert!(held <= 1_000_000, "{held} millionths are in use");
    // At rest: two rounds, and all hold the same.
    let mut holding = [0; 8];
    for round in 0..3 {
        for worker in 1..=8u64 {
            let holds = &mut holding[worker as usize - 1];
            let before = if round == 0 { beat(&fixture, worker, 0).await.ppm } else { *holds };
            *holds = beat(&fixture, worker, before).await.ppm;
            *holds = beat(&fixture, worker, *holds).await.ppm;
        }
    }
    assert_eq!(holding, [125_000; 8]);
}

pub(crate) async fn a_share_is_taken_over_by_name(fixture: Fixture) {
    let taken = |ppm, drains| Renewed::Share(share(ppm, drains));
    assert_eq!(renew(&fixture, 11, 1, 0, None).await, taken(1_000_000, 1));
    assert_eq!(beat(&fixture, 2, 0).await, share(0, 2));
    assert_eq!(renew(&fixture, 11, 1, 1_000_000, None).await, taken(500_000, 2));
    // It dies before it has gone down. Who has its log now must know of it, and then waits for nothing.
    assert_eq!(renew(&fixture, 12, 1, 0, None).await, Renewed::Held { by: 11 });
    assert_eq!(renew(&fixture, 12, 1, 0, Some(10)).await, Renewed::Held { by: 11 });
    assert_eq!(beat(&fixture, 2, 0).await, share(0, 2), "whoever asks in vain frees nothing");
    assert_eq!(renew(&fixture, 12, 1, 0, Some(11)).await, taken(500_000, 2));
    assert_eq!(beat(&fixture, 2, 0).await, share(500_000, 2));
    // What the dead one had sent comes late: it neither records nor forgets anything.
    assert_eq!(renew(&fixture, 11, 1, 0, None).await, Renewed::Held { by: 12 });
    assert_eq!(renew(&fixture, 11, 1, 0, Some(10)).await, Renewed::Held { by: 12 });
    fixture.database.end_shares(11, vec![Owner(1)]).await.unwrap();
    assert_eq!(beat(&fixture, 2, 500_000).await, share(500_000, 2));
    // Repeated after a lost answer.
    assert_eq!(renew(&fixture, 12, 1, 0, Some(11)).await, taken(500_000, 2));
}

pub(crate) async fn each_log_of_a_process_has_a_share(fixture: Fixture) {
    let logs = |holding_ppm: u32| -> Vec<LogBeat> {
        (1..=3).map(|log| LogBeat { log: Owner(log), holding_ppm, takes_over: None }).collect()
    };
    let beat_all = async |holding_ppm: u32| {
        let beat = Beat { work: Work::Drain, life: 9, ttl_ms: TTL_MS, logs: logs(holding_ppm) };
        fixture.database.renew_shares(beat).await.unwrap()
    };
    assert_eq!(beat_all(0).await, vec![Renewed::Share(share(333_333, 3)); 3]);
    assert_eq!(beat(&fixture, 4, 0).await, share(1, 4));
    assert_eq!(beat_all(333_333).await, vec![Renewed::Share(share(250_000, 4)); 3]);
    assert_eq!(beat_all(250_000).await, vec![Renewed::Share(share(250_000, 4)); 3]);
    assert_eq!(beat(&fixture, 4, 1).await, share(250_000, 4));
    fixture.database.end_shares(9, vec![Owner(1), Owner(3)]).await.unwrap();
    assert_eq!(beat(&fixture, 4, 250_000).await, share(500_000, 2));
    assert_eq!(
        fixture
            .database
            .renew_shares(Beat { work: Work::Drain, life: 9, ttl_ms: TTL_MS, logs: Vec::new() })
            .await
            .unwrap(),
        []
    );
}
