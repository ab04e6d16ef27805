//! How metrics are written out: OpenMetrics 1.0, or Prometheus' older text 0.0.4 for those who ask for that alone. Counts nothing.

use std::fmt::{self, Write};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The media type and the text, in the form that `accept` asks for.
///
/// # Errors
/// A metric that cannot be written.
pub fn write(registry: &Registry, accept: Option<&str>) -> Result<(&'static str, String), fmt::Error> {
    let mut metrics = String::new();
    text::encode(&mut metrics, registry)?;
    if accept.is_some_and(wants_text) { Ok((TEXT, as_text(&metrics)?)) } else { Ok((OPEN_METRICS, metrics)) }
}

/// A reader of both, or one that does not say, gets the newer one.
fn wants_text(accept: &str) -> bool {
    let accept = accept.to_ascii_lowercase();
    accept.contains("text/plain") && !accept.contains("application/openmetrics-text")
}

/// There a counter's family has its samples' name, there are no units, and nothing marks the end.
fn as_text(metrics: &str) -> Result<String, fmt::Error> {
    let mut written = String::with_capacity(metrics.len());
    let mut help = "";
    for line in metrics.lines() {
        if line.starts_with("# HELP ") {
            // It comes before the type, which alone says what the family is called.
            help = line;
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.rsplit_once(' ').ok_or(fmt::Error)?;
            let total = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some(words) = help.strip_prefix("# HELP ").and_then(|help| help.strip_prefix(name)) {
                writeln!(written, "# HELP {name}{total}{words}")?;
            }
            writeln!(written, "# TYPE {name}{total} {kind}")?;
        } else if !line.starts_with('#') {
            writeln!(written, "{line}")?;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Unit;

    #[test]
    fn each_scraper_gets_what_it_asks_for() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        counter.inc();
        registry.register("made", "Things made", counter);
        registry.register("open", "Open now", Gauge::<i64>::default());
        let seconds = Histogram::new([1.0]);
        seconds.observe(0.5);
        registry.register_with_unit("took", "How long", Unit::Seconds, seconds);
        for accept in
            [None, Some("*/*"), Some("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")]
        {
            let (kind, text) = write(&registry, accept).expect("written");
            assert_eq!(kind, OPEN_METRICS, "{accept:?}");
            assert!(text.contains("# TYPE made counter\n") && text.ends_with("# EOF\n"), "{text}");
        }
        let (kind, text) = write(&registry, Some("text/plain; version=0.0.4")).expect("written");
        assert_eq!(kind, TEXT);
        assert_eq!(
            text,
            "# HELP made_total Things made.\n# TYPE made_total counter\nmade_total 1\n\
             # HELP open Open now.\n# TYPE open gauge\nopen 0\n\
             # HELP took_seconds How long.\n# TYPE took_seconds histogram\ntook_seconds_sum 0.5\ntook_seconds_count 1\n\
             took_seconds_bucket{le=\"1.0\"} 1\ntook_seconds_bucket{le=\"+Inf\"} 1\n"
        );
    }
}
