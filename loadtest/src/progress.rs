//! The display while a crowd plays: one line that is refreshed on a terminal, a line every 2 s otherwise.

use std::io::IsTerminal;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

use crate::api::{Operator, Refusal};
use crate::tally::{Counts, Tally};
use crate::terminal;

const BACKLOG_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: u32 = 8;

/// What is going on, shown on standard error.
pub(crate) struct Progress {
    phase: Mutex<&'static str>,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { phase: Mutex::new("starting"), terminal: std::io::stderr().is_terminal() }
    }

    pub(crate) fn phase(&self, phase: &'static str) {
        *self.phase.lock() = phase;
    }

    /// Shows the tally, and samples the backlog, until dropped.
    pub(crate) async fn run(&self, tally: &Tally, operator: Option<&Operator>, sale: &str) {
        let mut beat = 0u32;
        loop {
            if let Some(Ok(figures)) = sample(operator, sale).await {
                tally.backlog(figures.backlog);
            }
            if self.terminal || beat % LINE_EVERY == LINE_EVERY - 1 {
                self.show(tally);
            }
            beat = beat.wrapping_add(1);
            sleep(BACKLOG_EVERY).await;
        }
    }

    fn show(&self, tally: &Tally) {
        let line = tally.with(|counts| line(*self.phase.lock(), counts));
        if self.terminal {
            terminal::refresh(line);
        } else {
            terminal::say(line);
        }
    }

    /// Ends the refreshed line.
    pub(crate) fn done(&self) {
        if self.terminal {
            terminal::refresh("");
        }
    }
}

async fn sample(operator: Option<&Operator>, sale: &str) -> Option<Result<crate::api::Figures, String>> {
    match operator {
        Some(operator) => Some(operator.figures(sale).await),
        None => None,
    }
}

fn line(phase: &str, counts: &Counts) -> String {
    let backlog = counts.slices.iter().rev().find_map(|slice| slice.backlog).unwrap_or(0);
    format!(
        "{phase:9} passes {} · sent {} · 202 {} · sold-out {} · limited {} · refused {} · uncertain {} · errors {} · backlog {backlog}",
        counts.passes_granted,
        counts.attempts,
        counts.accepted,
        counts.refused(Refusal::SoldOut),
        counts.limited(),
        counts.refused_otherwise(),
        counts.uncertain,
        counts.errors,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_line_tells_what_was_counted() {
        let tally = Tally::new();
        tally.backlog(12);
        tally.sent(tokio::time::Instant::now());
        let shown = line("spike", &tally.counts());
        assert!(
            shown.starts_with("spike") && shown.contains("sent 1") && shown.contains("backlog 12"),
            "{shown}"
        );
    }
}
