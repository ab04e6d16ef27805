//! The one connection to the primary, and the breaker in front of it. Many callers on any runtime share it; its driver and its
//! keeper run on a thread of their own, which outlives every caller's runtime.
//!
//! The keeper alone connects. It compares run id and replication id before anybody else may send on a new connection, and
//! again every second. A connection on which an answer was lost is never used again.
//!
//! ## Down => Up: the keeper greeted a primary
//! ## Up => Down: an answer was lost or late, the server is no primary any more, or it is another one
//! While it is down, callers are told so at once; one attempt to connect is under way at a time.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::scripts::Script;
use super::server::{self, Patience, Primary, Target};
use super::start_error::RedisStartError;
use crate::{LedgerError, LedgerIdentity, LedgerSight};

/// Batches of reservations under way for one calling thread.
const BATCHES_PER_THREAD_MAX: usize = 2;
/// Calls of any kind under way.
const CALLS_MAX: usize = 64;
/// How long a call waits for its turn, before anything is sent.
const TURN_MAX: Duration = Duration::from_millis(200);
/// How long the Sentinels may take to name the primary, all together.
const SENTINELS_MAX: Duration = Duration::from_secs(1);
/// How often the keeper makes sure who answers.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts to connect: the first and the longest pause, before jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long the first connection may take.
const START_MAX: Duration = Duration::from_secs(10);

/// A connection whose server is known.
pub(super) struct Link {
    connection: MultiplexedConnection,
    pub(super) identity: LedgerIdentity,
    server: String,
    /// Whether a majority of the Sentinels named it when last asked; where there are none, it is the only one. Written by the
    /// keeper, read by callers of `sight`; it guards nothing else, so relaxed.
    is_undoubted: AtomicBool,
}

#[derive(Clone)]
enum State {
    Connecting,
    Up(Arc<Link>),
    Down(Arc<str>),
    /// The keeper could not connect; it tries again.
    Unconnected(RedisStartError),
    /// Nobody needs to try again before somebody changed something; the keeper still does.
    Refused(RedisStartError),
}

/// What callers and the keeper share.
struct Shared {
    state: watch::Sender<State>,
    patience: Patience,
    calls: Semaphore,
    /// Callers' threads take the lanes in turn.
    lanes: Vec<Semaphore>,
}

/// The callers' side. Dropping it ends the thread.
pub(super) struct Links {
    shared: Arc<Shared>,
    _closing: oneshot::Sender<()>,
}

/// The right to send one call.
pub(super) struct Turn<'a> {
    shared: &'a Shared,
    pub(super) link: Arc<Link>,
    _permits: [Option<SemaphorePermit<'a>>; 2],
}

