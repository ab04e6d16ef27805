//! Connections that are slow, silent, too large or gone; many at once; and the orderly end.

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use gateway::config::GatewayConfig;
use support::{Options, SALE, Site};

const ORDERS: &str = "/api/v1/sales/demo/orders";
/// Longest wait for anything, on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

fn impatient() -> Options {
    let mut options = Options::default();
    options.gateway.header_read_max_ms = 1_000;
    options.gateway.body_read_max_ms = 1_000;
    options.gateway.idle_max_ms = 3_000;
    options
}

#[test]
fn a_head_must_come_in_time() {
    let site = Site::start(impatient());
    // Nothing at all.
    assert!(site.connect().is_closed_within(PATIENCE));
    // Drop by drop: every byte is progress, the head is not.
    let mut slow = site.connect();
    let mut drops = request_head().into_bytes().into_iter().cycle().take(3_000);
    let closed = drops.any(|byte| {
        std::thread::sleep(Duration::from_millis(20));
        slow.stream.write_all(&[byte]).is_err()
    });
    assert!(closed, "a head without end is read on");
    // The second head of a connection as well as the first.
    let mut second = site.connect();
    assert_eq!(second.get("/api/v1/time", &[]).status, 200);
    second.send(b"GET /api/v1/time HT");
    assert!(second.is_closed_within(PATIENCE));
    // Others were served meanwhile.
    assert_eq!(site.connect().get("/api/v1/time", &[]).status, 200);
}

fn request_head() -> String {
    format!("GET /api/v1/time HTTP/1.1\r\nHost: x\r\nX-Slow: {}", "a".repeat(2_000))
}

