//! Work that takes its time, as a disk does: each time there is something to do, it is done after a delay. Knows nothing of
//! the work.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

/// Rung by the work's own waker; has one listener.
struct Bell(Mutex<(bool, Option<Waker>)>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let mut state = self.0.lock();
        state.0 = true;
        let listener = state.1.take();
        drop(state);
        if let Some(listener) = listener {
            listener.wake();
        }
    }
}

impl Bell {
    async fn rung(&self) {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if state.0 {
                return Poll::Ready(());
            }
            state.1 = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Drives `work` to its end; whenever it is woken, only after what `delay` says.
pub(crate) async fn slowly(delay: impl Fn() -> Duration, work: impl Future<Output = ()>) {
    let bell = Arc::new(Bell(Mutex::new((true, None))));
    let waker = Waker::from(bell.clone());
    let mut work = pin!(work);
    loop {
        bell.rung().await;
        let delay = delay();
        if !delay.is_zero() {
            sleep(delay).await;
        }
        // What was rung for until now is done by this turn.
        bell.0.lock().0 = false;
        if work.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
    }
}
