//! Looking at every byte of a queue's directory that carries records or what groups have finished, without changing any.

use std::path::{Path, PathBuf};

use super::files::{LogFiles, io};
use super::identity::{TOPIC_MAGIC, read_identity};
use super::offsets;
use super::recovery::{Recovered, recover};
use crate::port::QueueError;
use crate::storage::Storage;

/// What one topic's log looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLog {
    /// The topic.
    pub topic: String,
    /// Sound batches.
    pub batches: u64,
    /// The oldest record's sequence and the newest's, as positions print.
    pub records: Option<(u64, u64)>,
    /// Where reading ended without proof of loss: an empty rest or the torn tail of a crash.
    pub end: Option<(PathBuf, u64)>,
    /// The first damage, if any.
    pub damage: Option<DamagedBatch>,
}

/// Something acknowledged that does not read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBatch {
    /// The file.
    pub file: PathBuf,
    /// The byte at which the batch begins or should begin.
    pub offset: u64,
    /// What was found there.
    pub found: String,
}

/// See [`crate::operator::verify`].
pub(crate) fn verify(storage: &Storage, directory: &Path) -> Result<Vec<VerifiedLog>, QueueError> {
    let mut logs = Vec::new();
    for topic in storage.list(directory).map_err(io("list", directory))? {
        let path = directory.join(&topic);
        // Files beside the topics have nothing below them.
        if !storage.exists(&path.join("topic")).unwrap_or(false) {
            continue;
        }
        let Some(identity) = read_identity(storage, &path.join("topic"), TOPIC_MAGIC)? else { continue };
        let files = LogFiles::new(storage.clone(), path.join("log"), identity.id, false);
        // Before the log, which may be in use: a group has never seen more than it holds.
        let newest = damage_of(newest_seen(storage, &path, identity.id))?;
        let recovered = damage_of(recover(&files, 0))?;
        let (recovered, damage) = match (recovered, newest) {
            (Ok(recovered), Ok(newest)) => {
                let beyond = newest >= recovered.next_sequence;
                let end = recovered.end.as_ref().map_or((&files.directory, 0), |end| (&end.path, end.offset));
                let damage = beyond.then(|| DamagedBatch {
                    file: end.0.clone(),
                    offset: end.1,
                    found: format!("the log's end, but a group has seen record {newest}"),
                });
                (recovered, damage)
            }
            (Ok(recovered), Err(damage)) => (recovered, Some(damage)),
            (Err(damage), _) => (Recovered::default(), Some(damage)),
        };
        let oldest = files.oldest().unwrap_or(recovered.next_sequence);
        let records = (oldest < recovered.next_sequence).then(|| (oldest, recovered.next_sequence - 1));
        let end = recovered.end.map(|end| (end.path, end.offset));
        logs.push(VerifiedLog { topic, batches: recovered.batches, records, end, damage });
    }
    Ok(logs)
}

/// Tells damage from what prevents looking.
fn damage_of<T>(outcome: Result<T, QueueError>) -> Result<Result<T, DamagedBatch>, QueueError> {
    match outcome {
        Err(QueueError::Corrupt { file, offset, found }) => Ok(Err(DamagedBatch { file, offset, found })),
        outcome => outcome.map(Ok),
    }
}

/// The newest record that any group of a topic has seen; every byte of their progress is looked at.
fn newest_seen(storage: &Storage, topic: &Path, log_id: u64) -> Result<u64, QueueError> {
    let groups = topic.join("groups");
    let mut newest = 0;
    for group in storage.list(&groups).map_err(io("list", &groups))? {
        let directory = groups.join(group);
        // Without its second file it is a group whose creation a crash cut off.
        if storage.exists(&directory.join("offset.1")).unwrap_or(false) {
            newest = newest.max(offsets::verify(storage, &directory, log_id)?.newest());
        }
    }
    Ok(newest)
}
