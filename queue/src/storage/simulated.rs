//! A disk in memory for the seeded simulation: it outlives the simulated process, and does what disks do at the worst time.
//!
//! What a write changed is *unsynced* until a sync of its file; a [`SimulatedDisk::crash`] reverts any subset of the unsynced
//! sectors, any suffix of the unsynced creations, renames and removals, frees all locks and kills all handles.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Access, Lock, SyncMethod};

/// What a crash may tear a write at, in bytes.
const SECTOR_BYTES: u64 = 512;

type Sector = [u8; SECTOR_BYTES as usize];

/// What goes wrong, and how often in 10,000 calls; all zero is a disk that works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// A read answers EIO.
    pub read_error: u32,
    /// A write answers EIO, having written some of it.
    pub write_error: u32,
    /// A write answers ENOSPC.
    pub no_space: u32,
    /// A write writes less than asked for.
    pub short_write: u32,
    /// A sync answers EIO; what was unsynced counts as clean from then on, as in Linux, written or not.
    pub sync_error: u32,
    /// A sync answers well and does nothing.
    pub lying_sync: u32,
    /// Bytes that all files together may have; 0 is no bound.
    pub capacity_bytes: u64,
}

/// A disk in memory. Clones share it, as restarts of a process share a disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Clone)]
struct Inner {
    random: u64,
    faults: Faults,
    /// Counts crashes: handles of an earlier life are dead.
    life: u64,
    names: BTreeMap<PathBuf, u64>,
    directories: BTreeSet<PathBuf>,
    /// How to undo what was done to the names since the last directory sync.
    undo: Vec<Undo>,
    files: BTreeMap<u64, Inode>,
    next_inode: u64,
    locks: BTreeSet<PathBuf>,
    lies: u64,
}

#[derive(Debug, Clone)]
enum Undo {
    Created(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<u64> },
    Removed { path: PathBuf, inode: u64 },
}

#[derive(Debug, Clone, Default)]
struct Inode {
    length: u64,
    /// What reads see; an absent sector is zeros.
    sectors: BTreeMap<u64, Sector>,
    /// Of each unsynced sector what the platter holds.
    unsynced: BTreeMap<u64, Option<Sector>>,
    /// Of each sector that the system wrongly believes clean what the platter holds.
    forsaken: BTreeMap<u64, Option<Sector>>,
    unsynced_length: Option<u64>,
}

/// A handle on a simulated file.
#[derive(Debug)]
pub(crate) struct SimulatedFile {
    inner: Arc<Mutex<Inner>>,
    inode: u64,
    life: u64,
    access: Access,
}

/// A held simulated lock.
#[derive(Debug)]
pub(crate) struct SimulatedLock {
    inner: Arc<Mutex<Inner>>,
    path: PathBuf,
    life: u64,
}

impl SimulatedDisk {
    /// An empty disk whose faults replay from `seed`.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let inner = Inner {
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            faults,
            life: 0,
            names: BTreeMap::new(),
            directories: BTreeSet::new(),
            undo: Vec::new(),
            files: BTreeMap::new(),
            next_inode: 0,
            locks: BTreeSet::new(),
            lies: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The machine loses power: any subset of the unsynced sectors is lost, all locks are free, old handles are dead.
    pub fn crash(&self) {
        let inner = &mut *self.inner.lock();
        inner.life += 1;
        inner.locks.clear();
        let keep = inner.draw(inner.undo.len() as u64 + 1) as usize;
        for undo in inner.undo.split_off(keep).into_iter().rev() {
            match undo {
                Undo::Created(path) => {
                    inner.names.remove(&path);
                }
                Undo::Renamed { from, to, replaced } => {
                    if let Some(inode) = inner.names.remove(&to) {
                        inner.names.insert(from, inode);
                    }
                    if let Some(inode) = replaced {
                        inner.names.insert(to, inode);
                    }
                }
                Undo::Removed { path, inode } => {
                    inner.names.insert(path, inode);
                }
            }
        }
        inner.undo.clear();
        let mut random = inner.random;
        for inode in inner.files.values_mut() {
            inode.crash(&mut random);
        }
        inner.random = random;
        inner.forget_unnamed();
    }

    /// The process ends and the machine stays up: locks are free, old handles are dead, nothing is lost.
    pub fn kill(&self) {
        let inner = &mut *self.inner.lock();
        inner.life += 1;
        inner.locks.clear();
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.inner.lock().faults = faults;
    }

    /// How many syncs have lied so far.
    pub fn lies(&self) -> u64 {
        self.inner.lock().lies
    }

    /// An independent copy as of now, every handle closed and every lock free.
    pub fn duplicate(&self) -> Self {
        let mut inner = self.inner.lock().clone();
        inner.life += 1;
        inner.locks.clear();
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// All files with their lengths, sorted by path.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let inner = self.inner.lock();
        inner.names.iter().map(|(path, inode)| (path.clone(), inner.files[inode].length)).collect()
    }

