//! The durable watermark and who waits for it. A waiter sleeps in the slot of its sequence and says so in a bit map; an
//! acknowledgement wakes a whole batch of them, and two neighbours of one task only once.

use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, fence};

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
    /// A bit for each slot that may hold a waker; so a batch that nobody waits for costs a look for 64 records. A poller sets its
    /// bit `Relaxed`, then a `SeqCst` fence, then looks at `durable` and `failed` again; the committer stores those, then a
    /// `SeqCst` fence, then takes the bits `Relaxed`: one of them sees the other. The wakers are the slots' locks' affair.
    waiting: Box<[AtomicU64]>,
}

/// Slots that share a word of the bit map.
const BITS: u64 = u64::BITS as u64;

impl Watermark {
    pub(crate) fn new(durable: u64, records_max: usize) -> Self {
        let slots = records_max.next_power_of_two();
        Self {
            durable: AtomicU64::new(durable),
            failed: AtomicBool::new(false),
            slots: (0..slots).map(|_| Mutex::new(None)).collect(),
            waiting: (0..slots.div_ceil(BITS as usize)).map(|_| AtomicU64::new(0)).collect(),
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
        fence(Ordering::SeqCst);
        let mut held: Option<Waker> = None;
        let mut sequence = first;
        while sequence <= last {
            let slot = sequence & (self.slots.len() as u64 - 1);
            let run = (BITS - slot % BITS).min(self.slots.len() as u64 - slot).min(last - sequence + 1);
            let wanted = (u64::MAX >> (BITS - run)) << (slot % BITS);
            let word = &self.waiting[(slot / BITS) as usize];
            let mut bits = word.load(Ordering::Relaxed) & wanted;
            if bits != 0 {
                word.fetch_and(!bits, Ordering::Relaxed);
            }
            while bits != 0 {
                let slot = (slot / BITS * BITS + u64::from(bits.trailing_zeros())) as usize;
                bits &= bits - 1;
                let Some(waker) = self.slots[slot].lock().take() else { continue };
                if let Some(previous) = held.take()
                    && !previous.will_wake(&waker)
                {
                    previous.wake();
                }
                held = Some(waker);
            }
            sequence += run;
        }
        if let Some(waker) = held {
            waker.wake();
        }
    }

    /// Tells everyone, now and later, that what is not durable never will be known to be.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
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
        let at = sequence & (self.slots.len() as u64 - 1);
        {
            let mut slot = self.slots[at as usize].lock();
            // Under the lock: a late poller must not take the slot from the sequence that has it now.
            if let Some(outcome) = self.outcome(sequence) {
                return Poll::Ready(outcome);
            }
            match &mut *slot {
                Some(waker) => waker.clone_from(context.waker()),
                empty => *empty = Some(context.waker().clone()),
            }
        }
        self.waiting[(at / BITS) as usize].fetch_or(1 << (at % BITS), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        match self.outcome(sequence) {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
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
}
