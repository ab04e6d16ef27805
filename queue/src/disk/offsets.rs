//! The two files that keep a group's progress: a checkpoint each, and behind it a journal of what has changed since. Knows numbers,
//! never records; the bytes are in `progress_bytes`.
//!
//! The sound file of the higher generation counts, checkpoint and journal. A change is appended to that journal and synced; when the
//! journal has no room, a checkpoint is first written over the other file. So a change costs a block and its share of a checkpoint,
//! whose journal is at least twice as long as itself. Files are written in place and only grow: with a disk that is full, changes
//! still find room.

use std::path::{Path, PathBuf};

use super::files::{corrupt, io};
use super::progress::{Change, Progress};
use super::progress_bytes::{
    Checkpoint, HEADER_BYTES, PROGRESS_VERSION, check_batch, decode_batch, decode_checkpoint, encode_batch,
    encode_checkpoint, other_version, peek_generation, seal,
};
use crate::failpoint;
use crate::port::QueueError;
use crate::storage::{Access, BLOCK_BYTES, File, Storage};

/// Shortest journal, in bytes; a full disk may leave it a single block.
const JOURNAL_BYTES_MIN: u64 = 64 * 1024;

/// Zeros written at once where a file grows, in bytes.
const ZEROS_BYTES: u64 = 256 * 1024;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// How often files are read again that another process writes meanwhile.
const READ_TRIES_MAX: u32 = 3;

/// The files of a group that this process holds.
#[derive(Debug)]
pub(crate) struct Slots {
    files: [File; 2],
    paths: [PathBuf; 2],
    lengths: [u64; 2],
    log_id: u64,
    generation: u64,
    /// The file that counts.
    current: usize,
    /// Where its next batch goes, and the end of its journal.
    next: u64,
    end: u64,
    /// Whether a checkpoint in the other file has failed, so that a crash could bring it back: it has to be written over before
    /// anything else.
    in_doubt: bool,
    /// How far the cursor was at the last checkpoint.
    looked: u64,
}

/// What two files say.
pub(crate) struct Loaded {
    pub(crate) progress: Progress,
    generation: u64,
    slot: usize,
    /// How far the cursor was at the checkpoint.
    looked: u64,
    /// Of the file that counts.
    bytes: Vec<u8>,
    /// The last thing that was written to it: a batch, or the checkpoint.
    last: std::ops::Range<usize>,
    end: u64,
    /// Whether the other file is no sound checkpoint.
    other_unsound: bool,
}

impl Slots {
    /// Opens a group's files, both created at `start` in a new group, and reads what counts. Only for who holds the group's lock.
    pub(crate) fn open(
        storage: &Storage,
        directory: &Path,
        log_id: u64,
        start: u64,
    ) -> Result<(Self, Progress), QueueError> {
        let paths = paths(directory);
        if !storage.exists(&paths[1]).map_err(io("look for", &paths[1]))? {
            // The second file's name is what makes the group exist; a crash before it begins anew.
            for (generation, path) in paths.iter().enumerate() {
                create(storage, path, log_id, generation as u64, start)?;
            }
        }
        let loaded = load_checked(storage, directory, log_id)?;
        let open = |path: &PathBuf| storage.open(path, Access::Write).map_err(io("open", path));
        let files = [open(&paths[0])?, open(&paths[1])?];
        let length = |slot: usize| files[slot].length().map_err(io("measure", &paths[slot]));
        let lengths = [length(0)?, length(1)?];
        if lengths.contains(&0) {
            // Somebody took one away: its name must be durable before it counts.
            storage.sync_directory(directory).map_err(io("sync", directory))?;
        }
        let slots = Self {
            lengths,
            files,
            paths,
            log_id,
            generation: loaded.generation,
            current: loaded.slot,
            next: loaded.last.end as u64,
            end: loaded.end,
            in_doubt: false,
            looked: loaded.looked,
        };
        slots.settle(&loaded)?;
        Ok((slots, loaded.progress))
    }

