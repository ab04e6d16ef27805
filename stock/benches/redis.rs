//! What a reservation costs Redis: processor time of the server (from /proc) and bytes. Both sides in one run, in turns, on one
//! server, so that ratios hold on any machine. `cargo bench -p stock --features redis --bench redis`
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench stops at the first surprise")]

use std::time::{Duration, SystemTime};

use redis::{Cmd, Connection, Script, Value};
use testbed::{AppendFsync, Redis, RedisOptions};

const RESERVE: &str = include_str!("../../lua/redis/reserve.lua");
const RESERVE_ONE: &str = include_str!("../../lua/redis/reserve_one.lua");
const SETTLE: &str = include_str!("../../lua/redis/settle.lua");
const INSTALL: &str = include_str!("../../lua/redis/install.lua");
const OPEN: &str = include_str!("../../lua/redis/open.lua");

/// Of each kind in each turn, which begins with an empty sale.
const PER_TURN: u64 = 25_600;
const TURNS: u64 = 8;
const PIPELINED: u64 = 64;
const MANY: u64 = 200_000;
/// Far ahead, in ledger time.
const FAR_MS: u64 = 4_000_000_000_000;

struct Bench {
    server: Redis,
    connection: Connection,
    identity: String,
    keys: Vec<String>,
    next: u64,
    epoch: u64,
}

impl Bench {
    fn start(appendfsync: AppendFsync) -> Self {
        // A rewrite of the file would be another process, which comes and goes.
        let config = vec![("auto-aof-rewrite-percentage".to_owned(), "0".to_owned())];
        let server =
            Redis::start(RedisOptions { appendfsync, config, ..Default::default() }).expect("a Redis");
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let identity =
            format!("{}:{}", server.info("run_id").unwrap(), server.info("master_replid").unwrap());
        let keys = ["books", "orders", "mine", "pending", "fresh", "passes", "expiry"];
        let keys: Vec<String> = keys.iter().map(|kind| format!("{{fg:bench}}:{kind}")).collect();
        for script in [RESERVE, RESERVE_ONE, SETTLE, INSTALL, OPEN] {
            let _: String = redis::cmd("SCRIPT").arg("LOAD").arg(script).query(&mut connection).unwrap();
        }
        let mut bench = Self { server, connection, identity, keys, next: 0, epoch: 0 };
        bench.install(1);
        bench
    }

    fn install(&mut self, epoch: u64) {
        let mut install = self.call(INSTALL);
        install.arg(epoch).arg(1).arg(2_000_000_000u32).arg(0).arg(FAR_MS).arg(1).arg(0).arg(0).arg(1);
        let mut open = self.call(OPEN);
        open.arg(epoch);
        self.epoch = epoch;
        for call in [install, open] {
            expect_ok(&call.query(&mut self.connection).unwrap());
        }
    }

    fn call(&self, script: &str) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(Script::new(script).get_hash())
            .arg(self.keys.len())
            .arg(&self.keys)
            .arg(&self.identity)
            .arg("bench");
        call
    }

    /// Ids like real ones: 48 bits of time, 16 of the sale, random bits.
    fn buyer(&mut self) -> ([u8; 16], String) {
        self.next += 1;
        let random = self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let time = 1_700_000_000_000 + u128::from(self.next / 20);
        (
            ((time << 80) | (7 << 64) | u128::from(random)).to_be_bytes(),
            format!("user-{}", 1_000_000 + self.next),
        )
    }

    fn one(&mut self) -> Cmd {
        let (id, user) = self.buyer();
        let mut call = self.call(RESERVE_ONE);
        call.arg(self.epoch).arg(soon_ms()).arg(&[0xF1u8; 8][..]).arg(1).arg(&id[..]).arg(user).arg(1);
        call
    }

    fn batch(&mut self, size: u64) -> Cmd {
        let buyers: Vec<_> = (0..size).map(|_| self.buyer()).collect();
        let mut call = self.call(RESERVE);
        // No metadata: an empty map; and nobody stands there twice.
        call.arg(self.epoch)
            .arg(soon_ms())
            .arg(&[0xF1u8; 8][..])
            .arg(1)
            .arg([packed(&buyers), vec![0x80, 0xC2]].concat());
        call
    }

    fn settle(&mut self, target: &str) {
        let next = std::mem::replace(&mut self.next, 0);
        while self.next < next {
            let buyers: Vec<_> = (0..500).map(|_| self.buyer()).collect();
            let mut call = self.call(SETTLE);
            call.arg(target).arg(packed(&buyers));
            expect_ok(&call.query(&mut self.connection).unwrap());
        }
    }

    /// Sends `count` reservations, `size` a call, `calls` calls in one write; answers with the server's time for all.
    fn run(&mut self, count: u64, size: u64, calls: u64, call: impl Fn(&mut Self) -> Cmd) -> Duration {
        let before = self.server.cpu();
        for _ in 0..count / size / calls {
            let mut pipe = redis::pipe();
            for _ in 0..calls {
                pipe.add_command(call(self));
            }
            let answers: Vec<Value> = pipe.query(&mut self.connection).unwrap();
            answers.iter().for_each(expect_ok);
        }
        self.server.cpu() - before
    }

    fn used_memory(&self) -> i64 {
        self.server.info("used_memory").unwrap().trim().parse().unwrap()
    }
}

