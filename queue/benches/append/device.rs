//! The disk alone: a loop that does nothing but write and sync blocks of one size into a file that was zeroed before.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::figures::Device;

const FILE_BYTES: usize = 64 << 20;
const BLOCK_BYTES: usize = 4096;

pub(crate) struct Bare {
    file: File,
    direct: bool,
    memory: Vec<u8>,
    at: usize,
}

impl Bare {
    /// `direct`: O_DIRECT and O_DSYNC, as the log does where that is faster; otherwise a write and fdatasync.
    pub(crate) fn new(directory: &Path, direct: bool) -> Self {
        let path = directory.join("bare");
        let zeros = vec![0; FILE_BYTES];
        std::fs::write(&path, &zeros).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let mut options = OpenOptions::new();
        options.write(true);
        if direct {
            options.custom_flags(libc::O_DIRECT | libc::O_DSYNC);
        }
        Self { file: options.open(&path).unwrap(), direct, memory: vec![7; (4 << 20) + BLOCK_BYTES], at: 0 }
    }

    pub(crate) fn run(&mut self, bytes: usize, length: Duration, device: &mut Device) {
        let bytes = bytes.clamp(BLOCK_BYTES, 4 << 20);
        let aligned = self.memory.as_ptr().align_offset(BLOCK_BYTES);
        let started = Instant::now();
        let mut last = started;
        while last.duration_since(started) < length {
            if self.at + bytes > FILE_BYTES {
                self.at = 0;
            }
            self.file.write_all_at(&self.memory[aligned..aligned + bytes], self.at as u64).unwrap();
            if !self.direct {
                self.file.sync_data().unwrap();
            }
            self.at += bytes;
            let now = Instant::now();
            device.nanos.push(now.duration_since(last).as_nanos() as u64);
            device.syncs += 1;
            last = now;
        }
        device.seconds += last.duration_since(started).as_secs_f64();
    }
}
