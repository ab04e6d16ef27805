//! The report as one self-contained HTML page: the table, and what happened over time as inline SVG.

use std::fmt::Write as _;

use crate::report::Report;
use crate::tally::{SLICE, Slice};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
const POINTS_MAX: usize = 450;

struct Series {
    name: &'static str,
    colour: &'static str,
    values: Vec<f64>,
}

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let window = busy(report);
    // All charts share one axis, however late the last row came.
    let slices: Vec<Slice> =
        window.clone().map(|index| report.slices.get(index).copied().unwrap_or_default()).collect();
    let of = |name, colour, read: fn(&Slice) -> u32| Series {
        name,
        colour,
        values: slices.iter().map(|slice| f64::from(read(slice))).collect(),
    };
    let per_slice = chart(
        "Presses and answers per 100 ms",
        &[
            of("pressed", "#4a5568", |slice| slice.sent),
            of("202", "#2f855a", |slice| slice.accepted),
            of("sold-out", "#c05621", |slice| slice.sold_out),
            of("other refusals", "#6b46c1", |slice| slice.other_refusals),
            of("no answer", "#c53030", |slice| slice.unanswered),
        ],
    );
    let promised = running_sum(report.slices.iter().map(|slice| slice.promised));
    let drained = running_sum(report.drained.iter().copied());
    // A sum stays where it ended.
    let cut = |values: Vec<f64>| {
        let last = values.last().copied().unwrap_or(0.0);
        values.into_iter().chain(std::iter::repeat(last)).take(window.end).skip(window.start).collect()
    };
    let orders = chart(
        "Orders: promised, and in the database",
        &[
            Series { name: "promised (202)", colour: "#2f855a", values: cut(promised) },
            Series { name: "rows", colour: "#2b6cb0", values: cut(drained) },
        ],
    );
    let backlog = chart(
        "Backlog (records not yet drained)",
        &[Series {
            name: "backlog",
            colour: "#2b6cb0",
            values: sampled(slices.iter().map(|slice| slice.backlog)),
        }],
    );
    let colour = if report.verdict == "good" { "#2f855a" } else { "#c53030" };
    format!(
        r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>loadtest {sale}: {verdict}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1a202c}}
pre{{font-size:12px;background:#f7fafc;padding:1rem;overflow-x:auto}}svg{{width:100%;height:auto}}h2{{font-size:1rem}}
text{{font:11px system-ui,sans-serif;fill:#4a5568}}</style>
<h1>{sale}: <span style="color:{colour}">{verdict}</span></h1>
<pre>{table}</pre>
{per_slice}{orders}{backlog}
</html>
"#,
        sale = escaped(&report.sale),
        verdict = report.verdict,
        table = escaped(&report.table()),
    )
}

/// From a second before the first press to two seconds after the last thing that happened.
fn busy(report: &Report) -> std::ops::Range<usize> {
    let first = report.slices.iter().position(|slice| slice.sent > 0).unwrap_or(0);
    let last_answer =
        report.slices.iter().rposition(|slice| slice.sent + slice.accepted + slice.sold_out > 0).unwrap_or(0);
    let last_row = report.drained.iter().rposition(|rows| *rows > 0).unwrap_or(0);
    first.saturating_sub(10)..last_answer.max(last_row) + 20
}

fn running_sum(values: impl Iterator<Item = u32>) -> Vec<f64> {
    values
        .scan(0.0, |sum, value| {
            *sum += f64::from(value);
            Some(*sum)
        })
        .collect()
}

/// A sample holds until the next one.
fn sampled(values: impl Iterator<Item = Option<u32>>) -> Vec<f64> {
    values
        .scan(0.0, |held, value| {
            *held = value.map_or(*held, f64::from);
            Some(*held)
        })
        .collect()
}

fn chart(title: &str, series: &[Series]) -> String {
    let length = series.iter().map(|series| series.values.len()).max().unwrap_or(0);
    let top = series.iter().flat_map(|series| &series.values).copied().fold(4.0, f64::max);
    let x = |index: usize| LEFT + (WIDTH - LEFT) * index as f64 / length.max(2).saturating_sub(1) as f64;
    let y = |value: f64| (HEIGHT - BOTTOM) * (1.0 - value / top) + 12.0;
    let mut svg = format!("<h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", HEIGHT + 34.0);
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#e2e8f0\"/><text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{value:.0}</text>",
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
        );
    }
    let seconds = length as f64 * SLICE.as_secs_f64();
    for part in 0..=4 {
        let anchor = if part == 4 { "end" } else { "middle" };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{:.1} s</text>",
            LEFT + (WIDTH - LEFT) * f64::from(part) / 4.0,
            HEIGHT + 8.0,
            seconds * f64::from(part) / 4.0,
        );
    }
    for (place, Series { name, colour, values }) in series.iter().enumerate() {
        let _ = write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"");
        for (index, value) in peaks(values) {
            let _ = write!(svg, "{:.1},{:.1} ", x(index), y(value));
        }
        let _ = write!(
            svg,
            "\"/><text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:{colour}\">● {name}</text>",
            LEFT + 150.0 * place as f64,
            HEIGHT + 26.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// At most [`POINTS_MAX`] points, each the highest of its stretch.
fn peaks(values: &[f64]) -> Vec<(usize, f64)> {
    let stretch = values.len().div_ceil(POINTS_MAX).max(1);
    let peak =
        |(index, values): (usize, &[f64])| (index * stretch, values.iter().copied().fold(0.0, f64::max));
    values.chunks(stretch).enumerate().map(peak).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    #[tokio::test(start_paused = true)]
    async fn the_page_is_self_contained_and_escaped() {
        let mut report = Report::of(&Tally::new().counts());
        report.sale = "<script>".into();
        report.slices = vec![Slice { sent: 5, accepted: 3, ..Slice::default() }; 2_000];
        report.drained = vec![1; 10];
        let page = page(&report);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;: "));
        assert!(!page.contains("http"), "nothing is fetched");
        assert_eq!(page.matches("<svg").count(), 3);
        let ends: Vec<&str> = page.matches(">201.9 s<").collect();
        assert_eq!(ends.len(), 3, "the charts share one axis");
        assert!(page.len() < 200_000, "{} bytes", page.len());
    }

    #[test]
    fn samples_hold_until_the_next() {
        assert_eq!(sampled([None, Some(3), None, Some(0), None].into_iter()), [0.0, 3.0, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn a_long_run_is_drawn_by_its_peaks() {
        let values: Vec<f64> = (0..10_000).map(|index| if index == 5_000 { 9.0 } else { 1.0 }).collect();
        let drawn = peaks(&values);
        assert!(drawn.len() <= POINTS_MAX);
        assert!(drawn.iter().any(|(_, value)| *value == 9.0));
        assert_eq!(peaks(&[]), []);
    }
}
