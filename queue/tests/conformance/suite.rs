//! What the port promises, test by test. Names no adapter.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use queue::{
    AppendError, Group, Message, NewRecord, Permit, QueueError, Refused, RetryLevels, TopicState, Verdict,
    operator,
};

use crate::fixture::{Fixture, append, append_at, permit, record, texts};

const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::ZERO;

async fn pull(group: &mut Group, max: usize) -> Vec<String> {
    texts(&group.pull(max, AT_ONCE).await.unwrap())
}

pub(crate) async fn appends_are_read_back_in_order(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
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
        let topic = queue.topic("orders").unwrap();
        for number in 0..50 {
            let text = format!("{round}-{number}");
            append(&topic, &text).await;
            expected.push(text);
        }
        assert_eq!(texts(&topic.read(None, 10_000).await.unwrap()), expected);
        queue.shutdown().await;
    }
    let queue = fixture.open();
    assert_eq!(queue.topics().unwrap(), ["orders"]);
    assert_eq!(texts(&queue.topic("orders").unwrap().read(None, 10_000).await.unwrap()), expected);
}

pub(crate) async fn a_record_keeps_key_tag_payload_and_times(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
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
    let topic = queue.topic("orders").unwrap();
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
    let topic = queue.topic("orders").unwrap();
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
    let topic = queue.topic("orders").unwrap();
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
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    for number in 0..20 {
        append(&topic, &number.to_string()).await;
    }
    assert_eq!(topic.try_permit(1).unwrap_err(), Refused::BacklogFull);
    assert_eq!(topic.state(), TopicState::Full);
    let messages = group.pull(5, AT_ONCE).await.unwrap();
    group.commit(messages[4].position).await.unwrap();
    assert_eq!(topic.state(), TopicState::Writable);
    let (held, refused) = permits(&topic, 1);
    assert_eq!((held.len(), refused), (5, Refused::BacklogFull));
}

