//! A topic of delayed messages, whose records are rewritten, against a model of its records: positions may change. Owns the model;
//! the lives are the harness's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::{
    AppendError, Group, Message, NewRecord, Position, Queue, QueueError, SimulatedDisk, StartAt, Topic,
};

use crate::{Random, Story, options};

/// What must be true of each record, whatever happened.
#[derive(Default)]
pub(crate) struct Model {
    next: u64,
    records: BTreeMap<u64, Record>,
    lies: bool,
}

#[derive(Debug, Clone, Default)]
struct Record {
    appended_at_ms: u64,
    deliver_at_ms: Option<u64>,
    /// Acknowledged to the appender, or shown to a reader.
    promised: bool,
    finished: bool,
    perhaps_finished: bool,
    /// Delivered at least once.
    delivered: bool,
    /// Where it was seen last.
    position: Option<Position>,
    /// In the consumer's hands: neither finished nor refused in this life.
    held: bool,
    /// Refused until then, for certain.
    not_before_ms: u64,
    refusals: u32,
    perhaps_refusals: u32,
}

impl Model {
    fn record(&mut self, message: &Message) -> (u64, &mut Record) {
        let id = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
        assert!(message.payload[8..].iter().all(|byte| *byte == id as u8), "garbage in {}", message.position);
        let record = self.records.get_mut(&id).expect("a record that nobody appended");
        assert_eq!((&message.key[..], message.tag.as_str()), (&b"k"[..], "t"));
        assert_eq!(message.deliver_at_ms, record.deliver_at_ms, "of record {id} at {}", message.position);
        assert_eq!(message.appended_at_ms, record.appended_at_ms, "of record {id} at {}", message.position);
        (id, record)
    }

    /// The log as it reads now: rising, everything that is promised and not finished at least once.
    fn check_log(&mut self, log: &[Message]) {
        let mut last = None;
        let mut found = std::collections::BTreeSet::new();
        for message in log {
            assert!(last < Some(message.position), "positions rise");
            last = Some(message.position);
            let (id, record) = self.record(message);
            record.promised = true;
            found.insert(id);
        }
        for (id, record) in &self.records {
            let kept = !record.promised || record.finished || record.perhaps_finished || found.contains(id);
            assert!(kept || self.lies, "promised record {id} is lost: {record:?}");
        }
    }

    fn check_delivery(&mut self, message: &Message, now_ms: u64) {
        let lies = self.lies;
        let (id, record) = self.record(message);
        assert!(record.deliver_at_ms.is_none_or(|at| at <= now_ms), "record {id} early");
        assert!(lies || record.not_before_ms <= now_ms, "record {id} again before its time");
        assert!(lies || !record.finished, "record {id} again, finished");
        assert!(!record.held, "record {id} twice at once");
        assert!(lies || record.position <= Some(message.position), "record {id} goes back");
        let refusals = message.attempt - 1;
        let most = record.refusals + record.perhaps_refusals;
        assert!(
            lies || (record.refusals..=most).contains(&refusals),
            "{refusals} refusals of {id}: {record:?}"
        );
        record.position = Some(message.position);
        (record.held, record.promised, record.delivered) = (true, true, true);
    }

    fn of(&mut self, message: &Message) -> &mut Record {
        self.record(message).1
    }
}

impl Story for Model {
    const CRASH_WITHIN: u64 = 600;
    const LIVES: u64 = 5;

    fn new(_seed: u64, lies: bool) -> Self {
        Self { lies, ..Self::default() }
    }

    async fn live(
        &mut self,
        random: &mut Random,
        disk: &SimulatedDisk,
        clock: &Arc<AtomicU64>,
        last: bool,
    ) -> Result<(), QueueError> {
        let mut options = options(disk, clock);
        options.segment_bytes = 64 * 1024;
        options.delayed("timeouts");
        options.keep_drained = Duration::from_secs(86_400);
        self.records.values_mut().for_each(|record| record.held = false);
        let queue = Queue::open_disk(options, &mut Registry::default())?;
        let topic = queue.topic("timeouts").await?;
        let script = async {
            self.check_log(&topic.read(None, usize::MAX).await?);
            let mut group = topic.group("closer", StartAt::Oldest).await?;
            if last {
                finish(&topic, &mut group, clock, self).await
            } else {
                act(random, &topic, &mut group, clock, self).await
            }
        };
        let result = tokio::select! {
            biased;
            () = queue.run() => Ok(()),
            result = script => result,
        };
        if random.below(4) == 0 && result.is_ok() {
            tokio::join!(queue.shutdown(), queue.run());
        }
        result
    }
}

