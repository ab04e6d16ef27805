//! A ledger outside the simulated process, as a server would be: it outlives the process, and a seeded plan loses, delays,
//! repeats and refuses calls. Several of them make one ledger, each with the clock that it was given. For the seeded simulation only.
//!
//! A call that was sent executes whether or not its sender still lives; one that was refused never does. Half of the calls are
//! on the wire at once and arrive in time though their sender stands still; the others only when their sender gets its turn. A
//! connection belongs to one life of the server's memory: what was under way when that ended is never executed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

mod client;
mod happened;
mod memory;

use super::{IdState, LedgerError};
use crate::{DeploymentId, Now, OrderId, Owner, SaleId};
pub use client::{Placing, SimulatedLedger};
pub use happened::{Happened, Opening};
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
    /// Tells it from others.
    seed: u64,
    memory: Arc<Mutex<Memory>>,
    state: Arc<Mutex<ServerState>>,
    /// Held while due calls arrive: a thread that settles at the same time finds what is due executed.
    arriving: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct ServerState {
    random: u64,
    plan: FaultPlan,
    /// Nobody is connected, and no call reaches it.
    is_away: bool,
    /// Of 1,000 installs so many are late, beside the plan.
    late_installs: u32,
    /// Longest way, one way, of a call that no fault strikes.
    way_max: Duration,
    /// Sent, not yet executed, in no order.
    under_way: Vec<Sent>,
    /// Reserve batches that were executed and whose answer is on its way.
    answering: u64,
    struck: u64,
    happened: Happened,
}

impl fmt::Debug for SimulatedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedServer").field("life", &self.memory.lock().life).finish_non_exhaustive()
    }
}

/// Who calls: a connection belongs to one life of the server, and to a deployment.
#[derive(Debug, Clone, Copy)]
struct Caller {
    life: u64,
    deployment: DeploymentId,
}

/// A call on its way.
#[derive(Debug, Clone)]
struct Sent {
    at: Instant,
    caller: Caller,
    call: Call,
    reply: Reply,
}

