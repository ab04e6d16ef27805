//! One connection: HTTP/1.1 by hyper, and the deadlines that keep slow and idle peers from holding it.
//!
//! hyper's own header timer costs a timer a request. Here every connection carries a deadline in one word, which moves with
//! what it does, and one sweep a thread ([`Sweep`]) ends those that are past it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::body::Body;
use crate::config::GatewayConfig;
use crate::problem::Problem;

/// What a listener's connections have in common.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionOptions {
    pub(crate) head_ms: u64,
    pub(crate) idle_ms: u64,
    head_bytes_max: usize,
}

impl ConnectionOptions {
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        Self {
            head_ms: config.header_read_max_ms,
            idle_ms: config.idle_max_ms,
            head_bytes_max: config.header_bytes_max,
        }
    }

    fn builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        // Measured on refusals: fewer writes and no double look at a closing peer. `pipeline_flush` would spare more, but
        // keeps an answer back, and piles answers up without bound, as long as bytes of a next request have come.
        builder.half_close(true).pipeline_flush(false).writev(false);
        // The sweep does it; without a timer hyper's own would be silently off anyway.
        builder.header_read_timeout(None);
        builder.max_header_size(self.head_bytes_max);
        // hyper's smallest buffer; it must hold a whole head.
        builder.max_buf_size(self.head_bytes_max.max(8_192));
        builder
    }
}

/// Idle connections younger than this are not ended to make room: their next request is probably on its way.
const ROOM_IDLE_MS: u64 = 500;

/// The same for those that have sent nothing at all yet: whoever connects ahead of a spike has so long while it is full.
const ROOM_SILENT_MS: u64 = 2_000;

/// How long a shutdown waits for heads under way.
const LAST_HEAD_MS: u64 = 1_000;

/// What a connection does, as far as its deadline depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Between requests, or its answer is being written.
    // ## Idle => Head (bytes came) | Busy (a head that was buffered already)
    Idle = 0,
    /// Part of a head has come.
    // ## Head => Busy (the head is whole)
    Head = 1,
    /// A handler has it: body and answer have bounds of their own.
    // ## Busy => Idle (the handler has answered)
    Busy = 2,
    /// Fresh: it owes a head and nothing of it has come.
    // ## Silent => Head (bytes came; its time still counts from the start)
    Silent = 3,
}

/// One connection's deadline, shared by its socket, its requests and the sweep, all of one thread: relaxed serves.
#[derive(Debug)]
struct Vitals {
    clock: Arc<AtomicU64>,
    phase: AtomicU8,
    /// In ms of the sweep's clock.
    deadline_ms: AtomicU64,
    over: AtomicBool,
    head_ms: u64,
    idle_ms: u64,
}

impl Vitals {
    fn enter(&self, phase: Phase) {
        let now_ms = self.clock.load(Ordering::Relaxed);
        let deadline_ms = match phase {
            Phase::Idle => now_ms + self.idle_ms,
            Phase::Head | Phase::Silent => now_ms + self.head_ms,
            Phase::Busy => u64::MAX,
        };
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    fn bytes_came(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Head);
        } else if self.is(Phase::Silent) {
            self.phase.store(Phase::Head as u8, Ordering::Relaxed);
        }
    }

    fn bytes_went(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Idle);
        }
    }
}

/// Ends connections that are past their deadline. One a thread, ticked by the accept loop.
pub(crate) struct Sweep {
    start: Instant,
    /// Coarse: set at each tick, so that requests ask no clock.
    clock: Arc<AtomicU64>,
    connections: Vec<(Arc<Vitals>, AbortHandle)>,
    expired: Counter,
    live: Arc<AtomicUsize>,
    /// When heads under way stop being waited for.
    heads_end_ms: Option<u64>,
}

impl Sweep {
    pub(crate) fn new(expired: Counter) -> Self {
        Self {
            start: Instant::now(),
            clock: Arc::default(),
            connections: Vec::new(),
            expired,
            live: Arc::default(),
            heads_end_ms: None,
        }
    }

    /// How often to tick: deadlines are met within this.
    pub(crate) fn interval(options: &ConnectionOptions) -> Duration {
        Duration::from_millis((options.head_ms.min(options.idle_ms) / 4).clamp(5, 250))
    }

