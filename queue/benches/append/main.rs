//! Durable appends, in process, beside the bare disk and beside Redis Streams: `cargo bench -p queue [-- quick]`.
//!
//! The three take turns in short slices of one run, so that whatever else the machine does meets all of them. Flush efficiency is
//! the log's batches a second against the syncs a second that a bare loop reaches with writes of the mean batch's size; *p99 ÷
//! sync* is against that loop's median. `FLOODGATE_BENCH_DIR` chooses the disk.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod device;
mod figures;
mod log;
mod streams;

use std::path::PathBuf;
use std::time::Duration;

use figures::{Device, Outcome};
use queue::operator;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let (rounds, slice_ms) = if has("quick") { (3, 200) } else { (8, 600) };
    let number = |name: &str| {
        let value = arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.parse::<usize>().unwrap())
    };
    let (only_bytes, only_in_flight) = (number("bytes"), number("in-flight"));
    // On the disk that the build is on, not on a tmpfs.
    let base = std::env::var_os("FLOODGATE_BENCH_DIR").map_or_else(|| ".".into(), PathBuf::from);
    let directory = tempfile::Builder::new().prefix("queue-bench").tempdir_in(base).unwrap();
    let place = directory.path().join("log");
    drop(log::Log::open(&place));
    let probed = operator::probe_disk(directory.path()).unwrap();
    // What the log has chosen at its first open is in its identity file.
    let direct = std::fs::read(place.join("floodgate-queue")).unwrap()[10] == 1;
    println!(
        "one sync of 4 and of 128 KiB: fdatasync {:?} µs, O_DIRECT|O_DSYNC {:?} µs; the log uses {}; {} slices of {slice_ms} ms; load {}",
        probed.data_sync.map(operator::micros),
        probed.direct_write.map(|medians| medians.map(operator::micros)),
        if direct { "O_DIRECT|O_DSYNC" } else { "fdatasync" },
        rounds,
        std::fs::read_to_string("/proc/loadavg").unwrap().trim(),
    );
    figures::header();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut bare = device::Bare::new(directory.path(), direct);
    let redis_directory = directory.path().join("redis");
    std::fs::create_dir_all(&redis_directory).unwrap();
    let mut streams = streams::Streams::start(&redis_directory);
    let slice = Duration::from_millis(slice_ms);
    let mut worst = Vec::new();
    for bytes in [100, 200, 300] {
        for in_flight in [1, 64, 1024, 4096] {
            if only_bytes.is_some_and(|only| only != bytes)
                || only_in_flight.is_some_and(|only| only != in_flight)
            {
                continue;
            }
            let mut log = log::Log::open(&place);
            let mut warm = Outcome::default();
            runtime.block_on(log.run(bytes, in_flight, slice, &mut warm));
            log.worst = None;
            let (mut ours, mut redis, mut device) =
                (Outcome::default(), Outcome::default(), Device::default());
            let mut batch_bytes = warm.batch_bytes();
            for _ in 0..rounds {
                bare.run(batch_bytes, slice / 2, &mut device);
                runtime.block_on(log.run(bytes, in_flight, slice, &mut ours));
                streams.run(bytes, in_flight, slice / 2, &mut redis);
                batch_bytes = ours.batch_bytes();
            }
            figures::row(bytes, in_flight, &ours, &device, &redis);
            worst.extend(runtime.block_on(log.shutdown()));
        }
    }
    worst.iter().for_each(log::Worst::explain);
    runtime.block_on(log::Log::reopen(&place, if has("quick") { 300_000 } else { 3_000_000 }));
    println!(
        "memory of this process at most {} MiB, of which the log's ring {} MiB and the bare loop's buffers {} MiB; load {}",
        log::memory_peak_mib(),
        log::RING_BYTES >> 20,
        68,
        std::fs::read_to_string("/proc/loadavg").unwrap().trim(),
    );
}
