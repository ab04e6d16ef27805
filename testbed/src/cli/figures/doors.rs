//! What honest buyers get beside those who hold connections, what the list of sales costs, and what one account gets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testbed::{Client, Error, Instance};

use super::shop::{Buyer, Engines, Shop, promise, sale};
use super::{Figures, say};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Honest event streams beside the attack.
const STREAMS: u32 = 20;
/// Between two honest requests.
const HONEST_EVERY: Duration = Duration::from_millis(100);
/// How often attackers look whether they were thrown out, and come again.
const ATTACK_EVERY: Duration = Duration::from_millis(50);
const LIST_REQUESTS: u32 = 500;
/// Streams that one account asks for, and how long it looks.
const OWN_STREAMS: u32 = 100;
const LOOKS: Duration = Duration::from_secs(5);

pub(super) fn measure(engines: &Engines, options: &Figures) -> Result<(), Error> {
    let limits = format!("[limits]\nper_user_rps = 0\nin_flight_max = {}\n", options.attackers);
    let shop = Shop::prepare(engines, &(limits + &sale("shop", 10_000, -60, 7_200, "")))?;
    let gateway = shop.gateway();
    gateway.start()?;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut buyer = Buyer::log_in(gateway, number)?;
        let order = buyer.buy("shop")?.ok_or_else(|| Error::new("an order was not promised"))?;
        streams.extend(stream(gateway, &buyer, &order)?);
    }
    let is_over = AtomicBool::new(false);
    let (mut waits, failed) = thread::scope(|scope| {
        scope.spawn(|| attack(gateway.buyers_port(), options.attackers, &is_over));
        let honest = honest(gateway, Duration::from_secs(options.seconds));
        is_over.store(true, Ordering::Relaxed);
        honest
    });
    waits.sort_unstable();
    let at = |place: usize| waits.get(place).copied().unwrap_or_default().as_secs_f64() * 1_000.0;
    let (p50, max) = (at(waits.len() / 2), at(waits.len().saturating_sub(1)));
    say(
        &format!("honest requests beside {} connections of one byte", options.attackers),
        format!("{} good, p50 {p50:.1} ms, longest {max:.0} ms, {failed} failed", waits.len()),
    );
    let opened = streams.len();
    streams.retain_mut(is_alive);
    say("honest event streams that are still there", format!("{} of {opened}", streams.len()));
    Ok(())
}

/// One connection each: how long they took, and how many got no answer.
fn honest(gateway: &Instance, lasts: Duration) -> (Vec<Duration>, u32) {
    let (mut waits, mut failed, begun) = (Vec::new(), 0, Instant::now());
    for number in 0u32.. {
        if begun.elapsed() >= lasts {
            break;
        }
        let asked = Instant::now();
        let from = format!("10.9.{}.{}", number >> 8 & 0xFF, number & 0xFF);
        let answer = Client::new(gateway.buyers_port(), ANSWER_WITHIN).request(
            "GET",
            "/api/v1/time",
            &[("X-Forwarded-For", &from)],
            "",
        );
        match answer {
            Ok(answer) if answer.status == 200 => waits.push(asked.elapsed()),
            _ => failed += 1,
        }
        thread::sleep(HONEST_EVERY.saturating_sub(asked.elapsed()));
    }
    (waits, failed)
}

/// Holds so many connections, each with one byte of a head, and replaces those that are ended.
fn attack(port: u16, connections: u32, is_over: &AtomicBool) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        held.retain_mut(is_alive);
        while held.len() < connections as usize {
            let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { break };
            if connection.write_all(b"G").is_err() || connection.set_nonblocking(true).is_err() {
                break;
            }
            held.push(connection);
        }
        thread::sleep(ATTACK_EVERY);
    }
}

fn is_alive(connection: &mut TcpStream) -> bool {
    let mut bytes = [0; 256];
    loop {
        match connection.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// An event stream of an order; none if it is refused.
fn stream(gateway: &Instance, buyer: &Buyer, order: &str) -> Result<Option<TcpStream>, Error> {
    let told = |error: std::io::Error| Error::new(format!("an event stream: {error}"));
    let mut connection = TcpStream::connect(("127.0.0.1", gateway.buyers_port())).map_err(told)?;
    let head = format!(
        "GET /api/v1/orders/{order}/events HTTP/1.1\r\nHost: shop\r\nAuthorization: {}\r\nX-Forwarded-For: {}\r\n\r\n",
        buyer.bearer, buyer.address
    );
    connection.write_all(head.as_bytes()).map_err(told)?;
    connection.set_read_timeout(Some(ANSWER_WITHIN)).map_err(told)?;
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line).map_err(told)?;
    connection.set_nonblocking(true).map_err(told)?;
    Ok(line.contains(" 200 ").then_some(connection))
}

pub(super) fn measure_list(engines: &Engines) -> Result<(), Error> {
    for (sales, characters) in [(50, 3_000), (200, 10_000)] {
        let description = "x".repeat(characters);
        let listed: String =
            (0..sales).map(|n| sale(&format!("sale-{n}"), 10, 60, 7_200, &description)).collect();
        let shop = Shop::prepare(engines, &listed)?;
        let gateway = shop.gateway();
        gateway.start()?;
        let mut client = Client::new(gateway.buyers_port(), ANSWER_WITHIN);
        let mut ask = || {
            let answer = client.request("GET", "/api/v1/sales", &[], "");
            answer.map_err(|error| Error::new(format!("/api/v1/sales: {error}")))
        };
        let (status, bytes) = ask().map(|answer| (answer.status, answer.body.len()))?;
        let before = gateway.cpu();
        for _ in 0..LIST_REQUESTS {
            ask()?;
        }
        let each = (gateway.cpu() - before) / LIST_REQUESTS;
        say(
            &format!("GET /api/v1/sales, {sales} sales of {characters} characters, CPU a request"),
            format!("{each:.0?} (status {status}, {bytes} bytes)"),
        );
    }
    Ok(())
}

pub(super) fn measure_account(engines: &Engines) -> Result<(), Error> {
    let shop = Shop::prepare(engines, &sale("shop", 100, -60, 7_200, ""))?;
    let gateway = shop.gateway();
    gateway.start()?;
    promise(gateway, "shop", 1)?;
    let mut buyer = Buyer::log_in(gateway, 0)?;
    let order = buyer.buy("shop")?.ok_or_else(|| Error::new("an order was not promised"))?;
    let mut streams = Vec::new();
    for _ in 0..OWN_STREAMS {
        streams.extend(stream(gateway, &buyer, &order)?);
    }
    say("event streams of one account", format!("{} of {OWN_STREAMS} asked for", streams.len()));
    let (mut shown, mut refused, begun) = (0, 0, Instant::now());
    while begun.elapsed() < LOOKS {
        match buyer.ask("GET", &format!("/api/v1/orders/{order}"), &[], "")?.status {
            200 => shown += 1,
            _ => refused += 1,
        }
    }
    say(&format!("looks of one account in {LOOKS:?}"), format!("{shown} shown, {refused} refused"));
    Ok(())
}
