//! Push delivery on top of pull and acknowledgements: bounded concurrency, back-off levels, dead letters. Spawns nothing.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, FutureExt, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::handles::Group;
use crate::port::{Message, QueueError};

/// Longest time that a pull blocks while no handler is under way, so that nothing waits on a lost wake-up for ever.
const IDLE_PULL_MAX: Duration = Duration::from_secs(5);

/// What a push handler made of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Finished.
    Done,
    /// Again, after the next level's back-off.
    Retry(String),
    /// Never again: to the dead letters, with this reason.
    Dead(String),
}

/// The back-off after each failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryLevels(pub Vec<Duration>);

impl RetryLevels {
    /// The wait after the failed `attempt` (1 is the first); `None` when the levels are used up.
    pub fn after(&self, attempt: u32) -> Option<Duration> {
        self.0.get(attempt.saturating_sub(1) as usize).copied()
    }
}

impl Default for RetryLevels {
    /// 1 s, 5 s, 10 s, 30 s, 1 min, 2 min, 5 min, 10 min, 30 min, 1 h.
    fn default() -> Self {
        Self([1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600].map(Duration::from_secs).to_vec())
    }
}

impl Group {
    /// Pushes messages to `handle`, at most `concurrency` at once, until `stop` completes; then lets those under way finish.
    /// [`Verdict::Retry`] follows `retries`; past its last level the message becomes a dead letter. Finished ones are
    /// acknowledged together. Spawns nothing.
    ///
    /// # Errors
    /// As [`Group::pull`] and [`Group::ack`]; what was under way is delivered again to the next holder.
    pub async fn push<H, F>(
        &mut self,
        concurrency: usize,
        retries: &RetryLevels,
        mut handle: H,
        stop: impl Future<Output = ()>,
    ) -> Result<(), QueueError>
    where
        H: FnMut(Message) -> F,
        F: Future<Output = Verdict>,
    {
        run(self, concurrency, retries, &mut handle, stop).await
    }
}

/// See [`Group::push`].
async fn run<H, F>(
    group: &mut Group,
    concurrency: usize,
    retries: &RetryLevels,
    handle: &mut H,
    stop: impl Future<Output = ()>,
) -> Result<(), QueueError>
where
    H: FnMut(Message) -> F,
    F: Future<Output = Verdict>,
{
    let concurrency = concurrency.max(1);
    let mut stop = pin!(stop.fuse());
    let mut stopping = false;
    let mut under_way = FuturesUnordered::new();
    loop {
        let room = if stopping { 0 } else { concurrency - under_way.len() };
        if room > 0 {
            // Messages that come in while handlers work start at once; a handler that ends frees room at once.
            let pulled = {
                let pull = pin!(group.pull(room, IDLE_PULL_MAX));
                let ended = async {
                    if under_way.is_empty() { std::future::pending().await } else { under_way.next().await }
                };
                let ended = pin!(ended);
                match select(&mut stop, select(ended, pull)).await {
                    Either::Left(((), _)) => {
                        stopping = true;
                        continue;
                    }
                    Either::Right((Either::Left((ended, _)), _)) => Either::Left(ended),
                    Either::Right((Either::Right((messages, _)), _)) => Either::Right(messages?),
                }
            };
            match pulled {
                Either::Left(ended) => settle(group, retries, ended, &mut under_way).await?,
                Either::Right(messages) => {
                    for message in messages {
                        let verdict = handle(message.clone());
                        under_way.push(async move { (message, verdict.await) });
                    }
                }
            }
        } else {
            let ended = under_way.next().await;
            if ended.is_none() && stopping {
                return Ok(());
            }
            settle(group, retries, ended, &mut under_way).await?;
        }
    }
}

/// Makes one verdict durable, together with all others that are ready by now.
async fn settle<S>(
    group: &mut Group,
    retries: &RetryLevels,
    first: Option<(Message, Verdict)>,
    under_way: &mut FuturesUnordered<S>,
) -> Result<(), QueueError>
where
    S: Future<Output = (Message, Verdict)>,
{
    let (mut done, mut again) = (Vec::new(), Vec::new());
    let mut next = first;
    while let Some((message, verdict)) = next {
        match verdict {
            Verdict::Done => done.push(message.position),
            Verdict::Retry(reason) => match retries.after(message.attempt) {
                Some(delay) => again.push((message.position, delay)),
                None => group.dead_letter(&message, &reason).await?,
            },
            Verdict::Dead(reason) => group.dead_letter(&message, &reason).await?,
        }
        next = under_way.next().now_or_never().flatten();
    }
    group.nack_all(&again).await?;
    group.ack_all(&done).await
}
