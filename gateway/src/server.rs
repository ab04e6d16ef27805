//! The listeners and their threads: one current-thread runtime a core, each with a socket of its own on the same port, so
//! that the kernel spreads connections and no request ever changes its thread. And the orderly end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::Gateway;
use crate::admin::Admin;
use crate::api::Api;
use crate::http::body::Body;
use crate::http::connection::{ConnectionOptions, LOOK_INTERVAL_MS, Peer, Sweep};

/// Connections that the kernel holds for us while we accept.
const BACKLOG: u32 = 4_096;
/// Pause when the system has no descriptors or memory left for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// Most connections ended at once to have their descriptors.
const ENDED_AT_ONCE_MAX: usize = 64;
/// Between "not ready" and the end of accepting: time for a balancer to look.
const UNREADY_LEAD: Duration = Duration::from_millis(250);
/// How often the end looks whether everything has been answered.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// Longest wait of the end for the owner's recovery: a batch of an earlier life may be executed until its deadline.
const LAST_LOOK_MAX: Duration = Duration::from_secs(2);
/// Connections of the admin listener; the feed's pollers leave a third of them to probes and to the operator.
const ADMIN_CONNECTIONS_MAX: usize = 384;
/// Descriptors that buyers leave to log, database and admin listener; no more than half of all.
const FILES_KEPT: usize = 512;

/// Why the gateway does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else listens there.
    #[error(
        "{key} = \"{address}\" is taken by another process: stop that one, or choose another address with {key}"
    )]
    Taken {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// The address cannot be had for another reason.
    #[error("cannot listen on {key} = \"{address}\": {source}; choose another address with {key}")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no more threads or descriptors.
    #[error("cannot start a thread of the gateway: {0}")]
    Thread(io::Error),
}

/// The served gateway. Dropping it without [`Running::shutdown`] leaves its threads to the end of the process.
#[must_use = "shut it down, so that what was reserved is finished"]
pub struct Running {
    gateway: Arc<Gateway>,
    address: SocketAddr,
    admin_address: SocketAddr,
    /// Stop accepting, end idle connections and streams.
    closing: watch::Sender<bool>,
    /// Nobody will submit any more: batchers and background may end.
    ending: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Binds both listeners and starts the threads. `registry` is what `/metrics` shows.
    ///
    /// # Errors
    /// A taken or unusable address, with the key to change.
    pub fn start(self: &Arc<Self>, registry: Arc<Registry>) -> Result<Running, ServeError> {
        let threads_wanted = match self.config.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        // All listeners first: a taken address leaves no thread behind.
        refuse_taken("gateway.listen", self.config.listen)?;
        refuse_taken("admin.listen", self.admin_config.listen)?;
        let (admin_listener, admin_address) = listen("admin.listen", self.admin_config.listen)?;
        let (first, address) = listen("gateway.listen", self.config.listen)?;
        let mut listeners = vec![first];
        for _ in 1..threads_wanted {
            listeners.push(listen("gateway.listen", address)?.0);
        }

        let connections_max = connections_max(self.parts.in_flight_max).div_ceil(threads_wanted);
        let closing = watch::Sender::new(false);
        let ending = watch::Sender::new(false);
        let mut threads = Vec::with_capacity(threads_wanted + 2);
        for (n, listener) in listeners.into_iter().enumerate() {
            let gateway = self.clone();
            let (closing, ending) = (closing.subscribe(), ending.subscribe());
            threads.push(spawn(format!("gateway-{n}"), move || {
                serve_public(gateway, listener, connections_max, closing, ending)
            })?);
        }
        let admin = Arc::new(Admin::new(self.clone(), registry, closing.subscribe()));
        let (gateway, until) = (self.clone(), ending.subscribe());
        threads
            .push(spawn("gateway-admin".into(), move || serve_admin(gateway, admin, admin_listener, until))?);
        let (gateway, until) = (self.clone(), ending.subscribe());
        threads.push(spawn(
            "gateway-background".into(),
            move || async move { gateway.background(until).await },
        )?);

        Ok(Running { gateway: self.clone(), address, admin_address, closing, ending, threads })
    }
}

