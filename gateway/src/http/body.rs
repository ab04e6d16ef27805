//! Bodies: answers as one piece or as a stream of events, and requests read within a size and a time.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Most of an answer that is handed to hyper at once, bytes.
const PIECE_BYTES_MAX: usize = 16_384;

/// An answer's body.
pub(crate) enum Body {
    /// What has not been handed on yet; `None` once all has.
    Whole(Option<Bytes>),
    /// Piece by piece, until the stream ends.
    Events(BoxStream<'static, Bytes>),
}

impl Body {
    /// One piece.
    #[must_use]
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// Nothing.
    #[must_use]
    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            // A long answer goes out piece by piece, for hyper copies what it is given: a reader that stands still keeps one
            // piece in memory and not the whole.
            Self::Whole(Some(bytes)) if bytes.len() > PIECE_BYTES_MAX => {
                Poll::Ready(Some(Ok(Frame::data(bytes.split_to(PIECE_BYTES_MAX)))))
            }
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Self::Events(stream) => {
                stream.as_mut().poll_next(context).map(|next| next.map(|b| Ok(Frame::data(b))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Why a request's body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// More bytes than are taken.
    TooLarge,
    /// Not all there in time.
    TooSlow,
    /// The connection broke, or the framing is wrong.
    Broken,
}

/// Reads all of a request's body: at most `bytes_max`, within `time_max` in total. Where it is not there at once, what
/// `awaiting` gives is held until it is.
///
/// # Errors
/// [`BodyError`].
pub(crate) async fn read<G>(
    body: Incoming,
    bytes_max: usize,
    time_max: Duration,
    awaiting: impl FnOnce() -> G,
) -> Result<Bytes, BodyError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(BodyError::TooLarge);
    }
    let mut reading = pin!(collect(body, bytes_max));
    // A body that came together with its head needs no timer.
    let at_once = poll_fn(|context| match reading.as_mut().poll(context) {
        Poll::Ready(read) => Poll::Ready(Some(read)),
        Poll::Pending => Poll::Ready(None),
    });
    match at_once.await {
        Some(read) => read,
        None => {
            let _awaiting = awaiting();
            timeout(time_max, reading).await.unwrap_or(Err(BodyError::TooSlow))
        }
    }
}

async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Bytes, BodyError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    // A body of known length is not asked for an end that is known.
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        if first.len() + rest.len() + data.len() > bytes_max {
            return Err(BodyError::TooLarge);
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}
