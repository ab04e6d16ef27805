//! What is promised of records that are drained, and of groups that are too far behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use queue::{BehindMax, Group, Position, QueueError, StartAt, Topic, operator};

use crate::fixture::{Fixture, append, texts};

const DAY: Duration = Duration::from_secs(86_400);
/// About a twelfth of the fixture's segment.
const BYTES: usize = 20_000;

/// Appends a record that says its number, and a lot more.
async fn append_big(topic: &Topic, number: usize) -> Position {
    append(topic, &format!("{number}-{}", "x".repeat(BYTES))).await
}

fn numbers(messages: &[queue::Message]) -> Vec<usize> {
    texts(messages).iter().map(|text| text.split('-').next().unwrap().parse().unwrap()).collect()
}

async fn kept(topic: &Topic) -> Vec<usize> {
    numbers(&topic.read(None, usize::MAX).await.unwrap())
}

async fn pull_all(group: &mut Group) -> Result<Vec<usize>, QueueError> {
    let mut pulled = Vec::new();
    loop {
        let messages = group.pull(100, Duration::ZERO).await?;
        if messages.is_empty() {
            return Ok(pulled);
        }
        pulled.extend(numbers(&messages));
    }
}

/// Appends `count` more and has the group finish them at once.
async fn drain(topic: &Topic, group: &mut Group, from: usize, count: usize) {
    for number in from..from + count {
        let position = append_big(topic, number).await;
        group.commit(position).await.unwrap();
    }
}

pub(crate) async fn drained_records_stay_for_a_while(mut fixture: Fixture) {
    fixture.keep_drained = Duration::from_millis(1_500);
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    drain(&topic, &mut group, 0, 60).await;
    assert_eq!(
        topic.lag("workers").await.unwrap(),
        queue::Lag::default(),
        "the backlog is what is not drained"
    );
    assert_eq!(kept(&topic).await, (0..60).collect::<Vec<_>>());
    drop(group);
    queue.shutdown().await;

    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    assert_eq!(kept(&topic).await, (0..60).collect::<Vec<_>>(), "over a restart too");
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut next = 60;
    fixture.sleep(1_600).await;
    fixture
        .until("the old ones go", async || {
            drain(&topic, &mut group, next, 1).await;
            next += 1;
            kept(&topic).await[0] >= 48
        })
        .await;
}

pub(crate) async fn drained_records_go_early_when_they_are_too_many(mut fixture: Fixture) {
    fixture.keep_drained = DAY;
    fixture.keep_drained_bytes_max = 4 * fixture.segment_bytes;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut next = 0;
    fixture
        .until("the oldest go", async || {
            drain(&topic, &mut group, next, 12).await;
            next += 12;
            next > 120 && kept(&topic).await.len() < 100
        })
        .await;
    assert!(kept(&topic).await.len() >= 36, "three segments at least stay: {}", kept(&topic).await.len());
}

pub(crate) async fn a_group_goes_back_to_what_is_drained(mut fixture: Fixture) {
    fixture.keep_drained = DAY;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    drain(&topic, &mut group, 0, 30).await;
    fixture.advance(10_000);
    let backup_ms = fixture.clock.load(Ordering::Relaxed);
    drain(&topic, &mut group, 30, 50).await;
    assert!(matches!(
        operator::reset_to_position(&topic, "workers", None).await,
        Err(QueueError::GroupHeld { .. })
    ));
    drop(group);
    let through = topic.position_before(backup_ms).await.unwrap();
    operator::reset_to_position(&topic, "workers", through).await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap().records, 50);
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(pull_all(&mut group).await.unwrap(), (30..80).collect::<Vec<_>>());
    // All that was ever written is kept: a time before it is no reason for an error.
    assert_eq!(topic.position_before(1).await.unwrap(), None);
}

pub(crate) async fn a_time_before_what_is_kept_is_told(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut next = 0;
    fixture
        .until("the oldest go", async || {
            fixture.advance(1_000);
            drain(&topic, &mut group, next, 12).await;
            next += 12;
            kept(&topic).await[0] > 0
        })
        .await;
    let oldest = topic.read(None, 1).await.unwrap()[0].appended_at_ms;
    match topic.position_before(1_000_001).await {
        // When its batch was begun is at most when its first record was.
        Err(QueueError::NotKept { oldest_ms }) => assert!((oldest - 1_000..=oldest).contains(&oldest_ms)),
        answer => panic!("{answer:?}"),
    }
    assert_eq!(topic.position_before(u64::MAX).await.unwrap(), topic.end());
}