    /// A file's content as reads see it; empty if there is none.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let inner = self.inner.lock();
        let Some(inode) = inner.names.get(path).and_then(|inode| inner.files.get(inode)) else {
            return Vec::new();
        };
        let mut bytes = vec![0; inode.length as usize];
        inode.read(0, &mut bytes);
        bytes
    }

    /// Flips one bit on the platter.
    pub fn flip_bit(&self, path: &Path, bit: u64) {
        self.overwrite(path, bit / 8, |byte| byte ^ (1 << (bit % 8)));
    }

    /// Zeroes the file from `from` on, as if its later sectors had never been written.
    pub fn zero_from(&self, path: &Path, from: u64) {
        let end = self.contents(path).len() as u64;
        for offset in from..end {
            self.overwrite(path, offset, |_| 0);
        }
    }

    /// Loses a file.
    pub fn lose(&self, path: &Path) {
        self.inner.lock().names.remove(path);
    }

    fn overwrite(&self, path: &Path, offset: u64, change: impl Fn(u8) -> u8) {
        let inner = &mut *self.inner.lock();
        let Some(inode) = inner.names.get(path).and_then(|inode| inner.files.get_mut(inode)) else {
            return;
        };
        let mut byte = [0];
        inode.read(offset, &mut byte);
        if change(byte[0]) != byte[0] {
            let sector = inode.sectors.entry(offset / SECTOR_BYTES).or_insert([0; SECTOR_BYTES as usize]);
            sector[(offset % SECTOR_BYTES) as usize] = change(byte[0]);
        }
    }

    pub(super) fn create_directory_within(&self, path: &Path) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        if path.parent().is_none_or(|parent| !inner.directories.contains(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.directories.insert(path.to_path_buf());
        Ok(())
    }

    pub(super) fn create_directory(&self, path: &Path) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        inner.directories.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner.lock();
        if !inner.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let paths = inner.names.keys().chain(inner.directories.iter());
        let children = paths.filter(|child| child.parent() == Some(path));
        let names: BTreeSet<String> = children
            .filter_map(|child| child.file_name().map(|name| name.to_string_lossy().into_owned()))
            .collect();
        Ok(names.into_iter().collect())
    }

    pub(super) fn exists(&self, path: &Path) -> io::Result<bool> {
        let inner = self.inner.lock();
        Ok(inner.names.contains_key(path) || inner.directories.contains(path))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        let inode = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        let replaced = inner.names.insert(to.to_path_buf(), inode);
        inner.undo.push(Undo::Renamed { from: from.to_path_buf(), to: to.to_path_buf(), replaced });
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        let inode = inner.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        inner.undo.push(Undo::Removed { path: path.to_path_buf(), inode });
        Ok(())
    }

    pub(super) fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        let doomed: Vec<PathBuf> =
            inner.names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        for name in doomed {
            inner.names.remove(&name);
        }
        inner.directories.retain(|directory| !directory.starts_with(path));
        Ok(())
    }

    /// The journal is one for the whole disk, in order, as ext4's.
    pub(super) fn sync_directory(&self) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        if inner.strikes(inner.faults.sync_error) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inner.undo.clear();
        inner.forget_unnamed();
        Ok(())
    }

    pub(super) fn open(&self, path: &Path, access: Access) -> io::Result<SimulatedFile> {
        let inner = &mut *self.inner.lock();
        let inode = match inner.names.get(path) {
            Some(inode) => *inode,
            None if access == Access::Write => {
                if !path.parent().is_some_and(|parent| inner.directories.contains(parent)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                inner.next_inode += 1;
                let inode = inner.next_inode;
                inner.files.insert(inode, Inode::default());
                inner.names.insert(path.to_path_buf(), inode);
                inner.undo.push(Undo::Created(path.to_path_buf()));
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(SimulatedFile { inner: Arc::clone(&self.inner), inode, life: inner.life, access })
    }

    pub(super) fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let inner = &mut *self.inner.lock();
        if !inner.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        let lock =
            SimulatedLock { inner: Arc::clone(&self.inner), path: path.to_path_buf(), life: inner.life };
        Ok(Some(Lock::Simulated { _lock: lock }))
    }
}

impl Inner {
    fn draw(&mut self, below: u64) -> u64 {
        draw(&mut self.random) % below.max(1)
    }

    fn strikes(&mut self, in_ten_thousand: u32) -> bool {
        in_ten_thousand > 0 && self.draw(10_000) < u64::from(in_ten_thousand)
    }

    /// Frees the memory of files that have no name and whose removal is durable.
    fn forget_unnamed(&mut self) {
        let mut named: BTreeSet<u64> = self.names.values().copied().collect();
        named.extend(self.undo.iter().filter_map(|undo| match undo {
            Undo::Removed { inode, .. } => Some(*inode),
            Undo::Renamed { replaced, .. } => *replaced,
            Undo::Created(_) => None,
        }));
        self.files.retain(|inode, _| named.contains(inode));
    }
}

impl Inode {
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = (at % SECTOR_BYTES) as usize;
            let bytes = (SECTOR_BYTES as usize - within).min(buffer.len() - done);
            match self.sectors.get(&(at / SECTOR_BYTES)) {
                Some(sector) => {
                    buffer[done..done + bytes].copy_from_slice(&sector[within..within + bytes]);
                }
                None => buffer[done..done + bytes].fill(0),
            }
            done += bytes;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let number = at / SECTOR_BYTES;
            let within = (at % SECTOR_BYTES) as usize;
            let part = &bytes[done..done + (SECTOR_BYTES as usize - within).min(bytes.len() - done)];
            let before = self.sectors.get(&number).copied();
            let platter = self.forsaken.remove(&number).unwrap_or(before);
            self.unsynced.entry(number).or_insert(platter);
            // Pre-zeroed segments stay sparse.
            if before.is_some() || part.iter().any(|byte| *byte != 0) {
                let sector = self.sectors.entry(number).or_insert([0; SECTOR_BYTES as usize]);
                sector[within..within + part.len()].copy_from_slice(part);
            } else if platter.is_none() {
                self.unsynced.remove(&number);
            }
            done += part.len();
        }
        let end = offset + bytes.len() as u64;
        if end > self.length {
            self.unsynced_length.get_or_insert(self.length);
            self.length = end;
        }
    }

    fn crash(&mut self, random: &mut u64) {
        let forsaken = std::mem::take(&mut self.forsaken);
        for (number, platter) in std::mem::take(&mut self.unsynced) {
            if draw(random).is_multiple_of(2) {
                self.revert(number, platter);
            }
        }
        for (number, platter) in forsaken {
            self.revert(number, platter);
        }
        if let Some(length) = self.unsynced_length.take()
            && draw(random).is_multiple_of(2)
        {
            self.length = length;
            self.sectors.retain(|number, _| number * SECTOR_BYTES < length);
        }
    }

    fn revert(&mut self, number: u64, platter: Option<Sector>) {
        match platter {
            Some(sector) => self.sectors.insert(number, sector),
            None => self.sectors.remove(&number),
        };
    }
}

