//! The epoch gate of an instance: which life of the ledger its purchases belong to, what is under way of older ones (the barrier),
//! and whose reservations it looks after.
//!
//! A log may be merged into a new life of the ledger only when nothing of an older one can still be appended to it: a record
//! that came later would be a promise of which that life knows nothing, and its units would be sold again. So whatever
//! leads from a reservation to a record enters first, with the life that it believes in, and stays until its record is durable
//! or certain never to be. Entering is refused once a newer life was seen.
//!
//! Never on the way of a refused request: a batch enters, not a buyer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::Owner;

/// Why an instance promises nothing any more until its process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The registry has another opening of its log than this process made.
    OtherOpening,
    /// The orders database lacks orders that its log has handed over.
    OrdersLost,
}

/// See the module. One a process, shared by purchase path and membership.
#[derive(Debug)]
pub struct EpochGate {
    /// The epoch that purchases may name; 0 before the first.
    offered: watch::Sender<u64>,
    orphans: watch::Sender<Arc<[Owner]>>,
    barrier: Mutex<Barrier>,
    /// Whether the last renewal of the lease succeeded. A lone fact that guards nothing: relaxed serves.
    leased: AtomicBool,
    stopped: OnceLock<Stopped>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Barrier {
    /// Nothing of an older epoch may begin.
    floor: u64,
    /// How many are under way, by epoch.
    under_way: BTreeMap<u64, usize>,
}

impl Default for EpochGate {
    fn default() -> Self {
        Self::new()
    }
}

impl EpochGate {
    /// Nothing is offered yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offered: watch::Sender::new(0),
            orphans: watch::Sender::new(Arc::default()),
            barrier: Mutex::default(),
            leased: AtomicBool::new(true),
            stopped: OnceLock::new(),
            left: Notify::new(),
        }
    }

    /// Whether the lease could be renewed.
    pub fn note_lease(&self, renewed: bool) {
        self.leased.store(renewed, Ordering::Relaxed);
    }

    /// Whether others know this instance to be alive.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.leased.load(Ordering::Relaxed)
    }

    /// Begins something that may lead from a reservation of `epoch` to a record in the own log. `None` once a newer epoch was
    /// seen: nothing may be begun then.
    #[must_use]
    pub fn enter(self: &Arc<Self>, epoch: u64) -> Option<UnderWay> {
        let mut barrier = self.barrier.lock();
        if epoch < barrier.floor {
            return None;
        }
        *barrier.under_way.entry(epoch).or_default() += 1;
        Some(UnderWay { epoch_gate: self.clone(), epoch })
    }

    /// A ledger of `epoch` was begun: nothing of an older one begins from now on.
    pub fn raise(&self, epoch: u64) {
        let mut barrier = self.barrier.lock();
        barrier.floor = barrier.floor.max(epoch);
    }

    /// No life of the ledger is this instance's any more: nothing of any begins here. The first reason stays.
    pub fn stop(&self, why: Stopped) {
        // The reason first, so that who is refused finds one.
        self.stopped.get_or_init(|| why);
        self.raise(u64::MAX);
    }

    /// Why it promises nothing any more; `None`: it may.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.stopped.get().copied()
    }

    /// Waits until nothing of an epoch before `epoch` is under way. For ever, if an append's end will never be known in this
    /// process: only its restart can tell what the log holds. Call [`Self::raise`] first.
    pub async fn settled(&self, epoch: u64) {
        loop {
            let left = self.left.notified();
            if self.barrier.lock().under_way.range(..epoch).next().is_none() {
                return;
            }
            left.await;
        }
    }

    /// The own log is merged into the ledger of `epoch`: purchases may name it.
    pub fn offer(&self, epoch: u64) {
        self.offered.send_if_modified(|offered| {
            let is_newer = epoch > *offered;
            *offered = epoch.max(*offered);
            is_newer
        });
    }

    /// The epoch that purchases may name; 0 before the first.
    #[must_use]
    pub fn offered(&self) -> u64 {
        *self.offered.borrow()
    }

    /// Tells of every newly offered epoch.
    #[must_use]
    pub fn offers(&self) -> watch::Receiver<u64> {
        self.offered.subscribe()
    }

    /// These instances are taken for dead: this one appends what the ledger holds for them.
    pub fn look_after(&self, orphans: &[Owner]) {
        self.orphans.send_if_modified(|known| {
            let changed = **known != *orphans;
            if changed {
                *known = orphans.into();
            }
            changed
        });
    }

    /// Instances whose reservations are to be appended here.
    #[must_use]
    pub fn orphans(&self) -> watch::Receiver<Arc<[Owner]>> {
        self.orphans.subscribe()
    }
}