#[test]
fn a_body_must_come_in_time() {
    let site = Site::start(impatient());
    let mut slow = site.connect();
    let begin = Instant::now();
    slow.send(format!("POST {ORDERS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{").as_bytes());
    slow.answer(true).expect("an answer").is(408, "too-slow");
    assert!(begin.elapsed() > Duration::from_millis(900), "not before its time: {:?}", begin.elapsed());
    let mut drops = site.connect();
    drops.send(format!("POST {ORDERS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n").as_bytes());
    for _ in 0..8 {
        // Where the machine stands still for long enough its time is over already.
        let _ = drops.stream.write_all(b" ");
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(answer) = drops.answer(true) {
        answer.is(408, "too-slow");
    }
    assert_eq!(site.snapshot().remaining, 100);
}

#[test]
fn an_idle_connection_ends() {
    let site = Site::start(impatient());
    let mut idle = site.connect();
    assert_eq!(idle.get("/api/v1/time", &[]).status, 200);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(idle.get("/api/v1/time", &[]).status, 200, "not idle long enough");
    let begin = Instant::now();
    assert!(idle.is_closed_within(PATIENCE));
    assert!(begin.elapsed() > Duration::from_secs(1), "not before its time: {:?}", begin.elapsed());
}

#[test]
fn what_a_proxy_passes_on_as_it_comes_is_taken() {
    let site = Site::start(Options::default());
    // nginx' default: four buffers of 8 KiB for the lines of a head.
    let cookies = format!("shop={}", "c".repeat(2_995));
    let headers = [("Cookie", &*cookies); 3];
    assert_eq!(site.connect().get("/api/v1/time", &headers).status, 200);
    let long = "l".repeat(8_000);
    let headers = [("X-A", &*long), ("X-B", &*long), ("X-C", &*long), ("Cookie", &*long)];
    assert_eq!(site.connect().get("/api/v1/time", &headers).status, 200);
}

/// Its sender is in the middle of it when it is refused: a reset then would cost the answer (nginx says 502).
#[test]
fn a_refused_body_is_read_to_its_end_and_its_sender_hears_why() {
    let site = Site::start(Options::default());
    let body = vec![b' '; 2 << 20];
    for (path, status, word) in [
        (ORDERS, 413, "too-large"),
        ("/api/v1/nothing", 404, "not-found"),
        ("/api/v1/sales", 405, "method-not-allowed"),
    ] {
        let mut client = site.connect();
        client.send(
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
        );
        for part in body.chunks(1 << 16) {
            // So slowly that the answer is long there.
            std::thread::sleep(Duration::from_millis(3));
            client.stream.write_all(part).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        client.answer(true).unwrap_or_else(|| panic!("{path}: no answer")).is(status, word);
    }
}

#[test]
fn heads_are_bounded() {
    let site = Site::start(Options::default());
    let mut large = site.connect();
    large.send(
        format!("GET /api/v1/time HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "a".repeat(40_000)).as_bytes(),
    );
    let refused = large.answer(true).expect("its rest is read, so that the answer arrives");
    refused.is(431, "head-too-large");
    assert!(refused.text().contains("gateway.header_bytes_max = 36864"), "{}", refused.text());
    // HEAD has no body, and says how long it would be.
    let mut head = site.connect();
    head.send(format!("HEAD / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "a".repeat(40_000)).as_bytes());
    assert_eq!(head.answer(false).expect("an answer").status, 431);
    assert!(head.is_closed_within(PATIENCE));
    let mut many = site.connect();
    let headers: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    many.send(format!("GET /api/v1/time HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
    many.answer(true).expect("an answer").is(431, "head-too-large");
    for nonsense in [
        "\r\n\r\n\u{0}\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\r\n\r\n",
    ] {
        let mut odd = site.connect();
        odd.send(nonsense.as_bytes());
        let answer = odd.answer(true);
        assert!(answer.as_ref().is_none_or(|a| a.status == 400), "{nonsense:?}: {answer:?}");
    }
    let mut smuggler = site.connect();
    smuggler.send(
        format!("POST {ORDERS} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}   ")
            .as_bytes(),
    );
    let answer = smuggler.answer(true);
    assert!(answer.as_ref().is_none_or(|a| a.status == 400), "{answer:?}");
}

#[test]
fn requests_in_one_packet_are_answered_in_order() {
    let site = Site::start(Options::default());
    let mut pipe = site.connect();
    let mut bytes = support::http::request("GET", "/api/v1/sales/demo", &[], None);
    bytes.extend(support::http::request("POST", ORDERS, &[], Some(b"{}")));
    bytes.extend(support::http::request("HEAD", "/api/v1/time", &[], None));
    bytes.extend(support::http::request("GET", "/api/v1/nothing", &[], None));
    pipe.send(&bytes);
    let statuses = [true, true, false, true].map(|body| pipe.answer(body).expect("an answer").status);
    assert_eq!(statuses, [200, 401, 200, 404]);
}

#[test]
fn an_answer_does_not_wait_for_what_follows_its_request() {
    let site = Site::start(impatient());
    for (user, rest) in [("line-break", "\r\n"), ("next-head", "GET /api/v1/ti"), ("nonsense", "\u{1}")] {
        let (pass, _) = site.pass(user);
        let mut bytes = support::http::request("POST", ORDERS, &[("Floodgate-Pass", &pass)], Some(b"{}"));
        bytes.extend(rest.as_bytes());
        let mut eager = site.connect();
        eager.send(&bytes);
        assert_eq!(eager.answer(true).map(|answer| answer.status), Some(202), "{rest:?}");
    }
    let mut large = site.connect();
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1_024)).repeat(20);
    large.send(
        format!("POST {ORDERS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
            .as_bytes(),
    );
    large.answer(true).expect("an answer").is(413, "too-large");
}

#[test]
fn more_connections_than_places_wait_for_idle_ones_to_go() {
    let mut options = Options::default();
    options.gateway.threads = 1;
    options.limits.in_flight_max = 8;
    let site = Site::start(options);
    let mut idle: Vec<_> = (0..8).map(|_| site.connect()).collect();
    for connection in &mut idle {
        assert_eq!(connection.get("/api/v1/time", &[]).status, 200);
    }
    // Idle ones make room.
    assert_eq!(site.connect().get("/api/v1/time", &[]).status, 200);
}

#[test]
fn connections_that_never_say_anything_make_room_too() {
    let mut options = Options::default();
    options.gateway.threads = 1;
    options.gateway.header_read_max_ms = 3_600_000;
    options.limits.in_flight_max = 8;
    let site = Site::start(options);
    let mut silent: Vec<_> = (0..8).map(|_| site.connect()).collect();
    assert_eq!(site.connect().get("/api/v1/time", &[]).status, 200);
    // The oldest go first: one that has begun its head has time for the rest.
    let mut begun = site.connect();
    begun.send(b"GET /api/v1/time HTTP/1.1\r\n");
    silent.extend((0..4).map(|_| site.connect()));
    assert_eq!(site.connect().get("/api/v1/time", &[]).status, 200);
    begun.send(b"Host: x\r\n\r\n");
    assert_eq!(begun.answer(true).expect("an answer").status, 200);
}

#[test]
fn the_feeds_pollers_leave_connections_to_probes() {
    let mut options = Options::default();
    options.sale.total = 1;
    let site = Site::start(options);
    let version = site.admin().get("/internal/v1/edge", &[]).json()["version"].clone();
    let poll = support::http::request("GET", &format!("/internal/v1/edge?since={version}"), &[], None);
    let mut edges: Vec<_> = (0..300).map(|_| site.admin()).collect();
    for edge in &mut edges {
        edge.send(&poll);
        edge.stream.set_nonblocking(true).expect("a mode");
    }
    let answered = |edges: &[support::Connection]| {
        edges.iter().filter(|edge| edge.stream.peek(&mut [0]).is_ok()).count()
    };
    let refused = (0..3_000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        answered(&edges) == 44
    });
    assert!(refused, "{} of 300 are answered at once", answered(&edges));
    assert_eq!(site.admin().get("/healthz", &[]).status, 200);
    assert_eq!(site.admin().get("/internal/v1/edge", &[]).status, 200, "without waiting");
    // The others hear what they waited for.
    assert_eq!(site.buy(&site.pass("alice").0, "{}").status, 202);
    let statuses = edges.iter_mut().map(|edge| {
        edge.stream.set_nonblocking(false).expect("a mode");
        let answer = edge.answer(true).expect("an answer");
        if answer.status != 200 {
            answer.is(503, "busy");
        }
        answer.status
    });
    assert_eq!(statuses.filter(|status| *status == 200).count(), 256);
}

#[test]
fn requests_that_a_proxy_might_read_otherwise_are_refused() {
    let site = Site::start(Options::default());
    let (pass, _) = site.pass("alice");
    let body = "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    for head in [
        format!("{ORDERS} HTTP/1.1\r\n"),
        format!("{ORDERS} HTTP/1.1\r\nHost: a\r\nHost: a\r\n"),
        format!("{ORDERS} HTTP/1.1\r\nHost: a b\r\n"),
        format!("{ORDERS} HTTP/1.1\r\nHost: eve@a\r\n"),
        format!("{ORDERS} HTTP/1.1\r\nHost: a/b\r\n"),
        format!("http://b{ORDERS} HTTP/1.1\r\nHost: a\r\n"),
        format!("{ORDERS} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"),
        format!("{ORDERS} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n"),
    ] {
        let mut eve = site.connect();
        eve.send(format!("POST {head}Floodgate-Pass: {pass}\r\n{body}").as_bytes());
        let refused = eve.answer(true).expect("an answer");
        refused.is(400, "bad-request");
        assert_eq!(refused.header("connection"), Some("close"), "{head}");
        assert!(eve.is_closed_within(PATIENCE), "{head}");
    }
    assert_eq!(site.log().len(), 0, "nothing was bought");
    let mut gzip = site.connect();
    let two = body.replace("chunked", "gzip, chunked");
    gzip.send(format!("POST {ORDERS} HTTP/1.1\r\nHost: a\r\nFloodgate-Pass: {pass}\r\n{two}").as_bytes());
    gzip.answer(true).expect("an answer").is(400, "bad-request");
    // Nothing is wrong with an absolute target, an old version, an empty host, or one coding.
    for head in [
        "http://A:1/api/v1/time HTTP/1.1\r\nHost: a:1",
        "/api/v1/time HTTP/1.0",
        "/api/v1/time HTTP/1.1\r\nHost:",
    ] {
        let mut plain = site.connect();
        plain.send(format!("GET {head}\r\n\r\n").as_bytes());
        assert_eq!(plain.answer(true).expect("an answer").status, 200, "{head}");
    }
    let mut chunked = site.connect();
    chunked.send(format!("POST {ORDERS} HTTP/1.1\r\nHost: a\r\nFloodgate-Pass: {pass}\r\n{body}").as_bytes());
    assert_eq!(chunked.answer(true).expect("an answer").status, 202);
}

#[test]
fn whoever_hangs_up_in_the_middle_cancels_nothing() {
    let site = Site::start(Options::default());
    for n in 0..40 {
        let (pass, _) = site.pass(&format!("user-{n}"));
        let bytes = support::http::request("POST", ORDERS, &[("Floodgate-Pass", &pass)], Some(b"{}"));
        let mut gone = site.connect();
        gone.send(&bytes);
        drop(gone);
    }
    // What the ledger holds is in the log.
    let logged = || site.log().len();
    let settled = (0..3_000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        site.snapshot().pending as usize == logged() && site.gateway.recovered()
    });
    assert!(settled, "{} pending, {} in the log", site.snapshot().pending, logged());
    assert!(!site.log().is_empty());
}

#[test]
fn many_buyers_at_once_get_exactly_what_there_is() {
    let mut options = Options::default();
    options.sale.total = 100;
    options.sale.per_user_limit = 1;
    let site = Site::start(options);
    let outcomes: Vec<u16> = std::thread::scope(|scope| {
        let buyers: Vec<_> = (0..16)
            .map(|thread| {
                let site = &site;
                scope.spawn(move || {
                    let mut connection = site.connect();
                    (0..100)
                        .map(|n| {
                            let (pass, _) = site.pass_for(SALE, &format!("{thread}-{n}"), u64::MAX);
                            let mut press =
                                || connection.post(ORDERS, &[("Floodgate-Pass", &pass)], "{}").status;
                            // A machine that stands still for a while makes an attempt late: the same pass again.
                            (0..100).map(|_| press()).find(|status| *status != 503).expect("a yes or a no")
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        buyers.into_iter().flat_map(|b| b.join().expect("a buyer")).collect()
    });
    let count = |status| outcomes.iter().filter(|s| **s == status).count();
    assert_eq!((count(202), count(410)), (100, 1_500), "{outcomes:?}");
    assert_eq!((site.log().len(), site.snapshot().pending, site.snapshot().remaining), (100, 100, 0));
}

#[test]
fn the_end_is_orderly() {
    let mut options = Options::default();
    // Whatever could hold the end up would do so for an hour.
    options.gateway.shutdown_max_s = 3_600;
    options.gateway.header_read_max_ms = 3_600_000;
    options.gateway.body_read_max_ms = 3_600_000;
    options.gateway.idle_max_ms = 3_600_000;
    let mut site = Site::start(options);
    site.await_ready();
    let address = site.address();
    let admin = site.admin_address();
    let (pass, order_id) = site.pass("alice");
    assert_eq!(site.buy(&pass, "{}").status, 202);
    let mut idle = site.connect();
    assert_eq!(idle.get("/api/v1/time", &[]).status, 200);
    // A scraper that keeps its connection must not hold the end up.
    let mut scraper = site.admin();
    assert_eq!(scraper.get("/metrics", &[]).status, 200);
    // Nor one that is in the middle of a head, nor one that has said nothing yet.
    let mut slow = site.connect();
    slow.send(b"GET /api/v1/time HT");
    let _silent = site.connect();
    let mut stream = site.connect();
    let path = format!("/api/v1/orders/{order_id}/events");
    stream.send(&support::http::request("GET", &path, &[("Floodgate-Pass", &pass)], None));
    assert_eq!(stream.answer(false).expect("an answer").status, 200);

    // One in the middle of its body, which a handler waits for, is served to its end; until then the process says that it is
    // not ready.
    let mut busy = site.connect();
    let length = [("Content-Type", "application/json"), ("Content-Length", "14"), ("Expect", "100-continue")];
    busy.send(&support::http::request("POST", "/api/v1/demo/login", &length, None));
    assert_eq!(busy.answer(false).expect("an answer").status, 100);
    busy.send(b"{\"user\":");
    let probe = std::thread::spawn(move || {
        while support::Connection::open(admin).get("/readyz", &[]).status != 503 {
            std::thread::sleep(Duration::from_millis(5));
        }
        busy.send(b"\"bob\"}");
        busy.answer(true).expect("an answer").status
    });
    let running = site.running.take().expect("running");
    let end = async { tokio::time::timeout(PATIENCE, running.shutdown()).await };
    assert!(site.runtime.block_on(end).expect("nothing holds the end up"), "everything was finished in time");
    assert_eq!(
        probe.join().expect("a probe"),
        200,
        "not ready comes first, and who was in the middle is served"
    );
    assert!(idle.is_closed_within(PATIENCE));
    while stream.chunk().is_some() {}
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
    assert_eq!(site.log().len(), 1);
}

#[test]
fn a_taken_port_says_what_to_do() {
    let site = Site::start(Options::default());
    let taken = site.address();
    let other = std::panic::catch_unwind(|| {
        let gateway = GatewayConfig { listen: taken, ..Options::default().gateway };
        Site::start(Options { gateway, ..Options::default() })
    });
    let error = other.err().expect("refused");
    let text = error.downcast_ref::<String>().expect("a text");
    assert!(text.contains("Taken") && text.contains("gateway.listen"), "{text}");
}