    /// Makes what was read durable: it may be in the page cache alone, and wrongly be taken for clean there. Only what was written
    /// last can be: everything before it was durable first.
    ///
    /// The same bytes go to the same place. A crash on the way leaves them torn only if they were not durable before; then the batch
    /// before them, or the other file, is what was durable last, and is not touched until these are. What a failed write may have
    /// left on the disk where something else is read, behind the last batch or in place of the other file's checkpoint, is gone
    /// over, so that it cannot come back.
    fn settle(&self, loaded: &Loaded) -> Result<(), QueueError> {
        self.write(
            "queue.offset-write",
            self.current,
            &loaded.bytes[loaded.last.clone()],
            loaded.last.start as u64,
        )?;
        if self.next < self.end {
            self.write("queue.offset-write", self.current, &[0; HEADER_BYTES], self.next)?;
        }
        self.sync("queue.offset-sync", self.current)?;
        if loaded.other_unsound {
            let other = 1 - self.current;
            self.write("queue.offset-write", other, &[0; HEADER_BYTES], 0)?;
            self.sync("queue.offset-sync", other)?;
        }
        Ok(())
    }

    /// Makes changes of `progress`, all or none, durable. The caller makes them in memory afterwards.
    ///
    /// A crash on the way leaves the batch whole, and the group stands where it was to stand, or torn: nothing behind it proves
    /// that it was acknowledged, and it is dropped. So is it after an error, for the next batch goes to the same place.
    pub(crate) fn append(&mut self, progress: &Progress, changes: &[Change]) -> Result<(), QueueError> {
        let mut batch = encode_batch(changes);
        if self.in_doubt || self.next + batch.len() as u64 > self.end {
            self.checkpoint(progress, batch.len() as u64)?;
        }
        seal(&mut batch, self.log_id, self.generation, self.next);
        let written = self
            .write("queue.offset-write", self.current, &batch, self.next)
            .and_then(|()| self.sync("queue.offset-sync", self.current));
        if written.is_err() {
            // Nobody may act on what a crash could take back.
            let _ = self.files[self.current].write_all_at(&[0; HEADER_BYTES], self.next);
            return written;
        }
        self.next += batch.len() as u64;
        Ok(())
    }

    /// How far the cursor was at the last checkpoint: what lies behind is read again by the next holder.
    pub(crate) fn looked(&self) -> u64 {
        self.looked
    }

    /// Writes a checkpoint over the other file, durable, with an empty journal that takes a batch of `batch_bytes` at least.
    ///
    /// A crash or an error on the way leaves the current file, checkpoint and journal. After an error, and until another
    /// checkpoint has gone over it, a crash may also bring back the new one: so that nothing is appended to the old journal any
    /// more, what comes back is what was. Batches that stand in the new journal's place are of an older generation, and none to it.
    pub(crate) fn checkpoint(&mut self, progress: &Progress, batch_bytes: u64) -> Result<(), QueueError> {
        let other = 1 - self.current;
        let mut bytes = encode_checkpoint(progress);
        let begin = bytes.len() as u64;
        let room = JOURNAL_BYTES_MIN.max(2 * begin).max(batch_bytes);
        let end = match self.grow(other, begin + room) {
            Ok(()) => begin + room,
            // Acknowledgements are what frees a disk.
            Err(_) if self.lengths[other] >= begin + batch_bytes.max(BLOCK) => {
                self.lengths[other] / BLOCK * BLOCK
            }
            Err(error) => return Err(io("write", &self.paths[other])(error)),
        };
        seal(&mut bytes, self.log_id, self.generation + 1, end - begin);
        self.in_doubt = true;
        let written = self
            .write("queue.checkpoint-write", other, &bytes, 0)
            .and_then(|()| self.sync("queue.checkpoint-sync", other));
        if written.is_err() {
            // Nobody may act on what a crash could take back: the current file is to count.
            let _ = self.files[other].write_all_at(&[0; HEADER_BYTES], 0);
            return written;
        }
        self.generation += 1;
        self.current = other;
        (self.next, self.end) = (begin, end);
        self.in_doubt = false;
        self.looked = progress.looked();
        Ok(())
    }

