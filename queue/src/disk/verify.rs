//! Looking at every byte of a queue's directory that carries records, without changing any.

use std::path::{Path, PathBuf};

use super::files::{LogFiles, io};
use super::identity::{TOPIC_MAGIC, read_identity};
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
        let (recovered, damage) = match recover(&files, 0) {
            Ok(recovered) => (recovered, None),
            Err(QueueError::Corrupt { file, offset, found }) => {
                (Recovered::default(), Some(DamagedBatch { file, offset, found }))
            }
            Err(error) => return Err(error),
        };
        let oldest = files.oldest().unwrap_or(recovered.next_sequence);
        let records = (oldest < recovered.next_sequence).then(|| (oldest, recovered.next_sequence - 1));
        let end = recovered.end.map(|end| (end.path, end.offset));
        logs.push(VerifiedLog { topic, batches: recovered.batches, records, end, damage });
    }
    Ok(logs)
}
