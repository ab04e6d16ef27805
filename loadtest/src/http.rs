//! A lean HTTP/1.1 client: a bounded pool of keep-alive sockets under any number of simulated users.
//!
//! It tells apart what an audit must tell apart: a request that surely never left ([`Lost::NotSent`]) and one that may have
//! been executed though no answer came ([`Lost::Unanswered`]). It never sends a request twice by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const HEAD_BYTES_MAX: usize = 16 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024;
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Why no answer can be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lost {
    /// The request did not leave whole: it cannot have been executed.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request left and no whole answer came: it may have been executed.
    #[error("no answer: {0}")]
    Unanswered(String),
}

/// One request. Everything but method and path is optional.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'a str,
    pub(crate) bearer: Option<&'a str>,
    pub(crate) pass: Option<&'a str>,
    pub(crate) forwarded_for: Option<Ipv4Addr>,
    pub(crate) body: Option<&'a str>,
}

/// One whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Seconds of Retry-After, when it is a number.
    pub(crate) retry_after_s: Option<u64>,
    pub(crate) body: Vec<u8>,
}

/// A pool of at most `sockets_max` connections to one address. Callers beyond that wait in line.
pub(crate) struct Client {
    address: SocketAddr,
    host: String,
    idle: Mutex<Vec<Connection>>,
    sockets: Semaphore,
    answer_within: Duration,
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    request: Vec<u8>,
}

impl Client {
    /// `url` is `http://HOST:PORT` with an address or name that resolves now; a path is not allowed.
    pub(crate) fn new(url: &str, sockets_max: usize, answer_within: Duration) -> Result<Self, String> {
        let host = url
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'))
            .filter(|host| !host.is_empty() && !host.contains('/'))
            .ok_or_else(|| format!("{url}: give http://HOST:PORT (TLS is not spoken)"))?;
        let with_port = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let address = std::net::ToSocketAddrs::to_socket_addrs(&with_port)
            .map_err(|error| format!("{url}: {error}"))?
            .next()
            .ok_or_else(|| format!("{url}: the name has no address"))?;
        Ok(Self {
            address,
            host: host.to_owned(),
            idle: Mutex::new(Vec::new()),
            sockets: Semaphore::new(sockets_max),
            answer_within,
        })
    }

    /// Sends the call and waits for its answer: for a free socket without bound (the caller's latency counts from its intended
    /// time), then for at most `answer_within`.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Answer, Lost> {
        let _socket = self.sockets.acquire().await.map_err(|error| Lost::NotSent(error.to_string()))?;
        let mut connection = self.connect().await?;
        connection.compose(call, &self.host);
        let exchange = tokio::time::timeout(self.answer_within, connection.exchange());
        let (answer, keep) = exchange.await.unwrap_or_else(|_| {
            Err(Lost::Unanswered(format!("none within {} s", self.answer_within.as_secs())))
        })?;
        if keep {
            self.idle.lock().push(connection);
        }
        Ok(answer)
    }

    /// Writes the call, whole or its first half, and hangs up without reading: a buyer whose network went away.
    pub(crate) async fn hang_up(&self, call: &Call<'_>, whole: bool) -> Result<(), Lost> {
        let _socket = self.sockets.acquire().await.map_err(|error| Lost::NotSent(error.to_string()))?;
        let mut connection = self.connect().await?;
        connection.compose(call, &self.host);
        let length = if whole { connection.request.len() } else { connection.request.len() / 2 };
        let written = connection.stream.write_all(&connection.request[..length]).await;
        written.map_err(|error| Lost::NotSent(error.to_string()))
    }

    async fn connect(&self) -> Result<Connection, Lost> {
        loop {
            let Some(connection) = self.idle.lock().pop() else { break };
            // Bytes or an end on an idle connection mean that the server gave it up.
            let mut probe = [0u8; 1];
            let waits = matches!(connection.stream.try_read(&mut probe), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
            if waits {
                return Ok(connection);
            }
        }
        let stream = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(self.address))
            .await
            .map_err(|_| Lost::NotSent(format!("no connection within {} s", CONNECT_WITHIN.as_secs())))?
            .map_err(|error| Lost::NotSent(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| Lost::NotSent(error.to_string()))?;
        Ok(Connection { stream, received: vec![0; 2048], request: Vec::with_capacity(512) })
    }
}

