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
    /// Nanoseconds: the ring was empty, gathering, sealing, write and sync, releasing.
    pub(crate) stages: [u64; 5],
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
            stages: [0; 5],
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
            .map(|nanos| format!("{:.1}", nanos as f64 / 1000.0 / self.batches.max(1) as f64))
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

    pub(crate) fn mean_micros(&self) -> f64 {
        1e6 / self.rate()
    }

    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        let mut nanos = self.nanos.clone();
        nanos.sort_unstable();
        let at = (nanos.len() as f64 * quantile) as usize;
        nanos.get(at).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    }

    /// The 99th percentile of acknowledgements on these very syncs, one after the other, by a log that costs no time itself:
    /// what is appended at any moment of one sync is acknowledged at the end of the next. As many appends come in a short sync as
    /// in a long one, since so many are in flight.
    pub(crate) fn ideal_p99_micros(&self) -> f64 {
        const MOMENTS: u64 = 16;
        let mut waits = Vec::with_capacity(self.nanos.len() * MOMENTS as usize);
        for pair in self.nanos.windows(2) {
            waits.extend((0..MOMENTS).map(|moment| pair[0] * (2 * moment + 1) / (2 * MOMENTS) + pair[1]));
        }
        waits.sort_unstable();
        waits.get(waits.len() * 99 / 100).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    }
}

pub(crate) fn header() {
    println!(
        "| bytes | in flight | records/s | p50 / p99 / p99.9 / max µs | CPU µs a record (log's threads) | written per payload byte (with zeroed segments) | KiB a batch | batches/s | µs of one: ring empty + gather + seal + write and sync + release | device, same size: syncs/s, mean µs, p50 / p99 µs | flush efficiency | p99 ÷ sync, of a log that costs nothing | Redis records/s | its p50 / p99 / p99.9 / max µs | its CPU µs a record | ratio |"
    );
    println!("|{}", " --- |".repeat(16));
}

pub(crate) fn row(bytes: usize, in_flight: usize, ours: &Outcome, device: &Device, redis: &Outcome) {
    let payload = (ours.records.max(1) * bytes as u64) as f64;
    let batches = ours.batches as f64 / ours.seconds;
    println!(
        "| {bytes} | {in_flight} | {:.0} | {} | {:.2} ({:.2}) | {:.2} ({:.2}) | {:.0} | {batches:.0} | {} | {:.0}, {:.1}, {:.0} / {:.0} | {:.2} | {:.1}, {:.1} | {:.0} | {} | {:.2} | {:.1} |",
        ours.rate(),
        ours.quantiles(),
        ours.cpu_a_record(),
        ours.cpu_log.as_secs_f64() * 1e6 / ours.records.max(1) as f64,
        ours.written as f64 / payload,
        ours.written_all as f64 / payload,
        ours.written as f64 / 1024.0 / ours.batches.max(1) as f64,
        ours.stages(),
        device.rate(),
        device.mean_micros(),
        device.micros(0.5),
        device.micros(0.99),
        batches / device.rate(),
        ours.micros(0.99) / device.micros(0.5),
        device.ideal_p99_micros() / device.micros(0.5),
        redis.rate(),
        redis.quantiles(),
        redis.cpu_a_record(),
        ours.rate() / redis.rate(),
    );
}