impl Running {
    /// Where buyers connect; the port that was found for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operator connects.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The orderly end, within `shutdown_max_s`: not ready, no new connections, everything reserved is finished and
    /// answered, then the threads end. Returns whether all of it was finished in time; what was not is recovered by the
    /// next start.
    pub async fn shutdown(self) -> bool {
        let Self { gateway, closing, ending, threads, .. } = self;
        let deadline = Instant::now() + Duration::from_secs(gateway.config.shutdown_max_s);

        // 1. Not ready, while everything is still served.
        gateway.draining.store(true, Ordering::Relaxed);
        sleep(UNREADY_LEAD.min(deadline - Instant::now())).await;

        // 2. No new connections; those between requests end, the others after their answer.
        closing.send_replace(true);

        // 3. Everything between permit and answer ends, and so do the connections.
        let quiet = || {
            gateway.parts.in_flight.load(Ordering::Relaxed) == 0
                && gateway.server_metrics.connections.get() <= 0
        };
        while !quiet() && Instant::now() < deadline {
            sleep(DRAIN_LOOK).await;
        }
        let finished = gateway.parts.in_flight.load(Ordering::Relaxed) == 0;
        // A look that is due in a moment may find a reservation without a record: worth that moment, so that the log is whole.
        let last_look = deadline.min(Instant::now() + LAST_LOOK_MAX);
        while !gateway.recovered() && Instant::now() < last_look {
            sleep(DRAIN_LOOK).await;
        }

        // 4. The batchers have nothing left; the threads end.
        ending.send_replace(true);
        let join =
            tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
        let grace = deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
        let joined = matches!(timeout(grace, join).await, Ok(Ok(true)));
        finished && joined
    }
}

/// So many connections as are wanted, unless the process may not open so many files and keep some for what it needs itself.
fn connections_max(wanted: usize) -> usize {
    let Some(files) = getrlimit(Resource::Nofile).current else { return wanted };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let room = connections_in(files);
    if is_worth_saying(room, wanted) {
        tracing::warn!(
            connections_max = room,
            files,
            "fewer connections than limits.in_flight_max = {wanted}: raise the limit of open files (ulimit -n, LimitNOFILE)"
        );
    }
    wanted.min(room)
}

/// How many of so many files may be connections.
fn connections_in(files: usize) -> usize {
    files - FILES_KEPT.min(files / 2)
}

/// A shortfall of less than a tenth changes nothing that anybody would notice: no line for it at each first look.
fn is_worth_saying(room: usize, wanted: usize) -> bool {
    room < wanted - wanted / 10
}

/// Runs `future` on a current-thread runtime of its own, on a thread of its own.
fn spawn<M, F>(name: String, make: M) -> Result<JoinHandle<()>, ServeError>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Thread)?;
    let body = move || runtime.block_on(make());
    thread::Builder::new().name(name).spawn(body).map_err(ServeError::Thread)
}

/// Makes certain that nobody listens there: our listeners share their port among themselves, and so would silently share it
/// with another process that does the same. The kernel never picks a port in use for port 0.
fn refuse_taken(key: &'static str, address: SocketAddr) -> Result<(), ServeError> {
    if address.port() == 0 {
        return Ok(());
    }
    let probe = || socket(address)?.bind(address);
    probe().map_err(|source| listen_error(key, address, source))
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// A listener that shares its port with its siblings, and the address with the port that was found for port 0.
fn listen(key: &'static str, address: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), ServeError> {
    let bind = || {
        let socket = socket(address)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        // `listen` needs a reactor to register with; the thread that serves brings its own.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let listener = {
            let _entered = runtime.enter();
            socket.listen(BACKLOG).and_then(TcpListener::into_std)
        };
        // Dropping it would block, which the caller's own runtime does not allow.
        runtime.shutdown_background();
        let listener = listener?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|source| listen_error(key, address, source))
}

fn listen_error(key: &'static str, address: SocketAddr, source: io::Error) -> ServeError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::Taken { key, address },
        _ => ServeError::Listen { key, address, source },
    }
}

/// One thread of the public listener: accepts, serves, and runs the batcher of the purchases that come in here.
async fn serve_public(
    gateway: Arc<Gateway>,
    listener: std::net::TcpListener,
    connections_max: usize,
    closing: watch::Receiver<bool>,
    ending: watch::Receiver<bool>,
) {
    let purchases = Arc::new(gateway.purchases());
    let api =
        Arc::new(Api { gateway: gateway.clone(), purchases: purchases.clone(), closing: closing.clone() });
    let handler = move |peer, request| {
        let api = api.clone();
        async move { api.handle(peer, request).await }
    };
    let until = ending.clone();
    let live = gateway.server_metrics.connections.clone();
    let accept = accept(gateway, listener, (connections_max, live), Arc::new(handler), closing, until);
    // The batcher outlives the accept loop: what was taken is finished.
    tokio::join!(purchases.run(ending), accept);
}