/// A deadline.
fn soon_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    now.as_millis() as u64 + 20_000
}

/// Ids, users, quantities of 1, in MessagePack.
fn packed(buyers: &[([u8; 16], String)]) -> Vec<u8> {
    let head = [&[0xDC][..], &(buyers.len() as u16).to_be_bytes()].concat();
    let mut bytes = head.clone();
    for (id, _) in buyers {
        bytes.push(0xB0);
        bytes.extend_from_slice(id);
    }
    bytes.extend_from_slice(&head);
    for (_, user) in buyers {
        bytes.push(0xA0 | user.len() as u8);
        bytes.extend_from_slice(user.as_bytes());
    }
    bytes.extend_from_slice(&head);
    bytes.extend(std::iter::repeat_n(1, buyers.len()));
    bytes
}

fn expect_ok(answer: &Value) {
    let Value::Array(values) = answer else { panic!("{answer:?}") };
    assert_eq!(values[0], Value::BulkString(b"OK".to_vec()), "{answer:?}");
    if let Some(Value::BulkString(letters)) = values.get(5) {
        assert!(letters.iter().all(|letter| *letter == b'T'), "{answer:?}");
    }
}

fn micros(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}

fn cost_of_batches(name: &str, appendfsync: AppendFsync) {
    let mut bench = Bench::start(appendfsync);
    let mut times = [Duration::ZERO; 3];
    // The first turn warms up.
    for turn in 0..=TURNS {
        bench.install(turn + 2);
        let turn_times = [
            bench.run(PER_TURN, 1, PIPELINED, Bench::one),
            bench.run(PER_TURN, 64, 2, |bench| bench.batch(64)),
            bench.run(PER_TURN, 256, 2, |bench| bench.batch(256)),
        ];
        if turn > 0 {
            times.iter_mut().zip(turn_times).for_each(|(sum, time)| *sum += time);
        }
    }
    let [one, of_64, of_256] = times.map(|time| micros(time, TURNS * PER_TURN));
    println!(
        "{name:8}  one EVALSHA a buyer, pipelined 64: {one:5.2} us   64 a batch: {of_64:4.2} us = {:.3} x   256 a batch: \
         {of_256:4.2} us = {:.3} x",
        of_64 / one,
        of_256 / one
    );
}

fn break_even() {
    let mut bench = Bench::start(AppendFsync::Everysec);
    for size in 1..=4 {
        let (mut single, mut batch) = (Duration::ZERO, Duration::ZERO);
        let count = PER_TURN / 2 * size;
        for _ in 0..TURNS {
            bench.install(bench.epoch + 1);
            single += bench.run(count, 1, size, Bench::one);
            batch += bench.run(count, size, 1, |bench| bench.batch(size));
        }
        println!(
            "{size} waiting: a script each {:5.2} us, the batch script {:5.2} us a reservation",
            micros(single, TURNS * count),
            micros(batch, TURNS * count)
        );
    }
}

fn bytes_per_order() {
    let mut bench = Bench::start(AppendFsync::Off);
    let empty = bench.used_memory();
    let per_order = |used: i64| (used - empty) as f64 / MANY as f64;
    bench.run(MANY, 500, 1, |bench| bench.batch(500));
    let pending = per_order(bench.used_memory());
    bench.settle("c");
    let confirmed = per_order(bench.used_memory());
    bench.settle("r");
    let released = per_order(bench.used_memory());
    println!(
        "bytes an order, {MANY} orders of as many users with names of 12 characters: pending {pending:.0}, confirmed \
         {confirmed:.0}, released {released:.0}"
    );
    let before = bench.server.cpu();
    bench.install(2);
    println!("replacing them all by a new epoch: {:?} of server time", bench.server.cpu() - before);
}

fn main() {
    println!("processor time of the Redis server, a reservation:");
    cost_of_batches("no AOF", AppendFsync::Off);
    cost_of_batches("everysec", AppendFsync::Everysec);
    cost_of_batches("always", AppendFsync::Always);
    break_even();
    bytes_per_order();
}
