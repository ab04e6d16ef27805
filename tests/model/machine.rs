//! One instance: runs its process, lets it crash, starts it again. A crash drops the whole process at once.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use queue::failpoint::Crash;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use crate::census::THAWED_LATE;
use crate::process::{self, Call, Inside, Stop};
use crate::world::{Mode, World};

/// See the module.
pub(crate) struct Machine {
    pub(crate) instance: usize,
    world: Rc<World>,
    /// Where calls go while a process runs.
    address: RefCell<Option<mpsc::UnboundedSender<Call>>>,
    /// What the checks look at while a process runs.
    inside: RefCell<Option<Rc<Inside>>>,
    kill: Notify,
    stop: Notify,
    /// Nothing of the process runs until then, though time does: SIGSTOP.
    frozen_until: Cell<Option<Instant>>,
    /// What happens once the process has ended.
    fate: Cell<Fate>,
    /// The fate has changed.
    turn: Notify,
    pub(crate) crashes: RefCell<u64>,
}

/// What becomes of a machine whose process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The next process is started.
    Restart,
    /// Down for many seconds.
    Down,
    /// Never heard of again.
    Gone,
    /// Started with an empty disk.
    EmptyDisk,
}

/// How a process ended.
enum End {
    Crashed(&'static str),
    Killed,
    Left(Stop),
}

impl Machine {
    pub(crate) fn new(instance: usize, world: Rc<World>) -> Self {
        Self {
            instance,
            world,
            address: RefCell::default(),
            inside: RefCell::default(),
            kill: Notify::new(),
            stop: Notify::new(),
            frozen_until: Cell::default(),
            fate: Cell::new(Fate::Restart),
            turn: Notify::new(),
            crashes: RefCell::default(),
        }
    }

    /// `kill -9`, as soon as the process next waits for anything.
    pub(crate) fn kill(&self) {
        self.kill.notify_waiters();
    }

    /// `kill -9`, and then this.
    pub(crate) fn kill_for(&self, fate: Fate) {
        if fate == Fate::EmptyDisk {
            self.world.lose_log(self.instance);
        }
        self.meet(fate);
        self.kill();
    }

    fn meet(&self, fate: Fate) {
        if fate == Fate::Gone && !self.is_gone() {
            self.world.gone.set(self.world.gone.get() + 1);
        }
        self.fate.set(fate);
        self.turn.notify_waiters();
    }

    /// A machine that is down is started.
    pub(crate) fn start(&self) {
        if self.fate.get() == Fate::Down {
            self.fate.set(Fate::Restart);
            self.turn.notify_waiters();
        }
    }

    /// Nobody will ever hear of it again.
    pub(crate) fn is_gone(&self) -> bool {
        self.fate.get() == Fate::Gone
    }

    /// The process stands still for so long.
    pub(crate) fn freeze(&self, duration: Duration) {
        self.frozen_until.set(Some(Instant::now() + duration));
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen_until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Asks the process to shut down cleanly.
    pub(crate) fn stop(&self) {
        self.stop.notify_waiters();
    }

    /// Calls the process; `None` is a lost connection: nobody knows what was done.
    pub(crate) async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let address = self.address.borrow().clone()?;
        address.send(call(answer)).ok()?;
        // The way there and back.
        sleep(Duration::from_micros(100 + self.world.random.below(400))).await;
        answered.await.ok()
    }

    /// What the checks may look at; `None` while no process runs.
    pub(crate) fn inside(&self) -> Option<Rc<Inside>> {
        self.inside.borrow().clone()
    }

    /// Runs processes one after the other, for ever.
    pub(crate) async fn run(&self) {
        loop {
            let end = self.run_process().await;
            let end_at = if let End::Crashed(failpoint) = end { Some(failpoint) } else { None };
            let (reason, pause_ms): (String, u64) = match end {
                End::Crashed(failpoint) => (format!("crashed at {failpoint}"), 20),
                End::Killed => ("killed".into(), 20),
                End::Left(Stop::Clean) => ("stopped".into(), 20),
                End::Left(Stop::Failed(error)) => (error, 200),
            };
            *self.crashes.borrow_mut() += 1;
            self.world.trace.say(format_args!("machine {}: {reason}", self.instance));
            let crashed_in = |part: &str| end_at.is_some_and(|failpoint| failpoint.starts_with(part));
            self.world.maybe_forget(crashed_in("rebuild."));
            // With something reserved that others have to look after, if it stays away.
            if crashed_in("gateway.") && self.fate.get() == Fate::Restart && self.world.random.chance(400) {
                let is_last = !self.world.can_lose_one();
                self.meet(if is_last { Fate::Down } else { Fate::Gone });
            }
            sleep(Duration::from_millis(pause_ms + self.world.random.below(1_000))).await;
            self.await_fate().await;
        }
    }

    fn take_note_of_thaw(&self) {
        let owner = self.world.log_of(self.instance);
        let is_leased = owner.is_none_or(|owner| self.world.leases_server.is_leased(owner));
        if self.world.mode == Mode::Outliving && self.inside.borrow().is_some() && !is_leased {
            self.world.census.saw(THAWED_LATE);
        }
    }

    async fn await_fate(&self) {
        loop {
            let turn = self.turn.notified();
            match self.fate.get() {
                Fate::Restart => return,
                Fate::EmptyDisk => {
                    self.world.trace.say(format_args!("machine {}: its disk is gone", self.instance));
                    self.world.replace_disk(self.instance);
                    self.fate.set(Fate::Restart);
                    return;
                }
                Fate::Down => {
                    let long = Duration::from_millis(self.world.random.between(3_000, 20_000));
                    if timeout(long, turn).await.is_err() {
                        self.start();
                    }
                }
                Fate::Gone => turn.await,
            }
        }
    }

    async fn run_process(&self) -> End {
        let (address, calls) = mpsc::unbounded_channel();
        let started = |inside: Rc<Inside>| {
            *self.inside.borrow_mut() = Some(inside);
            *self.address.borrow_mut() = Some(address);
        };
        let mut process = Box::pin(process::run(&self.world, self.instance, calls, &self.stop, started));
        let end = tokio::select! {
            biased;
            () = self.kill.notified() => End::Killed,
            end = until_crash(&self.frozen_until, || self.take_note_of_thaw(), process.as_mut()) => end,
        };
        // Nothing of the process runs from here on; what its parts do while they are dropped must not reach the disk.
        if !matches!(end, End::Left(Stop::Clean)) {
            self.world.disk(self.instance).crash();
            self.world.worker_disk(self.instance).crash();
        }
        self.frozen_until.set(None);
        *self.address.borrow_mut() = None;
        *self.inside.borrow_mut() = None;
        drop(process);
        end
    }
}

/// Polls a process until it ends or panics with [`Crash`]; not at all while it is frozen. Any other panic is a bug and goes on.
async fn until_crash(
    frozen_until: &Cell<Option<Instant>>,
    thawed: impl Fn(),
    mut process: Pin<&mut impl Future<Output = Stop>>,
) -> End {
    let mut thaw: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|context| {
        if let Some(until) = frozen_until.get() {
            let thaw = thaw.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if thaw.deadline() != until {
                thaw.as_mut().reset(until);
            }
            if thaw.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            frozen_until.set(None);
            thawed();
        }
        thaw = None;
        match catch_unwind(AssertUnwindSafe(|| process.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(stop)) => Poll::Ready(End::Left(stop)),
            Err(panic) => match panic.downcast::<Crash>() {
                Ok(crash) => Poll::Ready(End::Crashed(crash.0)),
                Err(panic) => resume_unwind(panic),
            },
        }
    })
    .await
}
