//! What groups are promised: offsets, acknowledgements, delays, dead letters, push, reset.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use queue::{
    Group, GroupWatch, Message, Position, QueueError, RetryLevels, StartAt, Topic, Verdict, operator,
};

use crate::fixture::{Fixture, append, append_at, texts};

/// Far beyond what is needed on a machine that does many things besides.
const SOON: Duration = Duration::from_secs(60);
const AT_ONCE: Duration = Duration::ZERO;

async fn pull(group: &mut Group, max: usize) -> Vec<String> {
    texts(&group.pull(max, AT_ONCE).await.unwrap())
}

pub(crate) async fn a_group_continues_behind_its_commit(fixture: Fixture) {
    for start in [0, 4, 8] {
        let queue = fixture.open();
        let topic = queue.topic("orders").await.unwrap();
        for number in 0..8 {
            append(&topic, &(start * 2 + number).to_string()).await;
        }
        let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
        let messages = group.pull(4, AT_ONCE).await.unwrap();
        let expected: Vec<String> = (start..start + 4).map(|number| number.to_string()).collect();
        assert_eq!(texts(&messages), expected);
        assert_eq!(pull(&mut group, 1).await, [(start + 4).to_string()]);
        group.commit(messages[3].position).await.unwrap();
        assert_eq!(topic.committed("workers").await.unwrap(), Some(messages[3].position));
        assert!(messages[3].position < topic.end().unwrap());
        drop(group);
        queue.shutdown().await;
    }
}

pub(crate) async fn a_rewind_delivers_again(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    for text in ["a", "b", "c"] {
        append(&topic, text).await;
    }
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
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
    let topic = queue.topic("orders").await.unwrap();
    let group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let error = topic.group("workers", StartAt::Oldest).await.unwrap_err();
    assert!(matches!(error, QueueError::GroupHeld { .. }) && error.is_retryable(), "{error}");
    assert!(matches!(topic.drop_group("workers").await, Err(QueueError::GroupHeld { .. })));
    let _other = topic.group("others", StartAt::Oldest).await.unwrap();
    drop(group);
    let _again = topic.group("workers", StartAt::Oldest).await.unwrap();
}

pub(crate) async fn two_groups_are_independent(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let (mut one, mut two) = (
        topic.group("one", StartAt::Oldest).await.unwrap(),
        topic.group("two", StartAt::Oldest).await.unwrap(),
    );
    for text in ["a", "b"] {
        append(&topic, text).await;
    }
    let messages = one.pull(10, AT_ONCE).await.unwrap();
    one.commit(messages[1].position).await.unwrap();
    assert_eq!(pull(&mut two, 10).await, ["a", "b"]);
    assert_eq!(topic.committed("two").await.unwrap(), None);
    assert_eq!(topic.groups().await.unwrap(), ["one", "two"]);
}

pub(crate) async fn pull_waits_for_an_append(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    for number in 0..20 {
        let text = number.to_string();
        let (messages, _) = tokio::join!(group.pull(10, SOON), append(&topic, &text));
        assert_eq!(texts(&messages.unwrap()), [text]);
    }
}

pub(crate) async fn pull_gives_up_after_its_wait(fixture: Fixture) {
    let queue = fixture.open();
    let mut group = queue.topic("orders").await.unwrap().group("workers", StartAt::Oldest).await.unwrap();
    let started = tokio::time::Instant::now();
    assert!(group.pull(1, Duration::from_millis(30)).await.unwrap().is_empty());
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert!(group.pull(0, SOON).await.unwrap().is_empty());
}

pub(crate) async fn single_acknowledgements_survive_a_reopen(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    for number in 0..10 {
        append(&topic, &number.to_string()).await;
    }
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let messages = group.pull(10, AT_ONCE).await.unwrap();
    for odd in [9, 1, 3, 7, 5] {
        group.ack(messages[odd].position).await.unwrap();
        group.ack(messages[odd].position).await.unwrap();
    }
    assert_eq!(topic.committed("workers").await.unwrap(), None);
    assert_eq!(topic.lag("workers").await.unwrap().records, 5);
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(pull(&mut group, 100).await, ["0", "2", "4", "6", "8"]);
    group.ack_all(&[messages[0].position, messages[2].position]).await.unwrap();
    assert_eq!(group.committed(), Some(messages[3].position));
    group.rewind();
    assert_eq!(pull(&mut group, 100).await, ["4", "6", "8"]);
}