pub(crate) async fn a_clock_that_is_put_lets_nothing_go_early(mut fixture: Fixture) {
    fixture.keep_drained = DAY;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut slow = topic.group("slow", StartAt::Oldest).await.unwrap();
    let far_ms = 3 * DAY.as_millis() as u64;
    let steps: [fn(u64, u64) -> u64; 3] =
        [|ms, far| ms + far, |ms, far| ms - far - 500_000, |ms, far| ms + far];
    drain(&topic, &mut group, 0, 30).await;
    for (round, step) in steps.into_iter().enumerate() {
        fixture
            .clock
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |ms| Some(step(ms, far_ms)))
            .unwrap();
        fixture.sleep(200).await;
        drain(&topic, &mut group, 30 * (round + 1), 30).await;
        if round == 0 {
            // Drained by both from here on.
            assert_eq!(pull_all(&mut slow).await.unwrap().len(), 60);
            slow.commit(topic.end().unwrap()).await.unwrap();
        }
    }
    fixture.sleep(300).await;
    assert_eq!(kept(&topic).await, (0..120).collect::<Vec<_>>());
    assert_eq!(pull_all(&mut slow).await.unwrap(), (60..120).collect::<Vec<_>>());
}

/// Appends until the owner has cut the group off, and reports how many there are then.
async fn append_until_cut(fixture: &Fixture, topic: &Topic, group: &str, workers: &mut Group) -> usize {
    let mut next = 0;
    fixture
        .until("it is cut off", async || {
            drain(topic, workers, next, 12).await;
            next += 12;
            topic.lag(group).await.unwrap().records < next as u64
        })
        .await;
    next
}

pub(crate) async fn a_group_too_far_behind_is_cut_off_and_told(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(24), age: None })).await.unwrap();
    let appended = append_until_cut(&fixture, &topic, "late", &mut workers).await;
    assert!(appended > 24, "not before its bound: {appended}");
    assert!(topic.lag("late").await.unwrap().records >= 21, "not more than an eighth beyond need");

    let error = late.pull(100, Duration::ZERO).await.unwrap_err();
    let QueueError::Cut { ref topic, ref group, records, through } = error else { panic!("{error}") };
    assert_eq!((topic.as_str(), group.as_str()), ("orders", "late"));
    assert!(!error.is_retryable());
    let topic = queue.topic(topic).await.unwrap();
    // Told once; and from then on in order, without a gap.
    let pulled = pull_all(&mut late).await.unwrap();
    assert_eq!(pulled, (records as usize..appended).collect::<Vec<_>>());
    assert!(late.committed() >= Some(through));
    late.commit(topic.end().unwrap()).await.unwrap();
    assert_eq!(topic.lag("late").await.unwrap().records, 0);
    // What it held can be used again.
    fixture
        .until("old records go", async || {
            drain(&topic, &mut workers, 0, 1).await;
            late.commit(topic.end().unwrap()).await.unwrap();
            kept(&topic).await.len() < 30
        })
        .await;
}

pub(crate) async fn a_cut_is_told_again_after_a_reopen(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(24), age: None })).await.unwrap();
    append_until_cut(&fixture, &topic, "late", &mut workers).await;
    assert!(matches!(late.pull(1, Duration::ZERO).await, Err(QueueError::Cut { .. })));
    // Gone before it went on.
    drop((workers, late));
    queue.shutdown().await;

    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    let Err(QueueError::Cut { records, .. }) = late.pull(1, Duration::ZERO).await else { panic!("not told") };
    let pulled = pull_all(&mut late).await.unwrap();
    assert_eq!(pulled[0] as u64, records);
    late.commit(topic.end().unwrap()).await.unwrap();
    drop(late);
    queue.shutdown().await;

    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    assert!(pull_all(&mut late).await.unwrap().is_empty(), "told and passed");
}

pub(crate) async fn a_cut_takes_all_that_was_known_of_its_records(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(24), age: None })).await.unwrap();
    drain(&topic, &mut workers, 0, 12).await;
    // Finished beside the others, refused for an hour, and in the consumer's hands.
    let pulled = late.pull(6, Duration::ZERO).await.unwrap();
    late.ack_all(&[pulled[0].position, pulled[2].position]).await.unwrap();
    late.nack(pulled[1].position, Duration::from_secs(3_600)).await.unwrap();
    drain(&topic, &mut workers, 12, 60).await;
    let mut next = 72;
    fixture
        .until("it is cut off", async || {
            drain(&topic, &mut workers, next, 1).await;
            next += 1;
            topic.lag("late").await.unwrap().records <= 24
        })
        .await;
    let lag = topic.lag("late").await.unwrap().records;
    let Err(QueueError::Cut { through, .. }) = late.pull(1, Duration::ZERO).await else { panic!("not told") };
    let through: usize = through.to_string().parse().unwrap();
    assert_eq!(lag as usize, next - through, "what is cut off is no backlog, whatever was finished of it");
    assert_eq!(pull_all(&mut late).await.unwrap(), (through..next).collect::<Vec<_>>());
    late.ack(pulled[3].position).await.unwrap();
    late.rewind();
    fixture.advance(2 * 3_600 * 1_000);
    assert_eq!(pull_all(&mut late).await.unwrap(), (through..next).collect::<Vec<_>>(), "none of before");
    assert_eq!(topic.lag("late").await.unwrap().records, lag);
    late.commit(topic.end().unwrap()).await.unwrap();
    assert_eq!(topic.lag("late").await.unwrap().records, 0);
}

