//! `crash`: ends the server at random moments of a spike, restarts it on the same directory, and holds what it answered before
//! against what there is afterwards.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::Operator;
use crate::arguments::{CrashOptions, Ending};
use crate::audit::{Audit, Evidence, judge};
use crate::claim::Claim;
use crate::crowd::{Arrival, Plan};
use crate::database::Auditor;
use crate::player::Stage;
use crate::progress::Progress;
use crate::random::Random;
use crate::server::{SaleToOpen, Server, Setting, program};
use crate::spike::{play, write};
use crate::stand::{PER_USER_RPS, rest};
use crate::tally::Tally;
use crate::terminal;
use crate::{Failure, clock, random};

/// Slower than the crowd buys, so that most ends find a backlog.
const ORDERS_PER_SECOND_MAX: u32 = 400;
const PLAY_ON: Duration = Duration::from_secs(90);
/// The server is ended from a little before the opening to a little after the last planned press.
const MARGIN: Duration = Duration::from_millis(200);
const DOWN_MS_MAX: u64 = 400;
/// A start takes a few milliseconds; its recovery a few more.
const AGAIN_US_MAX: u64 = 150_000;
/// The lane of the draws that are not about one person.
const LANE: u64 = 0xC2A5_0000_0000;

/// One round as it is drawn from the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Draw {
    signal: Signal,
    /// A sale of its own; otherwise a restock of the one before.
    fresh: bool,
    units: u32,
    /// When the server is ended, counted from [`MARGIN`] before the opening.
    ends_after: Duration,
    down: Duration,
    /// The next life is killed as well, this long after its start: in the middle of its recovery.
    again_after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Signal {
    Kill,
    Term,
}

/// One round as it went.
#[derive(Debug, Clone, Serialize)]
struct Round {
    round: u32,
    signal: Signal,
    fresh: bool,
    /// The next life was killed while it recovered.
    twice: bool,
    sale: String,
    /// When the server was ended, in milliseconds after the opening.
    ended_after_ms: i64,
    /// Orders promised in this round before that.
    promised_before: u64,
    /// Attempts in this round that the server left without an answer, and how many of them had been executed.
    unanswered: u64,
    executed_unanswered: u64,
    uncertain: u64,
    /// 202 for an order that had one already.
    same_order_again: u64,
    /// From the signal to the end of the process.
    stop_s: f64,
    restart_s: f64,
    rest_s: f64,
    audit: Audit,
    broken: Vec<String>,
}

#[derive(Serialize)]
struct Summary<'a> {
    scenario: &'static str,
    seed: u64,
    rounds: &'a [Round],
    promised: u64,
    orders: u64,
    broken_rounds: usize,
    verdict: &'static str,
}

/// Plays all rounds. True when everything held in each.
pub(crate) async fn run(options: &CrashOptions) -> Result<bool, Failure> {
    if let Some(path) = &options.json {
        write(path, "")?;
    }
    let seed = options.seed.unwrap_or_else(random::fresh_seed);
    terminal::print(format_args!("crash: seed {seed}, {} rounds of {} users", options.rounds, options.users));
    let program = program(options.own.server.as_deref()).await?;
    let setting = Setting {
        per_user_rps: PER_USER_RPS,
        orders_per_second_max: options.own.orders_per_second_max.unwrap_or(ORDERS_PER_SECOND_MAX),
        sale: None,
    };
    let server = Server::start(program, &setting, options.own.keep.as_deref()).await?;
    let auditor = Auditor::new(&server.database_url()).map_err(Failure::World)?;
    let mut hunt = Hunt {
        options,
        seed,
        operator: server.operator()?,
        server,
        auditor,
        sale: String::new(),
        claims: Vec::new(),
    };

    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        let round = hunt.round(number).await?;
        terminal::print(round.line());
        hunt.server.explain(&round.broken);
        rounds.push(round);
    }
    hunt.server.terminate().await?;

    let broken_rounds = rounds.iter().filter(|round| !round.broken.is_empty()).count();
    let summary = Summary {
        scenario: "crash",
        seed,
        promised: rounds.iter().map(|round| round.promised_before).sum(),
        orders: rounds.iter().map(|round| round.audit.orders).sum(),
        rounds: &rounds,
        broken_rounds,
        verdict: if broken_rounds == 0 { "good" } else { "broken" },
    };
    terminal::print(format_args!(
        "crash: {}: {} rounds, {broken_rounds} broken, {} orders promised before an end, seed {seed}",
        summary.verdict,
        rounds.len(),
        summary.promised
    ));
    if let Some(path) = &options.json {
        let json =
            serde_json::to_string_pretty(&summary).map_err(|error| Failure::world("the summary", error))?;
        write(path, &json)?;
    }
    Ok(broken_rounds == 0)
}

