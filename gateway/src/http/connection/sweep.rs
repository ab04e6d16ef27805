//! All connections of one thread: ends those that are past their deadline, and makes room when none is left. Ticked by the
//! accept loop.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::room::{CHOSEN_MAX, Held, choose};
use super::vitals::{Peer, Phase, Vitals};
use super::{ConnectionOptions, converse};
use crate::http::body::Body;
use crate::http::client::Holder;

/// How long a shutdown waits for heads under way.
const LAST_HEAD_MS: u64 = 1_000;

/// Shortest time between two looks at all connections for one to end, unless the first chose as many as it may and all of
/// them have gone: so one look serves that many newcomers, or is one of 20 a second.
pub(crate) const LOOK_INTERVAL_MS: u64 = 50;

/// How long somebody new waits before it is urgent.
const URGENT_MS: u64 = 500;

struct Connection {
    vitals: Arc<Vitals>,
    task: AbortHandle,
}

/// See the module.
pub(crate) struct Sweep {
    start: Instant,
    /// Coarse: set at each tick, so that requests ask no clock.
    clock: Arc<AtomicU64>,
    connections: Vec<Connection>,
    expired: Counter,
    displaced: Counter,
    tally: Arc<Tally>,
    /// When heads under way stop being waited for.
    heads_end_ms: Option<u64>,
    chosen: Chosen,
}

/// Connections whose socket is open, and those of them that are as good as closed.
#[derive(Default)]
struct Tally {
    live: AtomicUsize,
    leaving: AtomicUsize,
    /// One has closed.
    freed: Notify,
}

/// What the last look found: who goes next, as they were.
#[derive(Default)]
struct Chosen {
    next: VecDeque<(Arc<Vitals>, AbortHandle, Held)>,
    was_full: bool,
    looked_ms: Option<u64>,
}

impl Sweep {
    pub(crate) fn new(expired: Counter, displaced: Counter) -> Self {
        Self {
            start: Instant::now(),
            clock: Arc::default(),
            connections: Vec::new(),
            expired,
            displaced,
            tally: Arc::default(),
            heads_end_ms: None,
            chosen: Chosen::default(),
        }
    }

    /// How often to tick: deadlines are met within this.
    pub(crate) fn interval(options: &ConnectionOptions) -> Duration {
        Duration::from_millis((options.head_ms.min(options.idle_ms) / 4).clamp(5, 250))
    }

    pub(crate) fn tick(&mut self) {
        let now_ms = self.read_clock();
        let heads_are_over = self.heads_end_ms.is_some_and(|end_ms| now_ms >= end_ms);
        let Self { connections, expired, tally, .. } = self;
        connections.retain(|Connection { vitals, task }| {
            if vitals.is_over() {
                return false;
            }
            let is_due = vitals.is_due(now_ms)
                || heads_are_over && (vitals.is(Phase::Head) || vitals.is(Phase::Silent));
            if is_due && tally.end(vitals, task) {
                expired.inc();
            }
            !is_due
        });
    }

    fn read_clock(&self) -> u64 {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock.store(now_ms, Ordering::Relaxed);
        now_ms
    }

    /// From now on a head has [`LAST_HEAD_MS`] left: a slow one must not hold a shutdown.
    pub(crate) fn close(&mut self) {
        self.heads_end_ms = Some(self.clock.load(Ordering::Relaxed) + LAST_HEAD_MS);
    }

    /// Ends one connection, the next that is to go, for somebody who has `waited` for a place. False: there is none now.
    pub(crate) fn make_room(&mut self, waited: Duration) -> bool {
        let now_ms = self.read_clock();
        let is_recent = |looked_ms: u64| now_ms < looked_ms + LOOK_INTERVAL_MS;
        if !self.chosen.looked_ms.is_some_and(is_recent) {
            self.look(now_ms, waited);
        }
        if self.end_next() {
            return true;
        }
        // All that the last look chose are gone, and it might have chosen more.
        if self.chosen.was_full {
            self.look(now_ms, waited);
            return self.end_next();
        }
        false
    }

    fn look(&mut self, now_ms: u64, waited: Duration) {
        let held: Vec<_> = self.connections.iter().map(|connection| connection.vitals.held(now_ms)).collect();
        let numbers = choose(&held, waited >= Duration::from_millis(URGENT_MS));
        let chosen = |at: usize| {
            let Connection { vitals, task } = &self.connections[at];
            (vitals.clone(), task.clone(), held[at])
        };
        self.chosen = Chosen {
            was_full: numbers.len() == CHOSEN_MAX,
            next: numbers.into_iter().map(chosen).collect(),
            looked_ms: Some(now_ms),
        };
    }

    fn end_next(&mut self) -> bool {
        while let Some((vitals, task, as_it_was)) = self.chosen.next.pop_front() {
            let now_ms = self.clock.load(Ordering::Relaxed);
            // One whose request has come meanwhile stays.
            if vitals.held(now_ms) == as_it_was && self.tally.end(&vitals, &task) {
                self.displaced.inc();
                return true;
            }
        }
        false
    }

    /// Connections whose socket is open. One that was ended a moment ago still counts: its descriptor is not free yet.
    pub(crate) fn live(&self) -> usize {
        self.tally.live.load(Ordering::Relaxed)
    }

    /// The same without those that were ended a moment ago.
    pub(crate) fn staying(&self) -> usize {
        self.live().saturating_sub(self.tally.leaving.load(Ordering::Relaxed))
    }

    /// Returns when a socket has closed, perhaps one before the call.
    pub(crate) fn freed(&self) -> impl Future<Output = ()> + use<> {
        let tally = self.tally.clone();
        async move { tally.freed.notified().await }
    }

    /// Serves `stream` on a task of this thread's runtime until its peer, a deadline, somebody new or a shutdown ends it.
    pub(crate) fn serve<H, F>(
        &mut self,
        stream: TcpStream,
        (address, holder): (SocketAddr, Holder),
        options: &ConnectionOptions,
        handler: Arc<H>,
        closing: watch::Receiver<bool>,
    ) where
        H: Fn(Peer, Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let vitals = Arc::new(Vitals::new(self.clock.clone(), holder, options));
        self.tally.live.fetch_add(1, Ordering::Relaxed);
        let peer = Peer { address, vitals: vitals.clone() };
        let over = Over { vitals: vitals.clone(), tally: self.tally.clone() };
        let conversation = converse(options.clone(), stream, peer, handler, closing);
        let task = tokio::spawn(async move {
            let _over = over;
            conversation.await;
        });
        self.connections.push(Connection { vitals, task: task.abort_handle() });
    }
}

impl Tally {
    /// Ends a connection; false if it had ended.
    fn end(&self, vitals: &Vitals, task: &AbortHandle) -> bool {
        let ends = !vitals.end();
        if ends {
            self.leaving.fetch_add(1, Ordering::Relaxed);
            task.abort();
        }
        ends
    }
}

/// Marks the connection as over, however its task ends, even before it has begun.
struct Over {
    vitals: Arc<Vitals>,
    tally: Arc<Tally>,
}

impl Drop for Over {
    fn drop(&mut self) {
        if self.vitals.end() {
            self.tally.leaving.fetch_sub(1, Ordering::Relaxed);
        }
        self.tally.live.fetch_sub(1, Ordering::Relaxed);
        self.tally.freed.notify_one();
    }
}