/// Something under way from a reservation to a record; over when dropped.
#[derive(Debug)]
#[must_use = "the barrier is passed as soon as this is dropped"]
pub struct UnderWay {
    epoch_gate: Arc<EpochGate>,
    epoch: u64,
}

impl UnderWay {
    /// The epoch that it was begun with.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its end will not be known in this process: the log must not be merged by it any more.
    pub fn never_ends(self) {
        // Counted for ever: the count outlives its guard.
        if let Some(count) = self.epoch_gate.barrier.lock().under_way.get_mut(&self.epoch) {
            *count += 1;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut barrier = self.epoch_gate.barrier.lock();
        if let Some(count) = barrier.under_way.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                barrier.under_way.remove(&self.epoch);
            }
        }
        let somebody_waits = self.epoch < barrier.floor;
        drop(barrier);
        if somebody_waits {
            self.epoch_gate.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn is_settled(epoch_gate: &EpochGate, epoch: u64) -> bool {
        let mut settled = pin!(epoch_gate.settled(epoch));
        settled.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn nothing_of_an_older_epoch_begins_and_what_is_under_way_is_waited_for() {
        let epoch_gate = Arc::new(EpochGate::new());
        let (first, second) = (epoch_gate.enter(1).unwrap(), epoch_gate.enter(1).unwrap());
        let newer = epoch_gate.enter(2).unwrap();
        epoch_gate.raise(2);
        assert!(epoch_gate.enter(1).is_none());
        assert!(!is_settled(&epoch_gate, 2));
        drop(first);
        assert!(!is_settled(&epoch_gate, 2));
        drop(second);
        assert!(is_settled(&epoch_gate, 2), "what is of the new epoch is not waited for");
        assert!(!is_settled(&epoch_gate, 3));
        drop(newer);
        assert!(is_settled(&epoch_gate, 3));
        epoch_gate.raise(1);
        assert!(epoch_gate.enter(1).is_none(), "the floor never falls");
    }

    #[test]
    fn nothing_begins_behind_a_stop_whatever_is_offered_later() {
        let epoch_gate = Arc::new(EpochGate::new());
        epoch_gate.offer(1);
        drop(epoch_gate.enter(1).unwrap());
        assert_eq!(epoch_gate.stopped(), None);
        epoch_gate.stop(Stopped::OrdersLost);
        epoch_gate.stop(Stopped::OtherOpening);
        epoch_gate.raise(2);
        epoch_gate.offer(2);
        assert!(epoch_gate.enter(2).is_none());
        assert_eq!(epoch_gate.stopped(), Some(Stopped::OrdersLost), "the first reason stays");
    }

    #[test]
    fn what_never_ends_is_never_settled() {
        let epoch_gate = Arc::new(EpochGate::new());
        epoch_gate.enter(1).unwrap().never_ends();
        epoch_gate.raise(2);
        drop(epoch_gate.enter(2));
        assert!(!is_settled(&epoch_gate, 2));
        assert!(is_settled(&epoch_gate, 1));
    }

    #[tokio::test]
    async fn a_waiter_is_woken() {
        let epoch_gate = Arc::new(EpochGate::new());
        let under_way = epoch_gate.enter(1).unwrap();
        epoch_gate.raise(2);
        let waits = tokio::spawn({
            let epoch_gate = epoch_gate.clone();
            async move { epoch_gate.settled(2).await }
        });
        tokio::task::yield_now().await;
        drop(under_way);
        waits.await.unwrap();
    }

    #[test]
    fn offers_rise_and_orphans_change() {
        let epoch_gate = EpochGate::new();
        let (mut offers, mut orphans) = (epoch_gate.offers(), epoch_gate.orphans());
        assert_eq!(epoch_gate.offered(), 0);
        epoch_gate.offer(3);
        assert!(offers.has_changed().unwrap());
        offers.mark_unchanged();
        epoch_gate.offer(3);
        epoch_gate.offer(2);
        assert!(!offers.has_changed().unwrap());
        assert_eq!(epoch_gate.offered(), 3);
        epoch_gate.look_after(&[Owner(7)]);
        assert_eq!(**orphans.borrow_and_update(), [Owner(7)]);
        epoch_gate.look_after(&[Owner(7)]);
        assert!(!orphans.has_changed().unwrap());
    }
}