fn draw(options: &CrashOptions, seed: u64, number: u32) -> Draw {
    let mut random = Random::new(seed, LANE | u64::from(number));
    let signal = match options.ending {
        Ending::Kill => Signal::Kill,
        Ending::Term => Signal::Term,
        Ending::Mixed if number % 4 == 3 => Signal::Term,
        Ending::Mixed => Signal::Kill,
    };
    let units = match random.below(3) {
        0 => options.units / 2,
        1 => options.units,
        _ => options.units * 3,
    };
    let window = Duration::from_millis(options.spread_ms) + MARGIN * 2;
    let ends_after = Duration::from_micros(random.below(window.as_micros() as u64));
    let down = Duration::from_millis(random.below(DOWN_MS_MAX));
    let again_after = (random.below(3) == 0).then(|| Duration::from_micros(random.below(AGAIN_US_MAX)));
    Draw {
        signal,
        fresh: number.is_multiple_of(2),
        units,
        ends_after,
        down,
        // What a second life leaves unanswered when it is killed would be laid at the SIGTERM's door.
        again_after: again_after.filter(|_| signal == Signal::Kill),
    }
}

/// What lives from round to round.
struct Hunt<'a> {
    options: &'a CrashOptions,
    seed: u64,
    server: Server,
    operator: Operator,
    auditor: Auditor,
    sale: String,
    /// Everything heard about the sale, over all rounds that it lasted.
    claims: Vec<Claim>,
}

impl Hunt<'_> {
    async fn round(&mut self, number: u32) -> Result<Round, Failure> {
        let draw = draw(self.options, self.seed, number);
        let presale = Duration::from_millis(1_000 + u64::from(self.options.users) / 4);
        let begin = Instant::now();
        let opening = begin + presale + Duration::from_millis(300);
        self.stock_up(number, &draw, opening).await?;
        let spread = Duration::from_millis(self.options.spread_ms);
        let people =
            Plan { seed: self.seed, round: number, users: self.options.users, bots: 2, presale, spread }
                .draw();
        let (up, up_seen) = watch::channel(true);
        let (encore, encore_seen) = watch::channel(false);
        let stage = Arc::new(Stage {
            shop: self.server.shop(self.options.connections as usize)?,
            signer: self.server.signer(),
            tally: Tally::new(),
            press_path: format!("/api/v1/sales/{}/orders", self.sale),
            sale: self.sale.clone(),
            arrival: Arrival::Presale,
            per_user_limit: 1,
            puzzles: false,
            begin,
            opening,
            spread,
            deadline: opening + spread * 2 + PLAY_ON,
            up: up_seen,
            encore: Some(encore_seen),
        });

        let progress = Progress::new();
        progress.phase("round");
        let server = &mut self.server;
        let played = async {
            let ending = async {
                sleep_until(opening - MARGIN + draw.ends_after).await;
                let ended = end_and_restart(server, &draw, &stage.tally, &up).await?;
                let _ = encore.send(true);
                Ok::<_, Failure>(ended)
            };
            // A server that does not come back ends the round at once.
            let (claims, ended) = tokio::try_join!(async { Ok(play(&stage, people).await) }, ending)?;
            Ok::<_, Failure>((claims, ended, Instant::now()))
        };
        let (claims, ended, asked) = tokio::select! {
            outcome = played => outcome?,
            () = progress.run(&stage.tally, Some(&self.operator), &self.sale) => unreachable!("the display ends with the play"),
        };
        progress.done();
        let (figures, at_rest) = rest(Some(&self.operator), &self.auditor, &self.sale).await?;
        let rest_s = asked.elapsed().as_secs_f64();

        let unanswered = claims.iter().map(|claim| u64::from(claim.unanswered)).sum();
        let executed_unanswered = claims.iter().filter(|claim| claim.executed_unanswered).count() as u64;
        self.claims.extend(claims);
        let books = self.auditor.read(&self.sale).await.map_err(Failure::World)?;
        let audit = judge(&Evidence {
            claims: &self.claims,
            books: &books,
            figures: figures.as_ref(),
            per_user_limit: 1,
            alone: true,
        });
        let counts = stage.tally.counts();
        let mut broken = audit.broken(at_rest);
        broken.extend(counts.strange.iter().map(|strange| format!("a strange answer: {strange}")));
        if draw.signal == Signal::Term {
            broken.extend(graceful_broken(&ended, counts.uncertain, executed_unanswered));
        }
        Ok(Round {
            round: number + 1,
            signal: draw.signal,
            fresh: draw.fresh,
            twice: draw.again_after.is_some(),
            sale: self.sale.clone(),
            ended_after_ms: draw.ends_after.as_millis() as i64 - MARGIN.as_millis() as i64,
            promised_before: ended.promised_before,
            unanswered,
            executed_unanswered,
            uncertain: counts.uncertain,
            same_order_again: counts.accepted_again,
            stop_s: ended.stop.as_secs_f64(),
            restart_s: ended.restart.as_secs_f64(),
            rest_s,
            audit,
            broken,
        })
    }

    /// A fresh sale that opens with the round, or more units for the one that is open.
    async fn stock_up(&mut self, number: u32, draw: &Draw, opening: Instant) -> Result<(), Failure> {
        if draw.fresh || self.sale.is_empty() {
            let wait = opening.saturating_duration_since(Instant::now());
            let sale = SaleToOpen {
                id: format!("crash-{:x}-{}", self.seed, number + 1),
                units: draw.units,
                starts_at_ms: clock::unix_now_ms() + wait.as_millis() as u64,
            };
            self.operator.publish(&sale.definition()).await.map_err(Failure::World)?;
            self.sale = sale.id;
            self.claims.clear();
            return Ok(());
        }
        // Whoever was sent away before has left, and does not want the new units.
        for claim in self.claims.iter_mut().filter(|claim| !claim.promised && !claim.shown) {
            claim.is_demand = false;
        }
        let restock_id = format!("round-{}", number + 1);
        self.operator.restock(&self.sale, &restock_id, draw.units).await.map_err(Failure::World)
    }
}

