//! `spike`: one sale, one crowd, one verdict.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::arguments::SpikeOptions;
use crate::audit::{Evidence, drain, judge};
use crate::claim::Claim;
use crate::crowd::{Person, Plan};
use crate::player::Stage;
use crate::progress::Progress;
use crate::report::Report;
use crate::stand::{Stand, rest};
use crate::tally::{SLICE, Tally};
use crate::terminal;
use crate::{Failure, clock, html, random};

/// How long after the last planned press somebody may still be asking.
const PLAY_ON: Duration = Duration::from_secs(90);

/// Plays, audits, reports. True when everything held.
pub(crate) async fn run(options: &SpikeOptions) -> Result<bool, Failure> {
    for path in [&options.json, &options.html].into_iter().flatten() {
        // Before the run rather than after it.
        write(path, "")?;
    }
    let seed = options.seed.unwrap_or_else(random::fresh_seed);
    let bots = options.bots.unwrap_or((options.users / 1_000).max(2));
    let progress = Progress::new();
    let mut stand = Stand::set_up(options, seed).await?;
    let begin = Instant::now();
    let presale = stand.opening.saturating_duration_since(begin + Duration::from_secs(1));
    let spread = Duration::from_millis(options.spread_ms);
    let people = Plan { seed, round: 0, users: options.users, bots, presale, spread }.draw();
    let (_up, up) = watch::channel(true);
    let stage = Arc::new(Stage {
        shop: stand.shop,
        signer: stand.signer,
        tally: Tally::new(),
        press_path: format!("/api/v1/sales/{}/orders", stand.sale),
        sale: stand.sale.clone(),
        arrival: options.arrival,
        per_user_limit: stand.per_user_limit,
        puzzles: stand.puzzles,
        begin,
        opening: stand.opening,
        spread,
        deadline: stand.opening.max(begin) + spread * 2 + PLAY_ON,
        up,
        encore: None,
    });
    let started_ms = clock::unix_now_ms();

    let operator = stand.operator.as_ref();
    let played = async {
        tokio::select! {
            claims = play(&stage, people) => claims,
            () = announce(&progress, &stage) => unreachable!("announcing ends with the play"),
        }
    };
    let settled = async {
        let claims = played.await;
        progress.phase("settling");
        (claims, rest(operator, &stand.auditor, &stand.sale).await)
    };
    let (claims, rested) = tokio::select! {
        outcome = settled => outcome,
        () = progress.run(&stage.tally, operator, &stand.sale) => unreachable!("the display ends with the play"),
    };
    progress.done();
    let (figures, at_rest) = rested?;
    let books = stand.auditor.read(&stand.sale).await.map_err(Failure::World)?;

    let counts = stage.tally.counts();
    let created: Vec<u64> = books.rows.iter().filter_map(|row| row.created_at_ms).collect();
    let audit = judge(&Evidence {
        claims: &claims,
        books: &books,
        figures: figures.as_ref(),
        per_user_limit: stage.per_user_limit,
        alone: stand.alone,
    });
    let mut broken = audit.broken(at_rest);
    if counts.passes_granted == 0 {
        broken.push("nobody was granted a pass: the sale was not played".into());
    }
    let process = stand.server.as_ref().and_then(|server| server.process());
    let report = Report {
        arrival: options.arrival.name(),
        seed,
        sale: stand.sale.clone(),
        users: options.users,
        bots,
        units: options.units,
        drain: drain(&created, stand.drain_limit, counts.backlog_max),
        drained: slices(&created, started_ms),
        at_rest,
        ledger: figures,
        server_cpu_s: process.and_then(|process| process.cpu_s()),
        server_resident_bytes: process.and_then(|process| process.resident_bytes()),
        verdict: if broken.is_empty() { "good" } else { "broken" },
        audit,
        broken,
        ..Report::of(&counts)
    };
    if let Some(server) = &mut stand.server {
        server.terminate().await?;
        server.explain(&report.broken);
    }
    if let Some(path) = &options.json {
        let json =
            serde_json::to_string_pretty(&report).map_err(|error| Failure::world("the report", error))?;
        write(path, &json)?;
    }
    if let Some(path) = &options.html {
        write(path, &html::page(&report))?;
    }
    // Last, since whoever reads it may have seen enough.
    terminal::print(report.table());
    Ok(report.broken.is_empty())
}

/// Plays everybody to the end.
pub(crate) async fn play(stage: &Arc<Stage>, people: Vec<Person>) -> Vec<Claim> {
    let mut tasks: JoinSet<Vec<Claim>> =
        people.into_iter().map(|person| stage.clone().play(person)).collect();
    let mut claims = Vec::with_capacity(tasks.len());
    while let Some(played) = tasks.join_next().await {
        match played {
            Ok(heard) => claims.extend(heard),
            // A panic is a bug of the load tester: without its claims no verdict is worth anything.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    claims
}

async fn announce(progress: &Progress, stage: &Stage) {
    progress.phase("presale");
    tokio::time::sleep_until(stage.opening).await;
    progress.phase("spike");
    tokio::time::sleep_until(stage.opening + stage.spread).await;
    progress.phase("resolving");
    loop {
        sleep(Duration::from_secs(3_600)).await;
    }
}

/// Rows per slice of the tally, which began at `started_ms`.
fn slices(created_at_ms: &[u64], started_ms: u64) -> Vec<u32> {
    let mut slices = Vec::new();
    for created in created_at_ms {
        let index = (created.saturating_sub(started_ms) / SLICE.as_millis() as u64) as usize;
        // A row from another clock does not stretch the chart.
        if index < 6_000 {
            if slices.len() <= index {
                slices.resize(index + 1, 0);
            }
            slices[index] += 1;
        }
    }
    slices
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests;
