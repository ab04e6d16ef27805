//! What the proxy lets through, against a server that repeats each line. No installed server is needed.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use testbed::Proxy;

/// Answers each line with itself; tells how many it has read.
fn repeater() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let read = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&read);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, count) = (stream.unwrap(), Arc::clone(&count));
            thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    count.fetch_add(1, Ordering::SeqCst);
                    if writeln!(writer, "{line}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, read)
}

fn connect(proxy: &Proxy) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::connect(("127.0.0.1", proxy.port())).unwrap())
}

fn say(stream: &mut BufReader<TcpStream>, line: &str) -> Option<String> {
    writeln!(stream.get_mut(), "{line}").ok()?;
    let mut answer = String::new();
    match stream.read_line(&mut answer) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(answer.trim_end().to_owned()),
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_carries_bytes_both_ways() {
    let (port, _) = repeater();
    let proxy = Proxy::start(port).unwrap();
    let mut stream = connect(&proxy);
    let long = "x".repeat(1_000_000);
    assert_eq!(say(&mut stream, "a").as_deref(), Some("a"));
    assert_eq!(say(&mut stream, &long), Some(long));
    drop(stream);
    until("connections are forgotten", || proxy.connections() == 0);
}

#[test]
fn a_cut_drops_and_refuses_until_it_heals() {
    let (port, _) = repeater();
    let proxy = Proxy::start(port).unwrap();
    let mut stream = connect(&proxy);
    assert_eq!(say(&mut stream, "a").as_deref(), Some("a"));
    for _ in 0..3 {
        proxy.cut().unwrap();
        assert_eq!(say(&mut stream, "b"), None);
        assert!(TcpStream::connect(("127.0.0.1", proxy.port())).is_err());
        proxy.cut().unwrap();
        proxy.heal().unwrap();
        proxy.heal().unwrap();
        stream = connect(&proxy);
        assert_eq!(say(&mut stream, "c").as_deref(), Some("c"));
    }
    proxy.drop_connections();
    assert_eq!(say(&mut stream, "d"), None);
    assert_eq!(say(&mut connect(&proxy), "e").as_deref(), Some("e"));
}

#[test]
fn a_delay_holds_back_at_least_so_long_each_way() {
    let (port, _) = repeater();
    let proxy = Proxy::start(port).unwrap();
    let mut stream = connect(&proxy);
    proxy.delay(Duration::from_millis(100));
    let began = Instant::now();
    assert_eq!(say(&mut stream, "a").as_deref(), Some("a"));
    assert!(began.elapsed() >= Duration::from_millis(200));
    // A cut does not wait for what is held back.
    proxy.delay(Duration::from_secs(3_600));
    writeln!(stream.get_mut(), "b").unwrap();
    proxy.cut().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn a_swallowed_answer_was_carried_out() {
    let (port, read) = repeater();
    let proxy = Proxy::start(port).unwrap();
    let mut stream = connect(&proxy);
    proxy.drop_replies(true);
    assert_eq!(say(&mut stream, "a"), None);
    assert_eq!((read.load(Ordering::SeqCst), proxy.swallowed()), (1, 1));
    assert_eq!(say(&mut connect(&proxy), "b"), None);
    proxy.drop_replies(false);
    assert_eq!(say(&mut connect(&proxy), "c").as_deref(), Some("c"));
    assert_eq!((read.load(Ordering::SeqCst), proxy.swallowed()), (3, 2));
}

#[test]
fn a_stall_keeps_connections_and_loses_nothing() {
    let (port, read) = repeater();
    let proxy = Proxy::start(port).unwrap();
    let mut stream = connect(&proxy);
    assert_eq!(say(&mut stream, "a").as_deref(), Some("a"));
    proxy.stall();
    let (sender, answers) = mpsc::channel();
    let asking = thread::spawn(move || sender.send(say(&mut stream, "b")));
    assert!(answers.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(read.load(Ordering::SeqCst), 1);
    proxy.heal().unwrap();
    assert_eq!(answers.recv().unwrap().as_deref(), Some("b"));
    asking.join().unwrap().unwrap();
}

#[test]
fn a_server_that_is_away_closes_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let proxy = Proxy::start(port).unwrap();
    assert_eq!(say(&mut connect(&proxy), "a"), None);
}
