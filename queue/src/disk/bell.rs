//! Running futures on a thread without a runtime, and a bell that wakes whoever does the upkeep, thread or future.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread until it ends.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Some(output) = park_on(future.as_mut(), None) {
            return output;
        }
    }
}

/// Runs a future on this thread; with `longest`, gives up and returns `None` after one park of that length.
pub(crate) fn park_on<F: Future>(future: F, longest: Option<Duration>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut parked = false;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match longest {
            None => std::thread::park(),
            Some(_) if parked => return None,
            Some(longest) => std::thread::park_timeout(longest),
        }
        parked = true;
    }
}

/// A bell with one listener. A ring while nobody listens is kept.
#[derive(Debug, Default)]
pub(crate) struct Bell(Mutex<(bool, Option<Waker>)>);

impl Bell {
    pub(crate) fn ring(&self) {
        let waker = {
            let mut state = self.0.lock();
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once for all rings since the last time.
    pub(crate) fn poll_rung(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.0) {
            return Poll::Ready(());
        }
        state.1 = Some(context.waker().clone());
        Poll::Pending
    }
}