pub(crate) async fn a_group_too_old_is_cut_off(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: None, age: Some(Duration::from_secs(1)) })).await.unwrap();
    drain(&topic, &mut workers, 0, 30).await;
    // A clock that is put forward makes nobody late.
    fixture.advance(DAY.as_millis() as u64);
    drain(&topic, &mut workers, 30, 30).await;
    assert_eq!(late.pull(1, Duration::ZERO).await.unwrap().len(), 1);
    late.rewind();
    fixture.sleep(1_300).await;
    let mut next = 60;
    fixture
        .until("it is cut off", async || {
            drain(&topic, &mut workers, next, 12).await;
            next += 12;
            topic.lag("late").await.unwrap().records < next as u64
        })
        .await;
    let Err(QueueError::Cut { records, .. }) = late.pull(1, Duration::ZERO).await else { panic!("not told") };
    assert_eq!(pull_all(&mut late).await.unwrap()[0] as u64, records);
}

pub(crate) async fn a_group_without_a_bound_is_never_cut_off(mut fixture: Fixture) {
    fixture.keep_drained_bytes_max = 0;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut promises = topic.group("promises", StartAt::Oldest).await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(6), age: Some(Duration::from_millis(1)) }))
        .await
        .unwrap();
    workers.limit_behind(Some(BehindMax { records: Some(1), age: None })).await.unwrap();
    workers.limit_behind(None).await.unwrap();
    for number in 0..120 {
        append_big(&topic, number).await;
        fixture.advance(DAY.as_millis() as u64);
        fixture.sleep(2).await;
    }
    assert_eq!(pull_all(&mut promises).await.unwrap(), (0..120).collect::<Vec<_>>());
    assert_eq!(pull_all(&mut workers).await.unwrap(), (0..120).collect::<Vec<_>>(), "its bound is off again");
    assert!(matches!(late.pull(1, Duration::ZERO).await, Err(QueueError::Cut { .. })));
}

pub(crate) async fn a_reset_goes_behind_a_cut(mut fixture: Fixture) {
    fixture.keep_drained = DAY;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(Some(BehindMax { records: Some(24), age: None })).await.unwrap();
    let appended = append_until_cut(&fixture, &topic, "late", &mut workers).await;
    drop(late);
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    late.limit_behind(None).await.unwrap();
    late.reset(None).await.unwrap();
    assert_eq!(topic.lag("late").await.unwrap().records, appended as u64, "at once");
    assert_eq!(topic.committed("late").await.unwrap(), None);
    assert_eq!(pull_all(&mut late).await.unwrap(), (0..appended).collect::<Vec<_>>(), "all that is kept");
}

pub(crate) async fn a_lifted_bound_leaves_its_cut_told(fixture: Fixture) {
    let queue = fixture.open();
    for (name, is_held_anew) in [("held", false), ("anew", true)] {
        let topic = queue.topic(name).await.unwrap();
        let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
        let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
        late.limit_behind(Some(BehindMax { records: Some(24), age: None })).await.unwrap();
        let appended = append_until_cut(&fixture, &topic, "late", &mut workers).await;
        late.limit_behind(None).await.unwrap();
        if is_held_anew {
            drop(late);
            late = topic.group("late", StartAt::Oldest).await.unwrap();
        }
        let Err(QueueError::Cut { records, .. }) = late.pull(1, Duration::ZERO).await else {
            panic!("not told")
        };
        assert_eq!(pull_all(&mut late).await.unwrap(), (records as usize..appended).collect::<Vec<_>>());
    }
}

pub(crate) async fn a_place_that_is_not_kept_is_told(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut workers = topic.group("workers", StartAt::Oldest).await.unwrap();
    let first = append_big(&topic, 0).await;
    workers.commit(first).await.unwrap();
    let mut next = 1;
    fixture
        .until("the oldest go", async || {
            drain(&topic, &mut workers, next, 12).await;
            next += 12;
            kept(&topic).await[0] > 12
        })
        .await;
    let before = workers.committed();
    match workers.reset(Some(first)).await {
        Err(QueueError::NotKept { oldest_ms }) => assert!(oldest_ms > 0),
        answer => panic!("less than was asked for, without a word: {answer:?}"),
    }
    assert_eq!(workers.committed(), before);
    assert!(pull_all(&mut workers).await.unwrap().is_empty(), "it stays where it was");
    let oldest = kept(&topic).await[0];
    workers.reset(None).await.unwrap();
    assert_eq!(pull_all(&mut workers).await.unwrap(), (oldest..next).collect::<Vec<_>>());
}
