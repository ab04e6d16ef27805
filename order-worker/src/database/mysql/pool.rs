//! Where conversations with the server run: on a thread with a runtime of its own, which outlives any caller's.
//!
//! Callers hand jobs over whole, through bounded channels; one that goes away takes nothing with it. Each purpose has connections of
//! its own, so that status reads never wait behind batches. A job that waited too long is not begun.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;

use super::fault::Fault;
use super::session::{Purpose, Server, Session};
use crate::database::DatabaseError;

/// Batches and changes under way at once. More only queue for the same rows.
const WRITERS: usize = 4;
/// Reads under way at once.
const READERS: usize = 4;
/// Audits under way at once.
const SUMMERS: usize = 1;
/// Jobs that wait for a connection; callers beyond wait in their own futures.
const JOBS_MAX: usize = 64;
/// A job that waited for so long is refused: its caller will have given up or will come again.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a transaction is tried that the server ends for another's sake.
const ATTEMPTS_MAX: u32 = 8;
/// No attempt begins later than this after the first.
const REPEAT_FOR: Duration = Duration::from_secs(10);
/// The pause before the second attempt; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(4);

type Conversation = Pin<Box<dyn Future<Output = ()>>>;
/// Runs on the pool's thread only, so that what it becomes need not be `Send`.
type Job = Box<dyn FnOnce(Rc<Connections>) -> Conversation + Send>;

/// The way to the pool's thread, which ends when this is dropped and the jobs under way are done.
pub(super) struct Pool {
    write: mpsc::Sender<Job>,
    read: mpsc::Sender<Job>,
    sums: mpsc::Sender<Job>,
}

impl Pool {
    pub(super) fn start(server: &Server) -> Result<Self, DatabaseError> {
        let unavailable = |error: std::io::Error| {
            DatabaseError::Unavailable(format!("no thread could be started: {error}"))
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unavailable)?;
        let (write, to_write) = mpsc::channel(JOBS_MAX);
        let (read, to_read) = mpsc::channel(JOBS_MAX);
        let (sums, to_sum) = mpsc::channel(JOBS_MAX);
        let server = server.clone();
        let run = move || {
            let serve = async {
                tokio::join!(
                    serve(to_write, Connections::new(&server, Purpose::Write), WRITERS),
                    serve(to_read, Connections::new(&server, Purpose::Read), READERS),
                    serve(to_sum, Connections::new(&server, Purpose::Sums), SUMMERS),
                );
            };
            LocalSet::new().block_on(&runtime, serve);
        };
        std::thread::Builder::new().name("mysql".into()).spawn(run).map_err(unavailable)?;
        Ok(Self { write, read, sums })
    }

    /// Carries `work` out as one transaction, on one connection; as often as it takes, within bounds.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        purpose: Purpose,
        work: impl AsyncFn(&mut Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (answer, answered) = oneshot::channel();
        let since = Instant::now();
        let job: Job = Box::new(move |connections| {
            Box::pin(async move {
                let done = if since.elapsed() > WAIT_MAX {
                    let text = format!("no connection was free within {} s", WAIT_MAX.as_secs());
                    Err(DatabaseError::Unavailable(text))
                } else {
                    connections.carry_out(&work).await
                };
                // Nobody waits any more: the work is done all the same.
                let _ = answer.send(done);
            })
        });
        let jobs = match purpose {
            Purpose::Write | Purpose::Migrate => &self.write,
            Purpose::Read => &self.read,
            Purpose::Sums => &self.sums,
        };
        let gone = || DatabaseError::Unavailable("its thread has ended".into());
        jobs.send(job).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Runs jobs, `most` at once, until the last sender is gone; then closes the connections.
async fn serve(mut jobs: mpsc::Receiver<Job>, connections: Rc<Connections>, most: usize) {
    let turns = Arc::new(Semaphore::new(most));
    while let Some(job) = jobs.recv().await {
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let conversation = job(connections.clone());
        tokio::task::spawn_local(async move {
            conversation.await;
            drop(turn);
        });
    }
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    let _under_way_are_done = turns.acquire_many(all).await;
    for session in connections.take_idle() {
        session.close().await;
    }
}

/// The connections of one purpose; those under way are with their jobs.
struct Connections {
    server: Server,
    purpose: Purpose,
    /// The one used last on top: the others may be closed by the server without harm.
    idle: RefCell<Vec<Session>>,
}

impl Connections {
    fn new(server: &Server, purpose: Purpose) -> Rc<Self> {
        Rc::new(Self { server: server.clone(), purpose, idle: RefCell::default() })
    }

    fn take_idle(&self) -> Vec<Session> {
        std::mem::take(&mut *self.idle.borrow_mut())
    }

    async fn carry_out<T>(
        &self,
        work: &impl AsyncFn(&mut Session) -> Result<T, Fault>,
    ) -> Result<T, DatabaseError> {
        let begun = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.attempt(work).await {
                Ok(answer) => return Ok(answer),
                Err(Fault::Again(_) | Fault::Duplicate(_))
                    if attempts < ATTEMPTS_MAX && begun.elapsed() < REPEAT_FOR =>
                {
                    tokio::time::sleep(PAUSE * (1 << attempts)).await;
                }
                Err(fault) => return Err(fault.into_error()),
            }
        }
    }

    /// One attempt at a transaction. When it returns, nothing is open on any connection that is kept.
    async fn attempt<T>(&self, work: &impl AsyncFn(&mut Session) -> Result<T, Fault>) -> Result<T, Fault> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let was_idle = idle.is_some();
            let mut session = match idle {
                Some(session) => session,
                None => self.server.connect(self.purpose).await?,
            };
            let attempt_max = self.purpose.attempt_max();
            let Ok(done) = tokio::time::timeout(attempt_max, work(&mut session)).await else {
                // Who is silent on one connection will be so on all.
                session.throw_away();
                self.take_idle().into_iter().for_each(Session::throw_away);
                return Err(Fault::Lost(format!("no answer within {} s", attempt_max.as_secs())));
            };
            match &done {
                Err(fault) if !fault.spares_the_connection() => {
                    let cannot_have_committed = !session.is_committing();
                    session.throw_away();
                    // It had been closed while it was idle: that says nothing of the server now.
                    if matches!(fault, Fault::Lost(_)) && was_idle && cannot_have_committed {
                        continue;
                    }
                }
                _ => {
                    let kept = session.reset().await;
                    self.idle.borrow_mut().extend(kept);
                }
            }
            return done;
        }
    }
}
