//! Pacing: how many orders may go to the database now, for all drains of one process together. Exact above 1,000 a second,
//! where sleeping by the millisecond is not.
//!
//! Two gates, one behind the other. The hard one is governor's token bucket (GCRA) in nanoseconds of tokio's monotonic clock, at the
//! process's share of the limit: nothing passes it, whatever the rest believes. A timer that wakes late loses nothing as
//! long as the bucket has room, hence the slack above one batch. The soft one is a schedule at the part of the share that
//! the [`adaptation`] finds bearable. Batches are so small that those under way and the full bucket behind them stay
//! within a tenth of the share: one drain has a batch of a twentieth.

mod adaptation;
mod places;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use stock::Owner;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::DrainConfig;
use crate::database::shares::WHOLE_PPM;
use adaptation::Adaptation;
use places::Places;

pub use places::{Drain, Reach};

/// governor's own clocks do not stand still with tokio's paused time, and its default one is not monotonic.
#[derive(Debug, Clone, Copy)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Nanos>>;

/// Room in the bucket above one batch, as time: the timer's granularity and a scheduler's whim.
const SLACK: Duration = Duration::from_millis(3);
/// A batch of at least this part of the largest is a whole one.
const WHOLE_PART: usize = 2;
/// Below this limit there is nothing to warm up.
const WARM_UP_LIMIT_MIN: u32 = 100;

/// The pace of one process, shared by its drains.
pub struct Pace {
    clock: TokioClock,
    limit: u32,
    batch_size_max: u32,
    state: Mutex<State>,
    /// The drains take turns, first come, first served.
    turn: tokio::sync::Mutex<()>,
    /// The share or the number of drains has changed.
    changed: Notify,
    /// Those that have a drain here.
    logs: watch::Sender<BTreeSet<Owner>>,
}

struct State {
    hard: Hard,
    places: Places,
    adaptation: Option<Adaptation>,
    /// The soft gate opens.
    next_at: Instant,
}

/// The gate at one share of the limit.
struct Hard {
    ppm: u32,
    /// Most orders in a batch, and in the bucket. 0: no share.
    batch: u32,
    capacity: u32,
    /// None at a share of nothing.
    bucket: Option<Bucket>,
}

impl Pace {
    /// The whole limit, from a full bucket.
    #[must_use]
    pub fn new(config: &DrainConfig) -> Self {
        let now = Instant::now();
        let limit = config.orders_per_second_max.max(1);
        let clock = TokioClock(now);
        let adaptation = config
            .adaptive
            .then(|| if limit < WARM_UP_LIMIT_MIN { Adaptation::warm() } else { Adaptation::new() });
        let hard = Hard::new(clock, limit, config.batch_size_max, WHOLE_PPM, 1);
        Self {
            clock,
            limit,
            batch_size_max: config.batch_size_max,
            state: Mutex::new(State { hard, places: Places::new(), adaptation, next_at: now }),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            logs: watch::Sender::default(),
        }
    }

    /// Takes a place among the drains of this process. A log has one drain at most, the holder of its group.
    #[must_use]
    pub fn enter(self: &Arc<Self>, log: Owner) -> Drain {
        self.state.lock().places.enter(log);
        self.fit(true);
        self.logs.send_modify(|logs| _ = logs.insert(log));
        Drain::new(self.clone(), log)
    }

    /// Those that have a drain here.
    #[must_use]
    pub fn logs(&self) -> watch::Receiver<BTreeSet<Owner>> {
        self.logs.subscribe()
    }

    /// From now on others use the same limit: each drain has nothing until [`Self::set_share`].
    pub fn share(&self) {
        self.state.lock().places.is_shared = true;
        self.fit(false);
    }

    /// Holds the drain of `log` to `ppm` millionths of the limit until `valid_until`, and to nothing from then on. The bucket, which
    /// all drains here use, is empty after a change: what was saved up under another share is gone.
    pub fn set_share(&self, log: Owner, ppm: u32, valid_until: Instant) {
        self.state.lock().places.set_share(log, ppm, valid_until);
        self.fit(false);
    }

    /// Millionths of the limit that the drain of this log is held to.
    #[must_use]
    pub fn share_ppm_of(&self, log: Owner) -> u32 {
        let state = self.state.lock();
        let place = state.places.of_logs.get(&log).filter(|_| state.places.are_valid());
        place.map_or(0, |place| place.share_ppm)
    }

    /// Millionths of the limit that this process holds itself to now.
    #[must_use]
    pub fn share_ppm(&self) -> u32 {
        let state = self.state.lock();
        if state.places.are_valid() { state.hard.ppm } else { 0 }
    }

    /// How far the drain of this log has come; `None`: this process does not drain it.
    #[must_use]
    pub fn reach(&self, log: Owner) -> Option<Reach> {
        self.state.lock().places.of_logs.get(&log).map(|place| place.reach)
    }

    fn moved(&self, log: Owner, reach: Reach) {
        if let Some(place) = self.state.lock().places.of_logs.get_mut(&log) {
            place.reach = reach;
        }
    }

    fn leave(&self, log: Owner) {
        self.state.lock().places.of_logs.remove(&log);
        self.fit(false);
        self.logs.send_modify(|logs| _ = logs.remove(&log));
    }

    /// Most orders that the next batch may have; at least 1.
    #[must_use]
    pub fn batch_max(&self) -> usize {
        let state = self.state.lock();
        let scaled = f64::from(state.hard.batch) * state.part();
        (scaled as usize).max(1)
    }

