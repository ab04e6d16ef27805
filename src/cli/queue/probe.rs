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
    /// Median of a write and fdatasync.
    fdatasync_us: u64,
    /// Median of a write that is durable when it returns; absent where the file system cannot.
    direct_write_us: Option<u64>,
    faster: &'static str,
}

impl ProbeDisk {
    pub(super) fn run(self, config: &Config) -> Result<(), Failure> {
        let directory = self.directory.unwrap_or_else(|| existing(&config.queue.directory));
        let probed = operator::probe_disk(&directory)?;
        output::one(
            self.json,
            &Probed {
                directory,
                fdatasync_us: operator::micros(probed.data_sync),
                direct_write_us: probed.direct_write.map(operator::micros),
                faster: probed.chosen(),
            },
        )
    }
}

fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|above| above.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}
