//! A ledger outside the simulated process, as a server would be: it outlives the process, and a seeded plan loses, delays,
//! repeats and refuses calls. For the seeded simulation only.
//!
//! A call that was sent executes whether or not its sender still lives; one that was refused never does. A connection belongs
//! to one life of the server's memory: what was under way when that ended is never executed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

mod memory;

use super::{
    GrantOutcome, GrantRequest, IdState, LedgerError, ReserveAnswer, ReserveBatch, Settlement, Snapshot,
};
use crate::{FlagState, Now, OrderId, Owner, Reservation, SaleId, SaleVersion};
use memory::{Answer, Call, Memory};

/// How often each fault strikes, in calls out of 1,000. Their sum is at most 1,000; the rest is answered well.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultPlan {
    /// Not executed: [`LedgerError::Unavailable`].
    pub refused: u32,
    /// Executed at once, then [`LedgerError::Uncertain`] when the caller's time is up.
    pub answer_lost: u32,
    /// [`LedgerError::Uncertain`] when the caller's time is up, executed only after that.
    pub late: u32,
    /// Answered well, then executed a second time later. Never a reserve or an install: their senders decide by the first
    /// answer, so a client must not send them twice, while every other call only says what is so.
    pub repeated: u32,
    /// Executed and answered well, but slowly.
    pub slow: u32,
}

/// How long a caller waits for an answer, as `response timeout` of a real client.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(300);
/// A late or repeated call executes at most this long after it was sent.
const LATE_MAX_MS: u64 = 3_000;
/// Calls under way to the server; the oldest late ones execute at once when there would be more.
const UNDER_WAY_MAX: usize = 4_096;

/// The server: lives as long as its last clone, processes come and go.
#[derive(Clone)]
pub struct SimulatedServer {
    memory: Arc<Mutex<Memory>>,
    state: Arc<Mutex<ServerState>>,
}

#[derive(Debug)]
struct ServerState {
    random: u64,
    plan: FaultPlan,
    /// Sent, not yet executed, in no order.
    under_way: Vec<Sent>,
    struck: u64,
}

impl fmt::Debug for SimulatedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedServer").field("life", &self.memory.lock().life).finish_non_exhaustive()
    }
}

/// A call on its way to one life of the server.
#[derive(Debug, Clone)]
struct Sent {
    at: Instant,
    life: u64,
    call: Call,
}

enum Fault {
    None,
    Refused,
    AnswerLost,
    Late,
    Repeated,
    Slow,
}

impl SimulatedServer {
    /// An empty server; `now` is its clock, `seed` decides every fault.
    #[must_use]
    pub fn new(seed: u64, now: Now, plan: FaultPlan) -> Self {
        Self::with_replica(seed, now, plan, 0)
    }

    /// One with a replica that may lack the last `lag_max` writes when it is promoted.
    #[must_use]
    pub fn with_replica(seed: u64, now: Now, plan: FaultPlan, lag_max: usize) -> Self {
        let memory = Memory::new(now, lag_max);
        let state = ServerState { random: seed, plan, under_way: Vec::new(), struck: 0 };
        Self { memory: Arc::new(Mutex::new(memory)), state: Arc::new(Mutex::new(state)) }
    }

    /// A client of it, for one process.
    #[must_use]
    pub fn connect(&self) -> SimulatedLedger {
        SimulatedLedger { server: self.clone() }
    }

