//! The thread of drain, relay and reconciler: its own runtime, since the drain's commits block.

use std::future::Future;
use std::thread;

use order_worker::DrainError;
use tokio::sync::oneshot;

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

    /// Waits for the end after a stop.
    pub(super) async fn join(self) {
        if !self.0.is_terminated() {
            let _ = self.0.await;
        }
    }
}