async fn serve_admin(
    gateway: Arc<Gateway>,
    admin: Arc<Admin>,
    listener: std::net::TcpListener,
    ending: watch::Receiver<bool>,
) {
    let handler = move |peer, request| {
        let admin = admin.clone();
        async move { admin.handle(peer, request).await }
    };
    // Probes must hear "not ready" until the end: this listener closes last.
    let closing = ending.clone();
    let live = Gauge::default();
    accept(gateway, listener, (ADMIN_CONNECTIONS_MAX, live), Arc::new(handler), closing, ending).await;
}

/// Somebody who was accepted when every place was taken.
struct Newcomer {
    stream: TcpStream,
    address: SocketAddr,
    since: Instant,
}

/// Accepts at most so many at once, and one more that waits for a place, until `closing`; keeps the connections' deadlines
/// until `ending`; `live` shows how many there are. Those behind the one that waits are the kernel's.
async fn accept<H, F>(
    gateway: Arc<Gateway>,
    listener: std::net::TcpListener,
    (connections_max, live): (usize, Gauge),
    handler: Arc<H>,
    mut closing: watch::Receiver<bool>,
    mut ending: watch::Receiver<bool>,
) where
    H: Fn(Peer, Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut listener = match TcpListener::from_std(listener) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!(%error, "a listener could not be registered: this thread serves nobody");
            None
        }
    };
    let options = ConnectionOptions::new(&gateway.config);
    let metrics = &gateway.server_metrics;
    let mut sweep = Sweep::new(metrics.connections_expired.clone(), metrics.connections_displaced.clone());
    let mut ticks = interval(Sweep::interval(&options));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stop_accepting = closing.clone();
    let mut newcomer = None;
    let mut counted = 0;
    loop {
        let next = async {
            match &listener {
                Some(listener) if newcomer.is_none() => listener.accept().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing), if listener.is_some() => {
                listener = None;
                newcomer = None;
                sweep.close();
            }
            _ = ending.wait_for(|ending| *ending) => break,
            _ = ticks.tick() => sweep.tick(),
            () = sweep.freed(), if newcomer.is_some() => {}
            () = sleep(Duration::from_millis(LOOK_INTERVAL_MS)), if newcomer.is_some() => {}
            accepted = next => match accepted {
                Ok((stream, address)) => {
                    // Answers are single small writes: waiting to fill a packet would only delay them.
                    let _ = stream.set_nodelay(true);
                    newcomer = Some(Newcomer { stream, address, since: Instant::now() });
                }
                // The peer was gone before we came to it.
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => {
                    metrics.accept_pauses.inc();
                    let _ = (0..ENDED_AT_ONCE_MAX).all(|_| sweep.make_room(EXHAUSTED_PAUSE));
                    sleep(EXHAUSTED_PAUSE).await;
                }
            },
        }
        if let Some(Newcomer { stream, address, .. }) = newcomer.take_if(|_| sweep.live() < connections_max) {
            let peer = (address, gateway.clients.holder(address));
            sweep.serve(stream, peer, &options, handler.clone(), stop_accepting.clone());
        } else if let Some(Newcomer { since, .. }) = &newcomer
            && sweep.staying() >= connections_max
        {
            sweep.make_room(since.elapsed());
        }
        let count = i64::try_from(sweep.live()).unwrap_or(i64::MAX);
        live.inc_by(count - counted);
        counted = count;
    }
    live.inc_by(-counted);
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_that_nobody_notices_is_no_line_at_a_first_look() {
        let wanted = crate::config::LimitsConfig::default().in_flight_max;
        for (files, is_said) in
            [(1_048_576, false), (20_000, false), (18_600, false), (16_384, true), (160, true)]
        {
            assert_eq!(is_worth_saying(connections_in(files), wanted), is_said, "{files} files");
        }
        assert_eq!((connections_in(160), connections_in(20_000)), (80, 19_488));
    }
}