pub(crate) async fn every_send_mode_delivers(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
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

pub(crate) async fn a_group_continues_behind_its_commit(fixture: Fixture) {
    for start in [0, 4, 8] {
        let queue = fixture.open();
        let topic = queue.topic("orders").unwrap();
        for number in 0..8 {
            append(&topic, &(start * 2 + number).to_string()).await;
        }
        let mut group = topic.group("workers").unwrap();
        let messages = group.pull(4, AT_ONCE).await.unwrap();
        let expected: Vec<String> = (start..start + 4).map(|number| number.to_string()).collect();
        assert_eq!(texts(&messages), expected);
        assert_eq!(pull(&mut group, 1).await, [(start + 4).to_string()]);
        group.commit(messages[3].position).await.unwrap();
        assert_eq!(topic.committed("workers").unwrap(), Some(messages[3].position));
        assert!(messages[3].position < topic.end().unwrap());
        drop(group);
        queue.shutdown().await;
    }
}

pub(crate) async fn a_rewind_delivers_again(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    for text in ["a", "b", "c"] {
        append(&topic, text).await;
    }
    let mut group = topic.group("workers").unwrap();
    let first = group.pull(1, AT_ONCE).await.unwrap();
    group.commit(first[0].position).await.unwrap();
    for _ in 0..3 {
        assert_eq!(pull(&mut group, 10).await, ["b", "c"]);
        assert!(pull(&mut group, 10).await.is_empty());
        group.rewind();
    }
}

pub(crate) async fn a_group_is_held_once(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let group = topic.group("workers").unwrap();
    let error = topic.group("workers").unwrap_err();
    assert!(matches!(error, QueueError::GroupHeld { .. }) && error.is_retryable(), "{error}");
    assert!(matches!(topic.drop_group("workers"), Err(QueueError::GroupHeld { .. })));
    let _other = topic.group("others").unwrap();
    drop(group);
    let _again = topic.group("workers").unwrap();
}

pub(crate) async fn two_groups_are_independent(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let (mut one, mut two) = (topic.group("one").unwrap(), topic.group("two").unwrap());
    for text in ["a", "b"] {
        append(&topic, text).await;
    }
    let messages = one.pull(10, AT_ONCE).await.unwrap();
    one.commit(messages[1].position).await.unwrap();
    assert_eq!(pull(&mut two, 10).await, ["a", "b"]);
    assert_eq!(topic.committed("two").unwrap(), None);
    assert_eq!(topic.groups().unwrap(), ["one", "two"]);
}

pub(crate) async fn pull_waits_for_an_append(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    for number in 0..20 {
        let text = number.to_string();
        let (messages, _) = tokio::join!(group.pull(10, SOON), append(&topic, &text));
        assert_eq!(texts(&messages.unwrap()), [text]);
    }
}

pub(crate) async fn pull_gives_up_after_its_wait(fixture: Fixture) {
    let queue = fixture.open();
    let mut group = queue.topic("orders").unwrap().group("workers").unwrap();
    let started = tokio::time::Instant::now();
    assert!(group.pull(1, Duration::from_millis(30)).await.unwrap().is_empty());
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert!(group.pull(0, SOON).await.unwrap().is_empty());
}

pub(crate) async fn single_acknowledgements_survive_a_reopen(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    for number in 0..10 {
        append(&topic, &number.to_string()).await;
    }
    let mut group = topic.group("workers").unwrap();
    let messages = group.pull(10, AT_ONCE).await.unwrap();
    for odd in [9, 1, 3, 7, 5] {
        group.ack(messages[odd].position).await.unwrap();
        group.ack(messages[odd].position).await.unwrap();
    }
    assert_eq!(topic.committed("workers").unwrap(), None);
    assert_eq!(topic.lag("workers").unwrap().records, 5);
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    assert_eq!(pull(&mut group, 100).await, ["0", "2", "4", "6", "8"]);
    group.ack_all(&[messages[0].position, messages[2].position]).await.unwrap();
    assert_eq!(group.committed(), Some(messages[3].position));
    group.rewind();
    assert_eq!(pull(&mut group, 100).await, ["4", "6", "8"]);
}

pub(crate) async fn commit_leaves_the_delayed_unfinished(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let now = fixture.clock.load(Ordering::Relaxed);
    append(&topic, "a").await;
    append_at(&topic, "later", Some(now + 50)).await;
    let last = append(&topic, "b").await;
    let mut group = topic.group("workers").unwrap();
    assert_eq!(pull(&mut group, 10).await, ["a", "b"]);
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").unwrap().records, 1);
    assert!(pull(&mut group, 10).await.is_empty());
    fixture.advance(60);
    drop(group);
    let mut group = topic.group("workers").unwrap();
    assert_eq!(pull(&mut group, 10).await, ["later"]);
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").unwrap().records, 0);
}

pub(crate) async fn deliver_at_holds_a_record_back(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("timeouts").unwrap();
    let mut group = topic.group("closer").unwrap();
    let now = fixture.clock.load(Ordering::Relaxed);
    for delay in [30, 10, 20] {
        append_at(&topic, &delay.to_string(), Some(now + delay)).await;
    }
    assert!(pull(&mut group, 10).await.is_empty());
    for expected in ["10", "20", "30"] {
        fixture.advance(10);
        assert_eq!(pull(&mut group, 10).await, [expected]);
    }
    let wanted = fixture.clock.load(Ordering::Relaxed) + 15;
    append_at(&topic, "waited for", Some(wanted)).await;
    let (messages, ()) = tokio::join!(group.pull(1, SOON), fixture.sleep(25));
    assert_eq!(texts(&messages.unwrap()), ["waited for"]);
}

pub(crate) async fn nack_delivers_again_later_with_a_higher_attempt(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    append(&topic, "a").await;
    append(&topic, "b").await;
    let mut group = topic.group("workers").unwrap();
    let first = group.pull(10, AT_ONCE).await.unwrap();
    group.ack(first[1].position).await.unwrap();
    for attempt in 2..5 {
        group.nack(first[0].position, Duration::from_millis(100)).await.unwrap();
        assert!(pull(&mut group, 10).await.is_empty());
        fixture.advance(99);
        assert!(pull(&mut group, 10).await.is_empty());
        fixture.advance(1);
        let again = group.pull(10, AT_ONCE).await.unwrap();
        assert_eq!((again.len(), again[0].attempt), (1, attempt));
        assert_eq!(again[0].payload, b"a");
    }
    group.ack(first[0].position).await.unwrap();
    group.nack(first[0].position, AT_ONCE).await.unwrap();
    group.rewind();
    assert!(pull(&mut group, 10).await.is_empty(), "what is finished stays so");
}

pub(crate) async fn a_nack_survives_a_reopen(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    append(&topic, "a").await;
    let last = append(&topic, "b").await;
    let mut group = topic.group("workers").unwrap();
    let first = group.pull(10, AT_ONCE).await.unwrap();
    group.nack(first[0].position, Duration::from_millis(100)).await.unwrap();
    group.commit(last).await.unwrap();
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let mut group = queue.topic("orders").unwrap().group("workers").unwrap();
    assert!(pull(&mut group, 10).await.is_empty());
    fixture.advance(100);
    let again = group.pull(10, AT_ONCE).await.unwrap();
    assert_eq!((texts(&again), again[0].attempt), (vec![String::from("a")], 2));
}

pub(crate) async fn a_dead_letter_is_kept_and_replayed(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    for text in ["bad", "good", "worse"] {
        append(&topic, text).await;
    }
    let messages = group.pull(10, AT_ONCE).await.unwrap();
    group.dead_letter(&messages[0], "no such sale").await.unwrap();
    group.dead_letter(&messages[2], &"long ".repeat(1000)).await.unwrap();
    group.ack(messages[1].position).await.unwrap();
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    assert_eq!(topic.lag("workers").unwrap().records, 0);
    let letters = operator::dead_letters(&topic, "workers", None, 10).unwrap();
    assert_eq!(letters.len(), 2);
    assert_eq!((&letters[0].message, letters[0].reason.as_str()), (&messages[0], "no such sale"));
    let rest = operator::dead_letters(&topic, "workers", Some(letters[0].letter), 10).unwrap();
    assert_eq!(rest, letters[1..]);
    let mut group = topic.group("workers").unwrap();
    let position = operator::replay_dead_letter(&topic, &letters[1]).await.unwrap();
    let again = group.pull(10, AT_ONCE).await.unwrap();
    assert_eq!((again[0].position, again[0].payload.as_slice()), (position, b"worse".as_slice()));
    group.dead_letter(&again[0], "still").await.unwrap();
    assert_eq!(operator::dead_letters(&topic, "workers", None, 10).unwrap().len(), 3);
}

pub(crate) async fn push_retries_and_gives_up(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    for text in ["done", "retry", "dead"] {
        append(&topic, text).await;
    }
    let seen = RefCell::new(Vec::new());
    let levels = RetryLevels(vec![Duration::from_millis(5), Duration::from_millis(5)]);
    let handle = |message: Message| {
        let text = String::from_utf8(message.payload).unwrap();
        seen.borrow_mut().push((text.clone(), message.attempt));
        async move {
            match text.as_str() {
                "done" => Verdict::Done,
                "retry" => Verdict::Retry(String::from("not yet")),
                _ => Verdict::Dead(String::from("never")),
            }
        }
    };
    group.push(4, &levels, handle, fixture.sleep(60)).await.unwrap();
    let mut seen = seen.into_inner();
    seen.sort();
    let expected = [("dead", 1), ("done", 1), ("retry", 1), ("retry", 2), ("retry", 3)];
    assert_eq!(seen, expected.map(|(text, attempt)| (text.to_owned(), attempt)));
    let letters = operator::dead_letters(&topic, "workers", None, 10).unwrap();
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["never", "not yet"]);
    assert_eq!(group.committed(), topic.end());
}

