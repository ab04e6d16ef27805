//! The queue's metric names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TopicLabel {
    pub(crate) topic: String,
}

/// One group of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct GroupLabel {
    pub(crate) topic: String,
    pub(crate) group: String,
}

/// All topics' metrics.
#[derive(Debug, Clone)]
pub(crate) struct QueueMetrics {
    records: Family<TopicLabel, Counter>,
    batches: Family<TopicLabel, Counter>,
    written: Family<TopicLabel, Counter>,
    refused: Family<TopicLabel, Counter>,
    poisoned: Family<TopicLabel, Gauge>,
    backlog: Family<TopicLabel, Gauge>,
    segments_made: Family<TopicLabel, Counter>,
    segments_recycled: Family<TopicLabel, Counter>,
    rewritten: Family<TopicLabel, Counter>,
    kept_bytes: Family<TopicLabel, Gauge>,
    kept_cut: Family<TopicLabel, Counter>,
    cut_records: Family<GroupLabel, Counter>,
    sync_seconds: Family<TopicLabel, Histogram, fn() -> Histogram>,
    append_seconds: Family<TopicLabel, Histogram, fn() -> Histogram>,
}

/// One topic's metrics.
#[derive(Debug, Clone)]
pub(crate) struct TopicMetrics {
    pub(crate) records: Counter,
    pub(crate) batches: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) refused: Counter,
    pub(crate) poisoned: Gauge,
    pub(crate) backlog: Gauge,
    pub(crate) segments_made: Counter,
    pub(crate) segments_recycled: Counter,
    pub(crate) rewritten: Counter,
    pub(crate) kept_bytes: Gauge,
    pub(crate) kept_cut: Counter,
    topic: String,
    cut_records: Family<GroupLabel, Counter>,
    pub(crate) sync_seconds: Histogram,
    pub(crate) append_seconds: Histogram,
}

fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 16))
}

impl QueueMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            records: Family::default(),
            batches: Family::default(),
            written: Family::default(),
            refused: Family::default(),
            poisoned: Family::default(),
            backlog: Family::default(),
            segments_made: Family::default(),
            segments_recycled: Family::default(),
            rewritten: Family::default(),
            kept_bytes: Family::default(),
            kept_cut: Family::default(),
            cut_records: Family::default(),
            sync_seconds: Family::new_with_constructor(latencies),
            append_seconds: Family::new_with_constructor(latencies),
        };
        let m = &metrics;
        registry.register("floodgate_queue_records", "Records made durable", m.records.clone());
        registry.register("floodgate_queue_batches", "Batches written and synced", m.batches.clone());
        registry.register("floodgate_queue_written_bytes", "Bytes written to the log", m.written.clone());
        registry.register("floodgate_queue_refused_permits", "Permits refused", m.refused.clone());
        registry.register("floodgate_queue_poisoned", "1 after a failed sync", m.poisoned.clone());
        registry.register("floodgate_queue_backlog_records", "Behind, slowest group", m.backlog.clone());
        registry.register("floodgate_queue_segments_made", "Segments zeroed", m.segments_made.clone());
        registry.register(
            "floodgate_queue_segments_recycled",
            "Segments used again",
            m.segments_recycled.clone(),
        );
        registry.register(
            "floodgate_queue_rewritten_records",
            "Waiting records copied to the log's end",
            m.rewritten.clone(),
        );
        registry.register(
            "floodgate_queue_drained_kept_bytes",
            "Segments that all groups are past and that stay for a while",
            m.kept_bytes.clone(),
        );
        registry.register(
            "floodgate_queue_drained_cut_early_segments",
            "Drained segments that went before queue.keep_drained_s was over",
            m.kept_cut.clone(),
        );
        registry.register(
            "floodgate_queue_cut_off_records",
            "Records that a group will never see, since it was too far behind",
            m.cut_records.clone(),
        );
        registry.register(
            "floodgate_queue_sync_duration_seconds",
            "Write and sync of a batch",
            m.sync_seconds.clone(),
        );
        registry.register(
            "floodgate_append_duration_seconds",
            "Append to acknowledgement, one in 16",
            m.append_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn topic(&self, name: &str) -> TopicMetrics {
        let label = TopicLabel { topic: name.to_owned() };
        TopicMetrics {
            records: self.records.get_or_create(&label).clone(),
            batches: self.batches.get_or_create(&label).clone(),
            written_bytes: self.written.get_or_create(&label).clone(),
            refused: self.refused.get_or_create(&label).clone(),
            poisoned: self.poisoned.get_or_create(&label).clone(),
            backlog: self.backlog.get_or_create(&label).clone(),
            segments_made: self.segments_made.get_or_create(&label).clone(),
            segments_recycled: self.segments_recycled.get_or_create(&label).clone(),
            rewritten: self.rewritten.get_or_create(&label).clone(),
            kept_bytes: self.kept_bytes.get_or_create(&label).clone(),
            kept_cut: self.kept_cut.get_or_create(&label).clone(),
            topic: name.to_owned(),
            cut_records: self.cut_records.clone(),
            sync_seconds: self.sync_seconds.get_or_create(&label).clone(),
            append_seconds: self.append_seconds.get_or_create(&label).clone(),
        }
    }
}

impl TopicMetrics {
    /// Of the records that `group` was cut off from.
    pub(crate) fn cut_records(&self, group: &str) -> Counter {
        let label = GroupLabel { topic: self.topic.clone(), group: group.to_owned() };
        self.cut_records.get_or_create(&label).clone()
    }
}