thread_local! {
    static LANE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

impl Links {
    /// Starts the thread and waits for the first connection.
    pub(super) async fn open(target: Target, patience: Patience) -> Result<Self, RedisStartError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            state: watch::Sender::new(State::Connecting),
            patience,
            calls: Semaphore::new(CALLS_MAX),
            // One more for the worker's runtime.
            lanes: (0..=threads).map(|_| Semaphore::new(BATCHES_PER_THREAD_MAX)).collect(),
        });
        let (closing, closed) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| RedisStartError::Thread(error.to_string()))?;
        let keeper = shared.clone();
        let spawned = std::thread::Builder::new().name("redis".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = keep(&keeper, &target) => {}
                    _ = closed => {}
                }
            });
        });
        spawned.map_err(|error| RedisStartError::Thread(error.to_string()))?;
        let links = Self { shared, _closing: closing };
        links.first_connection().await?;
        Ok(links)
    }

    async fn first_connection(&self) -> Result<(), RedisStartError> {
        let mut states = self.shared.state.subscribe();
        let decided = states.wait_for(|state| matches!(state, State::Up(_) | State::Refused(_)));
        let decided = timeout(START_MAX, decided).await.map(|state| state.map(|state| state.clone()));
        match decided.ok().and_then(Result::ok).unwrap_or_else(|| self.shared.state.borrow().clone()) {
            State::Up(_) => Ok(()),
            State::Refused(error) | State::Unconnected(error) => Err(error),
            State::Down(reason) => Err(RedisStartError::Unreachable {
                server: "stock.redis_urls".into(),
                reason: reason.to_string(),
            }),
            State::Connecting => Err(RedisStartError::Unreachable {
                server: "stock.redis_urls".into(),
                reason: format!("no answer in {START_MAX:?}"),
            }),
        }
    }

    /// Who is connected, and whether it may be one of two primaries.
    pub(super) fn sight(&self) -> Result<LedgerSight, LedgerError> {
        let link = self.shared.link()?;
        let is_witness = link.is_undoubted.load(Ordering::Relaxed);
        Ok(LedgerSight { ledger: link.identity.clone(), is_witness })
    }

    /// A turn for any call.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, LedgerError> {
        self.take_turn(None).await
    }

    /// A turn for a batch of reservations.
    pub(super) async fn batch_turn(&self) -> Result<Turn<'_>, LedgerError> {
        let lanes = &self.shared.lanes;
        self.take_turn(Some(&lanes[LANE.with(|lane| *lane) % lanes.len()])).await
    }

    async fn take_turn<'a>(&'a self, lane: Option<&'a Semaphore>) -> Result<Turn<'a>, LedgerError> {
        let shared = &*self.shared;
        shared.link()?;
        let waiting = async {
            let lane = match lane {
                Some(lane) => lane.acquire().await.ok(),
                None => None,
            };
            [lane, shared.calls.acquire().await.ok()]
        };
        let permits = timeout(TURN_MAX, waiting).await.map_err(|_| {
            LedgerError::Unavailable("as many calls are under way to Redis as may be, and none ends".into())
        })?;
        // The connection may have gone while this call waited.
        Ok(Turn { shared, link: shared.link()?, _permits: permits })
    }
}

impl Shared {
    fn link(&self) -> Result<Arc<Link>, LedgerError> {
        match &*self.state.borrow() {
            State::Up(link) => Ok(link.clone()),
            State::Down(reason) => Err(LedgerError::Unavailable(reason.to_string())),
            State::Refused(error) | State::Unconnected(error) => {
                Err(LedgerError::Unavailable(error.to_string()))
            }
            State::Connecting => Err(LedgerError::Unavailable("not connected to Redis yet".into())),
        }
    }

    /// Opens the breaker, unless another connection stands in its place already.
    fn give_up(&self, link: &Arc<Link>, reason: &str) {
        let given_up = self.state.send_if_modified(|state| {
            let is_this = matches!(state, State::Up(current) if Arc::ptr_eq(current, link));
            if is_this {
                *state = State::Down(format!("Redis at {}: {reason}", link.server).into());
            }
            is_this
        });
        if given_up {
            tracing::warn!(
                server = link.server,
                reason,
                "the connection to Redis is given up; another one is made"
            );
        }
    }
}