async fn act(
    random: &mut Random,
    topic: &Topic,
    group: &mut Group,
    clock: &AtomicU64,
    model: &mut Model,
) -> Result<(), QueueError> {
    let mut under_way = Vec::new();
    let mut pulled: Vec<Message> = Vec::new();
    for _ in 0..random.below(200) {
        clock.fetch_add(random.below(10), Ordering::Relaxed);
        if random.below(200) == 0 {
            clock.fetch_add(500, Ordering::Relaxed);
        }
        let now_ms = clock.load(Ordering::Relaxed);
        match random.below(12) {
            0..=4 => {
                for _ in 0..=random.below(6) {
                    let payload_bytes = 8 + random.below(400) as usize;
                    let Ok(permit) = topic.try_permit(payload_bytes) else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let deliver_at_ms = match random.below(10) {
                        0..=3 => None,
                        4..=6 => Some(now_ms + random.below(60)),
                        _ => Some(now_ms + 1_000 + random.below(4_000)),
                    };
                    let id = model.next;
                    model.next += 1;
                    let record = Record { appended_at_ms: now_ms, deliver_at_ms, ..Record::default() };
                    model.records.insert(id, record);
                    let mut payload = id.to_le_bytes().to_vec();
                    payload.resize(payload_bytes, id as u8);
                    let record = NewRecord { key: b"k", tag: "t", deliver_at_ms, payload: &payload };
                    under_way.push((id, topic.append(permit, record)));
                }
            }
            5 => {
                for (id, append) in under_way.drain(..) {
                    match append.await {
                        Ok(_) => model.records.get_mut(&id).unwrap().promised = true,
                        Err(error) => assert_eq!(error, AppendError::Uncertain),
                    }
                }
            }
            6 | 7 => {
                let most = if random.below(10) == 0 { 300 } else { 20 };
                let messages = group.pull(1 + random.below(most) as usize, Duration::ZERO).await?;
                for message in messages {
                    model.check_delivery(&message, now_ms);
                    pulled.push(message);
                }
            }
            8 | 9 => {
                let count = random.below(pulled.len() as u64 + 1) as usize;
                let some: Vec<Message> = pulled.drain(..count).collect();
                finish_all(group, model, &some).await?;
            }
            10 => {
                let most = if random.below(4) == 0 { pulled.len() as u64 } else { 3 };
                let count = random.below(pulled.len() as u64 + 1).min(most) as usize;
                let longest_ms = if random.below(2) == 0 { 40 } else { 3_000 };
                let some: Vec<(Message, u64)> =
                    pulled.drain(..count).map(|message| (message, random.below(longest_ms))).collect();
                refuse_all(group, model, &some, now_ms).await?;
            }
            _ => match random.below(3) {
                0 => {
                    group.rewind();
                    pulled.drain(..).for_each(|message| model.of(&message).held = false);
                }
                1 if !pulled.is_empty() => {
                    let through = pulled[random.below(pulled.len() as u64) as usize].position;
                    let (some, rest) = pulled.drain(..).partition(|message| message.position <= through);
                    pulled = rest;
                    let some: Vec<Message> = some;
                    some.iter().for_each(|message| model.of(message).perhaps_finished = true);
                    group.commit(through).await?;
                    some.iter().for_each(|message| model.of(message).finished = true);
                }
                _ => {
                    if let Some(message) = pulled.pop() {
                        model.of(&message).perhaps_finished = true;
                        group.dead_letter(&message, "tried").await?;
                        model.of(&message).finished = true;
                    }
                }
            },
        }
        for _ in 0..random.below(4) {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

async fn finish_all(group: &mut Group, model: &mut Model, some: &[Message]) -> Result<(), QueueError> {
    some.iter().for_each(|message| model.of(message).perhaps_finished = true);
    let positions: Vec<Position> = some.iter().map(|message| message.position).collect();
    group.ack_all(&positions).await?;
    for message in some {
        let record = model.of(message);
        (record.finished, record.held) = (true, false);
    }
    Ok(())
}

async fn refuse_all(
    group: &mut Group,
    model: &mut Model,
    some: &[(Message, u64)],
    now_ms: u64,
) -> Result<(), QueueError> {
    some.iter().for_each(|(message, _)| model.of(message).perhaps_refusals += 1);
    let positions: Vec<_> =
        some.iter().map(|(message, delay_ms)| (message.position, Duration::from_millis(*delay_ms))).collect();
    group.nack_all(&positions).await?;
    for (message, delay_ms) in some {
        let record = model.of(message);
        record.perhaps_refusals -= 1;
        record.refusals += 1;
        (record.not_before_ms, record.held) = (now_ms + delay_ms, false);
    }
    Ok(())
}

/// At rest, without faults: everything promised reaches the group, and the log still takes records.
async fn finish(
    topic: &Topic,
    group: &mut Group,
    clock: &AtomicU64,
    model: &mut Model,
) -> Result<(), QueueError> {
    // As far as time alone brings it, so that what waits longest is rewritten once more.
    for _ in 0..60 {
        clock.fetch_add(200, Ordering::Relaxed);
        let messages = group.pull(100, Duration::ZERO).await?;
        for message in &messages {
            model.check_delivery(message, clock.load(Ordering::Relaxed));
        }
        finish_all(group, model, &messages).await?;
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    for (id, record) in &model.records {
        let done = !record.promised || record.delivered || record.perhaps_finished;
        assert!(done || model.lies, "promised record {id} never reached the group: {record:?}");
    }
    assert_eq!(topic.lag("closer").await?.records, 0, "nothing is left");
    let permit = topic.try_permit(10).expect("an idle log has room");
    let record = NewRecord { key: b"", tag: "", deliver_at_ms: None, payload: &[1; 10] };
    topic.append(permit, record).await.expect("a disk without faults");
    Ok(())
}