impl Connection {
    fn compose(&mut self, call: &Call<'_>, host: &str) {
        let request = &mut self.request;
        request.clear();
        let mut put =
            |parts: &[&str]| parts.iter().for_each(|part| request.extend_from_slice(part.as_bytes()));
        put(&[call.method, " ", call.path, " HTTP/1.1\r\nHost: ", host, "\r\n"]);
        if let Some(bearer) = call.bearer {
            put(&["Authorization: Bearer ", bearer, "\r\n"]);
        }
        if let Some(pass) = call.pass {
            put(&["Floodgate-Pass: ", pass, "\r\n"]);
        }
        if let Some(address) = call.forwarded_for {
            put(&["X-Forwarded-For: ", &address.to_string(), "\r\n"]);
        }
        match call.body {
            Some(body) => {
                let length = body.len().to_string();
                put(&["Content-Type: application/json\r\nContent-Length: ", &length, "\r\n\r\n", body]);
            }
            None if call.method == "GET" => put(&["\r\n"]),
            None => put(&["Content-Length: 0\r\n\r\n"]),
        }
    }

    /// Writes the composed request and reads one answer; the flag tells whether the connection may serve again.
    async fn exchange(&mut self) -> Result<(Answer, bool), Lost> {
        // A write that fails left the request incomplete: the server cannot execute it.
        self.stream.write_all(&self.request).await.map_err(|error| Lost::NotSent(error.to_string()))?;
        let mut filled = 0;
        let head = loop {
            filled += self.read_more(filled).await?;
            if let Some(head) = parse_head(&self.received[..filled])? {
                break head;
            }
            if filled >= HEAD_BYTES_MAX {
                return Err(Lost::Unanswered("the head is longer than 16 KiB".into()));
            }
        };
        let end = head.length + head.body_length;
        while filled < end {
            filled += self.read_more(filled).await?;
        }
        let body = self.received[head.length..end].to_vec();
        let keep = head.keep_alive && filled == end;
        Ok((Answer { status: head.status, retry_after_s: head.retry_after_s, body }, keep))
    }

    async fn read_more(&mut self, filled: usize) -> Result<usize, Lost> {
        if filled == self.received.len() {
            self.received.resize(self.received.len() * 2, 0);
        }
        match self.stream.read(&mut self.received[filled..]).await {
            Ok(0) => Err(Lost::Unanswered("the server closed the connection".into())),
            Ok(count) => Ok(count),
            Err(error) => Err(Lost::Unanswered(error.to_string())),
        }
    }
}

struct Head {
    status: u16,
    retry_after_s: Option<u64>,
    keep_alive: bool,
    length: usize,
    body_length: usize,
}

