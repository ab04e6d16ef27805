//! Shares of the drain's limit.

use order_worker::database::{Beat, Share};

use super::Fixture;

const TTL_MS: u64 = 5_000;

async fn beat(fixture: &Fixture, worker: u64, holding_ppm: u32) -> Share {
    fixture.database.renew_share(Beat { worker, holding_ppm, ttl_ms: TTL_MS }).await.unwrap()
}

fn share(ppm: u32, workers: u32) -> Share {
    Share { ppm, workers }
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
    fixture.database.end_share(2).await.unwrap();
    fixture.database.end_share(2).await.unwrap();
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
                    let share =
                        database.renew_share(Beat { worker, holding_ppm, ttl_ms: TTL_MS }).await.unwrap();
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
