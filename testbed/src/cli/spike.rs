//! `testbed spike`: one round a strike, and the table of what came of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use testbed::Error;

use super::programs::Programs;
use super::round::{CrowdSize, Outcome, Strike, play};

#[derive(Debug, Args)]
pub(super) struct Spike {
    #[command(flatten)]
    size: CrowdSize,
    /// What strikes; several with commas between them.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "none")]
    strike: Vec<Strike>,
    /// A floodgate program, built with `--features production`, instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
    /// A loadtest program, built with `--features mysql`, instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    loadtest: Option<PathBuf>,
}

/// True when every strike was borne.
pub(super) fn run(options: &Spike) -> Result<bool, Error> {
    let programs = Programs::find(options.server.as_deref(), options.loadtest.as_deref())?;
    let mut lines = Vec::new();
    let mut good = true;
    for strike in options.strike.iter().flat_map(|strike| strike.each()) {
        eprintln!("\n{}: {} users, {} units", strike.name(), options.size.users, options.size.units);
        let line = match play(strike, &options.size, &programs) {
            Ok(outcome) => {
                good &= outcome.broken.is_empty();
                line(&outcome)
            }
            Err(error) => {
                good = false;
                eprintln!("{}: {error}", strike.name());
                format!("{:<10} no verdict: {}", strike.name(), first_line(&error.to_string()))
            }
        };
        eprintln!("{line}");
        lines.push(line);
    }
    println!(
        "{} users, {} units, 2 gateways, 2 workers behind nginx\n",
        options.size.users, options.size.units
    );
    println!("{}", heading());
    for line in lines {
        println!("{line}");
    }
    Ok(good)
}

/// Columns of the table, each as wide as its heading.
const COLUMNS: [&str; 12] = [
    "struck at",
    "accepted",
    "by asking",
    "uncertain",
    "oversold",
    "lost",
    "duplicated",
    "leaked",
    "rejected_after_202",
    "audits",
    "sells again",
    "at rest",
];

fn heading() -> String {
    format!("{:<10} {}  verdict", "strike", COLUMNS.join("  "))
}

fn line(outcome: &Outcome) -> String {
    let report = &outcome.report;
    let number = |value: &Value| value.as_u64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    let audited = |name: &str| number(&report["audit"][name]);
    let seconds = |after: Option<Duration>| {
        after.map_or_else(|| "never".to_owned(), |after| format!("{:.2} s", after.as_secs_f64()))
    };
    let audits: Vec<String> = outcome
        .audits
        .iter()
        .map(|code| code.map_or_else(|| "?".to_owned(), |code| code.to_string()))
        .collect();
    let cells = [
        outcome.struck_at.to_string(),
        number(&report["accepted"]),
        audited("learned"),
        number(&report["uncertain"]),
        audited("oversold"),
        audited("lost"),
        audited("duplicated"),
        audited("leaked"),
        audited("rejected_after_202"),
        audits.join(" "),
        seconds(outcome.sells_again),
        seconds(outcome.at_rest),
    ];
    let cells: Vec<String> = cells
        .iter()
        .zip(COLUMNS)
        .map(|(cell, column)| format!("{cell:>width$}", width = column.len()))
        .collect();
    let told: Vec<&str> = outcome.broken.iter().map(|what| first_line(what)).collect();
    let verdict =
        if outcome.broken.is_empty() { "good".to_owned() } else { format!("BAD: {}", told.join("; ")) };
    format!("{:<10} {}  {verdict}", outcome.strike.name(), cells.join("  "))
}

/// What was said at length stands above the table.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_stands_under_its_heading() {
        let audit = json!({"learned": 3, "oversold": 0, "lost": 0, "duplicated": 0, "leaked": 0, "rejected_after_202": 0});
        let mut outcome = Outcome {
            strike: Strike::Gateway,
            struck_at: 14,
            report: json!({"accepted": 997, "uncertain": 2, "audit": audit}),
            audits: vec![Some(0), Some(0), Some(0)],
            sells_again: Some(Duration::from_millis(210)),
            at_rest: None,
            broken: Vec::new(),
        };
        let good = line(&outcome);
        assert!(good.starts_with("gateway ") && good.ends_with("never  good"), "{good}");
        for (column, cell) in [("accepted", "997"), ("audits", "0 0 0"), ("sells again", "0.21 s")] {
            let end = |text: &str, what: &str| text.find(what).map(|at| at + what.len());
            assert_eq!(end(&heading(), column), end(&good, cell), "{column}\n{}\n{good}", heading());
        }
        outcome.broken.push("3 units leaked".into());
        assert!(line(&outcome).ends_with("BAD: 3 units leaked"));
    }
}