pub(crate) async fn commit_leaves_the_delayed_unfinished(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let now = fixture.clock.load(Ordering::Relaxed);
    append(&topic, "a").await;
    append_at(&topic, "later", Some(now + 50)).await;
    let last = append(&topic, "b").await;
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(pull(&mut group, 10).await, ["a", "b"]);
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap().records, 1);
    assert!(pull(&mut group, 10).await.is_empty());
    fixture.advance(60);
    drop(group);
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(pull(&mut group, 10).await, ["later"]);
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap().records, 0);
}

pub(crate) async fn deliver_at_holds_a_record_back(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("timeouts").await.unwrap();
    let mut group = topic.group("closer", StartAt::Oldest).await.unwrap();
    let now = fixture.clock.load(Ordering::Relaxed);
    for delay in [30, 10, 20] {
        append_at(&topic, &delay.to_string(), Some(now + delay)).await;
    }
    assert!(pull(&mut group, 10).await.is_empty());
    for expected in ["10", "20", "30"] {
        fixture.advance(10);
        assert_eq!(pull(&mut group, 10).await, [expected]);
    }
    let now = fixture.clock.load(Ordering::Relaxed);
    append_at(&topic, "in a moment", Some(now + 1)).await;
    assert!(pull(&mut group, 10).await.is_empty(), "not a millisecond early");
    fixture.advance(1);
    assert_eq!(pull(&mut group, 10).await, ["in a moment"]);
    let wanted = fixture.clock.load(Ordering::Relaxed) + 15;
    append_at(&topic, "waited for", Some(wanted)).await;
    let (messages, ()) = tokio::join!(group.pull(1, SOON), fixture.sleep(25));
    assert_eq!(texts(&messages.unwrap()), ["waited for"]);
}

pub(crate) async fn nack_delivers_again_later_with_a_higher_attempt(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    append(&topic, "a").await;
    append(&topic, "b").await;
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
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
    let topic = queue.topic("orders").await.unwrap();
    append(&topic, "a").await;
    let last = append(&topic, "b").await;
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let first = group.pull(10, AT_ONCE).await.unwrap();
    group.nack(first[0].position, Duration::from_millis(100)).await.unwrap();
    group.commit(last).await.unwrap();
    drop(group);
    queue.shutdown().await;
    let queue = fixture.open();
    let mut group = queue.topic("orders").await.unwrap().group("workers", StartAt::Oldest).await.unwrap();
    assert!(pull(&mut group, 10).await.is_empty());
    fixture.advance(100);
    let again = group.pull(10, AT_ONCE).await.unwrap();
    assert_eq!((texts(&again), again[0].attempt), (vec![String::from("a")], 2));
}

pub(crate) async fn many_nacks_have_each_their_delay(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    for text in ["a", "b", "c", "d"] {
        append(&topic, text).await;
    }
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let first = group.pull(10, AT_ONCE).await.unwrap();
    group.ack(first[2].position).await.unwrap();
    let delays = [30, 10, 20, 40].map(Duration::from_millis);
    let refused: Vec<_> = first.iter().map(|message| message.position).zip(delays).collect();
    group.nack_all(&refused).await.unwrap();
    group.nack_all(&[]).await.unwrap();
    for expected in ["b", "", "a", "d"] {
        fixture.advance(10);
        let again = group.pull(10, AT_ONCE).await.unwrap();
        assert_eq!(texts(&again).concat(), expected, "what is finished stays so");
        assert!(again.iter().all(|message| message.attempt == 2));
    }
}

pub(crate) async fn a_dead_letter_is_kept_and_replayed(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
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
    let topic = queue.topic("orders").await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap().records, 0);
    let letters = operator::dead_letters(&topic, "workers", None, 10).await.unwrap();
    assert_eq!(letters.len(), 2);
    assert_eq!((&letters[0].message, letters[0].reason.as_str()), (&messages[0], "no such sale"));
    let rest = operator::dead_letters(&topic, "workers", Some(letters[0].letter), 10).await.unwrap();
    assert_eq!(rest, letters[1..]);
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    let position = operator::replay_dead_letter(&topic, &letters[1]).await.unwrap();
    let again = group.pull(10, AT_ONCE).await.unwrap();
    assert_eq!((again[0].position, again[0].payload.as_slice()), (position, b"worse".as_slice()));
    group.dead_letter(&again[0], "still").await.unwrap();
    assert_eq!(operator::dead_letters(&topic, "workers", None, 10).await.unwrap().len(), 3);
}