fn parse_head(received: &[u8]) -> Result<Option<Head>, Lost> {
    let broken = |what: &str| Lost::Unanswered(format!("not an HTTP/1.1 answer: {what}"));
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) =
        response.parse(received).map_err(|error| broken(&error.to_string()))?
    else {
        return Ok(None);
    };
    let status = response.code.unwrap_or(0);
    let mut head =
        Head { status, retry_after_s: None, keep_alive: response.version == Some(1), length, body_length: 0 };
    let mut sized = status == 204 || status == 304;
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or("").trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            head.body_length = value.parse().map_err(|_| broken("Content-Length is no number"))?;
            sized = true;
        } else if header.name.eq_ignore_ascii_case("retry-after") {
            head.retry_after_s = value.parse().ok();
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.keep_alive &= !value.eq_ignore_ascii_case("close");
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(broken("chunked answers are not read"));
        }
    }
    if !sized {
        return Err(broken("Content-Length is missing"));
    }
    if head.body_length > BODY_BYTES_MAX {
        return Err(broken("the body is longer than 1 MiB"));
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    type Served = (Client, Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>);

    /// Serves the given answers, one a request, connection after connection; an empty answer closes the connection.
    async fn serve(answers: Vec<&'static str>) -> Served {
        serve_to(Duration::from_secs(60), answers).await
    }

    /// The same to a client that waits for an answer no longer than this.
    async fn serve_to(patience: Duration, answers: Vec<&'static str>) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (counted, kept) = (connections.clone(), requests.clone());
        tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            while answers.peek().is_some() {
                let (mut stream, _) = listener.accept().await.expect("accept");
                counted.fetch_add(1, Ordering::Relaxed);
                let mut buffer = vec![0; 4096];
                loop {
                    let count = stream.read(&mut buffer).await.expect("read");
                    if count == 0 {
                        break;
                    }
                    kept.lock().push(String::from_utf8_lossy(&buffer[..count]).into_owned());
                    let Some(answer) = answers.next().filter(|answer| !answer.is_empty()) else { break };
                    // In two pieces, so that answers are put together again.
                    let (first, second) = answer.split_at(answer.len() / 2);
                    stream.write_all(first.as_bytes()).await.expect("write");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    stream.write_all(second.as_bytes()).await.expect("write");
                }
            }
        });
        (Client::new(&url, 1, patience).expect("client"), connections, requests)
    }

    const GET: Call<'static> =
        Call { method: "GET", path: "/x", bearer: None, pass: None, forwarded_for: None, body: None };

    #[tokio::test]
    async fn answers_are_read_whole_and_the_connection_serves_again() {
        let (client, connections, requests) = serve(vec![
            "HTTP/1.1 410 Gone\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
        ])
        .await;
        let call = Call {
            method: "POST",
            bearer: Some("tok"),
            pass: Some("pp"),
            forwarded_for: Some(Ipv4Addr::new(10, 0, 0, 9)),
            body: Some("{}"),
            ..GET
        };
        let answer = client.send(&call).await.expect("first");
        assert_eq!(answer, Answer { status: 410, retry_after_s: Some(7), body: b"hello".to_vec() });
        assert_eq!(client.send(&GET).await.expect("second").status, 202);
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        let sent = requests.lock()[0].clone();
        assert!(sent.starts_with("POST /x HTTP/1.1\r\nHost: 127.0.0.1:"), "{sent}");
        for line in [
            "Authorization: Bearer tok",
            "Floodgate-Pass: pp",
            "X-Forwarded-For: 10.0.0.9",
            "Content-Length: 2",
        ] {
            assert!(sent.contains(&format!("\r\n{line}\r\n")), "{line} is not in {sent}");
        }
        assert!(sent.ends_with("\r\n\r\n{}"));
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_an_answer_is_unanswered_not_unsent() {
        let (client, ..) = serve(vec!["", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await;
        assert!(matches!(client.send(&GET).await, Err(Lost::Unanswered(_))));
        assert_eq!(client.send(&GET).await.expect("a new connection").status, 200);
    }

    #[tokio::test]
    async fn a_torn_answer_and_a_silent_server_are_unanswered() {
        let torn = vec!["HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"];
        let (client, ..) = serve_to(Duration::from_millis(300), torn).await;
        // The server says no more and does not close: without a bound this would never end.
        assert!(matches!(client.send(&GET).await, Err(Lost::Unanswered(_))));
    }

    #[tokio::test]
    async fn a_closed_port_is_unsent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        drop(listener);
        let client = Client::new(&url, 1, Duration::from_secs(1)).expect("client");
        assert!(matches!(client.send(&GET).await, Err(Lost::NotSent(_))));
    }

    #[tokio::test]
    async fn a_server_that_closed_an_idle_connection_costs_no_request() {
        let (client, connections, _) = serve(vec![
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        assert_eq!(client.send(&GET).await.expect("first").status, 200);
        assert!(client.idle.lock().is_empty(), "Connection: close is not kept");
        let second = client.send(&GET);
        // The little server still waits on the first connection until that one is dropped.
        assert_eq!(second.await.expect("second").status, 200);
        assert_eq!(connections.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn half_a_request_is_half_a_request() {
        let (client, _, requests) = serve(vec!["", ""]).await;
        client
            .hang_up(&Call { body: Some("{\"quantity\":1}"), method: "POST", ..GET }, false)
            .await
            .expect("written");
        for _ in 0..12_000 {
            if !requests.lock().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sent = requests.lock()[0].clone();
        assert!(sent.starts_with("POST /x") && !sent.contains("quantity"), "{sent}");
    }

    #[test]
    fn heads_that_cannot_be_framed_are_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert!(parse_head(head.as_bytes()).is_err(), "{head}");
        }
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Le").expect("not broken yet").is_none());
    }

    #[test]
    fn urls_are_checked() {
        for url in ["https://127.0.0.1:1", "127.0.0.1:1", "http://", "http://127.0.0.1:1/path"] {
            assert!(Client::new(url, 1, Duration::from_secs(1)).is_err(), "{url}");
        }
        assert_eq!(
            Client::new("http://127.0.0.1", 1, Duration::from_secs(1)).expect("port 80").address.port(),
            80
        );
    }
}