/// Where a call's answer goes; `None`: its sender has given it up.
type Reply = Option<Arc<Mutex<Option<Result<Answer, LedgerError>>>>>;

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
        let state = ServerState {
            random: seed,
            plan,
            is_away: false,
            late_installs: 0,
            way_max: Duration::from_millis(1),
            under_way: Vec::new(),
            answering: 0,
            struck: 0,
            happened: Happened::default(),
        };
        Self {
            seed,
            memory: Arc::new(Mutex::new(memory)),
            state: Arc::new(Mutex::new(state)),
            arriving: Arc::default(),
        }
    }

    /// A client of it, for one process of the only deployment there is.
    #[must_use]
    pub fn connect(&self) -> SimulatedLedger {
        self.connect_for(DeploymentId(1))
    }

    /// A client of it, for one process of a deployment.
    #[must_use]
    pub fn connect_for(&self, deployment: DeploymentId) -> SimulatedLedger {
        SimulatedLedger::new(self.clone(), deployment)
    }

    /// Another plan from here on; the default one has no faults.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state.lock().plan = plan;
    }

    /// Whether nobody can connect to it from here on: what is sent is refused, and no client sees it.
    pub fn set_away(&self, is_away: bool) {
        self.state.lock().is_away = is_away;
    }

    fn is_away(&self) -> bool {
        self.state.lock().is_away
    }

    /// Of 1,000 installs so many are late from here on, whatever the plan says.
    pub fn set_late_installs(&self, per_mille: u32) {
        self.state.lock().late_installs = per_mille;
    }

    /// Longest way to the server and back, each, of a call that no fault strikes; below half the time that a caller waits.
    pub fn set_way_max(&self, way_max: Duration) {
        assert!(way_max < RESPONSE_TIMEOUT / 2, "a caller would give up: {way_max:?}");
        self.state.lock().way_max = way_max;
    }

    /// Restarts the server without its memory. What was under way to it is lost with it.
    pub fn wipe(&self) {
        self.about_to_forget();
        let mut memory = self.memory.lock();
        memory.flush();
        memory.life += 1;
    }

    /// Forgets everything, as FLUSHALL does: connections stay, and what is under way finds an empty memory.
    pub fn flush(&self) {
        self.about_to_forget();
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
        self.about_to_forget();
        self.memory.lock().fail_over(lost);
    }

    /// What has arrived by now was executed before.
    fn about_to_forget(&self) {
        self.settle();
        let mid_rebuild = self.memory.lock().is_rebuilding();
        let mut state = self.state.lock();
        let mid_batch = state.answering > 0;
        state.happened.lost_in_mid_rebuild += u64::from(mid_rebuild);
        state.happened.lost_in_mid_batch += u64::from(mid_batch);
    }

    /// Executes the late calls whose time has come. Every call does so first; whoever checks at rest does so, too.
    pub fn settle(&self) {
        let _arriving = self.arriving.lock();
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
            self.arrive(sent);
        }
    }

    fn arrive(&self, sent: Sent) {
        let Sent { caller, call, reply, .. } = sent;
        match reply {
            Some(reply) => *reply.lock() = Some(self.execute(call, caller)),
            None => {
                let is_batch = matches!(call, Call::Reserve(_));
                let is_install = matches!(call, Call::Install(..));
                let is_done = self.execute(call, caller).is_ok();
                let mut state = self.state.lock();
                let count = match (is_batch, is_install, is_done) {
                    (true, _, true) => &mut state.happened.late_batches,
                    (true, _, false) => &mut state.happened.late_batches_refused,
                    (_, true, true) => &mut state.happened.late_installs,
                    (_, true, false) => &mut state.happened.late_installs_refused,
                    (false, false, _) => return,
                };
                *count += 1;
            }
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn happened(&self) -> Happened {
        let mut happened = self.state.lock().happened;
        happened.lost_in_mid_batch += self.memory.lock().flushed_in_mid_batch;
        happened
    }

    /// Sales that were opened since this was asked last, the oldest first; beyond 1,024 none is noted.
    #[must_use]
    pub fn take_openings(&self) -> Vec<Opening> {
        std::mem::take(&mut self.memory.lock().openings)
    }

    /// How an id stands; `None` while the sale is not open in this life of the memory. Seen from beside: no fault strikes.
    #[must_use]
    pub fn state_of(&self, sale: &SaleId, order_id: OrderId) -> Option<IdState> {
        self.memory.lock().state_of(sale, order_id)
    }

    /// Whether the sale is open in this life of the memory.
    #[must_use]
    pub fn is_open(&self, sale: &SaleId) -> bool {
        self.memory.lock().is_open(sale)
    }

    /// Whether an instance's lease lasts.
    #[must_use]
    pub fn is_leased(&self, owner: Owner) -> bool {
        self.memory.lock().is_leased(owner)
    }

    /// Faults that struck so far.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    fn draw(&self, call: &Call) -> (Fault, u64) {
        let mut state = self.state.lock();
        let draw = (next_random(&mut state.random) % 1_000) as u32;
        let amount = next_random(&mut state.random);
        if state.is_away {
            return (Fault::Refused, amount);
        }
        if matches!(call, Call::Install(..)) && ((amount >> 32) % 1_000) < u64::from(state.late_installs) {
            state.struck += 1;
            return (Fault::Late, amount);
        }
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

    /// Which server it is, in which life.
    fn name(&self) -> String {
        format!("{:016x}:{}", self.seed, self.life())
    }

    fn send_late(&self, sent: Sent) {
        let mut state = self.state.lock();
        let overflow = (state.under_way.len() >= UNDER_WAY_MAX).then(|| state.under_way.remove(0));
        state.under_way.push(sent);
        drop(state);
        if let Some(sent) = overflow {
            self.arrive(sent);
        }
    }

    fn execute(&self, call: Call, caller: Caller) -> Result<Answer, LedgerError> {
        self.memory.lock().execute(call, caller)
    }

    /// What a client's call comes to, by the plan.
    async fn call(&self, call: Call, deployment: DeploymentId) -> Result<Answer, LedgerError> {
        self.settle();
        let (fault, amount) = self.draw(&call);
        let caller = Caller { life: self.life(), deployment };
        let way = Duration::from_micros(50 + amount % self.state.lock().way_max.as_micros() as u64);
        let reply = None;
        let lost = || Err(LedgerError::Uncertain("no answer in time".into()));
        let later = || Instant::now() + Duration::from_millis(1 + amount % LATE_MAX_MS);
        match fault {
            Fault::Refused => {
                sleep(way).await;
                Err(LedgerError::Unavailable("the connection was refused".into()))
            }
            Fault::AnswerLost => {
                let _ = self.execute(call, caller);
                sleep(RESPONSE_TIMEOUT).await;
                lost()
            }
            Fault::Late => {
                self.send_late(Sent { at: later() + RESPONSE_TIMEOUT, caller, call, reply });
                sleep(RESPONSE_TIMEOUT).await;
                lost()
            }
            Fault::Repeated if !matches!(call, Call::Reserve(_) | Call::Install(..)) => {
                self.send_late(Sent { at: later(), caller, call: call.clone(), reply });
                self.answer_after(way, call, caller).await
            }
            Fault::Slow => {
                // Half the way there, half the way back; a crash of the caller in between takes nothing back.
                let half = Duration::from_micros(amount % (RESPONSE_TIMEOUT.as_micros() as u64 / 2));
                self.answer_after(half, call, caller).await
            }
            Fault::None | Fault::Repeated => self.answer_after(way, call, caller).await,
        }
    }

    /// Executes after one way and answers after the other. A sender that dies on the first way has sent all the same.
    async fn answer_after(&self, way: Duration, call: Call, caller: Caller) -> Result<Answer, LedgerError> {
        let arrives = Instant::now() + way;
        let is_reserve = matches!(call, Call::Reserve(_));
        let is_on_the_wire = next_random(&mut self.state.lock().random).is_multiple_of(2);
        let answer = if is_on_the_wire {
            let reply = Arc::new(Mutex::new(None));
            self.send_late(Sent { at: arrives, caller, call, reply: Some(reply.clone()) });
            sleep_until(arrives).await;
            self.settle();
            reply.lock().take()
        } else {
            let mut sent =
                SentCall { server: self, sent: Some(Sent { at: arrives, caller, call, reply: None }) };
            sleep_until(arrives).await;
            self.settle();
            sent.sent.take().map(|sent| self.execute(sent.call, sent.caller))
        };
        let _answering = is_reserve.then(|| Answering::new(self));
        sleep(way).await;
        if self.life() != caller.life {
            return Err(LedgerError::Uncertain("the connection was lost".into()));
        }
        // Its time has come, so that it has arrived.
        answer.unwrap_or_else(|| Err(LedgerError::Uncertain("no answer in time".into())))
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

/// A reserve batch whose answer is on its way; over when dropped.
struct Answering<'a>(&'a SimulatedServer);

impl<'a> Answering<'a> {
    fn new(server: &'a SimulatedServer) -> Self {
        server.state.lock().answering += 1;
        Self(server)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.state.lock().answering -= 1;
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
