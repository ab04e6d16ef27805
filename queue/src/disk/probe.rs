//! Measures how fast a disk makes bytes durable, by both methods. Leaves nothing behind.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::files::io;
use crate::port::QueueError;
use crate::storage::{Access, AlignedBuffer, BLOCK_BYTES, Storage, SyncMethod};

/// Writes of each size and method in a probe.
const PROBE_ROUNDS: usize = 24;

/// Sizes of the writes of a probe: the smallest batch, and one of a spike.
const PROBE_BYTES: [usize; 2] = [BLOCK_BYTES, 128 * 1024];

/// What the disk does by each method: medians.
#[derive(Debug, Clone, Copy)]
pub struct ProbedDisk {
    /// A write and `fdatasync` over zeros, of 4 KiB and of 128 KiB.
    pub data_sync: [Duration; 2],
    /// An `O_DIRECT | O_DSYNC` write of the same; `None` where the file system cannot.
    pub direct_write: Option<[Duration; 2]>,
    pub(crate) method: SyncMethod,
}

impl ProbedDisk {
    /// The name of the faster method.
    pub fn chosen(&self) -> &'static str {
        match self.method {
            SyncMethod::DataSync => "fdatasync",
            SyncMethod::DirectWrite => "O_DIRECT|O_DSYNC",
        }
    }
}

/// Measures both methods, taking turns, on a file that is removed again. The choice is for ever: the methods may be equals with one
/// block, the batch of a quiet hour, and far apart with the batches of a spike.
pub(crate) fn probe(storage: &Storage, directory: &Path) -> Result<ProbedDisk, QueueError> {
    if !storage.is_real() {
        let data_sync = [Duration::ZERO; 2];
        return Ok(ProbedDisk { data_sync, direct_write: None, method: SyncMethod::DataSync });
    }
    let path = directory.join("probe.draft");
    let result = (|| {
        let mut batch = AlignedBuffer::new(PROBE_BYTES[1]);
        let file = storage.open(&path, Access::Write)?;
        for region in 0..2 {
            file.write_all_at(batch.bytes(), region * PROBE_BYTES[1] as u64)?;
        }
        file.sync()?;
        batch.bytes_mut().fill(1);
        let data = storage.open(&path, Access::Append(SyncMethod::DataSync))?;
        let direct = storage.open(&path, Access::Append(SyncMethod::DirectWrite)).ok();
        let mut data_sync = [[Duration::ZERO; PROBE_ROUNDS]; 2];
        let mut direct_write = data_sync;
        let mut direct_works = direct.is_some();
        for round in 0..PROBE_ROUNDS {
            for (size, bytes) in PROBE_BYTES.iter().enumerate() {
                let started = Instant::now();
                data.write_all_at(&batch.bytes()[..*bytes], 0)?;
                data.sync()?;
                data_sync[size][round] = started.elapsed();
                if let Some(direct) = &direct {
                    // Not where the other method has left pages in the cache.
                    let started = Instant::now();
                    let wrote = direct.write_all_at(&batch.bytes()[..*bytes], PROBE_BYTES[1] as u64);
                    direct_write[size][round] = started.elapsed();
                    direct_works &= wrote.is_ok();
                }
            }
        }
        let data_sync = data_sync.map(median);
        let direct_write = direct_works.then(|| direct_write.map(median));
        let total = |medians: [Duration; 2]| medians[0] + medians[1];
        let method = match direct_write {
            Some(direct) if total(direct) <= total(data_sync) => SyncMethod::DirectWrite,
            _ => SyncMethod::DataSync,
        };
        Ok(ProbedDisk { data_sync, direct_write, method })
    })();
    let removed = storage.remove(&path);
    let probed = result.map_err(io("probe", &path))?;
    removed.map_err(io("remove", &path))?;
    Ok(probed)
}

fn median(mut times: [Duration; PROBE_ROUNDS]) -> Duration {
    times.sort_unstable();
    times[PROBE_ROUNDS / 2]
}