pub(crate) async fn push_retries_and_gives_up(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
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
    group.push(4, &levels, handle, fixture.nothing_left(&topic, "workers")).await.unwrap();
    let mut seen = seen.into_inner();
    seen.sort();
    let expected = [("dead", 1), ("done", 1), ("retry", 1), ("retry", 2), ("retry", 3)];
    assert_eq!(seen, expected.map(|(text, attempt)| (text.to_owned(), attempt)));
    let letters = operator::dead_letters(&topic, "workers", None, 10).await.unwrap();
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["never", "not yet"]);
    assert_eq!(group.committed(), topic.end());
}

pub(crate) async fn push_has_at_most_so_many_under_way(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
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
    let nothing_left = fixture.nothing_left(&topic, "workers");
    group.push(7, &RetryLevels::default(), handle, nothing_left).await.unwrap();
    assert_eq!((*most.borrow(), *under_way.borrow()), (7, 0));
    assert_eq!(group.committed(), topic.end());
}

pub(crate) async fn lag_counts_records(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap(), queue::Lag::default());
    let first = append(&topic, "a").await;
    fixture.advance(500);
    let last = append(&topic, "b").await;
    let lag = topic.lag("workers").await.unwrap();
    assert_eq!((lag.records, lag.age_ms), (2, 500));
    let behind =
        [topic.behind("workers", first).await.unwrap(), topic.behind("workers", last).await.unwrap()];
    match queue.capabilities().exact_counts {
        true => assert_eq!(behind, [1, 2]),
        false => assert!(behind[0] >= 1 && behind[1] >= 2, "{behind:?}"),
    }
    pull(&mut group, 2).await;
    group.commit(last).await.unwrap();
    assert_eq!(topic.lag("workers").await.unwrap(), queue::Lag::default());
    assert!(matches!(topic.lag("nobody").await, Err(QueueError::UnknownGroup { .. })));
    let summary = operator::groups(&queue).await.unwrap();
    assert_eq!((summary.len(), summary[0].committed), (1, Some(last)));
    assert_eq!(topic.behind("workers", last).await.unwrap(), 0);
    assert!(matches!(topic.behind("nobody", last).await, Err(QueueError::UnknownGroup { .. })));
}

pub(crate) async fn a_watch_remembers_how_a_group_stood(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let watch = GroupWatch::new(topic.clone(), "workers");
    let first = append(&topic, "a").await;
    assert!(matches!(watch.refresh().await, Err(QueueError::UnknownGroup { .. })));
    assert_eq!((watch.lag(), watch.ahead_of(first)), (None, None), "nothing is known");

    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(watch.refresh().await.unwrap(), None, "nothing to compare with");
    let second = append(&topic, "b").await;
    let third = append(&topic, "c").await;
    assert_eq!(watch.lag().unwrap().records, 1, "as it was when it was looked at");
    assert_eq!([first, second, third].map(|position| watch.ahead_of(position)), [Some(0), Some(1), Some(2)]);

    pull(&mut group, 2).await;
    group.commit(second).await.unwrap();
    assert_eq!(watch.refresh().await.unwrap().unwrap().records, 2);
    assert_eq!(watch.lag().unwrap().records, 1);
    assert_eq!([first, second, third].map(|position| watch.ahead_of(position)), [Some(0); 3]);
    assert_eq!(watch.refresh().await.unwrap().unwrap().records, 0);
}

pub(crate) async fn the_last_records_are_read_in_order(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    assert!(topic.read_last(None, 3).await.unwrap().is_empty());
    let mut positions = Vec::new();
    for number in 0..30 {
        positions.push(append(&topic, &number.to_string()).await);
    }
    assert_eq!(texts(&topic.read_last(None, 3).await.unwrap()), ["27", "28", "29"]);
    assert_eq!(texts(&topic.read_last(Some(positions[4]), 2).await.unwrap()), ["3", "4"]);
    assert_eq!(texts(&topic.read_last(Some(positions[1]), 10).await.unwrap()), ["0", "1"]);
    assert!(operator::finished(&topic, "workers", 5).await.is_err());
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert!(operator::finished(&topic, "workers", 5).await.unwrap().is_empty());
    pull(&mut group, 10).await;
    group.commit(positions[6]).await.unwrap();
    assert_eq!(texts(&operator::finished(&topic, "workers", 2).await.unwrap()), ["5", "6"]);
}

