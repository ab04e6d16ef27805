//! A topic of promises against a model of its positions. Owns the model; the lives are the harness's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::{
    AppendError, Message, NewRecord, Position, Queue, QueueError, SimulatedDisk, StartAt, Topic, operator,
};

use crate::aside::{Aside, finish_late};
use crate::{Random, Story, options};

/// What must be true of the log and the group, whatever happened.
#[derive(Default)]
pub(crate) struct Model {
    next_payload: u64,
    attempted: BTreeMap<u64, Option<u64>>,
    /// Position to payload of everything acknowledged to the appender or shown to a reader.
    pub(crate) promised: BTreeMap<Position, u64>,
    finished: BTreeSet<Position>,
    perhaps_finished: BTreeSet<Position>,
    delivered: BTreeSet<Position>,
    /// Given to the dead letters and not delivered since.
    dead: BTreeSet<Position>,
    /// What a group that may be cut off has seen, and what it was told that it will not see: the last position, and how many.
    pub(crate) late_seen: BTreeSet<Position>,
    pub(crate) late_cuts: Vec<(u64, u64)>,
    /// The last record that it was put behind, so that it need not see what is before.
    pub(crate) late_skipped: u64,
    /// The oldest record when it was made.
    pub(crate) late_oldest: Option<Position>,
    /// The latest time that the wall clock has ever shown.
    pub(crate) latest_ms: u64,
    keep_drained_ms: u64,
    keep_drained_bytes_max: u64,
    pub(crate) lies: bool,
}

impl Model {
    fn payload(&mut self, random: &mut Random, now: u64) -> (u64, Vec<u8>, Option<u64>) {
        let id = self.next_payload;
        self.next_payload += 1;
        let mut payload = id.to_le_bytes().to_vec();
        let length = if random.below(8) == 0 { random.below(6000) } else { random.below(300) };
        payload.resize(8 + length as usize, id as u8);
        let deliver_at = (random.below(6) == 0).then(|| now + random.below(60));
        self.attempted.insert(id, deliver_at);
        (id, payload, deliver_at)
    }

    pub(crate) fn check_message(&self, message: &Message) -> u64 {
        let id = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
        assert!(message.payload[8..].iter().all(|byte| *byte == id as u8), "garbage in {}", message.position);
        let deliver_at = self.attempted.get(&id).expect("a record that nobody appended");
        assert_eq!(*deliver_at, message.deliver_at_ms, "of {}", message.position);
        id
    }

    /// The log as it reads now: everything promised is in it, nothing twice, nothing strange, in order.
    fn check_log(&mut self, log: &[Message]) {
        let mut seen = BTreeSet::new();
        let mut last = None;
        let mut positions = BTreeMap::new();
        for message in log {
            let id = self.check_message(message);
            assert!(seen.insert(id), "record {id} twice");
            assert!(last < Some(message.position), "positions rise");
            last = Some(message.position);
            positions.insert(message.position, id);
        }
        let oldest = log.first().map(|message| message.position);
        for (position, id) in &self.promised {
            let retired = oldest.is_none_or(|oldest| *position < oldest);
            match positions.get(position) {
                Some(found) => assert_eq!(found, id, "at {position}"),
                None if retired
                    && (self.finished.contains(position) || self.perhaps_finished.contains(position)) => {}
                None => {
                    let tail = last.is_none_or(|last| *position > last);
                    assert!(self.lies && tail, "promised {position} is lost");
                }
            }
        }
        if self.lies {
            self.promised.retain(|position, _| Some(*position) <= last);
            self.finished.retain(|position| Some(*position) <= last);
        }
        self.promised.extend(positions);
    }
}

/// The model, and what happens beside the promise group.
pub(crate) struct Promises {
    model: Model,
    aside: Aside,
}

impl Story for Promises {
    const CRASH_WITHIN: u64 = 150;
    const LIVES: u64 = 4;

    fn new(seed: u64, lies: bool) -> Self {
        let mut aside = Aside::new(seed);
        let model = Model {
            lies,
            keep_drained_ms: [0, 0, 300, 3_000][aside.random.below(4) as usize],
            keep_drained_bytes_max: [0, 300_000, u64::MAX][aside.random.below(3) as usize],
            ..Model::default()
        };
        Self { model, aside }
    }

