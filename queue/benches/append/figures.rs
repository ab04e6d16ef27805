//! What one side of one cell did, and how it is printed. Measures nothing.

use std::time::Duration;

use hdrhistogram::Histogram;

/// One side's sums over its slices of a cell.
pub(crate) struct Outcome {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    /// Nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// Of the whole process that appends, the client in it included; of redis-server.
    pub(crate) cpu: Duration,
    /// Of the log's own threads alone.
    pub(crate) cpu_log: Duration,
    /// Bytes of batches.
    pub(crate) written: u64,
    /// Bytes that the process sent to the disk, zeroed segments included.
    pub(crate) written_all: u64,
    pub(crate) batches: u64,
    /// Nanoseconds: the ring was empty, gathering, write and sync, releasing.
    pub(crate) stages: [u64; 4],
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            records: 0,
            seconds: 0.0,
            latencies: Histogram::new_with_max(60_000_000_000, 3).unwrap(),
            cpu: Duration::ZERO,
            cpu_log: Duration::ZERO,
            written: 0,
            written_all: 0,
            batches: 0,
            stages: [0; 4],
        }
    }
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    pub(crate) fn batch_bytes(&self) -> usize {
        (self.written / self.batches.max(1)).max(1).next_multiple_of(4096) as usize
    }

    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn quantiles(&self) -> String {
        [0.5, 0.99, 0.999, 1.0].map(|quantile| format!("{:.0}", self.micros(quantile))).join(" / ")
    }

    fn stages(&self) -> String {
        self.stages
            .map(|nanos| format!("{:.0}", nanos as f64 / 1000.0 / self.batches.max(1) as f64))
            .join(" + ")
    }

    fn cpu_a_record(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.records.max(1) as f64
    }
}

/// The bare loop's syncs: as many bytes each as a batch has on average.
#[derive(Default)]
pub(crate) struct Device {
    pub(crate) syncs: u64,
    pub(crate) seconds: f64,
    pub(crate) nanos: Vec<u64>,
}

impl Device {
    pub(crate) fn rate(&self) -> f64 {
        self.syncs as f64 / self.seconds
    }

    pub(crate) fn p50_micros(&self) -> f64 {
        let mut nanos = self.nanos.clone();
        nanos.sort_unstable();
        nanos.get(nanos.len() / 2).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    }
}

pub(crate) fn header() {
    println!(
        "| bytes | in flight | records/s | p50 / p99 / p99.9 / max µs | CPU µs a record (log's threads) | written per payload byte (with zeroed segments) | KiB a batch | batches/s | µs of one: ring empty + gather + write and sync + release | device, same size: syncs/s, p50 µs | flush efficiency | p99 ÷ sync | Redis records/s | its p50 / p99 / p99.9 / max µs | its CPU µs a record | ratio |"
    );
    println!("|{}", " --- |".repeat(16));
}

pub(crate) fn row(bytes: usize, in_flight: usize, ours: &Outcome, device: &Device, redis: &Outcome) {
    let payload = (ours.records.max(1) * bytes as u64) as f64;
    let batches = ours.batches as f64 / ours.seconds;
    println!(
        "| {bytes} | {in_flight} | {:.0} | {} | {:.2} ({:.2}) | {:.2} ({:.2}) | {:.0} | {batches:.0} | {} | {:.0}, {:.0} | {:.2} | {:.1} | {:.0} | {} | {:.2} | {:.1} |",
        ours.rate(),
        ours.quantiles(),
        ours.cpu_a_record(),
        ours.cpu_log.as_secs_f64() * 1e6 / ours.records.max(1) as f64,
        ours.written as f64 / payload,
        ours.written_all as f64 / payload,
        ours.written as f64 / 1024.0 / ours.batches.max(1) as f64,
        ours.stages(),
        device.rate(),
        device.p50_micros(),
        batches / device.rate(),
        ours.micros(0.99) / device.p50_micros(),
        redis.rate(),
        redis.quantiles(),
        redis.cpu_a_record(),
        ours.rate() / redis.rate(),
    );
}