pub(crate) async fn a_group_begins_where_its_creator_says(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    append(&topic, "before").await;
    let mut late = topic.group("late", StartAt::End).await.unwrap();
    let mut early = topic.group("early", StartAt::Oldest).await.unwrap();
    append(&topic, "after").await;
    assert_eq!(pull(&mut late, 10).await, ["after"]);
    assert_eq!(pull(&mut early, 10).await, ["before", "after"]);
    drop((late, early));
    // It exists: where it begins has been said.
    let mut early = topic.group("early", StartAt::End).await.unwrap();
    assert_eq!(pull(&mut early, 10).await, ["before", "after"]);
    let mut late = topic.group("late", StartAt::Oldest).await.unwrap();
    assert_eq!(pull(&mut late, 10).await, ["after"]);
}

pub(crate) async fn reset_goes_back_and_forth(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
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
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert!(pull(&mut group, 10).await.is_empty());
    let skipped = operator::skipped(&topic, "workers").await.unwrap();
    assert_eq!(
        skipped,
        [operator::Skipped { after: None, through: positions[4] }],
        "all were on their way again"
    );
    assert!(positions.iter().all(|position| skipped[0].contains(*position)));
    group.reset(Some(positions[1])).await.unwrap();
    group.reset(Some(positions[2])).await.unwrap();
    group.ack(positions[3]).await.unwrap();
    group.reset(Some(positions[4])).await.unwrap();
    let skipped = operator::skipped(&topic, "workers").await.unwrap();
    let between = operator::Skipped { after: Some(positions[3]), through: positions[4] };
    assert_eq!(
        skipped,
        [operator::Skipped { after: None, through: positions[2] }, between],
        "what touches is one, and what was acknowledged in between was not skipped"
    );
    group.reset(Some(positions[2])).await.unwrap();
    let skipped = operator::skipped(&topic, "workers").await.unwrap();
    assert_eq!(skipped, [operator::Skipped { after: None, through: positions[2] }], "it gets the rest again");
    group.reset(Some(positions[4])).await.unwrap();
    let beyond = (positions[4].to_string().parse::<u64>().unwrap() + 1).to_string().parse().unwrap();
    assert!(matches!(group.reset(Some(beyond)).await, Err(QueueError::OutOfRange(_))));
    assert!(matches!(group.commit(beyond).await, Err(QueueError::OutOfRange(_))));
}

pub(crate) async fn reset_by_time_finds_the_batch(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    drop(topic.group("workers", StartAt::Oldest).await.unwrap());
    let start = fixture.clock.load(Ordering::Relaxed);
    for number in 0..30 {
        append(&topic, &number.to_string()).await;
        fixture.advance(10);
    }
    reset_to_time(&topic, start + 100).await;
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    assert_eq!(pull(&mut group, 1).await, ["10"]);
    drop(group);
    assert_eq!(reset_to_time(&topic, start).await, None);
    let last = reset_to_time(&topic, start + 100_000).await;
    assert_eq!(last, topic.end());
}

async fn reset_to_time(topic: &Topic, unix_ms: u64) -> Option<Position> {
    let through = topic.position_before(unix_ms).await.unwrap();
    operator::reset_to_position(topic, "workers", through).await.unwrap();
    through
}

pub(crate) async fn a_dropped_group_begins_anew(fixture: Fixture) {
    let queue = fixture.open();
    let topic = queue.topic("orders").await.unwrap();
    let last = append(&topic, "a").await;
    let mut group = topic.group("workers", StartAt::Oldest).await.unwrap();
    pull(&mut group, 1).await;
    group.commit(last).await.unwrap();
    drop(group);
    topic.drop_group("workers").await.unwrap();
    assert!(topic.groups().await.unwrap().is_empty());
    assert!(matches!(topic.drop_group("workers").await, Err(QueueError::UnknownGroup { .. })));
    assert_eq!(pull(&mut topic.group("workers", StartAt::Oldest).await.unwrap(), 10).await, ["a"]);
}
