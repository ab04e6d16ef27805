//! What ends a process.

use std::time::Duration;

use queue::{Topic, TopicState};
use tokio::signal::unix::{SignalKind, signal as listen};

use super::StartError;

/// How often the log is asked whether a failed sync has poisoned it.
const POISON_LOOK: Duration = Duration::from_millis(500);

/// Waits for SIGTERM or SIGINT: the asked-for end.
pub(super) async fn signal() -> Result<(), StartError> {
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name}: shutting down");
    Ok(())
}

/// Waits until the log accepts nothing any more: only a new process can find out what is durable.
pub(super) async fn poisoned(orders: &Topic) -> StartError {
    while orders.state() != TopicState::Poisoned {
        tokio::time::sleep(POISON_LOOK).await;
    }
    StartError::Stopped(
        "a write to the queue's disk failed, and nobody can tell what it holds: look at the disk, then start again".into(),
    )
}
