//! One connection: HTTP/1.1 by hyper, and what keeps slow and idle peers from holding it.
//!
//! hyper's own header timer costs a timer a request. Here every connection carries a deadline in one word, which moves with
//! what it does ([`vitals`]), and one sweep a thread ([`sweep`]) ends those that are past it. When all places are taken, the
//! same sweep ends somebody's for who comes ([`room`]).

use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::GatewayConfig;
use crate::http::body::Body;
use crate::http::problem::Problem;

mod head_refusal;
mod room;
mod sweep;
mod vitals;

pub(crate) use sweep::{LOOK_INTERVAL_MS, Sweep};
use vitals::Phase;
pub(crate) use vitals::{Peer, Vitals};

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

/// How long a connection that ends is still read, so that its last answer arrives: what is unread when a socket closes makes the
/// kernel reset the connection, and the reset overtakes the answer. nginx, halfway through a body, would say 502 for our 413.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// How much of it.
const LINGER_BYTES_MAX: usize = 16 << 20;

/// Serves `stream` until its peer or a shutdown ends it.
async fn converse<H, F>(
    options: ConnectionOptions,
    mut stream: TcpStream,
    peer: Peer,
    handler: Arc<H>,
    mut closing: watch::Receiver<bool>,
) where
    H: Fn(Peer, Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let vitals = peer.vitals.clone();
    let (handler, peer) = (&*handler, &peer);
    // Whether the last request had a body, all of which may not have been read. One thread: relaxed serves.
    let had_body = &AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        peer.vitals.enter(Phase::Busy);
        had_body.store(!request.body().is_end_stream(), Ordering::Relaxed);
        // The handler is called from inside, so that its future is made where it stays.
        async move {
            let response = match objection(&request) {
                None => handler(peer.clone(), request).await,
                // What follows on this connection may be of another mind about where this request ended.
                Some(why) => closing_after(Problem::BadRequest.because(why)),
            };
            // A stream of events has said so itself, and says when it ends.
            if !peer.vitals.is(Phase::Stream) {
                peer.vitals.answers();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let ended = {
        let (reader, writer) = stream.split();
        let head_bytes_max = options.head_bytes_max;
        let io = TokioIo::new(Timed { reader, writer, vitals, head_bytes_max, asks_for_head: false });
        let mut connection = pin!(options.builder().serve_connection(io, service));
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => Some(ended),
            _ = closing.wait_for(|closing| *closing) => None,
        };
        match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    // A peer's broken connection is no event of ours; a head that was refused may have more behind it.
    if ended.is_err() || had_body.load(Ordering::Relaxed) {
        // Boxed: its buffer is of the end alone.
        let _ = timeout(LINGER_MAX, Box::pin(read_away(&mut stream))).await;
    }
}

/// Reads until the peer has ended, too.
async fn read_away(stream: &mut TcpStream) {
    let (mut chunk, mut bytes) = ([0; 4_096], 0);
    while bytes < LINGER_BYTES_MAX {
        match stream.read(&mut chunk).await {
            Ok(read @ 1..) => bytes += read,
            Ok(0) | Err(_) => return,
        }
    }
}

/// The answer, and the end of the connection it goes out on.
pub(crate) fn closing_after(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Why a request is not looked at: what a proxy before us and we might each understand differently.
fn objection<B>(request: &Request<B>) -> Option<&'static str> {
    if only_host(request.headers()).is_some_and(|host| host.contains(&b'@')) {
        return Some(
            "a Host is a name or an address, with its port or without: no user stands before an @ there",
        );
    }
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

/// A socket that tells its connection's vitals of what it reads and writes.
struct Timed<'a> {
    reader: ReadHalf<'a>,
    writer: WriteHalf<'a>,
    vitals: Arc<Vitals>,
    head_bytes_max: usize,
    /// The request that has begun is a HEAD, whose answer has no body.
    asks_for_head: bool,
}

impl Timed<'_> {
    /// Between requests: what is written now no handler of ours has given.
    fn is_between_requests(&self) -> bool {
        [Phase::Idle, Phase::Head, Phase::Silent].into_iter().any(|phase| self.vitals.is(phase))
    }
}

impl AsyncRead for Timed<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.reader).poll_read(context, buffer);
        if buffer.filled().len() > before {
            if self.vitals.is(Phase::Idle) || self.vitals.is(Phase::Silent) {
                self.asks_for_head = buffer.filled()[before..].starts_with(b"HEAD ");
            }
            self.vitals.bytes_came();
        }
        polled
    }
}

impl AsyncWrite for Timed<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.is_between_requests()
            && let Some(words) = head_refusal::with_words(bytes, self.head_bytes_max, !self.asks_for_head)
        {
            self.vitals.bytes_go();
            // All before is with the kernel, and the connection ends with this: what does not fit at once is left out.
            let polled = Pin::new(&mut self.writer).poll_write(context, &words);
            return polled.map_ok(|_| bytes.len());
        }
        self.vitals.bytes_go();
        let polled = Pin::new(&mut self.writer).poll_write(context, bytes);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            self.vitals.bytes_went();
        }
        polled
    }

    /// hyper calls this when the socket has taken all that there was to write, so also each time a stream has no event yet.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // Nobody reads the socket meanwhile: without a look a reader that has gone would hold its stream until two more
        // writes. One that ends its own side only counts as gone, too: it has nothing more to say and everything to hear.
        if self.vitals.is(Phase::Stream) {
            let mut byte = [0];
            let peeked = self.reader.poll_peek(context, &mut ReadBuf::new(&mut byte));
            if matches!(peeked, Poll::Ready(Ok(0) | Err(_))) {
                return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
            }
        }
        self.vitals.flushed();
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