    /// Another plan from here on; the default one has no faults.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state.lock().plan = plan;
    }

    /// Restarts the server without its memory. What was under way to it is lost with it.
    pub fn wipe(&self) {
        let mut memory = self.memory.lock();
        memory.flush();
        memory.life += 1;
    }

    /// Forgets everything, as FLUSHALL does: connections stay, and what is under way finds an empty memory.
    pub fn flush(&self) {
        self.memory.lock().flush();
    }

    /// Flushes it as soon as so many more reserve batches have been carried out, while the last one's answer is on its way;
    /// or no more.
    pub fn flush_after(&self, reserves: Option<u64>) {
        self.memory.lock().reserves_until_flush = reserves;
    }

    /// Promotes the replica, which lacks the last `lost` writes, or all that it may lack if those are fewer. What was under
    /// way to the old primary is lost with it.
    pub fn fail_over(&self, lost: usize) {
        self.memory.lock().fail_over(lost);
    }

    /// Executes the late calls whose time has come. Every call does so first; whoever checks at rest does so, too.
    pub fn settle(&self) {
        let now = Instant::now();
        let mut due = Vec::new();
        self.state.lock().under_way.retain(|sent| {
            let is_due = sent.at <= now;
            if is_due {
                due.push(sent.clone());
            }
            !is_due
        });
        due.sort_by_key(|sent| sent.at);
        for sent in due {
            // Nobody waits for the answer.
            let _ = self.execute(sent.call, sent.life);
        }
    }

    /// Faults that struck so far.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    fn draw(&self) -> (Fault, u64) {
        let mut state = self.state.lock();
        let draw = (next_random(&mut state.random) % 1_000) as u32;
        let amount = next_random(&mut state.random);
        let FaultPlan { refused, answer_lost, late, repeated, slow } = state.plan;
        let mut bound = 0;
        let faults = [
            (refused, Fault::Refused),
            (answer_lost, Fault::AnswerLost),
            (late, Fault::Late),
            (repeated, Fault::Repeated),
            (slow, Fault::Slow),
        ];
        for (share, fault) in faults {
            bound += share;
            if draw < bound {
                state.struck += 1;
                return (fault, amount);
            }
        }
        (Fault::None, amount)
    }

    fn life(&self) -> u64 {
        self.memory.lock().life
    }

    fn send_late(&self, sent: Sent) {
        let mut state = self.state.lock();
        let overflow = (state.under_way.len() >= UNDER_WAY_MAX).then(|| state.under_way.remove(0));
        state.under_way.push(sent);
        drop(state);
        if let Some(sent) = overflow {
            let _ = self.execute(sent.call, sent.life);
        }
    }

    fn execute(&self, call: Call, life: u64) -> Result<Answer, LedgerError> {
        self.memory.lock().execute(call, life)
    }

    async fn call(&self, call: Call) -> Result<Answer, LedgerError> {
        self.settle();
        let (fault, amount) = self.draw();
        let life = self.life();
        let round_trip = Duration::from_micros(50 + amount % 1_000);
        let lost = || Err(LedgerError::Uncertain("no answer in time".into()));
        let later = || Instant::now() + Duration::from_millis(1 + amount % LATE_MAX_MS);
        match fault {
            Fault::Refused => {
                sleep(round_trip).await;
                Err(LedgerError::Unavailable("the connection was refused".into()))
            }
            Fault::AnswerLost => {
                let _ = self.execute(call, life);
                sleep(RESPONSE_TIMEOUT).await;
                lost()
            }
            Fault::Late => {
                self.send_late(Sent { at: later() + RESPONSE_TIMEOUT, life, call });
                sleep(RESPONSE_TIMEOUT).await;
                lost()
            }
            Fault::Repeated if !matches!(call, Call::Reserve(_) | Call::Install(..)) => {
                self.send_late(Sent { at: later(), life, call: call.clone() });
                self.answer_after(round_trip, call, life).await
            }
            Fault::Slow => {
                // Half the way there, half the way back; a crash of the caller in between takes nothing back.
                let half = Duration::from_micros(amount % (RESPONSE_TIMEOUT.as_micros() as u64 / 2));
                self.answer_after(half, call, life).await
            }
            Fault::None | Fault::Repeated => self.answer_after(round_trip, call, life).await,
        }
    }

    /// Executes after one way and answers after the other. A sender that dies on the first way has sent all the same.
    async fn answer_after(&self, way: Duration, call: Call, life: u64) -> Result<Answer, LedgerError> {
        let arrives = Instant::now() + way;
        let mut sent = SentCall { server: self, sent: Some(Sent { at: arrives, life, call }) };
        sleep_until(arrives).await;
        self.settle();
        let answer = match sent.sent.take() {
            Some(sent) => self.execute(sent.call, sent.life),
            None => Err(LedgerError::Unavailable("sent twice".into())),
        };
        sleep(way).await;
        if self.life() != life {
            return Err(LedgerError::Uncertain("the connection was lost".into()));
        }
        answer
    }
}

/// A call on its way: when its sender is dropped, the call still arrives.
struct SentCall<'a> {
    server: &'a SimulatedServer,
    sent: Option<Sent>,
}

impl Drop for SentCall<'_> {
    fn drop(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.server.send_late(sent);
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One process's client. See [`SimulatedServer`].
#[derive(Debug, Clone)]
pub struct SimulatedLedger {
    server: SimulatedServer,
}

/// Sends a call and unpacks its kind of answer.
macro_rules! ask {
    ($self:ident, $call:expr => $answer:path) => {
        match $self.server.call($call).await? {
            $answer(answer) => Ok(answer),
            other => unreachable!("each call has one kind of answer, not {other:?}"),
        }
    };
}

impl SimulatedLedger {
    pub(super) async fn now_ms(&self) -> Result<u64, LedgerError> {
        ask!(self, Call::Now => Answer::Now)
    }

    pub(super) async fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        ask!(self, Call::Reserve(batch.clone()) => Answer::Reserve)
    }

    pub(super) async fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        ask!(self, Call::Grant(sale.clone(), epoch, request.clone()) => Answer::Grant)
    }

    pub(super) async fn confirm(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        ask!(self, Call::Confirm(sale.clone(), settled.to_vec()) => Answer::Flag)
    }

    pub(super) async fn release(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        ask!(self, Call::Release(sale.clone(), settled.to_vec()) => Answer::Flag)
    }

    pub(super) async fn states(&self, sale: &SaleId, ids: &[OrderId]) -> Result<Vec<IdState>, LedgerError> {
        ask!(self, Call::States(sale.clone(), ids.to_vec()) => Answer::States)
    }

    pub(super) async fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        ask!(self, Call::Pending(sale.clone(), owner, after, limit) => Answer::Pending)
    }

    pub(super) async fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        ask!(self, Call::Snapshot(sale.clone()) => Answer::Snapshot)
    }

    pub(super) async fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        ask!(self, Call::PushSale(version.clone()) => Answer::Flag)
    }

    pub(super) async fn install(&self, version: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        ask!(self, Call::Install(version.clone(), epoch) => Answer::Done)
    }

    pub(super) async fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        ask!(self, Call::Restore(sale.clone(), epoch, owner, reservations.to_vec()) => Answer::Done)
    }

    pub(super) async fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        ask!(self, Call::Open(sale.clone(), epoch) => Answer::Flag)
    }

    pub(super) async fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        ask!(self, Call::Forget(sale.clone()) => Answer::Done)
    }

    pub(super) async fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        ask!(self, Call::RenewLease(owner, ttl_ms) => Answer::Now)
    }

    pub(super) async fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        ask!(self, Call::EndLease(owner) => Answer::Done)
    }

    pub(super) async fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        ask!(self, Call::Leases => Answer::Leases)
    }
}
