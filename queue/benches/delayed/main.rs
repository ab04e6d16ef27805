//! Delayed messages beside few and beside many others: `cargo bench -p queue --bench delayed [-- SIZE… --seconds N]`.
//!
//! One table: what an acknowledgement and a refusal (`nack`) cost in CPU and in bytes sent to the disk, what a waiting record takes of
//! memory, how much the files are beside the frames of what is not delivered, how many records were copied for each that was
//! appended, and how long an open takes, up to the first pull, with the memory that it needs at most. For each record that waits, a
//! day to 30 days, four others are delivered and finished. `--seconds` bounds each part of a row; a part that takes longer says so.
//! `FLOODGATE_BENCH_DIR` chooses the disk.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod measured;
mod story;

use std::path::PathBuf;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments[at + 1].parse::<usize>().ok()
    };
    let seconds = number("--seconds").unwrap_or(300);
    // On the disk that the build is on, not on a tmpfs.
    let base = std::env::var_os("FLOODGATE_BENCH_DIR").map_or_else(|| ".".into(), PathBuf::from);
    if let Some(size) = number("--row") {
        let directory = tempfile::Builder::new().prefix("queue-bench").tempdir_in(base).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let bound = Duration::from_secs(seconds as u64);
        println!("| {size} | {} |", runtime.block_on(story::tell(directory.path(), size, bound)).join(" | "));
        return;
    }
    let mut sizes: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(at) = sizes.iter().position(|argument| *argument == "--seconds") {
        sizes.drain(at..at + 2);
    }
    if sizes.is_empty() {
        sizes = vec!["1000", "100000", "1000000"];
    }
    println!(
        "{} bytes a record with its frame, segments of {} MiB; load {}",
        story::FRAME_BYTES,
        story::SEGMENT_BYTES >> 20,
        std::fs::read_to_string("/proc/loadavg").unwrap().trim()
    );
    println!("| undelivered | {} |", story::COLUMNS.join(" | "));
    println!("|{}", " --- |".repeat(story::COLUMNS.len() + 1));
    for size in sizes {
        // In a process of its own: memory that a former one has given back would hide what this one takes.
        let mut row = std::process::Command::new(std::env::current_exe().unwrap());
        row.args(["--row", size, "--seconds", &seconds.to_string()]);
        assert!(row.status().unwrap().success(), "the row of {size} has failed");
    }
}
