//! What one connection does, in a few words that its socket, its requests and the sweep share: its deadline, and what it is
//! when places are short. Knows no other connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::ConnectionOptions;
use super::room::{Claim, Held};
use crate::http::client::Holder;

/// What a connection does, as far as its deadline and its place depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Between requests: all of the last answer is with the kernel.
    // ## Idle => Head (bytes came) | Busy (a head that was buffered already) | Answer (more of an answer than fitted at once)
    Idle = 0,
    /// Part of a head has come.
    // ## Head => Busy (the head is whole)
    Head = 1,
    /// A handler has it: what it waits for has bounds of its own.
    // ## Busy => Body | Answer | Stream
    Busy = 2,
    /// Fresh: it owes a head and nothing of it has come.
    // ## Silent => Head (bytes came; its time still counts from the start)
    Silent = 3,
    /// A handler waits for the rest of a body, which has a bound of its own.
    // ## Body => Busy (it has come, or is waited for no longer)
    Body = 4,
    /// An answer is being written.
    // ## Answer => Idle (the kernel has all of it)
    Answer = 5,
    /// Events are being written, until their stream ends.
    // ## Stream => Answer (the stream has ended)
    Stream = 6,
}

/// One connection's state, shared by its socket, its requests and the sweep, all of one thread: relaxed serves.
#[derive(Debug)]
pub(crate) struct Vitals {
    clock: Arc<AtomicU64>,
    phase: AtomicU8,
    /// When the phase began, in ms of the sweep's clock.
    since_ms: AtomicU64,
    /// When the handler gave the first answer of those that the kernel did not have when the next request came: a client that asks on and
    /// reads slowly has one time for all of them. In ms of the sweep's clock; [`NOT_YET`] where there is none.
    answered_ms: AtomicU64,
    /// In ms of the sweep's clock.
    deadline_ms: AtomicU64,
    /// The task has ended, or its socket is about to close: set by what ends it.
    over: AtomicBool,
    holder: Holder,
    /// Whom a proxy of ours sent the present request for, where that is known and matters.
    forwarded: AtomicU64,
    head_ms: u64,
    idle_ms: u64,
    stream_ms: u64,
}

/// See [`Vitals::answered_ms`].
const NOT_YET: u64 = u64::MAX;

/// A stream of events says something every 10 s: shorter than this a pause is none.
const STREAM_PAUSE_MS_MIN: u64 = 30_000;

/// The other end of a request's connection, and what its handler may tell of it.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) vitals: Arc<Vitals>,
}

impl Vitals {
    pub(super) fn new(clock: Arc<AtomicU64>, holder: Holder, options: &ConnectionOptions) -> Self {
        let now_ms = clock.load(Ordering::Relaxed);
        Self {
            clock,
            phase: AtomicU8::new(Phase::Silent as u8),
            since_ms: AtomicU64::new(now_ms),
            answered_ms: AtomicU64::new(NOT_YET),
            deadline_ms: AtomicU64::new(now_ms + options.head_ms),
            over: AtomicBool::new(false),
            holder,
            forwarded: AtomicU64::new(Holder::NOBODY.0),
            head_ms: options.head_ms,
            idle_ms: options.idle_ms,
            stream_ms: options.idle_ms.max(STREAM_PAUSE_MS_MIN),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        let now_ms = self.clock.load(Ordering::Relaxed);
        let deadline_ms = match phase {
            Phase::Idle | Phase::Answer => now_ms + self.idle_ms,
            Phase::Stream => now_ms + self.stream_ms,
            Phase::Head | Phase::Silent => now_ms + self.head_ms,
            Phase::Busy | Phase::Body => u64::MAX,
        };
        if self.is(Phase::Idle) && matches!(phase, Phase::Head | Phase::Busy) {
            self.answered_ms.store(NOT_YET, Ordering::Relaxed);
        }
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.since_ms.store(now_ms, Ordering::Relaxed);
        self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
    }

    pub(super) fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    pub(super) fn bytes_came(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Head);
        } else if self.is(Phase::Silent) {
            self.phase.store(Phase::Head as u8, Ordering::Relaxed);
        }
    }

    /// The handler has given its answer.
    pub(super) fn answers(&self) {
        if self.answered_ms.load(Ordering::Relaxed) == NOT_YET {
            self.answered_ms.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.enter(Phase::Answer);
    }

    /// There is something to be written.
    pub(super) fn bytes_go(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Answer);
        }
    }

    /// The kernel took some of it.
    pub(super) fn bytes_went(&self) {
        if self.is(Phase::Answer) || self.is(Phase::Stream) {
            let pause_ms = if self.is(Phase::Stream) { self.stream_ms } else { self.idle_ms };
            let deadline_ms = self.clock.load(Ordering::Relaxed) + pause_ms;
            self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
        }
    }

    /// The kernel has all that there was to write.
    pub(super) fn flushed(&self) {
        if self.is(Phase::Answer) {
            self.enter(Phase::Idle);
        }
    }

    /// The handler waits for the rest of the request's body until the guard is dropped; `client` is whose request it is.
    pub(crate) fn awaits_body(&self, client: Holder) -> AwaitsBody<'_> {
        self.forwarded.store(client.0, Ordering::Relaxed);
        self.enter(Phase::Body);
        AwaitsBody(self)
    }

    /// The answer is a stream of events for `client`.
    pub(crate) fn streams(&self, client: Holder) {
        self.forwarded.store(client.0, Ordering::Relaxed);
        self.enter(Phase::Stream);
    }

    /// The stream's last event has been handed over.
    pub(crate) fn streamed(&self) {
        self.forwarded.store(Holder::NOBODY.0, Ordering::Relaxed);
        if self.is(Phase::Stream) {
            self.answered_ms.store(NOT_YET, Ordering::Relaxed);
            self.answers();
        }
    }

    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.deadline_ms.load(Ordering::Relaxed) <= now_ms
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Marks it as over; tells whether it was before.
    pub(super) fn end(&self) -> bool {
        self.over.swap(true, Ordering::Relaxed)
    }

    /// What it is when places are short.
    pub(super) fn held(&self, now_ms: u64) -> Held {
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        let written_ms = self.deadline_ms.load(Ordering::Relaxed).saturating_sub(self.idle_ms);
        let (is, age_ms) = (|phase| self.is(phase), now_ms.saturating_sub(since_ms));
        let claim = if is(Phase::Stream) {
            Claim::Stream
        } else if is(Phase::Busy) {
            Claim::Working
        } else if is(Phase::Answer) {
            let answered_ms = self.answered_ms.load(Ordering::Relaxed);
            Claim::answering(now_ms.saturating_sub(answered_ms), now_ms.saturating_sub(written_ms))
        } else if is(Phase::Idle) {
            Claim::resting(age_ms)
        } else {
            Claim::incomplete(age_ms)
        };
        let holder = match self.holder {
            Holder::NOBODY => Holder(self.forwarded.load(Ordering::Relaxed)),
            known => known,
        };
        Held { holder, claim, since_ms }
    }
}

