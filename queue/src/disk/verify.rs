//! Looking at every byte of a queue's directory that carries records or what groups have finished, without changing any.

use std::path::{Path, PathBuf};

use super::files::{LogFiles, io};
use super::identity::{TOPIC_MAGIC, read_identity};
use super::limits::LimitFiles;
use super::offsets;
use super::recovery::{Recovered, recover};
use super::shared::Standing;
use crate::port::QueueError;
use crate::storage::{SharedMark, Storage};

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
        // Before the log, which may be in use: nobody has been told of more than it holds afterwards.
        let proofs = damage_of(Proofs::gather(storage, &path, identity.id))?;
        let recovered = damage_of(recover(&files, 0))?;
        let (recovered, damage) = match (recovered, proofs) {
            (Ok(recovered), Ok(proofs)) => {
                let damage = damage_of(proofs.check(storage, &files, &recovered))?.err();
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

/// What a log must hold, as those say who were told of it: a start judges by the same.
struct Proofs<'a> {
    topic: &'a Path,
    /// The page that the owner shares with consumers in other processes.
    acknowledged: u64,
    groups: Vec<Group>,
}

/// One group's progress, every byte of it looked at.
struct Group {
    name: String,
    seen: u64,
    passed: u64,
}

impl<'a> Proofs<'a> {
    fn gather(storage: &Storage, topic: &'a Path, log_id: u64) -> Result<Self, QueueError> {
        let acknowledged = if storage.is_real() { acknowledged(&topic.join("mark"), log_id)? } else { 0 };
        Ok(Self { topic, acknowledged, groups: groups(storage, topic, log_id)? })
    }

    fn check(&self, storage: &Storage, files: &LogFiles, recovered: &Recovered) -> Result<(), QueueError> {
        recovered.check_acknowledged(files, self.acknowledged)?;
        // What a group is past it may have passed meanwhile, and segments before that may have gone: this is looked at after the log.
        let now = groups(storage, self.topic, files.log_id)?;
        for Group { name, seen, passed } in &self.groups {
            let later = now.iter().find(|group| group.name == *name).map_or(*passed, |group| group.passed);
            recovered.check_group(files, name, (*seen, later.max(*passed)))?;
        }
        Ok(())
    }
}

/// Through which record the owner has said that its log is durable; 0 where it has not.
fn acknowledged(mark: &Path, log_id: u64) -> Result<u64, QueueError> {
    match SharedMark::attach(mark, log_id) {
        Ok(mark) => Ok(mark.map_or(0, |mark| mark.durable())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(io("map", mark)(error)),
    }
}

fn groups(storage: &Storage, topic: &Path, log_id: u64) -> Result<Vec<Group>, QueueError> {
    let groups = topic.join("groups");
    let mut found = Vec::new();
    for name in storage.list(&groups).map_err(io("list", &groups))? {
        let directory = groups.join(&name);
        // Without its second file it is a group whose creation a crash cut off.
        if storage.exists(&directory.join("offset.1")).unwrap_or(false) {
            let progress = offsets::verify(storage, &directory, log_id)?;
            let limits = LimitFiles::new(storage, directory, log_id);
            let standing = Standing::of(&progress, limits.cut()?, limits.limit()?, false);
            let seen = progress.newest().max(standing.cut);
            found.push(Group { name, seen, passed: standing.passed() });
        }
    }
    Ok(found)
}
