//! The durable watermark and who waits for it. A waiter sleeps in the slot of its sequence; an acknowledgement wakes a whole
//! batch of them, and two neighbours of one task only once.

use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct Watermark {
    /// The newest durable sequence. The committer alone stores it, `Release`, after the sync; everyone loads `Acquire`, so
    /// that whoever sees a sequence sees the table of segments that holds it.
    durable: AtomicU64,
    /// Set once by the committer, `Release`, after a failed write or sync; pollers load `Acquire`.
    failed: AtomicBool,
    /// The waker of sequence n is in slot n modulo the length, a power of two not below the ring's records. A slot is used
    /// again only when its former sequence is durable, which a late poller of that one sees under the slot's lock.
    slots: Box<[Mutex<Option<Waker>>]>,
}

impl Watermark {
    pub(crate) fn new(durable: u64, records_max: usize) -> Self {
        Self {
            durable: AtomicU64::new(durable),
            failed: AtomicBool::new(false),
            slots: (0..records_max.next_power_of_two()).map(|_| Mutex::new(None)).collect(),
        }
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Publishes that everything through `durable` is so. Does not wake; see [`Watermark::wake`].
    pub(crate) fn publish(&self, durable: u64) {
        self.durable.store(durable, Ordering::Release);
    }

    /// Wakes the waiters of `first..=last`, which have been published.
    pub(crate) fn wake(&self, first: u64, last: u64) {
        let mut held: Option<Waker> = None;
        for sequence in first..=last {
            let Some(waker) = self.slot(sequence).lock().take() else { continue };
            if let Some(previous) = held.take()
                && !previous.will_wake(&waker)
            {
                previous.wake();
            }
            held = Some(waker);
        }
        if let Some(waker) = held {
            waker.wake();
        }
    }

    /// Tells everyone, now and later, that what is not durable never will be known to be.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        for slot in &self.slots {
            let waker = slot.lock().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Ready with whether `sequence` is durable: `false` if that will never be known.
    pub(crate) fn poll(&self, sequence: u64, context: &mut Context<'_>) -> Poll<bool> {
        if let Some(outcome) = self.outcome(sequence) {
            return Poll::Ready(outcome);
        }
        // The publisher stores first and takes the waker second, so that one of the two sees the other under this lock.
        let mut slot = self.slot(sequence).lock();
        if let Some(outcome) = self.outcome(sequence) {
            return Poll::Ready(outcome);
        }
        match &mut *slot {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    fn outcome(&self, sequence: u64) -> Option<bool> {
        if self.durable() >= sequence {
            Some(true)
        } else if self.failed() {
            Some(false)
        } else {
            None
        }
    }

    fn slot(&self, sequence: u64) -> &Mutex<Option<Waker>> {
        &self.slots[sequence as usize & (self.slots.len() - 1)]
    }
}