/// While it lives, a handler waits for a body.
pub(crate) struct AwaitsBody<'a>(&'a Vitals);

impl Drop for AwaitsBody<'_> {
    fn drop(&mut self) {
        self.0.forwarded.store(Holder::NOBODY.0, Ordering::Relaxed);
        if self.0.is(Phase::Body) {
            self.0.enter(Phase::Busy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With 60 s for an answer's bytes.
    fn vitals() -> (Arc<AtomicU64>, Vitals) {
        let clock = Arc::new(AtomicU64::new(0));
        let options = ConnectionOptions { head_ms: 10_000, idle_ms: 60_000, head_bytes_max: 8_192 };
        let vitals = Vitals::new(clock.clone(), Holder::NOBODY, &options);
        vitals.bytes_came();
        vitals.enter(Phase::Busy);
        vitals.answers();
        (clock, vitals)
    }

    #[test]
    fn a_reader_that_asks_on_has_one_time_for_all_answers_that_it_has_not_taken() {
        let (clock, vitals) = vitals();
        for second in 1..=10 {
            assert_eq!(vitals.held(clock.load(Ordering::Relaxed)).claim, Claim::Working, "after {second} s");
            clock.store(second * 1_000, Ordering::Relaxed);
            // The kernel takes a little, and the next request of the same pipeline is answered.
            vitals.bytes_went();
            vitals.enter(Phase::Busy);
            vitals.answers();
        }
        assert_eq!(
            vitals.held(10_000).claim,
            Claim::Resting,
            "it makes room as one that reads one answer so"
        );
    }

    #[test]
    fn one_that_has_taken_all_has_its_time_anew_with_the_next_request() {
        let (clock, vitals) = vitals();
        clock.store(9_999, Ordering::Relaxed);
        vitals.bytes_went();
        vitals.flushed();
        // More of the same answer: its time goes on.
        vitals.bytes_go();
        clock.store(10_000, Ordering::Relaxed);
        assert_eq!(vitals.held(10_000).claim, Claim::Resting);
        vitals.flushed();
        vitals.bytes_came();
        vitals.enter(Phase::Busy);
        vitals.answers();
        assert_eq!(vitals.held(10_000).claim, Claim::Working);
        // A stream is as long as it likes, and its last bytes have their time as well.
        vitals.streams(Holder::NOBODY);
        clock.store(500_000, Ordering::Relaxed);
        vitals.bytes_went();
        vitals.streamed();
        assert_eq!(vitals.held(500_000).claim, Claim::Working);
    }
}
