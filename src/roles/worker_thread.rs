//! Threads of a worker, each with a runtime of its own: that of drain, relay and reconciler, since the drain's commits block, and
//! that of a worker's own log, since its disk may hang.

use std::future::Future;
use std::thread;
use std::time::Duration;

use order_worker::DrainError;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longest wait of a shutdown for the batch or the append under way.
const END_MAX: Duration = Duration::from_secs(15);

/// A thread that runs one future; its end can be waited for without blocking.
pub(super) struct WorkerThread<T>(oneshot::Receiver<T>);

impl<T: Send + 'static> WorkerThread<T> {
    /// Starts the thread.
    pub(super) fn start<F>(name: &str, work: F) -> std::io::Result<Self>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let outcome = runtime.block_on(work);
            // Nobody may be listening any more: the process is ending then.
            let _ = ended.send(outcome);
        })?;
        Ok(Self(end))
    }

    /// Waits for the end after a stop, but not for ever: whether it has come. What hangs is left behind, and says so as `waits`.
    pub(super) async fn join(self, waits: &str) -> bool {
        if self.0.is_terminated() {
            return true;
        }
        let has_ended = timeout(END_MAX, self.0).await.is_ok();
        if !has_ended {
            tracing::warn!("{waits}");
        }
        has_ended
    }
}

impl WorkerThread<Result<(), DrainError>> {
    /// Waits for an end that nobody asked for, and says why.
    pub(super) async fn ended(&mut self) -> String {
        match (&mut self.0).await {
            Ok(Ok(())) => "the order worker has ended without being asked to".to_owned(),
            Ok(Err(error)) => format!("the order worker has stopped: {error}"),
            Err(_) => "the order worker has panicked".to_owned(),
        }
    }

    /// As [`Self::join`].
    pub(super) async fn join_drain(self) -> bool {
        self.join("the order worker still waits for its database and is left behind; the next start repeats its batch").await
    }
}