pub(crate) async fn push_has_at_most_so_many_under_way(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    for number in 0..50 {
        append(&topic, &number.to_string()).await;
    }
    let (under_way, most) = (RefCell::new(0), RefCell::new(0));
    let handle = |_: Message| {
        *under_way.borrow_mut() += 1;
        let now = *under_way.borrow();
        let highest = now.max(*most.borrow());
        *most.borrow_mut() = highest;
        async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            *under_way.borrow_mut() -= 1;
            Verdict::Done
        }
    };
    group.push(7, &RetryLevels::default(), handle, fixture.sleep(80)).await.unwrap();
    assert_eq!((*most.borrow(), *under_way.borrow()), (7, 0));
    assert_eq!(group.committed(), topic.end());
}

pub(crate) async fn lag_and_distance_count_records(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    assert_eq!(topic.lag("workers").unwrap(), queue::Lag::default());
    let first = append(&topic, "a").await;
    fixture.advance(500);
    let last = append(&topic, "b").await;
    let lag = topic.lag("workers").unwrap();
    assert_eq!((lag.records, lag.age_ms), (2, 500));
    assert_eq!(topic.distance(None, last), Some(2));
    assert_eq!(topic.distance(Some(first), last), Some(1));
    assert_eq!(topic.distance(Some(last), first), Some(0));
    pull(&mut group, 2).await;
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").unwrap(), queue::Lag::default());
    assert!(matches!(topic.lag("nobody"), Err(QueueError::UnknownGroup { .. })));
    let summary = operator::groups(&queue).unwrap();
    assert_eq!((summary.len(), summary[0].committed), (1, Some(last)));
}