impl SimulatedFile {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let inner = &mut *self.inner.lock();
        if inner.life != self.life || !inner.files.contains_key(&self.inode) {
            return Err(io::Error::other("a handle of a process that crashed"));
        }
        act(inner)
    }

    pub(super) fn length(&self) -> io::Result<u64> {
        self.with(|inner| Ok(inner.files[&self.inode].length))
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|inner| {
            if inner.strikes(inner.faults.read_error) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let inode = &inner.files[&self.inode];
            let bytes = buffer.len().min(inode.length.saturating_sub(offset) as usize);
            inode.read(offset, &mut buffer[..bytes]);
            Ok(bytes)
        })
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if self.access == Access::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let written = self.with(|inner| {
            let used: u64 = inner.files.values().map(|inode| inode.length).sum();
            let grown = (offset + bytes.len() as u64).saturating_sub(inner.files[&self.inode].length);
            let bounded = inner.faults.capacity_bytes > 0 && used + grown > inner.faults.capacity_bytes;
            if (bounded && grown > 0) || inner.strikes(inner.faults.no_space) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let fails = inner.strikes(inner.faults.write_error);
            let short = fails || inner.strikes(inner.faults.short_write);
            let count = if short { 1 + inner.draw(bytes.len() as u64) as usize } else { bytes.len() };
            if let Some(inode) = inner.files.get_mut(&self.inode) {
                inode.write(offset, &bytes[..count]);
            }
            if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(count) }
        })?;
        if self.access == Access::Append(SyncMethod::DirectWrite) {
            self.sync()?;
        }
        Ok(written)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.with(|inner| {
            let fails = inner.strikes(inner.faults.sync_error);
            if inner.strikes(inner.faults.lying_sync) {
                inner.lies += 1;
                return Ok(());
            }
            let mut random = inner.random;
            if let Some(inode) = inner.files.get_mut(&self.inode) {
                for (number, platter) in std::mem::take(&mut inode.unsynced) {
                    if fails && draw(&mut random).is_multiple_of(2) {
                        inode.forsaken.insert(number, platter);
                    }
                }
                inode.unsynced_length = None;
            }
            inner.random = random;
            if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        })
    }
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut inner = self.inner.lock();
        if inner.life == self.life {
            inner.locks.remove(&self.path);
        }
    }
}

/// SplitMix64.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
