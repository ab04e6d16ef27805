//! What a purchase costs the servers, against what is built without Floodgate. An accepted one: gateway and Redis, against
//! nginx with Lua that runs one script in Redis a request. A refused one, with nothing left: the gateway, against nginx that
//! says 410 to everybody and nginx with Lua that looks at a flag. All in one run, in turns, so that ratios hold on any machine.
//! `cargo bench --features production --bench edge`, one table alone with `-- accepted` or `-- refused`.
//!
//! The two do not promise the same. Both check a signed pass, the user's limit and the stock, and record the order under the
//! same `appendfsync`. Floodgate besides limits each user's rate, knows window and pause, answers a repeated press with the
//! same order, and says 202 only when the order is synced to its own disk. Nobody drains either queue here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench stops at the first surprise")]

mod crowd;
mod refused;
mod sides;

use std::time::Duration;

use crowd::{Crowd, Run};
use sides::{Floodgate, Rival, Side};
use testbed::AppendFsync;

/// Presses of a side in each turn.
const PER_TURN: usize = 20_000;
/// After one more that warms up.
const TURNS: usize = 4;

/// What one side has used and how fast it was, over all turns.
#[derive(Default)]
struct Total {
    front: Duration,
    redis: Duration,
    elapsed: Duration,
    latencies_us: Vec<u32>,
}

impl Total {
    fn add(&mut self, [front, redis]: [Duration; 2], run: Run) {
        self.front += front;
        self.redis += redis;
        self.elapsed += run.elapsed;
        self.latencies_us.extend(run.latencies_us);
    }

    fn each_us(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.latencies_us.len() as f64
    }

    fn both_us(&self) -> f64 {
        self.each_us(self.front + self.redis)
    }

    fn speed(&mut self) -> String {
        self.latencies_us.sort_unstable();
        let at = |share: f64| self.latencies_us[((self.latencies_us.len() - 1) as f64 * share) as usize];
        format!(
            "{:.0}/s, p50 {:.1} ms, p99 {:.1} ms",
            self.latencies_us.len() as f64 / self.elapsed.as_secs_f64(),
            f64::from(at(0.5)) / 1e3,
            f64::from(at(0.99)) / 1e3
        )
    }
}

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |table: &str| wanted.is_empty() || wanted.iter().any(|word| word == table);
    if is_wanted("accepted") {
        accepted();
    }
    if is_wanted("refused") {
        refused::table();
    }
}

fn accepted() {
    println!(
        "processor time of the servers, us an accepted purchase; {TURNS} times {PER_TURN} a side, in turns, the crowd on the \
         same machine"
    );
    for (name, appendfsync) in [("everysec", AppendFsync::Everysec), ("always", AppendFsync::Always)] {
        let (mut floodgate, mut rival) = (Floodgate::start(appendfsync), Rival::start(appendfsync));
        for connections in [64, 512] {
            let [mut ours, mut theirs] = measure([&mut floodgate, &mut rival], connections);
            println!(
                "appendfsync {name:8}  {connections:3} connections:  Floodgate {:5.1} = gateway {:4.1} + Redis {:4.1}   \
                 nginx + Lua + EVALSHA {:5.1} = nginx {:4.1} + Redis {:4.1}   {:.2} x",
                ours.both_us(),
                ours.each_us(ours.front),
                ours.each_us(ours.redis),
                theirs.both_us(),
                theirs.each_us(theirs.front),
                theirs.each_us(theirs.redis),
                ours.both_us() / theirs.both_us(),
            );
            println!(
                "    Floodgate, answered when the order is on disk: {}; nginx + Lua, when Redis has answered: {}",
                ours.speed(),
                theirs.speed()
            );
        }
    }
}

fn measure(sides: [&mut dyn Side; 2], connections: usize) -> [Total; 2] {
    let mut totals = [Total::default(), Total::default()];
    let mut crowds = [0, 1].map(|side| Crowd::connect(sides[side].port(), connections));
    for turn in 0..=TURNS {
        for side in [0, 1] {
            let requests = sides[side].requests(PER_TURN);
            let before = sides[side].cpu();
            let run = crowds[side].press(requests, PER_TURN, 202);
            let after = sides[side].cpu();
            if turn > 0 {
                totals[side].add([after[0] - before[0], after[1] - before[1]], run);
            }
        }
    }
    totals
}
