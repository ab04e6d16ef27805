//! The thread of drain, relay and reconciler: its own runtime, since the drain's commits block.

use std::future::Future;
use std::thread;
use std::time::Duration;

use order_worker::DrainError;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longest wait of a shutdown for the batch under way.
const LAST_BATCH_MAX: Duration = Duration::from_secs(15);

/// A thread that runs one future; its end can be waited for without blocking.
pub(super) struct WorkerThread(oneshot::Receiver<Result<(), DrainError>>);

impl WorkerThread {
    /// Starts the thread.
    pub(super) fn start<F>(work: F) -> std::io::Result<Self>
    where
        F: Future<Output = Result<(), DrainError>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("worker".into()).spawn(move || {
            let outcome = runtime.block_on(work);
            // Nobody may be listening any more: the process is ending then.
            let _ = ended.send(outcome);
        })?;
        Ok(Self(end))
    }

    /// Waits for an end that nobody asked for, and says why.
    pub(super) async fn ended(&mut self) -> String {
        match (&mut self.0).await {
            Ok(Ok(())) => "the order worker has ended without being asked to".to_owned(),
            Ok(Err(error)) => format!("the order worker has stopped: {error}"),
            Err(_) => "the order worker has panicked".to_owned(),
        }
    }

    /// Waits for the end after a stop, but not for ever: whether it has come. A statement that hangs is repeated by the next start.
    pub(super) async fn join(self) -> bool {
        if self.0.is_terminated() {
            return true;
        }
        let has_ended = timeout(LAST_BATCH_MAX, self.0).await.is_ok();
        if !has_ended {
            tracing::warn!(
                "the order worker still waits for its database and is left behind; the next start repeats its batch"
            );
        }
        has_ended
    }
}