pub(crate) async fn reset_goes_back_and_forth(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    let mut positions = Vec::new();
    for number in 0..5 {
        positions.push(append(&topic, &number.to_string()).await);
    }
    pull(&mut group, 10).await;
    group.ack(positions[3]).await.unwrap();
    group.reset(Some(positions[1])).await.unwrap();
    assert_eq!(pull(&mut group, 10).await, ["2", "3", "4"]);
    group.reset(None).await.unwrap();
    assert_eq!(pull(&mut group, 1).await, ["0"]);
    drop(group);
    operator::reset_to_position(&topic, "workers", Some(positions[4])).await.unwrap();
    let mut group = topic.group("workers").unwrap();
    assert!(pull(&mut group, 10).await.is_empty());
    let beyond = (positions[4].to_string().parse::<u64>().unwrap() + 1).to_string().parse().unwrap();
    assert!(matches!(group.reset(Some(beyond)).await, Err(QueueError::OutOfRange(_))));
    assert!(matches!(group.commit(beyond).await, Err(QueueError::OutOfRange(_))));
}

pub(crate) async fn reset_by_time_finds_the_batch(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    drop(topic.group("workers").unwrap());
    let start = fixture.clock.load(Ordering::Relaxed);
    for number in 0..30 {
        append(&topic, &number.to_string()).await;
        fixture.advance(10);
    }
    operator::reset_to_time(&topic, "workers", start + 100).await.unwrap();
    let mut group = topic.group("workers").unwrap();
    assert_eq!(pull(&mut group, 1).await, ["10"]);
    drop(group);
    assert_eq!(operator::reset_to_time(&topic, "workers", start).await.unwrap(), None);
    let last = operator::reset_to_time(&topic, "workers", start + 100_000).await.unwrap();
    assert_eq!(last, topic.end());
    assert_eq!(texts(&operator::tail(&topic, 3).await.unwrap()), ["27", "28", "29"]);
}