    /// Makes a file as long as that, with zeros. Nothing is synced, and nothing of what stands in it changes.
    fn grow(&mut self, slot: usize, bytes: u64) -> std::io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES.min(bytes.saturating_sub(self.lengths[slot])) as usize];
        while self.lengths[slot] < bytes {
            let chunk = (bytes - self.lengths[slot]).min(ZEROS_BYTES) as usize;
            let written = self.files[slot].write_all_at(&zeros[..chunk], self.lengths[slot]);
            if written.is_err() {
                self.lengths[slot] = self.files[slot].length().unwrap_or(self.lengths[slot]);
            }
            written?;
            self.lengths[slot] += chunk as u64;
        }
        Ok(())
    }

    fn write(&self, name: &'static str, slot: usize, bytes: &[u8], at: u64) -> Result<(), QueueError> {
        injected(name)
            .and_then(|()| self.files[slot].write_all_at(bytes, at))
            .map_err(io("write", &self.paths[slot]))
    }

    fn sync(&self, name: &'static str, slot: usize) -> Result<(), QueueError> {
        injected(name).and_then(|()| self.files[slot].sync()).map_err(io("sync", &self.paths[slot]))
    }
}

fn injected(name: &'static str) -> std::io::Result<()> {
    if failpoint::hit(name) { Err(std::io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
}

/// A new group's file, with as much of a journal as the disk lets it have.
fn create(
    storage: &Storage,
    path: &Path,
    log_id: u64,
    generation: u64,
    start: u64,
) -> Result<(), QueueError> {
    let mut room = JOURNAL_BYTES_MIN;
    loop {
        let mut bytes = encode_checkpoint(&Progress::through(start));
        seal(&mut bytes, log_id, generation, room);
        bytes.resize(bytes.len() + room as usize, 0);
        match storage.replace(path, &bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull && room > BLOCK => room = BLOCK,
            written => return written.map_err(io("create", path)),
        }
    }
}

/// What a group has finished, whoever holds it: what is being written at this moment may be seen or not.
pub(crate) fn load(storage: &Storage, directory: &Path, log_id: u64) -> Result<Progress, QueueError> {
    let mut tries = 1;
    loop {
        match read(storage, directory, log_id, false) {
            Err(QueueError::Corrupt { .. }) if tries < READ_TRIES_MAX => tries += 1,
            loaded => return loaded.map(|loaded| loaded.progress),
        }
    }
}

/// As [`load`], and durable when it returns: what a process has written and not synced may be lost with the machine.
pub(crate) fn load_settled(storage: &Storage, directory: &Path, log_id: u64) -> Result<Progress, QueueError> {
    let paths = paths(directory);
    // Opened before they are read: an error that anybody's sync meets from now on is one of ours too.
    let open = |path: &PathBuf| match storage.open(path, Access::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).map_err(io("open", path)),
    };
    let files = [open(&paths[0])?, open(&paths[1])?];
    let progress = load(storage, directory, log_id)?;
    for (file, path) in files.iter().zip(&paths) {
        let Some(file) = file else { continue };
        injected("queue.retire-sync").and_then(|()| file.sync()).map_err(io("sync", path))?;
    }
    Ok(progress)
}

/// As [`load`], for `queue verify`: with the proofs of [`load_checked`], of which those that are gone at a second look were writes
/// under way.
pub(crate) fn verify(storage: &Storage, directory: &Path, log_id: u64) -> Result<Progress, QueueError> {
    let mut tries = 1;
    loop {
        match load_checked(storage, directory, log_id) {
            Err(QueueError::Corrupt { .. }) if tries < READ_TRIES_MAX => tries += 1,
            loaded => return loaded.map(|loaded| loaded.progress),
        }
    }
}

/// What counts, and whether anything proves that more was acknowledged. Only while nobody writes.
fn load_checked(storage: &Storage, directory: &Path, log_id: u64) -> Result<Loaded, QueueError> {
    read(storage, directory, log_id, true)
}

fn read(storage: &Storage, directory: &Path, log_id: u64, checked: bool) -> Result<Loaded, QueueError> {
    let paths = paths(directory);
    let (mut best, mut others, mut version) = (None::<Found>, Vec::new(), None);
    let mut other_unsound = false;
    for (slot, path) in paths.iter().enumerate() {
        let bytes = match storage.read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io("read", path)(error)),
        };
        match decode_checkpoint(&bytes, log_id) {
            Some(checkpoint) => {
                let is_newer =
                    best.as_ref().is_none_or(|(_, _, other)| other.generation < checkpoint.generation);
                if is_newer {
                    let older = best.replace((slot, bytes, checkpoint));
                    others.extend(older.map(|(slot, bytes, _)| (slot, bytes)));
                } else {
                    others.push((slot, bytes));
                }
            }
            None => {
                version = version.or_else(|| Some((slot, other_version(&bytes)?)));
                other_unsound = true;
                others.push((slot, bytes));
            }
        }
    }
    let Some((slot, bytes, checkpoint)) = best else {
        return Err(match version {
            Some((slot, found)) => {
                let path = paths[slot].clone();
                QueueError::OtherVersion { path, found, supported: PROGRESS_VERSION }
            }
            None => corrupt(&paths[0], 0, "neither of the group's two checkpoints is sound"),
        });
    };
    let (generation, mut progress) = (checkpoint.generation, checkpoint.progress);
    let looked = progress.looked();
    let end = checkpoint.journal.end.min(bytes.len() as u64);
    let mut last = 0..checkpoint.journal.start.min(end) as usize;
    while let Some(batch) = check_batch(&bytes[last.end..end as usize], log_id, last.end as u64)
        && batch.generation == generation
        && last.end as u64 + batch.bytes <= end
    {
        let at = last.end;
        let changes = decode_batch(&bytes[at..])
            .ok_or_else(|| corrupt(&paths[slot], at as u64, "a sound batch of changes that do not decode"))?;
        changes.iter().for_each(|change| progress.apply(change, |_| {}));
        last = at..at + batch.bytes as usize;
    }
    if checked {
        let behind = &bytes[..end as usize];
        prove_none(&paths[slot], behind, log_id, last.end, generation)?;
        // What follows a checkpoint that is lost, whatever stands in its place now.
        for (slot, bytes) in &others {
            prove_none(&paths[*slot], bytes, log_id, 0, generation + 1)?;
        }
        if peek_generation(&behind[last.end..], log_id) == Some(generation) {
            failpoint::hit("queue.journal-torn");
        }
    }
    Ok(Loaded { progress, generation, slot, looked, bytes, last, end, other_unsound })
}

/// A sound file, and the slot that it is.
type Found = (usize, Vec<u8>, Checkpoint);

/// A sound batch of that generation or a later one, behind what was read of a file, proves that more had been acknowledged.
fn prove_none(path: &Path, bytes: &[u8], log_id: u64, end: usize, generation: u64) -> Result<(), QueueError> {
    for at in (end..bytes.len()).step_by(BLOCK_BYTES) {
        if check_batch(&bytes[at..], log_id, at as u64).is_some_and(|batch| batch.generation >= generation) {
            let found = format!(
                "nothing sound, and the batch of changes at byte {at} proves that it was acknowledged"
            );
            return Err(corrupt(path, end as u64, found));
        }
    }
    Ok(())
}

fn paths(directory: &Path) -> [PathBuf; 2] {
    [directory.join("offset.0"), directory.join("offset.1")]
}
