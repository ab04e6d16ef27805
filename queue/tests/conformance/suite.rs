//! What the port promises, test by test. Names no adapter.

use std::sync::atomic::Ordering;
use std::time::Duration;

use queue::{
    AppendError, Group, LogAddress, Message, NewRecord, Opening, Permit, Queue, QueueError, Refused, StartAt,
    Tie, TopicState,
};

mod consuming;
mod keeping;

pub(crate) use consuming::*;
pub(crate) use keeping::*;

use crate::fixture::{Fixture, append, append_at, permit, record, texts};

/// Far beyond what is needed on a machine that does many things besides.
const SOON: Duration = Duration::from_secs(60);
const AT_ONCE: Duration = Duration::ZERO;

async fn pull(group: &mut Group, max: usize) -> Vec<String> {
    texts(&group.pull(max, AT_ONCE).await.unwrap())
}

pub(crate) async fn appends_are_read_back_in_order(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    assert_eq!(topic.end(), None);
    let mut last = None;
    for number in 0..100 {
        let position = append(&topic, &number.to_string()).await;
        assert!(last < Some(position), "positions rise");
        last = Some(position);
        assert_eq!(topic.end(), last);
    }
    let messages = topic.read(None, 1000).await.unwrap();
    assert_eq!(texts(&messages), (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    let rest = topic.read(Some(messages[97].position), 1000).await.unwrap();
    assert_eq!(texts(&rest), ["98", "99"]);
    assert!(topic.read(last, 10).await.unwrap().is_empty());
    let parsed = messages[3].position.to_string().parse().unwrap();
    assert_eq!(messages[3].position, parsed);
}

pub(crate) async fn records_survive_a_reopen(fixture: Fixture) {
    let mut expected = Vec::new();
    let mut instance = None;
    for round in 0..4 {
        let queue = fixture.open();
        assert_eq!(*instance.get_or_insert(queue.instance()), queue.instance());
        let topic = queue.topic("orders").await.unwrap();
        for number in 0..50 {
            let text = format!("{round}-{number}");
            append(&topic, &text).await;
            expected.push(text);
        }
        assert_eq!(texts(&topic.read(None, 10_000).await.unwrap()), expected);
        queue.shutdown().await;
    }
    let queue = fixture.open();
    assert_eq!(queue.topics().await.unwrap(), ["orders"]);
    assert_eq!(texts(&queue.topic("orders").await.unwrap().read(None, 10_000).await.unwrap()), expected);
}

pub(crate) async fn a_record_keeps_key_tag_payload_and_times(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    for length in [1, 7, 8, 9, 255, 4096, 20_000] {
        let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let key = vec![7; length.min(128)];
        let tag = "t".repeat(length.min(64));
        let record = NewRecord { key: &key, tag: &tag, deliver_at_ms: Some(5), payload: &payload };
        let position = topic.append(permit(&topic, length).await, record).await.unwrap();
        let message = topic.read(None, 100).await.unwrap().pop().unwrap();
        let appended_at_ms = fixture.clock.load(Ordering::Relaxed);
        let expected =
            Message { position, key, tag, payload, appended_at_ms, deliver_at_ms: Some(5), attempt: 1 };
        assert_eq!(message, expected);
    }
}

pub(crate) async fn sizes_are_checked_and_cost_nothing(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    assert_eq!(topic.try_permit(0).unwrap_err(), Refused::PayloadSize);
    assert_eq!(topic.try_permit(1 << 30).unwrap_err(), Refused::PayloadSize);
    let long_key = [1; 129];
    let long_tag = "t".repeat(65);
    for _ in 0..2_000 {
        for wrong in [
            record(&[0; 11]),
            record(&[]),
            NewRecord { key: &long_key, ..record(b"x") },
            NewRecord { tag: &long_tag, ..record(b"x") },
        ] {
            let outcome = topic.append(permit(&topic, 10).await, wrong).await;
            assert_eq!(outcome, Err(AppendError::RecordSize));
        }
    }
    append(&topic, "fine").await;
    assert_eq!(texts(&topic.read(None, 10).await.unwrap()), ["fine"]);
}

fn permits(topic: &queue::Topic, bytes: usize) -> (Vec<Permit>, Refused) {
    let mut held = Vec::new();
    loop {
        match topic.try_permit(bytes) {
            Ok(permit) => held.push(permit),
            Err(refused) => return (held, refused),
        }
        assert!(held.len() < 1_000_000, "room is bounded");
    }
}

pub(crate) async fn a_dropped_permit_gives_its_room_back(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    for _ in 0..20 {
        let (held, refused) = permits(&topic, 1000);
        assert!(refused.is_retryable(), "{refused}");
        assert!(held.len() >= 5, "{}", held.len());
        drop(held);
        tokio::task::yield_now().await;
    }
    append(&topic, "fine").await;
}

pub(crate) async fn the_ring_refuses_when_full_and_recovers(mut fixture: Fixture) {
    fixture.segment_bytes = 4 << 20;
    fixture.ring_bytes = 64 * 1024;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    for round in 0..10 {
        let (held, refused) = permits(&topic, 1000);
        assert_eq!(refused, Refused::RingFull);
        let appends: Vec<_> =
            held.into_iter().map(|permit| topic.append(permit, record(&[round; 1000]))).collect();
        for append in appends {
            append.await.unwrap();
        }
    }
    assert!(topic.read(None, 100_000).await.unwrap().len() >= 500);
}

pub(crate) async fn the_backlog_bound_refuses_and_a_commit_lifts_it(mut fixture: Fixture) {
    fixture.backlog_max = 20;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    for number in 0..20 {
        append(&topic, &number.to_string()).await;
    }
    assert_eq!(topic.try_permit(1).unwrap_err(), Refused::BacklogFull);
    assert_eq!(topic.state(), TopicState::Full);
    let messages = group.pull(5, AT_ONCE).await.unwrap();
    group.commit(messages[4].position).await.unwrap();
    assert_eq!(topic.state(), TopicState::Writable);
    // What the last append held is given back a moment after its record is durable.
    fixture.until("there is room for as many", async || permits(&topic, 1).0.len() == 5).await;
    assert_eq!(permits(&topic, 1).1, Refused::BacklogFull);
}

pub(crate) async fn every_send_mode_delivers(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    append(&topic, "asynchronous").await;
    let batch = [(permit(&topic, 9).await, record(b"a batch's")), (permit(&topic, 4).await, record(b"next"))];
    let positions = topic.append_batch(batch).await.unwrap();
    assert_eq!(positions.len(), 2);
    topic.append_without_promise(permit(&topic, 7).await, record(b"one way"));
    let last = {
        let topic = topic.clone();
        let permit = permit(&topic, 4).await;
        tokio::task::spawn_blocking(move || topic.append_blocking(permit, record(b"sync"))).await.unwrap()
    };
    assert_eq!(Some(last.unwrap()), topic.end());
    let read = texts(&topic.read(None, 10).await.unwrap());
    assert_eq!(read, ["asynchronous", "a batch's", "next", "one way", "sync"]);
}

pub(crate) async fn finished_segments_are_used_again(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let payload = "x".repeat(3000);
    for round in 0..40 {
        for _ in 0..20 {
            append(&topic, &payload).await;
        }
        let messages = group.pull(100, AT_ONCE).await.unwrap();
        assert_eq!(messages.len(), 20, "round {round}");
        group.commit(messages[19].position).await.unwrap();
    }
    let kept = async || topic.read(None, usize::MAX).await.unwrap().len();
    fixture.until("old records go", async || kept().await < 400).await;
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    assert!(pull(&mut topic.group("workers", StartAt::Oldest).await.unwrap(), 10).await.is_empty());
    append(&topic, "more").await;
}

pub(crate) async fn the_slowest_group_holds_records(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut fast = topic.group("fast", StartAt::Oldest).await.unwrap();
    let mut slow = topic.group("slow", StartAt::Oldest).await.unwrap();
    let payload = "x".repeat(3000);
    for number in 0..300 {
        let last = append(&topic, &format!("{number} {payload}")).await;
        pull(&mut fast, 10).await;
        fast.commit(last).await.unwrap();
    }
    for number in 0..300 {
        let text = pull(&mut slow, 1).await.pop().unwrap();
        assert!(text.starts_with(&format!("{number} ")));
    }
}

pub(crate) async fn after_shutdown_nothing_is_taken(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let late = permit(&topic, 4).await;
    let under_way = topic.append(permit(&topic, 5).await, record(b"first"));
    queue.shutdown().await;
    under_way.await.unwrap();
    assert_eq!(topic.append(late, record(b"late")).await, Err(AppendError::Closed));
    assert_eq!(topic.try_permit(1).unwrap_err(), Refused::Closed);
    assert_eq!(topic.state(), TopicState::Closed);
    assert!(matches!(queue.topic("new").await, Err(QueueError::Closed)));
    assert_eq!(pull(&mut group, 10).await, ["first"]);
    assert!(matches!(group.pull(1, SOON).await, Err(QueueError::Closed)));
    drop(group);
    let queue = fixture.open();
    assert_eq!(texts(&queue.topic("orders").await.unwrap().read(None, 10).await.unwrap()), ["first"]);
}

pub(crate) async fn names_are_checked(fixture: Fixture) {
    let queue = fixture.open();
    let long = "x".repeat(65);
    for name in ["", ".", "..", "a/b", ".hidden", "lock", "ä", "a b", "a\0b", long.as_str()] {
        assert!(matches!(queue.topic(name).await, Err(QueueError::InvalidName(_))), "{name:?}");
        let topic = queue.topic("orders").await.unwrap();
        assert!(
            matches!(topic.group(name, StartAt::Oldest).await, Err(QueueError::InvalidName(_))),
            "{name:?}"
        );
        assert!(matches!(topic.lag(name).await, Err(QueueError::InvalidName(_))), "{name:?}");
    }
    assert_eq!(queue.topics().await.unwrap(), ["orders"]);
}

pub(crate) async fn a_second_owner_is_refused(fixture: Fixture) {
    let queue = fixture.open();
    let error = fixture.try_open().unwrap_err();
    assert!(matches!(error, QueueError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("stop it"), "says what to do: {error}");
    queue.shutdown().await;
    fixture.open();
}

pub(crate) async fn a_clock_that_jumps_back_loses_nothing(mut fixture: Fixture) {
    fixture.keep_drained = SOON;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let now = fixture.clock.load(Ordering::Relaxed);
    append_at(&topic, "due", Some(now + 10)).await;
    fixture.advance(10);
    assert_eq!(pull(&mut group, 1).await, ["due"]);
    fixture.clock.store(5, Ordering::Relaxed);
    let last = append(&topic, "from the past").await;
    assert_eq!(pull(&mut group, 1).await, ["from the past"]);
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap().age_ms, 0);
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    append(&topic, "b").await;
    assert_eq!(topic.position_before(now).await.unwrap(), None);
}

pub(crate) async fn a_clock_that_is_put_back_delivers_nothing_early(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    append(&topic, "seen by the clock of before").await;
    let message = group.pull(1, Duration::ZERO).await.unwrap().remove(0);
    fixture.clock.fetch_sub(500_000, Ordering::Relaxed);
    append_at(&topic, "delayed", Some(fixture.clock.load(Ordering::Relaxed) + 10_000)).await;
    assert!(pull(&mut group, 2).await.is_empty(), "early");
    group.nack(message.position, Duration::from_secs(5)).await.unwrap();
    fixture.advance(5_000);
    assert_eq!(pull(&mut group, 2).await, ["seen by the clock of before"], "its delay is over");
    fixture.advance(4_999);
    assert!(pull(&mut group, 2).await.is_empty(), "early");
    fixture.advance(1);
    assert_eq!(pull(&mut group, 2).await, ["delayed"]);
}

pub(crate) async fn a_log_says_to_whom_it_belongs(fixture: Fixture) {
    let queue = fixture.open();
    assert_eq!(queue.tie().await.unwrap(), None, "nobody has tied it");
    let beside = Queue::attach_disk(fixture.options()).unwrap();
    assert!(matches!(beside.tie_to(7, 1).await, Err(QueueError::NotOwner)));
    let first = queue.tie_to(7, 1).await.unwrap();
    assert_eq!(first.generation, 1);
    let tie = Some(Tie { deployment: 7, opening: first });
    assert_eq!((queue.tie().await.unwrap(), beside.tie().await.unwrap()), (tie, tie));
    append(&queue.topic("orders").await.unwrap(), "one").await;
    let instance = queue.instance();
    queue.shutdown().await;
    assert!(matches!(queue.tie_to(7, 2).await, Err(QueueError::Closed)));

    let queue = fixture.open();
    assert_eq!((queue.instance(), queue.tie().await.unwrap()), (instance, tie), "it outlives the process");
    let second = queue.tie_to(u128::MAX - 5, u64::MAX).await.unwrap();
    assert_ne!(first.nonce, second.nonce);
    let tie = Some(Tie { deployment: u128::MAX - 5, opening: second });
    assert_eq!((queue.tie().await.unwrap(), beside.tie().await.unwrap()), (tie, tie));
    assert_eq!(texts(&queue.topic("orders").await.unwrap().read(None, 9).await.unwrap()), ["one"]);
}

pub(crate) async fn nothing_is_promised_before_the_log_is_tied(fixture: Fixture) {
    for generation in 1..=2 {
        let mut options = fixture.options();
        options.tied = true;
        let queue = Queue::open_disk(options, &mut prometheus_client::registry::Registry::default()).unwrap();
        tokio::spawn(queue.run());
        let topic = queue.topic("orders").await.unwrap();
        let refused = topic.try_permit(1).unwrap_err();
        assert_eq!((refused, refused.is_retryable()), (Refused::Untied, false));
        queue.tie_to(7, generation).await.unwrap();
        append(&topic, "one").await;
        append(&queue.topic("events").await.unwrap(), "another").await;
        queue.shutdown().await;
    }
}

pub(crate) async fn a_log_is_taken_on_an_operators_word(fixture: Fixture) {
    if fixture.kind == crate::fixture::Kind::Simulated {
        // The command line's: it knows real directories alone.
        return;
    }
    let options = fixture.options();
    let (log, now) = (LogAddress::Disk(options.directory.clone()), options.now.clone());
    let tie = Tie { deployment: 3, opening: Opening { generation: 4, nonce: 5 } };
    let queue = fixture.open();
    let taken = queue::operator::accept(&log, tie, now.clone()).await;
    assert!(matches!(taken, Err(QueueError::InUse { .. })), "its owner runs: {taken:?}");
    queue.shutdown().await;
    queue::operator::accept(&log, tie, now).await.unwrap();
    assert_eq!(fixture.open().tie().await.unwrap(), Some(tie));
}
