//! The parts of a process as one future: polled in the order given whenever the process is woken. Knows nothing of what they do.

use std::future::poll_fn;
use std::task::Poll;

use futures_util::future::LocalBoxFuture;

/// Until all have ended or one has failed.
pub(crate) struct Parts<'a>(pub(crate) Vec<LocalBoxFuture<'a, Result<(), String>>>);

pub(crate) fn part<'a>(
    part: impl Future<Output = Result<(), String>> + 'a,
) -> LocalBoxFuture<'a, Result<(), String>> {
    Box::pin(part)
}

/// A part that cannot fail.
pub(crate) fn lasts<'a>(part: impl Future<Output = ()> + 'a) -> LocalBoxFuture<'a, Result<(), String>> {
    Box::pin(async {
        part.await;
        Ok(())
    })
}

impl Parts<'_> {
    pub(crate) async fn until_done(&mut self) -> Result<(), String> {
        poll_fn(|context| {
            let mut failed = None;
            self.0.retain_mut(|part| match part.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(error)) => {
                    failed = Some(error);
                    false
                }
            });
            match failed {
                Some(error) => Poll::Ready(Err(error)),
                None if self.0.is_empty() => Poll::Ready(Ok(())),
                None => Poll::Pending,
            }
        })
        .await
    }
}