impl Turn<'_> {
    /// Runs a script: `call` is its EVALSHA.
    pub(super) async fn send(self, script: &Script, call: &Cmd) -> Result<Value, LedgerError> {
        let call_max = self.shared.patience.call;
        let answer = timeout(call_max, self.send_and_heal(script, call)).await;
        answer.unwrap_or_else(|_| {
            self.shared.give_up(&self.link, "no answer in time");
            Err(LedgerError::Uncertain(format!("no answer within {call_max:?}")))
        })
    }

    async fn send_and_heal(&self, script: &Script, call: &Cmd) -> Result<Value, LedgerError> {
        let mut connection = self.link.connection.clone();
        let error = match call.query_async(&mut connection).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.code() != Some("NOSCRIPT") {
            return Err(self.judge(&error));
        }
        // Not carried out: the cache was flushed. Load it and send the call again, once.
        let loaded: Result<String, _> =
            redis::cmd("SCRIPT").arg("LOAD").arg(script.code).query_async(&mut connection).await;
        if let Err(error) = loaded {
            let error = self.judge(&error);
            return Err(LedgerError::Unavailable(format!(
                "script {} cannot be loaded: {error}",
                script.name
            )));
        }
        call.query_async(&mut connection).await.map_err(|error| self.judge(&error))
    }

    /// What an error says of the call, and of the connection.
    fn judge(&self, error: &RedisError) -> LedgerError {
        let text = error.to_string();
        let Some(code) = error.code() else {
            // No answer of the server: it may have carried the call out, or may do so later.
            self.shared.give_up(&self.link, &text);
            return LedgerError::Uncertain(text);
        };
        match code {
            // Refused before the first line of the script; the server is not what it was.
            "READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" | "WRONGPASS" | "CLUSTERDOWN" | "MOVED" => {
                self.shared.give_up(&self.link, &text);
                LedgerError::Unavailable(text)
            }
            // Refused before the first line of the script, for as long as this lasts.
            "OOM" | "MISCONF" | "NOREPLICAS" | "BUSY" | "NOSCRIPT" => LedgerError::Unavailable(text),
            "NOPERM" if !text.contains("in script") => LedgerError::Unavailable(text),
            // Raised within a script: a bug of ours, or somebody else writes to these keys. Nobody knows how far it got.
            _ => {
                tracing::error!(error = text, "a step of the ledger failed half-way in Redis");
                LedgerError::Uncertain(text)
            }
        }
    }
}

/// The keeper: connects, watches, connects again. Never ends by itself.
async fn keep(shared: &Shared, target: &Target) {
    let jitter = RandomState::new();
    let (mut pause, mut attempts) = (PAUSE.0, 0u64);
    loop {
        attempts += 1;
        match target.greet(shared.patience).await {
            Ok(Primary { connection, identity, server, is_undoubted }) => {
                pause = PAUSE.0;
                tracing::info!(server, identity, "connected to Redis");
                let (identity, is_undoubted) =
                    (LedgerIdentity::new(&identity), AtomicBool::new(is_undoubted));
                let link = Arc::new(Link { connection, identity, server, is_undoubted });
                shared.state.send_replace(State::Up(link.clone()));
                watch_over(shared, target, &link).await;
            }
            Err(error) => {
                let state = if error.is_final() { State::Refused(error) } else { State::Unconnected(error) };
                shared.state.send_replace(state);
            }
        }
        // Between half and all of the pause, so that many processes do not come back at once.
        let random = jitter.hash_one(attempts) % 512;
        sleep(pause / 2 + pause / 1_024 * random as u32).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Returns once the connection has been given up.
async fn watch_over(shared: &Shared, target: &Target, link: &Arc<Link>) {
    let mut states = shared.state.subscribe();
    loop {
        tokio::select! {
            _ = states.wait_for(|state| !matches!(state, State::Up(_))) => return,
            () = sleep(CHECK_EVERY) => {}
        }
        match server::identity(&mut link.connection.clone()).await {
            Ok(Some(identity)) if identity == link.identity.as_str() => {}
            Ok(Some(_)) => shared.give_up(link, "it has begun another history"),
            Ok(None) => shared.give_up(link, "it is a replica now"),
            Err(error) => shared.give_up(link, &error),
        }
        if target.has_sentinels() {
            let named = timeout(SENTINELS_MAX, target.primary()).await;
            // Sentinels that are out of reach say nothing about the primary: it serves, but nobody can vouch for it.
            let is_undoubted = match named {
                Ok(Ok(named)) => {
                    let server = named.primary.addr().to_string();
                    if server != link.server {
                        shared.give_up(link, &format!("the Sentinels name {server} as primary"));
                    }
                    server == link.server && named.by_majority
                }
                Ok(Err(_)) | Err(_) => false,
            };
            link.is_undoubted.store(is_undoubted, Ordering::Relaxed);
        }
    }
}