    /// Orders a second that it lets through now, all drains together.
    #[must_use]
    pub fn rate(&self) -> u32 {
        let state = self.state.lock();
        if state.places.are_valid() { (state.hard.per_second(self.limit) * state.part()) as u32 } else { 0 }
    }

    /// Waits until `orders` may go. A dropped wait may have spent tokens, never too few.
    pub async fn take(&self, orders: usize) {
        let _turn = self.turn.lock().await;
        let mut left = u32::try_from(orders).unwrap_or(u32::MAX);
        loop {
            // Before looking: a change after it is then not missed.
            let changed = self.changed.notified();
            match self.try_take(&mut left) {
                Ok(()) => break,
                Err(Some(until)) => tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = changed => {}
                },
                Err(None) => changed.await,
            }
        }
        self.schedule(orders);
    }

    /// Hears how long a transaction of so many orders took.
    pub fn committed(&self, took: Duration, orders: usize) {
        let whole = orders * WHOLE_PART >= self.batch_max();
        let now = self.clock.0.elapsed();
        if let Some(adaptation) = &mut self.state.lock().adaptation {
            adaptation.committed(now, took, whole);
        }
    }

    /// Hears that the database did not take a transaction.
    pub fn failed(&self) {
        let now = self.clock.0.elapsed();
        if let Some(adaptation) = &mut self.state.lock().adaptation {
            adaptation.failed(now);
        }
    }

    /// Passes both gates with as much of `left` as they allow; otherwise says when to come again, none: when told.
    fn try_take(&self, left: &mut u32) -> Result<(), Option<Instant>> {
        let state = self.state.lock();
        let now = Instant::now();
        if !state.places.are_valid() {
            return Err(None);
        }
        let Some(bucket) = &state.hard.bucket else { return Err(None) };
        if state.part() < 1.0 && now < state.next_at {
            return Err(Some(state.next_at));
        }
        while *left > 0 {
            // More than the bucket holds: the share has shrunk since the batch was pulled.
            let portion = (*left).min(state.hard.capacity);
            let Some(tokens) = NonZeroU32::new(portion) else { return Err(None) };
            match bucket.check_n(tokens) {
                Ok(Ok(())) => *left -= portion,
                Ok(Err(early)) => return Err(Some(now + early.wait_time_from(self.clock.now()))),
                // Never asked for more than it holds.
                Err(_) => return Err(None),
            }
        }
        Ok(())
    }

    fn schedule(&self, orders: usize) {
        let mut state = self.state.lock();
        let per_second = state.hard.per_second(self.limit) * state.part();
        if per_second > 0.0 {
            let now = Instant::now();
            let earliest = now.checked_sub(SLACK).unwrap_or(now);
            state.next_at = state.next_at.max(earliest) + Duration::from_secs_f64(orders as f64 / per_second);
        }
    }

    /// Another share wants another bucket, and another number of drains another size of batch.
    fn fit(&self, is_new_drain: bool) {
        let mut state = self.state.lock();
        let (ppm, drains) = (state.places.sum_ppm(WHOLE_PPM), state.places.of_logs.len());
        if state.hard.ppm != ppm || (is_new_drain && drains > 1) {
            let drains = u32::try_from(drains.max(1)).unwrap_or(u32::MAX);
            let hard = Hard::new(self.clock, self.limit, self.batch_size_max, ppm, drains);
            hard.empty();
            state.hard = hard;
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    fn part(&self) -> f64 {
        self.adaptation.as_ref().map_or(1.0, Adaptation::part)
    }
}

impl Hard {
    fn new(clock: TokioClock, limit: u32, batch_size_max: u32, ppm: u32, drains: u32) -> Self {
        let nothing = Self { ppm, batch: 0, capacity: 0, bucket: None };
        // Never more than the share: a nanosecond too long rather than too short.
        let period_ns =
            (1_000_000_000 * u128::from(WHOLE_PPM)).div_ceil((u128::from(limit) * u128::from(ppm)).max(1));
        let period = Duration::from_nanos(u64::try_from(period_ns).unwrap_or(u64::MAX));
        if ppm == 0 {
            return nothing;
        }
        let share = u64::from(limit) * u64::from(ppm) / u64::from(WHOLE_PPM);
        // Below 20 a second a whole order more would be more than the promised tenth.
        let slack = if share < 20 { 0 } else { (SLACK.as_nanos() / period_ns).max(1) as u64 };
        // Each drain's batch under way, the bucket's, and the slack: a tenth of the share together.
        let tenth = (share / 10).saturating_sub(slack) / (1 + u64::from(drains));
        let batch = batch_size_max.min(u32::try_from(tenth).unwrap_or(u32::MAX)).max(1);
        let capacity = batch.saturating_add(u32::try_from(slack).unwrap_or(u32::MAX));
        let quota = Quota::with_period(period).zip(NonZeroU32::new(capacity));
        let Some((quota, burst)) = quota else { return nothing };
        let bucket = RateLimiter::direct_with_clock(quota.allow_burst(burst), clock);
        Self { ppm, batch, capacity, bucket: Some(bucket) }
    }

    fn empty(&self) {
        if let (Some(bucket), Some(all)) = (&self.bucket, NonZeroU32::new(self.capacity)) {
            // A new one is full, so this takes everything.
            let _ = bucket.check_n(all);
        }
    }

    fn per_second(&self, limit: u32) -> f64 {
        f64::from(limit) * f64::from(self.ppm) / f64::from(WHOLE_PPM)
    }
}

#[cfg(test)]
mod tests;