    pub(crate) fn tick(&mut self) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock.store(now_ms, Ordering::Relaxed);
        let heads_are_over = self.heads_end_ms.is_some_and(|end_ms| now_ms >= end_ms);
        self.sweep(|vitals| {
            vitals.deadline_ms.load(Ordering::Relaxed) <= now_ms
                || heads_are_over && (vitals.is(Phase::Head) || vitals.is(Phase::Silent))
        });
    }

    /// From now on a head has [`LAST_HEAD_MS`] left: a slow one must not hold a shutdown.
    pub(crate) fn close(&mut self) {
        self.heads_end_ms = Some(self.clock.load(Ordering::Relaxed) + LAST_HEAD_MS);
    }

    /// Makes room: ends what has been between requests, or silent from its start, for a while. For when no connection more
    /// would fit.
    pub(crate) fn make_room(&mut self) {
        let now_ms = self.clock.load(Ordering::Relaxed);
        self.sweep(|vitals| {
            let rests = |phase, deadline_after_ms, room_after_ms| {
                let since_ms = vitals.deadline_ms.load(Ordering::Relaxed).saturating_sub(deadline_after_ms);
                vitals.is(phase) && now_ms.saturating_sub(since_ms) >= room_after_ms
            };
            rests(Phase::Idle, vitals.idle_ms, ROOM_IDLE_MS)
                || rests(Phase::Silent, vitals.head_ms, ROOM_SILENT_MS)
        });
    }

    fn sweep(&mut self, is_due: impl Fn(&Vitals) -> bool) {
        self.connections.retain(|(vitals, task)| {
            if vitals.over.load(Ordering::Relaxed) {
                return false;
            }
            if is_due(vitals) {
                self.expired.inc();
                task.abort();
                return false;
            }
            true
        });
    }

    /// Connections whose socket is open. One that was ended a moment ago still counts: its descriptor is not free yet.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Serves `stream` on a task of this thread's runtime until its peer, a deadline or a shutdown ends it.
    pub(crate) fn serve<H, F>(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        options: &ConnectionOptions,
        handler: Arc<H>,
        closing: watch::Receiver<bool>,
    ) where
        H: Fn(SocketAddr, Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let vitals = Arc::new(Vitals {
            clock: self.clock.clone(),
            phase: AtomicU8::new(Phase::Silent as u8),
            deadline_ms: AtomicU64::new(self.clock.load(Ordering::Relaxed) + options.head_ms),
            over: AtomicBool::new(false),
            head_ms: options.head_ms,
            idle_ms: options.idle_ms,
        });
        let builder = options.builder();
        self.live.fetch_add(1, Ordering::Relaxed);
        let over = Over { vitals: vitals.clone(), live: self.live.clone() };
        let task = tokio::spawn(converse(builder, stream, peer, over, handler, closing));
        self.connections.push((vitals, task.abort_handle()));
    }
}

/// Marks the connection as over, however its task ends, even before it has begun.
struct Over {
    vitals: Arc<Vitals>,
    live: Arc<AtomicUsize>,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.vitals.over.store(true, Ordering::Relaxed);
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn converse<H, F>(
    builder: http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    over: Over,
    handler: Arc<H>,
    mut closing: watch::Receiver<bool>,
) where
    H: Fn(SocketAddr, Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let vitals = over.vitals.clone();
    let (handler, at) = (&*handler, &*vitals);
    let service = service_fn(|request: Request<Incoming>| {
        at.enter(Phase::Busy);
        // The handler is called from inside, so that its future is made where it stays.
        async move {
            let response = match objection(&request) {
                None => handler(peer, request).await,
                // What follows on this connection may be of another mind about where this request ended.
                Some(why) => closing_after(Problem::BadRequest.because(why)),
            };
            at.enter(Phase::Idle);
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(Timed { stream, vitals: vitals.clone() });
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        biased;
        // A peer's broken connection is no event of ours.
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// The answer, and the end of the connection it goes out on.
pub(crate) fn closing_after(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Why a request is not looked at: what a proxy before us and we might each understand differently.
fn objection<B>(request: &Request<B>) -> Option<&'static str> {
    if !is_for_one_host(request) {
        return Some("a request names its host once");
    }
    // hyper reads a body by its last coding and would leave those before it in place (RFC 9112, 6.1).
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some("chunked is the one Transfer-Encoding that is taken"),
    }
}

/// HTTP/1.1 demands exactly one `Host` (RFC 9112, 3.2), the one of an absolute target: where there are several, proxy and
/// server may each believe another.
fn is_for_one_host<B>(request: &Request<B>) -> bool {
    let Some(host) = only_host(request.headers()) else {
        return request.version() < Version::HTTP_11 && !request.headers().contains_key(HOST);
    };
    let target = request.uri().authority().filter(|_| request.uri().scheme().is_some());
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte))
        && target.is_none_or(|target| target.as_str().as_bytes().eq_ignore_ascii_case(host))
}

fn only_host(headers: &HeaderMap) -> Option<&[u8]> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?;
    hosts.next().is_none().then_some(host.as_bytes())
}

/// A socket that tells its connection's deadline of what it reads and writes.
struct Timed {
    stream: TcpStream,
    vitals: Arc<Vitals>,
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.vitals.bytes_came();
        }
        polled
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            self.vitals.bytes_went();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