/// One end of the server and its next start.
struct Ended {
    promised_before: u64,
    stop: Duration,
    restart: Duration,
    /// Whether a SIGTERM ended it in time and with success.
    gracefully: bool,
}

async fn end_and_restart(
    server: &mut Server,
    draw: &Draw,
    tally: &Tally,
    up: &watch::Sender<bool>,
) -> Result<Ended, Failure> {
    let signalled = Instant::now();
    let gracefully = match draw.signal {
        Signal::Kill => {
            server.kill().await?;
            false
        }
        Signal::Term => server.terminate().await?.is_some_and(|status| status.success()),
    };
    let stop = signalled.elapsed();
    let promised_before = tally.with(|counts| counts.accepted);
    let _ = up.send(false);
    sleep(draw.down).await;
    if let Some(again_after) = draw.again_after {
        server.launch()?;
        sleep(again_after).await;
        server.kill().await?;
    }
    let restart = server.restart().await?;
    let _ = up.send(true);
    Ok(Ended { promised_before, stop, restart, gracefully })
}

/// What a SIGTERM must not do.
fn graceful_broken(ended: &Ended, uncertain: u64, executed_unanswered: u64) -> Vec<String> {
    let mut broken = Vec::new();
    if !ended.gracefully {
        broken.push("SIGTERM did not end the server with success in time".into());
    }
    if uncertain > 0 {
        broken.push(format!("{uncertain} left uncertain by SIGTERM"));
    }
    if executed_unanswered > 0 {
        broken.push(format!("{executed_unanswered} executed without an answer at SIGTERM"));
    }
    broken
}

impl Round {
    fn line(&self) -> String {
        let signal = match (self.signal, self.twice) {
            (Signal::Kill, false) => "kill -9    ",
            (Signal::Kill, true) => "kill -9 × 2",
            (Signal::Term, _) => "SIGTERM    ",
        };
        let verdict = if self.broken.is_empty() {
            "good".into()
        } else {
            format!("BROKEN: {}", self.broken.join(", "))
        };
        format!(
            "round {:3} {signal} at {:+5} ms, {} sale: {:4} promised before, {:4} unanswered ({} executed), {} uncertain, {:4} × same \
             order again, stopped in {:.2} s, ready after {:.2} s, at rest after {:4.1} s, {:4}/{} orders: {verdict}",
            self.round,
            self.ended_after_ms,
            if self.fresh { "fresh     " } else { "continuing" },
            self.promised_before,
            self.unanswered,
            self.executed_unanswered,
            self.uncertain,
            self.same_order_again,
            self.stop_s,
            self.restart_s,
            self.rest_s,
            self.audit.orders,
            self.audit.total,
        )
    }
}

#[cfg(test)]
mod tests;