    async fn live(
        &mut self,
        random: &mut Random,
        disk: &SimulatedDisk,
        clock: &Arc<AtomicU64>,
        last: bool,
    ) -> Result<(), QueueError> {
        let Self { model, aside } = self;
        let mut options = options(disk, clock);
        options.keep_drained = Duration::from_millis(model.keep_drained_ms);
        options.keep_drained_bytes_max = model.keep_drained_bytes_max;
        let queue = Queue::open_disk(options, &mut Registry::default())?;
        let topic = queue.topic("orders").await?;
        let script = async {
            model.check_log(&topic.read(None, usize::MAX).await?);
            if last {
                finish(&queue, &topic, clock, model).await
            } else {
                act(random, aside, &topic, clock, model).await
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
    aside: &mut Aside,
    topic: &Topic,
    clock: &AtomicU64,
    model: &mut Model,
) -> Result<(), QueueError> {
    let mut under_way = Vec::new();
    let mut group = topic.group("workers", StartAt::Oldest).await?;
    let mut pulled: Vec<Message> = Vec::new();
    let mut late = None;
    for _ in 0..random.below(60) {
        aside.act(topic, &mut late, clock, model).await?;
        clock.fetch_add(random.below(10), Ordering::Relaxed);
        model.latest_ms = model.latest_ms.max(clock.load(Ordering::Relaxed));
        match random.below(10) {
            0..=4 => {
                for _ in 0..=random.below(6) {
                    let (id, payload, deliver_at_ms) = model.payload(random, clock.load(Ordering::Relaxed));
                    let Ok(permit) = topic.try_permit(payload.len()) else {
                        model.attempted.remove(&id);
                        tokio::task::yield_now().await;
                        continue;
                    };
                    if random.below(10) == 0 {
                        drop(permit);
                        continue;
                    }
                    let record = NewRecord { key: b"k", tag: "t", deliver_at_ms, payload: &payload };
                    under_way.push((id, topic.append(permit, record)));
                }
            }
            5 => {
                for (id, append) in under_way.drain(..) {
                    match append.await {
                        Ok(position) => {
                            let before = model.promised.insert(position, id);
                            assert!(before.is_none_or(|before| before == id));
                        }
                        Err(error) => assert_eq!(error, AppendError::Uncertain),
                    }
                }
            }
            6 | 7 => {
                let messages = group.pull(1 + random.below(20) as usize, Duration::ZERO).await?;
                for message in &messages {
                    let id = model.check_message(message);
                    let now_ms = clock.load(Ordering::Relaxed);
                    // One that was due once may come again by a clock that was put back since.
                    let was_due = model.delivered.contains(&message.position);
                    assert!(was_due || message.deliver_at_ms.is_none_or(|at| at <= now_ms), "early");
                    assert!(
                        model.lies || !model.finished.contains(&message.position),
                        "finished {} again",
                        message.position
                    );
                    model.promised.insert(message.position, id);
                    model.delivered.insert(message.position);
                    model.dead.remove(&message.position);
                }
                pulled.extend(messages);
            }
            8 => {
                let count = random.below(pulled.len() as u64 + 1) as usize;
                let some: Vec<Position> = pulled.drain(..count).map(|message| message.position).collect();
                model.perhaps_finished.extend(&some);
                group.ack_all(&some).await?;
                model.finished.extend(some);
            }
            _ => {
                if let Some(message) = pulled.pop() {
                    if random.below(3) == 0 {
                        model.perhaps_finished.insert(message.position);
                        model.dead.insert(message.position);
                        group.dead_letter(&message, "tried").await?;
                        model.finished.insert(message.position);
                    } else {
                        group.nack(message.position, Duration::from_millis(random.below(40))).await?;
                    }
                }
            }
        }
        for _ in 0..random.below(4) {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// At rest, without faults: everything promised reaches the group, and the log still takes records.
async fn finish(
    queue: &Queue,
    topic: &Topic,
    clock: &AtomicU64,
    model: &mut Model,
) -> Result<(), QueueError> {
    let mut group = topic.group("workers", StartAt::Oldest).await?;
    clock.store(model.latest_ms + 30_000, Ordering::Relaxed);
    finish_late(topic, model).await?;
    loop {
        let messages = group.pull(100, Duration::ZERO).await?;
        let Some(last) = messages.iter().map(|message| message.position).max() else { break };
        for message in &messages {
            model.check_message(message);
            assert!(
                model.lies || !model.finished.contains(&message.position),
                "finished {} again",
                message.position
            );
            model.delivered.insert(message.position);
            model.dead.remove(&message.position);
        }
        assert!(last <= topic.end().unwrap());
        let positions: Vec<Position> = messages.iter().map(|message| message.position).collect();
        group.ack_all(&positions).await?;
    }
    for position in model.promised.keys() {
        let done = model.delivered.contains(position) || model.perhaps_finished.contains(position);
        assert!(done, "promised {position} never reached the group");
    }
    let letters: BTreeSet<Position> = operator::dead_letters(topic, "workers", None, usize::MAX)
        .await?
        .into_iter()
        .map(|letter| letter.message.position)
        .collect();
    for position in &model.dead {
        assert!(
            model.lies || letters.contains(position),
            "{position} is neither a letter nor delivered again"
        );
    }
    assert_eq!(topic.lag("workers").await?.records, 0);
    let permit = topic.try_permit(10).expect("an idle log has room");
    let record = NewRecord { key: b"", tag: "", deliver_at_ms: None, payload: &[1; 10] };
    topic.append(permit, record).await.expect("a disk without faults");
    drop(group);
    assert_eq!(queue.topics().await?, ["orders"]);
    Ok(())
}