pub(crate) async fn a_dropped_group_begins_anew(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let last = append(&topic, "a").await;
    let mut group = topic.group("workers").unwrap();
    pull(&mut group, 1).await;
    group.commit(last).await.unwrap();
    drop(group);
    topic.drop_group("workers").unwrap();
    assert!(topic.groups().unwrap().is_empty());
    assert!(matches!(topic.drop_group("workers"), Err(QueueError::UnknownGroup { .. })));
    assert_eq!(pull(&mut topic.group("workers").unwrap(), 10).await, ["a"]);
}

pub(crate) async fn finished_segments_are_used_again(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    let payload = "x".repeat(3000);
    for round in 0..40 {
        for _ in 0..20 {
            append(&topic, &payload).await;
        }
        let messages = group.pull(100, AT_ONCE).await.unwrap();
        assert_eq!(messages.len(), 20, "round {round}");
        group.commit(messages[19].position).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let oldest = topic.read(None, 1).await.unwrap()[0].position;
    assert!(topic.distance(Some(oldest), topic.end().unwrap()).unwrap() < 400, "old records go");
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    assert!(pull(&mut topic.group("workers").unwrap(), 10).await.is_empty());
    append(&topic, "more").await;
}

pub(crate) async fn the_slowest_group_holds_records(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut fast = topic.group("fast").unwrap();
    let mut slow = topic.group("slow").unwrap();
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
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    let late = permit(&topic, 4).await;
    let under_way = topic.append(permit(&topic, 5).await, record(b"first"));
    queue.shutdown().await;
    under_way.await.unwrap();
    assert_eq!(topic.append(late, record(b"late")).await, Err(AppendError::Closed));
    assert_eq!(topic.try_permit(1).unwrap_err(), Refused::Closed);
    assert_eq!(topic.state(), TopicState::Closed);
    assert!(matches!(queue.topic("new"), Err(QueueError::Closed)));
    assert_eq!(pull(&mut group, 10).await, ["first"]);
    assert!(matches!(group.pull(1, SOON).await, Err(QueueError::Closed)));
    drop(group);
    let queue = fixture.open();
    assert_eq!(texts(&queue.topic("orders").unwrap().read(None, 10).await.unwrap()), ["first"]);
}

pub(crate) async fn names_are_checked(fixture: Fixture) {
    let queue = fixture.open();
    let long = "x".repeat(65);
    for name in ["", ".", "..", "a/b", ".hidden", "lock", "ä", "a b", "a\0b", long.as_str()] {
        assert!(matches!(queue.topic(name), Err(QueueError::InvalidName(_))), "{name:?}");
        let topic = queue.topic("orders").unwrap();
        assert!(matches!(topic.group(name), Err(QueueError::InvalidName(_))), "{name:?}");
        assert!(matches!(topic.lag(name), Err(QueueError::InvalidName(_))), "{name:?}");
    }
    assert_eq!(queue.topics().unwrap(), ["orders"]);
}

pub(crate) async fn a_second_owner_is_refused(fixture: Fixture) {
    let queue = fixture.open();
    let error = fixture.try_open().unwrap_err();
    assert!(matches!(error, QueueError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("stop it"), "says what to do: {error}");
    queue.shutdown().await;
    fixture.open();
}

pub(crate) async fn a_clock_that_jumps_back_loses_nothing(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    let mut group = topic.group("workers").unwrap();
    let now = fixture.clock.load(Ordering::Relaxed);
    append_at(&topic, "due", Some(now + 10)).await;
    fixture.advance(10);
    assert_eq!(pull(&mut group, 1).await, ["due"]);
    fixture.clock.store(5, Ordering::Relaxed);
    let last = append(&topic, "from the past").await;
    assert_eq!(pull(&mut group, 1).await, ["from the past"]);
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").unwrap().age_ms, 0);
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").unwrap();
    append(&topic, "b").await;
    assert_eq!(topic.position_before(now).unwrap(), None);
}
