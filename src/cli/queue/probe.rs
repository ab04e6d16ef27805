//! `queue probe-disk`: what this disk's promises cost.

use std::path::{Path, PathBuf};

use clap::Args;
use queue::operator;
use serde::Serialize;

use super::super::{Failure, Json, output};
use crate::config::Config;

/// Where to measure.
#[derive(Debug, Args)]
pub(crate) struct ProbeDisk {
    /// A directory on the disk [default: queue.directory, or the nearest directory above it that exists]
    directory: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

#[derive(Serialize)]
struct Probed {
    directory: PathBuf,
    /// Median of a write of 4 KiB and fdatasync.
    fdatasync_us: u64,
    /// The same of 128 KiB.
    fdatasync_128k_us: u64,
    /// Median of a write of 4 KiB that is durable when it returns; absent where the file system cannot.
    direct_write_us: Option<u64>,
    /// The same of 128 KiB.
    direct_write_128k_us: Option<u64>,
    faster: &'static str,
}

impl ProbeDisk {
    pub(super) fn run(self, config: &Config) -> Result<(), Failure> {
        let directory = self.directory.unwrap_or_else(|| existing(&config.queue.directory));
        let probed = operator::probe_disk(&directory)?;
        let [data_sync, data_sync_128k] = probed.data_sync.map(operator::micros);
        let direct_write = probed.direct_write.map(|medians| medians.map(operator::micros));
        output::one(
            self.json,
            &Probed {
                directory,
                fdatasync_us: data_sync,
                fdatasync_128k_us: data_sync_128k,
                direct_write_us: direct_write.map(|[small, _]| small),
                direct_write_128k_us: direct_write.map(|[_, large]| large),
                faster: probed.chosen(),
            },
        )
    }
}

fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|above| above.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}
